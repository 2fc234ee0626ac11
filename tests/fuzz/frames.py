"""Target `frames`: rings of a network VF whose frames pass without the interpreter, and what comes in for it.

Whatever the driver offers, the VF answers and works again after a reset. As long as all of it is as it should
be, each frame that comes in reaches the driver, once and in order.
"""

from __future__ import annotations

import contextlib
import random
import struct
from typing import Any, Final

import numpy as np

from tests.fuzz.campaign import Step
from tests.fuzz.owner import ACTIVE, FREEZE, STOP, Owner
from tests.fuzz.pair import PairWorld
from tests.fuzz.world import Finding, World
from vfu_client.drivers.net import FEATURES, NetDriver
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.driver_queue import QueueFullError
from vfu_client.virtio.function import KNOWN_FEATURES, VirtioPci

BASE: Final = 0x1_0000_0000
MEMORY: Final = 16 << 20
# Above what the driver allocates. Two regions that touch, and one that is read-only.
SCRATCH: Final = BASE + (8 << 20)
LOOSE, LOOSE_SIZE = BASE + MEMORY, 1 << 16
READ_ONLY: Final = LOOSE + 2 * LOOSE_SIZE
PLACES = [SCRATCH, SCRATCH + 1, SCRATCH + 4096, BASE, LOOSE, LOOSE - 1, LOOSE - 5, LOOSE - 12, LOOSE - 28]
PLACES += [LOOSE + LOOSE_SIZE - 8, LOOSE + LOOSE_SIZE - 12, READ_ONLY, 0, 1 << 63, (1 << 64) - 16]
LENGTHS = [0, 1, 5, 10, 11, 12, 13, 16, 20, 26, 28, 36, 60, 512, 1526, 2048, 65577, 65600, 1 << 20]
OFFLOADED, HASHED, STEERED, MERGED = {0, 1, 7, 11}, {57}, {57, 60}, {15}
TAKEN = [FEATURES, FEATURES | OFFLOADED, FEATURES | HASHED, FEATURES | OFFLOADED | STEERED]
TAKEN += [features - MERGED for features in TAKEN]
# INDIRECT_DESC, EVENT_IDX, RING_PACKED, IN_ORDER.
RINGS = [28, 29, 34, 35]
NEEDS_RESET = 0x40
TO, FROM = b"\2\0\0\0\0\1", b"\2\0\0\0\0\x09"
KINDS = [b"\x88\xb5", b"\x08\0\x45", b"\x86\xdd\x60", b"\x81\0\0\7\x08\0\x45"]
# More may not wait for buffers.
FRAMES_MAX = 200
# So many cases have frames of both directions.
ENOUGH = 20


