"""Requests whose buffers lead nowhere: the device needs a reset, and nothing else is held up by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wire.disks.in_process import served
from tests.wire.running import until
from vfu_client.drivers.block import BlockDriver
from vfu_client.owner.owner import OwnerDriver

SECONDS = 10
ACTIVE, STOP = 0, 1
NEEDS_RESET = 0x40
SIZE = 1 << 20
NOWHERE = 1 << 40
NEW = b"n" * 512


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A PF and two VFs, the first one on a file."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    with served(image, SIZE, queues=1) as path:
        yield path


def driver(folder: Path, vf: int) -> BlockDriver:
    return BlockDriver.open(folder / f"vf{vf}.sock", posted_writes=True, timeout=SECONDS)


def header(disk: BlockDriver, kind: int) -> tuple[int, int]:
    """A request's header in guest memory, for sector 0."""
    made = disk.device.memory.allocate(16)
    made.view[:] = [kind, *bytes(15)]
    return made.segment


@pytest.mark.parametrize("vf", [1, 2], ids=["file", "ram"])
def test_no_place_for_the_status_of_a_write(folder: Path, vf: int) -> None:
    """The disk is not kept by it: the owner stops the VF, and the next driver has its disk."""
    with OwnerDriver.open(folder / "pf.sock", timeout=SECONDS) as pf:
        with driver(folder, vf) as disk:
            disk.write(8, NEW)
            data = disk.device.memory.allocate(512)
            for number in range(3):
                status = (NOWHERE, 1) if number else disk.device.memory.allocate(1).segment
                disk.queues[0].add([header(disk, 1), data.segment], [status])
            disk.queues[0].kick()
            until(lambda: disk.device.status & NEEDS_RESET != 0, "DEVICE_NEEDS_RESET")
            pf.mode_set(vf, STOP)
            pf.mode_set(vf, ACTIVE)
        with driver(folder, vf) as disk:
            assert disk.read(8).tobytes() == NEW
            disk.write(9, NEW)
            disk.flush()
            pf.mode_set(vf, STOP)


@pytest.mark.parametrize("vf", [1, 2], ids=["file", "ram"])
def test_a_read_into_nowhere_is_not_recorded(folder: Path, vf: int) -> None:
    """A write record has pages of guest memory, so a driver can't make it grow with others."""
    with OwnerDriver.open(folder / "pf.sock", timeout=SECONDS) as pf, driver(folder, vf) as disk:
        disk.write(8, NEW)
        pf.write_record_start(vf)
        disk.read(8)  # the owner had the lock: from here on the loop is at work again
        status = disk.device.memory.allocate(1)
        disk.queues[0].add([header(disk, 0)], [(NOWHERE, SIZE), status.segment])
        disk.queues[0].kick()
        until(lambda: disk.device.status & NEEDS_RESET != 0, "DEVICE_NEEDS_RESET")
        records, left = pf.write_record_read(vf)
        assert left == 0
        assert [int(record["address"]) for record in records if record["address"] >= NOWHERE] == []
