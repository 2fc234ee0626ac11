"""Runs a program of an unpacked Debian root through that root's own loader, on whatever system this is."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from images.workspace import SetupError

LOADER = "usr/lib64/ld-linux-x86-64.so.2"
LIBRARIES = "usr/lib/x86_64-linux-gnu"


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
