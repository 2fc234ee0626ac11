"""Guests that differ from the usual one: an older kernel, one module more, or DPDK beside its programs.

Each is a folder below build/images that `Machine` takes as `images`. Its initramfs is the usual one with an
archive behind it, whose files win. `initramfs.prepare` goes before.
"""

from __future__ import annotations

from pathlib import Path

from vfu_images import kernel_module, private
from vfu_images.cpio import Archive
from vfu_images.debian import Debian
from vfu_images.initramfs import KERNEL, ROOT, Kernel, add_dynamic, add_modules, unpacked, wrapped
from vfu_images.workspace import CACHE, IMAGES, say, write_file

OLDER = {"6.1": "bookworm", "6.12": "trixie"}
"""Version of an older kernel, and the Debian release that has it."""

VIRTIO_VFIO = IMAGES / "virtio-vfio"
"""The guest that has the module virtio_vfio_pci, for modprobe."""

DPDK = IMAGES / "dpdk"
TESTPMD = "usr/bin/dpdk-testpmd"
DPDK_DRIVERS = ("librte_mempool_ring.so.25", "librte_net_virtio.so.25")
"""What testpmd is to load by `-d`. They are not where it looks for more: it would find some of them twice."""

LOADED_LATE = "libgcc_s.so.1"
"""What the C library loads when a thread is cancelled."""


def linux(version: str) -> Path:
    """The folder of the guest with a kernel of OLDER."""
    return IMAGES / f"linux-{version}"


def prepare_linux(version: str) -> None:
    """Leave the guest with a kernel of OLDER. Raises SetupError when it is not to be had."""
    root = CACHE / f"linux-{version}"
    Debian(OLDER[version]).unpack([KERNEL], root)
    kernel = Kernel.of(root)
    more = Archive()
    add_modules(more, kernel)
    _make(linux(version), more, unpacked(kernel.image.read_bytes()))


def prepare_virtio_vfio(debian: Debian) -> None:
    """Leave the guest with virtio_vfio_pci. Raises SetupError."""
    more = Archive()
    add_modules(more, Kernel.of(ROOT), [kernel_module.prepare(debian)])
    _make(VIRTIO_VFIO, more)


def prepare_dpdk(debian: Debian) -> None:
    """Leave the guest with DPDK's testpmd and its virtio driver. Raises SetupError."""
    root = CACHE / "dpdk"
    debian.unpack(["dpdk-dev"], root)
    more = Archive()
    for path in (TESTPMD, *(f"{private.LIBRARIES}/{name}" for name in (*DPDK_DRIVERS, LOADED_LATE))):
        add_dynamic(more, root, path)
    more.link("var/run", "/run")
    _make(DPDK, more)


def _make(folder: Path, more: Archive, kernel: bytes | None = None) -> None:
    """Fill a folder; without a kernel of its own it has the usual one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("qemu-system-x86_64", *([] if kernel else ["vmlinux"])):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"../{name}")
    if kernel:
        write_file(folder / "vmlinux", kernel)
    usual = (IMAGES / "initramfs.cpio.gz").read_bytes()
    write_file(folder / "initramfs.cpio.gz", usual + wrapped(more))
    say(f"guest: {folder}")
