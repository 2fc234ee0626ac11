"""SR-IOV for a guest: clients of all VFs are there from the start, VFs are while VF Enable is set."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.wire.driving import bring_up, works
from tests.wire.raw_client import RawClient
from tests.wire.running import running, sockets, until
from vfu_client.drivers.block import BlockDriver
from vfu_client.owner.admin import AdminError
from vfu_client.owner.owner import OwnerDriver
from vfu_client.vfio.connection import Connection
from vfu_client.vfio.pci import PciFunction
from vfu_client.virtio.function import NegotiationError, VirtioPci
from vfu_images.qmp import QMP

CONFIG = 7
"""vfio's region of configuration space."""

SRIOV = 0x100
CONTROL, INITIAL_VFS, TOTAL_VFS, NUM_VFS = SRIOV + 0x08, SRIOV + 0x0C, SRIOV + 0x0E, SRIOV + 0x10
PAGE_SIZE, VF_BAR = SRIOV + 0x20, SRIOV + 0x24

BAR0_SIZE, BAR2_SIZE = 0x4000, 0x2000
BASE0, BASE2 = 0xC0_0001_0000, 0xFEA1_6000

ACTIVE, FREEZE = 0, 2


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running() as start:
        yield start("--sriov", "guest", "--total-vfs", "4", "--disk", "ram:1M")


@pytest.fixture
def pf(server: ServerProcess) -> Iterator[PciFunction]:
    with Connection(server.socket("pf"), timeout=10) as connection:
        function = PciFunction(connection)
        yield function
        connection.device_reset()
    until(lambda: not attached(server), "all clients left")


def attached(server: ServerProcess) -> list[str]:
    """The functions that have a client."""
    return [each["name"] for each in server.ask("query-functions") if each["client-attached"]]


@contextmanager
def seated(server: ServerProcess, *numbers: int) -> Iterator[dict[int, PciFunction]]:
    """Clients of these VFs, whom the server knows of."""
    with ExitStack() as stack:
        vfs = {
            n: PciFunction(stack.enter_context(Connection(server.socket(f"vf{n}"), timeout=10)))
            for n in numbers
        }
        for vf in vfs.values():
            vf.config_read(0, 2)
        yield vfs


def place(vfs: dict[int, PciFunction], base0: int = BASE0, base2: int = BASE2) -> None:
    """Give VFs BARs that follow each other, as firmware does, sizing them before."""
    for n, vf in vfs.items():
        assert [(bar.index, bar.size) for bar in vf.bars()] == [(0, BAR0_SIZE), (2, BAR2_SIZE)]
        for register, address in ((0x10, base0 + (n - 1) * BAR0_SIZE), (0x18, base2 + (n - 1) * BAR2_SIZE)):
            vf.config_write(register, 4, address & 0xFFFFFFFF)
            vf.config_write(register + 4, 4, address >> 32)


def vf_bars(pf: PciFunction) -> list[int]:
    """The registers of the SR-IOV capability."""
    return [pf.config_read(VF_BAR + 4 * part, 4) for part in range(6)]


@contextmanager
def monitor(server: ServerProcess) -> Iterator[QMP]:
    """The server's monitor, for its events."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.fspath(server.folder / "monitor.sock"))
        found = QMP(connection)
        found.negotiate()
        yield found


@contextmanager
def guest_memory(client: RawClient, size: int = 1 << 20) -> Iterator[int]:
    """Memory of a guest at address 0, as a file."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.truncate(fd, size)
    client.map(fd, 0, size)
    try:
        yield fd
    finally:
        os.close(fd)


def enable(pf: PciFunction, count: int) -> None:
    pf.config_write(NUM_VFS, 2, count)
    pf.config_write(CONTROL, 2, 0x0009)


def disable(pf: PciFunction) -> None:
    pf.config_write(CONTROL, 2, 0)


# -- the PF ------------------------------------------------------------------------------------------------


