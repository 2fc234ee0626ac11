"""What functions are connected to, from the command line to the driver: the switch, sockets, nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pymodel.spec import net
from tests.server_process import ServerProcess
from tests.wire.driving import served
from tests.wire.frames import BROADCAST, DEADLINE, ethernet, received
from tests.wire.running import until
from vfu_client.drivers.net import FEATURES, Header, NetDriver
from vfu_client.vfio.sriov import SrIov
from vfu_server.__main__ import main
from vfu_server.networks.networks import Networks
from vfu_server.networks.options import NetOptions

Serve = Callable[..., ServerProcess]
PF, VF1, VF2, OUTSIDE = (bytes((2, 0, 0, 0, 0, last)) for last in (0x10, 0x11, 0x12, 0x99))
FROM_PF = ("--device", "net", "--mac", "02:00:00:00:00:10")
"""Addresses count on from the PF's."""

LINK_UP = 1
ONE_EACH_WAY = {
    "carrier": True,
    "frames-sent": 1,
    "bytes-sent": 60,
    "frames-received": 1,
    "bytes-received": 60,
    "dropped-sending": 0,
    "dropped-receiving": 0,
}
"""What a port shows that a frame of 60 bytes left by, and another one came by."""
OFFLOADS = frozenset({0, 1, 7, 11})  # CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4


def port_of(server: ServerProcess, function: str) -> dict[str, int]:
    """What the monitor shows of a function's port."""
    port = server.ask("query-functions", function=function)[0]["port"]
    assert isinstance(port, dict)
    return port


def send_all(driver: NetDriver, sent: list[bytes]) -> None:
    for frame in sent:
        driver.send(frame)


def test_functions_talk_through_the_switch(serve: Serve) -> None:
    server = serve(*FROM_PF, "--vfs", "2", "--mtu", "1400")
    with (
        NetDriver.open(server.socket("pf")) as pf,
        NetDriver.open(server.socket("vf1")) as vf1,
        NetDriver.open(server.socket("vf2")) as vf2,
    ):
        assert [driver.mac for driver in (pf, vf1, vf2)] == [PF, VF1, VF2]
        assert pf.status == LINK_UP
        hello, answer = ethernet(BROADCAST, VF1, b"hello"), ethernet(VF1, PF, b"answer")
        vf1.send(hello)
        assert received(pf) == received(vf2) == [hello]
        pf.send(answer)
        assert received(vf1) == [answer]
        assert vf2.poll() == []
        assert port_of(server, "vf1") == ONE_EACH_WAY


def test_a_large_frame_is_cut_for_one_who_takes_no_large_ones(serve: Serve) -> None:
    server = serve(*FROM_PF, "--vfs", "1")
    with (
        NetDriver.open(server.socket("pf")) as pf,
        NetDriver.open(server.socket("vf1"), features=FEATURES | OFFLOADS) as vf1,
    ):
        payload = bytes(range(250)) * 20
        network = struct.pack(">BBHHHBBH", 0x45, 0, 40 + len(payload), 1, 0, 64, 6, 0) + bytes(8)
        tcp = struct.pack(">HHIIBBHHH", 1, 2, 0, 0, 0x50, 0x10, 9, 0, 0)
        header = Header(flags=1, gso_type=1, hdr_len=54, gso_size=1000, csum_start=34, csum_offset=16)
        vf1.send(PF + VF1 + b"\x08\x00" + network + tcp + payload, header=header)
        segments = received(pf, 5)
        assert [len(segment) for segment in segments] == [1054] * 5
        assert b"".join(segment[54:] for segment in segments) == payload


def test_vfs_come_and_go(serve: Serve, tmp_path: Path) -> None:
    """VF Enable off and on: a new VF has the same port, as after a reset; of the old one nothing is left."""
    server = serve(*FROM_PF, "--vfs", "2", "--net", f"vf2=dgram:{tmp_path / 'ours'},{tmp_path / 'theirs'}")
    path, moved = server.socket("vf1"), bytes((2, 0, 0, 0, 0, 0x77))

    def both() -> bool:
        return served(path) and served(server.socket("vf2"))

    with NetDriver.open(server.socket("pf")) as pf:
        pf.set_mode(net.CTRL_RX_PROMISC, on=False)
        sriov = SrIov(pf.device.function)
        until(both, "both VFs")
        before = server.open_files
        for number in range(3):
            hello, answer = ethernet(PF, moved, bytes([number])), ethernet(moved, PF, bytes([number]))
            with NetDriver.open(path) as vf1:
                vf1.set_mode(net.CTRL_RX_PROMISC, on=False)
                assert vf1.mac == VF1
                vf1.set_mac(moved)
                vf1.send(hello)
                assert received(pf) == [hello]
                pf.send(answer)
                assert received(vf1) == [answer]
                sriov.disable()
                until(lambda: not path.exists(), "VF 1 is gone")
            pf.send(answer)
            sriov.enable(2)
            until(both, "both VFs again")
            # The first count may have had a visit of `served` in it still.
            until(lambda: server.open_files <= before, "no more descriptors than before")


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(os.fspath(tmp_path / "theirs"))
        peer.settimeout(DEADLINE)
        yield peer


