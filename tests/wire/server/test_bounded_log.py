"""The log: nobody can fill it, and what was left out is counted."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.raw_client import DMA_MAP, RESET, RawClient
from tests.wire.running import stop
from vfu_server.bounded_log import BoundedHandler


class Log:
    """A handler that writes into a string, and loggers for it, with a clock that a test sets."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.now = 1000.0
        self.handler = BoundedHandler(self.stream, lambda: self.now)
        self.handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        # Not getLogger: these are gone with the test.
        self.vf1, self.vf2 = (logging.Logger(f"virtio.{name}") for name in ("vf1", "vf2"))  # noqa: LOG001 - see above
        for logger in (self.vf1, self.vf2):
            logger.addHandler(self.handler)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    yield made
    made.handler.close()


def test_a_hundred_of_a_kind_in_a_minute(log: Log) -> None:
    """What differs in its arguments is of one kind; another function's, or another kind, is not."""
    for number in range(500):
        log.vf1.info("reset %d", number)
        log.vf1.error("request %d failed", number)
    log.vf2.info("reset %d", 7)
    assert log.lines[:3] == [
        "INFO virtio.vf1: reset 0",
        "ERROR virtio.vf1: request 0 failed",
        "INFO virtio.vf1: reset 1",
    ]
    assert log.lines[198:] == [
        "INFO virtio.vf1: reset 99",
        "ERROR virtio.vf1: request 99 failed",
        "INFO virtio.vf2: reset 7",
    ]
    log.now += 59
    log.vf1.info("reset %d", 500)
    assert len(log.lines) == 201
    log.now += 1
    log.vf1.info("reset %d", 501)
    assert log.lines[201:] == [
        "INFO virtio.vf1: 401 lines like this were left out, this is the last: reset 500",
        "INFO virtio.vf1: reset 501",
    ]


def test_the_count_is_told_though_nothing_follows(log: Log) -> None:
    for _ in range(105):
        log.vf1.warning("again")
    log.handler.tell_ended()
    assert len(log.lines) == 100
    log.now += 60
    log.handler.tell_ended()
    log.handler.tell_ended()
    assert log.lines[100:] == ["WARNING virtio.vf1: 5 lines like this were left out, this is the last: again"]


def test_the_count_is_told_at_the_end(log: Log) -> None:
    for _ in range(101):
        log.vf1.info("again")
    log.handler.close()
    log.handler.close()
    assert log.lines[100:] == ["INFO virtio.vf1: 1 lines like this were left out, this is the last: again"]


def test_a_kind_that_is_given(log: Log) -> None:
    for rule in ("DRV-01", "DRV-02"):
        for _ in range(100):
            log.vf1.info("%s is broken", rule, extra={"kind": rule})
    assert len(log.lines) == 200


def test_threads_have_kinds_of_their_own(log: Log) -> None:
    """What networks and disks log has no function's name, but is logged on its thread."""

    def fill() -> None:
        for _ in range(150):
            log.vf1.info("connected")

    for name in ("vf1", "vf2"):
        thread = threading.Thread(target=fill, name=name)
        thread.start()
        thread.join()
    assert len(log.lines) == 200


def test_what_was_asked_for_is_not_left_out(serve: Callable[..., ServerProcess]) -> None:
    """With the log level debug: of what leads to more than a hundred lines of a kind, all."""
    server = serve("--vfs", "1", "--disk", "ram:1M", log_level="debug")
    with RawClient(server.socket("vf1")) as client:
        for _ in range(150):
            client.call(RESET)
    server.wait_log("virtio.vf1: reset by the client", count=150)


def test_a_guest_that_resets_its_function(serve: Callable[..., ServerProcess]) -> None:
    """Thousands of resets by client and driver: a hundred lines of each, and how many there were."""
    server = serve("--vfs", "2", "--disk", "ram:1M", log_level="info")
    with RawClient(server.socket("vf1")) as client, RawClient(server.socket("vf2")) as other:
        for _ in range(500):
            client.call(RESET)
            client.write(0, 0x14, b"\1")
            client.write(0, 0x14, b"\0")
        other.call(RESET)
        other.read(0, 0x14, 1)
    server.wait_log("virtio.vf2: reset by the client")
    stop(server)
    lines = server.log_of("vf1").splitlines()
    assert len(lines) < 100 * 4 + 20
    assert sum(line.endswith("virtio.vf1: reset by the client") for line in lines) == 100
    assert any(
        "400 lines like this were left out, this is the last: reset by the client" in line for line in lines
    )


def test_one_complaint_does_not_hide_another(serve: Callable[..., ServerProcess]) -> None:
    """Of the library's lines about a client those that differ in numbers alone are of one kind."""
    server = serve("--vfs", "1", "--disk", "ram:1M", log_level="info")
    with RawClient(server.socket("vf1")) as client:
        for number in range(500):
            with pytest.raises(OSError, match="Invalid"):
                client.unmap(number << 12, 0)
        with pytest.raises(OSError, match="Invalid"):
            client.call(DMA_MAP, bytes(8))
    server.wait_log("virtio.vf1: libvfio-user: bad DMA map region")
    assert len(server.log_of("vf1").splitlines()) < 120
