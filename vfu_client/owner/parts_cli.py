"""`vfu-owner capabilities` and `parts`: what virtio 1.4 has for the state of VFs."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymodel.spec import admin, context
from vfu_client.owner.owner import PARTS_COMMANDS
from vfu_client.owner.part import TYPE_NAMES, Part, decode, sets
from vfu_client.owner.parts import DeviceParts
from vfu_client.owner.subcommand import RefusedError, add, content, opened, output, say, vf_number

TYPES = {name: number for number, name in TYPE_NAMES.items()}
CAPABILITY_NAMES = {admin.CAP_DEV_PARTS: "DEV_PARTS"}


def add_to(commands: Any) -> None:
    """Add the subcommands."""
    add(commands, "capabilities", _capabilities, "which capabilities the device has, and their limits")
    group = add(commands, "parts", _size, "a VF's device parts")
    actions = group.add_subparsers(required=True, metavar="ACTION")
    stop = add(actions, "stop", _stop, "have the VF finish what it began, and begin nothing more")
    size = add(actions, "size", _size, "how many parts there are, and how many bytes")
    listed = add(actions, "list", _list, "which parts there are")
    got = add(actions, "get", _get, "get them into a file (- is standard output)")
    given = add(actions, "set", _set, "set those of a file (- is standard input)")
    resume = add(actions, "resume", _resume, "have the VF run, with the parts that were set")
    for action in (stop, size, listed, got, given, resume):
        action.add_argument("vf", type=vf_number, metavar="VF")
    got.add_argument("out", metavar="FILE")
    given.add_argument("file", metavar="FILE")
    got.add_argument(
        "--only", type=_type, action="append", metavar="PART",
        help="only parts of this type, by name or number; repeats (default: all)",
    )  # fmt: skip


@contextlib.contextmanager
def _parts(options: argparse.Namespace) -> Iterator[DeviceParts]:
    """The parts of the PF's VFs. Raises RefusedError where the VF or the commands are not there."""
    with opened(options) as owner:
        if not owner.commands >= PARTS_COMMANDS:
            raise RefusedError(
                "the device lists no commands for device parts: `commands` shows what it lists"
            )
        yield DeviceParts(owner)


def _capabilities(options: argparse.Namespace) -> Any:
    with _parts(options) as device:
        found, limits = sorted(device.capabilities()), device.device_limits
    rows = []
    for number in found:
        row: dict[str, Any] = {"id": number, "name": CAPABILITY_NAMES.get(number)}
        about = ""
        if number == admin.CAP_DEV_PARTS:
            row |= {"get_limit": limits.get, "set_limit": limits.set}
            about = f"up to {limits.get} objects for get, {limits.set} for set"
        rows.append(row)
        say(options, f"{number:#06x}  {row['name'] or '?':16}  {about}".rstrip())
    return rows


def _stop(options: argparse.Namespace) -> Any:
    return _mode(options, DeviceParts.stop, stopped=True)


def _resume(options: argparse.Namespace) -> Any:
    return _mode(options, DeviceParts.resume, stopped=False)


def _mode(options: argparse.Namespace, change: Callable[[DeviceParts, int], None], *, stopped: bool) -> Any:
    with _parts(options) as device:
        change(device, options.vf)
    return {"vf": options.vf, "stopped": stopped}


def _size(options: argparse.Namespace) -> Any:
    with _parts(options) as device, device.object(options.vf, admin.DEV_PARTS_OBJ_GET) as source:
        count, size = device.count(source), device.size(source)
    say(options, f"{count} parts, at most {size} bytes")
    return {"vf": options.vf, "parts": count, "bytes": size}


def _list(options: argparse.Namespace) -> Any:
    with _parts(options) as device, device.object(options.vf, admin.DEV_PARTS_OBJ_GET) as source:
        headers = device.headers(source)
    rows = []
    for head in headers:
        selector = head["selector"].tobytes()
        part = Part(int(head["type"]), int(head["flags"]), selector, memoryview(b""), 0)
        length = int(head["length"])
        rows.append(
            {
                "type": part.type,
                "name": TYPE_NAMES.get(part.type),
                "label": part.label,
                "optional": part.optional,
                "length": length,
            }
        )
        say(options, f"{length:8}  {part.label:34}  {'optional' if part.optional else ''}".rstrip())
    return rows


def _get(options: argparse.Namespace) -> Any:
    with _parts(options) as device, device.object(options.vf, admin.DEV_PARTS_OBJ_GET) as source:
        headers = None if options.only is None else _chosen(device.headers(source), options.only)
        data = device.get(source, headers)
    with output(options.out) as target:
        target.write(data)
    return {"vf": options.vf, "bytes": len(data)}


def _chosen(headers: NDArray[Any], types: Sequence[int]) -> NDArray[Any]:
    """Those of the headers that have one of these types. Raises RefusedError where there is none."""
    found = headers[np.isin(headers["type"], types)]
    if not found.size:
        raise RefusedError("the VF has none of these parts: `parts list VF` shows what it has")
    return found


def _set(options: argparse.Namespace) -> Any:
    """The VF must be stopped. That a driver before this one did it does not do: it is said once more."""
    found = [bytes(data) for _, data in sets(content(options.file))]
    for data in found:
        decode(data)
    with _parts(options) as device:
        owner = device.owner
        if owner.base in owner.commands and owner.mode_get(options.vf) == context.MODE_ACTIVE:
            raise RefusedError(f"VF {options.vf} runs: `parts stop` it before its parts are set")
        device.stop(options.vf)
        with device.object(options.vf, admin.DEV_PARTS_OBJ_SET) as target:
            for data in found:
                device.set(target, data)
    return {"vf": options.vf, "stopped": True, "bytes": len(found[-1])}


def _type(text: str) -> int:
    """A part's type, by name or number; for argparse."""
    try:
        number = TYPES.get(text.upper()) or int(text, 0)
    except ValueError:
        number = 0
    if not 0 < number < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no part: give a number, or {', '.join(TYPES)}")
    return number
