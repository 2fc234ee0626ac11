"""Register records: kinds of access, handlers, and accesses of any width anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from pymodel.registers import Register, RegisterFile, RegisterMap, registers_of


class Owner:
    """Counts, and answers for one register."""

    def __init__(self) -> None:
        self.value = 0x11223344
        self.reads = 0
        self.written: list[int] = []

    def read_live(self) -> int:
        self.reads += 1
        return self.value

    def write_live(self, value: int) -> None:
        self.written.append(value)

    def read_window(self) -> int:
        self.reads += 1
        return 0xFFFFFFFF

    def write_window(self, value: int) -> None:
        self.written.append(value)


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
def layout() -> RegisterMap:
    found = RegisterMap(32)
    found.place(
        0,
        (
            Register("fixed", 0, 2),
            Register("scratch", 2, 1, 0x5A, writable=0xF0),
            Register("sticky", 3, 1, 0xFF, writable=0x01, clear=0x0F),
            Register("live", 8, 4),
            Register("window", 12, 4, window=True),
        ),
        Owner,
    )
    found.preset("fixed", 0xBEEF)
    return found


@pytest.fixture
def space(layout: RegisterMap, owner: Owner) -> RegisterFile:
    return RegisterFile(layout, (owner,))


def test_reset_values_and_holes(space: RegisterFile) -> None:
    """Bytes of no register, and past the end, read 0 and take no write."""
    assert space.read(0, 8) == bytes.fromhex("efbe5aff 00000000")
    space.write(4, b"\xff\xff")
    space.write(30, b"\xff" * 10)
    assert space.read(4, 4) == bytes(4)
    assert space.read(31, 4) == bytes(4)
    assert space.read(1000, 2) == bytes(2)


def test_masks(space: RegisterFile) -> None:
    """Writable bits take the value, clear bits go where a 1 is written, all others stay."""
    space.write(0, b"\0\0\0")
    assert space.read(0, 3) == b"\xef\xbe\x0a"
    space.write(3, b"\x02")
    assert space["sticky"] == 0xFC
    space.write(3, b"\x05")
    assert space["sticky"] == 0xF8


def test_handlers_run_once_for_each_access(space: RegisterFile, owner: Owner) -> None:
    assert space.read(8, 4) == b"\x44\x33\x22\x11"
    assert space.read(6, 8) == b"\0\0\x44\x33\x22\x11\xff\xff"
    assert owner.reads == 3
    space.write(8, b"\1\2\3\4")
    assert owner.written == [0x04030201]


def test_partial_writes(space: RegisterFile, owner: Owner) -> None:
    """Completed with the present value; a window's missing bytes are 0, and it is not read for them."""
    space.write(9, b"\xaa")
    assert owner.written == [0x1122AA44]
    assert owner.reads == 1
    space.write(13, b"\xbb\xcc")
    assert owner.written[1:] == [0x00CCBB00]
    assert owner.reads == 1


def test_straddling_writes_go_in_address_order(space: RegisterFile, owner: Owner) -> None:
    space.write(2, bytes(range(0x10, 0x1E)))
    assert space["scratch"] == 0x1A
    assert owner.written == [0x19181716, 0x1D1C1B1A]


@pytest.mark.parametrize("width", range(1, 33))
def test_every_cut(space: RegisterFile, width: int) -> None:
    whole = space.read(0, 32)
    assert b"".join(space.read(at, width) for at in range(0, 32, width))[:32] == whole


def test_reset_and_dump(space: RegisterFile) -> None:
    space["fixed"] = 0x1234
    space["scratch"] = 1
    space["sticky"] = 2
    space.reset(keep=frozenset({"sticky"}))
    assert space.dump() == {"fixed": 0xBEEF, "scratch": 0x5A, "sticky": 2, "live": 0, "window": 0}


def test_files_of_one_map_have_their_own_values_and_owners(layout: RegisterMap, owner: Owner) -> None:
    other = Owner()
    other.value = 1
    first, second = RegisterFile(layout, (owner,)), RegisterFile(layout, (other,))
    first.write(2, b"\0\x02")
    first["fixed"] = 7
    assert (first.read(0, 4), second.read(0, 4)) == (b"\x07\0\x0a\xfc", b"\xef\xbe\x5a\xff")
    assert (first.read(8, 4), second.read(8, 4)) == (b"\x44\x33\x22\x11", b"\1\0\0\0")
    second.write(8, b"\2\0\0\0")
    assert (owner.written, other.written) == ([], [2])
    second.reset()
    assert first["fixed"] == 7
    first.reset()
    assert first["fixed"] == 0xBEEF


@pytest.mark.parametrize("owners", [(), (None,), (Owner(), Owner())])
def test_owners_of_other_classes(layout: RegisterMap, owners: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="owners of 1 blocks"):
        RegisterFile(layout, owners)


@pytest.mark.parametrize(
    "register", [Register("more", 1, 2), Register("fixed", 20, 1), Register("past", 30, 4)]
)
def test_bad_placement(layout: RegisterMap, register: Register) -> None:
    """Overlap, a name twice, past the end: refused."""
    with pytest.raises(ValueError, match=register.name):
        layout.place(0, (register,))


def test_structures() -> None:
    structure = np.dtype([("a", "<u2"), ("b", "<u8"), ("c", "u1")])
    assert [(r.name, r.offset, r.width) for r in registers_of(structure)] == [
        ("a", 0, 2),
        ("b", 2, 8),
        ("c", 10, 1),
    ]
