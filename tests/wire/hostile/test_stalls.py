"""What one function is given to do for long does not keep another one from answering."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable

import pytest

from tests.fuzz.hands import DATA, NEXT, WRITE, Hands
from tests.fuzz.owner import DISCARD, FREEZE, GET, READABLE, SET, Owner
from tests.fuzz.owner import WRITE as CTX_WRITE
from tests.server_process import ServerProcess
from tests.wire.driving import Neighbour
from tests.wire.running import until
from vfu_client.vfio.connection import Connection

MIB = 1 << 20
# A second is promised; machines that run tests do other things too. Without slices it is ten.
BUSY = 3.0


class Reached:
    """A server process, as `Hands` wants it."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server

    def connect(self, function: str) -> Connection:
        return Connection(self._server.socket(function), timeout=30)

    def wait(self, condition: Callable[[], bool], seconds: float = 30) -> bool:
        until(condition, "the device is done", seconds)
        return True


def slowest(call: Callable[[], object], going_on: Callable[[], bool]) -> float:
    """The longest time that `call` took while something went on."""
    worst = 0.0
    while True:
        start = time.monotonic()
        call()
        worst = max(worst, time.monotonic() - start)
        if not going_on():
            return worst


@pytest.mark.parametrize("options", [(), ("--check-driver",)])
def test_a_write_of_millions_of_fields(serve: Callable[..., ServerProcess], options: tuple[str, ...]) -> None:
    """66 MiB of empty fields take a while; PF and neighbour answer meanwhile, and a reset ends it."""
    server = serve("--vfs", "2", "--disk", "ram:1M", *options)
    owner = Owner(Reached(server))
    neighbour = Neighbour(server.socket("vf2"))
    owner.set_mode(1, FREEZE)
    before = owner.context(1)
    hands = owner.hands
    fields = struct.pack("<IIQ", 2, 0, 0) * (8 * MIB // 16)
    hands.poke(READABLE, struct.pack("<HH12xQ", CTX_WRITE, 1, 1) + struct.pack("<IIQ", 0, 0, 0) + fields)
    hands.chain([(READABLE, 40), *[(READABLE + 40, 8 * MIB)] * 8], [(READABLE + 9 * MIB, 64)], indirect=False)
    end = time.monotonic() + 1
    assert slowest(lambda: hands.device.status, lambda: time.monotonic() < end) < BUSY
    neighbour.answers(within=BUSY)
    assert hands.used_idx != hands.avail_idx, "too quick to show anything"
    owner.restart()
    assert owner.context(1) == before
    owner.must(SET, 1, bytes([0]))
    assert not hands.broken
    neighbour.close()
    hands.close()


def test_a_vf_that_reads_its_disk_all_the_time(serve: Callable[..., ServerProcess]) -> None:
    """A tenant's queue full of the largest reads: its owner's commands about it come in between."""
    server = serve("--vfs", "1", "--disk", "ram:256M", "--disk", "pf=ram:1M")
    owner = Owner(Reached(server))
    vf = Hands(Reached(server), "vf1", 0, 128)
    count = 96
    vf.poke(DATA, struct.pack("<IIQ", 0, 0, 0))
    # 8 MiB of guest memory, 32 times in one request.
    table = [(DATA, 16, NEXT, 1)]
    table += [(DATA + 4096, 8 * MIB, NEXT | WRITE, slot + 2) for slot in range(32)]
    table += [(DATA + 64, 1, WRITE, 0)]
    for slot, entry in enumerate(table):
        vf.descriptor(slot, *entry)
    for _ in range(count):
        vf.offer(0)
    kicked = threading.Thread(target=vf.kick)
    kicked.start()
    until(lambda: vf.used_idx > 0, "the VF works")
    # Counted in requests, so that a machine that does other things too says the same.
    most = 0
    while vf.used_idx < count:
        before = vf.used_idx
        owner.must(GET, 1)
        most = max(most, vf.used_idx - before)
    kicked.join()
    assert most < count // 8
    owner.must(DISCARD, 1)
    assert vf.answered() == 256 * MIB + 1
    vf.close()
    owner.hands.close()
