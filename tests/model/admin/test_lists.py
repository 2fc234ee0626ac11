"""LIST_QUERY, LIST_USE, and the order of the header checks."""

from __future__ import annotations

import pytest

from pymodel.admin.context_commands import context_commands
from pymodel.admin.lists import Lists
from pymodel.errors import InvalidField
from tests.model.fakes import (
    ALL_OF_OURS,
    INVALID_FIELD,
    INVALID_GROUP,
    INVALID_MEMBER,
    INVALID_OPCODE,
    OK,
    Driver,
    FakeOwner,
)


@pytest.mark.spec("DEV-01", "P-DEV-07")
def test_query() -> None:
    driver = Driver()
    answer = driver.raw(0, 1, 0)
    assert (answer.status, answer.used) == (OK, 8 + 16)
    assert int.from_bytes(answer.result, "little") == 0x3FF83 | 0x3FF << 0x40
    assert driver.raw(0, 0, 0).result == b"\x83\3" + bytes(6)
    assert int.from_bytes(Driver(strict=True).raw(0, 1, 0).result, "little") == 0x3FC03 | 0x3FF << 0x40


@pytest.mark.spec("DEV-01")
def test_without_the_drafts_commands() -> None:
    driver = Driver(base=None)
    assert driver.raw(0, 1, 0).result == b"\x83\xff\3" + bytes(5)
    assert driver.adm(0).status == INVALID_OPCODE


@pytest.mark.parametrize(("base", "length"), [(0x13, 8), (0x36, 8), (0x37, 16), (0x7FF6, 4096)])
def test_query_is_as_long_as_its_largest_opcode(base: int, length: int) -> None:
    answer = Driver(base=base).raw(0, 1, 0, room=8192)
    assert len(answer.result) == length
    assert int.from_bytes(answer.result, "little") == 0x3FF83 | 0x3FF << base


@pytest.mark.parametrize("base", [0, 0x12, 0x7FF7, 0x8000])
def test_bases_that_the_standard_uses_are_refused(base: int) -> None:
    with pytest.raises(ValueError, match="not within"):
        context_commands(base)


@pytest.mark.spec("P-DEV-08", "P-DEV-09", "P-DEV-10")
def test_only_what_was_used_is_allowed() -> None:
    driver = Driver()
    assert driver.adm(0).status == INVALID_OPCODE
    assert driver.raw(1, 1, 0, (3 | 1 << 0x40).to_bytes(16, "little")).status == OK
    assert driver.adm(0).status == OK
    assert driver.adm(1).status == INVALID_OPCODE
    driver.queue.reset()
    assert driver.adm(0).status == INVALID_OPCODE
    assert driver.raw(1, 1, 0, ALL_OF_OURS.to_bytes(16, "little")).status == OK


def test_linux_uses_nothing_and_closes_the_lists() -> None:
    """Linux masks the list with what it knows, and never sets bits 0 and 1; an 8-byte list is enough."""
    driver = Driver(FakeOwner(vf_enabled=False))
    assert driver.raw(0, 1, 0, room=16).used == 16
    assert driver.raw(1, 1, 0, bytes(8)).status == OK
    for opcode in (0, 1, 0x40):
        driver.owner.vf_enabled = True
        assert driver.raw(opcode, 1, 1).status == INVALID_OPCODE
    assert driver.raw(0, 0, 0).status == OK


def test_use_of_what_is_not_offered() -> None:
    driver = Driver()
    for bit in (2, 63, 64 + 12, 1000):
        data = (3 | 1 << bit).to_bytes(128, "little")
        assert driver.raw(1, 1, 0, data).status == INVALID_FIELD
    assert driver.raw(0, 1, 0).status == OK


def test_use_of_odd_lengths() -> None:
    """P-DEV-16: a list that is cut is filled with zeros; no data is an empty list."""
    driver = Driver()
    assert driver.raw(1, 1, 0, ALL_OF_OURS.to_bytes(10, "little")).status == OK
    assert driver.adm(9).status == OK
    assert driver.raw(1, 1, 0).status == OK
    assert driver.raw(0, 1, 0).status == INVALID_OPCODE