def test_sockets_are_there_from_the_start(server: ServerProcess) -> None:
    assert sockets(server) == ["pf", "vf1", "vf2", "vf3", "vf4"]


def test_extended_capabilities(pf: PciFunction) -> None:
    """SR-IOV alone: OVMF's enumeration stops at ARI."""
    assert [(each.id, each.offset) for each in pf.extended_capabilities()] == [(0x10, 0x100)]
    assert pf.config_read(0x100, 4) == 0x10010


def test_layout(pf: PciFunction) -> None:
    """A VF is device 1 to 4 of the PF's bus: First VF Offset 8, VF Stride 8."""
    assert [pf.config_read(SRIOV + at, 2) for at in (0x14, 0x16, 0x1A)] == [8, 8, 0x1042]
    assert pf.config_read(CONTROL, 2) == 0


@pytest.mark.parametrize(("total", "stride"), [(31, 8), (32, 1), (248, 1)])
def test_layout_of_many(serve: Callable[..., ServerProcess], total: int, stride: int) -> None:
    """31 VFs are devices of their own; more are functions of devices, 248 at most."""
    many = serve("--sriov", "guest", "--total-vfs", str(total), "--disk", "ram:64k")
    with Connection(many.socket("pf"), timeout=10) as connection:
        pf = PciFunction(connection)
        assert [pf.config_read(SRIOV + at, 2) for at in (0x14, 0x16)] == [8, stride]
    assert len(sockets(many)) == 1 + total


@pytest.mark.parametrize(
    ("offset", "length", "shown"),
    [
        (0, 0x1000, 0x100),
        (0xFC, 8, 4),
        (0, 0x101, 0x100),
        (0, 0x100, 0x100),
        (0x100, 4, 4),
        (0x100, 0xF00, 0xF00),
    ],
)
def test_snapshot(pf: PciFunction, offset: int, length: int, shown: int) -> None:
    """A read from below 100h to past it shows nothing from there on; each other read is true."""
    data = pf.connection.region_read(CONFIG, offset, length)
    assert len(data) == length
    assert data[:shown] == b"".join(pf.connection.region_read(CONFIG, offset + at, 1) for at in range(shown))
    assert not any(data[shown:])


def test_own_client_sees_all(pf: PciFunction) -> None:
    whole = pf.config_bytes()
    assert len(whole) == 4096
    assert whole[0x100:0x104] == b"\x10\x00\x01\x00"


def test_total_vfs_is_what_is_attached(server: ServerProcess, pf: PciFunction) -> None:
    """Without a hole, from VF 1 on; while the PF runs it only grows."""

    def total() -> tuple[int, int]:
        return pf.config_read(TOTAL_VFS, 2), pf.config_read(INITIAL_VFS, 2)

    assert total() == (0, 0)
    with seated(server, 1, 2):
        assert total() == (2, 2)
        with seated(server, 4):
            assert total() == (2, 2)
            with seated(server, 3):
                assert total() == (4, 4)
    assert total() == (4, 4)
    until(lambda: attached(server) == ["pf"], "the others left")
    pf.connection.device_reset()
    assert total() == (0, 0)


@pytest.mark.parametrize(("seats", "level"), [((1, 2), "INFO   "), ((1, 2, 4), "WARNING")])
def test_missing_clients_are_told(
    server: ServerProcess, pf: PciFunction, seats: tuple[int, ...], level: str
) -> None:
    """Once a driver begins, which refuses to enable more and does not say why."""
    with seated(server, *seats):
        mark = server.mark()
        pf.set_command(4)
        server.wait_log(rf"{level} virtio\.pf: TotalVFs is 2 of 4: vf3 has no client", since=mark)


