"""`vfu-images`, in a clone also `python3 -m images`: prepares what guests, tests and the build need.

Exit status: 0 it is there, 1 something is amiss, and the message says what to do, 130 it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pymodel import __version__
from vfu_images import libvfio_user
from vfu_images.preparation import prepare
from vfu_images.workspace import COMMAND, IMAGES, INSTALLED, SetupError, locked, say


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit status, 1 with the reason on stderr when something is amiss."""
    options = parser().parse_args(arguments)
    if options.command == "where":
        return _tell_where()
    try:
        with locked():
            _prepare(options)
    except SetupError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing half-made was left")
        return 130
    return 0


def _tell_where() -> int:
    print(IMAGES)
    if IMAGES.is_dir():
        return 0
    say(f"there is nothing yet; run `{COMMAND} all` first")
    return 1


def _prepare(options: argparse.Namespace) -> None:
    if options.command in ("libvfio-user", "all") and not INSTALLED:
        libvfio_user.prepare(options.suite, options.folder, options.archive)
    if options.command != "libvfio-user":
        prepare("usual" if options.command == "all" else options.command)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Prepare what guests and the build need.")
    parser.add_argument("--version", action="version", version=f"vfu-images {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    sources = []
    if not INSTALLED:
        sources.append(commands.add_parser("libvfio-user", help="its and json-c's sources in subprojects/"))
    commands.add_parser("qemu", help="a QEMU with vfio-user-pci")
    commands.add_parser("guest", help="the guest's kernel, initramfs and disk")
    everything = commands.add_parser("all", help="all of these")
    commands.add_parser(
        "libnbd", help="what `vfu-server` needs for disks of NBD servers, where there is none"
    )
    commands.add_parser("headers", help="guest, and `kbuild`, which builds modules for its kernel")
    commands.add_parser(
        "drivers", help="qemu, also for ARM, headers, and the other drivers that `make test` tries"
    )
    commands.add_parser("hosts", help="qemu, guest, and the SSH of `vfu-demo hosts`, where there is none")
    commands.add_parser("nested", help="qemu, guest, and what runs in a guest of `vfu-demo nested`")
    commands.add_parser("compat", help="drivers, and those that only `make compat` tries")
    commands.add_parser("where", help="print the folder where all of it is; make nothing")
    if not INSTALLED:
        sources.append(everything)
    for command in sources:
        origin = command.add_mutually_exclusive_group()
        origin.add_argument("--suite", help="Debian suite of libvfio-user's source (default: this release)")
        origin.add_argument("--folder", type=Path, help="copy libvfio-user's source from here instead")
        origin.add_argument(
            "--archive", type=Path, help="or from this tar file, its own or one of QEMU's source"
        )
    misplaced = () if INSTALLED else ("--suite", "--folder", "--archive")
    for each in (parser, *commands.choices.values()):
        for option in misplaced:
            if option not in each.format_usage():
                each.add_argument(option, action=_Misplaced, const="`libvfio-user` and `all`")
    return parser


class _Misplaced(argparse.Action):
    """An option that another command takes: says which."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs="?", const=const, help=argparse.SUPPRESS)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option: str | None = None
    ) -> None:
        """End the program with status 2."""
        parser.error(f"{option} belongs to {self.const}, and comes after that word")


if __name__ == "__main__":
    sys.exit(main())
