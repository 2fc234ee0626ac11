"""What the switch's threads share their tables and inboxes with."""

from __future__ import annotations

import resource
import select
import threading

import pytest

from vfu_server.vfio.event import Event
from vfu_server.vfio.mutex import Mutex


def test_who_waits_leaves_the_interpreter_to_others() -> None:
    mutex, order = Mutex(), list[str]()
    mutex.take()

    def wait() -> None:
        mutex.take()
        order.append("had it")
        mutex.give()

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    # This thread would not come back to the interpreter if one that waits kept it.
    for _ in range(1000):
        order.append("went on")
    mutex.give()
    for thread in threads:
        thread.join()
    assert order == ["went on"] * 1000 + ["had it"] * 3


def test_threads_take_turns() -> None:
    mutex, count = Mutex(), 0

    def add() -> None:
        nonlocal count
        for _ in range(20_000):
            mutex.take()
            count += 1
            mutex.give()

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 80_000


def test_an_event_is_readable_until_it_is_forgotten() -> None:
    event = Event()
    waiting = select.poll()
    waiting.register(event.fd, select.POLLIN)
    assert waiting.poll(0) == []
    assert event.tell() == event.tell() == 0
    assert waiting.poll(0) == [(event.fd, select.POLLIN)]
    assert event.forget() == 0
    assert waiting.poll(0) == []
    assert event.forget() == -1


def test_a_closed_event_tells_nobody() -> None:
    event = Event()
    event.close()
    assert (event.fd, event.tell(), event.forget()) == (-1, -1, -1)
    event.close()


def test_there_may_be_no_descriptor() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Event()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
