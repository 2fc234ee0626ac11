"""The functions' lock: reentrant, and a waiter comes before the thread that just had it."""

from __future__ import annotations

import threading

from vfu_server.vfio.turn_lock import TurnLock


def test_a_waiter_comes_before_the_thread_that_comes_back() -> None:
    lock = TurnLock()
    waits, done = threading.Event(), threading.Event()

    def wait() -> None:
        waits.set()
        with lock:
            done.set()

    for _ in range(50):
        waits.clear()
        done.clear()
        thread = threading.Thread(target=wait)
        with lock:
            thread.start()
            assert waits.wait(10)
            while not lock.awaited:
                pass
        with lock:
            assert done.is_set()
        thread.join()


def test_it_is_reentrant_and_excludes() -> None:
    lock = TurnLock()
    total = 0

    def count() -> None:
        nonlocal total
        for _ in range(2000):
            with lock, lock:
                before = total
                total = before + 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == 8000
