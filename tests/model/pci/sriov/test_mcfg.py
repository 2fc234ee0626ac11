"""ECAM is found by the guest's own tables, whole ones, or not at all."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymodel.errors import MemoryFault
from pymodel.memory import Bytes
from pymodel.pci.dma import Dma
from pymodel.pci.sriov.mcfg import McfgSearch
from tests.model.fakes import FakeMemory

MIB = 1 << 20
SIZE = 4 * MIB
BIOS = 0xF5A20


class LowMemory(FakeMemory):
    """Memory from 0 to SIZE, but for the piece that begins at `hole`."""

    def __init__(self, hole: int = SIZE) -> None:
        super().__init__(SIZE, SIZE)
        self.hole = hole

    def view(self, address: int, length: int, *, write: bool) -> list[Bytes]:
        if address < self.hole + MIB and self.hole < address + length:
            raise MemoryFault(f"{address:#x}")
        return super().view(address, length, write=write)

    def put(self, address: int, data: bytes) -> None:
        self.data[address : address + len(data)] = np.frombuffer(data, np.uint8)


def summed(data: bytes, at: int, length: int | None = None) -> bytes:
    """`data` with a checksum at `at`, so that its first `length` bytes add up to 0."""
    total = sum(data[:length]) & 0xFF
    return data[:at] + bytes([-total & 0xFF]) + data[at + 1 :]


def table(signature: bytes, body: bytes) -> bytes:
    head = struct.pack("<4sIBB6s8sI4sI", signature, 36 + len(body), 1, 0, b"BOCHS ", b"BXPC", 1, b"BXPC", 1)
    return summed(head + body, 9)


def mcfg(*bases: int, segment: int = 0, first: int = 0, last: int = 255) -> bytes:
    entries = b"".join(struct.pack("<QHBBI", base, segment, first, last, 0) for base in bases)
    return table(b"MCFG", bytes(8) + entries)


def rsdp(rsdt: int = 0, xsdt: int = 0) -> bytes:
    data = struct.pack("<8sB6sBIIQB3s", b"RSD PTR ", 0, b"BOCHS ", 2 if xsdt else 0, rsdt, 36, xsdt, 0, b"")
    return summed(summed(data, 8, 20), 32)


def search(memory: FakeMemory) -> McfgSearch:
    dma = Dma(None)
    dma.target = memory
    found = McfgSearch(dma)
    steps = 0
    while not found.done:
        found.step()
        steps += 1
        assert steps < 10
    return found


@pytest.mark.parametrize("wide", [False, True])
def test_by_the_bios(wide: bool) -> None:
    """RSDP in the BIOS's area, RSDT or XSDT, MCFG: what else is in memory does not count."""
    memory = LowMemory()
    memory.put(BIOS, rsdp(xsdt=0x2001) if wide else rsdp(rsdt=0x2001))
    pointers = (0x3003, 0x4005)
    memory.put(0x2001, table(b"XSDT" if wide else b"RSDT", struct.pack("<2Q" if wide else "<2I", *pointers)))
    memory.put(0x3003, table(b"APIC", b"some"))
    memory.put(0x4005, mcfg(0xB000_0000))
    memory.put(3 * MIB, mcfg(0xE000_0000))
    assert search(memory).base == 0xB000_0000


def test_by_search() -> None:
    """Firmware of UEFI has no RSDP there: the table is looked for, at any address, with holes in memory."""
    memory = LowMemory(hole=MIB)
    memory.put(3 * MIB - 2, mcfg(0xE000_0000))
    memory.put(0x1234, mcfg(0xE000_0000))
    assert search(memory).base == 0xE000_0000


def test_tables_that_disagree() -> None:
    memory = LowMemory()
    memory.put(0x1234, mcfg(0xE000_0000))
    memory.put(2 * MIB, mcfg(0xB000_0000))
    found = search(memory)
    assert found.base is None
    assert found.found == {0xE000_0000, 0xB000_0000}


