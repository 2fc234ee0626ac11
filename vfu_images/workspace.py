"""Where things are built, and how a build is kept whole: one lock, and folders that appear complete or not at
all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent

PROJECT = PACKAGE.parent
"""The project's folder, where this is not installed."""

INSTALLED = not (PROJECT / "meson.build").is_file()

BUILD = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vfu-virtio"
    if INSTALLED
    else PROJECT / "build"
)
"""What is made: in the user's cache folder, or that of the project."""

CACHE = BUILD / "cache"
IMAGES = BUILD / "images"

GUEST_SOURCES = PACKAGE / "guest" if INSTALLED else PROJECT / "images" / "guest"
"""Programs of the guest."""

COMMAND = "vfu-images" if INSTALLED else "python3 -m images"
"""What people type to have something made."""


def shown(path: Path) -> str:
    """A path for people: within the project's folder, if it is there."""
    return str(path.relative_to(PROJECT)) if not INSTALLED and path.is_relative_to(PROJECT) else str(path)


class SetupError(Exception):
    """Something outside the project stands in the way; the message says what to do next."""


def say(text: str) -> None:
    """Print a progress line for people, on stderr."""
    print(f"images: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(build: Path = BUILD) -> Iterator[None]:
    """Hold the build lock; a second process waits here, and says so. A process that dies frees it."""
    build.mkdir(parents=True, exist_ok=True)
    with (build / ".images.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is running, waiting for it to finish")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty sibling to fill; it takes `folder`'s place at the end, or is removed when the body fails.

    What an interrupted build left in the sibling is removed first, so nothing half-made is ever taken for
    finished.
    """
    fresh = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def write_file(path: Path, content: bytes | str, mode: int = 0o644) -> bool:
    """Write a file whole or not at all; false when it already had this content and mode, and keeps its
    timestamp.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.stat().st_mode & 0o777 == mode and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(data)
    fresh.chmod(mode)
    fresh.replace(path)
    return True


def renew(stamp: Path, inputs: str, products: Iterable[Path], make: Callable[[], object]) -> None:
    """Call `make`, which leaves `products`, unless they are there and were made of the same `inputs`.

    `stamp` keeps what they were made of; it is gone while they are made.
    """
    if stamp.is_file() and stamp.read_text() == inputs and all(product.is_file() for product in products):
        return
    stamp.unlink(missing_ok=True)
    make()
    write_file(stamp, inputs)
