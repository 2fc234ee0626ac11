"""Target `admin`: commands of every shape on the PF's admin queue.

Whatever comes, it is answered by the frame's rules; a command that failed left modes and list as they were.
"""

from __future__ import annotations

import random
import struct
from typing import Any

from tests.fuzz.campaign import Step
from tests.fuzz.hands import DATA, LOOSE, LOOSE_SIZE, READ_ONLY, Hands
from tests.fuzz.owner import ACTIVE, BASE, READABLE, SET, WRITABLE, Owner
from tests.fuzz.world import Finding, World

OPCODES = [0, 1, 2, 7, 8, 9, 0x0A, 0x11, 0x12, *range(BASE - 1, BASE + 11), 0x7FFF, 0x8000, 0xFFFF]
MEMBERS = [0, 1, 1, 1, 1, 2, 4, 0xFFFF, 1 << 32, (1 << 64) - 1, (1 << 32) + 1]
LENGTHS = [0, 1, 7, 8, 9, 16, 24, 31, 32, 64, 1000]
ROOMS = [0, 1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 4096, 1 << 20]
WEIRD = [0, 1, (1 << 64) - 1, (1 << 64) - 4096, READ_ONLY, LOOSE, LOOSE + LOOSE_SIZE - 1, DATA]
SIZES = [0, 1, 8, 24, 4096, 1 << 20, 1 << 24, (1 << 31), (1 << 32) - 1]


