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
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from pymodel import build
from pymodel.admin.context_commands import context_commands
from pymodel.devices import registry
from pymodel.pci.function import Delays
from pymodel.pci.sriov.mcfg import ADDRESSES
from pymodel.rules.breaches import Breaches
from pymodel.spec import pci
from pymodel.transport.features import OPTIONAL
from vfu_server import budget
from vfu_server.bounded_log import LEVELS, BoundedHandler
from vfu_server.disks.options import RAM_DISK, choose_disks, disk_option, open_disks
from vfu_server.function_option import FUNCTION, chosen
from vfu_server.function_thread import TRACE
from vfu_server.monitor.monitor import SOCKET_NAME, Monitor
from vfu_server.networks.networks import Networks
from vfu_server.networks.options import NetOptions, mac_option, mtu_option, net_option, uplink_option
from vfu_server.server import Folder, FolderTakenError, Server, StopSignals
from vfu_server.vfio._vfu import keep_freed_memory
from vfu_server.vfio.turn_lock import TurnLock
from vfu_server.watch.watching import Watching

KEPT_MEMORY: Final = 256 << 20
"""Bytes of freed memory that the process keeps for itself."""

STACK_BYTES: Final = 1 << 20
"""Of addresses for the stack of each thread, which touches 8 KiB of them. Less than a huge page."""

QUEUES_MAX: Final = 256

OPTIONS_OF_A_DEVICE: Final = (
    ("disk", "blk"),
    ("net", "net"),
    ("uplink", "net"),
    ("mac", "net"),
    ("mtu", "net"),
    ("pcap", "net"),
    ("legacy", "net"),
)

