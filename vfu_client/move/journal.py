"""The journal of a move: what it is about to touch, in a file, for a recovery where the move was killed.

It stands in the move's own folder below TMPDIR, with the socket for the memory. A lock on that folder tells
whether the move still runs; it ends with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PREFIX = "vfu-migrate-"
NAME = "journal.json"
VERSION = 3
ATTEMPTS = 10


class JournalError(Exception):
    """A journal that cannot be used; the message says which, and why."""


class Journal:
    """The folder of one move, locked while this lives; `remove` it, or `close` to leave it for a recovery."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock

    @classmethod
    def begin(cls) -> Journal:
        """A new folder that only its owner may look into. Raises OSError."""
        for _ in range(ATTEMPTS):
            folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            # A recovery may find it before it is locked, and remove it.
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                begun = cls(folder, _locked(folder))
                if folder.exists():
                    return begun
                begun.close()
        raise OSError(f"{folder} and others like it were removed as soon as they were made")

    def write(self, notes: Mapping[str, Any]) -> None:
        """Replace what is noted, whole or not at all. Raises OSError."""
        fresh = self.folder / f".{NAME}"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump({"version": VERSION, **notes}, file)
        fresh.replace(self.folder / NAME)

    def read(self) -> dict[str, Any]:
        """What was noted; nothing where the move had not come so far. Raises JournalError."""
        path = self.folder / NAME
        try:
            notes = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise JournalError(f"{path}: {error}") from error
        if not isinstance(notes, dict) or notes.pop("version", None) != VERSION:
            raise JournalError(f"{path} was written by another version of vfu-migrate")
        return notes

    def remove(self) -> None:
        """Remove the folder: all is as it should be."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let go of the folder, and leave it where it is."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def abandoned() -> Iterator[Journal]:
    """Those of this user's moves that run no more, oldest first. The caller closes or removes each."""
    found = []
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            about = folder.lstat()
            private = stat.S_ISDIR(about.st_mode) and not about.st_mode & 0o077
            if private and about.st_uid == os.geteuid():
                found.append((about.st_mtime_ns, folder))
    for _, folder in sorted(found):
        try:
            lock = _locked(folder)
        except OSError:
            continue  # gone meanwhile, or of a move that runs
        yield Journal(folder, lock)


def _locked(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
