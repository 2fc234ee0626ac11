"""BARs of VFs that are elsewhere than the PF's SR-IOV capability says: told, or programmed through ECAM."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from pymodel.build import Options, build
from pymodel.devices.block.ram_disk import RamDisk
from pymodel.pci.sriov.vf_slot import VfSlot
from tests.fuzz.local import LocalHost

ECAM = 0xE000_0000
BUS = 3
BUS_REGISTER = 0xFF8
COMMAND, MEMORY_AND_MASTER = 4, b"\6\0"
BARS = (0x10, 0x18)
CONTROL, NUM_VFS, VF_BARS = 0x108, 0x110, (0x124, 0x12C)
VF_ENABLE_AND_MSE = b"\x09\0"
WANTED = (0x80_0000_0000, 0x80_0010_0000)
APERTURES = (0x4000, 0x2000)


class Guest:
    """A PF with two VFs at devices 1 and 2 of bus 3, all attached; the VFs' BARs are in the wrong order."""

    def __init__(self, ecam: int | None) -> None:
        self.events: list[Mapping[str, Any]] = []
        backends = {name: RamDisk(1 << 20) for name in ("pf", "vf1", "vf2")}
        options = Options("blk", backends, vfs=0, total_vfs=2, guest_sriov=True, ecam=ecam)
        self.pf = build(options, lock=threading.RLock, observer=self)
        self.host = LocalHost()
        self.pf.attach(self.host)
        self.slots: dict[int, VfSlot] = {}
        for number, slot in self.pf.served.items():
            assert isinstance(slot, VfSlot)
            self.slots[number] = slot
            slot.attach(LocalHost())
            self.move_bars(number, 3 - number)
        for register, address in zip(VF_BARS, WANTED, strict=True):
            self.pf.config_write(register, address.to_bytes(8, "little"))

    def event(self, function: str, kind: str, data: Mapping[str, Any]) -> None:
        if kind == "VF_BARS_MISPLACED":
            self.events.append(data)

    def move_bars(self, number: int, place: int) -> None:
        """Have the BARs of a VF where those of VF `place` are to be."""
        for register, wanted, aperture in zip(BARS, WANTED, APERTURES, strict=True):
            address = wanted + (place - 1) * aperture
            self.slots[number].config_write(register, address.to_bytes(8, "little"))

    def start_driver(self) -> None:
        self.pf.config_write(COMMAND, MEMORY_AND_MASTER)

    def enable(self, number: int) -> None:
        self.pf.config_write(NUM_VFS, number.to_bytes(2, "little"))
        self.pf.config_write(CONTROL, VF_ENABLE_AND_MSE)

    def take_posted(self) -> None:
        """Write what was posted, as a machine does, until nothing more comes; then the PF has a turn."""
        while self.host.posted:
            posted, self.host.posted = self.host.posted, []
            for address, data in posted:
                bus, devfn, register = (address - ECAM) >> 20, address >> 12 & 0xFF, address & 0xFFF
                if bus == BUS and devfn == 0:
                    assert register == BUS_REGISTER
                    self.pf.config_write(register, data)
                elif bus == BUS and not devfn % 8:
                    self.slots[devfn // 8].config_write(register, data)
        if self.host.awake:
            self.host.awake = False
            self.pf.service()

    def where(self) -> list[list[int]]:
        return [[slot.bar_address(bar) for bar in (0, 2)] for slot in self.slots.values()]


RIGHT = [[WANTED[0], WANTED[1]], [WANTED[0] + 0x4000, WANTED[1] + 0x2000]]


def test_programmed_before_there_are_vfs(caplog: pytest.LogCaptureFixture) -> None:
    """As soon as the PF may write: after VF Enable a driver waits for no more than 100 ms."""
    caplog.set_level("INFO")
    guest = Guest(ECAM)
    assert guest.host.posted == []
    guest.start_driver()
    guest.take_posted()
    assert guest.where() == RIGHT
    assert "4 BARs of VFs were programmed" in caplog.text
    guest.enable(2)
    assert (guest.host.posted, guest.host.timers, guest.events) == ([], [], [])


def test_programmed_after_vf_enable(caplog: pytest.LogCaptureFixture) -> None:
    """Those that were moved since; however long it takes, it is told when it is done."""
    caplog.set_level("INFO")
    guest = Guest(ECAM)
    guest.start_driver()
    guest.take_posted()
    guest.move_bars(2, 100)
    caplog.clear()
    guest.enable(2)
    assert "were programmed" not in caplog.text
    guest.take_posted()
    assert guest.where() == RIGHT
    assert "2 BARs of VFs were programmed" in caplog.text
    for timer in guest.host.timers:
        timer()
    assert guest.events == []
    assert "capability says" not in caplog.text


def test_told_where_programming_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """As behind an IOMMU that translates: what is posted comes nowhere. It is told after a while, once."""
    guest = Guest(ECAM)
    guest.start_driver()
    guest.enable(1)
    guest.enable(1)
    assert guest.events == []
    for timer in guest.host.timers:
        timer()
    assert guest.events == [
        {"vf": "vf1", "bar": 0, "wanted": WANTED[0], "found": WANTED[0] + 0x4000, "count": 2}
    ]
    assert (
        caplog.text.count("BAR 0 of VF 1 is at 0x8000004000, and the SR-IOV capability says 0x8000000000")
        == 1
    )


def test_nothing_is_waited_for_after_a_reset() -> None:
    """A machine that begins anew is not told of what the one before it had."""
    guest = Guest(ECAM)
    guest.start_driver()
    guest.enable(2)
    guest.pf.device_reset()
    for timer in guest.host.timers:
        timer()
    assert guest.events == []


def test_told_at_once_without_ecam() -> None:
    """Nobody is asked to program anything, so nothing is waited for."""
    guest = Guest(None)
    guest.start_driver()
    guest.enable(2)
    assert guest.host.posted == []
    assert [(each["vf"], each["bar"], each["count"]) for each in guest.events] == [("vf1", 0, 4)]


def test_ecam_is_looked_for_in_steps(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is read while the driver waits for its write; the search says how it ended."""
    guest = Guest(0)
    guest.start_driver()
    assert "MCFG" not in caplog.text
    while guest.host.timers:
        guest.host.timers.pop()()
    assert "the guest's memory has no table MCFG: where ECAM is, is not known" in caplog.text
    assert guest.host.posted == []
