"""The command `vfu-server` as a process: what it prints, how it ends, what it refuses."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.wire.raw_client import HEADER, REGION_READ, RawClient
from tests.wire.running import until
from vfu_client.drivers.block import BlockDriver
from vfu_client.vfio.sriov import SrIov
from vfu_server.__main__ import main
from vfu_server.disks.options import disk_option, open_disks

COMMAND = [sys.executable, "-m", "vfu_server"]


class Running:
    """A server, ready, in `folder`."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [*COMMAND, "--socket-dir", str(folder), "--device", "blk", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its status, and what it logged."""
        self.process.send_signal(number)
        _, logged = self.process.communicate(timeout=10)
        return self.process.returncode, logged


@pytest.fixture(autouse=True)
def signals_as_they_come() -> Iterator[None]:
    """What a test starts inherits no ignored signal, as tests in the background or under nohup do."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sockets"


@pytest.fixture
def server(folder: Path) -> Iterator[Running]:
    running = Running(folder, "--vfs", "2", "--disk", "ram:1M")
    yield running
    if running.process.poll() is None:
        running.process.kill()
    running.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_ready_and_stopped(server: Running, folder: Path, number: int) -> None:
    assert server.ready == f"ready {folder}\n"
    assert sorted(path.name for path in folder.glob("*.sock")) == [
        "monitor.sock",
        "pf.sock",
        "vf1.sock",
        "vf2.sock",
    ]
    status, logged = server.stop(number)
    assert status == 0
    assert not list(folder.glob("*.sock"))
    assert "Traceback" not in logged


def test_stopped_while_clients_stall(server: Running, folder: Path) -> None:
    silent = RawClient(folder / "pf.sock", negotiate=False)
    half = RawClient(folder / "vf1.sock")
    half.socket.sendall(HEADER.pack(1, REGION_READ, 32, 0, 0) + b"half")
    with RawClient(folder / "vf2.sock") as idle:
        assert idle.read(7, 0, 2) == b"\xf4\x1a"
        status, logged = server.stop()
    assert status == 0
    assert "Traceback" not in logged
    silent.socket.close()
    half.socket.close()


def test_a_second_server_is_refused(server: Running, folder: Path) -> None:
    second = subprocess.run(
        [*COMMAND, "--socket-dir", str(folder), "--device", "blk"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert second.returncode == 1
    assert second.stderr.startswith("vfu-server: --socket-dir: another server runs in")
    with RawClient(folder / "pf.sock") as client:
        assert client.read(7, 0, 2) == b"\xf4\x1a"


def test_sockets_of_a_killed_server_are_taken_over(folder: Path) -> None:
    first = Running(folder)
    first.stop(signal.SIGKILL)
    assert (folder / "pf.sock").exists()
    again = Running(folder)
    assert again.ready == f"ready {folder}\n"
    assert again.stop()[0] == 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--device", "gpu"], "there are blk, net; or give module:Class"),
        (["--device", "blk", "--vfs", "3", "--total-vfs", "2"], "more than --total-vfs 2"),
        (["--device", "blk", "--vfs", "-1"], "not in 0 to 65535"),
        (["--device", "blk", "--total-vfs", "65536"], "not in 0 to 65535"),
        (["--device", "blk", "--queues", "0"], "not in 1 to"),
        (["--device", "blk", "--queues", "many"], "invalid number value"),
        (["--device", "blk", "--disk", "ram:12"], "no multiple of 512"),
        (["--device", "blk", "--disk", "ram:big"], "such as ram:64M"),
        (["--device", "blk", "--disk", "vf1=ram:1M"], "no function vf1"),
        (["--device", "blk", "--context-opcodes", "on"], "neither a number nor"),
        (["--device", "blk", "--context-opcodes", "0x10000"], "no opcode"),
        (["--device", "blk", "--context-opcodes", "0x05"], "0x5 and on are not within 0x13-0x7fff"),
        (["--device", "blk", "--context-opcodes", "0x7ffc"], "0x7ffc and on are not within 0x13-0x7fff"),
        (["--device", "blk", "--disk", "ram:16777216T"], "more than 9223372036854775296 bytes"),
        (["--device", "blk", "--disk", "ram:" + "9" * 5000], "such as ram:64M"),
        (["--device", "blk", "--disk", "a.img,format=qcow2"], "only raw images are served"),
        (["--device", "blk", "--flr-delay-ms", "-5"], "not in 0 to"),
        (["--device", "blk", "--without", "paked"], "'paked' is none of packed, in-order, notification-data"),
        (["--device", "blk", "--without", "packed,"], "'' is none of packed"),
    ],
)
def test_bad_options(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--socket-dir", str(folder), *options])
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not folder.exists()


def test_a_folder_name_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--socket-dir", str(tmp_path / ("x" * 100)), "--device", "blk"])
    assert caught.value.code == 2
    assert "too long" in capsys.readouterr().err


def lacking(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What the command says of something that is not to be had: status 1, one line, no usage."""
    assert main(options) == 1
    said = capsys.readouterr().err
    assert said.startswith("vfu-server: --")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("disk", "complaint"),
    [
        ("none.img", "none.img does not exist: `,size="),
        ("nowhere/none.img,size=1M", "there is no folder nowhere"),
        ("fifo", "fifo is a FIFO"),
        ("fifo,readonly", "fifo is a FIFO"),
        ("fifo,size=1M", "fifo is a FIFO"),
        ("link,readonly", "link is a FIFO"),
        ("socket", "socket is a socket"),
        (".,readonly", ". is a directory"),
        ("/dev/null", "/dev/null is a character device"),
        ("/dev/zero,readonly,size=1M", "/dev/zero is a character device"),
        ("odd.img", "odd.img has 700 bytes, which is no multiple of 512"),
        ("odd.img,size=1M", "odd.img has 700 bytes"),
        ("huge.img,size=8000000T", "huge.img: File too large"),
        ("ram:8000000T", "no memory for the tables of a disk of 8796093022208000000 bytes"),
    ],
)
def test_disks_that_are_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    disk: str,
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    os.symlink("fifo", "link")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    Path("odd.img").write_bytes(bytes(700))
    before = sorted(os.listdir())
    assert complaint in lacking(capsys, "--socket-dir", "s", "--device", "blk", "--disk", disk)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("name", "offset", "magic"),
    [
        ("qcow2", 0, b"QFI\xfb\0\0\0\x03"),
        ("qcow2", 0, b"QFI\xfb\0\0\0\x02"),
        ("qcow", 0, b"QFI\xfb\0\0\0\x01"),
        ("qed", 0, b"QED\0"),
        ("vmdk", 0, b"KDMV"),
        ("vmdk", 0, b"# Disk DescriptorFile\nversion=1"),
        ("vdi", 64, b"\x7f\x10\xda\xbe"),
        ("vhdx", 0, b"vhdxfile"),
        ("vpc", 0, b"conectix"),
        ("vpc", (1 << 20) - 512, b"conectix"),
        ("dmg", (1 << 20) - 512, b"koly"),
        ("parallels", 0, b"WithouFreSpacExt"),
        ("luks", 0, b"LUKS\xba\xbe\0\x02"),
        ("gzip", 0, b"\x1f\x8b\x08"),
        ("xz", 0, b"\xfd7zXZ\0"),
        ("zstd", 0, b"\x28\xb5\x2f\xfd"),
    ],
)
def test_an_image_of_another_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, offset: int, magic: bytes
) -> None:
    """It would be served raw: a guest would see the format's own structures, and write over them."""
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(magic)
    options = ["--socket-dir", str(tmp_path / "s"), "--device", "blk", "--disk"]
    for also in ("", ",readonly", ",size=1M"):
        said = lacking(capsys, *options, f"{image}{also}")
        assert f"{image} looks like {name}," in said
        assert "`,format=raw`" in said
    _, choice = disk_option(f"{image},format=raw")
    disks = open_disks({"pf": choice})
    assert disks["pf"].size == 1 << 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_impatience_leaves_nothing_behind(folder: Path, number: int) -> None:
    """A second signal, and more, while all functions stop: the sockets go, and the status is 0."""
    server = Running(folder, "--vfs", "8", "--disk", "ram:1M")
    others = [signal.SIGHUP, signal.SIGTERM, signal.SIGINT]
    clients = [RawClient(folder / f"vf{vf}.sock") for vf in range(1, 9)]
    server.process.send_signal(number)
    while server.process.poll() is None:
        server.process.send_signal(others[0])
        others.append(others.pop(0))
        time.sleep(0.001)  # as fast as makes sense: the server is to have its turn
    _, logged = server.process.communicate(timeout=10)
    for client in clients:
        client.socket.close()
    assert server.process.returncode == 0
    assert not list(folder.glob("*.sock"))
    assert "Traceback" not in logged
    assert logged.count(": stopping") == 1


