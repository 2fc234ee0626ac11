"""Command line: `python3 -m images libvfio-user|qemu|guest|all|drivers|nested|compat|boot`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from images import disk, firmware, initramfs, libvfio_user, nested, qemu, variants
from images.boot import boot
from images.debian import Debian
from images.workspace import SetupError, locked, say


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit status, 1 with the reason on stderr when something is amiss."""
    options = _parser().parse_args(arguments)
    try:
        with locked():
            _prepare(options)
        if options.command == "boot":
            boot(options.socket, options.disk, options.memory, options.accel)
    except SetupError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing half-made was left")
        return 130
    return 0


def _prepare(options: argparse.Namespace) -> None:
    debian = Debian(qemu.SUITE)
    if options.command in ("libvfio-user", "all"):
        libvfio_user.prepare(options.suite, options.folder)
    if options.command in ("qemu", "all", "drivers", "nested", "compat", "boot"):
        qemu.prepare(debian)
    if options.command in ("guest", "all", "drivers", "nested", "compat", "boot"):
        initramfs.prepare(debian)
        disk.prepare(debian)
    if options.command in ("drivers", "compat"):
        firmware.prepare(debian)
        variants.prepare_linux("6.1")
    if options.command in ("drivers", "nested", "compat"):
        variants.prepare_virtio_vfio(debian)
    if options.command == "nested":
        nested.prepare(debian)
    if options.command == "compat":
        variants.prepare_linux("6.12")
        variants.prepare_dpdk(debian)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m images", description="Prepare what guests and the build need."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    source = commands.add_parser(
        "libvfio-user", help="the library's source in subprojects/, json-c in build/cache/dev"
    )
    commands.add_parser("qemu", help="a QEMU with vfio-user-pci in build/images")
    commands.add_parser("guest", help="the guest's kernel, initramfs and disk in build/images")
    everything = commands.add_parser("all", help="all of these")
    commands.add_parser("drivers", help="qemu, guest, and the other drivers that `make test` tries")
    commands.add_parser("nested", help="qemu, guest, and what runs in a guest of `make demo-nested`")
    commands.add_parser("compat", help="drivers, and those that only `make compat` tries")
    for command in (source, everything):
        command.add_argument("--suite", help="Debian suite of libvfio-user's source (default: this release)")
        command.add_argument("--folder", type=Path, help="copy libvfio-user's source from here instead")
    person = commands.add_parser("boot", help="boot a guest with a shell on this terminal")
    person.add_argument("--socket", type=Path, action="append", default=[], help="vfio-user socket (repeats)")
    person.add_argument(
        "--disk", type=Path, action="append", default=[], help="raw file for a virtio disk (repeats)"
    )
    person.add_argument("--memory", type=_positive, default=256, metavar="MIB", help="default: 256")
    person.add_argument("--accel", choices=("tcg", "kvm"), default="tcg", help="default: tcg")
    takers = dict.fromkeys(("--suite", "--folder"), "`libvfio-user` and `all`")
    takers |= dict.fromkeys(("--socket", "--disk", "--memory", "--accel"), "`boot`")
    for each in (parser, *commands.choices.values()):
        for option, where in takers.items():
            if option not in each.format_usage():
                each.add_argument(option, action=_Misplaced, const=where)
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


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
