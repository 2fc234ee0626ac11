"""A server, or a QEMU, that dies under the one that waits for it."""

from __future__ import annotations

import errno
import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.wire.running import until
from vfu_client import BlockDriver, OwnerDriver
from vfu_client.qemu.qtest import QTest, QTestError
from vfu_client.vfio.connection import VfioUserError
from vfu_client.virtio.driver_queue import DriverQueue

MODE_SET = 1
"""The second command of the draft, counted from the first."""
FLUSH = 4
STOP = bytes([1, 0, 0, 0, 0, 0, 0, 0])
FOR_EVER = 1000.0


def outstanding(server: ServerProcess) -> int:
    """Requests that VF 1 has fetched and not used."""
    (vf,) = server.ask("query-functions", function="vf1")
    return sum(int(queue["outstanding"]) for queue in vf["queues"])


def test_every_wait_ends() -> None:
    """An admin command, a request of a disk: both were fetched, and are answered by nobody any more."""
    with (
        ServerProcess("--vfs", "1", "--disk", "ram:1M", "--io-delay-ms", "600000") as server,
        OwnerDriver.open(server.socket("pf"), timeout=FOR_EVER) as owner,
        BlockDriver.open(server.socket("vf1"), timeout=FOR_EVER) as disk,
    ):
        disk.submit(FLUSH, 0, None)
        until(lambda: outstanding(server) == 1, "fetched")
        command = owner.submit(MODE_SET, 1, data=STOP)
        server.stop(signal.SIGKILL)
        queues: list[DriverQueue] = [disk.queues[0], owner.admin.queue]
        for queue in queues:
            with pytest.raises(VfioUserError, match="the server hung up") as caught:
                queue.wait(FOR_EVER)
            assert caught.value.errno == errno.ECONNRESET
        with pytest.raises(VfioUserError, match="the server hung up"):
            owner.admin.wait(command)


@pytest.mark.parametrize("takes", ["nothing", "a part", "all"])
def test_a_qemu_that_is_gone(tmp_path: Path, takes: str) -> None:
    """However that shows (EPIPE, ECONNRESET, an end of file): it says what happened, and on which socket."""
    path = tmp_path / "qtest"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with QTest(path, timeout=20) as qtest:
            peer, _ = listener.accept()

            def leave() -> None:
                if takes != "nothing":
                    peer.recv(3 if takes == "a part" else 100)
                peer.close()

            qemu = threading.Thread(target=leave)
            qemu.start()
            if takes == "nothing":
                qemu.join()
            with pytest.raises(QTestError, match=f"^QEMU hung up on {path}: did it end"):
                qtest.run(["inl 0xcf8"])
            qemu.join()
