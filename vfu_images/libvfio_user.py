"""Brings the sources of libvfio-user, which no registry has as a package, and of json-c, which it needs."""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path

from vfu_images.debian import Debian, extract
from vfu_images.sources import own_release
from vfu_images.workspace import COMMAND, PROJECT, SetupError, replacing, say, shown, write_file

SOURCE = PROJECT / "subprojects" / "libvfio-user"
BUILD_FILES = PROJECT / "subprojects" / "packagefiles"
JSON_C = PROJECT / "subprojects" / "json-c"
HEADER = "include/libvfio-user.h"
ORIGIN = ".origin"
"""File beside a source that says which suite and archive, or which folder, it came from."""


def prepare(suite: str | None = None, folder: Path | None = None, archive: Path | None = None) -> None:
    """Leave the sources of the library and of json-c, with our build files, at SOURCE and JSON_C.

    The source is a copy of `folder`, or of the first one in the tar file `archive`, if one of them is given,
    else that inside Debian's source package `qemu` of `suite`. Without any, a source that is there is kept,
    and else that of the machine's own release comes. Raises SetupError; what was there before then stays.
    """
    own = Debian(own_release())
    origin = SOURCE / ORIGIN
    present = origin.read_text().split()[0] if origin.is_file() else None
    if folder is not None:
        _copy(folder.resolve())
    elif archive is not None:
        _unpack(archive.resolve())
    elif present is None or (suite is not None and suite != present):
        _download(own if suite in {None, own.suite} else Debian(str(suite)))
    json_c = JSON_C / ORIGIN
    if not json_c.is_file():
        _fetch(own, "json-c", "", JSON_C)
    for source in (SOURCE, JSON_C):
        write_file(source / "meson.build", (BUILD_FILES / source.name / "meson.build").read_bytes())
    say(f"libvfio-user: {shown(SOURCE)} ({origin.read_text().strip()})")
    say(f"json-c: {shown(JSON_C)} ({json_c.read_text().strip()})")


def _copy(folder: Path) -> None:
    if not (folder / HEADER).is_file():
        raise SetupError(f"{folder} is not libvfio-user's source: it has no {HEADER}")
    with replacing(SOURCE) as fresh:
        shutil.copytree(
            folder,
            fresh,
            dirs_exist_ok=True,
            symlinks=True,
            ignore=shutil.ignore_patterns(".git", ".stamp", "build"),
        )
        (fresh / ORIGIN).write_text(f"folder {folder}\n")


def _unpack(archive: Path) -> None:
    try:
        with tarfile.open(archive) as tar, replacing(SOURCE) as fresh:
            top = next((name.removesuffix(HEADER) for name in tar.getnames() if name.endswith(HEADER)), None)
            if top is None:
                raise SetupError(f"{archive} has no source of libvfio-user: there is no {HEADER} in it")
            extract(tar, re.compile(re.escape(top)), fresh)
            (fresh / ORIGIN).write_text(f"archive {archive.name}\n")
    except (OSError, tarfile.TarError) as error:
        raise SetupError(f"{archive} can't be unpacked: {error}") from error


def _download(debian: Debian) -> None:
    try:
        _fetch(debian, "qemu", "subprojects/libvfio-user", SOURCE)
    except SetupError as error:
        raise SetupError(
            f"{error}\nTake that of another Debian suite, or a copy that you have:"
            f" `{COMMAND} libvfio-user --suite SUITE`, or the same with --folder FOLDER or --archive FILE."
        ) from error


def _fetch(debian: Debian, package: str, part: str, source: Path) -> None:
    """Put a part of a source package, or all of it, into a folder."""
    with replacing(source) as fresh:
        tree = fresh / "tree"
        archive = debian.unpack_source(package, part, tree)
        for path in tree.iterdir():
            path.rename(fresh / path.name)
        tree.rmdir()
        (fresh / ORIGIN).write_text(f"{debian.suite} {archive}\n")
