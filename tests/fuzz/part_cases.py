"""What is done to a VF by target `parts`: cases by seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from tests.fuzz import context as contexts
from tests.fuzz.campaign import Step
from tests.fuzz.owner import DISCARD, READ, SET, WRITE
from tests.fuzz.part_streams import Part, Shape, mutated

CREATE, QUERY, MODIFY, DESTROY = 0x0A, 0x0B, 0x0C, 0x0D
METADATA_GET, PARTS_GET, PARTS_SET, PARTS_MODE_SET = 0x0E, 0x0F, 0x10, 0x11
TO_GET, TO_SET = 0, 1
IDS = [0, 0, 1, 1, 2, 253, 255, 1 << 31, (1 << 32) - 1]
# Objects of the target's own: one to look with, one to set with.
LOOK, TAKE = 254, 252
ROOMS = [0, 1, 7, 8, 9, 16, 24, 40, 41, 500, 4096, 1 << 16]


class PartCases:
    """Cases about a VF that `templates` are sets of parts of; `shapes` make data of control commands."""

    def __init__(self, templates: Sequence[Sequence[Part]], shapes: Mapping[tuple[int, int], Shape]) -> None:
        self._templates = templates
        self._shapes = shapes

    def generate(self, source: random.Random) -> list[Step]:
        kinds = ["set"] * 8 + ["mode"] * 4 + ["get", "object", "driver", "context"] * 2
        kinds += ["reset", "flr", "power", "owner", "limits", "loose", "client"]
        steps: list[Step] = []
        if source.random() < 0.5:
            steps += [("object", [CREATE, id_, id_, 0, 0, 1]) for id_ in (TO_GET, TO_SET)]
        for _ in range(source.randint(1, 8)):
            kind = source.choice(kinds)
            if kind == "set" and source.random() < 0.8:
                steps.append(("mode", [1]))
            steps.append((kind, getattr(self, f"_make_{kind}")(source)))
        if source.random() < 0.02:
            steps.insert(source.randrange(len(steps) + 1), ("vfs", []))
        return steps

    def _make_set(self, source: random.Random) -> list[Any]:
        template = list(source.choice(self._templates))
        stream = mutated(source, template, self._shapes)
        cuts = [source.randrange(len(stream) + 1) for _ in range(source.choice([0, 0, 1, 3, 20]))]
        return [stream.hex(), cuts, source.random() < 0.5, source.choice([TAKE] * 30 + IDS)]

    def _make_mode(self, source: random.Random) -> list[Any]:
        return [source.choice([0, 1, 0, 1, 0, 1, 2, 3, 0x81, 0xFF])]

    def _make_get(self, source: random.Random) -> list[Any]:
        template = source.choice(self._templates)
        wanted = [found for found in template if source.random() < 0.3]
        heads = b"".join(found.encode()[:16] for found in wanted) + source.randbytes(source.choice([0, 0, 9]))
        opcode = source.choice([METADATA_GET, PARTS_GET])
        return [opcode, source.choice([0, 1, 1, 2, 3, 0xFF]), heads.hex(), source.choice(ROOMS)]

    def _make_object(self, source: random.Random) -> list[Any]:
        opcode = source.choice([CREATE, CREATE, QUERY, MODIFY, DESTROY])
        kind, flags = source.choice([0] * 8 + [1, 0xFFFF]), source.choice([0] * 8 + [1, 1 << 63])
        return [
            opcode,
            source.choice(IDS),
            source.choice([0, 0, 1, 1, 2, 0xFF]),
            kind,
            flags,
            source.choice([1, 1, 1, 1, 2]),
        ]

    def _make_driver(self, source: random.Random) -> list[Any]:
        """A register is written, the queue offered something, or all set up anew."""
        what = source.choice(["register", "register", "avail", "request", "master", "bring_up"])
        return [what, source.randrange(0x40), source.choice([1, 2, 4]), source.randrange(1 << 32)]

    def _make_context(self, source: random.Random) -> list[Any]:
        opcode = source.choice([SET, SET, READ, WRITE, WRITE, DISCARD])
        data = bytes([source.choice([0, 1, 2, 2, 3])]) if opcode == SET else b""
        if opcode == WRITE:
            data = contexts.encode(contexts.queue_moved(source, [contexts.part(0), contexts.part(1)]))
        return [opcode, data.hex(), source.choice([16, 17, 100, 1 << 16])]

    def _make_reset(self, source: random.Random) -> list[Any]:
        return []

    def _make_flr(self, source: random.Random) -> list[Any]:
        return [source.random() < 0.5]

    def _make_power(self, source: random.Random) -> list[Any]:
        return []

    def _make_owner(self, source: random.Random) -> list[Any]:
        return []

    def _make_limits(self, source: random.Random) -> list[Any]:
        return [source.choice([0, 1, 2, 255]), source.choice([0, 1, 2, 255])]

    def _make_loose(self, source: random.Random) -> list[Any]:
        return [source.random() < 0.5]

    def _make_client(self, source: random.Random) -> list[Any]:
        return []
