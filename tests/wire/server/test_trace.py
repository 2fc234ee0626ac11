"""Traces and captures: all that passes is there, decoded, on and off at run time, and bounded."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server_process import ServerProcess
from tests.wire.frames import ethernet, mac
from tests.wire.running import until
from vfu_client.drivers.block import BlockDriver
from vfu_client.drivers.net import NetDriver
from vfu_client.owner.owner import OwnerDriver
from vfu_images.qmp import QMPError
from vfu_server.watch.bounded_file import BoundedFile
from vfu_server.watch.trace_file import TraceFile

FRAME = ethernet(mac(255), mac(2), bytes(range(46)))


class Trace:
    """A trace that was read, with the names of its functions and tracks."""

    def __init__(self, path: Path) -> None:
        self.events: list[dict[str, Any]] = json.loads(path.read_text())
        names = {
            (event["pid"], event.get("tid")): event["args"]["name"]
            for event in self.events
            if event["ph"] == "M"
        }
        self.named = [
            (names[event["pid"], None], names[event["pid"], event["tid"]], event)
            for event in self.events
            if event["ph"] != "M"
        ]

    def of(self, function: str, track: str, name: str = "") -> list[dict[str, Any]]:
        return [
            event
            for owner, place, event in self.named
            if (owner, place) == (function, track) and name in {"", event["name"]}
        ]


def test_a_disk_and_its_owner(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    server = serve("--vfs", "1", "--disk", "ram:64k", "--trace", str(path))
    with OwnerDriver.open(server.socket("pf"), timeout=10) as owner:
        with BlockDriver.open(server.socket("vf1"), timeout=10) as disk:
            disk.write(3, b"\x42" * 512)
            disk.flush()
            owner.mode_set(1, 1)
            owner.mode_set(1, 0)
        on = server.ask("trace")
        assert (on["on"], on["file"], on["full"]) == (True, str(path), False)
        assert server.ask("trace", on=False) == {"on": False}
    trace = Trace(path)
    assert len(trace.events) == on["events"] > 100
    stamps = [event["ts"] for _, _, event in trace.named]
    assert stamps == sorted(stamps)
    (write,) = [event for event in trace.of("vf1", "queue 0", "OUT") if event["ph"] == "b"]
    assert (write["args"]["sector"], write["args"]["bytes"]) == (3, 512)
    assert [length for _, length in write["args"]["readable"]] == [16, 512]
    (done,) = [event for event in trace.of("vf1", "queue 0", "OUT") if event["ph"] == "e"]
    assert done["id2"] == write["id2"]
    assert done["args"]["status"] == "OK"
    assert trace.of("vf1", "queue 0", "FLUSH")
    statuses = [event["args"]["meaning"] for event in trace.of("vf1", "registers", "write device_status")]
    assert statuses[0] == "0"
    assert statuses[-1] == "ACKNOWLEDGE|DRIVER|FEATURES_OK|DRIVER_OK"
    accepted = [event["args"]["meaning"] for event in trace.of("vf1", "registers", "write driver_feature")]
    assert "VERSION_1" in accepted[1]
    assert trace.of("vf1", "registers", "notify queue 0")
    assert trace.of("vf1", "interrupts", "MSI-X 1")
    assert [event["args"]["mode"] for event in trace.of("vf1", "events", "MODE_CHANGED")] == [
        "stop",
        "active",
    ]
    (mapped,) = trace.of("vf1", "memory", "map")
    assert (mapped["args"]["length"], mapped["args"]["writable"]) == (16 << 20, True)
    begun, ended = trace.of("pf", "queue 1", "DEV_MODE_SET")[:2]
    assert (begun["args"]["member"], ended["args"]["status"]) == ("vf1", "OK")


def test_what_passed_is_in_the_file_soon(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """Also when nothing more comes: the client's leaving."""
    path = tmp_path / "trace.json"
    server = serve("--vfs", "1", "--disk", "ram:64k", "--trace", str(path))
    with BlockDriver.open(server.socket("vf1"), timeout=10) as disk:
        disk.write(0, bytes(512))
    until(lambda: b'"FUNCTION_DETACHED"' in path.read_bytes(), "it is in the file")
    assert server.ask("trace")["bytes"] == path.stat().st_size


