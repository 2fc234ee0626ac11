"""The rules for who stands in for a legacy driver: what breaks one is noticed, and answered as ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.legacy.rig import (
    ACTIVE,
    COMMON_READ,
    COMMON_WRITE,
    DEVICE_READ,
    DEVICE_WRITE,
    FIELD,
    FREEZE,
    OPTIONS,
    Legacy,
    legacy,
)
from tests.wire.running import running

Broken = Callable[[], set[str]]

pytestmark = pytest.mark.usefixtures("said")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running() as start:
        yield start(*OPTIONS, "--check-driver")


@pytest.fixture
def vf(server: ServerProcess) -> Iterator[Legacy]:
    with legacy(server) as found:
        yield found


@pytest.fixture
def broken(server: ServerProcess, vf: Legacy) -> Broken:
    """Tells which rules were broken since it was asked last."""
    before = server.breaches()

    def told() -> set[str]:
        nonlocal before
        earlier, before = before, server.breaches()
        return {rule for rule, count in before.items() if count > earlier[rule]}

    return told


@pytest.mark.spec("P-DRV-07", "P-DRV-20")
def test_a_good_driver_breaks_nothing(vf: Legacy, broken: Broken) -> None:
    """Accesses are as long as the fields, which are no multiples of 8 bytes."""
    vf.run()
    vf.offer()
    assert vf.config(0, 6)[0] == 2
    assert vf.write_at(DEVICE_WRITE, 0, b"\2") == (0, 0)
    vf.write("device_status", 0)
    assert broken() == set()


@pytest.mark.spec("P-DRV-20")
def test_more_than_a_field(vf: Legacy, broken: Broken) -> None:
    for opcode in (COMMON_READ, DEVICE_READ):
        assert vf.read_at(opcode, 4, 8)[0] == FIELD
        assert broken() == {"P-DRV-20"}
    for opcode in (COMMON_WRITE, DEVICE_WRITE):
        assert vf.write_at(opcode, 4, bytes(8)) == FIELD
        assert broken() == {"P-DRV-20"}


@pytest.mark.spec("P-DRV-20")
def test_notifications_by_command(vf: Legacy, broken: Broken) -> None:
    """There is an address for them."""
    vf.run()
    assert broken() == set()
    vf.by_address = False
    vf.offer()
    assert broken() == {"P-DRV-20"}


@pytest.mark.spec("DRV-05")
def test_configuration_in_freeze(vf: Legacy, broken: Broken) -> None:
    vf.set_mode(FREEZE)
    assert vf.status == 0
    assert broken() == set()
    vf.config(0, 6)
    assert broken() == {"DRV-05"}
    assert vf.write_at(DEVICE_WRITE, 0, b"\2") == (0, 0)
    assert broken() == {"DRV-05"}
    vf.set_mode(ACTIVE)
