"""An arrangement as it is handed to QEMU: words of a command line, JSON, or a part of libvirt's XML."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

from vfu_client.plug.arrangement import Arrangement, Device
from vfu_client.plug.server import ServerError

NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"

LIBVIRT_HINT = """\
 Goes into <domain>, where xmlns:qemu may stand as well. The guest's memory must be shared:
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking> """

PLAIN = re.compile(r'[\w./:,=@%+#{}"-]+')
"""Words that a shell takes from $(...) as they are: none of its separators, patterns or backslashes."""


def words(arrangement: Arrangement) -> Iterator[tuple[str, str]]:
    """The options, each with its value."""
    memory = arrangement.memory
    if memory is not None:
        yield "-m", memory.size
        yield "-object", f"memory-backend-memfd,id={memory.id},size={memory.size},share=on"
        yield "-machine", f"memory-backend={memory.id}"
    for port in arrangement.ports:
        rest = "".join(f",{name}={value}" for name, value in port.items() if name != "driver")
        yield "-device", f"{port['driver']}{rest}"
    for device in arrangement.devices:
        # QEMU takes a socket in JSON only.
        yield "-device", _compact(device)


def for_substitution(arrangement: Arrangement) -> str:
    """For $(...): no quotes, as a shell would hand them on. Raises ServerError for names that need some."""
    options = list(words(arrangement))
    for _, word in options:
        if not PLAIN.fullmatch(word):
            raise ServerError(
                f"a shell would not take {word} from $(...) in one piece: have the server's folder at a path"
                " of letters, digits and / . _ - : , = @ % + #, or use --json"
            )
    return "\n".join(" ".join(option) for option in options)


def for_people(arrangement: Arrangement) -> str:
    """For a command that is put together by hand: quoted, a line each."""
    return " \\\n".join(f"{option} {shlex.quote(word)}" for option, word in words(arrangement))


def for_programs(arrangement: Arrangement) -> str:
    """All of it as QMP's object-add and device_add take it; the latter in this order."""
    memory = arrangement.memory
    plain: dict[str, Any] = {"memory": None, "ports": arrangement.ports, "devices": arrangement.devices}
    if memory is not None:
        made: Device = {"qom-type": "memory-backend-memfd", "id": memory.id, "size": memory.bytes}
        plain["memory"] = {"object": {**made, "share": True}, "machine": {"memory-backend": memory.id}}
    return json.dumps(plain, indent=2)


def for_libvirt(arrangement: Arrangement) -> str:
    """The part of a domain's XML that has options of QEMU."""
    ET.register_namespace("qemu", NAMESPACE)
    part = ET.Element(f"{{{NAMESPACE}}}commandline")
    part.append(ET.Comment(LIBVIRT_HINT))
    for option in words(arrangement):
        for word in option:
            ET.SubElement(part, f"{{{NAMESPACE}}}arg", {"value": word})
    ET.indent(part)
    return ET.tostring(part, encoding="unicode")


def _compact(device: Device) -> str:
    return json.dumps(device, separators=(",", ":"), ensure_ascii=False)
