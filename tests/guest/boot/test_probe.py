"""What Linux makes of the PF and a VF when it finds them."""

from __future__ import annotations

import re

import pytest

from bench import probe
from tests.guest.conftest import Plain
from tests.guest.guest_disk import address_of

VERSION_1, SR_IOV, RING_RESET, ADMIN_VQ = 32, 37, 40, 41
INDIRECT_DESC, EVENT_IDX = 28, 29
RING_PACKED, IN_ORDER, NOTIFICATION_DATA, NOTIF_CONFIG_DATA = 34, 35, 38, 39

WARNING = 4
"""The level of KERN_WARNING; what is worse has a lower one."""


@pytest.fixture(params=["pf", "vf1"])
def function(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def accepted(plain: Plain, function: str) -> set[int]:
    """The feature bits that Linux accepted."""
    text = plain.guest.check(f"cat /sys/bus/pci/devices/{address_of(plain.guest, function)}/virtio*/features")
    return {bit for bit, digit in enumerate(text.strip()) if digit == "1"}


def test_capabilities(plain: Plain, function: str) -> None:
    """PM, MSI-X, PCIe with FLR and the five virtio structures are there, and the driver."""
    address = address_of(plain.guest, function)
    text = plain.guest.check(f"lspci -vvv -s {address}")
    found = re.findall(r"Capabilities: \[\w+\] (.*)", text)
    assert [line.partition(" version")[0].partition(":")[0] for line in found] == [
        "Power Management",
        "MSI-X",
        "Express (v2) Endpoint, IntMsgNum 0",
        *["Vendor Specific Information"] * 5,
    ]
    structures = [line.split("VirtIO: ")[1] for line in found if "VirtIO" in line]
    # lspci has no name for PCI_CFG (type 5); the numbers are read below.
    assert structures == ["CommonCfg", "Notify", "ISR", "DeviceCfg", "<unknown>"]
    assert "FLReset+" in text
    assert "Status: D0 NoSoftRst- PME-Enable-" in text
    assert "MSI-X: Enable+" in text
    assert "Kernel driver in use: virtio-pci" in text
    assert "Virtio 1.0 block device (rev 01)" in text
    assert "!!!" not in text
    assert ("Interrupt: pin A" in text) == (function == "pf")
    assert re.search(r"Mem\+ BusMaster\+", text)
    for bar, size in re.findall(r"Region (\d): Memory at \w+ \(.*\) \[size=(\w+)\]", text):
        assert (bar, size) in {("0", "16K"), ("2", "8K")}
    dump = plain.guest.check(f"lspci -xxx -s {address}")
    config = bytes.fromhex("".join(re.findall(r"^[0-9a-f]{2}: (.*)$", dump, re.MULTILINE)))
    at = config[0x34]
    types = []
    while at:
        if config[at] == 0x09:
            types.append(config[at + 3])
        at = config[at + 1]
    assert types == [1, 2, 3, 4, 5]


def test_features(plain: Plain, function: str) -> None:
    """Linux accepts what the rings can do, and ADMIN_VQ of the PF.

    The disk of VF 1 is a file, whose requests may overtake each other: IN_ORDER is not offered.
    SR_IOV is offered by the PF, but QEMU hides the SR-IOV capability from its guest, and Linux accepts the
    feature only where it finds that.
    """
    bits = accepted(plain, function)
    assert {VERSION_1, INDIRECT_DESC, EVENT_IDX, RING_RESET} <= bits
    assert {RING_PACKED, NOTIFICATION_DATA} <= bits
    assert (IN_ORDER in bits) == (function == "pf")
    assert NOTIF_CONFIG_DATA not in bits  # which it does not know
    assert (ADMIN_VQ in bits) == (function == "pf")
    assert SR_IOV not in bits


def test_kernel_log(plain: Plain) -> None:
    """Until the guest was ready, the kernel had no complaint about these functions or their drivers."""
    ours = re.compile(r"virtio|\bvd[a-z]\b|\b(0000:)?0[12]:00\.0\b|pciehp", re.IGNORECASE)
    complaints = []
    for line in plain.kernel_log.splitlines():
        level = re.match(r"<(\d+)>", line)
        bad = level is not None and int(level[1]) % 8 <= WARNING
        if (bad or "failed" in line.lower()) and ours.search(line):
            complaints.append(line)
    # It is said of every module that is not signed, and these are stripped of their signatures.
    complaints = [line for line in complaints if "module verification failed" not in line]
    assert not complaints, "\n".join(complaints)


def test_admin_commands(plain: Plain) -> None:
    """Linux sent its admin commands when it probed the PF; each was answered OK."""
    lines = [line for line in plain.server_log.splitlines() if " virtio.pf: " in line]
    admin = [line for line in lines if re.search(r"pf: [A-Z_]+ group \d: ", line)]
    commands = [(line.split()[3], line.split()[5]) for line in admin]
    assert commands[:3] == [("LIST_QUERY", "1:"), ("LIST_USE", "1:"), ("CAP_ID_LIST_QUERY", "0:")]
    assert all(": OK" in line for line in admin)


def test_server_log(plain: Plain) -> None:
    """The server says who came and how far its driver got, and complains of nothing."""
    for function in ("pf", "vf1"):
        lines = [line for line in plain.server_log.splitlines() if f" virtio.{function}: " in line]
        assert any("a client attached" in line for line in lines)
        assert "DRIVER_OK" in [line for line in lines if "driver status" in line][-1]
    complaints = re.findall(
        r"^\S+ (?:WARNING|ERROR|CRITICAL) .*|^Traceback.*", plain.server_log, re.MULTILINE
    )
    assert not complaints


def test_interrupts(plain: Plain, function: str) -> None:
    """Each queue has an MSI-X vector of its own, and its interrupts arrive."""
    address = address_of(plain.guest, function)
    table = plain.guest.check("cat /proc/interrupts")
    rows = [line.split() for line in table.splitlines() if f"PCI-MSIX-{address}" in line]
    names = {row[-1].partition("-")[2]: int(row[1]) for row in rows}
    assert {"config", "req.0"} <= set(names)
    assert names["req.0"] > 0


def test_probe_time() -> None:
    """A probe of the PF is not slower than one of QEMU's disk by seconds; `bench` has the real figures."""
    times = probe.measure(runs=1)
    assert 0 < times.ours_ms < times.reference_ms + 2000
