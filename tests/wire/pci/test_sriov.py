"""SR-IOV and ARI of the PF: its registers, and VFs that come and go with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.driving import driven, served, serves
from tests.wire.running import running, sockets, until
from vfu_client.drivers.block import BlockDriver
from vfu_client.vfio.connection import Connection, VfioUserError
from vfu_client.vfio.pci import PciFunction
from vfu_client.vfio.sriov import SrIov
from vfu_client.virtio.function import VirtioPci


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """2 of 4 VFs at power-on, and again after each test."""
    with running() as start:
        yield start("--vfs", "2", "--total-vfs", "4", "--disk", "ram:1M")


@pytest.fixture
def pf(server: ServerProcess) -> Iterator[PciFunction]:
    with Connection(server.socket("pf"), timeout=10) as connection:
        yield PciFunction(connection)
        connection.device_reset()
    wait_vfs(server, "vf1", "vf2")
    until(lambda: served(server.socket("vf1")) and served(server.socket("vf2")), "both VFs")


def wait_vfs(server: ServerProcess, *names: str) -> None:
    """Wait until there are sockets of these VFs and no others."""
    until(lambda: sockets(server) == ["pf", *names], f"sockets of {names}; there are {sockets(server)}")


def gone(connection: Connection) -> bool:
    """Whether the server hung up."""
    try:
        connection.device_info()
    except VfioUserError:
        return True
    return False


def test_extended_capabilities(pf: PciFunction) -> None:
    """SR-IOV and ARI, and SR-IOV not at 0x100, the one place that QEMU overwrites."""
    found = {capability.id: capability.offset for capability in pf.extended_capabilities()}
    assert sorted(found) == [0x0E, 0x10]
    assert found[0x10] != 0x100
    assert pf.config_read(found[0x0E], 4) & 0xFFFFF == 0x1000E
    assert pf.config_read(found[0x0E] + 4, 4) == 0  # no next function, no function groups


def test_registers(pf: PciFunction) -> None:
    """Every register at power-on with 2 of 4 VFs, and which of them take writes."""
    at = pf.find_extended(0x10)
    assert pf.config_read(at, 4) & 0xFFFFF == 0x10010
    expected = [
        (0x04, 4, 0x2),  # ARI capable hierarchy preserved, no VF migration
        (0x08, 2, 0x0009),  # VF Enable, VF MSE
        (0x0A, 2, 0),
        (0x0C, 2, 4),
        (0x0E, 2, 4),
        (0x10, 2, 2),
        (0x12, 1, 0),
        (0x14, 2, 1),
        (0x16, 2, 1),
        (0x1A, 2, 0x1042),
        (0x1C, 4, 0x553),
        (0x20, 4, 1),
        (0x3C, 4, 0),
    ]
    assert [(offset, size, pf.config_read(at + offset, size)) for offset, size, _ in expected] == expected
    for offset, size, value in expected:
        if offset not in {0x08, 0x20}:
            pf.config_write(at + offset, size, (1 << 8 * size) - 1)
            assert pf.config_read(at + offset, size) == value, hex(offset)
    pf.config_write(at + 0x20, 4, 0x10)
    assert pf.config_read(at + 0x20, 4) == 1  # not while VF Enable is set
    pf.config_write(at + 0x08, 2, 0xFFFF)
    assert pf.config_read(at + 0x08, 2) == 0x0019  # no VF migration


def test_vf_bars(server: ServerProcess, pf: PciFunction) -> None:
    """Sizing gives the aperture of one VF: the size that a VF's own region has."""
    at = pf.find_extended(0x10) + 0x24
    sizes = {}
    for index in range(0, 6, 2):
        for half in (0, 4):
            pf.config_write(at + 4 * index + half, 4, 0xFFFFFFFF)
        mask = pf.config_read(at + 4 * index, 4) | pf.config_read(at + 4 * index + 4, 4) << 32
        if mask:
            assert mask & 0xF == 0xC
            sizes[index] = (1 << 64) - (mask & ~0xF)
    with Connection(server.socket("vf1")) as vf:
        assert sizes == {index: vf.region_info(index).size for index in (0, 2)}
    assert all(size % 4096 == 0 for size in sizes.values())


def test_num_vfs_only_while_disabled(server: ServerProcess, pf: PciFunction) -> None:
    """NumVFs is fixed while VF Enable is set, and never above TotalVFs."""
    sriov = SrIov(pf)
    sriov.write("num_vfs", 3)
    assert sriov.read("num_vfs") == 2
    sriov.disable()
    sriov.write("num_vfs", 5)
    assert sriov.read("num_vfs") == 2
    sriov.write("num_vfs", 4)
    assert sriov.read("num_vfs") == 4
    wait_vfs(server)


def test_sockets_come_and_go(server: ServerProcess, pf: PciFunction) -> None:
    sriov = SrIov(pf)
    wait_vfs(server, "vf1", "vf2")
    sriov.enable(4)
    wait_vfs(server, "vf1", "vf2", "vf3", "vf4")
    serves(server.socket("vf4"))
    sriov.enable(1)
    wait_vfs(server, "vf1")
    serves(server.socket("vf1"))
    sriov.disable()
    wait_vfs(server)
    sriov.enable(2)
    wait_vfs(server, "vf1", "vf2")
    serves(server.socket("vf2"))


