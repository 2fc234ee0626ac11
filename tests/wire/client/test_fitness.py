"""What a move finds before it touches anything: that the other device cannot go on. The device agrees."""

from __future__ import annotations

import re

import pytest

from tests.server_process import ServerProcess
from tests.wire.running import running
from vfu_client import BlockDriver, NetDriver
from vfu_client.move.pf import Former, Pf, SideError

DISK = ("--device", "blk", "--vfs", "1", "--queues", "2", "--disk")
NET = ("--device", "net", "--vfs", "1")


@pytest.mark.parametrize(
    ("here", "there", "why"),
    [
        ((*DISK, "ram:1M"), (*DISK, "ram:1M"), None),
        ((*DISK, "ram:1M"), (*DISK, "ram:2M"), "capacity is 2048 at the source, 4096 at the destination$"),
        ((*DISK, "ram:1M"), (*DISK, "ram:1M", "--queues", "1"), "num_queues is 2 at the source, 1 at"),
        (
            (*DISK, "ram:1M"),
            (*DISK, "ram:1M", "--without", "event-idx"),
            "does not offer feature 29, which the guest uses",
        ),
        ((*DISK, "ram:1M"), NET, "it is a network card, and the source's is a disk$"),
        (NET, (*NET, "--mac", "02:00:00:00:00:77"), None),
        (NET, (*NET, "--mtu", "1400"), "mtu is .* at the source, 1400 at the destination|feature 3"),
    ],
)
def test_unfit_devices(here: tuple[str, ...], there: tuple[str, ...], why: str | None) -> None:
    """`check_destination` refuses what the device itself refuses in `prepare`, and says what differs."""
    with running() as start:
        servers: list[ServerProcess] = [start(*options) for options in (here, there)]
        driver = BlockDriver if "blk" in here else NetDriver
        pfs = [Pf(name, server.folder, 0x40) for name, server in zip(("here", "there"), servers, strict=True)]
        source, destination = pfs
        with driver.open(servers[0].socket("vf1")):
            try:
                for pf in pfs:
                    pf.open()
                fields = source.check_source(1)
                if why is None:
                    destination.check_destination(1, fields)
                    destination.prepare(1, Former(), source.read_first(1))
                    return
                with pytest.raises(SideError) as caught:
                    destination.check_destination(1, fields)
                assert re.search(why, str(caught.value)), caught.value
                assert str(servers[1].folder) in str(caught.value)
                with pytest.raises(SideError, match="cannot take the source's state"):
                    destination.prepare(1, Former(), source.read_first(1))
            finally:
                for pf in pfs:
                    pf.close()
