"""The processes that are measured. Each ends with its context, or with the benchmark, however that ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.measure import BenchError
from vfu_images import program
from vfu_images.workspace import BUILD, PROJECT

BUILT = BUILD / "ext" / "bench"
"""Where programs of ours are that only benchmarks need."""

SAMPLE = BUILT / "mmio-sample"
STOP_SECONDS = 5.0


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is removed at the end; its name is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Processor time that all threads of a process have had until now, those that ended among them."""
    clock = ctypes.c_int()
    error = ctypes.CDLL(None).clock_getcpuclockid(process.pid, ctypes.byref(clock))
    if error:
        raise BenchError(f"the processor time of process {process.pid}: {os.strerror(error)}")
    return time.clock_gettime(clock.value)


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
    command: Sequence[str], log: Path, *, ready: str = "ready", within: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is ready, as `vfu_images.program.start` says. Raises BenchError."""
    try:
        process = program.start(command, log, ready=ready, within=within)
    except program.NotReadyError as error:
        raise BenchError(f"{' '.join(command)} did not start:\n{error}") from error
    try:
        yield process
    finally:
        program.end(process, STOP_SECONDS)
