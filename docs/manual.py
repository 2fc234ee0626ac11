"""Man pages and completion of the commands, made from their parsers: python docs/manual.py FOLDER.

The folder then has man/man1, bash-completion/completions and zsh/site-functions, as below /usr/share.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage

from pymodel import __version__

COMMANDS = {
    "vfu-server": ("vfu_server.options", "a virtio device with VFs for vfio-user clients"),
    "vfu-owner": ("vfu_client.owner.cli", "modes, contexts and parts of VFs"),
    "vfu-migrate": ("vfu_client.move.options", "move a running guest with its VFs"),
    "vfu-qemu": ("vfu_client.plug.options", "a device's functions as QEMU's options"),
    "vfu-boot": ("vfu_images.boot_options", "boot a guest with a device's functions"),
    "vfu-demo": ("vfu_demo.__main__", "show what the device does, with real guests"),
}
"""By name, the module whose `parser` it has, and what it is."""

_OF_FILES = ("FILE", "DIR", "SOCKET", "PATH")


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Have names of files completed where one is meant."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                _complete_files(one)
        elif isinstance(action.metavar, str) and any(word in action.metavar for word in _OF_FILES):
            setattr(action, "complete", shtab.FILE)  # noqa: B010 - shtab looks for it


def main(folder: Path) -> None:
    """Write everything below a folder."""
    for name, (module, what) in COMMANDS.items():
        parser = importlib.import_module(module).parser()
        page = Manpage(parser)
        page.source, page.manual = f"vfu-virtio {__version__}", "vfu-virtio"
        page.description = what
        _complete_files(parser)
        for path, text in {
            f"man/man1/{name}.1": str(page),
            f"bash-completion/completions/{name}": shtab.complete(parser, "bash"),
            f"zsh/site-functions/_{name}": shtab.complete(parser, "zsh"),
        }.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)


main(Path(sys.argv[1]))
