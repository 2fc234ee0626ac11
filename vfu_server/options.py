"""The options of `vfu-server`: a table, from which its command line and its configuration file are made.

What is wrong whatever the machine is like ends the program with status 2, and the usage.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from pymodel import __version__, build
from pymodel.admin.context_commands import context_commands
from pymodel.devices import registry
from pymodel.pci.sriov.mcfg import ADDRESSES
from pymodel.spec import pci
from pymodel.transport.features import OPTIONAL
from vfu_server import config_file
from vfu_server.bounded_log import LEVELS
from vfu_server.disks.options import RAM_DISK, disk_option
from vfu_server.function_option import FUNCTION
from vfu_server.log_format import FORMATS
from vfu_server.networks.options import mac_option, mtu_option, net_option, uplink_option

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


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for on the command line, and in the file that `--config` names: the command line counts
    where both say something.

    `as_file` is all of it as such a file has it. Raises SystemExit: with 2, and prints the usage, for what
    makes no sense; with 0 for `--version` and `--help`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = parser()
    given = config_file.given(OPTIONS, words)
    values: Mapping[str, Any] = {}
    if "config" in given:
        path = Path(given["config"])
        try:
            values = config_file.read(path, OPTIONS)
        except (OSError, ValueError) as error:
            command.error(f"--config {path}: {getattr(error, 'strerror', None) or error}")
        values = {name: value for name, value in values.items() if name not in given}
        words = [*config_file.words(values), *words]
    options = command.parse_args(words)
    _check(options, command)
    said = {**_defaults(), **values, **given}
    options.as_file = {name: said[name] for name in OPTIONS if name in said}
    return options


def wrong(message: str) -> NoReturn:
    """End the program for options that make no sense: SystemExit with 2."""
    parser().error(message)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="vfu-server",
        description="Serve a virtio PCI device and its SR-IOV VFs to vfio-user clients such as QEMU.",
        epilog="Each function listens at a socket of its own: DIR/pf.sock, DIR/vf1.sock and so on. "
        "The guest's memory must be shared: in QEMU, memory-backend-memfd with share=on.",
    )
    result.add_argument("--version", action="version", version=f"vfu-server {__version__}")
    for name, settings in OPTIONS.items():
        result.add_argument(f"--{name}", **settings)
    return result


def _defaults() -> dict[str, Any]:
    return {
        name: settings["default"]
        for name, settings in OPTIONS.items()
        if isinstance(settings.get("default"), int | str)
    }


def _check(options: argparse.Namespace, command: argparse.ArgumentParser) -> None:
    """End the program for options that do not go with each other. `total_vfs` is a number afterwards."""
    if options.total_vfs is None:
        options.total_vfs = options.vfs
    if options.vfs > options.total_vfs:
        command.error(f"--vfs {options.vfs} is more than --total-vfs {options.total_vfs}")
    if options.sriov == "guest":
        if options.vfs:
            command.error("--vfs is for --sriov owner: a guest enables VFs itself, up to --total-vfs")
        if not 0 < options.total_vfs <= build.GUEST_VFS_MAX:
            command.error(
                f"--sriov guest needs --total-vfs, from 1 to {build.GUEST_VFS_MAX}:"
                " in a guest all VFs are on the PF's bus"
            )
    elif options.ecam is not None:
        command.error("--ecam is for --sriov guest")
    for name, device in OPTIONS_OF_A_DEVICE:
        if getattr(options, name) and options.device != device:
            command.error(f"--{name} is for --device {device}")
    if ":" in options.device:
        # As people try it: the module is in the folder where they are.
        sys.path.insert(0, str(Path.cwd()))
    try:
        registry.find(options.device)
    except ValueError as error:
        command.error(f"--device: {error}")


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


OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "config": {
        "metavar": "FILE.toml",
        "help": "take options from this file, each by its name, as `vfs = 2`; what is given here counts",
    },
    "print-config": {
        "action": "store_true",
        "help": "print all options as such a file would have them, and end",
    },
    "socket-dir": {"type": Path, "required": True, "metavar": "DIR", "help": "made if it is missing"},
    "device": {
        "required": True,
        "metavar": "TYPE",
        "help": f"{', '.join(registry.names())}, or module:Class for a device type of your own",
    },
    "vfs": {
        "type": _count(0, build.VFS_MAX),
        "default": 0,
        "metavar": "N",
        "help": "VFs enabled at power-on",
    },
    "total-vfs": {
        "type": _count(0, build.VFS_MAX),
        "metavar": "M",
        "help": "VFs that can be enabled (default: N)",
    },
    "sriov": {
        "choices": ("owner", "guest"),
        "default": "owner",
        "help": "whom SR-IOV is for: who holds pf.sock, or a guest with PF and VFs, which sees them as such",
    },
    "ecam": {
        "type": _ecam,
        "metavar": "ADDRESS|auto",
        "help": "for --sriov guest: program BARs of VFs through the guest's ECAM where firmware did not",
    },
    "queues": {
        "type": _count(1, QUEUES_MAX),
        "default": 1,
        "metavar": "Q",
        "help": "request queues or queue pairs",
    },
    "disk": {
        "action": "append",
        "default": [],
        "type": disk_option,
        "metavar": "[F=]ram:SIZE|FILE|NBD-URI[,OPTION]...",
        "help": f"disk of function F (pf, vf1 ...), or of each; may be given again (default: {RAM_DISK})."
        " Options of a file: size=SIZE, readonly, direct, format=raw; of an NBD server's export: readonly,"
        " format=raw, reconnect-delay=SECONDS",
    },
    "net": {
        "action": "append",
        "default": [],
        "type": net_option,
        "metavar": "[F=]switch|none|tap:NAME|stream:PATH[,server]|dgram:LOCAL,REMOTE",
        "help": "what function F, or each, is connected to; may be given again (default: switch)",
    },
    "uplink": {
        "type": uplink_option,
        "metavar": "tap:NAME|stream:PATH[,server]|dgram:LOCAL,REMOTE",
        "help": "what the switch is connected to",
    },
    "mac": {
        "action": "append",
        "default": [],
        "type": mac_option,
        "metavar": "[F=]XX:XX:XX:XX:XX:XX",
        "help": "address of function F, or of the PF, from which those of the VFs count on; may be given"
        " again",
    },
    "mtu": {"type": mtu_option, "metavar": "N", "help": "MTU that the drivers are told"},
    "context-opcodes": {
        "type": _opcodes,
        "default": "0x40",
        "metavar": "OPCODE|off",
        "help": "first opcode of the device context commands (default: 0x40), or none",
    },
    "legacy": {
        "action": "store_true",
        "help": "offer the PF's driver the VFs' legacy interface; their virtio structures are in BAR 4 then",
    },
    "strict": {
        "action": "store_true",
        "help": "keep to the letter of standard and draft where drivers depart from it",
    },
    "check-driver": {
        "nargs": "?",
        "choices": ("told", "fatal"),
        "const": "told",
        "help": "log what drivers do against the rules of the standard, by ID; `=fatal` ends a function at"
        " the first MUST or MUST NOT that its driver breaks",
    },
    "trace": {
        "type": Path,
        "metavar": "FILE",
        "help": "write all that passes, decoded, for ui.perfetto.dev; the monitor's `trace` does it at run"
        " time",
    },
    "pcap": {
        "action": "append",
        "default": [],
        "type": capture_option,
        "metavar": "[F=]FILE",
        "help": "write the frames of network function F, or of each, as its driver sends and gets them"
        " (pcapng)",
    },
    "without": {
        "type": _features,
        "default": frozenset(),
        "metavar": "FEATURE[,FEATURE]",
        "help": f"features that are not offered: {', '.join(OPTIONAL)}",
    },
    **{
        f"{name}-delay-ms": {
            "type": _count(0, 600_000),
            "default": 0,
            "metavar": "MS",
            "help": f"how long {what} takes",
        }
        for name, what in (
            ("flr", "a function level reset of a VF"),
            ("reset", "a reset of a VF by its driver"),
            ("pm", "a change of a VF's power state"),
            ("io", "each request to a VF"),
        )
    },
    "log-level": {"choices": LEVELS, "default": "info"},
    "log-format": {
        "choices": tuple(FORMATS),
        "default": "text",
        "help": "lines for people, or an object of JSON each",
    },
}
"""By name, what argparse takes. All of them but the first two can be in the file."""
