"""Where addresses are, compared with a list of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vfu_server.networks.address_table import AddressTable

ADDRESSES = range(8)
STEP = st.tuples(
    st.sampled_from(("add", "remove", "touch", "forget")), st.sampled_from(ADDRESSES), st.integers(1, 3)
)


def entries(table: AddressTable, address: int) -> dict[int, int]:
    """By member: its entry of an address."""
    found = {}
    entry = table.first(address)
    while entry >= 0:
        found[table.member(entry)] = entry
        entry = table.another(entry)
    return found


@given(st.lists(STEP, max_size=80))
def test_the_oldest_makes_room(steps: list[tuple[str, int, int]]) -> None:
    table, known = AddressTable(4), list[tuple[int, int]]()
    for step, address, member in steps:
        entry = entries(table, address).get(member)
        if step == "forget":
            table.forget(member)
            known = [pair for pair in known if pair[1] != member]
        elif step == "add" and entry is None:
            table.add(address, member, 0)
            known = [*known[-3:], (address, member)]
        elif step == "touch" and entry is not None:
            table.touch(entry, 0)
            known.remove((address, member))
            known.append((address, member))
        elif step == "remove" and entry is not None:
            table.remove(entry)
            known.remove((address, member))
        larger = AddressTable(8)
        larger.take_over(table)
        for now in (table, larger):
            assert now.count == len(known)
            assert {(at, whose) for at in ADDRESSES for whose in entries(now, at)} == set(known)
