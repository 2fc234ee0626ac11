"""Builds virtio_vfio_pci, a module that Linux has and Debian leaves out, for the kernel of the usual guest.

The source is that of Debian's linux-source, unchanged. Compiler, binutils and the programs of Kbuild are
those that the kernel's headers ask for; of the machine only make, a shell and the like.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from images import private
from images.debian import Debian, extract
from images.initramfs import ROOT as GUEST_ROOT
from images.initramfs import Kernel
from images.workspace import CACHE, SetupError, renew, say, write_file

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

    What it is built with (500 MB) is in the system's temporary folder, as Kbuild bears no blank or colon in
    the name of its own, and is gone afterwards. Raises SetupError when a package or make is missing, or when
    the build fails.
    """
    release = Kernel.of(GUEST_ROOT).modules.name

    def make() -> None:
        with tempfile.TemporaryDirectory(prefix="kernel-") as temporary:
            headers, source = Path(temporary, "headers"), Path(temporary, "source")
            _bring_headers(debian, release, headers)
            _bring_source(debian, release, source)
            say(f"building the kernel module {NAME}...")
            write_file(MODULE, _built(headers / "lib/modules" / release, source, headers / "usr/bin"))

    renew(CACHE / f".{NAME}.inputs", f"{release} {' '.join(SETTINGS)}\n", [MODULE], make)
    say(f"kernel module: {MODULE}")
    return MODULE


def _bring_headers(debian: Debian, release: str, headers: Path) -> None:
    """Leave the kernel's headers, and what builds with them, in `headers`."""
    try:
        debian.unpack([f"linux-headers-{release}", "binutils"], headers)
    except SetupError as error:
        raise SetupError(
            f"{error}\nWhere the suite has a newer kernel by now than {release}, remove {GUEST_ROOT} first."
        ) from error
    private.make_runnable(headers)


def _bring_source(debian: Debian, release: str, source: Path) -> None:
    """Leave PART of the kernel's source in `source`. Debian has no smaller package than that of all of it."""
    numbers = re.match(r"\d+\.\d+", release)
    if numbers is None:
        raise SetupError(f"the kernel's release {release} does not begin with two numbers")
    package = f"linux-source-{numbers[0]}"
    whole = source.with_name("linux")
    debian.unpack([package], whole, dependencies=False)
    say(f"extracting {PART} of {package}...")
    if not extract(whole / f"usr/src/{package}.tar.xz", PART, source):
        raise SetupError(f"{package} of {debian.suite} has no {PART}")


def _built(kernel: Path, source: Path, programs: Path) -> bytes:
    """Build the module as any that is not in the kernel's tree; its content."""
    if shutil.which("make") is None:
        raise SetupError("make is not installed; install the package make")
    output = source.with_name("output")
    output.mkdir()
    command = ["make", "-f", str(kernel / "source/Makefile"), f"KBUILD_OUTPUT={kernel / 'build'}"]
    command += [f"M={source}", f"MO={output}", *SETTINGS, "modules"]
    # Neither the machine's compiler nor the settings of a make around this one.
    environment = {"PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=output, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(
            f"the kernel module {NAME} could not be built:\n{done.stdout}{done.stderr}"
            "If it is the folder's fault, set TMPDIR to one with 500 MB of room where programs may be run, "
            "and whose name has no blank or colon; then run the command again."
        )
    return (output / f"{NAME}.ko").read_bytes()