def test_num_vfs(server: ServerProcess, pf: PciFunction) -> None:
    """NumVFs is at most TotalVFs, and fixed while VF Enable is set."""
    with seated(server, 1, 2):
        pf.config_write(NUM_VFS, 2, 3)
        assert pf.config_read(NUM_VFS, 2) == 0
        enable(pf, 2)
        pf.config_write(NUM_VFS, 2, 1)
        assert pf.config_read(NUM_VFS, 2) == 2
        disable(pf)
        pf.config_write(NUM_VFS, 2, 1)
        assert pf.config_read(NUM_VFS, 2) == 1


def test_vf_bars_are_preset(server: ServerProcess, pf: PciFunction) -> None:
    """Where VFs' own BARs follow each other, the capability has their address until another is written."""
    assert vf_bars(pf) == [0xC, 0, 0xC, 0, 0, 0]
    with seated(server, 1, 2, 3) as vfs:
        place(vfs)
        preset = [0x0001_000C, 0xC0, 0xFEA1_600C, 0, 0, 0]
        assert vf_bars(pf) == preset
        # Sizing gives it back.
        for part in range(6):
            before = pf.config_read(VF_BAR + 4 * part, 4)
            pf.config_write(VF_BAR + 4 * part, 4, 0xFFFFFFFF)
            sized = pf.config_read(VF_BAR + 4 * part, 4)
            assert sized == [0xFFFF_C00C, 0xFFFFFFFF, 0xFFFF_E00C, 0xFFFFFFFF, 0, 0][part]
            pf.config_write(VF_BAR + 4 * part, 4, before)
        assert vf_bars(pf) == preset
        pf.config_write(VF_BAR, 4, 0xFE00_3FFF)
        assert vf_bars(pf)[:2] == [0xFE00_000C, 0xC0]
        pf.connection.device_reset()
        assert vf_bars(pf) == preset
        vfs[2].config_write(0x10, 4, 0xFD00_0000)
        assert vf_bars(pf) == [0xC, 0, 0xFEA1_600C, 0, 0, 0]


def test_bars_outlast_a_reset(server: ServerProcess, pf: PciFunction) -> None:
    """QEMU keeps a function's BARs whatever resets it, and does not write them again."""
    with seated(server, 1) as vfs:
        place(vfs)
        vfs[1].connection.device_reset()
        vfs[1].flr()
        assert vf_bars(pf)[2] == 0xFEA1_600C
    until(lambda: attached(server) == ["pf"], "the VF's client left")
    with seated(server, 1):
        assert vf_bars(pf) == [0xC, 0, 0xC, 0, 0, 0]


def test_system_page_size(server: ServerProcess, pf: PciFunction) -> None:
    """A VF's BAR takes a system page at least; only one that is supported, and not while VFs are enabled."""
    with seated(server, 1):
        pf.config_write(PAGE_SIZE, 4, 0x10)
        assert pf.config_read(PAGE_SIZE, 4) == 0x10
        for part, sized in ((0, 0xFFFF_000C), (2, 0xFFFF_000C)):
            pf.config_write(VF_BAR + 4 * part, 4, 0xFFFFFFFF)
            assert pf.config_read(VF_BAR + 4 * part, 4) == sized
        for bad in (0, 3, 4, 0x800):
            pf.config_write(PAGE_SIZE, 4, bad)
            assert pf.config_read(PAGE_SIZE, 4) == 0x10
        enable(pf, 1)
        pf.config_write(PAGE_SIZE, 4, 1)
        assert pf.config_read(PAGE_SIZE, 4) == 0x10


# -- VFs ---------------------------------------------------------------------------------------------------