BROKEN = mcfg(0xE000_0000)[:-1] + b"\1"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MCFG",
        BROKEN,
        mcfg(0xE000_0000)[:-1],
        mcfg(0xE000_0000, segment=1),
        mcfg(0xE000_1000),
        mcfg(0),
        mcfg((1 << 64) - (255 << 20)),
        mcfg(0xE000_0000, first=1, last=0),
        mcfg(0xE000_0000, last=127),
        table(b"MCFG", bytes(8 + 15)),
        table(b"MCFG", b""),
        struct.pack("<4sIB", b"MCFG", 0xFFFFFFFF, 1),
    ],
    ids=[
        "none",
        "name",
        "checksum",
        "short",
        "segment",
        "address",
        "zero",
        "end",
        "buses",
        "some buses",
        "entry",
        "empty",
        "length",
    ],
)
def test_no_table(data: bytes) -> None:
    """What is no whole table of this machine is none."""
    memory = LowMemory()
    memory.put(SIZE - len(data), data)
    found = search(memory)
    assert found.base is None
    assert not found.found


@pytest.mark.parametrize(
    "pointer",
    [rsdp(rsdt=0x2000)[:-28] + b"x", rsdp(rsdt=0xFFFF_FFF0), rsdp(rsdt=0), rsdp(xsdt=(1 << 64) - 8)],
    ids=["checksum", "outside", "none", "end"],
)
def test_broken_pointers(pointer: bytes) -> None:
    """Then it is looked for."""
    memory = LowMemory()
    memory.put(BIOS, pointer)
    memory.put(0x2000, table(b"RSDT", struct.pack("<I", 0x3000)))
    memory.put(0x3000, mcfg(0xB000_0000))
    memory.put(3 * MIB, mcfg(0xB000_0000))
    assert search(memory).base == 0xB000_0000


def full_of(data: bytes) -> LowMemory:
    """Memory with `data` again and again, from 1 MiB on."""
    memory = LowMemory()
    memory.put(MIB, data * (3 * MIB // len(data)))
    return memory


def given_up(memory: FakeMemory, *, step: int) -> McfgSearch:
    """A search to its end, none of whose steps read more bytes than `step`, and all of them not too many."""
    dma = CountingDma(memory)
    found = McfgSearch(dma)
    while not found.done:
        before = dma.bytes
        found.step()
        assert dma.bytes - before <= step
    assert dma.bytes < 300 * MIB
    return found


@pytest.mark.parametrize("length", [36, 1 << 16, 1 << 20])
def test_a_guest_that_means_harm(length: int) -> None:
    """Looking at all that is named like a table would take hours: it is given up, in steps that are short."""
    memory = full_of(struct.pack("<4sI8x", b"MCFG", length))
    memory.put(0x1234, mcfg(0xE000_0000))
    found = given_up(memory, step=17 * MIB)
    assert not found.found


def test_a_root_table_that_means_harm() -> None:
    """The same for what a table of the BIOS leads to."""
    memory = full_of(struct.pack("<4sI8x", b"MCFG", 1 << 16))
    root = table(b"RSDT", struct.pack("<16000I", *range(MIB, MIB + 16 * 16000, 16)))
    memory.put(0x2000, root)
    for at in range(0xE0000, 0x100000, 32):
        memory.put(at, rsdp(rsdt=0x2000)[:20])
    given_up(memory, step=2 * MIB)


class CountingDma(Dma):
    """Counts what is read of memory."""

    def __init__(self, memory: FakeMemory) -> None:
        super().__init__(None)
        self.target = memory
        self.bytes = 0

    def read(self, address: int, length: int) -> bytes:
        data = super().read(address, length)
        self.bytes += length
        return data


@settings(max_examples=50)
@given(st.binary(max_size=200), st.integers(0, 0xFFFF))
def test_any_content(data: bytes, at: int) -> None:
    """Nothing that a guest has in memory is more than not found."""
    memory = LowMemory()
    memory.put(BIOS, rsdp(rsdt=0x2000))
    memory.put(0x2000, table(b"RSDT", data))
    memory.put(at & ~15 | 0xE0000, b"RSD PTR " + data)
    search(memory)