class FramesTarget:
    """VF 1 under attack, from both of its sides."""

    def __init__(self, world: World) -> None:
        assert isinstance(world, PairWorld)
        self.world = world
        self.port = world.port
        self.owner = Owner(world)
        self._cases = 0
        self._set_up(0, [], 64, 2048)

    def _set_up(self, features: int, without: list[int], size: int, room: int) -> None:
        memory = GuestMemory()
        memory.add_region(MEMORY, BASE)
        self._loose = memory.add_region(LOOSE_SIZE, LOOSE, allocatable=False)
        memory.add_region(LOOSE_SIZE, READ_ONLY, writable=False, allocatable=False)
        connection = self.world.connect("vf1")
        memory.attach(connection)
        self.port.forget()
        self.vf = NetDriver(
            VirtioPci(connection, memory),
            features=TAKEN[features],
            ring_features=KNOWN_FEATURES - set(without),
            queue_size=size,
            buffer_size=room,
            fill=False,
        )
        # Who has never seen a buffer looks for the reason in Python.
        self.vf.refill(count=1)
        self._came: list[bytes] = []
        self._got: list[bytes] = []
        # Nothing is known of frames that need several buffers: there may be too few.
        self._odd = room < 2048
        self._do_come(1, 14, 0, "")
        if not self.world.wait(self._all_is_there):
            raise Finding("VF 1 does not receive after a reset")
        self._do_send(1, 60)
        self._came, self._got = [], []

    def close(self) -> None:
        self.owner.hands.close()
        self._hang_up()
        counters, asked = self.port.counters(), self.port.asked
        came = counters["frames-received"] + counters["dropped-receiving"]
        fast = came > asked[1] and counters["frames-sent"] > asked[0]
        if self._cases > ENOUGH and not fast:
            raise Finding("no frame passed without the interpreter")

    def _hang_up(self) -> None:
        self.vf.close()
        self.vf.device.memory.close()

    # --- cases -------------------------------------------------------------------------------------------

    def generate(self, source: random.Random) -> list[Step]:
        odd = source.random() < 0.5
        features = source.randrange(len(TAKEN) if odd else 4)
        without = [bit for bit in RINGS if source.random() < 0.5]
        room = source.choice([64, 700, 1526, 2048]) if odd else 2048
        steps: list[Step] = [("set_up", [features, without, source.choice([8, 16, 64, 256]), room])]
        kinds = ["come"] * 6 + ["refill"] * 4 + ["send"] * 4 + ["drain"]
        if source.random() < 0.4:
            kinds += ["look", "touch", "mode", "away"]
        if odd:
            kinds += ["room"] * 4 + ["chain"] * 4 + ["noise"]
        for _ in range(source.randint(1, 40)):
            kind = source.choice(kinds)
            steps.append((kind, getattr(self, f"_make_{kind}")(source, odd)))
        return steps

    @staticmethod
    def _make_come(source: random.Random, odd: bool) -> list[Any]:
        sizes = [0, 13, 14, 15, 17, 60, 1514, 9000, 65000, 65557] if odd else [60, 61, 200, 1514]
        header = source.randbytes(12).hex() if odd and source.random() < 0.2 else ""
        return [source.choice([1, 1, 5, 20]), source.choice(sizes), source.randrange(len(KINDS)), header]

    @staticmethod
    def _make_refill(source: random.Random, odd: bool) -> list[Any]:
        return [source.choice([1, 3, 30, 256])]

    @staticmethod
    def _make_send(source: random.Random, odd: bool) -> list[Any]:
        return [source.choice([1, 1, 5, 20]), source.choice([14, 60, 1514])]

    @staticmethod
    def _make_chain(source: random.Random, odd: bool) -> list[Any]:
        return [
            [source.choice(PLACES[:9] if source.random() < 0.9 else PLACES), source.choice(LENGTHS)]
            for _ in range(source.choice([1, 1, 1, 2, 2, 3, 5, 17, 60, 200]))
        ]

    _make_room = _make_chain

    @staticmethod
    def _make_noise(source: random.Random, odd: bool) -> list[Any]:
        return [source.randrange(2), source.randrange(4096), source.randrange(256)]

    @staticmethod
    def _make_mode(source: random.Random, odd: bool) -> list[Any]:
        return [source.choice([STOP, FREEZE])]

    @staticmethod
    def _make_drain(source: random.Random, odd: bool) -> list[Any]:
        return []

    _make_look = _make_touch = _make_away = _make_drain

    # --- steps -------------------------------------------------------------------------------------------

    def play(self, step: Step) -> None:
        name, arguments = step
        getattr(self, f"_do_{name}")(*arguments)
        if not self._odd:
            self._poll()

    def _do_set_up(self, features: int, without: list[int], size: int, room: int) -> None:
        self._hang_up()
        self._set_up(features, without, size, room)

    def _do_come(self, count: int, size: int, kind: int, header: str) -> None:
        self._odd |= bool(header) or size > 1514 or 0 <= size < 14
        for _ in range(min(count, FRAMES_MAX - len(self._came))):
            number = struct.pack("<I", len(self._came))
            frame = (TO + FROM + KINDS[kind] + number).ljust(size, b"\x5a")[:size]
            try:
                self.port.peer.send(bytes.fromhex(header).ljust(12, b"\0") + frame)
            except BlockingIOError:
                return
            self._came.append(frame)

    def _do_refill(self, count: int) -> None:
        # What is odd takes room too.
        with contextlib.suppress(QueueFullError):
            self.vf.refill(count=count)

    def _do_send(self, count: int, size: int) -> None:
        queue = self.vf.transmitters[0]
        for _ in range(count):
            if self._odd:
                # The driver does not know of what else was sent.
                self._offer([(SCRATCH, 12 + size)], [])
                continue
            with contextlib.suppress(TimeoutError):
                self.vf.flush(timeout=0)
            if queue.in_flight < queue.size // 2:
                self.vf.send((TO + FROM + KINDS[0]).ljust(size, b"\x5a"))

    def _do_drain(self) -> None:
        self.port.drain()

    def _do_room(self, *chain: list[int]) -> None:
        self._odd = True
        self._offer([], [(address, length) for address, length in chain])

    def _do_chain(self, *chain: list[int]) -> None:
        self._odd = True
        self._offer([(address, length) for address, length in chain], [])

    def _offer(self, readable: list[tuple[int, int]], writable: list[tuple[int, int]]) -> None:
        queue = self.vf.transmitters[0] if readable else self.vf.receivers[0]
        try:
            queue.add(readable, writable)
        except QueueFullError:
            return
        queue.kick()

    def _do_noise(self, queue: int, at: int, value: int) -> None:
        """A byte of a ring that is another one."""
        self._odd = True
        self.vf.device.common.write("queue_select", queue)
        desc = self.vf.device.common.read("queue_desc")
        self.vf.device.memory.buffer(desc + at, 1).view[:] = np.uint8(value)

    def _do_look(self) -> None:
        self.vf.device.common.read("queue_size")

    def _do_touch(self) -> None:
        self.vf.device.common.write("queue_select", 0)

    def _do_mode(self, mode: int) -> None:
        # Behind what the driver has posted: in Freeze it would be lost (DEV-25).
        self._do_look()
        self.owner.set_mode(1, mode)
        self.owner.set_mode(1, ACTIVE)

    def _do_away(self) -> None:
        """A region that is gone for a moment."""
        connection = self.vf.device.connection
        connection.dma_unmap(LOOSE, LOOSE_SIZE)
        self.vf.device.notify(0)
        connection.dma_map(self._loose.fd, 0, LOOSE, LOOSE_SIZE)

    def _poll(self) -> None:
        self._got += [frame.data for frame in self.vf.poll(refill=False)]

    def _all_is_there(self) -> bool:
        self._poll()
        if len(self._got) < len(self._came):
            self.vf.refill()
        return len(self._got) >= len(self._came)

    def finish(self) -> None:
        """It answers, and has given all of a driver that did nothing odd; another one can set it up."""
        self._cases += 1
        self._do_look()
        if not self._odd:
            if self.vf.device.status & NEEDS_RESET:
                raise Finding("VF 1 broke under a good driver")
            if not self.world.wait(self._all_is_there):
                raise Finding(f"{len(self._got)} of {len(self._came)} frames reached the driver")
            if self._got != self._came:
                raise Finding("frames were overtaken, doubled or spoilt")
        self._do_set_up(0, [], 64, 2048)
