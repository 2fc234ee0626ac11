"""Linux's virtio_rng drives the entropy device of `examples`, which is seventeen lines."""

from __future__ import annotations

from collections.abc import Callable

from tests.server_process import ServerProcess
from vfu_images.machine import Machine


def test_entropy(server: Callable[..., ServerProcess], machine: Callable[..., Machine]) -> None:
    """What it reads is random: no two blocks are alike, and a reset of the driver does not stop it."""
    running = server("--vfs", "1", "--check-driver", device="examples.entropy:Entropy")
    guest = machine(devices=[running.qemu_device("vf1")])
    assert guest.check("cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng.")
    first, second = (
        guest.check("dd if=/dev/hwrng bs=64 count=64 2>/dev/null | md5sum").split()[0] for _ in range(2)
    )
    assert first != second
    address = guest.check("basename $(readlink -f /sys/bus/virtio/drivers/virtio_rng/virtio*/..)").strip()
    for what in ("unbind", "bind"):
        guest.check(f"echo {address} >/sys/bus/pci/drivers/virtio-pci/{what}")
    guest.check("dd if=/dev/hwrng bs=64 count=64 of=/dev/null")
    broken = {entry["rule"] for entry in running.ask("query-rules") if entry["breaches"]}
    assert broken == {"FEAT-06"}
    (function,) = running.ask("query-functions", function="vf1")
    assert function["counters"]["bytes"] >= 3 * 4096
