"""Runs programs of an unpacked Debian root through that root's own loader, on whatever system this is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vfu_images.workspace import SetupError, write_file

LOADER = "usr/lib64/ld-linux-x86-64.so.2"
LIBRARIES = "usr/lib/x86_64-linux-gnu"

MOVED = ".elf"
"""What the name of a program ends with that has a script in its place."""

SCRIPT = f"""\
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
root=$here/{{root}}
exec "$root/{LOADER}" --library-path "$root/{LIBRARIES}" --argv0 "$0" "$here/{{name}}" "$@"
"""


def command(root: Path, program: str, *arguments: str, loader: Sequence[str] = ()) -> list[str]:
    """The command line of `program`, a path below `root`. `loader` has options for the loader, as --list."""
    libraries = ["--library-path", str(root / LIBRARIES), "--argv0", Path(program).name]
    return [str(root / LOADER), *libraries, *loader, str(root / program), *arguments]


def run(root: Path, program: str, *arguments: str, given: bytes = b"", loader: Sequence[str] = ()) -> bytes:
    """Run it with `given` as its input; its output. Raises SetupError when it fails."""
    line = command(root, program, *arguments, loader=loader)
    done = subprocess.run(line, input=given, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise SetupError(f"{program} of {root} failed: {said}\nRemove that folder and run the command again.")
    return done.stdout


def make_runnable(root: Path) -> None:
    """Put a script in the place of each program of a root, which runs that program, now beside it.

    For programs that run each other, as a compiler does. What has its script already is left alone.
    """
    for path in sorted(root.rglob("*")):
        if _is_program(path):
            moved = path.with_name(path.name + MOVED)
            moved.unlink(missing_ok=True)
            moved.hardlink_to(path)
            script = SCRIPT.format(root=os.path.relpath(root, path.parent), name=moved.name)
            write_file(path, script, 0o755)


def _is_program(path: Path) -> bool:
    """Whether this is an ELF file that can be run, and neither a library nor one that was moved."""
    if path.is_symlink() or not path.is_file() or path.suffix == MOVED or ".so" in path.suffixes:
        return False
    with path.open("rb") as file:
        return bool(path.stat().st_mode & 0o100) and file.read(4) == b"\x7fELF"
