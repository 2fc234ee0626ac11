"""What takes minutes: VFs off and on a hundred times, and 248 of them. Not in `make test` (CONTRIBUTING)."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.guest.guest_disk import finish, progress, start_io, wait_written
from tests.guest.sriov.guest_sriov import Owned, complaints, guest_options
from tests.server_process import ServerProcess
from vfu_images.machine import Machine

CYCLES = 100


@pytest.mark.timeout(1800)
def test_off_and_on(server: Callable[..., ServerProcess], machine: Callable[..., Machine]) -> None:
    """A hundred times, every fifth time from under a writer: nothing is left over, and nothing wears out."""
    owned = Owned(server(*guest_options(2, "--disk", "ram:16M")), 2)
    guest = machine(devices=owned.devices(), spare_ports=1)
    beside = start_io(guest, owned.disk(guest, 0), depth=1, length="1M")
    before, open_files = complaints(guest), owned.server.open_files
    memory = []
    for cycle in range(CYCLES):
        owned.enable(guest, 2)
        owned.verify(guest, 1, 2, count=10)
        if cycle % 5 == 0:
            job = start_io(guest, owned.disk(guest, 2), depth=2, length="4M")
            wait_written(job, 16)
            owned.enable(guest, 0)
            job.stop()
            assert job.wait().status == 1
        else:
            owned.enable(guest, 0)
        memory.append(int(guest.check("awk '/MemAvailable/ {print $2}' /proc/meminfo")))
    assert owned.server.open_files == open_files
    wait_written(beside, progress(beside)["sectors_written"] + 16)
    finish(beside)
    complained = [line for line in complaints(guest)[len(before) :] if "I/O error" not in line]
    assert complained == []
    # Linux's own structures for two VFs are larger than what it may lose in one cycle.
    assert memory[9] - memory[-1] < 16 << 10
    assert "Traceback" not in owned.server.log


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("device", "vfs", "cpus"), [("blk", 64, 1), ("blk", 248, 1), ("net", 248, 1), ("net", 248, 4)]
)
def test_how_long_many_take(
    server: Callable[..., ServerProcess],
    machine: Callable[..., Machine],
    device: str,
    vfs: int,
    cpus: int,
) -> None:
    """Prints how long the guest takes to enable them, and how many have a driver that found its interrupts.

    A vCPU has 200. Linux takes 2 of one vCPU for a disk, and of each further vCPU one, as it binds those of
    queues to all; 3 for a network card, wherever there are some.
    """
    owned = Owned(server(*guest_options(vfs), device=device), vfs)
    guest = machine(devices=owned.devices(), spare_ports=1, cpus=cpus, memory_mib=1024)
    processes = (guest.pid, owned.server.process.pid)
    begun = [processor_seconds(process) for process in processes]
    took = guest.check(f"time -p sh -c 'echo {vfs} > {owned.folder(0)}/sriov_numvfs' 2>&1", timeout=900)
    spent = [processor_seconds(process) - before for process, before in zip(processes, begun, strict=True)]
    assert owned.enabled(guest) == vfs
    kind = "block" if device == "blk" else "net"
    found = guest.check(f"ls -d {owned.folder(0)}/virtfn*/virtio*/{kind}/* | wc -l", timeout=120).strip()
    print(
        f"{vfs} VFs ({device}), {found} work, {cpus} vCPUs: {took.split()[1]} s; of a processor QEMU"
        f" {spent[0]:.1f} s, server {spent[1]:.1f} s; load {os.getloadavg()[0]:.1f}"
    )
    if device == "blk":
        owned.verify(guest, 1, 31, 64, count=10)
    elif cpus == 4:
        assert int(found) == vfs
    owned.enable(guest, 0)
    assert "Traceback" not in owned.server.log


def processor_seconds(process: int) -> float:
    """What a process used of processors so far."""
    with open(f"/proc/{process}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
