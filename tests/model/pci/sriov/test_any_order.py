"""Whatever a guest and its clients do to a PF and the places of its VFs, what they see agrees."""

from __future__ import annotations

import threading

from hypothesis import example, given
from hypothesis import strategies as st

from pymodel.build import Options, build
from pymodel.devices.block.ram_disk import RamDisk
from pymodel.pci.physical_function import PhysicalFunction
from pymodel.pci.sriov.vf_slot import VfSlot
from tests.fuzz.local import LocalHost

VFS = 3
SRIOV, ECAM_REGISTER = 0x100, 0xFF8
CONTROL, TOTAL_VFS, NUM_VFS, PAGE_SIZE, VF_BAR = 0x108, 0x10E, 0x110, 0x120, 0x124

SRIOV_OFFSETS = [CONTROL, NUM_VFS, PAGE_SIZE, *(VF_BAR + 4 * part for part in range(6)), ECAM_REGISTER]
HEADER_OFFSETS = [0x02, 0x04, *range(0x10, 0x28, 4)]
VALUES = st.sampled_from([0, 1, 2, 3, 4, 6, 9, 0x10, 0x1B, 0x1000, 0xFE00_000C, 0xFFFF_FFFF]) | st.integers(
    0, 0xFFFF_FFFF
)
SIZES = st.sampled_from([1, 2, 4])

WRITES = st.one_of(
    st.tuples(st.just(0), st.sampled_from(SRIOV_OFFSETS + HEADER_OFFSETS), SIZES, VALUES),
    st.tuples(st.integers(1, VFS), st.sampled_from(HEADER_OFFSETS), SIZES, VALUES),
    st.tuples(st.integers(0, VFS), st.integers(0, 0xFFF), SIZES, VALUES),
)
STEPS = st.one_of(
    st.tuples(st.just("write"), WRITES),
    st.tuples(st.sampled_from(["come", "go", "reset", "flr", "turn", "enable"]), st.integers(0, VFS)),
)


class World:
    """The model of a PF with places for VFs, and who is attached to them."""

    def __init__(self, ecam: int) -> None:
        names = ["pf", *(f"vf{n}" for n in range(1, VFS + 1))]
        disks = {name: RamDisk(1 << 16) for name in names}
        options = Options("blk", disks, vfs=0, total_vfs=VFS, guest_sriov=True, ecam=ecam)
        self.pf = build(options, lock=threading.RLock)
        self.hosts: dict[int, LocalHost] = {}

    def function(self, number: int) -> PhysicalFunction | VfSlot:
        found = self.pf.served[number] if number else self.pf
        assert isinstance(found, PhysicalFunction | VfSlot)
        return found

    def register(self, number: int, offset: int, size: int = 2) -> int:
        return int.from_bytes(self.function(number).config_read(offset, size), "little")

    def come(self, number: int) -> None:
        if number not in self.hosts:
            self.hosts[number] = LocalHost()
            self.function(number).attach(self.hosts[number])

    def go(self, number: int) -> None:
        if self.hosts.pop(number, None):
            self.function(number).detach()

    def reset(self, number: int) -> None:
        if number in self.hosts:
            self.function(number).device_reset()

    def flr(self, number: int) -> None:
        express = 0x54
        self.write(number, express + 8, 2, 0x8000)

    def write(self, number: int, offset: int, size: int, value: int) -> None:
        if number in self.hosts and offset + size <= 0x1000:
            data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
            self.function(number).config_write(offset, data)

    def enable(self, number: int) -> None:
        """As a driver does, and ECAM comes back on a bus."""
        for offset, size, value in (
            (0x04, 2, 6),
            (NUM_VFS, 2, number),
            (CONTROL, 2, 9),
            (ECAM_REGISTER, 4, 5),
        ):
            self.write(0, offset, size, value)

    def turn(self, number: int) -> None:
        if number in self.hosts:
            timers, self.hosts[number].timers = self.hosts[number].timers, []
            for timer in timers:
                timer()
            self.function(number).service()

    def check(self) -> None:
        """What holds at any time."""
        total, wanted = self.register(0, TOTAL_VFS), self.register(0, NUM_VFS)
        enabled = wanted if self.register(0, CONTROL) & 1 else 0
        assert wanted <= total <= VFS
        assert sorted(self.pf.vfs) == sorted(self.pf.members) == list(range(1, enabled + 1))
        for number in range(1, VFS + 1):
            there = number <= enabled
            assert self.register(number, 0x02) == (0x1042 if there else 0x10FF)
            assert there or self.function(number).bar_read(0, 0x14, 1) == b"\xff"
        whole = self.function(0).config_read(0, 0x1000)
        assert whole[0x100:] == bytes(0xF00)
        if 0 in self.hosts:
            posted, self.hosts[0].posted = self.hosts[0].posted, []
            assert all(address < 1 << 32 and len(data) == 4 for address, data in posted)
        page = self.register(0, PAGE_SIZE, 4)
        assert page.bit_count() == 1
        assert page & 0x553
        for part in (0, 2):
            assert self.register(0, VF_BAR + 4 * part, 4) & 0xF == 0xC
            assert not self.register(0, VF_BAR + 4 * part, 4) & (page << 12) - 1 & ~0xF


@example(0xE000_0000, [("write", (0, VF_BAR, 8, (1 << 64) - 1)), ("enable", VFS)])
@given(st.sampled_from([0, 0xE000_0000]), st.lists(STEPS, max_size=40))
def test_any_order(ecam: int, steps: list[tuple[str, object]]) -> None:
    world = World(ecam)
    for number in range(VFS + 1):
        world.come(number)
    for name, argument in steps:
        if name == "write":
            assert isinstance(argument, tuple)
            world.write(*argument)
        else:
            getattr(world, name)(argument)
        world.check()
