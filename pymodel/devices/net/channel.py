"""What a network engine needs of a port: frames to and from guest memory at once, without the interpreter."""

from __future__ import annotations

from pymodel.devices.net.filter import Filter
from pymodel.memory import GuestMemory, Vectors

# What `send` says: the port has the frame; it lost it; it has to be asked in Python; `room` will tell.
DONE, NOT_NOW, FULL, LOST = 0, -1, 1, 2

# What `receive` says where it has no frame: none waits now.
NOTHING = 0

_NOT_NOW = NOT_NOW


class Channel:
    """The fast side of a port. A frame is as a port's, behind a header of 12 bytes.

    `fd` is readable where a frame waits, or something that Python has to see, and `room`, if the port has it,
    where a frame may be sent again after a FULL. `filter` is which frames are wanted, None for none. It has
    the port's counts, for whoever uses it: frames and bytes that passed, frames dropped on the way in and on
    the way out.
    """

    def __init__(self, fd: int = -1) -> None:
        self.fd = fd
        self.room = -1
        self.filter: Filter | None = None
        self.sent = 0
        self.sent_bytes = 0
        self.received = 0
        self.received_bytes = 0
        self.dropped_sending = 0
        self.dropped_receiving = 0

    def send(self, memory: GuestMemory, frame: Vectors) -> int:
        """Send a frame, of which the header is the first piece: DONE, LOST, NOT_NOW or FULL.

        It is not counted yet, and the pieces may be others after that.
        """
        return _NOT_NOW

    def receive(self, memory: GuestMemory, room: Vectors, first: int) -> int:
        """Put the next frame into pieces from number `first` on, which have room for the longest one.

        How many bytes it has, NOTHING or NOT_NOW. It is not counted yet, and may be one that the filter does
        not want.
        """
        return _NOT_NOW
