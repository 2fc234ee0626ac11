"""Both halves of a queue against each other, in both formats: nothing is lost, doubled, or left waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymodel.memory import Buffer
from tests.model.queue.consumer import Consumer
from tests.model.queue.pair import EVENT_IDX, IN_ORDER, INDIRECT, RING_PACKED, Pair
from vfu_client.virtio.driver_queue import QueueFullError

FORMATS = pytest.mark.parametrize("packed", [(), (RING_PACKED,)], ids=["split", "packed"])
EVENTS = pytest.mark.parametrize("events", [(), (EVENT_IDX,)], ids=["flags", "event-idx"])


def looks(pair: Pair) -> int:
    """Run the queue as the transport does: while it may hold more."""
    rounds = 1
    while pair.run():
        rounds += 1
        assert rounds < 1000, "the queue spins"
    return rounds


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.just("complete"), st.integers(0, 7), st.integers(0, 2)),
        st.tuples(st.just("collect"), st.just(0), st.just(0)),
        st.tuples(st.just("room"), st.integers(0, 4), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(
    size=st.sampled_from([1, 2, 4, 8]),
    odd=st.sampled_from([0, 1]),
    bits=st.sets(st.sampled_from([RING_PACKED, IN_ORDER, INDIRECT, EVENT_IDX])),
    played=steps,
)
def test_each_buffer_comes_back_once(
    size: int, odd: int, bits: set[int], played: Sequence[tuple[str, int, int]]
) -> None:
    """A driver that waits for interrupts and a device that waits for kicks, each as the other asked."""
    size += odd if RING_PACKED in bits else 0
    with Pair(size, bits) as pair:
        consumer = pair.consumer
        added: deque[int] = deque()
        expected: dict[int, int] = {}
        seen = 0

        def device_works() -> None:
            nonlocal seen
            if len(pair.kicks) > seen or pair.device.waiting:
                seen = len(pair.kicks)
                looks(pair)
            pair.settle()

        def driver_works() -> None:
            for done in pair.collect():
                if IN_ORDER in bits:
                    assert done.head == added.popleft()
                else:
                    added.remove(done.head)
                assert done.length == expected.pop(done.head)

        pair.driver.ask_for_interrupt()
        for what, first, second in played:
            if what == "add":
                if not 0 < first + second <= size:  # the longest chain that a driver may make
                    continue
                try:
                    head = pair.add(first, second)
                except QueueFullError:
                    continue
                assert head not in expected
                added.append(head)
                expected[head] = -1
                device_works()
            elif what == "complete" and consumer.kept:
                buffer = consumer.kept.pop(first % len(consumer.kept))
                written = [0, buffer.writable.length // 2, buffer.writable.length][second]
                assert isinstance(getattr(buffer, "id", None), int)
                expected[buffer.id] = written  # type: ignore[attr-defined]
                buffer.complete(written)
                device_works()
            elif what == "room":
                consumer.room = first
                device_works()
            if pair.told() or what == "collect":
                driver_works()
                while pair.driver.ask_for_interrupt():
                    driver_works()
        consumer.room = 1 << 30
        device_works()
        for buffer in consumer.kept:
            expected[buffer.id] = buffer.writable.length  # type: ignore[attr-defined]
            buffer.complete(buffer.writable.length)
        consumer.kept.clear()
        waiting = bool(expected)
        device_works()
        while expected:
            # An interrupt was asked for, and whatever the device has is completed: it must have been sent.
            assert pair.told() or not waiting
            driver_works()
            waiting = True
            pair.driver.ask_for_interrupt()
            device_works()
            for buffer in consumer.kept:
                expected[buffer.id] = 0  # type: ignore[attr-defined]
                buffer.complete(0)
            consumer.kept.clear()
            pair.settle()
        assert not pair.driver.in_flight
        assert pair.device.outstanding == 0


@FORMATS
@EVENTS
def test_completions_out_of_order(packed: tuple[int, ...], events: tuple[int, ...]) -> None:
    with Pair(8, (*packed, *events)) as pair:
        heads = [pair.add() for _ in range(4)]
        looks(pair)
        for number in (2, 0, 3, 1):
            pair.consumer.kept[number].complete(number)
            pair.settle()
            assert [(done.head, done.length) for done in pair.collect()] == [(heads[number], number)]


@FORMATS
def test_in_order_holds_what_comes_early(packed: tuple[int, ...]) -> None:
    """With IN_ORDER buffers are used in the order of their being made available, whoever is done first."""
    with Pair(8, (*packed, IN_ORDER)) as pair:
        heads = [pair.add() for _ in range(4)]
        looks(pair)
        found = []
        for number in (2, 1, 0, 3):
            pair.consumer.kept[number].complete(number)
            pair.settle()
            found.append([(done.head, done.length) for done in pair.collect()])
        assert found == [[], [], [(heads[0], 0), (heads[1], 1), (heads[2], 2)], [(heads[3], 3)]]


@FORMATS
@EVENTS
def test_a_batch_in_order(packed: tuple[int, ...], events: tuple[int, ...]) -> None:
    """Buffers of one part that were used wholly are skipped; the others say their length."""
    with Pair(8, (*packed, *events, IN_ORDER)) as pair:
        shapes = [(1, 0), (0, 1), (0, 1), (0, 1), (1, 1), (1, 0), (1, 0)]
        heads = [pair.add(*shape) for shape in shapes]
        looks(pair)
        pair.driver.ask_for_interrupt()
        lengths = [0, 16, 7, 16, 16, 0, 0]
        for buffer, length in zip(pair.consumer.kept, lengths, strict=True):
            buffer.complete(length)
        pair.settle()
        assert pair.told()
        assert pair.driver.device_used_idx == 7
        assert [(done.head, done.length) for done in pair.collect()] == list(zip(heads, lengths, strict=True))


@FORMATS
def test_a_batch_is_one_used_element(packed: tuple[int, ...]) -> None:
    """The element stands where the first of the batch would be, and has the id of the last."""
    with Pair(4, (*packed, IN_ORDER)) as pair:
        heads = [pair.add(1, 0) for _ in range(3)]
        looks(pair)
        before = [part.view.tobytes() for part in pair.driver.parts]
        for buffer in pair.consumer.kept:
            buffer.complete(0)
        pair.settle()
        desc, _, used = (part.view.tobytes() for part in pair.driver.parts)
        if packed:
            assert int.from_bytes(desc[12:14], "little") == heads[2]
            assert desc[14:16] == b"\x80\x80"
            assert desc[16:] == before[0][16:]
        else:
            assert used[2:4] == b"\3\0"
            assert int.from_bytes(used[4:8], "little") == heads[2]
            assert used[12:28] == bytes(16)


# Several buffers for one piece of data.


class Gatherer(Consumer):
    """Takes `need` buffers at a time, or gives back what it has; `stubborn` does not even look for more."""

    def __init__(self, need: int, *, stubborn: bool = False) -> None:
        super().__init__()
        self.need = need
        self.stubborn = stubborn
        self.looked = 0
        self.groups: list[list[Buffer]] = []

    def take(self, buffer: Buffer) -> None:
        self.looked += 1
        group = [buffer]
        while len(group) < self.need and not self.stubborn:
            following = group[-1].next()
            if following is None:
                break
            group.append(following)
        if len(group) < self.need:
            for taken in reversed(group):
                taken.give_back()
        else:
            self.groups.append(group)


@FORMATS
@EVENTS
@pytest.mark.parametrize("order", [(), (IN_ORDER,)], ids=["any-order", "in-order"])
def test_several_buffers_for_one(
    packed: tuple[int, ...], events: tuple[int, ...], order: tuple[int, ...]
) -> None:
    """Too few go back; when the driver adds the missing ones it is asked to kick, and all are taken."""
    gatherer = Gatherer(3)
    with Pair(8, (*packed, *events, *order), consumer=gatherer) as pair:
        heads = []
        for turn in range(10):
            heads += [pair.add(0, 1), pair.add(0, 1)]
            before = gatherer.looked
            assert looks(pair) == 1
            assert gatherer.looked == before + 1
            assert (pair.device.outstanding, pair.device.requests) == (0, 3 * turn)
            kicks = len(pair.kicks)
            heads.append(pair.add(0, 1))
            assert len(pair.kicks) == kicks + 1, "the device asked for no kick"
            looks(pair)
            (group,) = gatherer.groups
            gatherer.groups.clear()
            assert pair.device.outstanding == 3
            for buffer in group:
                buffer.complete(16)
            pair.settle()
            assert [done.head for done in pair.collect()] == heads
            heads.clear()


@FORMATS
@EVENTS
def test_a_consumer_that_gives_back_at_once_is_not_asked_for_ever(
    packed: tuple[int, ...], events: tuple[int, ...]
) -> None:
    """However many buffers wait, it is asked twice at most each time that the driver adds."""
    gatherer = Gatherer(3, stubborn=True)
    with Pair(8, (*packed, *events), consumer=gatherer) as pair:
        for number in range(1, 8):
            pair.add(0, 1)
            assert len(pair.kicks) == number
            assert looks(pair) == 1
            assert gatherer.looked <= 2 * number
        assert (pair.device.outstanding, pair.device.requests, pair.device.bytes) == (0, 0, 0)


class Picky(Consumer):
    """Has `wanted` uses for buffers, and looks at one more each time; `useless`: it is mistaken, once."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = 0
        self.useless = False

    def accepts(self, queue: int) -> bool:
        return self.useless or self.wanted > 0

    def take(self, buffer: Buffer) -> None:
        if self.useless:
            self.useless = False
            buffer.give_back()
            return
        more = buffer.next()
        if more is not None:
            more.give_back()
        self.wanted -= 1
        buffer.complete(0)