def test_placeholder(server: ServerProcess, pf: PciFunction) -> None:
    """Before VF Enable: a device that no driver knows, whose BARs do not answer; after it a VF."""
    with seated(server, 1) as vfs:
        vf = vfs[1]
        before = vf.config_bytes()
        assert before[0:4] == bytes.fromhex("f41aff10")
        assert before[9:12] == bytes.fromhex("0000ff")
        assert [vf.config_read(at, size) for at, size in ((2, 2), (0, 4), (8, 4))] == [
            0x10FF,
            0x10FF1AF4,
            0xFF000001,
        ]
        assert vf.bar_read(0, 0x14, 1) == 0xFF
        assert vf.bar_read(2, 0, 4) == 0xFFFFFFFF
        vf.bar_write(0, 0x14, 1, 1)
        vf.set_command(4)
        enable(pf, 1)
        after = vf.config_bytes()
        assert after[0:4] == bytes.fromhex("f41a4210")
        assert after[9:12] == bytes.fromhex("008001")
        assert vf.config_read(4, 2) == 0
        assert vf.bar_read(0, 0x14, 1) == 0
        # Nothing else differs.
        assert [at for at in range(4096) if before[at] != after[at]] == [2, 10, 11]


def test_memory_space_stays(server: ServerProcess, pf: PciFunction) -> None:
    """QEMU maps BARs by a VF's own Memory Space Enable, which outlasts VF Enable; no other bit does."""
    with seated(server, 1) as vfs:
        vfs[1].set_command(6)
        for _ in range(2):
            enable(pf, 1)
            assert vfs[1].config_read(4, 2) == 2
            vfs[1].set_command(4)
            disable(pf)
        enable(pf, 1)
        vfs[1].clear_command(2)
        disable(pf)
        enable(pf, 1)
        assert vfs[1].config_read(4, 2) == 0
        vfs[1].set_command(2)
        disable(pf)
        vfs[1].connection.device_reset()
        enable(pf, 1)
        assert vfs[1].config_read(4, 2) == 0


def test_a_driver_that_comes_too_early(server: ServerProcess, pf: PciFunction) -> None:
    """A driver is told at once that there is no VF yet."""
    with (
        pytest.raises(NegotiationError, match="no device answers: of a VF, VF Enable"),
        BlockDriver.open(server.socket("vf1")),
    ):
        pass


def test_off_and_on(server: ServerProcess, pf: PciFunction) -> None:
    """The client stays, and has a new VF each time."""
    with VirtioPci.open(server.socket("vf1"), timeout=10) as device:
        for _ in range(3):
            enable(pf, 1)
            assert device.status == 0
            grip = bring_up(device)
            grip.flushed()
            disable(pf)
            assert device.status == 0xFF
            assert device.function.config_read(2, 2) == 0x10FF


def test_disabled_under_io(server: ServerProcess, pf: PciFunction) -> None:
    """What was under way is gone, its memory is not touched any more, and the other VFs go on."""
    with seated(server, 1, 2):
        pass
    with (
        VirtioPci.open(server.socket("vf1"), timeout=10) as first,
        VirtioPci.open(server.socket("vf2")) as second,
    ):
        enable(pf, 2)
        bring_up(first).flushed()
        bring_up(second).flushed()
        disable(pf)
        first.common.write("device_status", 1)
        assert first.status == 0xFF
        enable(pf, 1)
        bring_up(first).flushed()
        assert second.status == 0xFF


def test_a_vf_without_a_client(server: ServerProcess, pf: PciFunction) -> None:
    """A client that leaves an enabled VF leaves it to the next one."""
    with seated(server, 1, 2):
        enable(pf, 2)
    until(lambda: attached(server) == ["pf"], "the VFs' clients left")
    works(server.socket("vf1"))
    works(server.socket("vf2"))
    names = {each["name"]: each for each in server.ask("query-functions")}
    assert [names[f"vf{n}"]["enabled"] for n in (1, 2, 3)] == [True, True, False]


def test_pf_resets(server: ServerProcess, pf: PciFunction) -> None:
    """FLR and DEVICE_RESET of the PF clear VF Enable; clients of VFs stay."""
    for reset in (pf.flr, pf.connection.device_reset):
        with seated(server, 1) as vfs:
            enable(pf, 1)
            assert vfs[1].config_read(2, 2) == 0x1042
            reset()
            assert vfs[1].config_read(2, 2) == 0x10FF
            assert (pf.config_read(CONTROL, 2), pf.config_read(NUM_VFS, 2)) == (0, 0)


