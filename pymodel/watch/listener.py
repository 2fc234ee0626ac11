"""What a listener is told of: a function's accesses in the words of the standard, and its buffers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pymodel.errors import BrokenQueue, GuestError
from pymodel.memory import Buffer
from pymodel.watch.access import Access, of_bar, of_config
from pymodel.watcher import Watcher, Witness

if TYPE_CHECKING:
    from pymodel.pci.function import Function


class Listener(Witness):
    """Is told of everything, accesses by their registers, and does nothing here."""

    def read(self, access: Access) -> None:
        """Something was read."""

    def write(self, access: Access) -> None:
        """Something is about to be written."""

    def wrote(self, access: Access) -> None:
        """It was; the function is as it is afterwards."""


class Decoder(Watcher):
    """Watches `function` for `listeners`. An exception of theirs is logged, and is theirs alone."""

    def __init__(self, function: Function, listeners: Sequence[Listener]) -> None:
        self._function = function
        self.listeners = tuple(listeners)
        self._log = logging.getLogger(f"virtio.{function.name}")

    def config_read(self, offset: int, data: bytes) -> None:
        """See `Watcher`."""
        self._tell("read", of_config(self._function, offset, data))

    def config_write(self, offset: int, data: bytes) -> None:
        """See `Watcher`."""
        self._tell("write", of_config(self._function, offset, data))

    def config_wrote(self, offset: int, data: bytes) -> None:
        """See `Watcher`."""
        self._tell("wrote", of_config(self._function, offset, data))

    def bar_read(self, bar: int, offset: int, data: bytes) -> None:
        """See `Watcher`."""
        self._tell("read", of_bar(self._function, bar, offset, data))

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        """See `Watcher`."""
        self._tell("write", of_bar(self._function, bar, offset, data))

    def bar_wrote(self, bar: int, offset: int, data: bytes) -> None:
        """See `Watcher`."""
        self._tell("wrote", of_bar(self._function, bar, offset, data))

    def turn(self, queue: int) -> None:
        """See `Witness`."""
        self._tell("turn", queue)

    def taken(self, buffer: Buffer) -> None:
        """See `Witness`."""
        self._tell("taken", buffer)

    def given_back(self, buffer: Buffer) -> None:
        """See `Witness`."""
        self._tell("given_back", buffer)

    def used(self, buffer: Buffer, written: int) -> None:
        """See `Witness`."""
        self._tell("used", buffer, written)

    def broke(self, queue: int, error: BrokenQueue) -> None:
        """See `Witness`."""
        self._tell("broke", queue, error)

    def interrupt(self, vector: int) -> None:
        """See `Witness`."""
        self._tell("interrupt", vector)

    def mapped(self, address: int, length: int, *, there: bool, writable: bool) -> None:
        """See `Witness`."""
        self._tell("mapped", address, length, there=there, writable=writable)

    def was_reset(self) -> None:
        """See `Witness`."""
        self._tell("was_reset")

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """See `Witness`."""
        self._tell("event", kind, data)

    def _tell(self, method: str, *news: object, **more: object) -> None:
        for listener in self.listeners:
            guarded(self._log, getattr(listener, method), *news, **more)


def guarded(log: logging.Logger, call: Callable[..., None], *news: object, **more: object) -> None:
    """Tell a listener. What goes wrong there changes nothing about the function."""
    try:
        call(*news, **more)
    except GuestError:
        pass  # it came upon what the function itself says when it does
    except Exception:
        log.exception("the server made a mistake in watching")
