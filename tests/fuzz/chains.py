"""Targets `chains` and `file-chains`: what the driver of a VF can put into its rings.

Every chain is used or the VF needs a reset; it takes one at any time, and works after it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any, ClassVar

from pymodel.spec import block
from tests.fuzz.campaign import Step
from tests.fuzz.hands import (
    AVAIL,
    DATA,
    DESC,
    INDIRECT,
    LOOSE,
    LOOSE_SIZE,
    MAIN,
    MAIN_SIZE,
    NEXT,
    READ_ONLY,
    READ_ONLY_SIZE,
    TABLES,
    USED,
    Hands,
)
from tests.fuzz.owner import BASE, Owner
from tests.fuzz.world import Finding, World

SIZE = 16
PLACES = [
    MAIN,
    DESC,
    DESC + 16,
    AVAIL,
    AVAIL + 2,
    USED,
    USED + 2,
    USED + 4,
    TABLES,
    DATA,
    DATA + 1,
    MAIN + MAIN_SIZE - 8,
    MAIN - 1,
    LOOSE,
    LOOSE + LOOSE_SIZE - 8,
    READ_ONLY,
    READ_ONLY + READ_ONLY_SIZE - 4,
    0,
    1 << 63,
    (1 << 64) - 1,
    (1 << 64) - 16,
]
LENGTHS = [0, 1, 2, 15, 16, 17, 512, 513, 528, 4096, 300 << 10, 1 << 20, 1 << 24, 2**31 - 1, 2**32 - 1]
TABLE_LENGTHS = [0, 1, 15, 16, 17, 32, 16 * SIZE, 16 * (SIZE + 1), 1 << 20, (1 << 32) - 16]
HEADS = [0, 1, SIZE - 1, SIZE, 0x7FFF, 0xFFFF]
STEPS = [0, 1, 2, SIZE - 1, SIZE, SIZE + 1, 0x7FFF, 0x8000, 0xFFFF]
TYPES = [0, 0, 0, 1, 1, 4, 8, 11, 13, 0xFFFFFFFF]
SECTORS = [0, 1, 5, 2047, 2048, (1 << 55) - 1, 1 << 55, (1 << 64) - 1]


class ChainsTarget:
    """The request queue of VF 1, with its owner recording what it writes."""

    features: ClassVar[Sequence[int]] = ()

    def __init__(self, world: World) -> None:
        self.owner = Owner(world)
        self.vf = Hands(world, "vf1", 0, SIZE, features=self.features)
        self.owner.must(BASE + 7, 1)
        self._rings_own = True

    def close(self) -> None:
        self.owner.hands.close()
        self.vf.close()

    # --- cases -------------------------------------------------------------------------------------------

    def generate(self, source: random.Random) -> list[Step]:
        steps: list[Step] = []
        if source.random() < 0.3:
            steps.append(("set_up", self._make_set_up(source)))
        kinds = ["request"] * 4 + ["chain"] * 6 + ["index", "noise", "loose", "busy", "records"]
        for _ in range(source.randint(1, 8)):
            kind = source.choice(kinds)
            steps.append((kind, getattr(self, f"_make_{kind}")(source)))
        return steps

    def _make_set_up(self, source: random.Random) -> list[Any]:
        """Features, and where the rings are."""
        rings = [DESC, AVAIL, USED]
        if source.random() < 0.4:
            rings[source.randrange(3)] = source.choice(PLACES)
        return [[source.random() < 0.5 for _ in range(4)], rings]

    def _make_request(self, source: random.Random) -> list[Any]:
        """A request that makes sense, its data anywhere."""
        segments = [
            [source.choice(PLACES), source.choice(LENGTHS), source.choice([0, 2])]
            for _ in range(source.choice([0, 1, 1, 2, 12]))
        ]
        segments.sort(key=lambda segment: segment[2])
        return [source.choice(TYPES), source.choice(SECTORS), segments, source.random() < 0.5]

    def _make_chain(self, source: random.Random) -> list[Any]:
        """Descriptors that may point anywhere, in the queue's table and in an indirect one."""

        def entries(most: int) -> list[list[int]]:
            found = []
            for slot in range(source.randint(1, most)):
                flags = source.choice([0, 2]) | (NEXT if source.random() < 0.7 else 0)
                address, length = source.choice(PLACES), source.choice(LENGTHS)
                if source.random() < 0.15:
                    flags |= INDIRECT
                    address, length = source.choice([TABLES, *PLACES]), source.choice(TABLE_LENGTHS)
                if source.random() < 0.05:
                    flags |= source.randrange(1 << 16)
                following = slot + 1 if source.random() < 0.8 else source.choice(HEADS)
                found.append([address, length, flags, following])
            return found

        return [
            entries(SIZE),
            entries(SIZE + 2),
            source.choice(HEADS[:4] if source.random() < 0.9 else HEADS),
        ]

    def _make_index(self, source: random.Random) -> list[Any]:
        return [source.choice(STEPS)]

    def _make_noise(self, source: random.Random) -> list[Any]:
        at = source.choice([DESC, AVAIL, AVAIL + 2, USED, TABLES])
        return [at, source.randbytes(source.choice([1, 2, 16, 300])).hex()]

    def _make_loose(self, source: random.Random) -> list[Any]:
        return [source.random() < 0.4]

    def _make_busy(self, source: random.Random) -> list[Any]:
        """The whole disk, as often as the ring has room."""
        return [source.randint(1, SIZE // 4)]

    def _make_records(self, source: random.Random) -> list[Any]:
        return [source.choice([0, 8, 16, 24, 4096])]

    # --- steps -------------------------------------------------------------------------------------------

    def play(self, step: Step) -> None:
        name, arguments = step
        getattr(self, f"_do_{name}")(*arguments)

    def _do_set_up(self, features: list[bool], rings: list[int]) -> None:
        indirect, event_idx, packed, in_order = features
        self.vf.bring_up(
            indirect=indirect, event_idx=event_idx, packed=packed, in_order=in_order, rings=rings
        )
        self._rings_own = rings == [DESC, AVAIL, USED]

    def _look(self) -> None:
        """A register, whatever the queue is about."""
        self.vf.device.common.read("queue_size")

    def _do_request(self, kind: int, sector: int, segments: list[list[int]], indirect: bool) -> None:
        self.vf.poke(DATA + 8192, struct.pack("<IIQ", kind, 0, sector))
        readable = [(DATA + 8192, 16)] + [
            (address, length) for address, length, flags in segments if not flags
        ]
        writable = [(address, length) for address, length, flags in segments if flags]
        self._written(segments)
        self.vf.chain(readable, [*writable, (DATA + 8208, 1)], indirect=indirect)
        self._look()

    def _written(self, segments: list[list[int]]) -> None:
        """The device is told to write to these, (address, length, flags ...)."""
        for address, length, flags, *_ in segments:
            if self.vf.packed is not None and flags & 2:
                self.vf.packed.written(address, length)

    def _do_chain(self, entries: list[list[int]], table: list[list[int]], head: int) -> None:
        self.vf.poke(TABLES, b"".join(struct.pack("<QIHH", *entry) for entry in table))
        if self.vf.packed is not None:
            self.vf.packed.offer([(entry[0], entry[1], entry[2], entry[3]) for entry in entries])
            self._written([*entries, *table])
        else:
            for slot, entry in enumerate(entries):
                self.vf.descriptor(slot, *entry)
            self.vf.offer(head)
        self.vf.kick()
        self._look()

    def _do_index(self, step: int) -> None:
        """A jump of the index; in a packed ring, a wish for interrupts at any place."""
        if self.vf.packed is not None:
            self.vf.poke(AVAIL, struct.pack("<HH", step, step & 3))
        else:
            self.vf.offer(0, step)
        self.vf.kick()
        self._look()

    def _do_noise(self, address: int, noise: str) -> None:
        self.vf.poke(address, bytes.fromhex(noise))
        self._rings_own = False
        self.vf.kick()
        self._look()

    def _do_loose(self, mapped: bool) -> None:
        """The guest takes memory away, whatever the device does with it."""
        self.vf.map_loose(mapped)

    def _do_busy(self, times: int) -> None:
        capacity = self.vf.device.config_read(0, 4) * 512
        self.vf.poke(DATA + 8192, struct.pack("<IIQ", 0, 0, 0))
        for number in range(times):
            if self.vf.packed is not None:
                data = (DATA + (1 << 20), capacity, NEXT | 2, 0)
                self.vf.packed.offer([(DATA + 8192, 16, NEXT, 0), data, (DATA + 8208, 1, 2, number)])
                continue
            slot = 3 * number
            self.vf.descriptor(slot, DATA + 8192, 16, NEXT, slot + 1)
            self.vf.descriptor(slot + 1, DATA + (1 << 20), capacity, NEXT | 2, slot + 2)
            self.vf.descriptor(slot + 2, DATA + 8208, 1, 2, 0)
            self.vf.offer(slot)
        self.vf.kick()
        self._look()

    def _do_records(self, room: int) -> None:
        """The owner asks meanwhile, and does not wait for long."""
        result = self.owner.must(BASE + 8, 1, room=16 + room)
        left, count = struct.unpack_from("<II", result.ljust(8, b"\0"))
        if len(result) != 8 + 16 * count or (count == 0 and left and room >= 16):
            raise Finding(f"{count} runs in {len(result)} bytes, {left} left")

    def finish(self) -> None:
        """Chains of rings that nobody scribbled on were used, or the VF is broken; reset, it works."""
        if not self.vf.world.wait(self._done):
            raise Finding("a chain was neither used nor refused")
        self.owner.must(BASE + 7, 1)
        self.vf.bring_up()
        self._rings_own = True
        self.vf.poke(DATA, struct.pack("<IIQ", 8, 0, 0))
        self.vf.chain([(DATA, 16)], [(DATA + 64, 21)], indirect=True)
        if self.vf.answered() != 21:
            raise Finding("VF 1 does not answer after a reset")

    def _done(self) -> bool:
        # A device that writes data into its own rings, as it was told, may make itself work for ever.
        if not self._rings_own or self.vf.broken:
            return True
        if self.vf.packed is not None:
            return not self.vf.packed.sound or self.vf.packed.all_used()
        return self.vf.used_idx == self.vf.u16(AVAIL + 2)


class FileChainsTarget(ChainsTarget):
    """The same with the disk in a file, by a driver that flushes: with `--wire` longer writes go in parts."""

    device: ClassVar[str] = "file"
    features: ClassVar[Sequence[int]] = (block.F_FLUSH,)
