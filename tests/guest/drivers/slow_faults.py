"""Linux's drivers of disks, networks and the admin queue, with each fault that can be asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from tests.guest.drivers.conftest import ADDRESS, SERVER, Served
from tests.guest.guest_disk import DRIVER, IOVERIFY, address_of, disk_of
from tests.guest.guest_net import function_address, set_up
from tests.server_process import ServerProcess
from vfu_images.machine import Machine

SECONDS = 10
"""After which something hangs."""

OF_BUFFERS = ("late", "reorder", "error", "short", "used-length", "lose", "dma-fault", "needs-reset")
FAULTS = (*OF_BUFFERS, "drop-interrupt", "duplicate-interrupt", "reset", "link-flap", "config-change")

Finding = Callable[[str, str], None]
"""Takes down what a driver made of the fault."""


def attempt(guest: Machine, name: str, command: str) -> tuple[int | None, str]:
    """What a command ends with, None if it hangs, and what it printed. What hangs is left behind."""
    guest.check(f"{{ ( {command} ) </dev/null >/run/{name}.out 2>&1; echo $? >/run/{name}.rc; }} &")
    ended = guest.check(
        f"for i in $(seq {SECONDS * 10}); do [ -s /run/{name}.rc ] && break; usleep 100000; done; "
        f"cat /run/{name}.rc || true"
    )
    status = re.search(r"^\d+$", ended, re.MULTILINE)
    return (int(status[0]) if status else None), guest.check(f"cat /run/{name}.out")


def bound_again(guest: Machine, name: str, address: str) -> bool:
    """Whether the driver could be taken from a function and given back."""
    command = f"echo {address} > {DRIVER}/unbind && echo {address} > {DRIVER}/bind"
    return attempt(guest, name, command)[0] == 0


def work_disk(guest: Machine, name: str, disk: str) -> str:
    """What became of some reads and writes that check themselves."""
    checks = IOVERIFY.format(disk=disk, depth=4, offset=0, length="1M")
    status, output = attempt(guest, name, f"{checks} --count 100 --report-ms 100000")
    if status is None:
        return "I/O hangs"
    lines = [line for line in output.splitlines() if line.startswith("{")]
    done = json.loads(lines[-1]) if lines else {}
    wrong = [f"{done[key]} {key}" for key in ("errors", "corrupt", "lost") if done.get(key)]
    if wrong:
        return f"of 100 writes and their reads: {', '.join(wrong)}"
    return "goes on" if status == 0 else f"I/O ends with {status}"


def work_network(guest: Machine, name: str) -> str:
    """What became of a file that is fetched by TFTP."""
    status, output = attempt(
        guest, name, f"tftp -g -r file -l /run/{name}.file {SERVER}; wc -c < /run/{name}.file"
    )
    if status is None:
        return "transfer hangs"
    return "goes on" if output.strip().endswith("102400") else "transfer fails"


@pytest.mark.driver("Linux (Debian backports), virtio_blk", "meets each fault on purpose: see below")
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "link-flap"])
def test_disk(
    server: Callable[..., ServerProcess],
    machine: Callable[..., Machine],
    version: Callable[[str], None],
    finding: Finding,
    fault: str,
) -> None:
    """What it does with one, and afterwards."""
    disks = server("--vfs", "1", "--disk", "ram:32M")
    guest = machine(devices=[disks.qemu_device("vf1")])
    version(guest.check("uname -r").strip())
    address, disk = address_of(guest, "vf1"), disk_of(guest, "vf1")
    assert work_disk(guest, "before", disk) == "goes on"
    disks.ask("inject", function="vf1", fault=fault)
    if fault == "config-change":
        bound_again(guest, "changed", address)
        disk = disk_of(guest, "vf1")
    said = work_disk(guest, "fault", disk)
    finding(fault, said + after_disk(disks, guest, "vf1", address))


@pytest.mark.driver("Linux (Debian backports), virtio_net", "meets each fault on purpose: see below")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("queue", [0, 1], ids=["receive", "transmit"])
def test_network(
    network: Served,
    machine: Callable[..., Machine],
    version: Callable[[str], None],
    finding: Finding,
    fault: str,
    queue: int,
) -> None:
    """What it does with one in a queue, and afterwards."""
    card = network.server
    guest = machine(devices=[card.qemu_device("vf1")])
    version(guest.check("uname -r").strip())
    address = function_address(guest)
    set_up(guest, ADDRESS)
    assert work_network(guest, "before") == "goes on"
    of_queue = {} if fault == "config-change" else {"queue": queue}
    card.ask("inject", function="vf1", fault=fault, **of_queue)
    if fault == "config-change":
        bound_again(guest, "changed", address)
        set_up(guest, ADDRESS)
    said = work_network(guest, "fault")
    card.ask("end-faults")

    def again() -> str:
        set_up(guest, ADDRESS)
        return work_network(guest, "after")

    finding(f"{fault}, {'transmit' if queue else 'receive'}", said + after(guest, address, again))
    assert "the server made a mistake" not in card.log


@pytest.mark.driver(
    "Linux (Debian backports), virtio_pci's admin queue", "meets each fault on purpose: see below"
)
@pytest.mark.parametrize("fault", OF_BUFFERS)
def test_admin(
    server: Callable[..., ServerProcess],
    machine: Callable[..., Machine],
    version: Callable[[str], None],
    finding: Finding,
    fault: str,
) -> None:
    """What it does with one while it is bound to a PF, and afterwards."""
    disks = server("--vfs", "1", "--disk", "ram:32M")
    guest = machine(devices=[disks.qemu_device("pf")])
    version(guest.check("uname -r").strip())
    address = address_of(guest, "pf")
    disks.ask("inject", function="pf", fault=fault, queue=1)
    said = "goes on" if bound_again(guest, "fault", address) else "binding hangs or fails"
    if said == "goes on":
        said = work_disk(guest, "work", disk_of(guest, "pf"))
    finding(fault, said + after_disk(disks, guest, "pf", address))


def after_disk(disks: ServerProcess, guest: Machine, function: str, address: str) -> str:
    """The same of a disk's, whose function met its one fault."""
    (asked,) = disks.ask("query-faults")
    assert asked["met"] == 1
    disks.ask("end-faults")
    said = after(guest, address, lambda: work_disk(guest, "after", disk_of(guest, function)))
    assert "the server made a mistake" not in disks.log
    return said


def after(guest: Machine, address: str, work: Callable[[], str]) -> str:
    """What becomes of a driver that is unbound and bound after the fault."""
    if not bound_again(guest, "again", address):
        return "; unbinding and binding does not end"
    return f"; bound again: {work()}"
