"""What a queue needs of its ring, whichever format that has."""

from __future__ import annotations

from array import array

from pymodel.memory import Buffer, GuestMemory
from pymodel.migration.state import QueueState
from pymodel.queue.chain import Chain
from pymodel.spec import ring

# What `Ring.put` is told of a buffer beside its length.
SKIP, WROTE = 1, 2

_SKIP, _WROTE = SKIP, WROTE

# What a used element can say.
_LONGEST = 0xFFFF_FFFF

LAST_ADDRESS = 0xFFFF_FFFF_FFFF_FFFF


class RingBuffer(Buffer):
    """A buffer as its ring knows it: `id` and `slots` of its chain, and how it was used."""

    __slots__ = ("id", "slots", "written")

    id: int
    slots: int
    written: int

    @property
    def marks(self) -> int:
        """What `Ring.put` is to know: see `marks`."""
        return marks(self.readable.length, self.writable.length, self.written, wrote=self.writable.written)


def marks(readable: int, writable: int, written: int, *, wrote: bool) -> int:
    """What a ring is to know of a buffer: its parts in bytes, how much of it counts as written, and whether
    anything was written at all.

    SKIP: the driver can tell without a length how it was used. What a batch skips counts as used completely.
    Of a buffer with both parts Linux then takes the sum of both for the length, so those are never skipped.
    WROTE: also for a status behind data that was not written, though the length says nothing of it.
    """
    can_be_skipped = written == writable and not (readable and written)
    return (SKIP if can_be_skipped else 0) | (WROTE if written or wrote else 0)


class Ring:
    """One format of virtqueue: where it is, and how far the device has come in it.

    A fresh one stands for a queue that is not enabled. Positions are plain integers; what they mean is the
    format's matter. `unanswered` counts what was used since it was last decided about an interrupt.
    `table_max`: how many descriptors an indirect table may have, as many as the ring and `long_tables` at
    least; 0 without INDIRECT_DESC. `completed` counts what was used and not published.

    All from `put` on is compiled to run without the interpreter. Each returns a number, 1 for yes.
    """

    name = ""

    def __init__(
        self, index: int, *, event_idx: bool, indirect: bool, in_order: bool, long_tables: int = 0
    ) -> None:
        self.index = index
        self.event_idx = event_idx
        self.indirect = indirect
        self.in_order = in_order
        self.long_tables = long_tables
        self.table_max = 0
        self.size = 0
        self.desc = 0
        self.driver = 0
        self.device = 0
        self.unanswered = 0
        self.completed = 0
        self._room(1)

    def _room(self, size: int) -> None:
        # Of what was completed: no more can be outstanding than there are descriptors.
        self._ids = array("I", bytes(4 * size))
        self._slots = array("I", bytes(4 * size))
        self._lengths = array("I", bytes(4 * size))
        self._marks = array("B", bytes(size))

    def place(self, size: int, desc: int, driver: int, device: int) -> None:
        """The queue was enabled: its size in descriptors, its three guest addresses."""
        if not self._reachable(size, desc, driver, device):
            # As the addresses of memory that is not there.
            desc = driver = device = LAST_ADDRESS
        self.size = size
        self.table_max = max(size, self.long_tables) if self.indirect else 0
        self.desc = desc
        self.driver = driver
        self.device = device
        self._room(size)

    def parts(self, size: int) -> tuple[int, int, int]:
        """Bytes of the three parts of a ring of `size` descriptors."""
        raise NotImplementedError

    def _reachable(self, size: int, desc: int, driver: int, device: int) -> bool:
        """Whether every part ends with the last address at most: compiled code would go on at 0."""
        ends = zip((desc, driver, device), self.parts(size), strict=True)
        return all(start + length - 1 <= LAST_ADDRESS for start, length in ends)

    @staticmethod
    def accepts_size(size: int) -> bool:
        """Whether a ring can have so many descriptors."""
        return 0 < size <= ring.MAX_SIZE

    @staticmethod
    def aligned(desc: int, driver: int, device: int) -> bool:
        """Whether the three addresses obey the format's alignment requirements."""
        raise NotImplementedError

    @property
    def last_avail(self) -> int:
        """Where the next buffer will be taken, as a context has it."""
        raise NotImplementedError

    @property
    def used(self) -> int:
        """Where the next buffer will be used, as a context has it."""
        raise NotImplementedError

    def where(self) -> str:
        """Where the next buffer will be taken, in words."""
        raise NotImplementedError

    @property
    def full(self) -> bool:
        """Whether what was taken and not published is all that there is room for.

        A split ring is never full here where chains have several descriptors: those are not counted.
        """
        raise NotImplementedError

    def capture(self, state: QueueState) -> None:
        """Put the position into `state`."""
        raise NotImplementedError

    @staticmethod
    def check(state: QueueState) -> None:
        """Raise `InvalidField`, with the reason, for a position that a ring of `state.size` cannot be at."""
        raise NotImplementedError

    def restore(self, state: QueueState) -> None:
        """Go to a position that `check` accepted. Comes after `place`."""
        raise NotImplementedError

    def find(self, memory: GuestMemory) -> None:
        """Go to the position that guest memory tells, where all that was taken before is used."""
        raise NotImplementedError

    def forget(self) -> None:
        """What was completed and not published is nobody's."""
        self.completed = 0

    def put(self, id: int, slots: int, written: int, marks: int) -> int:  # noqa: A002 - the standard's name
        """Note a buffer that was used, to be published in this order."""
        self._ids[self.completed] = id
        self._slots[self.completed] = slots
        self._lengths[self.completed] = min(_LONGEST, written)
        self._marks[self.completed] = marks
        self.completed += 1
        return 0

    def pending(self, memory: GuestMemory) -> int:
        """Whether a buffer is available. Raises `BrokenQueue` where more are than there can be."""
        raise NotImplementedError

    def take(self, memory: GuestMemory, chain: Chain) -> int:
        """The next buffer, after `pending` said that there is one, into `chain`, and go on behind it.

        Raises `BrokenQueue`, with nothing taken.
        """
        raise NotImplementedError

    def untake(self, slots: int) -> int:
        """Go back by the chain taken last; `slots` is its own."""
        raise NotImplementedError

    def publish(self, memory: GuestMemory) -> int:
        """Tell the driver of what was `put`. Raises `MemoryFault`, and may be called again."""
        raise NotImplementedError

    def wants_interrupt(self, memory: GuestMemory) -> int:
        """Whether the driver wants to be told of what was published since the last call.

        The caller has put a fence in between.
        """
        raise NotImplementedError

    def suppress_kicks(self, memory: GuestMemory) -> int:
        """Ask for no notifications: the ring is worked on anyway."""
        raise NotImplementedError

    def ask_for_kicks(self, memory: GuestMemory) -> int:
        """Ask for a notification of what the driver adds from now on; whether it has added meanwhile.

        What was seen already, taken and given back or not, is not news.
        """
        raise NotImplementedError
