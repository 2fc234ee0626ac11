"""A PF and its VFs without sockets: config space, generation, resets, the gate, and delays."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest

from pymodel.build import Options, build
from pymodel.devices.block.ram_disk import RamDisk
from pymodel.pci.config_space import bar_masks
from pymodel.pci.function import Delays, Function
from pymodel.pci.physical_function import PhysicalFunction
from tests.model.fakes import FakeMemory


@dataclass
class FakeHost:
    """Counts what a function asks for; time passes when `pass_time` says so."""

    memory: FakeMemory = field(default_factory=FakeMemory)
    messages: list[int] = field(default_factory=list)
    intx_count: int = 0
    memory_in_flux: bool = False
    wakes: int = 0
    now: float = 0
    timers: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    posted: list[tuple[int, bytes]] = field(default_factory=list)

    def msix(self, vector: int) -> None:
        self.messages.append(vector)

    def intx(self) -> None:
        self.intx_count += 1

    def post_write(self, address: int, data: bytes) -> None:
        self.posted.append((address, data))

    def wake(self) -> None:
        self.wakes += 1

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (self.now + seconds, len(self.timers), call))

    def end(self, reason: str) -> None:
        raise AssertionError(reason)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        while self.timers and self.timers[0][0] <= self.now:
            heapq.heappop(self.timers)[2]()


def device(vfs: int = 2, total: int = 4, delays: Delays | None = None) -> PhysicalFunction:
    disks = {name: RamDisk(1 << 20) for name in ("pf", *(f"vf{number}" for number in range(1, total + 1)))}
    return build(Options("blk", disks, vfs=vfs, total_vfs=total, delays=delays or Delays()), lock=nullcontext)


def status(function: Function) -> int:
    return function.bar_read(0, 0x14, 1)[0]


def running(function: Function) -> FakeHost:
    """Attached, DRIVER_OK, MSI-X on, the configuration vector 0."""
    host = FakeHost()
    function.attach(host)
    function.config_write(4, b"\x06\0")
    function.config_write(function.config.offsets["msix"] + 2, b"\0\x80")
    for value in (1, 3):
        function.bar_write(0, 0x14, bytes([value]))
    function.bar_write(0, 8, b"\1\0\0\0\1\0\0\0")
    function.bar_write(0, 0x14, b"\x0b")
    function.bar_write(0, 0x10, b"\0\0")
    function.bar_write(0, 0x14, b"\x0f")
    assert status(function) == 15
    return host


def busy(function: Function) -> bool:
    """Whether an FLR or the like is under way; nothing reaches memory then."""
    assert not (function.in_transition and function.may_access)
    return function.in_transition


@pytest.mark.parametrize(
    ("size", "low", "high"),
    [(0x4000, 0xFFFFC000, 0xFFFFFFFF), (16, 0xFFFFFFF0, 0xFFFFFFFF), (1 << 33, 0, 0xFFFFFFFE)],
)
def test_bar_masks(size: int, low: int, high: int) -> None:
    assert bar_masks(size) == (low, high)


@pytest.mark.spec("Device Configuration Space")
def test_config_generation() -> None:
    """A new generation for each change that a driver may have half seen; 256 changes unread are one."""
    function = device().vfs[1]
    running(function)

    def generation() -> int:
        return function.bar_read(0, 0x15, 1)[0]

    function.bar_read(0, 0x2000, 4)
    first = generation()
    for _ in range(256):
        function.transport.config_changed()
    assert generation() != first
    second = generation()
    function.bar_read(0, 0x2000, 4)
    assert generation() == second
    function.transport.config_changed()
    assert generation() != second


def test_a_change_is_told() -> None:
    """ISR bit 1 and the configuration vector, once for each change."""
    function = device().vfs[1]
    host = running(function)
    function.transport.config_changed()
    function.service()
    assert host.messages == [0]
    assert function.bar_read(0, 0x1000, 1) == b"\2"
    assert function.bar_read(0, 0x1000, 1) == b"\0"
    function.transport.config_changed()
    function.service()
    assert host.messages == [0, 0]


def test_a_change_waits_for_the_mask() -> None:
    function = device().vfs[1]
    host = running(function)
    function.bar_write(2, 12, b"\1\0\0\0")
    for _ in range(3):
        function.transport.config_changed()
        function.service()
    assert host.messages == []
    assert function.bar_read(2, 0x1000, 8) == b"\1" + bytes(7)
    function.bar_write(2, 12, bytes(4))
    assert host.messages == [0]
    assert function.bar_read(2, 0x1000, 8) == bytes(8)


def test_flr_takes_its_time() -> None:
    """Until it ends the function takes no access, and then it is as new; a DEVICE_RESET is at once."""
    function = device(delays=Delays(flr=1.0)).vfs[1]
    host = running(function)
    devctl = function.config.offsets["express"] + 8
    function.config_write(devctl, b"\0\x80")
    assert busy(function)
    function.config_write(4, b"\x06\0")
    function.bar_write(0, 0x14, b"\1")
    host.pass_time(0.5)
    assert busy(function)
    host.pass_time(0.5)
    assert not busy(function)
    assert status(function) == 0
    assert function.config_read(4, 2) == b"\0\0"
    function.config_write(devctl, b"\0\x80")
    function.device_reset()
    assert not busy(function)
    function.config_write(4, b"\x06\0")
    host.pass_time(10)  # the one that was cut short does nothing any more
    assert function.config_read(4, 2) == b"\x06\0"


def test_reset_takes_its_time() -> None:
    """device_status reads other than 0 until the reset is over."""
    function = device(delays=Delays(reset=1.0)).vfs[1]
    host = running(function)
    function.bar_write(0, 0x14, b"\0")
    assert status(function) != 0
    function.bar_write(0, 0x14, b"\1")
    assert status(function) != 1
    host.pass_time(1)
    assert status(function) == 0


def test_power_takes_its_time() -> None:
    function = device(delays=Delays(power=1.0)).vfs[1]
    host = running(function)
    control = function.config.offsets["power"] + 4
    function.config_write(control, b"\3\0")
    assert busy(function)
    host.pass_time(1)
    assert function.config_read(control, 2) == b"\3\0"
    function.config_write(control, b"\0\0")
    host.pass_time(1)
    assert function.config_read(control, 2) == b"\0\0"
    assert function.may_access
    assert status(function) == 15


def test_vfs_follow_the_capability() -> None:
    """NumVFs and VF Enable as tables: (control, NumVFs written, VFs that there are)."""
    pf = device()
    changes: list[int] = []
    pf.on_vfs_changed = lambda: changes.append(len(pf.vfs))
    at = pf.config.offsets["sriov"]
    steps = (
        (None, 3, 2),
        (0, None, 0),
        (None, 9, 0),
        (None, 4, 0),
        (9, None, 4),
        (1, None, 4),
        (0, 1, 0),
        (1, None, 1),
    )
    for control, number, there in steps:
        if control is not None:
            pf.config_write(at + 8, control.to_bytes(2, "little"))
        if number is not None:
            pf.config_write(at + 16, number.to_bytes(2, "little"))
        assert sorted(pf.vfs) == list(range(1, there + 1)), (control, number)
    assert changes == [0, 4, 0, 1]


def test_a_vf_that_was_taken_away_is_silent() -> None:
    pf = device()
    vf = pf.vfs[1]
    host = running(vf)
    pf.config_write(pf.config.offsets["sriov"] + 8, b"\0\0")
    vf.config_write(4, b"\x06\0")
    vf.transport.config_changed()
    vf.service()
    assert host.messages == []
    assert not vf.may_access


def test_everything_fits() -> None:
    """The capability chain ends before the extended space, with the most queues that there can be."""
    options = Options("blk", {"pf": RamDisk(512), "vf1": RamDisk(512)}, vfs=1, total_vfs=1, queues=256)
    pf = build(options, lock=nullcontext)
    assert max(pf.config.offsets[name] for name in ("device", "pci_cfg")) < 0x100
    assert pf.msix_vectors == 512
