"""A file system on a function's disk, and work on it that checks itself (images/guest/fsverify.c)."""

from __future__ import annotations

from vfu_images.job import Job
from vfu_images.machine import Machine


def pairs(line: str) -> dict[str, str]:
    """The key=value pairs of one line."""
    return dict(word.split("=", 1) for word in line.split())


def make_file_system(guest: Machine, disk: str) -> None:
    """An empty ext4 on a disk."""
    guest.check(f"mkfs.ext4 -q -F {disk}", timeout=120)


def mount(guest: Machine, disk: str, folder: str) -> None:
    guest.check(f"mkdir -p {folder}; mount -t ext4 {disk} {folder}", timeout=120)


def unmount(guest: Machine, folder: str) -> None:
    guest.check(f"umount {folder}", timeout=120)


def check_file_system(guest: Machine, disk: str) -> None:
    """The file system has no fault, not even one that could be mended."""
    result = guest.run(f"e2fsck -f -n {disk}", timeout=120)
    assert result.status == 0, result.output


def work(guest: Machine, folder: str, *, workers: int = 4, count: int = 150) -> dict[str, str]:
    """Work on the files in a folder, `count` operations of each worker; nothing is wrong. The figures."""
    command = f"fsverify work --folder {folder} --workers {workers} --count {count} --report-ms 100000"
    return checked(*guest.run(command, timeout=180))


def start_work(guest: Machine, folder: str, *, workers: int = 4) -> Job:
    """The same without an end, until the job is stopped."""
    return guest.start(f"fsverify work --folder {folder} --workers {workers} --report-ms 50")


def wait_blocks(job: Job, wanted: int, *, attempts: int = 2000) -> int:
    """Wait until so many journal blocks are safe on the disk; how many are."""
    blocks = 0
    for _ in range(attempts):
        blocks = int(pairs(job.last_line()).get("blocks", 0))
        if blocks >= wanted:
            return blocks
    raise TimeoutError(f"only {blocks} of {wanted} blocks are on the disk:\n{job.output()}")


def look_through(guest: Machine, folder: str) -> dict[str, str]:
    """Read all that work left in a folder; each file is whole. The figures."""
    return checked(*guest.run(f"fsverify check --folder {folder}", timeout=120))


def checked(status: int, output: str) -> dict[str, str]:
    """The last figures of fsverify, in which nothing is wrong."""
    done = pairs(output.strip().splitlines()[-1])
    assert done["event"] in {"done", "check"}, output
    assert (done["errors"], done["corrupt"], status) == ("0", "0", 0), output
    return done
