"""Standard input and output of `vfu-migrate --agent`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
from collections.abc import Callable
from typing import Final

from pymodel import __version__
from vfu_client.move.agent import GREETING, Agent
from vfu_client.move.messages import VERSION, Messages
from vfu_client.standard_streams import heed_interrupts

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def serve(say: Callable[[str], None]) -> int:
    """Greet, and serve one move; the exit status, as `Agent.serve`. A signal counts as a connection cut."""
    try:
        reader, writer = await _streams()
    except (OSError, ValueError) as error:
        say(f"--agent speaks with another vfu-migrate on pipes or a socket: {error}")
        return 1
    greeting = json.dumps({"version": VERSION, "program": __version__})
    # On a line of its own, whatever was said before.
    writer.write(f"\n{GREETING} {greeting}\n".encode())
    task = asyncio.ensure_future(Agent(Messages(reader, writer), say).serve())
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    heed_interrupts()
    return await task


async def _streams() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """What to read from and to write to. Raises OSError or ValueError for what is no stream of bytes."""
    loop = asyncio.get_running_loop()
    about = os.fstat(0)
    if stat.S_ISSOCK(about.st_mode) and about.st_ino == os.fstat(1).st_ino:
        return await asyncio.open_connection(sock=socket.socket(fileno=os.dup(0)))
    reader = asyncio.StreamReader()
    incoming, outgoing = (os.fdopen(os.dup(number), mode, 0) for number, mode in ((0, "rb"), (1, "wb")))
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), incoming)
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), outgoing
    )
    return reader, asyncio.StreamWriter(transport, protocol, None, loop)
