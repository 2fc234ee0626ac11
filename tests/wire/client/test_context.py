"""Contexts for people: the walker over bytes cut anywhere, decoding, comparing, and `vfu-owner show`."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from vfu_client.owner import cli as owner_cli
from vfu_client.owner.admin import AdminError
from vfu_client.owner.context import compare, decode
from vfu_client.owner.explain import explain
from vfu_client.owner.stream import BadContextError, ContextWalker

START, END = 0, 1


def field(kind: int, value: bytes = b"") -> bytes:
    return struct.pack("<IIQ", kind, 0, len(value)) + value


def context(*fields: bytes) -> bytes:
    return field(START) + b"".join(fields) + field(END)


QUEUE = struct.pack("<8H3Q", 0, 256, 1, 1, 0, 0, 0, 0, 0x1000, 0x2000, 0x3000)
BLOCK = context(
    field(0x0F, struct.pack("<4H", 2, 0, 0, 0)),
    field(0x11, struct.pack("<2Q", 1 << 32 | 1 << 28, 0)),
    field(0x13, struct.pack("<Q", 2048) + bytes(28)),
    field(0x14, QUEUE),
    field(0x16, struct.pack("<4H", 0, 0x8003, 0x0007, 1)),
    field(0x200, struct.pack("<Q", 0x1000) + b"data"),
    field(0x202, bytes(range(16))),
    field(0x203, b"\xff" * 16),
    field(0xF123, b"odd"),
)


NET = context(
    field(0x0F, struct.pack("<4H", 1, 0, 0, 0)),
    field(0x13, b"\2\0\0\0\0\1" + struct.pack("<HHHIBBHI", 1, 2, 0, 10000, 1, 40, 512, 0x3F)),
    field(0x100, b"\0\1" + bytes(6)),
    field(0x101, struct.pack("<HHB3x", 1, 1, 0) + b"\2\0\0\0\0\7\1\0\x5e\0\0\1"),
    field(0x102, b"\x82" + bytes(511)),
    field(0x103, b"\2" + bytes(7)),
    field(0x104, struct.pack("<IB3x40s", 6, 2, b"\x6d\x5a")),
    field(0x105, struct.pack("<HH4xHH", 2, 1, 0, 1)),
    field(0x106, struct.pack("<Q", 1 << 7)),
    field(0x105, bytes(8)),
    field(0x101, b"cut"),
)


def test_network_fields() -> None:
    """Tables as people read them; a damaged one as its bytes."""
    shown = [(found.label, found.text()) for found in decode(NET)]
    assert shown[2][0] == "DEVICE_CFG"
    assert shown[2][1].startswith("mac=02:00:00:00:00:01 status=1 max_virtqueue_pairs=2 ")
    assert shown[3:-1] == [
        ("NET_RX_MODE", "promisc=0 allmulti=1 alluni=0 nomulti=0 nouni=0 nobcast=0"),
        ("NET_MAC_TABLE", "unicast=02:00:00:00:00:07 multicast=01:00:5e:00:00:01 flags=0"),
        ("NET_VLAN_TABLE", "vlans=1,7"),
        ("NET_QUEUE_PAIRS", "pairs=2"),
        ("NET_HASH", "types=6 key=6d5a"),
        ("NET_RSS", "unclassified=1 table=0,1"),
        ("NET_OFFLOADS", "off=7"),
        ("NET_RSS", "steering=automatic"),
        ("NET_MAC_TABLE", "63 75 74"),
    ]


@pytest.mark.spec("DRV-03", "DRV-09")
@pytest.mark.parametrize("step", [1, 3, 16, 17, 1000])
def test_the_walker_knows_whether_a_context_is_partial(step: int) -> None:
    walker = ContextWalker()
    for at in range(0, len(BLOCK), step):
        assert walker.partial == (at > 0)
        walker.walk(BLOCK[at : at + step])
    assert not walker.partial
    assert walker.complete == 1
    assert walker.position == len(BLOCK)


def test_two_contexts_in_one_stream() -> None:
    walker = ContextWalker()
    walker.walk(BLOCK + BLOCK)
    assert (walker.complete, walker.partial) == (2, False)


@pytest.mark.spec("DRV-07")
@pytest.mark.parametrize(
    "broken",
    [
        field(END),
        field(0x14, QUEUE),
        field(START) + field(START),
        context() + b"x",
        BLOCK[:-1],
        BLOCK[:-20],
        b"",
    ],
)
def test_what_is_no_context_is_refused(broken: bytes) -> None:
    with pytest.raises(BadContextError):
        decode(broken)


def test_fields_have_names_and_members() -> None:
    fields = {item.label: item for item in decode(BLOCK)}
    assert fields["DRIVER_FEATURES"].members() == {"bits": [28, 32]}
    assert fields["DEVICE_CFG"].members()["capacity"] == 2048
    assert "num_queues" in fields["DEVICE_CFG"].members()
    assert "max_discard_sectors" not in fields["DEVICE_CFG"].members()
    assert fields["VQ_CFG 0"].members()["driver"] == 0x2000
    assert fields["VQ_PACKED_STATE 0"].text() == "index=0 last_avail=0x8003 last_used=0x7 flags=1"
    assert fields["BLK_EXTENT 0x1000"].members()["length"] == 4
    assert fields["BLK_BASE"].text() == "name=000102030405060708090a0b0c0d0e0f"
    assert fields["BLK_CONTENT"].members() == {"name": "ff" * 16}
    assert fields["0xf123"].text() == "6f 64 64"


def test_a_value_of_the_wrong_length_is_shown_as_bytes() -> None:
    (_, odd, _) = decode(context(field(0x14, b"\1\0\2")))
    assert odd.members() == {"bytes": "010002"}


def test_comparison_names_the_member_that_differs() -> None:
    other = BLOCK.replace(struct.pack("<Q", 0x2000), struct.pack("<Q", 0x9000))
    (difference,) = compare(decode(BLOCK), decode(other))
    assert difference.label == "VQ_CFG 0"
    assert difference.members() == ["driver"]


def test_comparison_goes_by_the_last_value() -> None:
    twice = context(field(0x17, bytes(8)), field(0x17, b"\1" + bytes(7)))
    once = context(field(0x17, b"\1" + bytes(7)))
    assert list(compare(decode(twice), decode(once))) == []


def test_show_needs_no_server(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "context"
    file.write_bytes(BLOCK)
    assert owner_cli.main(["show", str(file)]) == 0
    assert "VQ_CFG 0" in capfd.readouterr().out
    assert owner_cli.main(["show", str(file), str(file), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == []
    file.write_bytes(BLOCK[:-1])
    assert owner_cli.main(["show", str(file)]) == 1
    assert "END_MARKER" in capfd.readouterr().err


def test_command_lines_that_make_no_sense(capfd: pytest.CaptureFixture[str]) -> None:
    for line in ([], ["mode", "1"], ["--pf", "x", "mode", "vf0"], ["--pf", "x", "mode", "1", "asleep"]):
        with pytest.raises(SystemExit) as caught:
            owner_cli.main(line)
        assert caught.value.code == 2
    capfd.readouterr()


def test_no_server(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert owner_cli.main(["--pf", str(tmp_path / "pf.sock"), "mode", "1"]) == 1
    assert "no server listens" in capfd.readouterr().err


def test_refusals_say_what_to_do() -> None:
    assert "freeze first" in explain(AdminError(0x44, 22, 1), 0x40)
    assert "discard it" in explain(AdminError(0x41, 22, 1), 0x40)
    assert "parts resume" in explain(AdminError(0x43, 22, 1), 0x40)
    assert "mode VF active" in explain(AdminError(0x11, 22, 1), 0x40)
    assert "show FILE" in explain(AdminError(0x10, 22, 3), 0x40)
    assert "--context-opcodes" in explain(AdminError(0x41, 22, 2), 0x40)
    assert explain(AdminError(0x00, 22, 4), 0x40).startswith("LIST_QUERY refused: EINVAL")


def test_commands_have_names(shared: ServerProcess, capfd: pytest.CaptureFixture[str]) -> None:
    """`vfu-owner commands` names all that the device lists, for people and for programs."""
    options = ["--pf", str(shared.socket("pf"))]
    assert owner_cli.main([*options, "commands"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[:14] == [
        "0x0000  LIST_QUERY",
        "0x0001  LIST_USE",
        "0x0007  CAP_ID_LIST_QUERY",
        "0x0008  DEVICE_CAP_GET",
        "0x0009  DRIVER_CAP_SET",
        "0x000a  RESOURCE_OBJ_CREATE",
        "0x000b  RESOURCE_OBJ_QUERY",
        "0x000c  RESOURCE_OBJ_MODIFY",
        "0x000d  RESOURCE_OBJ_DESTROY",
        "0x000e  DEV_PARTS_METADATA_GET",
        "0x000f  DEV_PARTS_GET",
        "0x0010  DEV_PARTS_SET",
        "0x0011  DEV_MODE_SET",
        "0x0040  DEV_MODE_GET",
    ]
    assert owner_cli.main([*options, "--json", "commands"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert [f"{row['opcode']:#06x}  {row['name']}" for row in said["commands"]] == lines
    assert said["vfs"] == 3
