"""The inventory of what virtio 1.4 asks of drivers is whole, and agrees with the rules that see it."""

from __future__ import annotations

from collections import Counter

import pytest

from pymodel.rules.checker import RULES
from pymodel.rules.rule import HINT
from tests.driver_statements.inventory import SECTIONS, statements
from tests.driver_statements.statement import MUST, MUST_NOT, REASONS, SHOULD, SHOULD_NOT, Statement

_INITIALIZATION = "PCI-specific Initialization And Device Operation"
_CONTROL = "Network Device / Device Operation / Control Virtqueue"

COUNTS = {
    "Device Status Field": 4,
    "Feature Bits": 8,
    "Device Reset": 1,
    "Device Configuration Space": 5,
    "Virtqueues / Virtqueue Reset / Virtqueue Reset": 1,
    "Virtqueues / Virtqueue Reset / Virtqueue Re-enable": 1,
    "Device Initialization": 6,
    "Device Cleanup": 2,
    "Device Suspend": 6,
    "Reserved Feature Bits": 10,
    "Virtqueues": 1,
    "Message Framing": 2,
    "Virtqueues / The Virtqueue Descriptor Table": 2,
    "Virtqueues / The Virtqueue Descriptor Table / Indirect Descriptors": 5,
    "Virtqueues / The Virtqueue Available Ring": 1,
    "Virtqueues / Used Buffer Notification Suppression": 3,
    "Virtqueues / The Virtqueue Used Ring": 2,
    "Virtqueues / Available Buffer Notification Suppression": 7,
    "Virtqueues / Supplying Buffers to The Device / Updating idx": 1,
    "Virtqueues / Supplying Buffers to The Device / Notifying The Device": 1,
    "Packed Virtqueues": 1,
    "Packed Virtqueues / The Virtqueue Descriptor Table": 3,
    "Packed Virtqueues / Scatter-Gather Support": 6,
    "Packed Virtqueues / The Virtqueue Descriptor Table / Indirect Descriptors": 4,
    "Packed Virtqueues / Supplying Buffers to The Device / Updating flags": 1,
    "Packed Virtqueues / Supplying Buffers to The Device / Sending Available Buffer Notifications": 1,
    "Device groups / Group administration commands": 8,
    "Administration virtqueues": 7,
    "Device groups / Group administration commands / Legacy Interface": 7,
    "Device groups / Group administration commands / Device and driver capabilities": 3,
    "Device groups / Group administration commands / Device resource objects": 7,
    "Device groups / Group administration commands / Device parts": 5,
    "PCI Device Discovery": 3,
    "PCI Device Layout": 1,
    "Virtio Structure PCI Capabilities": 7,
    "PCI Device Layout / Common configuration structure layout": 8,
    "PCI Device Layout / ISR status capability": 1,
    "PCI Device Layout / Vendor data capability": 2,
    "PCI Device Layout / PCI configuration access capability": 3,
    f"{_INITIALIZATION} / Device Initialization / MSI-X Vector Configuration": 3,
    f"{_INITIALIZATION} / Available Buffer Notifications": 6,
    f"{_INITIALIZATION} / Notification of Device Configuration Changes": 1,
    "Block Device / Device Initialization": 7,
    "Block Device / Device Operation": 23,
    "Network Device / Device configuration layout": 14,
    "Network Device / Device Operation / Packet Transmission": 39,
    "Network Device / Device Operation / Setting Up Receive Buffers": 5,
    "Network Device / Device Operation / Processing of Incoming Packets": 8,
    f"{_CONTROL} / Inner Header Hash": 3,
    f"{_CONTROL} / Packet Receive Filtering": 2,
    f"{_CONTROL} / Setting MAC Address Filtering": 3,
    f"{_CONTROL} / Gratuitous Packet Sending": 2,
    f"{_CONTROL} / Automatic receive steering in multiqueue mode": 4,
    f"{_CONTROL} / Receive-side scaling (RSS)": 5,
    f"{_CONTROL} / RSS Context": 3,
    f"{_CONTROL} / Offloads State Configuration / Setting Offloads State": 1,
    f"{_CONTROL} / Notifications Coalescing": 4,
    f"{_CONTROL} / Device Statistics": 3,
    "Network Device / Device Operation / Flow filter": 12,
    "Network Device / Device Operation / IPsec Operation": 7,
}
"""How often the standard says MUST or SHOULD, also with NOT, to drivers in each section."""

LEVELS = {MUST: 141, MUST_NOT: 98, SHOULD: 43, SHOULD_NOT: 20}

OF_THE_STANDARD = sorted(
    name for name, rule in RULES.items() if rule.level != HINT and not name.startswith("DRV-")
)
"""Rules that are neither hints nor the draft's."""


def naming(rule: str) -> list[tuple[str, Statement]]:
    """The statements, with their sections, that a rule holds drivers to."""
    return [(title, statement) for title, statement in statements() if rule in statement.rules]


def test_no_word_of_the_standard_is_left_out() -> None:
    assert {title: len(section) for title, section in SECTIONS.items()} == COUNTS
    assert sum(COUNTS.values()) == 302
    assert Counter(statement.level for _, statement in statements()) == LEVELS


def test_each_statement_has_rules_or_a_reason() -> None:
    wrong = [entry for entry in statements() if bool(entry[1].rules) == bool(entry[1].reason)]
    assert wrong == []
    assert {statement.reason for _, statement in statements()} == {"", *REASONS}


def test_all_rules_that_are_named_exist_and_are_no_hints() -> None:
    named = {rule for _, statement in statements() for rule in statement.rules}
    assert named == set(OF_THE_STANDARD)
    assert len(named) == 148


@pytest.mark.parametrize("rule", OF_THE_STANDARD)
def test_a_rule_is_of_the_level_and_section_of_what_it_holds_drivers_to(rule: str) -> None:
    found = naming(rule)
    assert RULES[rule].level in {statement.level for _, statement in found}
    last = RULES[rule].section.casefold().rsplit(" / ", maxsplit=1)[-1]
    assert last in {title.casefold().rsplit(" / ", maxsplit=1)[-1] for title, _ in found}
