"""Two guests talk through the server's switch, and live as guests do; each byte that is said is checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.guest.guest_disk import DRIVER
from tests.guest.guest_net import (
    INTERFACE,
    finish,
    function_address,
    reaches,
    received,
    records_now,
    set_up,
    start_receiver,
    start_sender,
    wait_carrier,
    wait_records,
)
from tests.server_process import ServerProcess
from vfu_images.job import Job
from vfu_images.machine import Machine

HERE, THERE = "10.1.0.1", "10.1.0.2"
OTHER_MAC = "02:00:00:00:00:99"


@dataclass(frozen=True)
class Neighbours:
    """`here` on VF 1 with two processors, `there` on VF 2; their addresses are HERE and THERE."""

    server: ServerProcess
    here: Machine
    there: Machine


@pytest.fixture(scope="module")
def neighbours() -> Iterator[Neighbours]:
    """See `Neighbours`. Tests leave them able to talk."""
    with (
        ServerProcess("--vfs", "2", "--queues", "2", "--net", "switch", device="net") as server,
        Machine(devices=[server.qemu_device("vf1")], cpus=2) as here,
        Machine(devices=[server.qemu_device("vf2")]) as there,
    ):
        for guest, address in ((here, HERE), (there, THERE)):
            guest.wait_ready(timeout=120)
            # No packets of its own accord, which would blur counters.
            guest.check("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
            set_up(guest, address)
        yield Neighbours(server, here, there)
        assert "Traceback" not in server.log
        # Linux was given everything that it asked for.
        assert not re.findall(r".*control command.* refused.*", server.log)


@pytest.fixture
def stream(neighbours: Neighbours) -> Iterator[Job]:
    """A stream from here to there and back; it survives the test, without a reset, and goes on after it."""
    receiver = start_receiver(neighbours.there)
    sender = start_sender(neighbours.here, THERE)
    wait_records(sender, 200)
    yield sender
    wait_records(sender, 200)
    finish(sender, receiver)


def test_ping(neighbours: Neighbours) -> None:
    """They reach each other, and what is not there is not reached."""
    assert reaches(neighbours.here, THERE)
    assert reaches(neighbours.there, HERE)
    assert neighbours.here.run("ping -q -c 1 -W 1 10.1.0.77").status != 0


def test_stream(neighbours: Neighbours) -> None:
    """Each end receives just what the other sent, as fast as they can."""
    there = neighbours.there.start("netverify receive --port 5002")
    here = neighbours.here.run(
        "while ! netverify send --address 10.1.0.2 --port 5002 --count 20000 --report-ms 100000 "
        "> /tmp/said; do :; done; tail -n 1 /tmp/said",
        timeout=120,
    )
    found = dict(word.split("=") for word in here.output.strip().splitlines()[-1].split())
    (done,) = finish_alone(there)
    assert found["sent_records"] == done["records"] == "20000"
    assert found["records"] == done["sent_records"]
    assert (found["ended"], found["resets"], found["corrupt"]) == ("clean", "0", "0")


def finish_alone(job: Job) -> list[dict[str, str]]:
    """The figures of an end whose other end stopped."""
    status, output = job.wait()
    assert status == 0, output
    return [dict(word.split("=") for word in output.strip().splitlines()[-1].split())]


def test_ethtool(neighbours: Neighbours) -> None:
    """Driver, features, queues and counters, as Linux tells of them."""
    guest = neighbours.here
    driver = guest.check(f"ethtool -i {INTERFACE}")
    assert "driver: virtio_net" in driver
    assert f"bus-info: {function_address(guest)}" in driver
    features = guest.check(f"ethtool -k {INTERFACE}")
    for feature in ("rx-checksumming", "tx-checksumming", "tcp-segmentation-offload", "scatter-gather"):
        assert f"{feature}: on" in features
    channels = guest.check(f"ethtool -l {INTERFACE}")
    most, now = re.findall(r"Combined:\s+(\d+)", channels)
    assert (most, now) == ("2", "2")
    assert reaches(guest, THERE)
    counters = guest.check(f"ethtool -S {INTERFACE}")
    kicks = re.findall(r"^\s+tx\d_kicks: (\d+)$", counters, re.MULTILINE)
    assert len(kicks) == 2, counters
    assert sum(int(count) for count in kicks) >= 3


def test_queue_pairs_under_traffic(neighbours: Neighbours, stream: Job) -> None:
    """One queue pair, two, and so on, while a stream goes through them."""
    guest = neighbours.here
    for pairs in (1, 2, 1, 2, 1, 2):
        guest.check(f"ethtool -L {INTERFACE} combined {pairs}")
        channels = guest.check(f"ethtool -l {INTERFACE}")
        assert re.findall(r"Combined:\s+(\d+)", channels) == ["2", str(pairs)]
        wait_records(stream, 100)


@pytest.mark.long
def test_down_and_up(neighbours: Neighbours, stream: Job) -> None:
    """The guest sets its interface down and up again, three times; the stream stands still and goes on."""
    guest = neighbours.here
    for _ in range(3):
        guest.check(f"ip link set {INTERFACE} down")
        assert not reaches(neighbours.there, HERE, count=1)
        before = records_now(stream)
        guest.check(f"ip link set {INTERFACE} up")
        wait_records(stream, 100)
        assert records_now(stream) > before


def test_address_change(neighbours: Neighbours) -> None:
    """A new MAC address is reached, the old one no more; and back."""
    here, there = neighbours.here, neighbours.there
    own = here.check(f"cat /sys/class/net/{INTERFACE}/address").strip()
    here.check(f"/bin/ip link set {INTERFACE} address {OTHER_MAC}")
    # What the other side remembers is the old address.
    there.check(f"/bin/ip neigh replace {HERE} lladdr {own} dev {INTERFACE} nud permanent")
    assert not reaches(there, HERE, count=1)
    there.check(f"/bin/ip neigh del {HERE} dev {INTERFACE}")
    assert reaches(there, HERE)
    assert OTHER_MAC in there.check("cat /proc/net/arp")
    here.check(f"/bin/ip link set {INTERFACE} address {own}; /bin/ip neigh flush all")
    there.check("/bin/ip neigh flush all")
    assert reaches(there, HERE)


def test_vlans(neighbours: Neighbours) -> None:
    """Tagged frames reach who has that VLAN, and only as long as it has."""
    here, there = neighbours.here, neighbours.there
    vlan = f"{INTERFACE}.5"
    for guest, address in ((here, "10.5.0.1"), (there, "10.5.0.2")):
        guest.check(f"/bin/ip link add link {INTERFACE} name {vlan} type vlan id 5")
        set_up(guest, address, vlan)
    assert reaches(here, "10.5.0.2")
    assert reaches(here, THERE)
    there.check(f"/bin/ip link del {vlan}")
    # The driver took the VLAN out of the device's filter: what is sent there ends at the device.
    before = received(there)
    here.run("ping -q -c 20 -i 0.01 -W 1 10.5.0.2")
    assert reaches(here, THERE)
    assert received(there) - before < 20
    here.check(f"/bin/ip link del {vlan}")


def test_promiscuous(neighbours: Neighbours) -> None:
    """What is for somebody unknown goes to all, and the device passes it on to who wants everything."""
    here, there = neighbours.here, neighbours.there
    there.check(f"/bin/ip neigh replace 10.1.0.99 lladdr {OTHER_MAC} dev {INTERFACE} nud permanent")
    for promiscuous in (False, True, False):
        here.check(f"ip link set {INTERFACE} promisc {'on' if promiscuous else 'off'}")
        before = received(here)
        there.run("ping -q -c 20 -i 0.01 -W 1 10.1.0.99")
        # Once this is answered, what was sent before has been through.
        assert reaches(there, HERE)
        assert (received(here) - before >= 20) == promiscuous
    there.check(f"/bin/ip neigh del 10.1.0.99 dev {INTERFACE}")


@pytest.mark.long
def test_link_of_the_function(neighbours: Neighbours, stream: Job) -> None:
    """The link that the monitor takes away is a carrier that is gone for the guest; the stream waits."""
    guest, server = neighbours.here, neighbours.server
    for _ in range(3):
        server.ask("set-link", function="vf1", up=False)
        wait_carrier(guest, up=False)
        assert not reaches(neighbours.there, HERE, count=1)
        server.ask("set-link", function="vf1", up=True)
        wait_carrier(guest, up=True)
        wait_records(stream, 100)


def test_unbind_and_bind_under_traffic(neighbours: Neighbours, stream: Job) -> None:
    """The driver goes with interface and address, and comes back; the same stream goes on. Five times."""
    guest, server = neighbours.here, neighbours.server
    address = function_address(guest)
    open_files = server.open_files
    for _ in range(5):
        mark = server.mark()
        guest.check(f"echo {address} > {DRIVER}/unbind; [ ! -e /sys/class/net/{INTERFACE} ]")
        server.wait_log(r"virtio\.vf1: device reset", since=mark)
        guest.check(f"echo {address} > {DRIVER}/bind")
        set_up(guest, HERE)
        wait_records(stream, 100)
    assert server.open_files == open_files


def test_function_level_reset_without_a_driver(neighbours: Neighbours, stream: Job) -> None:
    """The driver goes, the function is reset, the driver comes back: the stream does. Three times."""
    guest, server = neighbours.here, neighbours.server
    address = function_address(guest)
    device = f"/sys/bus/pci/devices/{address}"
    for _ in range(3):
        mark = server.mark()
        guest.check(f"echo {address} > {DRIVER}/unbind; echo flr > {device}/reset_method")
        guest.check(f"echo 1 > {device}/reset")
        server.wait_log(r"virtio\.vf1: function-level reset", since=mark)
        guest.check(f"echo {address} > {DRIVER}/bind")
        set_up(guest, HERE)
        wait_records(stream, 100)


@pytest.mark.long
def test_reset_and_reboot_under_traffic(neighbours: Neighbours) -> None:
    """One guest is cut off in the middle of a stream and reboots; the other finds it again, and begins anew.

    It is cut off by a function-level reset under its driver. Linux 7.3 sets a disk up again after that, but
    virtio_net has no such thing: the interface is there and nothing comes or goes.
    """
    server, here, there = neighbours.server, neighbours.here, neighbours.there
    start_receiver(there)
    sender = start_sender(here, THERE, patience=120)
    wait_records(sender, 200)
    mark = server.mark()
    device = f"/sys/bus/pci/devices/{function_address(there)}"
    there.check(f"echo flr > {device}/reset_method; echo 1 > {device}/reset")
    server.wait_log(r"virtio\.vf2: function-level reset", since=mark)
    there.qmp("system_reset")
    there.console.forget_count()
    there.wait_ready(timeout=120)
    there.check("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
    set_up(there, THERE)
    receiver = start_receiver(there)
    wait_records(sender, 200)
    sent, taken = finish(sender, receiver, resets=1)
    assert (sent["resets"], taken["resets"]) == ("1", "0")
