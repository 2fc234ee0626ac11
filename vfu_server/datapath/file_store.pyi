"""The fast side of a disk in a file: between the page cache and guest memory, without the interpreter."""

from typing import Self, final

from pymodel.devices.block.store import Store

@final
class FileStore(Store):
    """What of an image an engine may use while its function's lock is held.

    `fd` stays the caller's, and must stay open while `busy`. `least` is the size below which the image has
    lost something. `reads` and `writes`: the file system can tell whether it has to wait. Other writes are
    copied, and made without the lock, once that is allowed.

    `written` counts writes that have ended, each part of a long one by itself, `others` those that others
    made; `durable` is what both were together when all was made durable last. `slow`: a write that was copied
    took longer than `slow_after` seconds.
    """

    written: int
    others: int
    durable: int
    slow: bool

    def __new__(cls, fd: int, least: int, *, reads: bool, writes: bool, slow_after: float) -> Self: ...
    @property
    def busy(self) -> bool:
        """Whether writes were begun, and how they went was not taken over."""

    def may_copy(self, allowed: bool) -> None:
        """Whether writes may be copied from now on; nothing is called slow any more."""
