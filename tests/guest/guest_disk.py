"""A function's disk as a guest sees it: which it is, what it holds, and I/O that checks itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vfu_images.job import Job
from vfu_images.machine import Machine

IOVERIFY = "ioverify --device {disk} --offset {offset} --length {length} --depth {depth}"

DRIVER = "/sys/bus/pci/drivers/virtio-pci"


def disk_of(guest: Machine, function: str, *, timeout: float = 60.0) -> str:
    """The block device of `pf`, `vf1` and so on, by its serial number; waits until there is one."""
    find = (
        f"for d in /sys/block/vd*; do "
        f'[ "$(cat $d/serial 2>/dev/null)" = pymodel-{function} ] && echo /dev/${{d##*/}} && exit; done'
    )
    return guest.check(f"while :; do {find}; usleep 20000; done", timeout=timeout).strip()


def address_of(guest: Machine, function: str) -> str:
    """The PCI address of a function that has a disk, such as 0000:01:00.0."""
    block = disk_of(guest, function).removeprefix("/dev/")
    return guest.check(f"readlink -f /sys/block/{block}/device").strip().split("/")[-2]


def rebind(guest: Machine, address: str) -> None:
    """Take the driver from a function and give it back."""
    guest.check(f"echo {address} > {DRIVER}/unbind")
    guest.check(f"echo {address} > {DRIVER}/bind")


def start_io(
    guest: Machine, disk: str, *, depth: int = 8, offset: str = "0", length: str = "16M", more: str = ""
) -> Job:
    """Numbered and checksummed writes with read-backs, until the job is stopped."""
    return guest.start(
        f"{IOVERIFY.format(disk=disk, depth=depth, offset=offset, length=length)} {more}".strip()
    )


def figures(line: str) -> dict[str, Any]:
    """One report of ioverify."""
    report: dict[str, Any] = json.loads(line)
    return report


def progress(job: Job) -> dict[str, Any]:
    """The figures of a running job as they are now."""
    before = job.output().count("progress")
    job.send("report")
    while (output := job.output()).count("progress") == before or not output.endswith("}\n"):
        pass
    return figures(output.splitlines()[-1])


def wait_written(job: Job, sectors: int, *, attempts: int = 400) -> dict[str, Any]:
    """Wait until a job has written that many sectors."""
    for _ in range(attempts):
        report = progress(job)
        if report["sectors_written"] >= sectors:
            return report
    raise TimeoutError(f"only {report['sectors_written']} of {sectors} sectors were written")


def finish(job: Job, *, timeout: float = 120.0) -> dict[str, Any]:
    """Stop a job, and check that nothing was wrong with what it wrote and read."""
    job.stop()
    status, output = job.wait(timeout=timeout)
    return checked(status, output)


def checked(status: int, output: str) -> dict[str, Any]:
    """The last figures of ioverify, in which nothing is wrong."""
    done = figures(output.strip().splitlines()[-1])
    assert done["event"] == "done", output
    assert (done["errors"], done["corrupt"], done["lost"], status) == (0, 0, 0, 0), output
    return done


def verify(
    guest: Machine,
    disk: str,
    *,
    count: int = 300,
    depth: int = 8,
    offset: str = "0",
    length: str = "16M",
    block: int = 4096,
) -> dict[str, Any]:
    """Write `count` blocks, reading back meanwhile and all at the end; nothing is wrong. The figures."""
    command = IOVERIFY.format(disk=disk, depth=depth, offset=offset, length=length)
    done = checked(*guest.run(f"{command} --count {count} --block {block} --report-ms 100000", timeout=180))
    assert done["sequence"] == count
    assert done["sectors_written"] == count * block // 512
    return done


def digest(guest: Machine, disk: str) -> str:
    """MD5 of all that a disk holds, read by the guest and not out of its page cache."""
    guest.check("sync; echo 1 > /proc/sys/vm/drop_caches")
    return guest.check(f"md5sum {disk}", timeout=120).split()[0]


def file_digest(path: Path) -> str:
    """MD5 of a file on the host."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