class AdminTarget:
    """VF 1 and its owner, VF 1 with a client that lets it run."""

    def __init__(self, world: World) -> None:
        self.owner = Owner(world)
        self.vf = Hands(world, "vf1", 0, 16)
        self._modes = self._state()

    def close(self) -> None:
        self.owner.hands.close()
        self.vf.close()

    def _state(self) -> list[int]:
        return [self.owner.mode(vf) for vf in (1, 2)]

    # --- cases -------------------------------------------------------------------------------------------

    def generate(self, source: random.Random) -> list[Step]:
        kinds = ["command"] * 10 + ["bare"] * 3 + ["several", "lists", "loose", "request", "flr", "registers"]
        steps: list[Step] = []
        for _ in range(source.randint(1, 8)):
            kind = source.choice(kinds)
            steps.append((kind, getattr(self, f"_make_{kind}")(source)))
        return steps

    @staticmethod
    def _frame(source: random.Random) -> bytes:
        opcode = source.choice(OPCODES) if source.random() < 0.9 else source.randrange(1 << 16)
        group = source.choice([1] * 8 + [0, 2, 0xFFFF])
        reserved = source.randbytes(12) if source.random() < 0.3 else bytes(12)
        frame = struct.pack("<HH", opcode, group) + reserved + struct.pack("<Q", source.choice(MEMBERS))
        data = bytes([source.randrange(4)]).ljust(8, b"\0") if source.random() < 0.6 else b""
        if source.random() < 0.4:
            data = source.randbytes(source.choice(LENGTHS))
        frame += data
        return frame if source.random() < 0.9 else frame[: source.randrange(len(frame))]

    def _make_command(self, source: random.Random) -> list[Any]:
        frame = self._frame(source)
        room = source.choice(ROOMS)
        cuts = [source.randrange(len(frame) + 1) for _ in range(source.choice([0, 0, 1, 3, 20]))]
        out = [source.randrange(room + 1) for _ in range(source.choice([0, 0, 1, 3, 20]))]
        return [frame.hex(), room, cuts, out, source.random() < 0.5]

    def _make_bare(self, source: random.Random) -> list[Any]:
        """A chain of any descriptors, its head at a good frame most of the time."""
        entries = [[READABLE, 24, 0]] if source.random() < 0.8 else []
        for _ in range(source.randint(0, 6)):
            address = source.choice([READABLE, WRITABLE, *WEIRD])
            entries.append([address, source.choice(SIZES), source.choice([0, 2])])
        if source.random() < 0.8:
            entries.sort(key=lambda entry: entry[2])
        return [self._frame(source).hex(), entries, source.random() < 0.5]

    def _make_several(self, source: random.Random) -> list[Any]:
        return [[self._frame(source)[:64].hex() for _ in range(source.randint(2, 16))]]

    def _make_lists(self, source: random.Random) -> list[Any]:
        return [source.choice([0, 1]), source.choice([0, 1, 3, 0x380, 0x3FF << BASE | 3, 1 << 300])]

    def _make_loose(self, source: random.Random) -> list[Any]:
        return [source.random() < 0.5]

    def _make_request(self, source: random.Random) -> list[Any]:
        return [source.randrange(20000)]

    def _make_flr(self, source: random.Random) -> list[Any]:
        return []

    def _make_registers(self, source: random.Random) -> list[Any]:
        return [source.randrange(0x40), source.choice([1, 2, 4]), source.randrange(1 << 32)]

    # --- steps -------------------------------------------------------------------------------------------

    def play(self, step: Step) -> None:
        name, arguments = step
        getattr(self, f"_do_{name}")(*arguments)

    def _do_command(self, frame: str, room: int, cuts: list[int], out: list[int], indirect: bool) -> None:
        raw = bytes.fromhex(frame)
        before = self._modes
        answer = self.owner.command(raw, room, cuts, out, indirect=indirect)
        if struct.unpack_from("<HH", raw.ljust(24, b"\0")) == (1, 1) and room:
            self.owner.restart()  # another list may be in use
        after = self._state()
        if after != before and (answer.status not in (None, (0, 0)) or raw[:1] != bytes([SET])):
            raise Finding(f"modes {before} became {after} by a command answered {answer.status}")
        self._modes = after

    def _do_bare(self, frame: str, entries: list[list[int]], indirect: bool) -> None:
        hands = self.owner.hands
        hands.poke(READABLE, bytes.fromhex(frame))
        readable = [(address, size) for address, size, flags in entries if not flags]
        writable = [(address, size) for address, size, flags in entries if flags]
        if not readable and not writable:
            writable = [(WRITABLE, 8)]
        hands.chain(readable, writable, indirect=indirect)
        hands.answered()
        self._recover()

    def _do_several(self, frames: list[str]) -> None:
        """Many commands at once, with one notification."""
        hands = self.owner.hands
        for number, frame in enumerate(frames):
            raw = bytes.fromhex(frame)
            address = READABLE + 0x1000 * number
            hands.poke(address, raw)
            hands.descriptor(2 * number, address, len(raw), 1, 2 * number + 1)
            hands.descriptor(2 * number + 1, WRITABLE + 0x1000 * number, 0x1000, 2, 0)
            hands.offer(2 * number)
        hands.kick()
        if hands.answered() is None:
            raise Finding("well-formed chains broke the PF")
        self._recover()

    def _do_lists(self, group: int, bits: int) -> None:
        size = max(8, (bits.bit_length() + 63) // 64 * 8)
        self.owner.command(struct.pack("<HH12xQ", 1, group, 0) + bits.to_bytes(size, "little"))
        self.owner.restart()

    def _do_loose(self, mapped: bool) -> None:
        self.owner.hands.map_loose(mapped)

    def _do_request(self, sector: int) -> None:
        """VF 1 has something to do."""
        self.vf.poke(DATA, struct.pack("<IIQ", 0, 0, sector))
        self.vf.chain([(DATA, 16)], [(DATA + 512, 513)], indirect=False)

    def _do_flr(self) -> None:
        self.vf.connection.device_reset()
        if self._modes[0] == ACTIVE:
            self.vf.bring_up()

    def _do_registers(self, offset: int, size: int, value: int) -> None:
        """Any write to VF 1's common configuration, in any mode."""
        value &= (1 << 8 * size) - 1
        self.vf.device.common.raw_write(offset & -size, size, value)

    def _recover(self) -> None:
        """After what may have broken the PF or used any list."""
        self.owner.restart()
        self._modes = self._state()

    def finish(self) -> None:
        """Both VFs go Active, and VF 1 works."""
        for vf in (1, 2):
            self.owner.set_mode(vf, ACTIVE)
        self._modes = self._state()
        self.vf.bring_up()
        self._do_request(3)
        if self.vf.answered() != 513:
            raise Finding("VF 1 does not answer after a reset")
