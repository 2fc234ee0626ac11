"""The counter of `examples`, which exists nowhere else, with a driver in Python."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.server_process import ServerProcess
from tests.wire.running import until
from vfu_client.owner.owner import OwnerDriver
from vfu_client.owner.parts import DeviceParts
from vfu_client.virtio.function import KNOWN_FEATURES, VirtioPci

RING_PACKED = 34
SATURATE = 0
GET, SET = 0, 1
OPTIONS = ("--device", "examples.counter:Counter", "--vfs", "1")


class CounterDriver:
    """Adds numbers, and reads the sum."""

    def __init__(self, path: Path, *, without: frozenset[int] = frozenset()) -> None:
        self.device = VirtioPci.open(path, timeout=10)
        self.device.initialize(wanted=(KNOWN_FEATURES | {SATURATE}) - without)
        self.queue = self.device.setup_queue(0)
        self.device.driver_ok()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.device.close()

    def add(self, number: int) -> int:
        question, answer = self.device.memory.allocate(8), self.device.memory.allocate(8)
        question.view[:] = list(struct.pack("<Q", number))
        self.queue.add([question.segment], [answer.segment])
        self.queue.kick()
        (done,) = self.queue.wait(10)
        assert done.length == 8
        (found,) = struct.unpack("<Q", answer.view.tobytes())
        return int(found)

    @property
    def limit(self) -> int:
        return self.device.config_read(0, 4) | self.device.config_read(4, 4) << 32

    @limit.setter
    def limit(self, value: int) -> None:
        self.device.config_write(0, 4, value & 0xFFFFFFFF)
        self.device.config_write(4, 4, value >> 32)

    @property
    def alarm(self) -> int:
        return self.device.config_read(8, 1)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--vfs", "1", device="examples.counter:Counter") as started:
        yield started


@pytest.mark.parametrize("without", [frozenset(), frozenset({RING_PACKED})], ids=["packed", "split"])
def test_it_adds_up(server: ServerProcess, without: frozenset[int]) -> None:
    with CounterDriver(server.socket("vf1"), without=without) as driver:
        assert driver.device.device_type == 63
        assert [driver.add(number) for number in (1, 2, 39)] == [1, 3, 42]
        assert driver.limit == (1 << 64) - 1
        driver.limit = 100
        assert (driver.limit, driver.alarm) == (100, 0)
        assert driver.add(60) == 100
        assert driver.device.msix is not None
        driver.device.msix.interrupts[0].wait(10)
        assert driver.alarm == 1


def test_without_the_feature(server: ServerProcess) -> None:
    with CounterDriver(server.socket("vf1"), without=frozenset({SATURATE})) as driver:
        driver.limit = 10
        assert driver.add(11) == 11
        assert driver.add(1) == 12


def test_what_is_not_the_drivers_to_write(server: ServerProcess) -> None:
    with CounterDriver(server.socket("vf1")) as driver:
        driver.device.config_write(8, 1, 1)
        assert driver.alarm == 0


def test_a_reset_begins_anew(server: ServerProcess) -> None:
    with CounterDriver(server.socket("vf1")) as driver:
        driver.limit = 5
        assert driver.add(7) == 5
        driver.device.reset()
        assert (driver.limit, driver.alarm) == ((1 << 64) - 1, 0)


def test_it_is_checked_and_traced(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    server = serve(*OPTIONS, "--check-driver", "--trace", str(tmp_path / "trace"))
    with CounterDriver(server.socket("vf1")) as driver:
        assert driver.add(4) == 4
    broken = {entry["rule"] for entry in server.ask("query-rules") if entry["breaches"]}
    assert broken == set()
    server.stop()
    assert '"queue 0"' in (tmp_path / "trace").read_text()


def by_context(source: OwnerDriver, destination: OwnerDriver) -> None:
    for owner in (source, destination):
        owner.mode_set(1, 2)
    destination.context_write(1, source.context_read(1))
    destination.mode_set(1, 0)


def by_parts(source: OwnerDriver, destination: OwnerDriver) -> None:
    here, there = DeviceParts(source), DeviceParts(destination)
    here.stop(1)
    there.stop(1)
    with here.object(1, GET) as got, there.object(1, SET) as given:
        there.set(given, here.get(got))
    there.resume(1)


@pytest.mark.parametrize("move", [by_context, by_parts])
def test_it_moves(
    serve: Callable[..., ServerProcess], move: Callable[[OwnerDriver, OwnerDriver], None]
) -> None:
    """The sum, the limit, the features, and the ring where it was."""
    here, there = serve(*OPTIONS), serve(*OPTIONS)
    with (
        OwnerDriver.open(here.socket("pf"), timeout=10) as source,
        OwnerDriver.open(there.socket("pf"), timeout=10) as destination,
        CounterDriver(here.socket("vf1")) as driver,
    ):
        assert driver.add(30) == 30
        driver.limit = 40
        with VirtioPci.open(there.socket("vf1"), memory=driver.device.memory, timeout=10) as taken:
            taken.function.set_command(6)
            move(source, destination)
            assert taken.status == 15
            driver.device.connection.close()
            assert taken.config_read(0, 4) == 40
            question, answer = taken.memory.allocate(8), taken.memory.allocate(8)
            question.view[:] = list(struct.pack("<Q", 30))
            before = driver.queue.device_used_idx
            driver.queue.add([question.segment], [answer.segment])
            driver.queue._notify = taken.notify
            taken._notify_offsets, taken._notify_values = (
                driver.device._notify_offsets,
                driver.device._notify_values,
            )
            taken.features = driver.device.features
            driver.queue.kick(force=True)
            until(lambda: driver.queue.device_used_idx != before, "the number is added there")
            assert struct.unpack("<Q", answer.view.tobytes()) == (40,)
            assert taken.config_read(8, 1) == 1
