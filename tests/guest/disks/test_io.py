"""Verified I/O: nothing that was written is lost or changed, on each kind of disk, alone and in company."""

from __future__ import annotations

import re

import pytest

from tests.guest.conftest import DISK_SIZE, Plain
from tests.guest.guest_disk import (
    digest,
    disk_of,
    file_digest,
    finish,
    start_io,
    verify,
    wait_written,
)
from tests.server_process import ServerProcess
from vfu_images.machine import Machine


@pytest.mark.parametrize(("depth", "count"), [(1, 1000), (32, 3000)])
@pytest.mark.parametrize("function", ["pf", "vf1"], ids=["ram", "file"])
def test_verified(plain: Plain, function: str, depth: int, count: int) -> None:
    """One request at a time, and many, on a disk in memory (the PF's) and in a file (the VF's)."""
    verify(plain.guest, disk_of(plain.guest, function), depth=depth, count=count)


@pytest.mark.parametrize("block", [512, 65536])
def test_other_block_sizes(plain: Plain, block: int) -> None:
    """Requests of one sector, and of many pages."""
    verify(plain.guest, disk_of(plain.guest, "vf1"), block=block, count=200)


def test_host_sees_the_same(plain: Plain) -> None:
    """What the guest reads is what the file holds, before and after the guest wrote."""
    disk = disk_of(plain.guest, "vf1")
    assert digest(plain.guest, disk) == file_digest(plain.image)
    verify(plain.guest, disk, count=200, offset="16M", length="8M")
    assert digest(plain.guest, disk) == file_digest(plain.image)
    with plain.image.open("rb") as file:
        file.seek(16 << 20)
        written = file.read(8 << 20)
    sectors = [written[at : at + 512] for at in range(0, len(written), 512)]
    addressed = [
        16 * 2**20 + number * 512
        for number, sector in enumerate(sectors)
        if sector.startswith(b"ioverify")
        and int.from_bytes(sector[16:24], "little") == 16 * 2**20 + number * 512
    ]
    assert len(addressed) >= 200 * 8 // 2  # some blocks are written twice
    assert plain.image.stat().st_size == DISK_SIZE


def test_page_cache_and_flush(plain: Plain) -> None:
    """Buffered writes and fsync, as file systems do it; the file on the host has them when fsync is done."""
    disk = disk_of(plain.guest, "vf1")
    plain.guest.check("dd if=/dev/urandom of=/tmp/noise bs=64k count=32")
    plain.guest.check(f"dd if=/tmp/noise of={disk} seek=12 bs=64k conv=fsync,notrunc")
    expected = plain.guest.check("md5sum /tmp/noise; rm /tmp/noise").split()[0]
    assert digest(plain.guest, disk) == file_digest(plain.image)
    assert (
        plain.guest.check(f"dd if={disk} bs=64k skip=12 count=32 2>/dev/null | md5sum").split()[0] == expected
    )


def test_two_queues(multi: Machine) -> None:
    """A guest with two processors uses both queues, each with its own vector."""
    disk = disk_of(multi, "vf2")
    assert multi.check(f"ls /sys/block/{disk.removeprefix('/dev/')}/mq | wc -l").strip() == "2"
    # A thread of ioverify stays on the processor that taskset gives it, and so on one queue.
    for cpu in ("1", "2"):
        done = multi.run(
            f"taskset {cpu} ioverify --device {disk} --length 16M --depth 4 --count 300", timeout=120
        )
        assert done.status == 0, done.output
    verify(multi, disk, depth=32, count=2000)
    table = multi.check("cat /proc/interrupts")
    queues = {
        row[-1]: row for row in map(str.split, table.splitlines()) if re.search(r"-req\.\d$", " ".join(row))
    }
    assert len(queues) == 2
    for row in queues.values():
        assert sum(map(int, row[1:3])) > 100


def test_two_guests(plain: Plain, multi: Machine, shared_server: ServerProcess) -> None:
    """Two guests on two VFs of one PF do I/O at the same time, and neither sees anything of the other's."""
    first = start_io(plain.guest, disk_of(plain.guest, "vf1"), depth=8)
    second = start_io(multi, disk_of(multi, "vf2"), depth=8)
    for job in (first, second):
        wait_written(job, 8000)
    finish(first)
    finish(second)
    assert shared_server.alive
