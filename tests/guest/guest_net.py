"""A function's network as a guest sees it, and a TCP stream that checks itself (images/guest/netverify.c)."""

from __future__ import annotations

import re
import time

from tests.guest.guest_files import pairs
from vfu_images.job import Job
from vfu_images.machine import Machine

INTERFACE = "eth0"
PORT = 5001
RATE_KIB = 2048
"""What a stream sends each second: a guest's emulated processor has other things to do as well."""

STATISTICS = f"/sys/class/net/{INTERFACE}/statistics"


def set_up(guest: Machine, address: str, interface: str = INTERFACE) -> None:
    """Give an interface an IPv4 address of a /24, once it is there, and set it up."""
    guest.check(f"while [ ! -e /sys/class/net/{interface} ]; do usleep 20000; done")
    guest.check(f"/bin/ip address replace {address}/24 dev {interface}; /bin/ip link set {interface} up")
    wait_carrier(guest, up=True, interface=interface)


def wait_carrier(guest: Machine, *, up: bool, interface: str = INTERFACE) -> None:
    """Wait until an interface that is set up has a carrier, or none. Raises TimeoutError."""
    file = f"/sys/class/net/{interface}/carrier"
    guest.check(f"while [ $(cat {file}) != {int(up)} ]; do usleep 20000; done")


def function_address(guest: Machine) -> str:
    """The PCI address of the function below the interface."""
    return guest.check(f"readlink -f /sys/class/net/{INTERFACE}/device").strip().split("/")[-2]


def reaches(guest: Machine, address: str, *, count: int = 3) -> bool:
    """Whether each of some pings is answered."""
    result = guest.run(f"ping -q -c {count} -i 0.2 -W 5 {address}")
    return bool(re.search(rf"{count} packets transmitted, {count} packets received", result.output))


def received(guest: Machine) -> int:
    """How many packets the interface took in so far."""
    return int(guest.check(f"cat {STATISTICS}/rx_packets"))


def start_receiver(guest: Machine, *, patience: int = 60) -> Job:
    """The listening end of a stream; it listens when this returns."""
    job = guest.start(f"netverify receive --port {PORT} --rate {RATE_KIB} --patience {patience}")
    guest.check(f"while ! grep -q event=start {job.folder}/output; do :; done")
    return job


def start_sender(guest: Machine, address: str, *, patience: int = 60) -> Job:
    """The connecting end; it sends and checks until it, or the other end, is stopped."""
    return guest.start(
        f"netverify send --address {address} --port {PORT} --rate {RATE_KIB} --patience {patience} "
        "--report-ms 50"
    )


def records_now(job: Job) -> int:
    """How many good records an end has received."""
    return int(pairs(job.last_line()).get("records", 0))


def wait_records(job: Job, more: int, *, timeout: float = 60.0) -> None:
    """Wait until an end has received so many more records than now. Raises TimeoutError."""
    wanted = records_now(job) + more
    deadline = time.monotonic() + timeout
    while records_now(job) < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not {more} more records within {timeout:g} s:\n{job.output()[-2000:]}")


def finish(*ends: Job, resets: int = 0) -> list[dict[str, str]]:
    """Stop a stream; each end was told by the other that it is over, and has checked all. The figures."""
    ends[0].stop()
    found = []
    for end in ends:
        _, output = end.wait()
        done = pairs(output.strip().splitlines()[-1])
        assert (done["event"], done["ended"], done["corrupt"]) == ("done", "clean", "0"), output
        assert int(done["resets"]) <= resets, output
        found.append(done)
    return found
