"""Faults that are asked for happen, as often as they are asked for, are told, and nothing else is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.server_process import ServerProcess
from tests.wire.driving import Driven, driven
from tests.wire.frames import ethernet, mac
from tests.wire.running import until
from vfu_client.drivers.block import BlockDriver, BlockError
from vfu_client.drivers.net import CommandError, NetDriver
from vfu_client.owner.admin import AdminError
from vfu_client.owner.owner import OwnerDriver
from vfu_images.qmp import QMPError

FRAME = ethernet(mac(255), mac(2), bytes(46))


@pytest.fixture
def server(serve: Callable[..., ServerProcess]) -> ServerProcess:
    return serve("--vfs", "2", "--queues", "2", "--disk", "ram:64k")


def inject(server: ServerProcess, fault: str, function: str = "vf1", **more: int) -> None:
    server.ask("inject", function=function, fault=fault, **more)


def met(server: ServerProcess) -> list[int]:
    return [fault["met"] for fault in server.ask("query-faults")]


def get_id(vf: Driven, head: int = 0) -> Any:
    """Ask for the serial number; the room for the answer."""
    answer = vf.room(21)
    vf.request((vf.header(8), False), (answer, True), head=head)
    return answer


def test_late(server: ServerProcess) -> None:
    with driven(server.socket("vf1")) as vf:
        inject(server, "late", ms=300)
        begun = time.monotonic()
        get_id(vf)
        assert vf.wait_used() == (0, 21)
        assert time.monotonic() - begun >= 0.3
        get_id(vf, 2)
        assert vf.wait_used() == (2, 21)
    assert met(server) == [1]
    assert "virtio.vf1: injected: fault late, count 1, queue 0" in server.log


def test_reordered(server: ServerProcess) -> None:
    with driven(server.socket("vf1")) as vf:
        inject(server, "reorder", ms=60000)
        get_id(vf, 0)
        vf.settle()
        assert vf.queue.device_used_idx == 0
        get_id(vf, 2)
        assert [vf.wait_used()[0] for _ in range(2)] == [2, 0]


def test_an_error(server: ServerProcess) -> None:
    """IOERR, twice, of queue 1 only; nothing is written."""
    with BlockDriver.open(server.socket("vf1"), queues=2, timeout=10) as disk:
        disk.write(0, b"\x42" * 512)
        inject(server, "error", queue=1, count=2)
        disk.write(0, b"\x43" * 512)
        data = disk.device.memory.allocate(512)
        data.view[:] = 0x44
        for _ in range(2):
            with pytest.raises(BlockError):
                disk.finish(disk.submit(1, 0, data, queue=1))
        assert disk.read(0).tobytes() == b"\x43" * 512
        disk.finish(disk.submit(1, 0, data, queue=1))
        assert disk.read(0).tobytes() == b"\x44" * 512
    assert met(server) == [2]


@pytest.mark.parametrize(("fault", "more", "length"), [("short", {}, 10), ("used-length", {"value": 7}, 7)])
def test_lengths(server: ServerProcess, fault: str, more: dict[str, int], length: int) -> None:
    with driven(server.socket("vf1")) as vf:
        inject(server, fault, "vf1", **more)
        get_id(vf)
        assert vf.wait_used() == (0, length)


def test_a_lost_buffer(server: ServerProcess) -> None:
    with driven(server.socket("vf1")) as vf:
        inject(server, "lose")
        get_id(vf, 0)
        get_id(vf, 2)
        assert vf.wait_used() == (2, 21)
        (function,) = server.ask("query-functions", function="vf1")
        assert function["queues"][0]["outstanding"] == 1


def test_interrupts(server: ServerProcess) -> None:
    """None for one buffer, two for another."""
    with driven(server.socket("vf1")) as vf:
        inject(server, "drop-interrupt")
        get_id(vf)
        until(lambda: vf.queue.device_used_idx == 1, "it is used")
        assert vf.signals()[1] == 0
        inject(server, "duplicate-interrupt")
        get_id(vf, 2)
        until(lambda: vf.queue.device_used_idx == 2, "it is used")
        assert vf.signals()[1] == 2


@pytest.mark.parametrize("fault", ["dma-fault", "needs-reset"])
def test_it_needs_a_reset(server: ServerProcess, fault: str) -> None:
    """It is told, and lives after the reset; its neighbour notices nothing."""
    with BlockDriver.open(server.socket("vf2"), timeout=10) as neighbour:
        with driven(server.socket("vf1")) as vf:
            inject(server, fault)
            get_id(vf)
            vf.wait_broken()
        with BlockDriver.open(server.socket("vf1"), timeout=10) as disk:
            disk.write(0, b"\x42" * 512)
        neighbour.write(0, b"\x42" * 512)


def test_missing_memory_is_not_held_against_the_driver(serve: Callable[..., ServerProcess]) -> None:
    server = serve("--vfs", "1", "--disk", "ram:64k", "--check-driver")
    with driven(server.socket("vf1")) as vf:
        inject(server, "dma-fault")
        get_id(vf)
        vf.wait_broken()
    assert server.breaches()["RING-02"] == 0


def test_a_reset_in_the_middle(server: ServerProcess) -> None:
    with driven(server.socket("vf1")) as vf:
        inject(server, "reset")
        get_id(vf)
        until(lambda: vf.device.status == 0, "it was reset")
    with BlockDriver.open(server.socket("vf1"), timeout=10) as disk:
        disk.write(0, b"\x42" * 512)


def test_a_reset_is_not_held_against_the_driver(serve: Callable[..., ServerProcess]) -> None:
    """It kicks and reads on, as it cannot know; from its next write of device_status on it is held to all."""
    server = serve("--vfs", "1", "--disk", "ram:64k", "--check-driver")
    with driven(server.socket("vf1")) as vf:
        before = server.breaches()
        inject(server, "reset")
        get_id(vf)
        until(lambda: vf.device.status == 0, "it was reset")
        vf.queue.kick(force=True)
        vf.device.common.write("queue_select", 9)
        vf.device.common.write("queue_size", 8)
        vf.device.function.config_read(0, 2)
        assert server.breaches() == before
        vf.device.common.write("device_status", 1)
        vf.device.common.write("queue_size", 8)
        vf.device.function.config_read(0, 2)
        assert server.breaches()["CFG-10"]


def test_the_configuration_changes_while_it_is_read(server: ServerProcess) -> None:
    with driven(server.socket("vf1")) as vf:
        vf.signals()
        inject(server, "config-change")
        generation = vf.device.common.read("config_generation")
        assert vf.device.config_read(0, 4) == 128
        assert vf.device.common.read("config_generation") == generation + 1
        assert vf.signals()[0] == 1


def test_the_link(serve: Callable[..., ServerProcess]) -> None:
    """Down with a frame, and up again."""
    server = serve("--device", "net", "--vfs", "2")
    with NetDriver.open(server.socket("vf1"), timeout=10) as net:
        assert net.status & 1
        inject(server, "link-flap", queue=1, ms=200)
        net.send(FRAME)
        until(lambda: not net.status & 1, "the link is down")
        until(lambda: bool(net.status & 1), "the link is up")
        inject(server, "error", queue=net.control.index if net.control else 0)
        with pytest.raises(CommandError):
            net.set_mac(mac(9))


def test_admin_commands(server: ServerProcess) -> None:
    """One fails and changes nothing; one is answered late."""
    with OwnerDriver.open(server.socket("pf"), timeout=10) as owner:
        inject(server, "error", "pf", queue=2)
        with pytest.raises(AdminError):
            owner.mode_set(1, 2)
        assert owner.mode_get(1) == 0
        inject(server, "late", "pf", queue=2, ms=300)
        begun = time.monotonic()
        assert owner.mode_get(1) == 0
        assert time.monotonic() - begun >= 0.3


def test_they_end(server: ServerProcess) -> None:
    """What is asked for without end happens each time, until it is ended."""
    with driven(server.socket("vf1")) as vf:
        inject(server, "short", count=0)
        for head in (0, 2, 4):
            get_id(vf, head)
            assert vf.wait_used() == (head, 10)
        assert met(server) == [3]
        server.ask("end-faults")
        assert met(server) == []
        get_id(vf)
        assert vf.wait_used() == (0, 21)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"fault": "fire"}, "vf1: fault 'fire'; there are: late, reorder"),
        ({"fault": "late", "queue": 9}, "vf1: queue 9; there are 0 to 1"),
        ({"fault": "link-flap"}, "vf1: no network device"),
        ({"fault": "late", "percent": 0}, "vf1: count and ms are 0 or more, chance is above 0"),
        ({"fault": "used-length", "value": 1 << 32}, "value has 32 bits"),
        ({"fault": "late", "function": "vf3"}, "There is no function 'vf3'"),
    ],
)
def test_refused(server: ServerProcess, arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(QMPError, match=why):
        server.ask("inject", **{"function": "vf1", **arguments})
    assert met(server) == []
