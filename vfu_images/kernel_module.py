"""Builds virtio_vfio_pci, a module that Linux has and Debian leaves out, for the kernel of the usual guest.

The source is that of Debian's linux-source, unchanged; `kernel_headers` has what builds it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from vfu_images import kernel_headers
from vfu_images.debian import Debian, extract_part
from vfu_images.initramfs import ROOT as GUEST_ROOT
from vfu_images.initramfs import Kernel
from vfu_images.workspace import CACHE, SetupError, renew, say, write_file

NAME = "virtio-vfio-pci"
MODULE = CACHE / f"{NAME}.ko"
PART = "drivers/vfio/pci/virtio"
"""The module's folder in Linux's source."""

SETTINGS = (
    "CONFIG_VIRTIO_VFIO_PCI=m",
    "CONFIG_VIRTIO_VFIO_PCI_ADMIN_LEGACY=y",
    "KCFLAGS=-DCONFIG_VIRTIO_VFIO_PCI_ADMIN_LEGACY",
    "CONFIG_DEBUG_INFO=",
    "CONFIG_DEBUG_INFO_BTF_MODULES=",
)
"""The module's own options of Kconfig, for make and for the compiler; and no debugging information."""


def prepare(debian: Debian) -> Path:
    """Leave MODULE and return it; made anew only if the kernel or a setting changed. `initramfs.prepare` goes
    before.

    Raises SetupError when a package or make is missing, or when the build fails.
    """
    release = Kernel.of(GUEST_ROOT).modules.name

    def make() -> None:
        with tempfile.TemporaryDirectory(prefix="kernel-") as temporary:
            source = Path(temporary, "source")
            kernel_headers.prepare(debian)
            _bring_source(debian, release, source)
            say(f"building the kernel module {NAME}...")
            write_file(MODULE, _built(_usable(kernel_headers.HEADERS, Path(temporary)), source))

    renew(CACHE / f".{NAME}.inputs", f"{release} {' '.join(SETTINGS)}\n", [MODULE], make)
    say(f"kernel module: {MODULE}")
    return MODULE


def _usable(headers: Path, temporary: Path) -> Path:
    """The headers, or a copy of them: Kbuild bears no blank or colon in the name of its own folder."""
    if not re.search(r"[\s:]", str(headers)):
        return headers
    return Path(shutil.copytree(headers, temporary / "headers", symlinks=True))


def _bring_source(debian: Debian, release: str, source: Path) -> None:
    """Leave PART of the kernel's source in `source`. Debian has no smaller package than that of all of it."""
    numbers = re.match(r"\d+\.\d+", release)
    if numbers is None:
        raise SetupError(f"the kernel's release {release} does not begin with two numbers")
    package = f"linux-source-{numbers[0]}"
    whole = source.with_name("linux")
    debian.unpack([package], whole, dependencies=False)
    say(f"extracting {PART} of {package}...")
    if not extract_part(whole / f"usr/src/{package}.tar.xz", PART, source):
        raise SetupError(f"{package} of {debian.suite} has no {PART}")


def _built(headers: Path, source: Path) -> bytes:
    """Build the module as any that is not in the kernel's tree; its content."""
    output = source.with_name("output")
    output.mkdir()
    command = [str(headers / kernel_headers.KBUILD), f"M={source}", f"MO={output}", *SETTINGS, "modules"]
    done = subprocess.run(command, cwd=output, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(
            f"the kernel module {NAME} could not be built:\n{done.stdout}{done.stderr}"
            "If it is the folder's fault, set TMPDIR to one with 500 MB of room where programs may be run, "
            "and whose name has no blank or colon; then run the command again."
        )
    return (output / f"{NAME}.ko").read_bytes()
