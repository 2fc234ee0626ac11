"""`vfu-qemu` as a process: what it prints for servers of each kind, and what it says of what cannot be."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.server_process import ServerProcess
from tests.wire.client.played_qemu import PORT, PlayedQemu
from tests.wire.running import running, until
from vfu_client.plug.options import parse
from vfu_client.vfio.connection import Connection

COMMAND = [sys.executable, "-m", "vfu_client.plug.cli"]

HINT = (
    "vfu-qemu: the guest's memory must be shared with the server: give --memory SIZE, unless QEMU's other"
    " options say so\n"
)


def vfu_qemu(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it."""
    return subprocess.run([*COMMAND, *map(str, words)], text=True, check=False, capture_output=True)


def printed(*words: str | Path) -> str:
    """What it prints, and nothing else."""
    done = vfu_qemu(*words)
    assert done.returncode == 0, done.stderr
    assert done.stderr in ("", HINT)
    return done.stdout


def refused(*words: str | Path) -> str:
    """Why it does not do that."""
    done = vfu_qemu(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def guests() -> Iterator[ServerProcess]:
    """SR-IOV for a guest, with two VFs."""
    with running() as start:
        yield start("--sriov", "guest", "--total-vfs", "2", "--disk", "ram:1M")


@pytest.fixture(scope="module")
def owners() -> Iterator[ServerProcess]:
    """SR-IOV for an owner, with two VFs."""
    with running() as start:
        yield start("--vfs", "2", "--disk", "ram:1M")


def device(server: ServerProcess, function: str, **properties: object) -> dict[str, object]:
    """A device as QMP's device_add takes it."""
    socket = {"type": "unix", "path": f"{server.folder}/{function}.sock"}
    return {"driver": "vfio-user-pci", **properties, "x-msg-timeout": 60000, "socket": socket}


def test_two_vfs(guests: ServerProcess) -> None:
    """Each option with its value, and no quotes: the text is for $(...)."""
    done = vfu_qemu(guests.folder)
    rest = '"x-msg-timeout":60000,"socket":{"type":"unix","path":"' + str(guests.folder)
    assert done.stdout == (
        "-device pcie-root-port,id=port1,slot=1\n"
        '-device {"driver":"vfio-user-pci","id":"vf1","bus":"port1","addr":"01.0",' + rest + '/vf1.sock"}}\n'
        '-device {"driver":"vfio-user-pci","id":"vf2","bus":"port1","addr":"02.0",' + rest + '/vf2.sock"}}\n'
        '-device {"driver":"vfio-user-pci","id":"pf","bus":"port1","addr":"00.0",' + rest + '/pf.sock"}}\n'
    )
    assert (done.returncode, done.stderr) == (0, HINT)


def test_memory_ids_and_slot(guests: ServerProcess) -> None:
    """Shared memory of the size that QEMU is told; all ids begin as they should."""
    done = vfu_qemu("--id-prefix", "a-", guests.folder, "--memory", "2G", "--slot", "7")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "-m 2G",
        "-object memory-backend-memfd,id=a-mem,size=2G,share=on",
        "-machine memory-backend=a-mem",
        "-device pcie-root-port,id=a-port1,slot=7",
    ]
    assert ['"id":"a-vf1","bus":"a-port1"' in line for line in lines[4:]] == [True, False, False]


def test_a_bus_that_is_there(guests: ServerProcess) -> None:
    """No port is made."""
    lines = printed(guests.folder, "--bus", "rp0").splitlines()
    assert len(lines) == 3
    assert all('"bus":"rp0"' in line for line in lines)


@pytest.mark.parametrize("kind", ["blk", "net"])
def test_forty_vfs(kind: str) -> None:
    """Beyond 31 VFs are dense, eight to a device: 01.0 to 05.7."""
    with ServerProcess("--sriov", "guest", "--total-vfs", "40", device=kind) as server:
        found = json.loads(printed(server.folder, "--json"))
    *vfs, pf = found["devices"]
    assert [vf["id"] for vf in vfs] == [f"vf{number}" for number in range(1, 41)]
    assert [vf["addr"] for vf in vfs] == [
        f"{slot:02}.{function}" for slot in range(1, 6) for function in range(8)
    ]
    assert all(vf["multifunction"] is True for vf in vfs)
    assert (pf["addr"], "multifunction" in pf) == ("00.0", False)


def test_json(guests: ServerProcess) -> None:
    """All of it as QMP has it, the devices in an order in which they can be plugged."""
    assert json.loads(printed(guests.folder, "--json", "--memory", "512M")) == {
        "memory": {
            "object": {"qom-type": "memory-backend-memfd", "id": "mem", "size": 512 << 20, "share": True},
            "machine": {"memory-backend": "mem"},
        },
        "ports": [{"driver": "pcie-root-port", "id": "port1", "slot": 1}],
        "devices": [
            device(guests, "vf1", id="vf1", bus="port1", addr="01.0"),
            device(guests, "vf2", id="vf2", bus="port1", addr="02.0"),
            device(guests, "pf", id="pf", bus="port1", addr="00.0"),
        ],
    }


