"""The command line of `vfu-migrate`: which servers there are, and which VF moves where to."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pymodel import __version__
from vfu_client.move.dialect import CONTEXT, DIALECTS
from vfu_client.move.move import DOWNTIME_LIMIT_MOST_MS, DOWNTIME_LIMIT_MS
from vfu_client.move.moved_vf import MovedVf, Vf
from vfu_client.move.ram_channel import TcpChannel, UnixChannel
from vfu_client.owner.owner import CONTEXT_OPCODES
from vfu_client.owner.subcommand import opcodes

EXAMPLE = """\
Both QEMUs have the same options, apart from the sockets of the VFs, and besides

  -qmp unix:QMP,server=on,wait=off -qtest unix:QTEST,server=on,wait=off -qtest-log none

and the destination has -incoming defer too. Nobody else may hold either pf.sock while the guest moves.

  vfu-migrate --from-qmp a/qmp --from-qtest a/qtest --from-server /run/vfu-a \\
              --to-qmp b/qmp --to-qtest b/qtest --to-server /run/vfu-b --vf vf1 --vf vf2:vf5

Where VFs of several servers are the guest's, each server has a name:

  vfu-migrate --from-qmp a/qmp --from-qtest a/qtest --to-qmp b/qmp --to-qtest b/qtest \\
              --from-server disk=/run/a-disk --from-server net=/run/a-net \\
              --to-server disk=/run/b-disk --to-server net=/run/b-net --vf disk/vf1 --vf net/vf1:vf3

To another host, whose paths the --to- options name; its vfu-migrate is run there by ssh:

  vfu-migrate --from-qmp a/qmp --from-qtest a/qtest --from-server /run/vfu \\
              --to-command 'ssh b' --ram-address b.example.org \\
              --to-qmp b/qmp --to-qtest b/qtest --to-server /run/vfu --vf vf1

Each vfio-user device of QEMU needs an id. docs/migrate.md has complete command lines.
"""

SOCKETS = ("qmp", "qtest", "server")
REQUIRED = (*(f"--{end}-{what}" for end in ("from", "to") for what in SOCKETS), "--vf")
TIMEOUT_MOST = 1_000_000
NAME = r"[A-Za-z0-9][\w-]*"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options. `from_server` and `to_server` are folders by name, `moved` is a list of MovedVf.

    Ends the program with status 2 where they make no sense.
    """
    command = parser()
    options = command.parse_args(arguments)
    missing = [option for option in REQUIRED if not getattr(options, option.lstrip("-").replace("-", "_"))]
    if options.recover or options.agent:
        return options
    if missing:
        command.error(f"the following arguments are required: {', '.join(missing)}")
    options.ram = None if options.ram_socket is None else UnixChannel(options.ram_socket)
    if options.to_command is not None and options.ram_socket is not None:
        command.error(
            "--ram-socket is for a move on one host: give --ram-address, which the source can reach"
        )
    if (options.to_command is None) != (options.ram_address is None):
        command.error("--to-command and --ram-address go together")
    if options.ram_tls is not None and options.ram_address is None:
        command.error("--ram-tls is for --ram-address")
    try:
        if options.ram_address is not None:
            options.ram = TcpChannel.parse(options.ram_address, options.ram_tls)
        options.from_server, options.to_server = map(_servers, (options.from_server, options.to_server))
        options.moved = _moved(options)
    except ValueError as error:
        command.error(str(error))
    return options


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="vfu-migrate",
        description="Move a running QEMU guest with its VFs from one QEMU and its servers to another.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--version", action="version", version=f"vfu-migrate {__version__}")
    for end, name in (("from", "source"), ("to", "destination")):
        group = result.add_argument_group(name)
        group.add_argument(
            f"--{end}-qmp",
            type=Path,
            metavar="SOCKET",
            help="QMP monitor of QEMU, or the folder of its qmp.sock",
        )
        group.add_argument(
            f"--{end}-qtest",
            type=Path,
            metavar="SOCKET",
            help="qtest server of QEMU, or the folder of its qtest.sock",
        )
        group.add_argument(
            f"--{end}-server", type=_server, action="append", metavar="[NAME=]DIR",
            help="folder of a vfu-server, with a name where there are several; repeats",
        )  # fmt: skip
    result.add_argument(
        "--vf", type=_vf, action="append", metavar="[NAME/]VF[:[NAME/]VF]",
        help="a VF of the guest, as vf1, or NAME/vf1 of that server; vf1:vf3 where it gets another number"
        " at the destination; repeats",
    )  # fmt: skip
    result.add_argument(
        "--device", type=_device, action="append", default=[], metavar="ID[:ID]",
        help="the VF's device id in QEMU, source and destination (default: found by its socket)",
    )  # fmt: skip
    result.add_argument(
        "--to-command", type=_command, metavar="COMMAND",
        help="move to another host: what runs `vfu-migrate --agent` there, as in 'ssh b'; these words are"
        " appended unless it ends in --agent",
    )  # fmt: skip
    result.add_argument(
        "--ram-address", metavar="HOST[:PORT]",
        help="of the other host: where its QEMU listens for the memory (default port: one that is free)",
    )  # fmt: skip
    result.add_argument(
        "--ram-tls", metavar="ID", help="TLS for the memory: the id of both QEMUs' -object tls-creds-x509"
    )
    result.add_argument(
        "--ram-socket", type=Path, metavar="PATH", help="where QEMU sends memory (default: temporary)"
    )
    result.add_argument(
        "--downtime-limit", type=_whole(1, DOWNTIME_LIMIT_MOST_MS), default=DOWNTIME_LIMIT_MS, metavar="MS",
        help="for the rest of the memory; doubled when the guest writes too fast (default: %(default)s)",
    )  # fmt: skip
    result.add_argument(
        "--timeout",
        type=_whole(1, TIMEOUT_MOST),
        default=120,
        metavar="SECONDS",
        help="for the copy of the memory (default: 120)",
    )
    result.add_argument(
        "--context-opcodes", type=opcodes, default=CONTEXT_OPCODES, metavar="BASE",
        help="opcode of the servers' first context command (default: 0x40)",
    )  # fmt: skip
    result.add_argument(
        "--dialect", choices=DIALECTS, default=CONTEXT,
        help="how VFs are moved: by the draft's device contexts, or virtio 1.4's device parts, which leave a"
        " disk in memory behind (default: %(default)s)",
    )  # fmt: skip
    result.add_argument("--json", action="store_true", help="print the result for programs")
    result.add_argument("--timeline", type=Path, metavar="FILE.svg", help="draw the timeline")
    result.add_argument(
        "--agent", action="store_true",
        help="be the other host of a move: speak with its vfu-migrate on standard input and output",
    )  # fmt: skip
    result.add_argument(
        "--recover", action="store_true",
        help="put right what a move left that was killed; needs no other option, and with --from-qmp or"
        " --to-qmp looks after that guest alone",
    )  # fmt: skip
    return result


