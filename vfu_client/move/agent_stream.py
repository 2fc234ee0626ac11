"""Standard input and output of `vfu-migrate --agent`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from typing import Final

from pymodel import __version__
from vfu_client.move.agent import GREETING, Agent
from vfu_client.move.messages import VERSION, Messages

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def serve(say: Callable[[str], None]) -> int:
    """Greet, and serve one move; the exit status, as `Agent.serve`. A signal counts as a connection cut."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    # Each of its own descriptor: they are one socket where a server of connections runs this.
    incoming, outgoing = (os.fdopen(os.dup(number), mode, 0) for number, mode in ((0, "rb"), (1, "wb")))
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), incoming)
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), outgoing
    )
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    greeting = json.dumps({"version": VERSION, "program": __version__})
    writer.write(f"{GREETING} {greeting}\n".encode())
    task = asyncio.ensure_future(Agent(Messages(reader, writer), say).serve())
    for number in SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    return await task