def test_a_hangup_that_is_ignored_stays_so(folder: Path) -> None:
    """As behind `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = Running(folder)
    finally:
        signal.signal(signal.SIGHUP, before)
    server.process.send_signal(signal.SIGHUP)
    with RawClient(folder / "pf.sock") as client:
        assert client.read(7, 0, 2) == b"\xf4\x1a"
    status, logged = server.stop()
    assert status == 0
    assert "SIGHUP" not in logged
    assert "SIGTERM: stopping" in logged


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_starts(folder: Path, number: int) -> None:
    """Whenever it comes: no traceback, no sockets, ended by the signal or in order."""
    options = [*COMMAND, "--socket-dir", str(folder), "--device", "blk", "--vfs", "8"]
    for step in range(5):
        process = subprocess.Popen(options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda pid=process.pid: started(pid), "the program's own code runs")  # type: ignore[misc]
        time.sleep(step * 0.1)  # what is varied, not what is waited for
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
        assert process.returncode in {0, -number}
        assert "Traceback" not in said
        assert not list(folder.glob("*.sock"))


def test_ctrl_c_while_python_starts(folder: Path) -> None:
    """With the command that `make` makes, as a user types it."""
    command = Path(sys.executable).with_name("vfu-server")
    if not command.is_file() or "--block-signal" not in command.read_text():
        pytest.skip("there is no vfu-server beside this Python that can hold a signal")
    for step in range(8):
        process = subprocess.Popen(
            [command, "--socket-dir", str(folder), "--device", "blk"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(step * 0.015)  # what is varied, not what is waited for
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert process.returncode in {0, -signal.SIGINT}
        assert "Traceback" not in said


def nobody(where: str) -> int:
    """A file that takes nothing."""
    if where == "/dev/full":
        return os.open(where, os.O_WRONLY)
    reader, out = os.pipe()
    os.close(reader)
    return out


@pytest.mark.parametrize("where", ["/dev/full", "a closed pipe"])
def test_nobody_need_read_that_it_is_ready(folder: Path, where: str) -> None:
    out = nobody(where)
    process = subprocess.Popen(
        [*COMMAND, "--socket-dir", str(folder), "--device", "blk"],
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(out)
    assert process.stderr is not None
    assert "virtio.server: stdout: " in process.stderr.readline()
    with RawClient(folder / "pf.sock") as client:
        assert client.read(7, 0, 2) == b"\xf4\x1a"
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize("where", ["/dev/full", "a closed pipe"])
def test_nobody_need_read_the_log(folder: Path, where: str) -> None:
    """What could not be logged changes no status, also not when the program ends."""
    errors = nobody(where)
    process = subprocess.Popen(
        [*COMMAND, "--socket-dir", str(folder), "--device", "blk", "--log-level", "debug"],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    os.close(errors)
    assert process.stdout is not None
    assert process.stdout.readline() == f"ready {folder}\n"
    with RawClient(folder / "pf.sock") as client:
        assert client.read(7, 0, 2) == b"\xf4\x1a"
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0


def started(pid: int) -> bool:
    """Whether a program is about its imports: before that it is Python that starts."""
    return "numpy" in Path(f"/proc/{pid}/maps").read_text()


def test_two_clients_at_one_socket(serve: Callable[..., ServerProcess]) -> None:
    """The second one waits for ever, as far as it can tell: the log says for what."""
    server = serve("--vfs", "1", "--disk", "ram:1M")
    line = r"virtio.server: vf1: a client waits: there is one already"
    with RawClient(server.socket("vf1")) as first:
        with RawClient(server.socket("pf")), RawClient(server.socket("vf1"), negotiate=False):
            server.wait_log(line)
        # One that follows another is no second one.
        with RawClient(server.socket("pf")) as again:
            assert again.read(7, 0, 2) == b"\xf4\x1a"
        assert first.read(7, 0, 2) == b"\xf4\x1a"
    assert len(re.findall(line, server.log)) == 1
    assert "pf: a client waits" not in server.log


@pytest.mark.parametrize("how", ["VF Enable", "FLR"])
def test_a_vf_that_goes_under_its_client(serve: Callable[..., ServerProcess], how: str) -> None:
    server = serve("--vfs", "2", "--disk", "ram:1M")
    with BlockDriver.open(server.socket("pf")) as pf, RawClient(server.socket("vf1")) as client:
        # An answer shows that the server knows of the client; the end of the negotiation comes before that.
        assert client.read(7, 0, 2) == b"\xf4\x1a"
        if how == "FLR":
            pf.device.function.flr()
        else:
            SrIov(pf.device.function).disable()
        assert client.closed()
        server.wait_log("WARNING virtio.server: vf1 is gone: .* cleared VF Enable; its client is hung up on")
        server.wait_log("INFO    virtio.server: vf2 is gone: .* cleared VF Enable$")
