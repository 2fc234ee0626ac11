"""A network VF under a legacy driver, for which the PF's driver makes the accesses, and a peer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from tests.server_process import ServerProcess
from tests.wire.frames import mac
from tests.wire.running import until
from vfu_client.drivers.net import NetDriver
from vfu_client.owner.admin import AdminQueue
from vfu_client.vfio.connection import Connection
from vfu_client.vfio.interrupt import Interrupt
from vfu_client.vfio.memory import Buffer, GuestMemory
from vfu_client.vfio.msix import Msix
from vfu_client.vfio.pci import PciFunction
from vfu_client.virtio.function import VirtioPci
from vfu_client.virtio.split import SplitQueue

TIMEOUT = 10.0
OPTIONS = ("--device", "net", "--legacy", "--vfs", "2", "--queues", "2", "--mac", "02:00:00:00:00:00")
ONE, TWO = mac(1), mac(2)

OK = (0, 0)
COMMAND, OPCODE, FIELD, MEMBER = ((22, qualifier) for qualifier in (1, 2, 3, 5))
COMMON_WRITE, COMMON_READ, DEVICE_WRITE, DEVICE_READ, NOTIFY_INFO = range(2, 7)
QUERY, USE, MODE_SET, CTX_READ, CTX_WRITE, CTX_DISCARD = 0, 1, 0x41, 0x43, 0x44, 0x46
ACTIVE, STOP, FREEZE = range(3)

MAC, STATUS, MRG_RXBUF, CTRL_VQ, CTRL_RX, CTRL_MAC_ADDR = 5, 16, 15, 17, 18, 23
ANY_LAYOUT, INDIRECT, EVENT_IDX, VERSION_1 = 27, 28, 29, 32
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
NO_VECTOR = 0xFFFF

# "Legacy Interfaces: A Note on PCI Device Layout": offset and bytes of each field.
FIELDS = {
    "device_features": (0, 4),
    "driver_features": (4, 4),
    "queue_address": (8, 4),
    "queue_size": (12, 2),
    "queue_select": (14, 2),
    "queue_notify": (16, 2),
    "device_status": (18, 1),
    "isr_status": (19, 1),
    "config_msix_vector": (20, 2),
    "queue_msix_vector": (22, 2),
}
DEVICE_FIELDS = ((0, 6), (6, 2), (8, 2), (10, 2), (12, 4), (16, 1), (17, 1), (18, 2), (20, 4))


class OnePiece(GuestMemory):
    """The memory of a queue: three parts are allocated in turn, the last one on a page of its own."""

    def __init__(self, memory: GuestMemory, size: int) -> None:
        super().__init__()
        self._used_at = -(-(16 * size + 2 * (3 + size)) // 4096) * 4096
        self.whole = memory.allocate(self._used_at + 2 * 3 + 8 * size, 4096)
        self._at = 0

    def allocate(self, size: int, align: int = 1) -> Buffer:
        at = self._used_at if align == 4 else self._at
        self._at = at + size
        return self.whole.part(at, size)


class LegacyQueue(SplitQueue):
    """A queue as legacy drivers have it."""

    def _make_rings(self, memory: GuestMemory, size: int) -> tuple[Buffer, Buffer, Buffer]:
        piece = OnePiece(memory, size)
        self.address = piece.whole.address
        return super()._make_rings(piece, size)

    def collected(self, lengths: list[int]) -> bool:
        """Add the lengths of buffers that were used to `lengths`; whether there are some."""
        lengths += [done.length for done in self.collect()]
        return bool(lengths)


class Legacy:
    """VF 1, on a server with `OPTIONS`. Without `memory` it gets some of its own."""

    def __init__(
        self, server: ServerProcess, stack: contextlib.ExitStack, memory: GuestMemory | None = None
    ) -> None:
        self.server = server
        self.pf = stack.enter_context(VirtioPci.open(server.socket("pf"), timeout=TIMEOUT))
        self.pf.initialize()
        self.admin = AdminQueue(self.pf, timeout=TIMEOUT)
        self.pf.driver_ok()
        self.listed = self.admin.list_query(1)
        self.admin.list_use(1, self.listed)
        if memory is None:
            memory = GuestMemory()
            memory.add_region(8 << 20)
            stack.callback(memory.close)
        self.memory = memory
        self.connection = stack.enter_context(Connection(server.socket("vf1"), timeout=TIMEOUT))
        self.memory.attach(self.connection)
        self.function = PciFunction(self.connection)
        self.function.set_command(6)
        self.msix = Msix(self.function)
        stack.callback(self.msix.close)
        self.features = 0
        self.queues: dict[int, LegacyQueue] = {}
        # Where notifications go: as LEGACY_NOTIFY_INFO says, unless a test has them be commands.
        self.by_address = True

    # Commands.

    def command(
        self, opcode: int, data: bytes = b"", size: int = 0, *, member: int = 1
    ) -> tuple[tuple[int, int], bytes]:
        """One command with room for `size` bytes: (status, qualifier), and those."""
        room = self.pf.memory.allocate(max(size, 1))
        room.view[:] = 0xEE
        pending = self.admin.submit(
            opcode, group=1, member=member, data=data, pad=False, into=[room.part(0, size)] if size else []
        )
        reply = self.admin.wait(pending)
        found = room.view[:size].tobytes()
        self.pf.memory.free(room)
        assert self.pf.status == 15  # no error state (P-DEV-04)
        return (reply.status, reply.qualifier), found

    def read_at(self, opcode: int, offset: int, size: int) -> tuple[tuple[int, int], bytes]:
        return self.command(opcode, bytes([offset]), size)

    def write_at(self, opcode: int, offset: int, data: bytes) -> tuple[int, int]:
        return self.command(opcode, bytes([offset, 0, 0, 0, 0, 0, 0, 0]) + data)[0]

    # Registers.

    def read(self, name: str) -> int:
        status, data = self.read_at(COMMON_READ, *FIELDS[name])
        assert status == OK
        return int.from_bytes(data, "little")

    def write(self, name: str, value: int) -> None:
        offset, size = FIELDS[name]
        assert self.write_at(COMMON_WRITE, offset, value.to_bytes(size, "little")) == OK

    @property
    def status(self) -> int:
        return self.read("device_status")

    def config(self, offset: int, size: int) -> bytes:
        status, data = self.read_at(DEVICE_READ, offset, size)
        assert status == OK
        return data

    def set_mode(self, mode: int) -> None:
        assert self.command(MODE_SET, bytes([mode, 0, 0, 0, 0, 0, 0, 0]))[0] == OK

    # A driver, in the order of Linux's: reset, ACKNOWLEDGE, DRIVER, features, queues, DRIVER_OK.

    def begin(self, features: int, *, msix: bool = True) -> None:
        self.write("device_status", 0)
        self.queues.clear()
        for bits in (ACKNOWLEDGE, DRIVER):
            self.write("device_status", self.status | bits)
        self.features = features & self.read("device_features")
        self.write("driver_features", self.features)
        if msix:
            self.msix.enable(6)
            self.write("config_msix_vector", 0)

    def queue(self, index: int) -> LegacyQueue:
        self.write("queue_select", index)
        size = self.read("queue_size")
        assert size
        assert self.read("queue_address") == 0
        interrupt: Interrupt | None = None
        if self.msix.interrupts:
            self.write("queue_msix_vector", index + 1)
            assert self.read("queue_msix_vector") == index + 1
            interrupt = self.msix.interrupts[index + 1]
        made = LegacyQueue(
            self.memory,
            index,
            size,
            notify=self._notify,
            interrupt=interrupt,
            event_idx=bool(self.features >> EVENT_IDX & 1),
            indirect=bool(self.features >> INDIRECT & 1),
        )
        self.write("queue_address", made.address >> 12)
        assert self.read("queue_address") == made.address >> 12
        self.queues[index] = made
        return made

    def settle(self) -> None:
        """Let the VF finish what it is about: it looks at its queues after 64 messages at the latest."""
        for _ in range(64):
            self.function.config_read(0, 2)

    def ok(self) -> None:
        self.write("device_status", self.status | DRIVER_OK)

    def _notify(self, index: int, _: int) -> None:
        if self.by_address:
            self.function.bar_write(4, 0x4000, 2, index)
        else:
            self.write("queue_notify", index)

    def run(self, features: int = 1 << MAC, *, msix: bool = True) -> None:
        """Up to DRIVER_OK, with the first pair of queues."""
        self.begin(features, msix=msix)
        self.queue(0)
        self.queue(1)
        self.ok()

    def take_over(self, source: Legacy) -> None:
        """The driver goes on here, with its queues and interrupts."""
        self.features = source.features
        self.msix.enable(len(source.msix.interrupts))
        self.queues = source.queues
        for index, queue in self.queues.items():
            queue._notify = self._notify
            queue.interrupt = self.msix.interrupts[index + 1]

    # Frames.

    @property
    def header(self) -> int:
        """Bytes in front of a frame."""
        return 12 if self.features >> MRG_RXBUF & 1 else 10

    def offer(self, size: int = 2048, count: int = 1) -> list[Buffer]:
        """Make receive buffers available."""
        buffers = [self.memory.allocate(size) for _ in range(count)]
        for buffer in buffers:
            buffer.view[:] = 0xEE
            self.queues[0].add([], [buffer.segment])
        self.queues[0].kick()
        return buffers

    def used(self, index: int, count: int = 1) -> list[int]:
        """Wait until so many buffers of a queue are used; their lengths."""
        queue = self.queues[index]
        found: list[int] = []
        while len(found) < count:
            if queue.interrupt is None:
                until(partial(queue.collected, found), "a buffer is used", TIMEOUT)
            else:
                found += [done.length for done in queue.wait(TIMEOUT)]
        assert len(found) == count
        return found

    def send(self, frame: bytes, header: bytes = b"") -> None:
        """Send a frame, its header in a descriptor of its own, and wait until it was sent."""
        parts = [header.ljust(self.header, b"\0"), frame]
        buffers = [self.memory.allocate(len(part)) for part in parts]
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.view[:] = list(part)
        self.queues[1].add([buffer.segment for buffer in buffers])
        self.queues[1].kick()
        self.used(1)
        for buffer in buffers:
            self.memory.free(buffer)

    def receive(self, buffer: Buffer) -> tuple[bytes, bytes]:
        """Wait for the frame in a receive buffer: its header, and it."""
        (length,) = self.used(0)
        data = buffer.view[:length].tobytes()
        assert (buffer.view[length:] == 0xEE).all()
        return data[: self.header], data[self.header :]


@contextlib.contextmanager
def legacy(server: ServerProcess, memory: GuestMemory | None = None) -> Iterator[Legacy]:
    with contextlib.ExitStack() as stack:
        yield Legacy(server, stack, memory)


@contextlib.contextmanager
def peer(server: ServerProcess) -> Iterator[NetDriver]:
    """VF 2 with a driver of today."""
    with NetDriver.open(server.socket("vf2"), queue_size=64, timeout=TIMEOUT) as driver:
        yield driver


Serve = Callable[..., ServerProcess]