def test_the_next_client_begins_anew(server: ServerProcess) -> None:
    """What a guest set up goes with its PF's client: VF Enable, NumVFs, VF BARs, what TotalVFs counted."""

    def seen(pf: PciFunction) -> tuple[int, ...]:
        bars = [bar & ~0xF for bar in vf_bars(pf)]
        return *(pf.config_read(register, 2) for register in (TOTAL_VFS, NUM_VFS, CONTROL)), *bars

    with seated(server, 1, 2) as vfs:
        with Connection(server.socket("pf"), timeout=10) as first:
            enable(PciFunction(first), 2)
            PciFunction(first).config_write(VF_BAR, 4, 0xFE00_0000)
            assert seen(PciFunction(first)) == (2, 2, 9, 0xFE00_0000, 0, 0, 0, 0, 0)
            assert vfs[1].config_read(2, 2) == 0x1042
        until(lambda: attached(server) == ["vf1", "vf2"], "the PF's client has left")
        assert vfs[1].config_read(2, 2) == 0x10FF
        with Connection(server.socket("pf"), timeout=10) as second:
            assert seen(PciFunction(second)) == (2, *[0] * 8)
    until(lambda: not attached(server), "all have left")
    with Connection(server.socket("pf"), timeout=10) as third:
        assert seen(PciFunction(third)) == (0, *[0] * 8)


def test_group_follows_vf_enable(server: ServerProcess) -> None:
    """The PF's driver has members while VF Enable is set; each time they are Active, and nothing was read."""
    with seated(server, 1, 2), OwnerDriver.open(server.socket("pf")) as owner:
        owner.enable_vfs(2)
        whole = owner.context_size(1, freeze=True)
        owner.mode_set(1, FREEZE)
        assert len(next(owner.context_read(1, 16))) == 16
        assert owner.context_size(1) == whole - 16
        owner.disable_vfs()
        with pytest.raises(AdminError):
            owner.mode_get(1)
        owner.enable_vfs(1)
        assert owner.mode_get(1) == ACTIVE
        assert owner.context_size(1, freeze=True) == whole
        with pytest.raises(AdminError):
            owner.mode_get(2)


def test_context_moves(server: ServerProcess) -> None:
    """The context of such a VF is as any other: a disk's content goes from one to another."""
    with OwnerDriver.open(server.socket("pf")) as owner:
        with seated(server, 1, 2):
            owner.enable_vfs(2)
        with BlockDriver.open(server.socket("vf1")) as disk:
            disk.write(7, b"\x5a" * 512)
            owner.mode_set(1, FREEZE)
            parts = [part.copy() for part in owner.context_read(1)]
        owner.mode_set(2, FREEZE)
        owner.context_write(2, parts)
        owner.mode_set(2, ACTIVE)
        with BlockDriver.open(server.socket("vf2")) as disk:
            assert disk.read(7).tobytes() == b"\x5a" * 512
        owner.disable_vfs()


# -- where VFs' BARs are -------------------------------------------------------------------------------------


