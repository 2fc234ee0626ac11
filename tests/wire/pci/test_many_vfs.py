"""More VFs than a bus has functions: all are served, commanded and watched like the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.driving import serves, works
from tests.wire.running import running, sockets, until
from vfu_client.drivers.block import BlockDriver
from vfu_client.owner.admin import AdminError
from vfu_client.owner.owner import OwnerDriver
from vfu_client.vfio.connection import Connection
from vfu_client.vfio.pci import PciFunction
from vfu_client.vfio.sriov import SrIov

ACTIVE, STOP, FREEZE = 0, 1, 2


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running() as start:
        yield start("--vfs", "300", "--disk", "ram:1M", log_level="info")


def test_every_one_has_a_socket(server: ServerProcess) -> None:
    assert sockets(server) == sorted(["pf", *(f"vf{number}" for number in range(1, 301))])
    for number in (1, 255, 256, 300):
        works(server.socket(f"vf{number}"))


def test_routing_ids_go_on_at_the_next_bus(server: ServerProcess) -> None:
    """Of a PF at 01:00.0 VF 255 is the last function of bus 1, and VF 300 is 02:05.4."""
    with Connection(server.socket("pf"), timeout=10) as connection:
        sriov = SrIov(PciFunction(connection))
        assert [sriov.read(name) for name in ("initial_vfs", "total_vfs", "num_vfs")] == [300, 300, 300]
        first, stride = sriov.read("first_vf_offset"), sriov.read("vf_stride")
        found = [0x0100 + first + (number - 1) * stride for number in (1, 255, 256, 300)]
        assert found == [0x0101, 0x01FF, 0x0200, 0x022C]


def test_commands_reach_the_one_that_is_named(server: ServerProcess) -> None:
    """VF 300 is stopped, and VF 44, whose number has the same low byte, is not; there is no VF 301."""
    with (
        BlockDriver.open(server.socket("vf300"), timeout=10) as far,
        BlockDriver.open(server.socket("vf44"), timeout=10) as near,
        OwnerDriver.open(server.socket("pf"), timeout=10) as owner,
    ):
        owner.mode_set(300, STOP)
        assert [owner.mode_get(number) for number in (44, 256, 300)] == [ACTIVE, ACTIVE, STOP]
        waiting = far.submit(0, 0, far.device.memory.allocate(512))
        near.read(0)
        with pytest.raises(TimeoutError):
            far.completions(0.2)
        owner.mode_set(300, ACTIVE)
        far.finish(waiting)
        with pytest.raises(AdminError) as refused:
            owner.mode_get(301)
        assert (refused.value.status, refused.value.qualifier) == (22, 5)


def test_a_context_of_the_last(server: ServerProcess) -> None:
    with OwnerDriver.open(server.socket("pf"), timeout=10) as owner:
        for number in (299, 300):
            owner.mode_set(number, FREEZE)
        owner.context_write(300, owner.context_read(299))
        for number in (299, 300):
            owner.mode_set(number, ACTIVE)
    works(server.socket("vf300"))


def test_the_monitor_has_them_all(server: ServerProcess) -> None:
    found = server.ask("query-functions")
    assert [one["name"] for one in found] == ["pf", *(f"vf{number}" for number in range(1, 301))]
    assert all(one["served"] for one in found)
    assert server.ask("query-functions", function="vf300")[0]["name"] == "vf300"


def test_enabled_by_the_owner(serve: Callable[..., ServerProcess]) -> None:
    """300 of 400, and none again."""
    server = serve("--total-vfs", "400", "--disk", "ram:1M", log_level="info")
    assert sockets(server) == ["pf"]
    with Connection(server.socket("pf"), timeout=10) as connection:
        sriov = SrIov(PciFunction(connection))
        assert sriov.read("total_vfs") == 400
        sriov.enable(300)
        until(lambda: len(sockets(server)) == 301, "300 VFs", timeout=30)
        serves(server.socket("vf300"))
        sriov.disable()
        until(lambda: sockets(server) == ["pf"], "no VFs", timeout=30)
