"""Runs a program of an unpacked Debian root through that root's own loader, on whatever system this is."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from images.workspace import SetupError

LOADER = "usr/lib64/ld-linux-x86-64.so.2"
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def run(root: Path, program: str, *arguments: str, given: bytes = b"", loader: Sequence[str] = ()) -> bytes:
    """Run `program`, a path below `root`, with `given` as its input; its output.

    `loader` has further options for the loader, such as --list. Raises SetupError when the program fails.
    """
    command = [str(root / LOADER), "--library-path", str(root / LIBRARIES), "--argv0", Path(program).name]
    done = subprocess.run(
        [*command, *loader, str(root / program), *arguments], input=given, capture_output=True, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise SetupError(f"{program} of {root} failed: {said}\nRemove that folder and run the command again.")
    return done.stdout
