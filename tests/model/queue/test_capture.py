"""What a queue says of itself when something went wrong a moment before."""

from __future__ import annotations

import pytest

from pymodel.errors import MemoryFault
from tests.model.queue.pair import RING_PACKED, Pair


@pytest.mark.parametrize("bits", [(), (RING_PACKED,)], ids=["split", "packed"])
def test_an_interrupt_that_could_not_be_decided_on_is_owed(
    monkeypatch: pytest.MonkeyPatch, bits: tuple[int, ...]
) -> None:
    """The driver's wish was not mapped when its buffer was used: rather told in vain than not at all."""
    with Pair(8, bits) as pair:
        pair.add()
        pair.run()
        pair.consumer.kept[0].complete(1)

        def fault(address: int) -> int:
            raise MemoryFault(f"{address:#x}")

        with monkeypatch.context() as patch:
            patch.setattr(pair.memory, "load_u16", fault)
            with pytest.raises(MemoryFault):
                pair.settle()
        assert len(pair.collect()) == 1
        assert pair.device.outstanding == 0
        assert pair.device.capture().interrupt_owed
        pair.settle()
        pair.device.told()
        assert not pair.device.capture().interrupt_owed