def test_libvirt(guests: ServerProcess) -> None:
    """The same words, as arguments in libvirt's namespace."""
    text = printed(guests.folder, "--libvirt")
    assert text.startswith('<qemu:commandline xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">\n')
    arguments = [element.attrib["value"] for element in ET.fromstring(text)]  # noqa: S314 - our own
    assert arguments == printed(guests.folder).split()


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_substitution(guests: ServerProcess, shell: str) -> None:
    """A shell makes of it the words that were meant: no braces are expanded, no quotes are lost."""
    words = [*COMMAND, str(guests.folder), "--memory", "1G"]
    script = 'printf "%s\\n" $("$@")'
    done = subprocess.run([shell, "-c", script, shell, *words], text=True, check=True, capture_output=True)
    lines = done.stdout.splitlines()
    assert lines[::2] == ["-m", "-object", "-machine", *["-device"] * 4]
    assert json.loads(lines[-1]) == device(guests, "pf", id="pf", bus="port1", addr="00.0")


def test_an_owners_functions(owners: ServerProcess) -> None:
    """Each on a port of its own, as they are unrelated; all, or those that are named."""
    assert json.loads(printed(owners.folder, "--json", "--slot", "3")) == {
        "memory": None,
        "ports": [
            {"driver": "pcie-root-port", "id": f"port{number}", "slot": number + 2} for number in (1, 2, 3)
        ],
        "devices": [
            device(owners, name, id=name, bus=f"port{number}")
            for number, name in enumerate(("pf", "vf1", "vf2"), 1)
        ],
    }
    lines = printed(owners.folder, "vf2", "vf1").splitlines()
    assert [line.split(",")[1] for line in lines] == ["id=port1", "id=port2", '"id":"vf2"', '"id":"vf1"']
    assert "has no function vf3, x: it has pf, vf1, vf2" in refused(owners.folder, "vf3", "x")


def test_too_many_functions_of_an_owner(serve: Callable[..., ServerProcess]) -> None:
    """A machine has no room for more ports; on a bus that is there QEMU finds places."""
    server = serve("--vfs", "28", "--disk", "ram:1M")
    assert "29 functions on root ports of their own do not fit pcie.0" in refused(server.folder)
    assert len(printed(server.folder, "--bus", "pcie.0").splitlines()) == 29


def test_a_path_that_a_shell_would_break(guests: ServerProcess, tmp_path: Path) -> None:
    """Refused for $(...), and taken by the other forms."""
    link = tmp_path / "a b"
    link.symlink_to(guests.folder)
    assert "a shell would not take" in refused(link)
    assert json.loads(printed(link, "--json"))["devices"][0]["socket"]["path"] == f"{link}/vf1.sock"
    assert f"{link}/vf1.sock" in printed(link, "--libvirt")


