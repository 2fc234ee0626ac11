"""A driver with one queue of a function in its bare hands: every byte of rings and buffers is its choice."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from pymodel.spec import block, virtio, virtio_pci
from tests.fuzz.packed import BarePacked
from tests.fuzz.world import Finding, Reachable
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.function import VirtioPci

# Guest memory: where rings and buffers are, a region that comes and goes, one that is read-only, and two that
# touch, so that a buffer may cross them.
MAIN: Final = 0x1_0000_0000
MAIN_SIZE: Final = 16 << 20
LOOSE: Final = 0x2_0000_0000
LOOSE_SIZE: Final = 1 << 20
READ_ONLY: Final = 0x3_0000_0000
READ_ONLY_SIZE: Final = 1 << 16

DESC: Final = MAIN
AVAIL: Final = MAIN + 0x2000
USED: Final = MAIN + 0x4000
TABLES: Final = MAIN + 0x8000
DATA: Final = MAIN + 0x10000

NEXT, WRITE, INDIRECT = 1, 2, 4
NEEDS_RESET = 64
RUNNING = 0xF

Segment = tuple[int, int]


class Hands:
    """One queue of a function under bare hands. `index` -1 is the admin queue; `features` are taken beside
    those that rings and requests need.
    """

    def __init__(
        self, world: Reachable, name: str, index: int, size: int, *, features: Sequence[int] = ()
    ) -> None:
        self.world = world
        self._features = features
        self.name = name
        self._wanted_index = index
        self.size = size
        self.memory = GuestMemory()
        self.memory.add_region(MAIN_SIZE, MAIN)
        self.memory.add_region(LOOSE_SIZE, LOOSE)
        # Next to the loose one, so that a buffer may cross them.
        self.memory.add_region(LOOSE_SIZE, LOOSE + LOOSE_SIZE)
        self.memory.add_region(READ_ONLY_SIZE, READ_ONLY, writable=False)
        self.connection = world.connect(name)
        self.memory.attach(self.connection)
        self.device = VirtioPci(self.connection, self.memory)
        self.avail_idx = 0
        self.bring_up()

    def close(self) -> None:
        """Hang up."""
        self.device.close()
        self.memory.close()

    # --- the device --------------------------------------------------------------------------------------

    def bring_up(
        self,
        *,
        indirect: bool = True,
        event_idx: bool = False,
        packed: bool = False,
        in_order: bool = False,
        rings: Sequence[int] = (),
    ) -> None:
        """Reset the device and make its queue ready, with all memory mapped and cleared rings.

        Packed queues have the driver's event structure at AVAIL, the device's at USED.
        """
        self.map_loose(True)
        wanted = {
            virtio.F_VERSION_1,
            virtio.F_RING_RESET,
            virtio.F_ADMIN_VQ,
            virtio.F_SR_IOV,
            *self._features,
        }
        if self.device.device_type == virtio.ID_BLOCK:
            wanted |= {block.F_CONFIG_WCE, block.F_DISCARD, block.F_WRITE_ZEROES}
        wanted |= {virtio.F_INDIRECT_DESC} if indirect else set()
        wanted |= {virtio.F_EVENT_IDX} if event_idx else set()
        wanted |= {virtio.F_RING_PACKED} if packed else set()
        wanted |= {virtio.F_IN_ORDER} if in_order else set()
        required = {virtio.F_VERSION_1} | ({virtio.F_ADMIN_VQ} if self._wanted_index < 0 else set())
        self.device.initialize(wanted=wanted, required=required)
        # Not before: until its reset the device may be at work on the rings of the case before.
        self.poke(DESC, bytes(DATA - DESC))
        common = self.device.common
        self.index = common.read("admin_queue_index") if self._wanted_index < 0 else self._wanted_index
        common.write("queue_select", self.index)
        common.write("queue_size", self.size)
        common.write("queue_msix_vector", 1)
        for register, address in zip(
            ("queue_desc", "queue_driver", "queue_device"), rings or (DESC, AVAIL, USED), strict=True
        ):
            common.write(register, address)
        common.write("queue_enable", 1)
        self.device.driver_ok()
        self.avail_idx = 0
        self.packed = BarePacked(DESC, self.size, self.poke, self.peek) if packed else None

    @property
    def broken(self) -> bool:
        """DEVICE_NEEDS_RESET."""
        return bool(self.device.status & NEEDS_RESET)

    def kick(self) -> None:
        """Notify the device of the queue."""
        notify = self.device.structures[virtio_pci.CAP_NOTIFY_CFG]
        offset = notify.offset + self.index * self.device.notify_multiplier
        self.device.function.bar_write(notify.bar, offset, 2, self.index)

    def settle(self) -> None:
        """Wait until the device has all that was posted, as the driver is not its owner's only client."""
        self.connection.region_read(7, 0, 4)

    def map_loose(self, mapped: bool) -> None:
        """Map the loose region, or unmap it."""
        region = self.memory.regions[1]
        if region.mapped != mapped:
            (self.memory.map if mapped else self.memory.unmap)(region)

    # --- memory ------------------------------------------------------------------------------------------

    def poke(self, address: int, data: bytes) -> None:
        """Write guest memory."""
        self.memory.buffer(address, len(data)).view[:] = np.frombuffer(data, np.uint8)

    def peek(self, address: int, length: int) -> bytes:
        """Read guest memory."""
        return self.memory.buffer(address, length).view.tobytes()

    def u16(self, address: int) -> int:
        """Read a word of guest memory."""
        return int.from_bytes(self.peek(address, 2), "little")

    # --- rings -------------------------------------------------------------------------------------------

    def descriptor(self, slot: int, address: int, length: int, flags: int, following: int) -> None:
        """Write a descriptor of the queue's table."""
        self.poke(DESC + 16 * slot, struct.pack("<QIHH", address, length, flags, following))

    def chain(self, readable: Sequence[Segment], writable: Sequence[Segment], *, indirect: bool) -> None:
        """Write a chain from slot 0 on, or an indirect table of it; offer it, and notify."""
        entries = [(segment, 0) for segment in readable] + [(segment, WRITE) for segment in writable]
        if self.packed is not None:
            self._packed_chain(self.packed, entries, indirect=indirect)
            return
        table = TABLES if indirect else DESC
        for slot, ((address, length), flags) in enumerate(entries):
            more = slot + 1 < len(entries)
            self.poke(
                table + 16 * slot,
                struct.pack("<QIHH", address, length, flags | (NEXT if more else 0), slot + 1 if more else 0),
            )
        if indirect:
            self.descriptor(0, TABLES, 16 * len(entries), INDIRECT, 0)
        self.offer(0)
        self.kick()

    def _packed_chain(
        self, ring: BarePacked, entries: Sequence[tuple[Segment, int]], *, indirect: bool
    ) -> None:
        if indirect:
            table = [struct.pack("<QIHH", address, length, 0, flags) for (address, length), flags in entries]
            self.poke(TABLES, b"".join(table))
            ring.offer([(TABLES, 16 * len(entries), INDIRECT, 0)])
        else:
            last = len(entries) - 1
            ring.offer(
                [
                    (address, length, flags | (0 if number == last else NEXT), number)
                    for number, ((address, length), flags) in enumerate(entries)
                ]
            )
        self.kick()

    def offer(self, head: int, step: int = 1) -> None:
        """Put a head into the available ring, and move its index on."""
        self.poke(AVAIL + 4 + 2 * (self.avail_idx % self.size), head.to_bytes(2, "little"))
        self.avail_idx = (self.avail_idx + step) & 0xFFFF
        self.poke(AVAIL + 2, self.avail_idx.to_bytes(2, "little"))

    @property
    def used_idx(self) -> int:
        """What the device used so far."""
        return self.u16(USED + 2)

    @property
    def all_used(self) -> bool:
        """Whether the device has used what was offered."""
        return self.used_idx == self.avail_idx if self.packed is None else self.packed.all_used()

    def answered(self) -> int | None:
        """Wait for the chain that was offered last: its used length, or None where the device broke."""
        if not self.world.wait(lambda: self.all_used or self.broken):
            raise Finding(f"{self.name}: no answer, and no DEVICE_NEEDS_RESET")
        if not self.all_used:
            return None
        if self.packed is not None:
            return self.packed.length()
        at = USED + 4 + 8 * ((self.avail_idx - 1) % self.size)
        return int.from_bytes(self.peek(at + 4, 4), "little")
