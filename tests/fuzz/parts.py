"""Target `parts`: streams of device parts, and what else can be done to a VF that is moved by them.

A PARTS_SET that failed changed nothing, and one that was taken is what PARTS_GET tells; resets bring all
parts back to their defaults; device parts and device contexts keep out of each other's way. Whatever was
taken, the VF works after a reset.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from pymodel.spec import pci
from tests.fuzz import part_streams
from tests.fuzz.campaign import Step
from tests.fuzz.hands import AVAIL, DATA, Hands
from tests.fuzz.owner import ACTIVE, FREEZE, STOP, Answer, Owner
from tests.fuzz.part_cases import (
    CREATE,
    DESTROY,
    LOOK,
    METADATA_GET,
    MODIFY,
    PARTS_GET,
    PARTS_SET,
    QUERY,
    TAKE,
    TO_GET,
    TO_SET,
    PartCases,
)
from tests.fuzz.part_cases import PARTS_MODE_SET as MODE_SET
from tests.fuzz.world import Finding, World
from vfu_client.vfio.sriov import SrIov

CAP_SET = 0x09
WRONG_STATE, WRONG_CONTENT = (22, 1), (22, 3)


class PartsOwner(Owner):
    """All commands of the SR-IOV group, and as many objects as there can be."""

    ALL: ClassVar[int] = 0x3FF << 0x40 | 0b11 | 0x7FF << CAP_SET - 2

    def open(self) -> None:
        if not self.command(struct.pack("<HH12xQ", 1, 1, 0) + self.ALL.to_bytes(16, "little")).ok:
            raise Finding("LIST_USE was refused")
        self.limit(255, 255)

    def limit(self, get: int, put: int) -> bool:
        """DRIVER_CAP_SET."""
        return self.command(struct.pack("<HH12xQH6xBB", CAP_SET, 1, 0, 0, get, put)).ok


class Look(NamedTuple):
    """What can be seen of the VF; `parts` is None while it is in the hands of device contexts."""

    mode: int
    parts: bytes | None


def named(id_: int, kind: int = 0) -> bytes:
    return struct.pack("<HxxI", kind, id_)


class PartsTarget:
    """VF 1, whose disk is no part of its state, under its driver's hands and its owner's."""

    device: ClassVar[str] = "file"
    queue: ClassVar[int] = 0
    features: ClassVar[Sequence[int]] = ()
    shapes: ClassVar[Mapping[tuple[int, int], part_streams.Shape]] = {}

    def __init__(self, world: World) -> None:
        self.world = world
        self.owner = PartsOwner(world)
        self._objects: dict[int, int] = {}
        self._connect()
        self.vf.connection.device_reset()
        self._default = self._seen()
        templates = []
        for packed in (False, True):
            self.vf.bring_up(packed=packed)
            self._request(5)
            if self.vf.answered() is None:
                raise Finding("VF 1 does not work")
            templates.append(part_streams.decode(self._seen()))
        self._cases = PartCases(templates, self.shapes)

    def _connect(self) -> None:
        self.vf = Hands(self.world, "vf1", self.queue, 16, features=self.features)

    def close(self) -> None:
        self.owner.hands.close()
        self.vf.close()

    def _request(self, sector: int) -> None:
        """Something for the VF to do."""
        self.vf.poke(DATA, struct.pack("<IIQ", 0, 0, sector))
        self.vf.chain([(DATA, 16)], [(DATA + 512, 513)], indirect=False)

    # --- what can be seen --------------------------------------------------------------------------------

    def _about(self, opcode: int, id_: int, data: bytes = b"", room: int = 1 << 16) -> Answer:
        return self.owner.member(opcode, 1, named(id_) + data, room)

    def _create(self, id_: int, operation: int) -> Answer:
        return self._about(CREATE, id_, struct.pack("<QB7x", 0, operation))

    def _look(self) -> Look:
        self.vf.settle()
        mode = self.owner.mode(1)
        made = self._create(LOOK, TO_GET)
        if made.status == WRONG_STATE:
            return Look(mode, None)
        if not made.ok:
            raise Finding(f"an object was refused: {made.status}")
        answer = self._about(PARTS_GET, LOOK, b"\1" + bytes(7))
        if not answer.ok or not self._about(DESTROY, LOOK).ok:
            raise Finding(f"PARTS_GET or DESTROY was refused: {answer.status}")
        return Look(mode, answer.result)

    def _seen(self) -> bytes:
        parts = self._look().parts
        if parts is None:
            raise Finding("parts cannot be had")
        return parts

    def _same(self, before: Look, what: str) -> Look:
        """Nothing has changed; what runs may change by itself."""
        after = self._look()
        if after.mode != before.mode or (after.mode != ACTIVE and after.parts != before.parts):
            raise Finding(f"{what} was refused and changed something: {before} to {after}")
        return after

    def generate(self, source: random.Random) -> list[Step]:
        return self._cases.generate(source)

    # --- steps -------------------------------------------------------------------------------------------

    def play(self, step: Step) -> None:
        name, arguments = step
        getattr(self, f"_do_{name}")(*arguments)

    def _do_set(self, stream: str, cuts: list[int], indirect: bool, id_: int) -> None:
        data = bytes.fromhex(stream)
        taking = id_ == TAKE and self._create(TAKE, TO_SET).ok
        before = self._look()
        frame = struct.pack("<HH12xQ", PARTS_SET, 1, 1) + named(id_) + data
        answer = self.owner.command(frame, read_cuts=[32 + at for at in cuts], indirect=indirect)
        if not answer.ok:
            self._same(before, "PARTS_SET")
        elif before.mode != STOP or before.parts is None or not (taking or self._objects.get(id_) == TO_SET):
            raise Finding(f"PARTS_SET was taken in {before.mode}, objects {self._objects}")
        else:
            self._judge(data, id_)
        if taking and not self._about(DESTROY, TAKE).ok:
            raise Finding("an object cannot be destroyed")

    def _judge(self, data: bytes, id_: int) -> None:
        """What was taken is told, and what is told is taken and told again."""
        told = self._seen()
        after = {(part.kind, part.selector): part.value for part in part_streams.decode(told)}
        given = part_streams.decode(data)
        for part in given:
            if part.exact(given) and after.get((part.kind, part.selector)) != part.value:
                raise Finding(f"{part} was taken, and is not told")
        if not self._about(PARTS_SET, id_, told).ok or self._seen() != told:
            raise Finding("what PARTS_GET told is not taken back")

    def _do_mode(self, flags: int) -> None:
        before = self._look()
        answer = self.owner.member(MODE_SET, 1, bytes([flags]))
        if answer.ok != (before.parts is not None and flags <= 1):
            raise Finding(f"MODE_SET {flags} in {before}: {answer.status}")
        if not answer.ok:
            self._same(before, "MODE_SET")
        elif self.owner.mode(1) != flags:
            raise Finding(f"MODE_SET {flags}: the mode is {self.owner.mode(1)}")

    def _do_get(self, opcode: int, kind: int, heads: str, room: int) -> None:
        id_ = next((id_ for id_, operation in self._objects.items() if operation == TO_GET), 0)
        answer = self._about(opcode, id_, bytes([kind]) + bytes(7) + bytes.fromhex(heads), room)
        if self._objects.get(id_) != TO_GET or self.owner.mode(1) == ACTIVE:
            return
        parts = self._seen()
        whole = part_streams.decode(parts)
        if opcode == METADATA_GET:
            listed = b"".join(part.encode()[:16] for part in whole) if kind == 2 else b""
            number = len(parts) if kind == 0 else len(whole)
            expected = struct.pack("<II", number, 0) + listed
            fits = len(expected) + 8 <= room or kind < 2
            wanted = (0, 0) if fits and kind < 3 else WRONG_CONTENT if kind > 2 else (12, 6)
        else:
            asked = [bytes.fromhex(heads)[at : at + 16] for at in range(0, len(heads) // 2 - 15, 16)]
            keys = [(head[:2], head[4:12]) for head in asked]
            chosen = [p for p in whole if kind or (struct.pack("<H", p.kind), p.selector) in keys]
            expected, wanted = part_streams.encode(chosen), (0, 0) if kind < 2 else WRONG_CONTENT
        if answer.status not in (None, wanted) or (answer.ok and answer.result != expected[: room - 8]):
            raise Finding(f"command {opcode:#x}, {kind}, with room for {room}: {answer}")

    def _do_object(self, opcode: int, id_: int, operation: int, kind: int, flags: int, vf: int) -> None:
        free = self._look().parts is not None
        data = named(id_, kind) + struct.pack("<QB7x", flags, operation)
        answer = self.owner.member(opcode, vf, data)
        there = id_ in self._objects and vf == 1 and not kind
        good = not flags and operation <= 1 and id_ < 255
        may = {
            CREATE: good and not kind and id_ not in self._objects and (free or vf == 2),
            QUERY: there,
            MODIFY: there and good,
            DESTROY: there,
        }[opcode]
        if answer.ok != may:
            raise Finding(f"object command {opcode:#x} of {id_}, {self._objects}: {answer.status}")
        if not answer.ok:
            return
        if opcode == QUERY and answer.result != struct.pack("<B7x", self._objects[id_]):
            raise Finding(f"object {id_} is told as {answer.result.hex()}")
        if opcode == CREATE and vf == 2:
            self.owner.must(DESTROY, 2, named(id_))
        elif opcode in (CREATE, MODIFY):
            self._objects[id_] = operation
        elif opcode == DESTROY:
            del self._objects[id_]

    def _do_driver(self, what: str, offset: int, size: int, value: int) -> None:
        mode = self.owner.mode(1)
        if what == "register":
            self.vf.device.common.raw_write(offset & -size, size, value & (1 << 8 * size) - 1)
        elif what == "master":
            function = self.vf.device.function
            (function.set_command if value & 1 else function.clear_command)(pci.COMMAND_MASTER)
        elif what == "avail":
            self.vf.poke(AVAIL + 2, (value & 0xFFFF).to_bytes(2, "little"))
            self.vf.kick()
        elif what == "request":
            self.vf.poke(DATA, struct.pack("<IIQ", value & 1, 0, value & 0xFF))
            if self.vf.packed is None:
                self.vf.chain([(DATA, 528)], [(DATA + 1024, 513)], indirect=False)
        elif mode != FREEZE:
            self.vf.bring_up(packed=bool(value & 1), event_idx=bool(value & 2), in_order=bool(value & 4))
        self.vf.device.common.read("queue_size")

    def _do_context(self, opcode: int, data: str, room: int) -> None:
        before = self._look()
        answer = self.owner.member(opcode, 1, bytes.fromhex(data), room)
        ours = before.parts is not None and (before.mode == STOP or bool(self._objects))
        if answer.ok and ours:
            raise Finding(f"context command {opcode:#x} of {before.mode}, in the hands of device parts")
        if not answer.ok:
            self._same(before, f"context command {opcode:#x}")

    def _do_reset(self) -> None:
        before = self._look()
        self.vf.device.common.write("device_status", 0)
        self.vf.device.common.read("device_status")
        after = self._look()
        if after.mode != before.mode or (after.parts not in (None, self._default)):
            raise Finding(f"a device reset left {after}, not {self._default.hex()}")

    def _do_flr(self, by_register: bool) -> None:
        before = self._look()
        if by_register:
            self.vf.device.function.flr()
            self.vf.device.function.header("device_id")
        else:
            self.vf.connection.device_reset()
        after = self._look()
        mode = ACTIVE if before.parts is not None else before.mode
        if after.mode != mode or after.parts not in (None, self._default):
            raise Finding(f"a function reset of {before} left {after}")

    def _do_power(self) -> None:
        for state in (3, 0):
            self.vf.device.function.set_power_state(state)
            self.owner.mode(1)

    def _do_owner(self) -> None:
        before = self._look()
        self.owner.restart()
        self._objects.clear()
        self._same(before, "a reset of the PF")

    def _do_limits(self, get: int, put: int) -> None:
        fits = all(id_ < (put if operation else get) for id_, operation in self._objects.items())
        if self.owner.limit(get, put) != fits:
            raise Finding(f"limits of {get} and {put} with objects {self._objects}")
        self.owner.limit(255, 255)

    def _do_loose(self, mapped: bool) -> None:
        self.vf.map_loose(mapped)

    def _do_client(self) -> None:
        """The VF's client hangs up, and another one comes."""
        mode = self.owner.mode(1)
        if mode != FREEZE:
            self.vf.close()
            self._connect()
            if self.owner.mode(1) != mode:
                raise Finding(f"another client: mode {mode} became {self.owner.mode(1)}")

    def _do_vfs(self) -> None:
        """All VFs go, and new ones come."""
        self.vf.close()
        functions = SrIov(self.owner.hands.device.function)

        def disable() -> None:
            functions.disable()
            self._objects.clear()
            if self.owner.member(MODE_SET, 1, b"\1").status != (22, 4):
                raise Finding("there is a member without VF Enable")

        self.world.renew_vfs(disable, lambda: functions.enable(3))
        self._connect()
        if self.owner.mode(1) != ACTIVE:
            raise Finding("a new VF does not run")

    def finish(self) -> None:
        """Every object can be destroyed; the VF runs, and works after a reset."""
        for id_ in self._objects:
            self.owner.must(DESTROY, 1, named(id_))
        self._objects.clear()
        if self._look().parts is None:
            self.owner.set_mode(1, ACTIVE)
        self.owner.must(MODE_SET, 1, b"\0")
        self.vf.device.function.set_command(pci.COMMAND_MEMORY | pci.COMMAND_MASTER)
        self.vf.connection.device_reset()
        self.vf.bring_up()
        self._request(3)
        if self.vf.answered() is None:
            raise Finding("VF 1 does not answer after a reset")


class NetPartsTarget(PartsTarget):
    """VF 1 is a network function, whose settings are parts too."""

    device = "net"
    queue = 1
    features = (2, 5, 16, 17, 18, 19, 20, 21, 22, 23, 57, 60)
    shapes = part_streams.NET_SHAPES

    def _request(self, sector: int) -> None:
        self.vf.poke(DATA, bytes(20) + b"\2\0\0\0\0\1\2\0\0\0\0\2\x88\xb5" + bytes(46))
        self.vf.chain([(DATA, 80)], [], indirect=False)
