"""A server in this process, of which VF 1 stands on a port that frames pass without the interpreter.

A tap would need rights, and the switch is asked in Python for each frame.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

from pymodel.spec import net
from tests.fuzz.world import PATIENCE, Finding
from tests.wire.networks.pair_port import served
from vfu_client.vfio.connection import Connection

OFFLOADS = 1 << net.F_CSUM | 1 << net.F_GUEST_CSUM | 1 << net.F_GUEST_TSO4 | 1 << net.F_HOST_TSO4


class _Bugs(logging.Handler):
    """Remembers what a thread of the server did not survive."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None:
            self.text = self.format(record)


class PairWorld:
    """`port` is that of VF 1; of the functions there is the PF besides."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._bugs = _Bugs()
        self._log = logging.getLogger("virtio")
        self._log.addHandler(self._bugs)
        self._stack.callback(self._log.removeHandler, self._bugs)
        self._folder, self.port = self._stack.enter_context(served(offloads=OFFLOADS))
        self.port.peer.setblocking(False)

    def connect(self, function: str) -> Connection:
        """See `Reachable`."""
        return Connection(self._folder / f"{function}.sock", timeout=PATIENCE, posted_writes=True)

    def wait(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """See `Reachable`."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return condition()
            time.sleep(0.0005)
        return True

    def renew_vfs(self, disable: Callable[[], None], enable: Callable[[], None]) -> None:
        """There is but one."""
        raise NotImplementedError

    def check(self) -> None:
        """See `World`."""
        if self._bugs.text:
            raise Finding(self._bugs.text)

    def close(self) -> None:
        """See `World`."""
        self._stack.close()
        self.check()
