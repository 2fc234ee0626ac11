"""What an author of a device type does wrong is told, and mended while the server runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.wire.running import until
from vfu_client.virtio.function import KNOWN_FEATURES, VirtioPci
from vfu_images.qmp import QMPError

NEEDS_RESET = 64
SOURCE = """
from pymodel.devices.own import OwnDevice

class Mine(OwnDevice):
    virtio_id = 60
    queues = (16, 8)

    def request(self, request):
        return %s
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in a folder where the server finds it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path.cwd())]))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return tmp_path / "mine.py"


def brought_up(device: VirtioPci) -> None:
    device.initialize(wanted=KNOWN_FEATURES)
    device.setup_queue(0)
    device.driver_ok()


def asked(device: VirtioPci, data: bytes) -> bytes:
    """One request with room for 8 bytes."""
    question, answer = device.memory.allocate(len(data)), device.memory.allocate(8)
    question.view[:] = list(data)
    answer.view[:] = 0xEE
    queue = device.queues[0]
    queue.add([question.segment], [answer.segment])
    queue.kick()
    queue.wait(10)
    return answer.view.tobytes()


def breaks(device: VirtioPci) -> None:
    """One request that the device fails over."""
    question = device.memory.allocate(4)
    device.queues[0].add([question.segment])
    device.queues[0].kick()
    until(lambda: bool(device.status & NEEDS_RESET), "it needs a reset")


def test_mended_while_it_runs(serve: Callable[..., ServerProcess], module: Path) -> None:
    """A request fails, the device needs a reset; the file is edited and read again, the reset brings it."""
    module.write_text(SOURCE % "request.data[::-1] + 1")
    server = serve("--device", "mine:Mine", "--vfs", "2")
    with VirtioPci.open(server.socket("vf1"), timeout=10) as device:
        brought_up(device)
        breaks(device)
        assert "device needs reset: Mine.request: TypeError: can't concat int to bytes" in server.log
        assert "mine.py" in server.log
        module.write_text(SOURCE % "request.data[::-1]")
        server.ask("reload")
        assert device.status & NEEDS_RESET
        brought_up(device)
        assert asked(device, b"abcd") == b"dcba\xee\xee\xee\xee"
        with VirtioPci.open(server.socket("vf2"), timeout=10) as other:
            brought_up(other)
            assert asked(other, b"xy") == b"yx" + b"\xee" * 6
    log = server.log
    server.stop()
    # What an author did wrong is no mistake of the server's.
    assert "internal error" not in log
    (server.folder / "log").write_text("")


def test_mended_while_it_has_faults(serve: Callable[..., ServerProcess], module: Path) -> None:
    """What meets faults afterwards is the device that came, not the one that went."""
    module.write_text(SOURCE % "request.data")
    server = serve("--device", "mine:Mine", "--vfs", "1")
    server.ask("inject", function="vf1", fault="short")
    with VirtioPci.open(server.socket("vf1"), timeout=10) as device:
        brought_up(device)
        assert asked(device, b"same") == b"same\xee\xee\xee\xee"
        module.write_text(SOURCE % "request.data[::-1]")
        server.ask("reload")
        device.reset()
        brought_up(device)
        assert asked(device, b"same") == b"emas\xee\xee\xee\xee"


@pytest.mark.parametrize("answer", ["bytearray(request.data)", "memoryview(request.data)"])
def test_bytes_of_any_kind_are_an_answer(
    serve: Callable[..., ServerProcess], module: Path, answer: str
) -> None:
    module.write_text(SOURCE % answer)
    server = serve("--device", "mine:Mine", "--vfs", "1")
    with VirtioPci.open(server.socket("vf1"), timeout=10) as device:
        brought_up(device)
        assert asked(device, b"abcd") == b"abcd\xee\xee\xee\xee"


@pytest.mark.parametrize("answer", ["7", "'text'", "[1, 2]", "True"])
def test_what_is_no_answer(serve: Callable[..., ServerProcess], module: Path, answer: str) -> None:
    """The device needs a reset, as after an exception, and is mended as then."""
    module.write_text(SOURCE % answer)
    server = serve("--device", "mine:Mine", "--vfs", "1")
    with VirtioPci.open(server.socket("vf1"), timeout=10) as device:
        brought_up(device)
        breaks(device)
        assert (
            "device needs reset: Request.complete: TypeError: memoryview: a bytes-like object" in server.log
        )
        module.write_text(SOURCE % "request.data")
        server.ask("reload")
        brought_up(device)
        assert asked(device, b"abcd") == b"abcd\xee\xee\xee\xee"
    (server.folder / "log").write_text("")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text.replace("(16, 8)", "(16,)"), r"queue_sizes was \(16, 8\) and is \(16,\): restart"),
        (lambda text: text.replace("60", "61"), "virtio_id was 60 and is 61: restart the server"),
        (lambda text: text + "\n1 +", "mine: SyntaxError"),
        (lambda text: text.replace("class Mine", "class Yours"), "mine has no class 'Mine'"),
    ],
    ids=["queues", "type", "syntax", "name"],
)
def test_what_cannot_be_read_again(
    serve: Callable[..., ServerProcess], module: Path, change: Callable[[str], str], why: str
) -> None:
    """The device goes on as it is."""
    text = SOURCE % "request.data"
    module.write_text(text)
    server = serve("--device", "mine:Mine", "--vfs", "1")
    with VirtioPci.open(server.socket("vf1"), timeout=10) as device:
        brought_up(device)
        module.write_text(change(text))
        if "no class" in why:
            # A module that is read again keeps what it had.
            server.ask("reload")
        else:
            with pytest.raises(QMPError, match=why):
                server.ask("reload")
        assert asked(device, b"same") == b"same\xee\xee\xee\xee"


def test_a_type_of_the_servers_own(serve: Callable[..., ServerProcess]) -> None:
    server = serve("--vfs", "1")
    with pytest.raises(QMPError, match="blk is the server's own device type: restart the server for another"):
        server.ask("reload")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("scsi", "device type 'scsi': there are blk, net; or give module:Class"),
        ("nowhere.at_all:Class", "nowhere.at_all: ModuleNotFoundError"),
        ("mine:Yours", "mine has no class 'Yours'"),
        ("broken:Mine", "broken: NameError: name 'missing' is not defined"),
    ],
)
def test_what_is_no_device_type(module: Path, tmp_path: Path, name: str, why: str) -> None:
    module.write_text(SOURCE % "b''")
    (tmp_path / "broken.py").write_text("missing")
    done = subprocess.run(
        [sys.executable, "-m", "vfu_server", "--socket-dir", str(tmp_path / "d"), "--device", name],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert f"--device: {why}" in done.stderr