def test_what_has_a_client(guests: ServerProcess) -> None:
    """Printed with a warning, as it may be read again while the machine runs; not plugged twice."""
    with Connection(guests.socket("vf2")), PlayedQemu(guests.folder / "qmp", (11, 1, 3)) as qemu:
        done = vfu_qemu(guests.folder, "--memory", "1G")
        assert done.returncode == 0
        assert done.stderr == "vfu-qemu: warning: a function has one client at a time, and vf2 has one now\n"
        why = refused("plug", guests.folder, "--qmp", qemu.path)
    assert f"vf2 of {guests.folder} have another client" in why
    assert qemu.told == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["/x", "--memory", "1"],
        ["/x", "--memory", "1 G"],
        ["/x", "--slot", "x"],
        ["/x", "--id-prefix", "1"],
        ["/x", "--json", "--libvirt"],
        ["/x", "--libvirt", "--memory", "1G"],
        ["plug", "/x"],
        ["place", "--qmp", "/y"],
        ["unplug", "/x", "--qmp", "/y", "--qtest", "/z"],
    ],
)
def test_wrong_options(words: list[str]) -> None:
    done = vfu_qemu(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: vfu-qemu")


@pytest.mark.parametrize("command", [[], ["plug", "--qmp", "/x"], ["place", "--qmp", "/x"]])
def test_no_server(tmp_path: Path, command: list[str]) -> None:
    why = refused(*command, tmp_path)
    assert f"is a vfu-server running with --socket-dir {tmp_path}?" in why


@pytest.mark.parametrize(
    "words",
    [
        ["plug", "DIR", "--qmp", "QMP"],
        ["--qmp", "QMP", "plug", "DIR"],
        ["DIR", "--qmp=QMP", "plug"],
        ["--bus", "plug", "DIR", "--qmp", "QMP", "plug"],
    ],
)
def test_options_before_and_behind_the_word(words: list[str]) -> None:
    options = parse(words)
    assert (options.command, options.folder, options.qmp) == ("plug", Path("DIR"), Path("QMP"))


def test_a_folder_of_the_name_of_a_command() -> None:
    options = parse(["--memory", "1G", "./plug"])
    assert (options.command, options.folder) == ("", Path("plug"))


@pytest.mark.parametrize("command", ["plug", "place", "unplug"])
def test_no_qemu(guests: ServerProcess, tmp_path: Path, command: str) -> None:
    for path, named in ((tmp_path / "qmp", "qmp"), (tmp_path, "qmp.sock")):
        why = refused(command, guests.folder, "--qmp", path)
        assert f"give QEMU -qmp unix:{tmp_path}/{named},server=on,wait=off" in why


@pytest.mark.parametrize("command", ["plug", "place"])
def test_sriov_is_the_owners(owners: ServerProcess, tmp_path: Path, command: str) -> None:
    with PlayedQemu(tmp_path / "qmp", (11, 1, 3)) as qemu:
        why = refused(command, owners.folder, "--qmp", qemu.path)
    assert "keeps SR-IOV for the PF's owner: start it with --sriov guest" in why


def test_a_pf_that_no_guest_set_up(guests: ServerProcess, tmp_path: Path) -> None:
    with PlayedQemu(tmp_path / "qmp", (11, 1, 3)) as qemu:
        why = refused("place", guests.folder, "--qmp", qemu.path)
    assert "the guest has not set up the PF" in why


PLUGGED_HALF: list[tuple[tuple[int, int, int], list[tuple[str, str]], str]] = [
    ((11, 1, 3), [], r"1 of 3 are plugged \(vf1\): .* run the command again"),
    ((99, 0, 0), [("del", "vf1")], "What was plugged has been unplugged"),
]


@pytest.mark.parametrize(("version", "undone", "said"), PLUGGED_HALF)
def test_a_device_that_qemu_refuses(
    guests: ServerProcess, tmp_path: Path, version: Any, undone: list[tuple[str, str]], said: str
) -> None:
    """What was plugged before is unplugged where QEMU survives that, and else left for the next try."""
    with PlayedQemu(tmp_path / "qmp", version, refused=frozenset({"vf2"})) as qemu:
        why = refused("plug", guests.folder, "--qmp", qemu.path)
        assert "device_add: Failed to connect" in why
        assert qemu.told == [("add", "vf1"), ("add", "vf2"), *undone]
    assert re.search(said, why)


def test_what_is_left_is_plugged(guests: ServerProcess, tmp_path: Path) -> None:
    """A VF that is there from an earlier time stays; its guest has a second to look at the PF."""
    with PlayedQemu(tmp_path / "qmp", (11, 1, 3)) as qemu:
        qemu.put(device(guests, "vf1", id="vf1", bus=PORT))
        why = refused("plug", guests.folder, "--qmp", qemu.path, "--timeout", "1")
    assert qemu.told == [("add", "vf2"), ("add", "pf")]
    assert "within 1 s the guest gave the VFs no addresses" in why


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(guests: ServerProcess, tmp_path: Path, number: signal.Signals) -> None:
    """What is plugged stays, and the next try goes on from there."""
    with PlayedQemu(tmp_path / "qmp", (11, 1, 3)) as qemu:
        line = [*COMMAND, "plug", str(guests.folder), "--qmp", str(qemu.path)]
        with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
            until(lambda: ("add", "pf") in qemu.told, "the PF is plugged")
            process.send_signal(number)
            _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.endswith("vfu-qemu: interrupted: run it again to go on\n")


def test_a_port_that_is_taken(guests: ServerProcess, tmp_path: Path) -> None:
    with PlayedQemu(tmp_path / "qmp", (11, 1, 3)) as qemu:
        qemu.put({"driver": "virtio-net-pci", "id": "net0", "bus": PORT})
        assert "start QEMU with a spare one" in refused("plug", guests.folder, "--qmp", qemu.path)
        named: list[str | Path] = ["plug", guests.folder, "--qmp", qemu.path, "--bus"]
        assert "the port spare is not empty, it has net0" in refused(*named, PORT)
        assert "there is no PCI Express port rp9: the machine has spare" in refused(*named, "rp9")
    assert qemu.told == []


def test_unplugging(guests: ServerProcess, tmp_path: Path) -> None:
    """The PF first, where QEMU survives it; refused where it is known not to, unless that is no matter."""
    abort = "--even-if-qemu-aborts"
    for version, words, does in [
        ((11, 1, 3), [], False),
        ((11, 1, 3), [abort], True),
        ((99, 0, 0), [], True),
    ]:
        path = tmp_path / f"qmp-{version[0]}-{len(words)}"
        with PlayedQemu(path, version) as qemu:
            for name in ("vf1", "vf2", "pf"):
                qemu.put(device(guests, name, id=name, bus=PORT))
            done = vfu_qemu("unplug", guests.folder, "--qmp", path, *words)
        assert done.returncode == (0 if does else 1)
        assert qemu.told == ([("del", "pf"), ("del", "vf1"), ("del", "vf2")] if does else [])
        assert does or "QEMU 11.1.3 aborts when a vfio-user-pci device is unplugged" in done.stderr
