"""The command `vfu-server`: options in, sockets out."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__" or sys.argv[0].endswith("vfu-server"):
    # Until there is something to clean up, Ctrl-C ends the program at once, and without a traceback of
    # whatever is being imported. Where SIGINT is ignored, as behind `&` in a script, it stays so. The command
    # that `make` puts into .venv/bin holds the signal until here.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

import argparse
import io
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from pymodel import build
from pymodel.pci.function import Delays
from pymodel.rules.breaches import Breaches
from vfu_server import budget, config_file, service_manager
from vfu_server.bounded_log import BoundedHandler
from vfu_server.disks.options import choose_disks, open_disks
from vfu_server.function_option import chosen
from vfu_server.function_thread import TRACE
from vfu_server.log_format import FORMATS
from vfu_server.monitor.monitor import SOCKET_NAME, Monitor
from vfu_server.networks.networks import Networks
from vfu_server.networks.options import NetOptions
from vfu_server.options import parse, wrong
from vfu_server.server import Folder, FolderTakenError, Server, StopSignals
from vfu_server.vfio._vfu import keep_freed_memory
from vfu_server.vfio.turn_lock import TurnLock
from vfu_server.watch.watching import Watching

KEPT_MEMORY: Final = 256 << 20
"""Bytes of freed memory that the process keeps for itself."""

STACK_BYTES: Final = 1 << 20
"""Of addresses for the stack of each thread, which touches 8 KiB of them. Less than a huge page."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP.

    Returns the exit status: 0 after a signal or `quit`, 1 where something is not to be had. Raises SystemExit
    as `options.parse` does.
    """
    _keep_no_errors()
    descriptors = budget.raise_descriptor_limit()
    options = parse(arguments)
    names = ["pf", *(f"vf{number}" for number in range(1, options.total_vfs + 1))]
    networks: Networks | None = None
    backends: Mapping[str, Any] = {}
    try:
        if options.device == "net":
            networks = Networks(_net_options(options), names)
            chosen(dict.fromkeys(names, Path()), options.pcap)
        elif options.device == "blk":
            disks = choose_disks(options.disk, names)
    except ValueError as error:
        wrong(f"{'--net' if options.device == 'net' else '--disk'}: {error}")
    if options.print_config:
        print(config_file.text(options.as_file), end="")
        return 0
    if options.device == "blk":
        try:
            backends = open_disks(disks)
        except (OSError, ValueError, MemoryError) as error:
            return _failed("--disk", error)
    logging.addLevelName(TRACE, "TRACE")
    handler = BoundedHandler(sys.stderr)
    handler.setFormatter(FORMATS[options.log_format]())
    logging.basicConfig(level=options.log_level.upper(), handlers=[handler])
    # What a written context is copied into is as large as a disk's chunks, and page faults on fresh memory
    # would cost more than the copy.
    keep_freed_memory(KEPT_MEMORY)
    # Each function has a thread. Where all memory gets huge pages, one of Python's own 8 MiB would take 2.
    threading.stack_size(STACK_BYTES)
    # A thread that wakes takes the interpreter from one that computes after this long, each time that it
    # comes back from the library: Python's own 5 ms would add up for a function beside a busy one.
    sys.setswitchinterval(0.0005)
    with ExitStack() as opened:
        # From here on there are sockets to remove.
        stop = opened.enter_context(StopSignals())
        try:
            folder = Folder(options.socket_dir)
        except ValueError as error:
            wrong(f"--socket-dir: {error}")
        except (OSError, FolderTakenError) as error:
            return _failed("--socket-dir", error)
        opened.callback(folder.close)
        if networks is None:
            return _serve(options, backends, None, names, folder, stop, descriptors)
        try:
            networks.open()
        except (OSError, MemoryError) as error:
            return _failed("--net", error)
        opened.callback(networks.close)
        return _serve(options, networks.backends, networks, names, folder, stop, descriptors)


def _keep_no_errors() -> None:
    """Have standard error keep no text that it could not write.

    Python would try once more when the program ends, and make 120 of its status. As with PYTHONUNBUFFERED.
    """
    kept = sys.__stderr__
    if kept is not None and sys.stderr is kept:
        raw = io.FileIO(kept.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(raw, kept.encoding, kept.errors, write_through=True)


def _failed(what: str, error: Exception) -> int:
    """Say what is not to be had, and why. Returns the exit status."""
    reason = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        reason = f"{error.filename}: {error.strerror}"
    print(f"vfu-server: {what}: {reason}", file=sys.stderr)
    return 1


def _net_options(options: argparse.Namespace) -> NetOptions:
    return NetOptions(
        nets=options.net,
        uplink=options.uplink,
        macs=options.mac,
        mtu=options.mtu,
        seed=str(options.socket_dir.absolute()),
    )


def _serve(
    options: argparse.Namespace,
    backends: Mapping[str, Any],
    networks: Networks | None,
    names: Sequence[str],
    folder: Folder,
    stop: StopSignals,
    descriptors: int,
) -> int:
    monitor = Monitor(folder.path / SOCKET_NAME, networks)
    breaches = (
        Breaches(monitor, fatal=options.check_driver == "fatal") if options.check_driver is not None else None
    )
    watching = Watching(breaches)
    try:
        for name, path in chosen(dict.fromkeys(names, Path()), options.pcap).items():
            if path != Path():
                watching.capture(name, path)
        if options.trace is not None:
            watching.start_trace(options.trace)
    except OSError as error:
        watching.close()
        return _failed("--pcap or --trace", error)
    built = build.Options(
        device=options.device,
        vfs=options.vfs,
        total_vfs=options.total_vfs,
        guest_sriov=options.sriov == "guest",
        ecam=options.ecam,
        queues=options.queues,
        backends=backends,
        context_opcodes=options.context_opcodes,
        legacy=options.legacy,
        strict=options.strict,
        without=options.without,
        delays=Delays(
            flr=options.flr_delay_ms / 1000,
            reset=options.reset_delay_ms / 1000,
            power=options.pm_delay_ms / 1000,
            io=options.io_delay_ms / 1000,
        ),
    )
    device = build.build(
        built,
        # A lock for each function, so that no function waits for another's disk. The PF's admin queue
        # takes a VF's while it holds the PF's, never the other way round.
        lock=TurnLock,
        observer=monitor,
        watch=watching.begin,
    )
    functions = options.total_vfs + 1
    try:
        budget.check(functions, device.vectors_needed, descriptors)
    except budget.TooFewError as error:
        return _failed("the functions", error)
    share = _share(functions, device.vectors_needed, descriptors)
    try:
        with (
            Server(device, folder, share) as server,
            monitor.serving(
                device, lambda: server.threads, watching, partial(build.reload, built, device), server.stop
            ),
        ):
            server.run(ready=lambda: _ready(folder.path), stop=stop)
            service_manager.tell("STOPPING=1")
    except (OSError, RuntimeError, MemoryError) as error:  # RuntimeError: no more threads
        return _failed("the functions", error)
    finally:
        watching.close()
    return 0


def _share(functions: int, vectors: int, descriptors: int) -> budget.Budget:
    """What each client may take; a warning where that is not all that a driver may use."""
    share = budget.share(functions, descriptors)
    if share.eventfds < vectors:
        logging.getLogger("virtio.server").warning(
            "the limit of %d file descriptors leaves each of %d functions %d of %d interrupts: ulimit -Hn",
            descriptors,
            functions,
            share.eventfds,
            vectors,
        )
    return share


def _ready(folder: Path) -> None:
    """Say that clients may come. Nobody need listen."""
    service_manager.tell(f"READY=1\nSTATUS=serving at {folder}")
    try:
        print(f"ready {folder}", flush=True)
    except OSError as error:
        logging.getLogger("virtio.server").warning("stdout: %s", error.strerror)
        # What could not be written is not to be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