def test_misplaced(server: ServerProcess, pf: PciFunction) -> None:
    """BARs that are not where the capability says: a line of the log, an event, and the monitor knows."""
    with seated(server, 1, 2) as vfs, monitor(server) as events:
        place(vfs)
        enable(pf, 2)
        disable(pf)
        pf.config_write(VF_BAR + 8, 4, 0xFD00_0000)
        mark = server.mark()
        enable(pf, 2)
        line = server.wait_log(r"WARNING virtio\.pf: BAR 2 of VF 1 is at 0xfea16000", since=mark)
        assert "says 0xfd000000 (2 BARs differ)" in line
        assert "--ecam auto" in line
        assert "vfu-qemu place" in line
        assert events.wait_event("VF_BARS_MISPLACED")["data"] == {
            "function": "pf",
            "vf": "vf1",
            "bar": 2,
            "wanted": 0xFD00_0000,
            "found": 0xFEA1_6000,
            "count": 2,
        }
        (described,) = server.ask("query-functions", function="vf2")
        assert described["enabled"]
        assert described["bars"] == [
            {"bar": 0, "size": 0x4000, "wanted": BASE0 + BAR0_SIZE, "found": BASE0 + BAR0_SIZE},
            {"bar": 2, "size": 0x2000, "wanted": 0xFD00_2000, "found": 0xFEA1_8000},
        ]
        (described,) = server.ask("query-functions", function="pf")
        assert described["sriov"] == {
            "total-vfs": 4,
            "attached-vfs": 2,
            "num-vfs": 2,
            "first-vf-offset": 8,
            "vf-stride": 8,
        }


ECAM = 0xB000_0000


def test_ecam(serve: Callable[..., ServerProcess]) -> None:
    """The server asks on which bus the PF is, and writes the BARs of VFs that are elsewhere, no others."""
    server = serve("--sriov", "guest", "--total-vfs", "2", "--ecam", hex(ECAM), "--disk", "ram:1M")
    with RawClient(server.socket("pf")) as pf, seated(server, 1, 2) as vfs, guest_memory(pf):
        assert pf.read(CONFIG, 0xFF0, 12) == bytes.fromhex("0b000100 0100c100 00000000")
        place({1: vfs[1]})
        place({2: vfs[2]}, base2=0x1000_0000)
        pf.write(CONFIG, 4, b"\x06\0")
        for offset, value in ((VF_BAR, 0x0001_0000), (VF_BAR + 4, 0xC0), (VF_BAR + 8, 0xFEA1_6000)):
            pf.write(CONFIG, offset, value.to_bytes(4, "little"))
        pf.write(CONFIG, NUM_VFS, b"\2\0")
        mark = server.mark()
        pf.write(CONFIG, CONTROL, b"\x09\0")
        asked = [pf.posted() for _ in range(255)]
        assert asked == [(ECAM + (bus << 20) + 0xFF8, struct.pack("<I", bus)) for bus in range(1, 256)]
        # The one that reached the PF.
        pf.write(CONFIG, 0xFF8, b"\5\0\0\0")
        at = ECAM + (5 << 20) + (0x10 << 12)
        assert [pf.posted(), pf.posted()] == [
            (at + 0x18, struct.pack("<I", 0xFEA1_8000)),
            (at + 0x1C, struct.pack("<I", 0)),
        ]
        vfs[2].config_write(0x18, 4, 0xFEA1_8000)
        vfs[2].config_write(0x1C, 4, 0)
        server.wait_log("1 BARs of VFs were programmed", since=mark)
        # Nobody asked now.
        pf.write(CONFIG, 0xFF8, b"\6\0\0\0")
        pf.write(CONFIG, CONTROL, b"\0\0")
        pf.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            pf.posted()


def test_ecam_without_an_answer(serve: Callable[..., ServerProcess]) -> None:
    """A guest whose IOMMU stops the writes, or an address that is wrong: said as if there were no --ecam."""
    server = serve("--sriov", "guest", "--total-vfs", "1", "--ecam", hex(ECAM), "--disk", "ram:1M")
    with RawClient(server.socket("pf")) as pf, seated(server, 1), guest_memory(pf):
        pf.write(CONFIG, 4, b"\x06\0")
        pf.write(CONFIG, VF_BAR, (0xFD00_0000).to_bytes(4, "little"))
        pf.write(CONFIG, NUM_VFS, b"\1\0")
        pf.write(CONFIG, CONTROL, b"\x09\0")
        server.wait_log(r"WARNING virtio\.pf: BAR 0 of VF 1 is at 0x0, and .* 0xfd000000")


