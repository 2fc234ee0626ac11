"""Brings firmware and boot loaders that have virtio drivers, and makes a disk that UEFI boots from."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from vfu_images import private
from vfu_images.debian import CONTENTS, Debian
from vfu_images.disk import BEYOND_CHS, CONFIGURATION, SECTOR, TABLE, renew_disk, stamp_of
from vfu_images.disk import ROOT as GRUB_ROOT
from vfu_images.initramfs import ROOT as GUEST_ROOT
from vfu_images.workspace import CACHE, IMAGES, say

ROOT = CACHE / "firmware"
PACKAGES = (
    "ipxe",
    "ipxe-qemu",
    "u-boot-qemu",
    "ovmf",
    "grub-efi-amd64-bin",
    "grub-efi-amd64-unsigned",
    "mtools",
)

IPXE = ROOT / "usr/lib/ipxe/ipxe.lkrn"
"""iPXE for a PC's BIOS, in the form of a Linux kernel."""

IPXE_EFI = ROOT / "usr/lib/ipxe/ipxe-amd64.efi"
"""The same for UEFI."""

IPXE_EFI_ROM = ROOT / "usr/share/qemu/efi-virtio.rom"
U_BOOT = ROOT / "usr/lib/u-boot/qemu-x86/u-boot.rom"
OVMF = ROOT / "usr/share/ovmf/OVMF.fd"
"""UEFI of EDK II; these two take the place of the BIOS."""

GRUB = ROOT / "usr/lib/grub/x86_64-efi"
MODULES = ("part_msdos", "ext2", "linux")

SYSTEM = 0xEF
"""Type of the partition in which UEFI looks for boot loaders."""

PARTITION_SIZE = 4 << 20


def prepare(debian: Debian) -> None:
    """Leave the firmware in ROOT and disk-efi.img in build/images. `disk.prepare` goes before.

    It is disk.img with a second partition, a FAT with GRUB in it, which starts what is in the first. Raises
    SetupError when a package is missing.
    """
    debian.unpack(PACKAGES, ROOT, dependencies=False)
    image = IMAGES / "disk-efi.img"
    sources = (stamp_of(IMAGES / "disk.img"), ROOT / CONTENTS, Path(__file__))
    renew_disk(image, sources, _made, "building the disk for UEFI...")
    say(f"firmware: {ROOT}, disk for UEFI: {image}")


def _made(folder: Path) -> Path:
    """A new disk in this folder."""
    image = folder / "disk-efi.img"
    shutil.copyfile(IMAGES / "disk.img", image)
    start = image.stat().st_size // SECTOR
    entry = struct.pack("<B3sB3sII", 0, BEYOND_CHS, SYSTEM, BEYOND_CHS, start, PARTITION_SIZE // SECTOR)
    with image.open("r+b") as file:
        file.seek(TABLE.start + len(entry))
        file.write(entry)
        file.seek(0, 2)
        file.write(_system_partition(folder))
    return image


def _system_partition(folder: Path) -> bytes:
    """A FAT with GRUB where UEFI looks on a disk that it does not know ("Removable Media Boot Behavior")."""
    script, loader, partition = folder / "grub.cfg", folder / "grub.efi", folder / "partition"
    script.write_text(f"set root=hd0,msdos1\n{CONFIGURATION}")
    private.run(
        GRUB_ROOT, "usr/bin/grub-mkimage", "-d", str(GRUB), "-O", "x86_64-efi", "-p", "/",
        "-c", str(script), "-o", str(loader), *MODULES,
    )  # fmt: skip
    with partition.open("wb") as file:
        file.truncate(PARTITION_SIZE)
    _mtools("mformat", "-i", str(partition), "-v", "EFI", "::")
    _mtools("mmd", "-i", str(partition), "::/EFI", "::/EFI/BOOT")
    _mtools("mcopy", "-i", str(partition), str(loader), "::/EFI/BOOT/BOOTX64.EFI")
    return partition.read_bytes()


def _mtools(*command: str) -> None:
    """Run one of mtools. They need nothing but the C library, which is taken from the guest's root."""
    private.run(GUEST_ROOT, str(ROOT / "usr/bin/mtools"), "-c", *command)