ECAM_ALIGNMENT: Final = 1 << pci.ECAM_BUS_SHIFT


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="vfu-server",
        description="Serve a virtio PCI device and its SR-IOV VFs to vfio-user clients such as QEMU.",
        epilog="Each function listens at a socket of its own: DIR/pf.sock, DIR/vf1.sock and so on. "
        "The guest's memory must be shared: in QEMU, memory-backend-memfd with share=on.",
    )
    result.add_argument("--socket-dir", type=Path, required=True, metavar="DIR", help="made if it is missing")
    result.add_argument(
        "--device",
        required=True,
        metavar="TYPE",
        help=f"{', '.join(registry.names())}, or module:Class for a device type of your own",
    )
    result.add_argument(
        "--vfs", type=_count(0, build.VFS_MAX), default=0, metavar="N", help="VFs enabled at power-on"
    )
    result.add_argument(
        "--total-vfs", type=_count(0, build.VFS_MAX), metavar="M", help="VFs that can be enabled (default: N)"
    )
    result.add_argument(
        "--sriov",
        choices=("owner", "guest"),
        default="owner",
        help="whom SR-IOV is for: who holds pf.sock, or a guest with PF and VFs, which sees them as such",
    )
    result.add_argument(
        "--ecam",
        type=_ecam,
        metavar="ADDRESS|auto",
        help="for --sriov guest: program BARs of VFs through the guest's ECAM where firmware did not",
    )
    result.add_argument(
        "--queues", type=_count(1, QUEUES_MAX), default=1, metavar="Q", help="request queues or queue pairs"
    )
    result.add_argument(
        "--disk",
        action="append",
        default=[],
        type=disk_option,
        metavar="[F=]ram:SIZE|FILE[,size=SIZE][,readonly][,direct][,format=raw]",
        help=f"disk of function F (pf, vf1 ...), or of each; may be given again (default: {RAM_DISK})",
    )
    result.add_argument(
        "--net",
        action="append",
        default=[],
        type=net_option,
        metavar="[F=]switch|none|tap:NAME|stream:PATH[,server]|dgram:LOCAL,REMOTE",
        help="what function F, or each, is connected to; may be given again (default: switch)",
    )
    result.add_argument(
        "--uplink",
        type=uplink_option,
        metavar="tap:NAME|stream:PATH[,server]|dgram:LOCAL,REMOTE",
        help="what the switch is connected to",
    )
    result.add_argument(
        "--mac",
        action="append",
        default=[],
        type=mac_option,
        metavar="[F=]XX:XX:XX:XX:XX:XX",
        help="address of function F, or of the PF, from which those of the VFs count on; may be given again",
    )
    result.add_argument("--mtu", type=mtu_option, metavar="N", help="MTU that the drivers are told")
    result.add_argument(
        "--context-opcodes",
        type=_opcodes,
        default=0x40,
        metavar="OPCODE|off",
        help="first opcode of the device context commands (default: 0x40), or none",
    )
    result.add_argument(
        "--legacy",
        action="store_true",
        help="offer the PF's driver the VFs' legacy interface; their virtio structures are in BAR 4 then",
    )
    result.add_argument(
        "--strict",
        action="store_true",
        help="keep to the letter of standard and draft where drivers depart from it",
    )
    result.add_argument(
        "--check-driver",
        nargs="?",
        choices=("told", "fatal"),
        const="told",
        help="log what drivers do against the rules of the standard, by ID; `=fatal` ends a function at the"
        " first MUST or MUST NOT that its driver breaks",
    )
    result.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write all that passes, decoded, for ui.perfetto.dev; the monitor's `trace` does it at run time",
    )
    result.add_argument(
        "--pcap",
        action="append",
        default=[],
        type=capture_option,
        metavar="[F=]FILE",
        help="write the frames of network function F, or of each, as its driver sends and gets them (pcapng)",
    )
    result.add_argument(
        "--without",
        type=_features,
        default=frozenset(),
        metavar="FEATURE[,FEATURE]",
        help=f"features that are not offered: {', '.join(OPTIONAL)}",
    )
    for name, what in (
        ("flr", "a function level reset of a VF"),
        ("reset", "a reset of a VF by its driver"),
        ("pm", "a change of a VF's power state"),
        ("io", "each request to a VF"),
    ):
        result.add_argument(
            f"--{name}-delay-ms",
            type=_count(0, 600_000),
            default=0,
            metavar="MS",
            help=f"how long {what} takes",
        )
    result.add_argument("--log-level", choices=LEVELS, default="info")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP.

    Returns the exit status: 0 after a signal, 1 where something is not to be had. Raises SystemExit with 2,
    and prints the usage, for options that are wrong whatever the machine is like.
    """
    _keep_no_errors()
    descriptors = budget.raise_descriptor_limit()
    options_parser = parser()
    options = options_parser.parse_args(arguments)
    if options.total_vfs is None:
        options.total_vfs = options.vfs
    if options.vfs > options.total_vfs:
        options_parser.error(f"--vfs {options.vfs} is more than --total-vfs {options.total_vfs}")
    _check_sriov(options, options_parser)
    for name, device in OPTIONS_OF_A_DEVICE:
        if getattr(options, name) and options.device != device:
            options_parser.error(f"--{name} is for --device {device}")
    if ":" in options.device:
        # As people try it: the module is in the folder where they are.
        sys.path.insert(0, str(Path.cwd()))
    try:
        registry.find(options.device)
    except ValueError as error:
        options_parser.error(f"--device: {error}")
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
        options_parser.error(f"{'--net' if options.device == 'net' else '--disk'}: {error}")
    if options.device == "blk":
        try:
            backends = open_disks(disks)
        except (OSError, ValueError, MemoryError) as error:
            return _failed("--disk", error)
    logging.addLevelName(TRACE, "TRACE")
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        handlers=[BoundedHandler(sys.stderr)],
    )
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
            options_parser.error(f"--socket-dir: {error}")
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


def _check_sriov(options: argparse.Namespace, options_parser: argparse.ArgumentParser) -> None:
    """End the program for options that do not go with whom SR-IOV is for."""
    if options.sriov == "guest":
        if options.vfs:
            options_parser.error("--vfs is for --sriov owner: a guest enables VFs itself, up to --total-vfs")
        if not 0 < options.total_vfs <= build.GUEST_VFS_MAX:
            options_parser.error(
                f"--sriov guest needs --total-vfs, from 1 to {build.GUEST_VFS_MAX}:"
                " in a guest all VFs are on the PF's bus"
            )
    elif options.ecam is not None:
        options_parser.error("--ecam is for --sriov guest")


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
            monitor.serving(device, lambda: server.threads, watching, partial(build.reload, built, device)),
        ):
            server.run(ready=lambda: _ready(folder.path), stop=stop)
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
    """Print that clients may come. Nobody need listen."""
    try:
        print(f"ready {folder}", flush=True)
    except OSError as error:
        logging.getLogger("virtio.server").warning("stdout: %s", error.strerror)
        # What could not be written is not to be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())


def _count(least: int, most: int) -> Callable[[str], int]:
    """A parser of whole numbers in a range."""

    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not in {least} to {most}")
        return value

    parse.__name__ = "number"
    return parse


def capture_option(text: str) -> tuple[str | None, Path]:
    """(function or None for each, file)."""
    match = re.fullmatch(FUNCTION + "(.+)", text)
    if match is None:
        raise argparse.ArgumentTypeError("give the name of a file")
    return match[1], Path(match[2])


def _features(text: str) -> frozenset[str]:
    """Names of features."""
    names = frozenset(text.split(","))
    for name in sorted(names - OPTIONAL.keys()):
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(OPTIONAL)}")
    return names


def _ecam(text: str) -> int:
    """An address of ECAM; 0 for `auto`."""
    if text == "auto":
        return 0
    try:
        value = int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither an address nor `auto`") from None
    if not 0 < value < 1 << 64 or value % ECAM_ALIGNMENT:
        raise argparse.ArgumentTypeError(f"{text}: ECAM is at a multiple of {ECAM_ALIGNMENT:#x}")
    if value > ADDRESSES - pci.ECAM_SIZE:
        raise argparse.ArgumentTypeError(f"{text}: there are no {pci.ECAM_SIZE:#x} bytes of ECAM")
    return value


def _opcodes(text: str) -> int | None:
    """The first opcode of the device context commands; None for `off`."""
    if text == "off":
        return None
    try:
        value = int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor `off`") from None
    if not 0 <= value <= 0xFFFF:
        raise argparse.ArgumentTypeError(f"{text} is no opcode")
    try:
        context_commands(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return value


if __name__ == "__main__":
    sys.exit(main())
