"""PCI registers that a move carries, by few questions, either way: on a machine whose qtest a test plays."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vfu_client.move.pci_state import NobodyAnswersError, PciState, PciStateError, identity
from vfu_client.qemu.address import Address
from vfu_client.qemu.config_space import ConfigSpace, Ecam, Ports
from vfu_client.qemu.qtest import QTest
from vfu_client.vfio.pci import Capability

PLACE = Address(1, 2, 0)
SELECT = 0x80011000
ECAM = 0x40_1000_0000
IN_ECAM = ECAM + 0x11_0000
"""The same place: bus 1, device 2."""

GUESTS = 0x8000F8DC
"""What the guest had selected when it was stopped."""

EXPRESS, MSIX, VENDOR, PM = 0x40, 0x80, 0x90, 0xA4
CAPABILITIES = [
    Capability(0x10, EXPRESS),
    Capability(0x11, MSIX),
    Capability(0x09, VENDOR),
    Capability(1, PM),
]
TABLE_AT = 0xFE002000


class Played(QTest):
    """One function's configuration space and MSI-X table; `asked` counts the questions.

    `written` are writes to the function, in order, each (offset, value). BARs are what `fixed` says. ECAM is
    there as well as the ports.
    """

    def __init__(self, *, gone: bool = False, fixed: dict[int, int] | None = None) -> None:
        self.words = {0: 0x10421AF4, 0x34: EXPRESS}
        self.words |= {EXPRESS: MSIX << 8 | 0x10, MSIX: 1 << 16 | VENDOR << 8 | 0x11}
        self.words |= {VENDOR: PM << 8 | 9, PM: 1}
        self.table = bytes(32)
        self.asked = 0
        self.written: list[tuple[int, int]] = []
        self.selected = GUESTS
        self._is_gone = gone
        self._fixed = fixed or {}

    def with_driver(self) -> Played:
        """As a driver that runs has it: a BAR, Memory Space and Bus Master, two vectors."""
        self.words |= {
            0x04: 6,
            0x18: 0xFE002000,
            EXPRESS + 8: 0x2810,
            MSIX: 0x8001 << 16 | VENDOR << 8 | 0x11,
        }
        self.words |= {MSIX + 4: 2, 0x3C: 0x10B}
        self.table = bytes(range(32))
        return self

    def run(self, commands: Sequence[str]) -> list[int]:
        self.asked += 1
        return [self._answer(*command.split()) for command in commands]

    def _answer(self, verb: str, at: str, *rest: str) -> int:
        address, offset = int(at, 0), self.selected & 0xFC
        if address == 0xCF8 and verb == "inl":
            return self.selected
        if address == 0xCF8:
            self.selected = int(rest[0], 0)
            return 0
        if verb == "read":
            assert (address, int(rest[0], 0)) == (TABLE_AT, 32)
            return int.from_bytes(self.table)
        if verb == "write":
            assert (address, int(rest[0], 0)) == (TABLE_AT, 32)
            self.table = bytes.fromhex(rest[1].removeprefix("0x"))
            return 0
        if verb.startswith(("read", "write")):
            offset = address - IN_ECAM
            assert 0 <= offset < 0x100
        else:
            assert self.selected & ~0xFC == SELECT
            offset += address - 0xCFC
        assert offset != VENDOR + 16, "virtio's PCI_CFG data, of which a read does something"
        if verb in ("inl", "readl"):
            return 0xFFFFFFFF if self._is_gone else self.words.get(offset, 0)
        return self._take(offset, {"b": 1, "w": 2, "l": 4}[verb[-1]], int(rest[0], 0))

    def _take(self, offset: int, size: int, value: int) -> int:
        self.written.append((offset, value))
        shift, mask = 8 * (offset & 3), (1 << 8 * size) - 1
        word = self.words.get(offset & ~3, 0) & ~(mask << shift) | value << shift
        self.words[offset & ~3] = self._fixed.get(offset & ~3, word)
        return 0


@pytest.fixture(params=[Ports(), Ecam(ECAM)], ids=["ports", "ecam"])
def space(request: pytest.FixtureRequest) -> ConfigSpace:
    """Each way."""
    found: ConfigSpace = request.param
    return found


@pytest.mark.parametrize(
    ("likely", "asked"),
    [
        (CAPABILITIES, 2),
        ([], 7),
        ([Capability(0x10, 0x50), *CAPABILITIES[1:]], 4),
    ],
    ids=["right", "none", "in part"],
)
def test_read(space: ConfigSpace, likely: list[Capability], asked: int) -> None:
    """The same is read wherever capabilities were thought to be, by two questions where it is right."""
    source = Played().with_driver()
    state = PciState.read(source, space, PLACE, likely)
    assert state.capabilities == {0x10: EXPRESS, 0x11: MSIX, 0x09: VENDOR, 1: PM}
    assert (state.register(4, 2), state.register(0x18, 4)) == (6, 0xFE002000)
    assert (state.register(EXPRESS + 8, 2), state.register(MSIX + 2, 2)) == (0x2810, 0x8001)
    assert state.table == bytes(range(32))
    assert source.selected == GUESTS
    assert source.written == []
    assert source.asked == asked


def test_read_of_a_list_that_loops(space: ConfigSpace) -> None:
    source = Played()
    source.words[PM] |= EXPRESS << 8
    assert PciState.read(source, space, PLACE).capabilities == {
        0x10: EXPRESS,
        0x11: MSIX,
        0x09: VENDOR,
        1: PM,
    }


def test_nobody_answers(space: ConfigSpace) -> None:
    source = Played(gone=True)
    with pytest.raises(NobodyAnswersError):
        PciState.read(source, space, PLACE, CAPABILITIES)
    assert source.selected == GUESTS
    assert identity(source, space, PLACE) == 0xFFFFFFFF
    assert source.selected == GUESTS


def test_write(space: ConfigSpace) -> None:
    """The command register after the BARs, MSI-X control at the very end, in two questions."""
    state = PciState.read(Played().with_driver(), space, PLACE, CAPABILITIES)
    target = Played()
    state.write(target, space)
    offsets = [offset for offset, _ in target.written]
    assert offsets.index(0x18) < offsets.index(4) < offsets.index(MSIX + 2) == len(offsets) - 1
    assert target.words[MSIX] >> 16 == 0x8001
    assert target.table == bytes(range(32))
    assert target.selected == GUESTS
    assert target.asked == 2


def test_write_to_other_bars(space: ConfigSpace) -> None:
    """Refused before MSI-X is on; the guest's selection is restored."""
    state = PciState.read(Played().with_driver(), space, PLACE, CAPABILITIES)
    target = Played(fixed={0x18: 0})
    with pytest.raises(PciStateError, match="other BARs"):
        state.write(target, space)
    assert target.words[MSIX] >> 16 == 1
    assert target.selected == GUESTS


def test_write_to_another_function(space: ConfigSpace) -> None:
    state = PciState.read(Played().with_driver(), space, PLACE, CAPABILITIES)
    target = Played()
    target.words[0] = 0x10411AF4
    with pytest.raises(PciStateError, match=r"at 01:02\.0 is 1af4:1041, at the source there was 1af4:1042"):
        state.write(target, space)
    assert target.words[MSIX] >> 16 == 1
    assert target.selected == GUESTS