def test_the_switch_has_an_uplink(serve: Serve, tmp_path: Path, outside: socket.socket) -> None:
    server = serve(*FROM_PF, "--vfs", "1", "--uplink", f"dgram:{tmp_path / 'ours'},{tmp_path / 'theirs'}")
    with NetDriver.open(server.socket("pf")) as pf, NetDriver.open(server.socket("vf1")) as vf1:
        pf.set_mode(net.CTRL_RX_PROMISC, on=False)
        out, back = ethernet(OUTSIDE, VF1, b"out"), ethernet(VF1, OUTSIDE, b"back")
        vf1.send(out)
        assert outside.recv(2000) == out
        outside.sendto(back, os.fspath(tmp_path / "ours"))
        assert received(vf1) == [back]
        assert pf.poll() == []
        assert server.ask("query-uplink") == {
            **ONE_EACH_WAY,
            "dropped-queueing": 0,
            "dropped-malformed": 0,
        }


def test_the_driver_sees_the_connection_come_and_go(serve: Serve, tmp_path: Path) -> None:
    server = serve(*FROM_PF, "--net", f"stream:{tmp_path / 'net'},server")
    with NetDriver.open(server.socket("pf")) as pf:
        assert pf.status == 0
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(DEADLINE)
                peer.connect(os.fspath(tmp_path / "net"))
                until(lambda: pf.status == LINK_UP, "link up")
                frame = ethernet(OUTSIDE, PF)
                pf.send(frame)
                assert peer.recv(2000) == b"\0\0\0\x3c" + frame
                peer.sendall(b"\0\0\0\x3c" + ethernet(PF, OUTSIDE))
                assert received(pf) == [ethernet(PF, OUTSIDE)]
            until(lambda: pf.status == 0, "link down")


def test_a_peer_that_reads_nothing_holds_up_its_function_only(serve: Serve, tmp_path: Path) -> None:
    server = serve(*FROM_PF, "--vfs", "2", "--net", f"vf1=stream:{tmp_path / 'net'},server")
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(DEADLINE)
        peer.connect(os.fspath(tmp_path / "net"))
        with (
            NetDriver.open(server.socket("pf")) as pf,
            NetDriver.open(server.socket("vf1")) as vf1,
            NetDriver.open(server.socket("vf2")) as vf2,
        ):
            until(lambda: vf1.status == LINK_UP, "link up")
            sent = [ethernet(OUTSIDE, VF1, number.to_bytes(2) * 700) for number in range(600)]
            vf1.timeout = 0.2
            with pytest.raises(TimeoutError):
                send_all(vf1, sent)
            vf2.send(ethernet(PF, VF2))
            assert received(pf) == [ethernet(PF, VF2)]
            # Nothing of what was sent is lost, and it goes on when there is room.
            stream = peer.makefile("rb")
            for frame in sent[:250]:
                assert int.from_bytes(stream.read(4)) == len(frame)
                assert stream.read(len(frame)) == frame
            stream.close()


def test_no_network(serve: Serve) -> None:
    server = serve(*FROM_PF, "--net", "none")
    with NetDriver.open(server.socket("pf")) as pf:
        assert pf.status == 0
        pf.send(ethernet(OUTSIDE, PF))
        pf.flush()
    assert port_of(server, "pf")["carrier"] is False


