"""A guest whose IOMMU translates: each of its mappings is a DMA region of the device while it lasts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.guest.conftest import IOMMU
from tests.guest.guest_disk import address_of, digest, disk_of, rebind, verify
from tests.server_process import ServerProcess
from vfu_images.machine import Machine

MEBIBYTES = 32


@pytest.mark.driver(
    "Linux (Debian backports), intel_iommu=on", "32 MiB of writeback, driver unbound and bound again"
)
def test_writeback(
    server: Callable[..., ServerProcess], machine: Callable[..., Machine], version: Callable[[str], None]
) -> None:
    """Writeback maps thousands of pages at once, and what is read again comes by mappings that are new."""
    running = server("--vfs", "1", "--disk", f"ram:{MEBIBYTES}M")
    guest = machine(devices=[running.qemu_device("vf1")], append="intel_iommu=on", arguments=IOMMU)
    version(guest.check("uname -r").strip())
    disk = disk_of(guest, "vf1")
    # It does translate.
    block = disk.removeprefix("/dev/")
    group = f"/sys/block/{block}/device/../iommu_group/type"
    assert guest.check(f"cat {group}").strip() in {"DMA", "DMA-FQ"}
    guest.check(f"dd if=/dev/urandom of=/tmp/content bs=1M count={MEBIBYTES}")
    wanted = guest.check("md5sum /tmp/content").split()[0]
    guest.check(f"dd if=/tmp/content of={disk} bs=1M", timeout=120)
    assert digest(guest, disk) == wanted
    rebind(guest, address_of(guest, "vf1"))
    verify(guest, disk_of(guest, "vf1"))
    assert " ERROR " not in running.log
