"""Target `net`: what the driver of a network VF can put into its rings, and its owner into its context.

Every chain is used or the VF needs a reset; a command is answered with one byte, 0 or 1; whatever happened,
the VF receives what its neighbour sends once a driver has set it up again.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from tests.fuzz.campaign import Step
from tests.fuzz.context import decode, encode, part
from tests.fuzz.owner import ACTIVE, FREEZE, Owner
from tests.fuzz.world import Finding, World
from vfu_client.drivers.net import FEATURES, Header, NetDriver
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.driver_queue import DriverQueue, QueueFullError
from vfu_client.virtio.function import VirtioPci

MEMORY = 8 << 20
# Above what the driver itself allocates: it takes from the bottom.
SCRATCH = 0x1_0000_0000 + (4 << 20)
COMMAND, ANSWER, BULK = SCRATCH, SCRATCH + (1 << 18), SCRATCH + (1 << 19)
PLACES = [BULK, BULK + 1, BULK + 4096, 0x1_0000_0000, 0x1_0000_0000 + MEMORY - 8, 0, 1 << 63, (1 << 64) - 16]
LENGTHS = [0, 1, 11, 12, 13, 20, 25, 26, 60, 512, 1526, 2048, 65577, 65600, 1 << 20, (1 << 32) - 1]
OFFLOADS = frozenset({0, 1, 2, 7, 8, 9, 11, 12, 13, 54, 55, 56})
TAKEN = [FEATURES, FEATURES | OFFLOADS, FEATURES | {57, 60, 21}, FEATURES - {15}, frozenset[int]()]
KINDS = [(0, command) for command in range(7)] + [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0), (4, 0)]
KINDS += [(4, 1), (4, 2), (5, 0), (6, 0), (255, 255)]
FIELDS = {0x100: 8, 0x101: 8, 0x102: 512, 0x103: 8, 0x104: 48, 0x105: 8, 0x106: 8, 0x13: 24}
NEEDS_RESET = 0x40


class NetTarget:
    """VF 1 under attack, VF 2 its neighbour at the switch, both with two queue pairs."""

    device: ClassVar[str] = "net"

    def __init__(self, world: World) -> None:
        self.world = world
        self.owner = Owner(world)
        self.peer = self._open("vf2", FEATURES | OFFLOADS, 64)
        self.vf = self._open("vf1", FEATURES, 16)
        # A buffer of frames may be unusable, and a device with a thread of its own finds out later.
        self._may_break = False

    def _open(self, name: str, features: frozenset[int], size: int) -> NetDriver:
        memory = GuestMemory()
        memory.add_region(MEMORY)
        connection = self.world.connect(name)
        memory.attach(connection)
        return NetDriver(VirtioPci(connection, memory), features=features, queue_size=size)

    @staticmethod
    def _close(driver: NetDriver) -> None:
        driver.close()
        driver.device.memory.close()

    def close(self) -> None:
        self.owner.hands.close()
        self._close(self.vf)
        self._close(self.peer)

    # --- cases -------------------------------------------------------------------------------------------

    def generate(self, source: random.Random) -> list[Step]:
        steps: list[Step] = []
        if source.random() < 0.4:
            steps.append(("restart", [source.randrange(len(TAKEN))]))
        kinds = ["command"] * 8 + ["send"] * 4 + ["receive"] * 3 + ["flood"] * 3 + ["context"]
        for _ in range(source.randint(1, 10)):
            kind = source.choice(kinds)
            steps.append((kind, getattr(self, f"_make_{kind}")(source)))
        return steps

    @staticmethod
    def _make_command(source: random.Random) -> list[Any]:
        kind = source.choice(KINDS)
        shape = SHAPES.get(kind) if source.random() < 0.8 else source.choice(list(SHAPES.values()))
        data = shape(source) if shape is not None else source.randbytes(source.choice(LENGTHS[:9]))
        return [list(kind), data.hex(), source.choice([1, 1, 1, 1, 0, 2, 100]), source.random() < 0.1]

    @staticmethod
    def _make_send(source: random.Random) -> list[Any]:
        """A header, and where the frame is."""
        fields = (
            source.choice([0, 0, 1, 1, 2, 0xFF]),
            source.choice([0, 0, 1, 3, 4, 5, 0x81, 0x21, 0xFF]),
            *(source.choice([0, 1, 14, 34, 54, 100, 1448, 0xFFFF]) for _ in range(4)),
        )
        segments = [
            [source.choice(PLACES[:4] if source.random() < 0.9 else PLACES), source.choice(LENGTHS)]
            for _ in range(source.choice([0, 1, 1, 2, 5]))
        ]
        if source.random() < 0.5:
            fields, segments = (0,) * 6, [[BULK, source.choice([60, 512, 1514])]]
        return [list(fields), segments, source.choice([12, 12, 12, 20, 5, 0])]

    @staticmethod
    def _make_receive(source: random.Random) -> list[Any]:
        return [
            [
                [source.choice(PLACES[:4] if source.random() < 0.9 else PLACES), source.choice(LENGTHS)]
                for _ in range(source.choice([1, 1, 2]))
            ]
            for _ in range(source.randint(1, 6))
        ]

    @staticmethod
    def _make_flood(source: random.Random) -> list[Any]:
        return [source.choice([1, 5, 50, 300]), source.choice([60, 1514, 9000]), source.random() < 0.3]

    @staticmethod
    def _make_context(source: random.Random) -> list[Any]:
        kind = source.choice(list(FIELDS))
        length = max(0, FIELDS[kind] + source.choice([0, 0, 0, 6, 12, -1, 2, 256]))
        if kind == 0x101 and length == FIELDS[kind] + 6:
            value = b"\1" + bytes(7) + b"\2" + source.randbytes(5)
        elif kind == 0x105:
            count = source.choice([0, 1, 2, 4, 3, 128])
            value = struct.pack("<HH4x", count, source.choice([0, 1, 2])) + bytes(
                source.choice([0, 0, 0, 1, 2]) if at % 2 == 0 else 0 for at in range(2 * count)
            )
        else:
            value = bytes(source.choice([0, 0, 0, 1, 2, 255]) for _ in range(length))
        return [kind, value.hex()]

    # --- steps -------------------------------------------------------------------------------------------

    def play(self, step: Step) -> None:
        name, arguments = step
        getattr(self, f"_do_{name}")(*arguments)

    @property
    def _broken(self) -> bool:
        return bool(self.vf.device.status & NEEDS_RESET)

    def _poke(self, address: int, data: bytes) -> None:
        self.vf.device.memory.buffer(address, len(data)).view[:] = np.frombuffer(data, np.uint8)

    def _put(self, queue: DriverQueue, readable: list[list[int]], writable: list[list[int]]) -> bool:
        """Offer a chain. Whether there was room."""
        try:
            queue.add(
                [(address, length) for address, length in readable],
                [(address, length) for address, length in writable],
            )
        except QueueFullError:
            return False
        queue.kick(force=True)
        return True

    def _do_restart(self, features: int) -> None:
        self._close(self.vf)
        self.vf = self._open("vf1", TAKEN[features], 16)
        self._may_break = False

    def _do_command(self, kind: list[int], data: str, room: int, cut: bool) -> None:
        queue = self.vf.control
        if queue is None or self._broken:
            return
        raw = bytes(kind) + bytes.fromhex(data)
        self._poke(COMMAND, raw[: 1 << 18])
        self._poke(ANSWER, b"\xa5" * 128)
        first = 1 if cut else min(2, len(raw))
        readable = [[COMMAND, first], [COMMAND + first, len(raw) - first]]
        before = queue.device_used_idx
        if not self._put(queue, readable, [[ANSWER, room]] if room else []):
            return
        if not self.world.wait(lambda: queue.device_used_idx != before or self._broken):
            raise Finding(f"command {kind}: no answer")
        if queue.device_used_idx == before:
            if room and not self._may_break:
                raise Finding(f"command {kind} with room for an answer broke the VF")
            return
        (done,) = queue.collect()
        answer = self.vf.device.memory.buffer(ANSWER, 128).view.tobytes()
        if done.length != 1 or answer[0] > 1 or answer[1:].strip(b"\xa5"):
            raise Finding(f"command {kind}: {done.length} bytes used, {answer[:4].hex()}")

    def _do_send(self, fields: list[int], segments: list[list[int]], header: int) -> None:
        self._poke(COMMAND, struct.pack("<BBHHHH", *fields).ljust(20, b"\0"))
        self._may_break = True
        self._put(self.vf.transmitters[0], [[COMMAND, header], *segments], [])
        self._look()

    def _do_receive(self, *chains: list[list[int]]) -> None:
        self._may_break = True
        for chain in chains:
            self._put(self.vf.receivers[0], [], chain)
        self._look()

    def _do_flood(self, count: int, size: int, offload: bool) -> None:
        frame = self.vf.device.config_bytes(0, 6) + b"\x02\0\0\0\0\x42\x08\0" + bytes([0x45]) + bytes(size)
        for _ in range(count):
            self.peer.send(frame, header=Header(flags=1, csum_start=34, csum_offset=6) if offload else None)
        self.peer.flush()
        self._look()

    def _do_context(self, kind: int, value: str) -> None:
        # What the driver has posted is in front of it: a write that comes in Freeze is lost (DEV-25).
        self._look()
        self.owner.set_mode(1, FREEZE)
        before = self.owner.context(1)
        stream = encode([part(0), part(kind, bytes.fromhex(value)), part(1)])
        taken = self.owner.write(1, stream).ok
        after = self.owner.context(1)
        if not taken and after != before:
            raise Finding(f"a refused field {kind:#x} changed the context")
        if taken and not self.owner.write(1, after).ok:
            raise Finding(f"the context with field {kind:#x} was not taken back")
        if self.owner.context(1) != after or len(decode(after)) != len(decode(before)):
            raise Finding(f"the context with field {kind:#x} is not what was written")
        self.owner.set_mode(1, ACTIVE)

    def _look(self) -> None:
        """A register, whatever the queues are about."""
        self.vf.device.common.read("queue_size")

    def finish(self) -> None:
        """Transmit chains were used, or the VF is broken; set up again, it receives."""
        queue = self.vf.transmitters[0]
        # Nobody collects there.
        offered = queue.in_flight
        if not self.world.wait(lambda: queue.device_used_idx == offered or self._broken):
            raise Finding("a frame was neither sent nor refused")
        self._do_restart(0)
        self.peer.poll()
        frame = self.vf.mac + b"\x02\0\0\0\0\x42\x88\xb5" + bytes(46)
        self.peer.send(frame)
        found: list[bytes] = []

        def came() -> bool:
            found.extend(received.data for received in self.vf.poll())
            return frame in found

        if not self.world.wait(came):
            raise Finding("VF 1 does not receive after a reset")


def _macs(source: random.Random) -> bytes:
    tables = []
    for bit in (0, 1):
        count = source.choice([0, 1, 3, 64, 65, 200])
        macs = b"".join(bytes([2 | bit]) + source.randbytes(5) for _ in range(count))
        tables.append((count + source.choice([0, 0, 0, 0, 1, 1 << 31])).to_bytes(4, "little") + macs)
    return b"".join(tables)


def _rss(source: random.Random) -> bytes:
    count = source.choice([1, 2, 128, 512, 3, 1024])
    key = source.choice([0, 40, 41, 255])
    return (
        struct.pack("<IHH", source.choice([0, 0x3F, 0xFFFF]), count - 1, source.choice([0, 1, 2, 0x8000]))
        + struct.pack(f"<{count}H", *(source.choice([0, 0, 0, 1, 2]) for _ in range(count)))
        + struct.pack("<HB", source.choice([0, 1, 2, 3, 0xFFFF]), key)
        + source.randbytes(source.choice([key, key, key, 0, 300]))
    )


def _word(source: random.Random) -> bytes:
    return struct.pack("<H", source.choice([0, 1, 2, 3, 4095, 4096, 0xFFFF]))


def _offloads(source: random.Random) -> bytes:
    return struct.pack("<Q", source.choice([0, 1 << 1, 1 << 7 | 1 << 1, (1 << 64) - 1]))


def _hash(source: random.Random) -> bytes:
    return struct.pack("<I8xB", source.choice([0, 0x3F, 1 << 9]), 40) + source.randbytes(40)


# Data of commands that makes sense, nearly.
SHAPES: dict[tuple[int, int], Callable[[random.Random], bytes]] = {
    **{(0, command): lambda source: bytes([source.choice([0, 1, 1, 2])]) for command in range(6)},
    (1, 0): _macs,
    (1, 1): lambda source: b"\x02" + source.randbytes(5),
    (2, 0): _word,
    (2, 1): _word,
    (3, 0): lambda source: b"",
    (4, 0): _word,
    (4, 1): _rss,
    (4, 2): _hash,
    (5, 0): _offloads,
}
