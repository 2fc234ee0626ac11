"""`query-queue`: a ring as it stands, for who wonders why nothing goes on."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from tests.server_process import ServerProcess
from tests.wire.driving import INDIRECT, NEXT, VERSION_1, WRITE, bring_up, driven
from vfu_client.virtio.function import VirtioPci
from vfu_client.virtio.packed import PackedQueue
from vfu_images.qmp import QMPError

EVENT_IDX, INDIRECT_DESC, RING_PACKED = 29, 28, 34
USED = 1 << 15


def ask(server: ServerProcess, queue: int = 0) -> dict[str, Any]:
    found = server.ask("query-queue", function="vf1", queue=queue)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def slow(serve: Callable[..., ServerProcess]) -> ServerProcess:
    """A disk that holds each request for a while."""
    return serve("--vfs", "1", "--queues", "2", "--disk", "ram:64k", "--io-delay-ms", "60000")


def test_a_split_ring(slow: ServerProcess) -> None:
    with driven(slow.socket("vf1"), features=(VERSION_1, EVENT_IDX, INDIRECT_DESC)) as vf:
        header, answer = vf.header(8), vf.room(21)
        vf.queue.avail[-1] = 3
        vf.request((header, False), (answer, True), head=2)
        table = vf.table((header.address, 16, NEXT, 1), (answer.address, 21, WRITE, 0))
        vf.settle()
        vf.device.function.clear_command(4)
        vf.device.function.config_read(0, 2)
        vf.descriptor(5, table.address, 32, INDIRECT)
        vf.queue.publish(5)
        assert ask(slow)["memory"] == "the function may not access memory now"
        vf.device.function.set_command(4)
        vf.device.function.config_read(0, 2)
        found = ask(slow)
    assert {name: found[name] for name in ("format", "size", "enabled", "vector", "function", "index")} == {
        "format": "split",
        "size": 8,
        "enabled": True,
        "vector": 1,
        "function": "vf1",
        "index": 0,
    }
    assert found["avail"] == {"flags": 0, "idx": 2, "used-event": 3}
    assert found["used"] == {"flags": 0, "idx": 0, "avail-event": found["last-avail"]}
    assert found["last-used"] == 0
    buffers = {buffer["head"]: buffer for buffer in (*found["in-flight"], *found["available"])}
    assert next(iter(found["in-flight"]))["head"] == 2
    assert buffers[2]["position"] == 0
    assert buffers[2]["descriptors"] == [
        {"index": 2, "address": header.address, "length": 16, "flags": ["NEXT"], "next": 3},
        {"index": 3, "address": answer.address, "length": 21, "flags": ["WRITE"], "next": 0},
    ]
    (indirect,) = buffers[5]["descriptors"]
    assert indirect["flags"] == ["INDIRECT"]
    assert [(entry["address"], entry["length"]) for entry in indirect["table"]] == [
        (header.address, 16),
        (answer.address, 21),
    ]


def test_a_packed_ring(slow: ServerProcess) -> None:
    with VirtioPci.open(slow.socket("vf1"), timeout=10) as device:
        device.initialize(wanted=(VERSION_1, RING_PACKED))
        queue = device.setup_queue(0, size=8)
        assert isinstance(queue, PackedQueue)
        device.driver_ok()
        header = device.memory.allocate(16)
        header.view[:] = list(struct.pack("<IIQ", 8, 0, 0))
        answer = device.memory.allocate(21)
        number = queue.add([(header.address, 16)], [(answer.address, 21)])
        queue.kick(force=True)
        queue.desc[2] = (answer.address, 21, 5, WRITE | USED)
        device.function.config_read(0, 2)
        found = ask(slow)
    assert found["format"] == "packed"
    assert found["next"] == {
        "index": 2,
        "address": answer.address,
        "length": 21,
        "flags": ["WRITE", "USED"],
        "id": 5,
    }
    assert found["last-avail"] == {"offset": 2, "wrap": 1}
    assert found["last-used"] == {"offset": 0, "wrap": 1}
    assert found["driver-event"]["flags"] == 0
    assert found["available"] == []
    (buffer,) = found["in-flight"]
    assert (buffer["id"], buffer["position"]) == (number, {"offset": 0, "wrap": 1})
    assert [(entry["length"], entry["flags"]) for entry in buffer["descriptors"]] == [
        (16, ["NEXT", "AVAIL"]),
        (21, ["WRITE", "AVAIL"]),
    ]


def test_a_queue_that_is_not_enabled(slow: ServerProcess) -> None:
    with VirtioPci.open(slow.socket("vf1"), timeout=10) as device:
        bring_up(device)
        found = ask(slow, 1)
    assert (found["enabled"], found["size"], found["outstanding"]) == (False, 256, 0)
    with pytest.raises(QMPError, match="vf1 has no queue 2; it has 0 to 1"):
        ask(slow, 2)
