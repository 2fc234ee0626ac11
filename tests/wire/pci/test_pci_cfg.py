"""The PCI_CFG capability: a window on the BARs for those who have configuration space only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.driving import Driven, driven

pytestmark = pytest.mark.spec("PCI configuration access capability")


@pytest.fixture(params=["pf", "vf1"])
def block(request: pytest.FixtureRequest, shared: ServerProcess) -> Iterator[Driven]:
    with driven(shared.socket(request.param), use_msix=request.param != "pf") as found:
        yield found


def test_reads(block: Driven) -> None:
    """1, 2 and 4 bytes of any structure."""
    device = block.device
    common, notify, isr, config = (device.structures[kind].offset for kind in (1, 2, 3, 4))
    assert device.window_read(0, common + 0x14, 1) == 15
    assert device.window_read(0, common + 0x12, 2) == 2
    device.common.write("device_feature_select", 1)
    assert device.window_read(0, common + 0x04, 4) & 1
    assert device.window_read(0, config, 4) == 2048  # sectors of 1 MiB
    assert device.window_read(0, notify, 2) == 0
    assert device.window_read(0, isr, 1) == 0
    assert device.window_read(2, 12, 4) == 0


def test_writes(block: Driven) -> None:
    """Only the first `length` bytes of the data go to the BAR."""
    device = block.device
    window = device.structures[5].capability
    device.common.write("driver_feature_select", 0xAABBCCDD)
    for length, becomes in ((1, 0xAABBCC44), (2, 0xAABB3344), (4, 0x11223344)):
        device.function.config_write(window + 4, 1, 0)
        device.function.config_write(window + 8, 4, device.structures[1].offset + 8)
        device.function.config_write(window + 12, 4, length)
        device.function.config_write(window + 16, 4, 0x11223344)
        assert device.common.read("driver_feature_select") == becomes


def test_fields_read_back(block: Driven) -> None:
    window = block.device.structures[5].capability
    block.device.function.config_write(window + 4, 1, 2)
    block.device.function.config_write(window + 8, 4, 0x12345678)
    block.device.function.config_write(window + 12, 4, 4)
    assert block.device.function.config_bytes(window + 4, 12) == bytes.fromhex("02000000 78563412 04000000")


def test_side_effects(block: Driven) -> None:
    """The ISR read clears, and a notification through the window is one."""
    device = block.device
    if device.msix is not None:
        device.msix.control &= ~0x8000
    status = block.room(1)
    for slot, (buffer, flags) in enumerate(((block.header(4), 1), (status, 2))):
        block.descriptor(slot, buffer.address, buffer.size, flags, 1)
    block.queue.publish(0)
    device.window_write(0, device.structures[2].offset, 2, 0)
    block.settle()
    assert device.window_read(0, device.structures[3].offset, 1) == 1
    assert device.window_read(0, device.structures[3].offset, 1) == 0
    assert status.view[0] == 0


@pytest.mark.parametrize(
    ("bar", "offset", "length"),
    [
        (1, 0, 4),
        (3, 0, 4),
        (5, 0, 4),
        (6, 0, 4),
        (7, 0, 4),
        (255, 0, 4),
        (0, 8, 0),
        (0, 8, 3),
        (0, 8, 8),
        (0, 8, 0xFFFFFFFF),
        (0, 9, 4),
        (0, 10, 4),
        (0, 9, 2),
        (0, 0x4000, 1),
        (0, 0x3FFE, 4),
        (0, 0xFFFFFFFF, 1),
        (0, 0xFFFFFFFC, 4),
        (2, 0x2000, 4),
    ],
)
def test_bad_windows(block: Driven, bar: int, offset: int, length: int) -> None:
    """What does not fit its BAR reads 0 and changes nothing."""
    device = block.device
    device.common.write("driver_feature_select", 0xAABBCCDD)
    window = device.structures[5].capability
    device.function.config_write(window + 4, 1, bar)
    device.function.config_write(window + 8, 4, offset)
    device.function.config_write(window + 12, 4, length)
    assert device.function.config_read(window + 16, 4) == 0
    device.function.config_write(window + 16, 4, 0x11223344)
    assert device.common.read("driver_feature_select") == 0xAABBCCDD
    assert device.status == 15


def test_reset_closes_it(block: Driven) -> None:
    """A function level reset leaves a window of no length; a device reset does not touch it."""
    device = block.device
    window = device.structures[5].capability
    device.window_read(0, 0x14, 1)
    device.reset()
    assert device.function.config_read(window + 8, 4) == 0x14
    if device.common.read("admin_queue_num") == 0:  # the PF's would take the VFs away
        device.function.flr()
        assert device.function.config_bytes(window + 4, 12) == bytes(12)
