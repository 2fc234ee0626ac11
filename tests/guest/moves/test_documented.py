"""What README.md and docs/migrate.md have people type is run as it stands there."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from vfu_images.workspace import PROJECT

SECONDS = 120.0
END_SECONDS = 20.0

ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"}
"""As `. .venv/bin/activate` leaves it, which README.md has before the commands."""


class Terminal:
    """A command of the documents in a terminal: what it said so far, and what is typed there."""

    def __init__(self, command: str) -> None:
        self._process = subprocess.Popen(
            ["sh", "-c", command],
            cwd=PROJECT,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process, contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
            # Until all of them are gone, who remove what they have in temporary folders; it has no event.
            deadline = time.monotonic() + END_SECONDS
            while time.monotonic() < deadline:
                self._process.poll()
                os.killpg(self._process.pid, 0)
                time.sleep(0.02)
            os.killpg(self._process.pid, signal.SIGKILL)

    def expect(self, pattern: str) -> None:
        """Wait until it says that, after what was awaited before."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self.said)):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._process.stdout], [], [], max(left, 0))
            read = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            assert read, f"no {pattern!r} in:\n{self.said}"
            self.said += read.decode(errors="replace")
        self.said = self.said[found.end() :]

    def type(self, line: str) -> None:
        """A line for its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()


@pytest.fixture
def folder() -> Iterator[Path]:
    """What stands for /tmp: short, as it holds sockets."""
    with tempfile.TemporaryDirectory(prefix="doc-") as name:
        yield Path(name)


def blocks(page: str, heading: str, folder: Path) -> list[str]:
    """The commands below a heading."""
    text = (PROJECT / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert not any("..." in block for block in found)
    return [block.replace("/tmp/", f"{folder}/") for block in found]


def run(command: str) -> str:
    """A command that ends, and ends well."""
    done = subprocess.run(
        ["sh", "-ec", command],
        cwd=PROJECT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_readme(folder: Path) -> None:
    """A device, a guest with it, and the commands of the admin queue."""
    server, guest, *_ = blocks("README.md", "With your own QEMU", folder)
    with Terminal(server) as served:
        served.expect(f"ready {folder}/device")
        with Terminal(guest) as shell:
            shell.expect(r"/ # ")
            shell.type("cat /proc/partitions")
            shell.expect(r" 262144 vda")
        contexts, cards, parts = blocks("README.md", "Driving the admin queue", folder)
        moved = run(contexts.replace("vf1.ctx", f"{folder}/vf1.ctx"))
    assert "DEV_CTX_READ" in moved
    assert "DEVICE_CFG" in moved
    with Terminal(cards) as served:
        served.expect(f"ready {folder}/cards")
        moved = run(parts.replace("vf1.parts", f"{folder}/vf1.parts"))
    assert "up to 255 objects for get" in moved
    assert "VQ_NOTIFY_CFG 2" in moved


@pytest.mark.long
def test_migrate(folder: Path) -> None:
    """Two servers, two QEMUs, a guest that writes, and the move."""
    here, there, source, destination, move = blocks("docs/migrate.md", "Try it", folder)
    with Terminal(here) as a, Terminal(there) as b:
        a.expect(f"ready {folder}/vfu-a")
        b.expect(f"ready {folder}/vfu-b")
        with Terminal(source) as first, Terminal(destination) as second:
            first.expect(r"/ # ")
            first.type(
                "sh -c 'while echo $((++n)) | dd of=/dev/vda conv=sync,fsync 2>/dev/null; do :; done' &"
            )
            first.type("echo begun-$((6*7))")
            first.expect("begun-42")
            assert "the guest stood still for" in run(move)
            second.type("")
            second.type("kill %1; sync; echo moved-$((6*7))")
            second.expect("moved-42")
            second.type("dd if=/dev/vda count=1 iflag=direct 2>/dev/null | tr -d '\\0'; echo read-$((6*7))")
            second.expect(r"\n[1-9][0-9]*\r?\n.*read-42")
    assert (folder / "move.svg").stat().st_size > 0