def test_on_and_off(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    server = serve("--vfs", "1", "--disk", "ram:64k")
    first, second = tmp_path / "first", tmp_path / "second"
    assert server.ask("trace") == {"on": False}
    with BlockDriver.open(server.socket("vf1"), timeout=10) as disk:
        for path in (first, second):
            server.ask("trace", on=True, file=str(path))
            disk.write(0, b"\x42" * 512)
        server.ask("trace", on=False)
        size = second.stat().st_size
        disk.write(0, b"\x43" * 512)
        assert server.ask("trace") == {"on": False}
        assert second.stat().st_size == size
        assert disk.read(0).tobytes() == b"\x43" * 512
    for path in (first, second):
        assert len(Trace(path).of("vf1", "queue 0", "OUT")) == 2
    for arguments, why in (
        ({"on": True}, "'file' is missing"),
        ({"on": True, "file": str(tmp_path / "no" / "where")}, "No such file or directory"),
    ):
        with pytest.raises(QMPError, match=why):
            server.ask("trace", **arguments)


def test_a_trace_ends_where_it_may(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a whole event, and said once."""
    trace = TraceFile(tmp_path / "trace", 4000)
    for number in range(100):
        trace.instant("vf1", "registers", f"event {number}", {})
    trace.close()
    found = Trace(tmp_path / "trace")
    assert trace.file.full
    assert 10 < len(found.events) == trace.events < 100
    # The end of the list is written whether there is room or not.
    assert (tmp_path / "trace").stat().st_size <= 4000 + len("\n]\n")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/trace: nothing more is written: it has the 0 MiB that it may have"
    ]


def test_a_disk_that_is_full(caplog: pytest.LogCaptureFixture) -> None:
    file = BoundedFile(Path("/dev/full"), 1 << 30)
    with file.lock:
        for _ in range(3):
            file.put(bytes(1 << 20))
    assert file.full
    assert [record.getMessage() for record in caplog.records] == [
        "/dev/full: nothing more is written: No space left on device"
    ]
    file.close()


def frames(path: Path) -> list[tuple[str, int, bytes]]:
    """The frames of a pcapng file: (interface, direction, data); what there is to check of it is checked."""
    data = path.read_bytes()
    names: list[str] = []
    found: list[tuple[str, int, bytes]] = []
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        assert size % 4 == 0
        assert struct.unpack_from("<I", data, at + size - 4) == (size,)
        body = data[at + 8 : at + size - 4]
        if at == 0:
            assert (kind, body[:8]) == (0x0A0D0D0A, bytes.fromhex("4d3c2b1a01000000"))
        elif kind == 1:
            assert body[:2] == b"\x01\0"
            length = int.from_bytes(body[10:12], "little")
            names.append(body[12 : 12 + length].decode())
        else:
            assert kind == 6
            interface, _, _, captured, original = struct.unpack_from("<IIIII", body)
            assert captured == original
            options = body[20 + -(-captured // 4) * 4 :]
            assert options[:4] == b"\2\0\4\0"
            found.append((names[interface], options[4], body[20 : 20 + captured]))
        at += size
    return found


def test_a_capture(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """Of one function, and of all others in another file; frames in several buffers are whole."""
    one, others = tmp_path / "one.pcapng", tmp_path / "others.pcapng"
    server = serve(
        *("--device", "net", "--vfs", "2", "--pcap", str(others), "--pcap", f"vf1={one}"),
    )
    large = ethernet(mac(255), mac(2), bytes(range(256)) * 30)
    with (
        NetDriver.open(server.socket("vf1"), timeout=10) as first,
        NetDriver.open(server.socket("vf2"), timeout=10) as second,
    ):
        for frame in (FRAME, large):
            first.send(frame)
            first.flush()
            (got,) = second.receive(10)
            assert got.data == frame
    server.stop()
    outbound, inbound = 2, 1
    assert frames(one) == [("vf1", outbound, FRAME), ("vf1", outbound, large)]
    assert frames(others) == [("vf2", inbound, FRAME), ("vf2", inbound, large)]


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        (("--device", "blk", "--pcap", "x"), 2, "--pcap is for --device net"),
        (("--device", "net", "--pcap", "vf3=x"), 2, "there is no function vf3"),
        (("--device", "blk", "--trace", "/nowhere/x"), 1, "/nowhere/x: No such file or directory"),
        (("--device", "net", "--pcap", "/nowhere/x"), 1, "/nowhere/x: No such file or directory"),
    ],
)
def test_refused(tmp_path: Path, options: tuple[str, ...], status: int, why: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vfu_server", "--socket-dir", str(tmp_path / "d"), "--vfs", "1", *options],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, why in done.stderr) == (status, True), done.stderr
