"""Makes QEMUs with vfio-user-pci ready to be run: the machine's own where it is new enough, else a private
one.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vfu_images.debian import Debian
from vfu_images.workspace import CACHE, IMAGES, SetupError, say, write_file

SUITE = "trixie-backports"
"""Oldest Debian suite whose QEMU has vfio-user-pci (from 10.1 on)."""

ROOT = CACHE / "qemu"
PACKAGES = ("qemu-system-x86", "qemu-utils")
SYSTEM = "qemu-system-x86_64"
TOOLS = ("qemu-storage-daemon", "qemu-img")

ARM_ROOT = CACHE / "qemu-arm"
ARM_PACKAGES = ("qemu-system-arm",)
ARM = "qemu-system-aarch64"

# Runs a program of the private root through that root's own loader, from whatever folder the tree was moved
# to.
PRIVATE = """\
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
root=$here/../{root}
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
exec "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" \\
    --argv0 {name} "$root/usr/bin/{name}"{options} "$@"
"""
HOST = """\
#!/bin/sh
exec {path} "$@"
"""


def prepare(debian: Debian) -> None:
    """Leave executables `qemu-system-x86_64`, `qemu-storage-daemon` and `qemu-img` in build/images.

    Raises SetupError when neither the machine nor its Debian mirror has a QEMU that is new enough.
    """
    _prepare(debian, SYSTEM, TOOLS, PACKAGES, ROOT)


def prepare_arm(debian: Debian) -> None:
    """Leave the executable `qemu-system-aarch64` in build/images. Raises SetupError as `prepare`."""
    _prepare(debian, ARM, (), ARM_PACKAGES, ARM_ROOT)


def _prepare(debian: Debian, system: str, tools: Sequence[str], packages: Sequence[str], root: Path) -> None:
    own = shutil.which(system)
    if own and has_vfio_user(Path(own)):
        write_file(IMAGES / system, HOST.format(path=own), 0o755)
        for name in tools:
            path = shutil.which(name)
            if path:
                write_file(IMAGES / name, HOST.format(path=path), 0o755)
            else:
                (IMAGES / name).unlink(missing_ok=True)
        say(f"QEMU: the machine's own, {own}")
        return
    try:
        debian.unpack(packages, root)
    except SetupError as error:
        raise SetupError(
            f"{error}\nInstead, install QEMU 10.1 or newer and have it on PATH "
            f"(check: `{system} -device vfio-user-pci,help`)."
        ) from error
    for name in (system, *tools):
        script = wrapper(name, root.relative_to(IMAGES.parent))
        if write_file(IMAGES / name, script, 0o755) and name == system and not has_vfio_user(IMAGES / name):
            (IMAGES / name).unlink()
            raise SetupError(
                f"the private QEMU in {root} does not run; remove that folder and run the command again"
            )
    say(f"QEMU: a private one of Debian {debian.suite}, {IMAGES / system}")


def wrapper(name: str, root: Path) -> str:
    """A script that runs a program of an unpacked root, whose path begins at the folder above the script."""
    options = ' -L "$root/usr/share/qemu" -L "$root/usr/share/seabios"' if name in (SYSTEM, ARM) else ""
    return PRIVATE.format(root=root, name=name, options=options)


def has_vfio_user(qemu: Path) -> bool:
    """Whether this QEMU runs and knows the device vfio-user-pci."""
    try:
        done = subprocess.run(
            [qemu, "-device", "vfio-user-pci,help"], capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
