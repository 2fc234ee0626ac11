"""`vfu-owner parts` and `capabilities`: a VF's parts in a file, and what they say of what cannot be done."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server_process import ServerProcess
from tests.wire.client.test_part import record
from vfu_client.drivers.block import BlockDriver
from vfu_client.owner import cli as owner_cli
from vfu_client.owner.owner import OwnerDriver
from vfu_client.owner.part import decode

Owner = Callable[..., str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """VF 1 is on a file, VF 2's disk is in memory."""
    disk = tmp_path_factory.mktemp("disk") / "disk"
    disk.write_bytes(bytes(1 << 16))
    with ServerProcess("--vfs", "2", "--disk", "ram:4k", "--disk", f"vf1={disk}", "--check-driver") as made:
        yield made


@pytest.fixture
def owner(server: ServerProcess, capfd: pytest.CaptureFixture[str]) -> Owner:
    """Runs `vfu-owner` on that server's PF: what it prints, or where it is to fail, what it complains of."""

    def run(*words: str | Path, status: int = 0) -> str:
        assert owner_cli.main(["--pf", str(server.socket("pf")), *map(str, words)]) == status
        said = capfd.readouterr()
        return said.err if status else said.out

    return run


def test_capabilities(owner: Owner) -> None:
    """One, with its limits, for people and for programs."""
    assert owner("capabilities") == "0x0000  DEV_PARTS         up to 255 objects for get, 255 for set\n"
    assert json.loads(owner("--json", "capabilities")) == [
        {"id": 0, "name": "DEV_PARTS", "get_limit": 255, "set_limit": 255}
    ]


def test_what_there_is(owner: Owner, tmp_path: Path) -> None:
    """`size` and `list` agree with what `get` gets; `--only` chooses by name and by number."""
    path = tmp_path / "parts"
    size = json.loads(owner("--json", "parts", "size", "vf1"))
    listed = json.loads(owner("--json", "parts", "list", "vf1"))
    assert owner("parts", "get", "vf1", path) == ""
    assert path.stat().st_mode & 0o777 == 0o600
    parts = decode(path.read_bytes())
    assert size == {"vf": 1, "parts": len(parts), "bytes": path.stat().st_size}
    assert [(row["label"], row["length"], row["optional"]) for row in listed] == [
        (part.label, len(part.value), part.optional) for part in parts
    ]
    people = owner("parts", "list", "vf1").splitlines()
    assert people[0].split() == ["16", "DEV_FEATURES", "optional"]
    assert people[1].split() == ["16", "DRV_FEATURES"]
    assert owner("parts", "size", "vf1") == f"{len(parts)} parts, at most {path.stat().st_size} bytes\n"
    owner("parts", "get", "vf1", path, "--only", "device_status", "--only", "0x104")
    assert [part.label for part in decode(path.read_bytes())] == ["DEVICE_STATUS", "VQ_CFG 0"]
    assert "the VF has none of these parts" in owner("parts", "get", "1", path, "--only", "512", status=1)


def _as_they_are(parts: bytes) -> bytes:
    return parts


