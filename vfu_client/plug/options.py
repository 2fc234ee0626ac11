"""The command line of `vfu-qemu`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pymodel import __version__

DESCRIPTION = """\
Print the options that give a QEMU all functions of a running vfu-server:

  qemu-system-x86_64 -machine q35 ... $(vfu-qemu /tmp/device --memory 1G)

or, with one of these words, do something to a QEMU that runs (each has its own --help):

  vfu-qemu plug DIR --qmp SOCKET      plug a PF with its VFs (--sriov guest)
  vfu-qemu place DIR --qmp SOCKET     program the VFs' BARs to where SR-IOV has them
  vfu-qemu unplug DIR --qmp SOCKET    unplug all functions, where QEMU can
"""

COMMANDS = {
    "plug": "Plug a PF and its VFs into an empty root port of a QEMU that runs.",
    "place": "Program the VFs' BARs to where the PF's SR-IOV capability has them, as firmware would have.",
    "unplug": "Unplug all functions of a server from a QEMU.",
}

PLUG_SECONDS = 60.0

VALUED = frozenset({"--bus", "--id-prefix", "--memory", "--qmp", "--qtest", "--slot", "--timeout"})
"""Options whose value is the word behind them."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; `command` is a word of COMMANDS, or empty. Ends the program with status 2 for wrong ones.

    A folder that has the name of a command is given as ./plug.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    at = _command_in(words)
    if at is not None:
        options = _of_running(words[at]).parse_args([*words[:at], *words[at + 1 :]])
        options.command = words[at]
        return options
    command = parser()
    options = command.parse_intermixed_args(words)
    if options.libvirt and options.memory:
        command.error("--memory is not for --libvirt: <memory> and <memoryBacking> of the domain say it")
    options.command = ""
    return options


def _command_in(words: Sequence[str]) -> int | None:
    """Where a word of COMMANDS is that is no option's value, before or behind options."""
    for at, word in enumerate(words):
        if word in COMMANDS and not (at and words[at - 1] in VALUED):
            return at
    return None


def parser() -> argparse.ArgumentParser:
    """The command line, where no word of COMMANDS comes first."""
    result = argparse.ArgumentParser(
        prog="vfu-qemu", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--version", action="version", version=f"vfu-qemu {__version__}")
    result.add_argument("folder", type=Path, metavar="DIR", help="the server's --socket-dir")
    result.add_argument(
        "functions", nargs="*", metavar="FUNCTION",
        help="of --sriov owner: pf, vf1 ... (default: all), each on a root port of its own",
    )  # fmt: skip
    result.add_argument(
        "--memory", type=_size, metavar="SIZE",
        help="how much the guest has, such as 1G: prints options for memory that the server can share",
    )  # fmt: skip
    _add_prefix(result)
    result.add_argument(
        "--bus", type=_id, metavar="BUS", help="a port that the machine has (default: ports are made)"
    )
    result.add_argument(
        "--slot", type=_slot, default=1, metavar="N",
        help="slot number of the (first) port that is made, not to be that of another (default: 1)",
    )  # fmt: skip
    form = result.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print what device_add and object-add take")
    form.add_argument("--libvirt", action="store_true", help="print <qemu:commandline> for a domain's XML")
    return result


def _of_running(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"vfu-qemu {command}", description=COMMANDS[command])
    parser.add_argument("folder", type=Path, metavar="DIR", help="the server's --socket-dir")
    parser.add_argument(
        "--qmp",
        type=Path,
        required=True,
        metavar="SOCKET",
        help="QMP monitor of QEMU, or the folder of its qmp.sock",
    )
    if command == "unplug":
        parser.add_argument(
            "--even-if-qemu-aborts", action="store_true", help="with a QEMU that is known to abort over it"
        )
        return parser
    parser.add_argument(
        "--qtest", type=Path, metavar="SOCKET",
        help="qtest server of QEMU: BARs are programmed while the guest runs, which else stops for it",
    )  # fmt: skip
    if command == "plug":
        _add_prefix(parser)
        parser.add_argument(
            "--bus",
            type=_id,
            metavar="PORT",
            help="an empty root port (default: the first one that is found)",
        )
        parser.add_argument(
            "--timeout", type=_seconds, default=PLUG_SECONDS, metavar="SECONDS",
            help="for the guest to find the PF (default: %(default)g)",
        )  # fmt: skip
    return parser


def _add_prefix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--id-prefix",
        type=_prefix,
        default="",
        metavar="P",
        help="what ids begin with: Ppf, Pvf1, Pport1 ...",
    )


def _prefix(text: str) -> str:
    return text and _id(text)


def _id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: QEMU has letters, digits and - . _, and a letter first")
    return text


def _size(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,8}[MGT]", text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number with M, G or T")
    return text


def _slot(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) > 0x1FFF:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 0 to 8191")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1 to 999999")
    return float(text)
