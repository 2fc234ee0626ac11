"""What functions share and one client asks for without end: descriptors, mappings, addresses."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.wire.driving import Neighbour, driven, works
from tests.wire.raw_client import RawClient
from tests.wire.running import sockets, until
from vfu_client.vfio.connection import Connection
from vfu_client.vfio.pci import PciFunction
from vfu_client.vfio.sriov import SrIov
from vfu_server import budget

PAGE = 4096


@contextmanager
def files(count: int) -> Iterator[list[int]]:
    """Files of one page of guest memory."""
    found = [os.memfd_create("guest") for _ in range(count)]
    try:
        for fd in found:
            os.ftruncate(fd, PAGE)
        yield found
    finally:
        for fd in found:
            os.close(fd)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sockets"


def limits(server: ServerProcess) -> tuple[int, int]:
    """The server's soft and hard limit of file descriptors."""
    return resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)


def test_more_regions_than_a_client_may_have(shared: ServerProcess) -> None:
    """The one that is too much is refused, and its function needs a reset: QEMU does not tell its guest."""
    neighbour = Neighbour(shared.socket("vf2"))
    with files(1) as (fd,), driven(shared.socket("vf1")) as block:
        connection = block.device.connection
        mark = shared.mark()
        # The driver has a region already.
        for number in range(65535):
            connection.dma_map(fd, 0, (1 << 40) + 2 * number * PAGE, PAGE)
        assert not block.device.status & 64
        with pytest.raises(OSError, match="No space"):
            connection.dma_map(fd, 0, 1 << 44, PAGE)
        block.wait_broken()
        shared.wait_log(
            r"virtio.vf1: device needs reset: the client maps more than 65536 regions", since=mark
        )
        neighbour.answers()
        connection.dma_unmap(1 << 40, 1 << 40)
        block.device.reset()
        assert block.device.status == 0
    neighbour.close()
    works(shared.socket("vf1"))


def test_regions_take_no_descriptors(serve: Callable[..., ServerProcess]) -> None:
    """1005 regions of files of their own, with 30 descriptors to spare; the other functions are reached."""
    server = serve("--vfs", "2", "--disk", "ram:1M", log_level="info")
    with RawClient(server.socket("vf1")) as client, files(256) as memory:
        client.read(7, 0, 2)
        _, hard = limits(server)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (server.open_files + 30, hard))
        for number in range(1005):
            client.map(memory[number % 256], number << 20, PAGE)
        works(server.socket("pf"))
        works(server.socket("vf2"))


def test_clients_wait_while_there_is_no_descriptor(serve: Callable[..., ServerProcess]) -> None:
    """One line, no work, and service once there is one again."""
    server = serve("--vfs", "2", "--disk", "ram:1M", log_level="info")
    neighbour = Neighbour(server.socket("vf2"))
    soft, hard = limits(server)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (3, hard))
    with RawClient(server.socket("vf1"), negotiate=False) as client:
        server.wait_log("virtio.vf1: nobody can be let in: Too many open files: clients wait")
        neighbour.answers()
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        client.call(1, b"\0\0\1\0" + b'{"capabilities":{}}\0')
        assert client.read(7, 0, 2) == b"\xf4\x1a"
    neighbour.close()


def test_a_vf_without_a_descriptor_for_its_socket(serve: Callable[..., ServerProcess]) -> None:
    """VF Enable while there is none: the server goes on, and the next VF Enable makes the sockets."""
    server = serve("--vfs", "1", "--total-vfs", "2", "--disk", "ram:1M", log_level="info")
    soft, hard = limits(server)
    with Connection(server.socket("pf"), timeout=10) as connection:
        sriov = SrIov(PciFunction(connection))
        sriov.disable()
        until(lambda: sockets(server) == ["pf"], "no VFs")
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (3, hard))
        sriov.enable(2)
        server.wait_log(
            "virtio.server: vf1 is not served, until VFs are enabled again: .*Too many open files"
        )
        sriov.disable()
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        sriov.enable(2)
        until(lambda: sockets(server) == ["pf", "vf1", "vf2"], "both VFs")
        works(server.socket("vf2"))


def test_one_client_asks_for_every_mapping(serve: Callable[..., ServerProcess]) -> None:
    """A file for each region, until the client has had its share; its neighbours have theirs."""
    server = serve("--vfs", "255", "--disk", "ram:1M", log_level="info")
    with RawClient(server.socket("vf1")) as client, files(256) as memory:
        share = budget.share(256, limits(server)[0]).mappings
        # What lies past the end of its file is mapped by itself.
        for number in range(share):
            client.map(memory[number % 256], number << 20, 2 * PAGE)
        with pytest.raises(OSError, match="No space"):
            client.map(memory[0], share << 20, 2 * PAGE)
        server.wait_log("virtio.vf1: device needs reset: the client maps guest memory of more than")
        works(server.socket("vf255"))


@contextmanager
def limited(limit: str, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A server of its own whose limits of file descriptors were set with these options of `ulimit`."""
    command = f"ulimit {limit}; exec {sys.executable} -m vfu_server --device blk --disk ram:1M"
    process = subprocess.Popen(
        ["sh", "-c", f"{command} --socket-dir {folder} {' '.join(options)}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready {folder}\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_soft_limit_is_raised(tmp_path: Path) -> None:
    with limited("-Sn 200", tmp_path, "--vfs", "1") as server:
        soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        assert soft == hard > 200


def test_a_limit_that_is_too_low_is_refused(folder: Path) -> None:
    """With the number that it takes, for which the server then starts."""

    def start(limit: int) -> subprocess.CompletedProcess[str]:
        command = f"ulimit -n {limit}; exec timeout -s TERM 20 {sys.executable} -m vfu_server --device blk"
        return subprocess.run(
            ["sh", "-c", f"{command} --disk ram:1M --socket-dir {folder} --vfs 60"],
            capture_output=True,
            text=True,
            check=False,
            timeout=40,
        )

    refused = start(300)
    assert refused.returncode == 1
    assert refused.stdout == ""
    found = re.search(
        r"vfu-server: the functions: 61 with a client each take (\d+) file descriptors at least, and the hard"
        r" limit of 300 is enough for (\d+) VFs: raise it \(as root: ulimit -n \1; a systemd unit:"
        r" LimitNOFILE=\1\), or have fewer VFs$",
        refused.stderr,
    )
    assert found is not None, refused.stderr
    needed, vfs = map(int, found.groups())
    assert 60 * 7 < needed < 60 * 7 + 120
    assert 20 < vfs < 40
    assert list(folder.glob("*.sock")) == []
    with limited(f"-n {needed}", folder, "--vfs", "60"):
        works(folder / "vf60.sock")
    with limited("-n 300", folder, "--vfs", str(vfs)):
        works(folder / f"vf{vfs}.sock")


def test_shares() -> None:
    share = budget.share(4, 100_000)
    assert 24_000 < share.eventfds < 25_000
    assert share.address_space == 24 << 40
    assert 256 * budget.share(256, 100_000).mappings <= 32768
    assert budget.share(256, 1024).eventfds == 16


def test_a_limit_that_is_too_low_is_told(tmp_path: Path) -> None:
    """So many functions and queues that a client does not get all the interrupts that its driver may use."""
    with limited("-n 300", tmp_path, "--vfs", "8", "--queues", "32") as server:
        with RawClient(tmp_path / "vf8.sock") as client:
            assert client.read(7, 0, 2) == b"\xf4\x1a"
        server.terminate()
        _, log = server.communicate(timeout=20)
        assert server.returncode == 0
    assert "the limit of 300 file descriptors leaves each of 9 functions 16 of 34 interrupts" in log