def test_ecam_needs_bus_master(serve: Callable[..., ServerProcess]) -> None:
    """A function that may not write to memory does not."""
    server = serve("--sriov", "guest", "--total-vfs", "1", "--ecam", hex(ECAM), "--disk", "ram:1M")
    with RawClient(server.socket("pf")) as pf, seated(server, 1), guest_memory(pf):
        pf.write(CONFIG, VF_BAR, (0xFD00_0000).to_bytes(4, "little"))
        pf.write(CONFIG, NUM_VFS, b"\1\0")
        pf.write(CONFIG, CONTROL, b"\x09\0")
        server.wait_log("BAR 0 of VF 1 is at 0x0")
        pf.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            pf.posted()


@pytest.mark.parametrize("shared", [True, False])
def test_ecam_that_is_memory(serve: Callable[..., ServerProcess], shared: bool) -> None:
    """An address that is wrong, or taken behind an IOMMU: nothing is written to a guest's memory."""
    server = serve("--sriov", "guest", "--total-vfs", "1", "--ecam", hex(ECAM), "--disk", "ram:1M")
    with RawClient(server.socket("pf")) as pf, seated(server, 1), guest_memory(pf) as fd:
        pf.map(fd if shared else None, ECAM + (200 << 20), 0x1000)
        pf.write(CONFIG, 4, b"\x06\0")
        pf.write(CONFIG, VF_BAR, (0xFD00_0000).to_bytes(4, "little"))
        pf.write(CONFIG, NUM_VFS, b"\1\0")
        pf.write(CONFIG, CONTROL, b"\x09\0")
        server.wait_log(r"WARNING virtio\.pf: 0xb0000000, where ECAM should be, is memory")
        server.wait_log(r"WARNING virtio\.pf: BAR 0 of VF 1 is at 0x0, and .* 0xfd000000")
        pf.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            pf.posted()


def test_ecam_and_the_last_address(serve: Callable[..., ServerProcess]) -> None:
    """VF BARs that a guest puts where not all VFs have room wrap around."""
    server = serve("--sriov", "guest", "--total-vfs", "2", "--ecam", hex(ECAM), "--disk", "ram:1M")
    with RawClient(server.socket("pf")) as pf, seated(server, 1, 2), guest_memory(pf):
        pf.write(CONFIG, 4, b"\x06\0")
        pf.write(CONFIG, VF_BAR, b"\xff" * 8)
        pf.write(CONFIG, NUM_VFS, b"\2\0")
        pf.write(CONFIG, CONTROL, b"\x09\0")
        for _ in range(255):
            pf.posted()
        pf.write(CONFIG, 0xFF8, b"\5\0\0\0")
        assert pf.posted()[1] == struct.pack("<I", 0xFFFF_C000)
        assert server.ask("query-functions", function="vf2")[0]["bars"][0]["wanted"] == 0


# -- the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sriov", "guest"], "--sriov guest needs --total-vfs, from 1 to 248"),
        (["--sriov", "guest", "--total-vfs", "249"], "--sriov guest needs --total-vfs, from 1 to 248"),
        (["--sriov", "guest", "--vfs", "1"], "a guest enables VFs itself"),
        (["--vfs", "1", "--ecam", "auto"], "--ecam is for --sriov guest"),
        (["--sriov", "guest", "--total-vfs", "1", "--ecam", "0x1000"], "ECAM is at a multiple of 0x100000"),
        (["--sriov", "guest", "--total-vfs", "1", "--ecam", "0xfffffffff0100000"], "no 0x10000000 bytes"),
        (["--sriov", "guest", "--total-vfs", "1", "--ecam", "here"], "neither an address nor `auto`"),
    ],
)
def test_wrong_options(tmp_path: Path, options: list[str], says: str) -> None:
    command = [sys.executable, "-m", "vfu_server", "--socket-dir", str(tmp_path / "s"), "--device", "blk"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert says in done.stderr