@FORMATS
@EVENTS
@pytest.mark.parametrize("order", [(), (IN_ORDER,)], ids=["any-order", "in-order"])
def test_a_consumer_that_wants_no_more_has_what_is_there_later(
    packed: tuple[int, ...], events: tuple[int, ...], order: tuple[int, ...]
) -> None:
    """It takes a buffer, finds that it needs none and gives it back: the queue waits for it, not for a kick.

    What it gives back of others, while it used the first, ends no turn.
    """
    picky = Picky()
    with Pair(8, (*packed, *events, *order), consumer=picky) as pair:
        heads = [pair.add(0, 1) for _ in range(8)]
        picky.useless = True
        looks(pair)
        assert pair.device.waiting
        for count in (1, 4, 3):
            picky.wanted = count
            looks(pair)
            assert picky.wanted == 0
            assert [done.head for done in pair.collect()] == heads[:count]
            del heads[:count]
            picky.useless = True
            looks(pair)
            assert pair.device.waiting == bool(heads)


@FORMATS
@EVENTS
def test_what_the_driver_adds_meanwhile_is_seen(packed: tuple[int, ...], events: tuple[int, ...]) -> None:
    """The driver adds between the last look and the wish for kicks: there is another look, without a kick."""

    class Meanwhile(Gatherer):
        def take(self, buffer: Buffer) -> None:
            super().take(buffer)
            if self.looked == 1:
                pair.add(0, 1, kick=False)

    gatherer = Meanwhile(2)
    with Pair(8, (*packed, *events), consumer=gatherer) as pair:
        pair.add(0, 1)
        looks(pair)
        assert [len(group) for group in gatherer.groups] == [2]


@FORMATS
def test_only_the_last_one_goes_back(packed: tuple[int, ...]) -> None:
    with Pair(8, packed) as pair:
        for _ in range(2):
            pair.add()
        looks(pair)
        first, second = pair.consumer.kept
        with pytest.raises(RuntimeError, match="buffer 1 of 2"):
            first.give_back()
        second.give_back()
        first.give_back()
        assert pair.device.outstanding == 0
        # Once is enough.
        first.give_back()
        first.complete(1)
        pair.settle()
        assert pair.collect() == []
        pair.consumer.kept.clear()
        looks(pair)
        assert pair.device.outstanding == 2


@FORMATS
def test_buffers_of_an_earlier_life_do_nothing(packed: tuple[int, ...]) -> None:
    with Pair(8, packed) as pair:
        pair.add()
        pair.add()
        pair.consumer.room = 1
        looks(pair)
        (buffer,) = pair.consumer.kept
        pair.device.abandon()
        assert buffer.next() is None
        buffer.give_back()
        buffer.complete(1)
        pair.settle()
        assert pair.device.outstanding == 0
        assert pair.collect() == []