def test_enabling_makes_new_vfs(server: ServerProcess, pf: PciFunction) -> None:
    """VF Enable 1 to 0 takes a VF from its client; 0 to 1 makes one in reset state."""
    with driven(server.socket("vf1")) as block:
        assert block.device.status == 15
        SrIov(pf).disable()
        until(lambda: gone(block.device.connection), "hung up")
    wait_vfs(server)
    SrIov(pf).enable(2)
    wait_vfs(server, "vf1", "vf2")
    until(lambda: served(server.socket("vf1")), "a new VF")
    with VirtioPci.open(server.socket("vf1"), timeout=10) as device:
        assert device.status == 0
        assert device.function.config_read(4, 2) == 0
    serves(server.socket("vf1"))


def test_toggled_within_one_breath(server: ServerProcess, pf: PciFunction) -> None:
    """Off and on again before the server's main thread can look: still new VFs behind new sockets."""
    with driven(server.socket("vf1")) as first, driven(server.socket("vf2")) as second:
        control = pf.find_extended(0x10) + 8
        for value in (0, 9, 0, 9, 0, 9):
            pf.connection.region_write(7, control, value.to_bytes(2, "little"), posted=True)
        pf.config_read(0, 2)
        until(lambda: gone(first.device.connection) and gone(second.device.connection), "hung up")
    serves(server.socket("vf1"))
    serves(server.socket("vf2"))


def test_vf_memory_space_enable(server: ServerProcess, pf: PciFunction) -> None:
    """VF MSE clear: BARs of VFs do not answer and take nothing; configuration space and DMA go on."""
    sriov = SrIov(pf)
    with driven(server.socket("vf1")) as block:
        sriov.write("control", 0x0001)
        assert sockets(server) == ["pf", "vf1", "vf2"]
        assert block.device.status == 0xFF
        assert block.device.function.config_read(0, 2) == 0x1AF4
        block.device.common.write("device_status", 0)
        assert block.device.function.bar_read(2, 0, 4) == 0xFFFFFFFF
        sriov.write("control", 0x0009)
        assert block.device.status == 15


def test_pf_flr_removes_the_vfs(server: ServerProcess, pf: PciFunction) -> None:
    """VF Enable and NumVFs are cleared; a client of a VF is hung up on; DEVICE_RESET restores power-on."""
    with driven(server.socket("vf2")) as block:
        pf.flr()
        sriov = SrIov(pf)
        assert (sriov.read("control"), sriov.read("num_vfs")) == (0, 0)
        until(lambda: gone(block.device.connection), "hung up")
    wait_vfs(server)
    pf.connection.device_reset()
    sriov = SrIov(pf)
    assert (sriov.read("control"), sriov.read("num_vfs")) == (9, 2)
    wait_vfs(server, "vf1", "vf2")
    serves(server.socket("vf2"))


def test_device_reset_and_a_leaving_client_spare_the_vfs(server: ServerProcess) -> None:
    """VFs that were there at power-on and are still keep their drivers over both (A-29, A-30)."""
    with BlockDriver.open(server.socket("vf1"), timeout=10) as disk:
        with Connection(server.socket("pf"), timeout=10) as pf:
            pf.device_reset()
            disk.write(0, b"a" * 512)
            SrIov(PciFunction(pf)).write("system_page_size", 1)
        disk.write(1, b"b" * 512)
        with Connection(server.socket("pf"), timeout=10) as pf:
            assert SrIov(PciFunction(pf)).enabled == 2
        assert disk.read(0, 2).tobytes() == b"a" * 512 + b"b" * 512


def test_device_reset_takes_the_surplus_away(server: ServerProcess, pf: PciFunction) -> None:
    SrIov(pf).enable(4)
    wait_vfs(server, "vf1", "vf2", "vf3", "vf4")
    pf.connection.device_reset()
    wait_vfs(server, "vf1", "vf2")


def test_virtio_reset_of_the_pf_spares_the_vfs(server: ServerProcess) -> None:
    """VF Enable is PCI's: a virtio reset of the PF touches neither it nor the VFs."""
    with (
        BlockDriver.open(server.socket("vf1"), timeout=10) as disk,
        BlockDriver.open(server.socket("pf"), timeout=10) as pf,
    ):
        pf.device.reset()
        assert SrIov(pf.device.function).enabled == 2
        disk.write(0, b"c" * 512)


def test_no_vfs_at_all(serve: Callable[..., ServerProcess]) -> None:
    """Without VFs there is no SR-IOV capability, and the feature is not offered."""
    server = serve()
    with VirtioPci.open(server.socket("pf"), timeout=10) as device:
        assert device.function.extended_capabilities() == []
        assert not device.common.features() >> 37 & 1


def test_vfs_off_at_power_on(serve: Callable[..., ServerProcess]) -> None:
    server = serve("--total-vfs", "2")
    assert sockets(server) == ["pf"]
    with Connection(server.socket("pf")) as connection:
        sriov = SrIov(PciFunction(connection))
        assert (sriov.read("control"), sriov.read("num_vfs"), sriov.read("total_vfs")) == (0, 0, 2)
        sriov.enable(1)
        wait_vfs(server, "vf1")
