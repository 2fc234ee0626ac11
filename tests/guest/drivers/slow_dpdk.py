"""DPDK's testpmd in a guest: a driver in user space behind vfio-pci, which polls."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.guest.conftest import IOMMU
from tests.guest.guest_disk import DRIVER
from tests.server_process import ServerProcess
from vfu_images import variants
from vfu_images.job import Job
from vfu_images.machine import Machine

MRG_RXBUF, RING_PACKED, IN_ORDER = 15, 34, 35

# Debian's DPDK needs SSE 4.2. `max` takes three times as long to boot.
SETTINGS = ("-cpu", "Nehalem", *IOMMU)
ADDRESSES = {"vf1": "0000:01:00.0", "vf2": "0000:02:00.0"}
MACS = {"vf1": "02:00:00:00:00:01", "vf2": "02:00:00:00:00:02"}
HUGE_PAGES = 64
BUFFERS = 8192

BURSTS, BURST = 4, 32
"""What each port sends first; as many frames are under way from then on."""

ROUNDS = 40


def mode(without: str, bits: set[int], name: str) -> Any:
    """One set of features, and its row."""
    return pytest.param(without, bits, marks=pytest.mark.driver("DPDK testpmd", f"macswap on rings: {name}"))


@pytest.mark.parametrize(
    ("without", "bits"),
    [
        mode("ring-reset", {RING_PACKED, IN_ORDER}, "packed, in order, mergeable"),
        mode("in-order", {RING_PACKED}, "packed, mergeable"),
        mode("packed", {IN_ORDER}, "split, in order, mergeable"),
        mode("packed,in-order", set(), "split, mergeable"),
    ],
)
def test_macswap(
    server: Callable[..., ServerProcess],
    machine: Callable[..., Machine],
    version: Callable[[str], None],
    without: str,
    bits: set[int],
) -> None:
    """Two ports send each frame back to where it came from; none is lost, however often it went."""
    macs = [option for name, mac in MACS.items() for option in ("--mac", f"{name}={mac}")]
    running = server("--vfs", "2", "--without", without, *macs, device="net")
    guest = machine(
        images=variants.DPDK,
        devices=[running.qemu_device(name) for name in ADDRESSES],
        append="intel_iommu=on",
        arguments=SETTINGS,
        memory_mib=768,
        cpus=2,
    )
    hand_over(guest)
    for _ in range(2):
        before = [counters(running, name)["rx-frames"] for name in ADDRESSES]
        job = guest.start(command_line())
        # It reads commands when it is ready, and what it prints is seen at its end.
        job.send(f"start tx_first {BURSTS}")
        wait_frames(running, job, [count + ROUNDS * BURSTS * BURST for count in before])
        for name in ADDRESSES:
            assert not {
                reason for reason, count in counters(running, name).items() if "-dropped-" in reason and count
            }
            taken = int(re.findall(r"DRIVER_OK, features (0x\w+)", running.log_of(name))[-1], 16)
            assert {bit for bit in (MRG_RXBUF, RING_PACKED, IN_ORDER) if taken >> bit & 1} == {
                MRG_RXBUF,
                *bits,
            }
        job.send("stop")
        job.send("quit")
        status, said = job.wait()
        assert status == 0, said
        version(str(re.findall(r"RTE Version: 'DPDK ([^']+)'", said)[0]))
        received = [int(count) for count in re.findall(r"RX-packets: (\d+)", said)]
        assert len(received) >= 2, said
        assert min(received) >= ROUNDS * BURSTS * BURST
        assert {int(count) for count in re.findall(r"RX-dropped: (\d+)", said)} == {0}, said
    assert " ERROR " not in running.log


def hand_over(guest: Machine) -> None:
    """Give the functions to vfio-pci, and make huge pages."""
    guest.check("modprobe vfio_iommu_type1 allow_unsafe_interrupts=1; modprobe vfio_pci")
    for address in ADDRESSES.values():
        folder = f"/sys/bus/pci/devices/{address}"
        guest.check(f"echo {address} > {DRIVER}/unbind; echo vfio-pci > {folder}/driver_override")
        guest.check(f"echo {address} > /sys/bus/pci/drivers_probe; readlink {folder}/driver | grep vfio-pci")
    guest.check(f"echo {HUGE_PAGES} > /proc/sys/vm/nr_hugepages; mkdir /dev/hugepages")
    guest.check(
        f"grep -q 'HugePages_Free: *{HUGE_PAGES}' /proc/meminfo; mount -t hugetlbfs none /dev/hugepages"
    )


def command_line() -> str:
    """Its command line: each port sends to the other one first."""
    drivers = " ".join(f"-d {name}" for name in variants.DPDK_DRIVERS)
    ports = " ".join(f"-a {address}" for address in ADDRESSES.values())
    peers = " ".join(f"--eth-peer={port},{mac}" for port, mac in enumerate(reversed(MACS.values())))
    return (
        f"dpdk-testpmd -v -l 0,1 {drivers} {ports} -- -i --total-num-mbufs={BUFFERS} "
        f"--forward-mode=macswap --port-topology=loop {peers}"
    )


def counters(server: ServerProcess, function: str) -> dict[str, int]:
    """A function's counters, as the monitor tells them."""
    (state,) = server.ask("query-functions", function=function)
    found: dict[str, int] = state["counters"]
    return found


def wait_frames(server: ServerProcess, job: Job, wanted: list[int], *, timeout: float = 120.0) -> None:
    """Wait until each function has received so many frames. Raises TimeoutError."""
    deadline = time.monotonic() + timeout
    while True:
        received = [counters(server, name)["rx-frames"] for name in ADDRESSES]
        if all(map(int.__ge__, received, wanted)):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"only {received} frames were received, of {wanted}:\n{job.output()}\n{server.log}"
            )
        time.sleep(0.1)
