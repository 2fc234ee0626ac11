"""Configuration space of PF and VF over the wire: what a PCI core reads, and what its writes do."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.driving import driven, served, works
from tests.wire.running import sockets, until
from vfu_client.vfio.connection import Connection, VfioUserError
from vfu_client.vfio.pci import PciFunction
from vfu_client.virtio.function import VirtioPci

BOTH = pytest.mark.parametrize("name", ["pf", "vf1"])
CONFIG = 7


@pytest.fixture
def function(shared: ServerProcess, name: str) -> Iterator[PciFunction]:
    with Connection(shared.socket(name), timeout=10) as connection:
        yield PciFunction(connection)


def all_vfs_again(shared: ServerProcess, function: PciFunction) -> None:
    """After an FLR of the PF: the VFs go, and come back with a DEVICE_RESET."""
    until(lambda: sockets(shared) == ["pf"], "no VFs")
    function.connection.device_reset()
    until(lambda: all(served(shared.socket(f"vf{number}")) for number in (1, 2, 3)), "all VFs")


def chain(function: PciFunction) -> list[tuple[int, int]]:
    """(id, offset) of every capability, in order."""
    return [(capability.id, capability.offset) for capability in function.capabilities()]


@BOTH
def test_identity(function: PciFunction, name: str) -> None:
    """Non-transitional ids for both: what virtio_vfio_pci binds."""
    header = function.config_bytes(0, 0x40)
    vendor, device, _, status, revision = struct.unpack_from("<HHHHB", header)
    assert (vendor, device) == (0x1AF4, 0x1042)
    assert status == 0x10
    assert revision >= 1
    assert header[9:12] == b"\x00\x80\x01"  # mass storage, other
    assert header[0x0E] == 0  # header type 0, one function
    subsystem_vendor, subsystem = struct.unpack_from("<HH", header, 0x2C)
    assert subsystem_vendor == 0x1AF4
    assert subsystem >= 0x40
    assert struct.unpack_from("<I", header, 0x30) == (0,)  # no ROM
    assert header[0x3D] == (1 if name == "pf" else 0)  # interrupt pin: VFs have MSI-X only


@BOTH
def test_read_only_header(function: PciFunction) -> None:
    """Ids, class, status, header type, capability pointer and pin take no write."""
    before = function.config_bytes(0, 0x40)
    for offset in (0x00, 0x02, 0x06, 0x08, 0x09, 0x0A, 0x0E, 0x28, 0x2C, 0x2E, 0x30, 0x34, 0x3D):
        function.config_write(offset, 1, 0xFF)
    assert function.config_bytes(0, 0x40) == before


@BOTH
def test_command(function: PciFunction, name: str) -> None:
    """Memory, Bus Master, parity and SERR are there; no I/O space; INTx Disable on the PF only."""
    assert function.config_read(4, 2) == 0
    function.config_write(4, 2, 0xFFFF)
    assert function.config_read(4, 2) == 0x0146 | (0x400 if name == "pf" else 0)
    function.config_write(4, 2, 0)
    assert function.config_read(4, 2) == 0


@BOTH
def test_interrupt_line_is_scratch(function: PciFunction) -> None:
    function.config_write(0x3C, 1, 11)
    assert function.config_read(0x3C, 1) == 11


@BOTH
def test_bar_sizing(function: PciFunction) -> None:
    """Two 64-bit prefetchable memory BARs; sizes as the regions say; addresses are kept, flags are not."""
    bars = {bar.index: bar for bar in function.bars()}
    assert sorted(bars) == [0, 2]
    for index, bar in bars.items():
        assert bar.is_64bit
        assert bar.prefetchable
        assert bar.size == function.connection.region_info(index).size
        function.config_write(0x10 + 4 * index, 4, 0xFEDC_BA98)
        function.config_write(0x14 + 4 * index, 4, 0x0123_4567)
        assert function.config_read(0x10 + 4 * index, 4) == 0xFEDC_BA98 & -bar.size & 0xFFFFFFFF | 0xC
        assert function.config_read(0x14 + 4 * index, 4) == 0x0123_4567
    for index in (4, 5):
        function.config_write(0x10 + 4 * index, 4, 0xFFFFFFFF)
        assert function.config_read(0x10 + 4 * index, 4) == 0


@BOTH
def test_capability_chain(function: PciFunction) -> None:
    """PM, MSI-X, PCI Express and the five virtio structures, none overlapping another."""
    found = chain(function)
    assert sorted(kind for kind, _ in found) == [0x01, 0x09, 0x09, 0x09, 0x09, 0x09, 0x10, 0x11]
    sizes = {0x01: 8, 0x10: 0x3C, 0x11: 12}
    end = 0x40
    for kind, offset in sorted(found, key=lambda entry: entry[1]):
        assert offset >= end
        assert offset % 4 == 0
        end = offset + (sizes.get(kind) or function.config_read(offset + 2, 1))
    assert end <= 0x100


@BOTH
@pytest.mark.spec("Virtio Structure PCI Capabilities")
def test_virtio_capabilities(function: PciFunction, name: str) -> None:
    """Every field of every virtio capability, and none of them writable but those of PCI_CFG."""
    regions = {index: function.connection.region_info(index).size for index in range(6)}
    seen = {}
    areas = []
    for kind, at in chain(function):
        if kind != 9:
            continue
        raw = function.config_bytes(at, 20)
        length, cfg_type, bar, identifier, padding, offset, size = struct.unpack_from("<xxBBBB2sII", raw)
        seen[cfg_type] = (length, size)
        assert (identifier, padding) == (0, b"\0\0")
        for byte in range(length):
            if cfg_type != 5 or byte < 4 or byte in (5, 6, 7):
                function.config_write(at + byte, 1, raw[byte] ^ 0xFF)
        assert function.config_bytes(at, length) == raw[:length]
        if cfg_type == 5:
            assert (bar, offset, size) == (0, 0, 0)
            continue
        assert offset + size <= regions[bar]
        assert offset % {1: 4, 2: 2, 3: 1, 4: 4}[cfg_type] == 0
        areas.append((bar, offset, offset + size))
        if cfg_type == 2:
            multiplier = struct.unpack_from("<I", raw, 16)[0]
            assert multiplier == 4
    areas.sort()
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in itertools.pairwise(areas))
    queues = 3 if name == "pf" else 2  # two request queues, and the admin queue
    assert seen[1] == (16, 64)
    assert seen[2][0] == 20
    assert seen[2][1] >= (queues - 1) * 4 + 2
    assert seen[3] == (16, 1)
    assert seen[4] == (16, 60)
    assert seen[5][0] == 20


@BOTH
def test_power_management_capability(function: PciFunction) -> None:
    """Version 3, no PME from any state, no No_Soft_Reset; PME_En and PME_Status stay 0 (DEV-31)."""
    at = function.find_capability(1)
    assert function.config_read(at + 2, 2) == 3
    assert function.config_read(at + 4, 2) == 0x0000
    function.config_write(at + 4, 2, 0x8100)
    assert function.config_read(at + 4, 2) == 0x0000


@BOTH
def test_power_states(function: PciFunction) -> None:
    """D1 and D2 are not there; D3hot and D0 are."""
    for state, becomes in ((1, 0), (2, 0), (3, 3), (1, 3), (2, 3), (3, 3), (0, 0)):
        function.set_power_state(state)
        assert function.power_state == becomes


@BOTH
def test_d3hot_shuts_the_function_up_and_d0_finds_it_as_it_was(shared: ServerProcess, name: str) -> None:
    """D3hot: configuration space only. What was set up is there afterwards, though No_Soft_Reset is clear."""
    with driven(shared.socket(name)) as block:
        device = block.device
        status = block.room(1)
        device.function.set_power_state(3)
        assert device.status == 0xFF  # nobody answers for the BARs
        assert device.function.config_read(0, 2) == 0x1AF4
        block.request((block.header(4), False), (status, True))
        device.common.write("device_status", 0)
        assert status.view[0] == 0xEE
        assert block.queue.device_used_idx == 0
        device.function.set_power_state(0)
        assert block.wait_used() == (0, 1)
        assert status.view[0] == 0
        assert device.status == 0x0F


@BOTH
def test_express(function: PciFunction, shared: ServerProcess, name: str) -> None:
    """Version 2, endpoint, FLR capable; Device Control keeps its bits and never shows Initiate FLR."""
    at = function.find_capability(0x10)
    assert function.config_read(at + 2, 2) == 0x0002
    assert function.config_read(at + 4, 4) & 0x10000000
    before = function.config_read(at + 8, 2)
    function.config_write(at + 8, 2, 0x002F)
    assert function.config_read(at + 8, 2) == 0x002F
    function.config_write(at + 8, 2, 0x802F)
    assert function.config_read(at + 8, 2) == before
    if name == "pf":
        all_vfs_again(shared, function)


@BOTH
def test_flr_resets_the_function(shared: ServerProcess, name: str) -> None:
    """Virtio, COMMAND, MSI-X, PM and BAR registers are as at power-on; the queue is forgotten."""
    with VirtioPci.open(shared.socket(name), timeout=10) as device:
        fresh = device.function.config_bytes()
        device.initialize()
        device.setup_queue(0)
        device.driver_ok()
        device.function.config_write(0x10, 4, 0xFE000000)
        device.function.config_write(0x3C, 1, 9)
        assert device.msix is not None
        device.msix.mask(0)
        device.function.flr()
        after = device.function.config_bytes()
        if name == "pf":  # the VFs are gone, which SR-IOV shows
            fresh, after = fresh[:0x100], after[:0x100]
        assert after == fresh
        assert device.status == 0
        assert device.common.read("queue_enable") == 0
        assert device.common.read("config_msix_vector") == 0xFFFF
        assert not device.msix.masked(0)
        if name == "pf":
            all_vfs_again(shared, device.function)
    works(shared.socket(name))


def test_flr_from_d3hot(shared: ServerProcess) -> None:
    with driven(shared.socket("vf1")) as block:
        block.device.function.set_power_state(3)
        block.device.function.flr()
        assert block.device.function.power_state == 0
        assert block.device.status == 0


@BOTH
@pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 8, 13, 64, 256])
def test_any_width(function: PciFunction, width: int) -> None:
    """A read of any width gives the bytes that single reads give, wherever it is cut."""
    whole = b"".join(function.config_bytes(offset, 1) for offset in range(0x160))
    pieces = [function.config_bytes(offset, width) for offset in range(0, 0x160 - width, width)]
    assert b"".join(pieces) == whole[: len(b"".join(pieces))]


@BOTH
def test_straddling_writes(function: PciFunction, name: str) -> None:
    """A write across registers reaches each of them, and the read-only ones not."""
    function.connection.region_write(CONFIG, 0x0E, b"\xff" * 10)
    assert function.config_bytes(0x0E, 10) == bytes.fromhex("0000 0cc0ffff ffffffff")
    function.connection.region_write(CONFIG, 3, b"\xff\x06\xff\xff")
    assert function.config_read(4, 2) == (0x0506 if name == "pf" else 0x0106)
    assert function.config_read(2, 2) == 0x1042
    function.connection.region_write(CONFIG, 4, b"\x02")
    function.connection.region_write(CONFIG, 5, b"\x00")
    assert function.config_read(4, 2) == 0x0002


@BOTH
def test_ends_of_regions(function: PciFunction) -> None:
    """The last bytes answer; an access past them is refused, and the connection lives on."""
    assert function.config_bytes(4095, 1) == b"\0"
    assert function.config_bytes(4080, 16) == bytes(16)
    for region in (0, 2, CONFIG):
        size = function.connection.region_info(region).size
        assert len(function.connection.region_read(region, size - 4, 4)) == 4
        for offset, length in ((size - 3, 4), (size, 1), (1 << 63, 4), ((1 << 64) - 2, 4)):
            with pytest.raises(VfioUserError):
                function.connection.region_read(region, offset, length)
            with pytest.raises(VfioUserError):
                function.connection.region_write(region, offset, bytes(length), posted=False)
    assert function.config_read(0, 2) == 0x1AF4


@BOTH
def test_holes_in_the_bars(function: PciFunction) -> None:
    """What lies between the structures reads 0 and takes writes without effect."""
    for offset in (0x40, 0x80, 0xFFC, 0x1001, 0x1FFC, 0x2040, 0x2FFC):
        function.bar_write(0, offset, 4, 0xFFFFFFFF)
        assert function.bar_read(0, offset, 4) == 0


def test_no_sriov_without_vfs_and_none_on_a_vf(shared: ServerProcess) -> None:
    with Connection(shared.socket("vf1")) as connection:
        assert PciFunction(connection).extended_capabilities() == []
        assert connection.region_read(CONFIG, 0x100, 4) == bytes(4)
