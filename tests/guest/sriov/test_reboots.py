"""A guest that begins anew while it has VFs; it finds none, and enables them again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.guest_disk import start_io, wait_written
from tests.guest.sriov.guest_sriov import Owned, guest_options
from tests.server_process import ServerProcess
from vfu_images.machine import KERNEL_ARGUMENTS, Machine
from vfu_images.workspace import IMAGES

PAGE = 4096


def whole_pages(path: Path) -> bytes:
    """A file with zeros after it: neither a kernel nor an initramfs minds those."""
    content = path.read_bytes()
    return content + bytes(-len(content) % PAGE)


@pytest.mark.long
def test_restarted(
    server: Callable[..., ServerProcess], machine: Callable[..., Machine], tmp_path: Path
) -> None:
    """By itself, by QEMU's reset under I/O, and into another kernel, which no firmware prepares for it.

    The PF's disk has that kernel. A kernel that finds VFs enabled disables them first, as Linux does.
    """
    kernel, initramfs = (whole_pages(IMAGES / name) for name in ("vmlinuz", "initramfs.cpio.gz"))
    image = tmp_path / "pf.img"
    image.write_bytes(kernel + initramfs)
    owned = Owned(server(*guest_options(3, "--disk", "ram:16M", "--disk", f"pf={image},readonly")), 3)
    guest = machine(devices=owned.devices(), spare_ports=1, memory_mib=384)
    for way in ("reboot", "system_reset", "kexec"):
        owned.enable(guest, 3)
        owned.verify(guest, 1, 2, 3, count=20)
        mark = owned.server.mark()
        job = start_io(guest, owned.disk(guest, 2), depth=2, length="4M")
        wait_written(job, 16)
        if way == "system_reset":
            guest.qmp("system_reset")
        elif way == "reboot":
            # In the background: this command is answered before the guest is gone.
            guest.check("(usleep 50000; reboot -f) >/dev/null 2>&1 &")
        else:
            disk = owned.disk(guest, 0)
            first, more = len(kernel) // PAGE, len(initramfs) // PAGE
            guest.check(f"dd if={disk} of=/tmp/kernel bs={PAGE} count={first}", timeout=120)
            guest.check(f"dd if={disk} of=/tmp/initramfs bs={PAGE} skip={first} count={more}", timeout=120)
            arguments = f"{KERNEL_ARGUMENTS} guest.again"
            guest.check(f"(usleep 50000; kexec /tmp/kernel /tmp/initramfs '{arguments}') >/dev/null 2>&1 &")
        guest.console.forget_count()
        guest.wait_ready(timeout=120)
        assert ("guest.again" in guest.check("cat /proc/cmdline")) == (way == "kexec")
        assert owned.enabled(guest) == 0
        owned.server.wait_log(r"virtio\.pf: 0 VFs enabled", since=mark)
        assert owned.ask()["num-vfs"] == 0
    owned.enable(guest, 3)
    owned.verify(guest, 1, 2, 3, count=20)
    assert all(wanted == found for number in (1, 2, 3) for wanted, found in owned.bars(number))
    assert "Traceback" not in owned.server.log
