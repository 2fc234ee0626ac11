"""What there is to be prepared, by name, and what each needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vfu_images import disk, firmware, initramfs, kernel_headers, libnbd, nested, openssh, qemu, variants
from vfu_images.debian import Debian
from vfu_images.workspace import IMAGES, locked

STEPS: Final[Mapping[str, Callable[[Debian], object]]] = {
    "qemu": qemu.prepare,
    "qemu-arm": qemu.prepare_arm,
    "libnbd": lambda _: libnbd.prepare(),
    "openssh": openssh.prepare,
    "initramfs": initramfs.prepare,
    "disk": disk.prepare,
    "headers": kernel_headers.prepare,
    "firmware": firmware.prepare,
    "linux-6.1": lambda _: variants.prepare_linux("6.1"),
    "virtio-vfio": variants.prepare_virtio_vfio,
    "nested": nested.prepare,
    "linux-6.12": lambda _: variants.prepare_linux("6.12"),
    "dpdk": variants.prepare_dpdk,
}
"""In the order in which they are made: later ones are made of earlier ones."""

_GUEST: Final = ("initramfs", "disk")
_USUAL: Final = ("qemu", *_GUEST)
_DRIVERS: Final = (
    *_USUAL,
    "qemu-arm",
    "libnbd",
    "openssh",
    "headers",
    "firmware",
    "linux-6.1",
    "virtio-vfio",
)

WANTED: Final[Mapping[str, tuple[str, ...]]] = {
    "libnbd": ("libnbd",),
    "qemu": ("qemu",),
    "guest": _GUEST,
    "usual": _USUAL,
    "hosts": (*_USUAL, "openssh"),
    "headers": (*_GUEST, "headers"),
    "drivers": _DRIVERS,
    "nested": (*_USUAL, "virtio-vfio", "nested"),
    "compat": (*_DRIVERS, "linux-6.12", "dpdk"),
}
"""What people ask for, and its steps."""

PRESENT: Final = {
    "usual": ("qemu-system-x86_64", "vmlinux", "initramfs.cpio.gz"),
    "hosts": ("qemu-system-x86_64", "vmlinux", "initramfs.cpio.gz", *openssh.FOLDERS),
    "nested": ("qemu-system-x86_64", "vmlinux", nested.DISK.name),
}
"""Files in IMAGES that show that it was prepared."""


def prepare(what: str) -> None:
    """Prepare what `what` wants, as far as it is not there. Raises SetupError."""
    debian = Debian(qemu.SUITE)
    for name, step in STEPS.items():
        if name in WANTED[what]:
            step(debian)


def ensure(what: str) -> None:
    """Prepare it unless its files are there, whatever they were made of. Raises SetupError."""
    if not all((IMAGES / name).exists() for name in PRESENT[what]):
        with locked():
            prepare(what)
