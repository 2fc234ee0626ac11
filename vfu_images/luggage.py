"""What a guest gets beside its initramfs: modules, a script, a folder. An archive that goes behind it."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vfu_images.cpio import Archive
from vfu_images.initramfs import wrapped
from vfu_images.workspace import SetupError

PLACE = "/boot"
SCRIPT = f"{PLACE}/script"
SHARE = "/share"

ON_ENTRY = f"{PLACE}/on-entry"
"""Loads the modules when a person's first shell begins: the variable ENV names it to the shell."""


@dataclass(frozen=True)
class Luggage:
    """Files of this machine that a guest finds in PLACE, and a folder that it finds, copied, as SHARE."""

    modules: Sequence[Path] = ()
    script: Path | None = None
    share: Path | None = None

    @property
    def loads(self) -> list[str]:
        """The commands that load the modules in the guest."""
        return [f"insmod {shlex.quote(f'{PLACE}/{path.name}')}" for path in self.modules]

    def packed(self, room: int) -> bytes:
        """All of it as an archive for a kernel. Raises SetupError where a file can't be read, or where all
        is larger than `room` bytes.
        """
        archive = Archive()
        try:
            for path in self.modules:
                archive.file(f"{PLACE}/{path.name}", path.read_bytes())
            if self.script:
                archive.file(SCRIPT, self.script.read_bytes(), 0o755)
            if self.share:
                _add_folder(archive, self.share, room)
        except OSError as error:
            raise SetupError(f"{error.filename}: {error.strerror}") from error
        once = "; ".join(["[ -e /run/entered ] || { : > /run/entered", *self.loads, "}"])
        archive.file(ON_ENTRY, f"{once}\n".encode())
        encoded = wrapped(archive)
        if len(encoded) > room:
            raise _too_large()
        return encoded


def _add_folder(archive: Archive, folder: Path, room: int) -> None:
    """Add folders, files and links; what else there is, such as sockets, is left out."""
    archive.folder(SHARE)
    for above, folders, files in os.walk(folder, onerror=_refuse):
        place = Path(SHARE, os.path.relpath(above, folder))
        for name in (*folders, *files):
            path = Path(above, name)
            kind = path.lstat().st_mode
            if stat.S_ISLNK(kind):
                archive.link(str(place / name), os.readlink(path))
            elif stat.S_ISDIR(kind):
                archive.folder(str(place / name))
            elif stat.S_ISREG(kind):
                # Before it is read: it may be a disk image.
                room -= path.stat().st_size
                if room < 0:
                    raise _too_large()
                archive.file(str(place / name), path.read_bytes(), stat.S_IMODE(kind))


def _refuse(error: OSError) -> None:
    raise error


def _too_large() -> SetupError:
    return SetupError(
        "what goes into the guest is larger than a quarter of its memory: share less, or give it more"
        " with --memory"
    )
