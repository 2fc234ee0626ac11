"""Brings the source of libvfio-user, which no registry has as a package, and the json-c that it is linked with."""

from __future__ import annotations

from pathlib import Path

from images.debian import Debian
from images.sources import own_release
from images.workspace import CACHE, PROJECT, replacing, say, write_file

SOURCE = PROJECT / "subprojects" / "libvfio-user"
BUILD_FILES = PROJECT / "subprojects" / "packagefiles" / "libvfio-user"
DEV = CACHE / "dev"
ORIGIN = ".origin"
"""File in SOURCE that says which suite and archive it came from."""


def prepare(suite: str | None = None) -> None:
    """Leave the library's source with our build files at SOURCE, and json-c's headers and static library below DEV.

    The source is that inside Debian's source package `qemu` of `suite`, by default of the machine's own release.
    Raises SetupError; what was there before then stays.
    """
    suite = suite or own_release()
    debian = Debian(suite)
    origin = SOURCE / ORIGIN
    if not origin.is_file() or origin.read_text().split()[0] != suite:
        _bring(debian)
    if BUILD_FILES.is_dir():
        for path in sorted(BUILD_FILES.rglob("*")):
            if path.is_file():
                write_file(SOURCE / path.relative_to(BUILD_FILES), path.read_bytes())
    # Always of the machine's own release: a static library is linked with the machine's own C library.
    own = debian if suite == own_release() else Debian(own_release())
    own.unpack(["libjson-c-dev"], DEV, dependencies=False)
    say(f"libvfio-user: {_shown(SOURCE)} ({origin.read_text().strip()}), json-c: {_shown(DEV)}")


def _bring(debian: Debian) -> None:
    with replacing(SOURCE) as fresh:
        tree = fresh / "tree"
        archive = debian.unpack_source("qemu", "subprojects/libvfio-user", tree)
        for path in tree.iterdir():
            path.rename(fresh / path.name)
        tree.rmdir()
        (fresh / ORIGIN).write_text(f"{debian.suite} {archive}\n")


def _shown(path: Path) -> str:
    return str(path.relative_to(PROJECT))
