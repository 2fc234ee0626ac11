"""The guest that these tests share. Whatever a test does, VFs are opened anew by the next one."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.conftest import IOMMU
from tests.guest.parts.vfio_guest import DRIVER, VfioGuest, give_to
from tests.guest.sriov.guest_sriov import Owned, guest_options
from tests.server_process import ServerProcess
from vfu_images import variants
from vfu_images.machine import Machine

REFUSED = "admin command error: status(0x16) qualifier(0x3)"
"""What the kernel says, and is right to say, of a command that the server answers with EINVAL."""


@pytest.fixture(scope="session")
def session_vfio() -> Iterator[VfioGuest]:
    """See `vfio`."""
    with contextlib.ExitStack() as stack:
        # A RAM disk's content is in no part: VFs that a disk moves between have one file.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="parts-")))

        def start(vfs: int, port: int, prefix: str, *options: str, device: str = "blk") -> Owned:
            server = ServerProcess(*guest_options(vfs, *options), device=device)
            return Owned(stack.enter_context(server), vfs, port=port, prefix=prefix)

        disks = ["--disk", "pf=ram:1M", "--disk", f"{folder / 'disk'},size=8M"]
        wire = f"stream:{folder / 'wire'}"
        owned = (
            start(2, 0, "", *disks),
            # Its requests take a while, and are waited for when it stops.
            start(1, 1, "b-", *disks, "--io-delay-ms", "2"),
            start(2, 2, "c-", "--uplink", f"{wire},server", device="net"),
            start(1, 3, "d-", "--uplink", wire, device="net"),
        )
        guest = stack.enter_context(
            Machine(
                images=variants.VIRTIO_VFIO,
                devices=[device for each in owned for device in each.devices()],
                spare_ports=len(owned),
                append="intel_iommu=on",
                arguments=IOMMU,
            )
        )
        guest.wait_ready(timeout=120)
        guest.check(f"modprobe vfio_iommu_type1 allow_unsafe_interrupts=1 && modprobe {DRIVER}")
        for each in owned:
            # No other driver is to see the VFs before.
            guest.check(f"echo 0 > {each.folder(0)}/sriov_drivers_autoprobe")
            each.enable(guest, each.total)
            for number in range(1, each.total + 1):
                give_to(guest, each, number, DRIVER)
        peer = guest.check(f"ls {owned[2].folder(0)}/virtio*/net").strip()
        guest.check(f"ip link set {peer} up")
        yield VfioGuest(guest, owned[:2], owned[2:], peer)
        for each in owned:
            assert "Traceback" not in each.server.log
            assert " ERROR " not in each.server.log
        assert not guest.check(f"dmesg -r | grep '^<[0-3]>' | grep -v '{REFUSED}' || true")


@pytest.fixture
def vfio(session_vfio: VfioGuest) -> VfioGuest:
    """The guest."""
    return session_vfio
