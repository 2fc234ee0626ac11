"""`vfu-owner`: an owner driver of the PF on the command line.

Exit status: 0 done, 1 the server or the device said no or the result could not be written, 2 the command
line makes no sense.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from pymodel import __version__
from vfu_client.owner import context_cli, parts_cli, show
from vfu_client.owner.admin import AdminError
from vfu_client.owner.explain import command_name, explain
from vfu_client.owner.owner import DriverRuleError
from vfu_client.owner.part import BadPartsError
from vfu_client.owner.stream import BadContextError
from vfu_client.owner.subcommand import COMMON, RefusedError, add, opened, say, show_result
from vfu_client.standard_streams import heed_interrupts, prepare, tell
from vfu_client.vfio.connection import ServerBusyError, ServerUnreachableError
from vfu_client.vfio.pci import CapabilityMissingError
from vfu_client.virtio.function import NegotiationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    prepare()
    options = parser().parse_args(arguments)
    options.lines = []
    if options.run is not show.run and options.pf is None:
        parser().error("--pf is needed for this command")
    if options.pf is not None and options.pf.is_dir():
        options.pf /= "pf.sock"
    if options.json and getattr(options, "out", None) == "-":
        parser().error("--json and what is read both on standard output: give a file")
    try:
        heed_interrupts()
        result = options.run(options)
        show_result(json.dumps(result, indent=2) if options.json else "\n".join(options.lines))
    except AdminError as error:
        return _fail(explain(error, options.context_opcodes))
    except ServerUnreachableError as error:
        return _fail(f"no server listens on {error.filename}: start vfu-server, or look at --pf")
    except ServerBusyError as error:
        return _fail(
            f"{error.filename} is in use: another client (a QEMU, or another owner) holds the PF;"
            " this command needs it to itself. If nobody does, it is no vfio-user socket: look at --pf"
        )
    except (RefusedError, DriverRuleError, BadContextError, BadPartsError) as error:
        return _fail(str(error))
    except (CapabilityMissingError, NegotiationError, LookupError) as error:
        return _fail(
            f"{options.pf} is not a PF with an admin queue: {error}. Look at --pf: DIR, or DIR/pf.sock"
        )
    except TimeoutError as error:
        return _fail(f"the device did not answer: {error}")
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        _fail("interrupted: a command that was on its way may have been carried out")
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="vfu-owner", description="Modes, contexts and parts of VFs, through the PF's admin queue."
    )
    result.add_argument("--version", action="version", version=f"vfu-owner {__version__}")
    for name, settings in COMMON.items():
        result.add_argument(name, **settings)
    commands = result.add_subparsers(required=True, metavar="COMMAND")

    context_cli.add_to(commands)
    parts_cli.add_to(commands)
    show.add_to(commands)
    add(commands, "commands", _commands, "which commands the device lists for its VFs")
    return result


def _commands(options: argparse.Namespace) -> Any:
    with opened(options) as owner:
        listed, vfs = sorted(owner.listed), owner.sriov.enabled
    rows = []
    for opcode in listed:
        name = command_name(opcode, options.context_opcodes)
        rows.append({"opcode": opcode, "name": name})
        say(options, f"{opcode:#06x}  {name or '?'}")
    if not vfs:
        say(options, "none: the PF has no VFs now")
    return {"vfs": vfs, "commands": rows}


def _fail(text: str) -> int:
    tell("vfu-owner", text)
    return 1


if __name__ == "__main__":
    sys.exit(main())
