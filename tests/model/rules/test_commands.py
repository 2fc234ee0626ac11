"""Drivers that break the rules: each is noticed by the ID of its rule, and answered as if nobody looked."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from pymodel.admin.queue import AdminQueue
from pymodel.memory import Buffer
from pymodel.rules.breaches import Breaches
from pymodel.rules.commands import COMMAND_RULES, hold
from tests.model.fakes import (
    ALL_OF_OURS,
    INVALID_COMMAND,
    INVALID_FIELD,
    INVALID_MEMBER,
    OK,
    Driver,
    context,
    isr,
    part,
)
from tests.recorder import TOLD

ACTIVE, STOP, FREEZE = range(3)
MODE_SET, READ, WRITE, DISCARD = 1, 3, 4, 6


class Seen:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def event(self, function: str, kind: str, data: Mapping[str, Any]) -> None:
        self.events.append((function, kind, dict(data)))


class Watched(AdminQueue):
    """Holds each command against the rules before it is carried out."""

    breaches: Breaches

    def take(self, buffer: Buffer) -> None:
        hold(self.look(buffer), self.breaches)
        super().take(buffer)


class Checked(Driver):
    """A driver whose commands are held against the rules."""

    def __init__(self, *, opened: bool = True) -> None:
        super().__init__()
        self.seen = Seen()
        self.breaches = Breaches(self.seen)
        self.queue = Watched(self.owner, self.owner.wake)
        self.queue.breaches = self.breaches
        if opened:
            self.open()

    def frozen(self) -> Checked:
        assert self.mode(FREEZE) == OK
        return self

    @property
    def broken(self) -> set[str]:
        return {breach.rule for breach in self.breaches.all()}


def test_a_good_driver_breaks_nothing() -> None:
    driver = Checked().frozen()
    stream = driver.read_all(room=1000)
    assert driver.adm(WRITE, data=stream[:77]).status == OK
    assert driver.adm(WRITE, data=stream[77:]).status == OK
    assert driver.adm(WRITE, data=stream + stream).status == OK
    assert driver.adm(WRITE, data=stream[:99]).status == OK
    assert driver.adm(DISCARD).status == OK
    assert driver.raw(0, 7, 0).status != OK  # LIST_QUERY may be tried on any group
    assert driver.adm(MODE_SET, data=bytes(8)).status == OK
    assert [breach for breach in driver.breaches.all() if breach.rule != "P-DRV-07"] == []


def _reads_in_part(driver: Checked) -> None:
    driver.adm(READ, room=64)
    assert driver.mode(STOP) == OK


def _leaves_with_a_cut_field(driver: Checked) -> None:
    driver.frozen().adm(WRITE, data=context(isr(1))[:39])
    assert driver.mode(ACTIVE) == INVALID_COMMAND


def _leaves_without_end(driver: Checked) -> None:
    driver.frozen().adm(WRITE, data=part(0) + isr(1))
    assert driver.mode(STOP) == INVALID_COMMAND


def _starts_twice(driver: Checked) -> None:
    assert driver.frozen().adm(WRITE, data=part(0) + isr(1) + context()).status == INVALID_FIELD


def _does_not_start(driver: Checked) -> None:
    assert driver.frozen().adm(WRITE, data=isr(1)).status == INVALID_FIELD


def _goes_on_after_the_end(driver: Checked) -> None:
    stream = context(isr(1))
    assert driver.frozen().adm(WRITE, data=stream[:30]).status == OK
    assert driver.adm(WRITE, data=stream[30:] + stream).status == OK


def _names_no_member(driver: Checked) -> None:
    assert driver.adm(0, vf=9).status == INVALID_MEMBER


def _odd_length(driver: Checked) -> None:
    assert driver.adm(MODE_SET, data=b"\1").status == OK


def _short_header(driver: Checked) -> None:
    assert driver.send(struct.pack("<HH12x", 0, 1)).status == OK


def _unoffered(driver: Checked) -> None:
    assert driver.raw(1, 1, 0, (ALL_OF_OURS | 1 << 0x70).to_bytes(16, "little")).status == INVALID_FIELD


def _uses_while_outstanding(driver: Checked) -> None:
    driver.owner.functions[1].in_transition = True
    assert driver.adm(MODE_SET, data=bytes(8)).used is None
    assert driver.raw(1, 1, 0, ALL_OF_OURS.to_bytes(16, "little"), queue=3).status == OK


def _without_order(driver: Checked) -> None:
    driver.owner.functions[1].in_transition = True
    assert driver.adm(MODE_SET, data=bytes(8)).used is None
    assert driver.adm(0, queue=3).status == OK


BREACHES: list[tuple[Callable[[Checked], None], set[str]]] = [
    (_reads_in_part, {"DRV-01"}),
    (_leaves_with_a_cut_field, {"DRV-03", "DRV-04"}),
    (_leaves_without_end, {"DRV-03", "DRV-04", "DRV-08"}),
    (_starts_twice, {"DRV-08"}),
    (_does_not_start, {"DRV-07"}),
    (_goes_on_after_the_end, {"DRV-09"}),
    (_names_no_member, {"P-DRV-06"}),
    (_odd_length, {"P-DRV-07"}),
    (_short_header, {"P-DRV-08"}),
    (_unoffered, {"P-DRV-03"}),
    (_uses_while_outstanding, {"P-DRV-02"}),
    (_without_order, {"P-DRV-10"}),
]


@pytest.mark.spec(
    *("DRV-01", "DRV-03", "DRV-04", "DRV-07", "DRV-08", "DRV-09", "P-DRV-02", "P-DRV-03", "P-DRV-06"),
    *("P-DRV-07", "P-DRV-08", "P-DRV-10"),
)
@pytest.mark.parametrize(("act", "broken"), BREACHES, ids=[act.__name__[1:] for act, _ in BREACHES])
def test_a_breach_is_noticed(
    request: pytest.FixtureRequest, act: Callable[[Checked], None], broken: set[str]
) -> None:
    driver = Checked()
    act(driver)
    # `mode` sends one byte of data, which is one breach more.
    assert driver.broken - {"P-DRV-07"} == broken - {"P-DRV-07"}
    assert broken <= driver.broken
    told = [data for _, kind, data in driver.seen.events if kind == "RULE_BROKEN"]
    assert {data["rule"] for data in told} == driver.broken
    request.node.user_properties += [
        (TOLD, (data["rule"], f"{data['subject']}: {data['seen']}")) for data in told
    ]


@pytest.mark.spec("P-DRV-01")
def test_commands_ahead_of_list_use() -> None:
    driver = Checked(opened=False)
    assert driver.raw(0, 1, 0).status == OK
    assert driver.broken == set()
    driver.adm(0)
    assert driver.broken == {"P-DRV-01"}


def test_each_breach_is_told_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    driver = Checked()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            driver.adm(0, vf=9)
        driver.frozen()
        driver.adm(WRITE, vf=1, data=isr(1))
    counts = {
        (breach.rule, breach.function, breach.subject): breach.count for breach in driver.breaches.all()
    }
    assert counts == {
        ("P-DRV-06", "pf", "DEV_MODE_GET"): 3,
        ("P-DRV-07", "vf1", "DEV_MODE_SET"): 1,
        ("DRV-07", "vf1", "DEV_CTX_WRITE"): 1,
    }
    assert [record.getMessage().split()[0] for record in caplog.records] == ["P-DRV-06", "P-DRV-07", "DRV-07"]
    assert len(driver.seen.events) == 3


def test_unmapped_data_and_rubbish_are_no_business_of_the_rules() -> None:
    driver = Checked().frozen()
    for size in range(0, 200, 7):
        driver.adm(WRITE, data=b"\xff" * size)
        driver.raw(size, size, size, b"\xff" * size)
    assert driver.broken <= COMMAND_RULES.keys()