@pytest.mark.parametrize("wrapped", [_as_they_are, record, lambda parts: record(parts) + record(parts)])
def test_stop_get_set_resume(
    server: ServerProcess, owner: Owner, tmp_path: Path, wrapped: Callable[[bytes], bytes]
) -> None:
    """Each by an owner of its own: what was stopped stays so, and what was set acts when it is resumed.

    What Linux handed to VFIO's user is taken too.
    """
    path = tmp_path / "parts"
    with BlockDriver.open(server.socket("vf1")) as disk:
        disk.write(7, b"\x77" * 512)
        assert owner("parts", "stop", "vf1") == ""
        assert owner("mode", "vf1") == "stop\n"
        owner("parts", "get", "vf1", path)
        # queue_select, which nothing acts on: in the part and, behind it, in the field that is as exact.
        data = path.read_bytes()
        at = {part.label: part.offset + 16 for part in decode(data)}
        selects = at["PCI_COMMON_CFG queue_select"], at["CONTEXT_FIELD COMMON_CFG"] + 12
        for select in selects:
            data = data[:select] + struct.pack("<H", 5) + data[select + 2 :]
        path.write_bytes(wrapped(data))
        assert json.loads(owner("--json", "parts", "set", "vf1", path)) == {
            "vf": 1,
            "stopped": True,
            "bytes": len(data),
        }
        assert disk.device.common.read("queue_select") == 0
        assert owner("parts", "resume", "vf1") == ""
        assert disk.device.common.read("queue_select") == 5
        assert disk.read(7).tobytes() == b"\x77" * 512
    assert not any(entry["breaches"] for entry in server.ask("query-rules"))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["parts", "set", "vf1", "{file}"], "VF 1 runs: `parts stop` it before"),
        (["parts", "get", "vf2", "{file}"], "DEV_PARTS_METADATA_GET refused.*its disk is in memory"),
        (["parts", "size", "vf3"], "there is no VF 3"),
        (["parts", "set", "vf1", "{damaged}"], "part 0x5f0 has 8 bytes, 7 are left"),
        (["parts", "set", "vf1", "{nothing}"], "no device parts in 0 bytes"),
        (["parts", "set", "vf1", "{nowhere}"], "nowhere: No such file"),
    ],
)
def test_what_cannot_be_done(owner: Owner, tmp_path: Path, words: list[str], why: str) -> None:
    """Status 1, and what to do."""
    places = {name: tmp_path / name for name in ("file", "damaged", "nothing", "nowhere")}
    owner("parts", "get", "vf1", places["file"])
    places["damaged"].write_bytes(places["file"].read_bytes()[:-1])
    places["nothing"].touch()
    said = owner(*(word.format(**places) for word in words), status=1)
    assert re.search(why, said), said


def test_one_dialect_at_a_time(server: ServerProcess, owner: Owner, tmp_path: Path) -> None:
    """A VF that one of them stopped is not the other's, and it is said how that ends."""
    owner("parts", "stop", "vf1")
    assert "`parts resume VF` ends that" in owner("mode", "vf1", "active", status=1)
    assert "`parts resume VF` ends that" in owner("context", "read", "vf1", tmp_path / "c", status=1)
    owner("parts", "resume", "vf1")
    owner("mode", "vf1", "freeze")
    assert "`mode VF active` end that" in owner("parts", "resume", "vf1", status=1)
    assert "`mode VF active` end that" in owner("parts", "size", "vf1", status=1)
    owner("mode", "vf1", "active")
    owner("parts", "size", "vf1")
    with OwnerDriver.open(server.socket("pf")) as other:
        next(other.context_read(1, 16))
    assert "`context discard VF` and" in owner("parts", "size", "vf1", status=1)
    owner("context", "discard", "vf1")
    owner("parts", "size", "vf1")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--json", "parts", "get", "vf1", "-"], "both on standard output"),
        (["parts", "get", "vf1", "f", "--only", "NOTHING"], "'NOTHING' is no part: give a number, or DEV_"),
        (["parts", "get", "vf1", "f", "--only", "0x10000"], "'0x10000' is no part"),
        (["parts", "freeze", "vf1"], "invalid choice"),
        (["parts", "get", "vf1"], "FILE"),
    ],
)
def test_wrong_options(owner: Owner, capfd: pytest.CaptureFixture[str], words: list[str], why: str) -> None:
    """Status 2 and a usage line."""
    with pytest.raises(SystemExit) as ended:
        owner(*words)
    assert ended.value.code == 2
    assert why in capfd.readouterr().err


def test_a_device_without(serve: Callable[..., ServerProcess], capfd: pytest.CaptureFixture[str]) -> None:
    """One that goes by the letter lists nothing while it has no VFs."""
    server = serve("--total-vfs", "1", "--vfs", "0", "--strict")
    assert owner_cli.main(["--pf", str(server.socket("pf")), "capabilities"]) == 1
    assert "lists no commands for device parts" in capfd.readouterr().err


def test_without_contexts(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """Where nobody can say whether the VF runs, it is stopped before its parts are set."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 16))
    server = serve("--vfs", "1", "--disk", str(disk), "--context-opcodes", "off")
    words: list[Any] = ["--pf", str(server.socket("pf")), "parts"]
    path = str(tmp_path / "parts")
    for action in (["get", "vf1", path], ["set", "vf1", path], ["resume", "vf1"]):
        assert owner_cli.main([*words, *action]) == 0