def _server(text: str) -> tuple[str, Path]:
    """Name, empty where none is given, and folder. A folder with a = in its name begins with / or ./ ."""
    found = re.fullmatch(rf"(?:({NAME})=)?(.+)", text, re.DOTALL)
    if found is None:
        raise argparse.ArgumentTypeError("give the folder of a vfu-server")
    return found[1] or "", Path(found[2])


def _vf(text: str) -> tuple[Vf, Vf | None]:
    """The VF at the source and at the destination, as far as it is said."""
    one = rf"(?:({NAME})/)?(?:vf)?([1-9]\d*)"
    found = re.fullmatch(rf"{one}(?::{one})?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no VF: give vf1, or vf1:vf3, or NAME/vf1")
    there = Vf(int(found[4]), found[3] or "") if found[4] else None
    return Vf(int(found[2]), found[1] or ""), there


def _servers(given: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """The servers of one side by name. Raises ValueError where they cannot be told apart."""
    if len(given) > 1 and not all(name for name, _ in given):
        raise ValueError("several servers need names: NAME=DIR")
    servers = dict(given)
    if len(servers) < len(given):
        raise ValueError("two servers of one side have the same name")
    return servers


def _moved(options: argparse.Namespace) -> list[MovedVf]:
    """Who moves where to. Raises ValueError when the options contradict each other."""
    if options.device and len(options.device) != len(options.vf):
        raise ValueError("give --device as often as --vf, in the same order, or not at all")
    devices = options.device or [(None, None)] * len(options.vf)
    moved: list[MovedVf] = []
    for (here, there), (here_id, there_id) in zip(options.vf, devices, strict=True):
        source = _of(here.server, here.number, options.from_server, "source")
        # Without a name of its own it goes to the server of the same name, or to the only one.
        name, number = ("", source.number) if there is None else (there.server, there.number)
        if not name and len(options.to_server) > 1:
            name = source.server
        destination = _of(name, number, options.to_server, "destination")
        moved.append(MovedVf(source, destination, here_id, there_id))
    for end in ("source", "destination"):
        if len({getattr(vf, end) for vf in moved}) < len(moved):
            raise ValueError("a VF is given twice")
    return moved


def _of(name: str, number: int, servers: Mapping[str, Path], side: str) -> Vf:
    """A VF of that server, or of the only one. Raises ValueError for another server than there is."""
    if not name and len(servers) == 1:
        name = next(iter(servers))
    if name not in servers:
        names = ", ".join(filter(None, servers)) or "one without a name"
        if not name:
            raise ValueError(f"whose vf{number} at the {side}? Give NAME/vf{number}; the servers are {names}")
        raise ValueError(f"no server at the {side} is called {name}: there is {names}")
    return Vf(number, name)


def _command(text: str) -> str:
    """A command line that has words. Raises ArgumentTypeError."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    if not words:
        raise argparse.ArgumentTypeError("give a command, as 'ssh b'")
    return text


def _device(text: str) -> tuple[str, str]:
    here, _, there = text.partition(":")
    return here, there or here


def _whole(least: int, most: int) -> Callable[[str], int]:
    """What makes a number between these of a word."""

    def parsed(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from {least} to {most}")
        return int(text)

    return parsed