def test_surplus_behind_the_longest_list_is_ignored() -> None:
    assert Driver().raw(1, 1, 0, b"\3" + bytes(8191) + b"\xff").status == OK


@pytest.mark.spec("P-DEV-14")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("sriov", "vf_enabled"), [(False, False), (True, False), (True, True)])
def test_when_the_group_exists(strict: bool, sriov: bool, vf_enabled: bool) -> None:
    driver = Driver(FakeOwner(sriov=sriov, vf_enabled=vf_enabled), strict=strict)
    lists = sriov and (vf_enabled or not strict)
    assert driver.raw(0, 1, 0).status == (OK if lists else INVALID_GROUP)
    use = driver.raw(1, 1, 0, ALL_OF_OURS.to_bytes(16, "little")).status
    assert use == (OK if lists else INVALID_GROUP)
    assert driver.adm(0).status == (OK if vf_enabled else INVALID_GROUP)


@pytest.mark.spec("P-DEV-01", "P-DEV-15")
@pytest.mark.parametrize("good_member", [False, True])
@pytest.mark.parametrize("good_opcode", [False, True])
@pytest.mark.parametrize("group", [1, 0, 2, 0xFFFF])
def test_order_of_checks(group: int, good_opcode: bool, good_member: bool) -> None:
    driver = Driver().open()
    answer = driver.raw(0x40 if good_opcode else 0x3F, group, 2 if good_member else 3)
    if group > 1:
        expected = INVALID_GROUP
    elif not good_opcode or group == 0:
        expected = INVALID_OPCODE
    else:
        expected = OK if good_member else INVALID_MEMBER
    assert answer.status == expected
    if expected != OK:
        assert answer.used == 8


@pytest.mark.parametrize("member", [0, 3, 1 << 63])
def test_members_outside(member: int) -> None:
    assert Driver().open().adm(0, member).status == INVALID_MEMBER


def test_lists_ignore_the_member() -> None:
    assert Driver().raw(0, 1, 77).status == OK


@pytest.mark.spec("P-DEV-08")
@pytest.mark.parametrize("strict", [False, True])
def test_capability_commands_of_self_follow_the_sriov_list(strict: bool) -> None:
    """Linux sends 0x07-0x09 to Self after a LIST_USE of the SR-IOV group only."""
    lists = Lists({0: {7, 8, 9}, 1: {7, 8, 9, 10}}, strict=strict)
    assert not lists.allows(0, 7)
    lists.use(1, (1 << 7 | 1 << 10).to_bytes(8, "little"))
    assert [lists.allows(0, opcode) for opcode in (7, 8, 10)] == [not strict, False, False]
    with pytest.raises(InvalidField):
        lists.use(0, (1 << 10).to_bytes(8, "little"))


@pytest.mark.spec("P-DEV-23", "P-DEV-28")
def test_capabilities() -> None:
    """As Linux asks: only the SR-IOV list was used, the commands go to the Self group."""
    driver = Driver()
    assert driver.raw(7, 0, 0).status == INVALID_OPCODE
    assert driver.raw(1, 1, 0, (7 << 7).to_bytes(8, "little")).status == OK
    listed = driver.raw(7, 0, 0, room=16)
    assert (listed.status, listed.result) == (OK, b"\1" + bytes(7))
    assert driver.raw(8, 0, 0, bytes(8)).result[:2] == b"\xff\xff"
    assert driver.raw(8, 0, 0, b"\1" + bytes(7)).status == (6, 1)
    assert driver.raw(9, 0, 0, bytes(8) + b"\x04\x04").status == OK
    assert driver.raw(9, 0, 0, b"\0\x08" + bytes(8)).status == (6, 1)


@pytest.mark.spec("P-DEV-26")
def test_capabilities_are_of_the_self_group() -> None:
    driver = Driver(strict=True)
    assert driver.raw(1, 1, 0, (7 << 7).to_bytes(8, "little")).status == INVALID_FIELD
    assert driver.raw(1, 0, 0, (7 << 7).to_bytes(8, "little")).status == OK
    assert driver.raw(7, 0, 0).status == OK
    assert driver.raw(7, 1, 0).status == INVALID_OPCODE
