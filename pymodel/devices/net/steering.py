"""Which receive queue a frame goes to. virtio 1.4, "Device operation in multiqueue mode"."""

from __future__ import annotations

import zlib
from typing import Final

from pymodel.devices.net.flow import HEAD, Flow, Toeplitz
from pymodel.devices.net.settings import Settings
from pymodel.spec import net

FLOWS_MAX: Final = 4096
"""Flows whose queue automatic steering remembers; beyond that it forgets those it has had for longest."""

NO_HASH: Final = (0, net.HASH_REPORT_NONE)


class Steering:
    """The receive steering that settings call for, with what it has learnt since."""

    HEAD = HEAD

    def __init__(self, settings: Settings, *, report: bool) -> None:
        self._rss = settings.rss
        self.pairs = settings.pairs
        self._flow = Flow()
        self.toeplitz = (
            Toeplitz(settings.hash_key, settings.hash_types)
            if settings.hash_types and (report or settings.rss is not None)
            else None
        )
        self._flows: dict[bytes, int] = {}
        self.looks = self.pairs > 1 or self.toeplitz is not None or self._rss is not None
        """Whether `choose` needs a frame's first bytes."""

    @property
    def single(self) -> bool:
        """Whether there is one queue only that a frame can go to, the first one."""
        if self._rss is not None:
            return not self._rss.unclassified and not any(self._rss.table)
        return self.pairs == 1

    @property
    def learns(self) -> bool:
        """Whether `sent` is of use."""
        return self._rss is None and self.pairs > 1

    @property
    def fixed(self) -> bool:
        """Whether the driver chose the queues, so that no other one may be taken."""
        return self._rss is not None

    def sent(self, pair: int, head: bytes) -> None:
        """The driver sent a frame that begins with `head` by queue `pair`: what comes back belongs there."""
        flow = self._flow.load(head)
        if not flow.version:
            return
        key = flow.reverse_key
        if self._flows.pop(key, None) is None and len(self._flows) >= FLOWS_MAX:
            del self._flows[next(iter(self._flows))]
        self._flows[key] = pair

    def choose(self, head: bytes) -> tuple[int, tuple[int, int]]:
        """The queue pair for a frame that begins with `head`, and its (hash value, hash report)."""
        flow = self._flow.load(head)
        value, report = NO_HASH
        if self.toeplitz is not None and self.toeplitz.of(flow):
            value, report = self.toeplitz.value, self.toeplitz.report
        if self._rss is not None:
            if report == net.HASH_REPORT_NONE:
                return self._rss.unclassified, NO_HASH
            return self._rss.table[value & (len(self._rss.table) - 1)], (value, report)
        pair = 0
        if flow.version and self.pairs > 1:
            known = self._flows.get(flow.key, self.pairs)
            # A queue that is in use no more counts as unknown.
            pair = known if known < self.pairs else zlib.crc32(flow.key) % self.pairs
        return pair, (value, report)
