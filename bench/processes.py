"""The processes that are measured. Each ends with its context, or with the benchmark, however that ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.measure import BenchError
from images.machine import DIE_WITH_PARENT
from images.workspace import BUILD, PROJECT

SAMPLE = BUILD / "ext" / "bench" / "mmio-sample"
START_SECONDS = 20.0
STOP_SECONDS = 5.0

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """End this process by SIGTERM when the one that started it ends (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is removed at the end; its name is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_disk(path: Path, size: int) -> Path:
    """A raw image without holes, so that both sides find every block allocated."""
    block = bytes(range(256)) * 4096
    with path.open("wb") as image:
        for _ in range(size // len(block)):
            image.write(block)
    return path


@contextlib.contextmanager
def on_processor(number: int) -> Iterator[None]:
    """Keep this thread, and for their whole life the processes that it starts meanwhile, on one processor.

    Counts those that this thread may use, and begins anew where there are fewer.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(allowed)[number % len(allowed)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextlib.contextmanager
def server(
    folder: Path, *options: str, device: str = "blk", within: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A vfu-server with its sockets in `folder`, ready. `within` is a command that runs it elsewhere."""
    command = [sys.executable, "-m", "vfu_server", "--socket-dir", str(folder), "--device", device]
    command += ["--log-level", "warning", *options]
    with running(command, folder.with_name(f"{folder.name}.log"), within=within) as process:
        yield process


def vfio_user(socket: Path) -> dict[str, Any]:
    """The QEMU device for a function at `socket`."""
    return {"driver": "vfio-user-pci", "id": "ours", "socket": {"type": "unix", "path": str(socket)}}


@contextlib.contextmanager
def sample(socket: Path) -> Iterator[None]:
    """The C server, listening."""
    if not SAMPLE.exists():
        raise BenchError(f"{SAMPLE.relative_to(PROJECT)} is missing: `make bench` builds it")
    with running([str(SAMPLE), str(socket)], socket.with_suffix(".log")):
        yield


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, *, ready: bytes = b"ready", within: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has written a line which begins with `ready`; what it says on stderr is in `log`.

    `within` is a command that takes another one and becomes it. Raises BenchError.
    """
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*within, *DIE_WITH_PARENT, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=PROJECT,
        )
    try:
        assert process.stdout is not None
        said, _, _ = select.select([process.stdout], [], [], START_SECONDS)
        if not said or not process.stdout.readline().startswith(ready):
            raise BenchError(f"{' '.join(command)} did not start:\n{log.read_text(errors='replace')}")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
