"""U-Boot in place of a PC's BIOS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.bare_machine import BareMachine, Prompt
from tests.guest.drivers.conftest import ADDRESS, FILE, Served
from tests.server_process import ServerProcess
from vfu_images import firmware

PROMPT = rb"\n=> "

MEMORY = 0x2000000
"""Where it puts what it reads and fetches, if it is not told."""

SECTOR = 512
SECTORS = 32768
FROM, TO, COUNT = 0x64, 0x200, 0x10


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk whose every sector begins with its number, 8 bytes in big-endian order."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(number.to_bytes(8).ljust(SECTOR, b"\xa5") for number in range(SECTORS)))
    return path


@pytest.mark.driver("U-Boot", "finds disk and network, reads, writes, DHCP, TFTP")
def test_disk_and_network(
    network: Served,
    server: Callable[..., ServerProcess],
    machine: Callable[..., BareMachine],
    image: Path,
    version: Callable[[str], None],
) -> None:
    """It writes ACKNOWLEDGE, resets, and then writes DRIVER alone."""
    disks = server("--vfs", "1", "--disk", "ram:1M", "--disk", f"vf1={image}")
    guest = machine(
        kind=BareMachine,
        ready=False,
        devices=[{**disks.qemu_device("vf1"), "id": "disk"}, network.server.qemu_device("vf1")],
        arguments=["-bios", str(firmware.U_BOOT)],
    )
    version(guest.expect(rb"U-Boot (\S+)\s")[1].decode())
    guest.expect(rb"stop autoboot")
    guest.console.send(" ")
    guest.expect(PROMPT)
    prompt = Prompt(guest, PROMPT)
    prompt.run("virtio scan")
    found = prompt.run("virtio info")
    assert "VirtIO Block Device" in found
    assert f"({SECTORS} x {SECTOR})" in found

    read = prompt.run(f"virtio read {MEMORY:x} {FROM:x} {COUNT:x}")
    assert f"{COUNT} blocks read: OK" in read
    shown = prompt.run(f"md.b {MEMORY + (COUNT - 1) * SECTOR:x} 9")
    assert "00 00 00 00 00 00 00 73 a5" in shown
    written = prompt.run(f"virtio write {MEMORY:x} {TO:x} {COUNT:x}")
    assert f"{COUNT} blocks written: OK" in written
    content = image.read_bytes()
    source = content[FROM * SECTOR :][: COUNT * SECTOR]
    assert content[TO * SECTOR :][: COUNT * SECTOR] == source
    # Nothing around it.
    assert content[(TO - 1) * SECTOR :][:8] == (TO - 1).to_bytes(8)
    assert content[(TO + COUNT) * SECTOR :][:8] == (TO + COUNT).to_bytes(8)

    assert "virtio-net#" in prompt.run("net list")
    for _ in range(2):
        fetched = prompt.run("dhcp")
        assert f"DHCP client bound to address {ADDRESS}" in fetched
        assert "Bytes transferred = 102400 (19000 hex)" in fetched
        # The file's last bytes.
        assert "f8 f9 fa fb fc fd fe ff" in prompt.run(f"md.b {MEMORY + len(FILE) - 8:x} 8")
    for serving in (disks, network.server):
        assert " ERROR " not in serving.log
