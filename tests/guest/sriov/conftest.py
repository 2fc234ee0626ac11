"""A guest that these tests share: a PF with four disks as VFs, and one with two network cards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.guest.sriov.guest_sriov import Owned, complaints, guest_options
from tests.server_process import ServerProcess
from vfu_images.machine import Machine


@dataclass(frozen=True)
class Owner:
    """A guest with PFs of disks and of networks.

    A test adds to `expected` what the guest's kernel is right to complain of.
    """

    guest: Machine
    disks: Owned
    networks: Owned
    expected: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def session_owner() -> Iterator[Owner]:
    """See `owner`."""
    with (
        ServerProcess(*guest_options(4, "--disk", "ram:16M"), log_level="debug") as blk,
        ServerProcess(*guest_options(2), device="net") as net,
    ):
        disks, networks = Owned(blk, 4), Owned(net, 2, port=1, prefix="net-")
        with Machine(devices=[*disks.devices(), *networks.devices()], spare_ports=2) as guest:
            guest.wait_ready(timeout=120)
            yield Owner(guest, disks, networks)


@pytest.fixture
def owner(session_owner: Owner) -> Iterator[Owner]:
    """The guest, without VFs when the test begins and when it ends, and without a complaint of its kernel."""
    guest, expected = session_owner.guest, session_owner.expected
    before = len(complaints(guest))
    expected.clear()
    yield session_owner
    for each in (session_owner.disks, session_owner.networks):
        if each.enabled(guest):
            each.enable(guest, 0)
        assert "Traceback" not in each.server.log
    unexpected = [line for line in complaints(guest)[before:] if not any(text in line for text in expected)]
    assert unexpected == []