def cpu_seconds(server: ServerProcess) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("driven", [True, False], ids=["a dry ring", "no driver"])
def test_frames_that_nobody_takes_cost_nothing(
    serve: Serve, tmp_path: Path, outside: socket.socket, driven: bool
) -> None:
    server = serve(*FROM_PF, "--net", f"dgram:{tmp_path / 'ours'},{tmp_path / 'theirs'}")
    outside.setblocking(False)
    with NetDriver.open(server.socket("pf"), fill=False) as pf:
        if not driven:
            pf.device.reset()
        for _ in range(1000):
            try:
                outside.sendto(ethernet(PF, OUTSIDE), os.fspath(tmp_path / "ours"))
            except BlockingIOError:
                time.sleep(0)
        before = cpu_seconds(server)
        time.sleep(0.5)  # what is measured, not what is waited for
        assert cpu_seconds(server) - before < 0.2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--device", "blk", "--net", "none"], "--net is for --device net"),
        (["--device", "blk", "--mtu", "1500"], "--mtu is for --device net"),
        (["--device", "blk", "--legacy"], "--legacy is for --device net"),
        (["--device", "net", "--disk", "ram:1M"], "--disk is for --device blk"),
        (["--device", "net", "--net", "wire"], "give switch, none, tap:NAME"),
        (["--device", "net", "--net", "stream:a,b"], "give switch, none, tap:NAME"),
        (["--device", "net", "--net", "dgram:a"], "give switch, none, tap:NAME"),
        (["--device", "net", "--net", "vf1=none"], "there is no function vf1"),
        (["--device", "net", "--vfs", "1", "--net", "tap:t0"], "tap:t0 can be one function's only"),
        (["--device", "net", "--uplink", "switch"], "give tap:NAME"),
        (["--device", "net", "--net", "none", "--uplink", "tap:t0"], "no function is at the switch"),
        (["--device", "net", "--vfs", "1", "--net", "pf=tap:t0", "--uplink", "tap:t0"], "and a function's"),
        (["--device", "net", "--mac", "02:00:00:00:00"], "an address such as"),
        (["--device", "net", "--mac", "01:00:00:00:00:00"], "no address of one function"),
        (["--device", "net", "--mac", "00:00:00:00:00:00"], "no address of one function"),
        (["--device", "net", "--mac", "vf1=02:00:00:00:00:00"], "there is no function vf1"),
        (["--device", "net", "--vfs", "1", "--mac", "fe:ff:ff:ff:ff:ff"], "there are too few"),
        (
            ["--device", "net", "--vfs", "1", "--mac", "02:00:00:00:00:00", "--mac", "vf1=02:00:00:00:00:00"],
            "the same address",
        ),
        (["--device", "net", "--mtu", "67"], "not in 68 to 65535"),
        (["--device", "net", "--mtu", "much"], "'much' is no number"),
        (["--device", "net", "--net", "tap:a/b"], "'a/b' is no name of an interface"),
        (["--device", "net", "--uplink", "tap:sixteen-bytes-xx"], "is no name of an interface"),
        (["--device", "net", "--net", f"stream:/{'x' * 107}"], "the name is too long for a socket"),
        (["--device", "net", "--net", f"stream:/{'x' * 107},server"], "the name is too long for a socket"),
        (["--device", "net", "--net", f"dgram:a,/{'x' * 107}"], "the name is too long for a socket"),
    ],
)
def test_bad_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--socket-dir", str(tmp_path / "s"), *options])
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_what_can_not_be_opened_leaves_nothing_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What earlier tests left to the garbage collector may be closed meanwhile.
    before = open_files()
    options = ["--socket-dir", str(tmp_path / "s"), "--device", "net", "--vfs", "1"]
    options += ["--net", f"pf=stream:{tmp_path / 'net'},server", "--net", f"vf1=stream:{__file__},server"]
    assert main(options) == 1
    said = capsys.readouterr().err
    assert "no socket" in said
    assert "usage" not in said
    assert not (tmp_path / "net").exists()
    assert open_files() <= before


def open_files() -> set[tuple[str, str]]:
    """The process's own file descriptors, and what each is of."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


def test_addresses_that_are_not_given_are_local_stay_and_differ() -> None:
    names = ["pf", "vf1", "vf2"]

    def macs(seed: str) -> list[bytes | None]:
        networks = Networks(NetOptions(seed=seed), names)
        backends = networks.open()
        networks.close()
        return [backends[name].mac for name in names]

    first = macs("/run/a")
    assert first == macs("/run/a")
    assert len({*first, *macs("/run/b")}) == 6
    assert all(mac is not None and mac[0] == 0x02 for mac in first)


def test_of_an_option_given_twice_what_names_the_function_counts() -> None:
    assert net.MAC_SIZE == 6
    options = NetOptions(macs=[("vf1", VF2), (None, PF)], nets=[("pf", "none"), (None, "switch")])
    networks = Networks(options, ["pf", "vf1"])
    backends = networks.open()
    networks.close()
    assert [backends[name].mac for name in ("pf", "vf1")] == [PF, VF2]
    assert [backends[name].port.link_up for name in ("pf", "vf1")] == [False, True]
