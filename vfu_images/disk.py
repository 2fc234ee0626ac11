"""Makes a disk that a PC boots from: GRUB, and an ext4 partition with a kernel and what the initramfs has."""

from __future__ import annotations

import gzip
import hashlib
import struct
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from vfu_images import private
from vfu_images.cpio import Archive
from vfu_images.debian import Debian
from vfu_images.initramfs import ROOT as GUEST_ROOT
from vfu_images.machine import KERNEL_ARGUMENTS
from vfu_images.workspace import CACHE, IMAGES, renew, say

ROOT = CACHE / "grub"
PACKAGES = ("grub-common", "grub-pc-bin")
GRUB = "usr/lib/grub/i386-pc"
MODULES = ("biosdisk", "part_msdos", "ext2", "linux")

SIZE = 96 << 20
SECTOR = 512
PARTITION_SECTOR = 2048
"""First sector of the partition; GRUB's core has the room between the boot sector and it."""

TABLE = slice(446, 510)
"""The partition table in a boot sector: four entries of 16 bytes."""

ACTIVE, LINUX = 0x80, 0x83
BEYOND_CHS = b"\xfe\xff\xff"
"""In an entry's places for cylinder, head and sector: look at the sector numbers instead."""

CONFIGURATION = f"""\
linux (hd0,msdos1)/boot/vmlinuz {KERNEL_ARGUMENTS} root=/dev/vda1
initrd (hd0,msdos1)/boot/initramfs
boot
"""

NEEDED_TO_MOUNT = ("init", "modules/", "usr/lib/modules/", "dev/console")
"""What the disk's own initramfs has; the firmware reads slowly."""


def prepare(debian: Debian) -> None:
    """Leave disk.img in build/images; made anew only if kernel, initramfs or GRUB changed.

    /dev/vda1 of it can be a guest's root (`root=/dev/vda1`), and SeaBIOS boots it. Raises SetupError when a
    package is missing.
    """
    debian.unpack(PACKAGES, ROOT)
    image = IMAGES / "disk.img"
    sources = (IMAGES / "vmlinuz", IMAGES / "initramfs.cpio.gz", ROOT / ".contents", Path(__file__))
    renew_disk(image, sources, _made, "building the disk...")
    say(f"disk: {image}")


def renew_disk(image: Path, sources: Iterable[Path], made: Callable[[Path], Path], announcement: str) -> None:
    """Leave a disk in build/images; made anew only if the content of one of `sources` changed.

    `made` makes it in a folder that is its own for the time, and returns where.
    """
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())

    def make() -> None:
        say(announcement)
        with tempfile.TemporaryDirectory(dir=IMAGES) as temporary:
            made(Path(temporary)).replace(image)

    renew(stamp_of(image), digest.hexdigest() + "\n", [image], make)


def stamp_of(image: Path) -> Path:
    """The file that says what a disk was made of."""
    return image.with_name(f".{image.stem}.inputs")


def _made(folder: Path) -> Path:
    """A new disk in this folder."""
    archive = Archive.decode(gzip.decompress((IMAGES / "initramfs.cpio.gz").read_bytes()))
    tree = folder / "tree"
    archive.unpack(tree)
    (tree / "boot").mkdir()
    (tree / "boot/vmlinuz").write_bytes((IMAGES / "vmlinuz").read_bytes())
    small = archive.only(NEEDED_TO_MOUNT)
    for name in ("dev", "proc", "sys", "run", "tmp"):
        small.folder(name)
    (tree / "boot/initramfs").write_bytes(small.encode())
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    start = PARTITION_SECTOR * SECTOR
    private.run(
        GUEST_ROOT, "usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", str(tree),
        "-E", f"offset={start},root_owner=0:0", str(image), f"{(SIZE - start) >> 10}k",
    )  # fmt: skip
    with image.open("r+b") as file:
        file.write(_boot_sector() + _core(folder))
    return image


def _boot_sector() -> bytes:
    """GRUB's own, which loads what begins in the next sector, with our partition table."""
    sector = bytearray((ROOT / GRUB / "boot.img").read_bytes())
    length = SIZE // SECTOR - PARTITION_SECTOR
    entry = struct.pack("<B3sB3sII", ACTIVE, BEYOND_CHS, LINUX, BEYOND_CHS, PARTITION_SECTOR, length)
    sector[TABLE] = entry.ljust(64, b"\0")
    return bytes(sector)


def _core(folder: Path) -> bytes:
    """GRUB with the modules it needs and what it is to do."""
    script, core = folder / "grub.cfg", folder / "core.img"
    script.write_text(CONFIGURATION)
    private.run(
        ROOT, "usr/bin/grub-mkimage", "-d", str(ROOT / GRUB), "-O", "i386-pc", "-p", "/",
        "-c", str(script), "-o", str(core), *MODULES,
    )  # fmt: skip
    content = core.read_bytes()
    assert len(content) <= (PARTITION_SECTOR - 1) * SECTOR
    return content
