"""A VF that its guest takes away from its own I/O: by driver, bus or reset. Its other disk never notices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guest.conftest import Plain
from tests.guest.guest_disk import (
    DRIVER,
    address_of,
    digest,
    disk_of,
    figures,
    finish,
    progress,
    start_io,
    verify,
    wait_written,
)
from vfu_images.job import Job

ROUNDS = 20

BLOCK_DRIVER = "/sys/bus/virtio/drivers/virtio_blk"

# Reads until the disk is gone; comes back when 50 requests were answered.
LOAD = (
    "(while dd if={disk} of=/dev/null bs=4k iflag=direct 2>/dev/null; do :; done) & "
    "begun=$(cut -c1-8 /sys/block/{name}/stat); "
    "while [ $(cut -c1-8 /sys/block/{name}/stat) -lt $((begun + 50)) ]; do :; done"
)


@pytest.fixture(scope="module")
def neighbour(plain: Plain) -> Iterator[Job]:
    """I/O on the PF's disk all the while, in which nothing goes wrong."""
    job = start_io(plain.guest, disk_of(plain.guest, "pf"), depth=2, length="8M")
    yield job
    finish(job)


@pytest.fixture
def beside(neighbour: Job) -> Iterator[None]:
    """It goes on after the test as it did before."""
    yield
    wait_written(neighbour, progress(neighbour)["sectors_written"] + 100)


@pytest.mark.long
@pytest.mark.parametrize("load", [False, True], ids=["idle", "io"])
@pytest.mark.parametrize("driver", [DRIVER, BLOCK_DRIVER], ids=["virtio-pci", "virtio_blk"])
def test_unbind_and_bind(plain: Plain, beside: None, driver: str, load: bool) -> None:
    """Twenty times the driver goes and comes back; requests on their way are answered or fail at once."""
    guest, server = plain.guest, plain.server
    disk, mark, open_files = disk_of(guest, "vf1"), server.mark(), server.open_files
    name, before = disk.removeprefix("/dev/"), digest(guest, disk)
    unit = address_of(guest, "vf1")
    if driver == BLOCK_DRIVER:
        unit = guest.check(f"readlink -f /sys/block/{name}/device").strip().rpartition("/")[2]
    busy = LOAD.format(disk=disk, name=name) if load else ":"
    guest.check(
        f"for round in $(seq {ROUNDS}); do {busy}; echo {unit} > {driver}/unbind; wait; "
        f"[ ! -e {disk} ] || exit 1; echo {unit} > {driver}/bind; while [ ! -e {disk} ]; do :; done; done",
        timeout=180,
    )
    assert digest(guest, disk) == before
    verify(guest, disk_of(guest, "vf1"))
    log = server.log[mark:]
    assert log.count("virtio.vf1: device reset") >= ROUNDS
    assert "Traceback" not in log
    assert server.open_files == open_files


@pytest.mark.long
def test_removed_under_io(plain: Plain, beside: None) -> None:
    """The guest removes the VF while it writes to it, and finds it again; three times.

    Requests fail from then on, and none that was answered well is lost: writing began anew each time.
    """
    guest, server = plain.guest, plain.server
    address = address_of(guest, "vf1")
    for _ in range(3):
        mark = server.mark()
        job = start_io(guest, disk_of(guest, "vf1"))
        wait_written(job, 200)
        guest.check(f"echo 1 > /sys/bus/pci/devices/{address}/remove")
        server.wait_log(r"virtio\.vf1: device reset", since=mark)
        job.stop()
        status, output = job.wait()
        done = figures(output.splitlines()[-1])
        assert (status, done["corrupt"], done["lost"]) == (1, 0, 0), output
        assert done["errors"] > 0
        guest.check("echo 1 > /sys/bus/pci/rescan")
        assert address_of(guest, "vf1") == address
        verify(guest, disk_of(guest, "vf1"))


def test_function_level_reset_under_io(plain: Plain, beside: None) -> None:
    """FLR under a driver that is busy: Linux waits for its requests, resets, sets up again, and goes on.

    Not one request fails, and the writer does not notice more than a pause.
    """
    guest, server = plain.guest, plain.server
    device = f"/sys/bus/pci/devices/{address_of(guest, 'vf1')}"
    guest.check(f"echo flr > {device}/reset_method")
    job = start_io(guest, disk_of(guest, "vf1"))
    for _ in range(5):
        mark = server.mark()
        wait_written(job, progress(job)["sectors_written"] + 200)
        guest.check(f"echo 1 > {device}/reset")
        server.wait_log(r"virtio\.vf1: function-level reset", since=mark)
    wait_written(job, progress(job)["sectors_written"] + 200)
    finish(job)
