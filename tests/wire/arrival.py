"""A driver that finds itself on another function, as after a move."""

from __future__ import annotations

from collections.abc import Iterable

from tests.server_process import ServerProcess
from tests.wire.running import until
from vfu_client.drivers.driver import Driver
from vfu_client.virtio.driver_queue import DriverQueue
from vfu_client.virtio.function import VirtioPci


def arrive(driver: Driver, device: VirtioPci, queues: Iterable[DriverQueue]) -> None:
    """The guest of `driver` is on `device` now: what QEMU would move, and nothing of virtio."""
    left = driver.device
    device.function.set_command(6)
    device.enable_interrupts()
    assert device.msix is not None
    device.features = left.features
    device._notify_offsets, device._notify_values = left._notify_offsets, left._notify_values
    for queue in queues:
        queue.interrupt = device.msix.interrupts[min(queue.index + 1, device.msix.vectors - 1)]
        queue._notify = device.notify
    driver.device = device


def gone(server: ServerProcess, function: str) -> None:
    """Wait until the server knows that a client has left: what is set then is not lost to that reset."""
    until(
        lambda: not server.ask("query-functions", function=function)[0]["client-attached"],
        f"{function} without a client",
    )
