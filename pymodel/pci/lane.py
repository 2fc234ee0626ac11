"""A queue that a function's thread may serve by itself for a while."""

from __future__ import annotations

from typing import Final, NamedTuple

from pymodel.queue.engine import Engine

NOBODY: Final = -1
"""The driver wants no interrupt of a queue."""

ASK: Final = -2
"""An interrupt has to pass the function's masks or its INTx: `Function.service` sends it."""


class Lane(NamedTuple):
    """An engine, and what of its queue a thread has to know: valid as long as nobody had the function's lock.

    A notification is `name`, 16 bits, written to `offset` of BAR `region`. `vector` is where an interrupt
    goes to, or NOBODY or ASK. `kicked`: there may be buffers already.
    """

    engine: Engine
    region: int
    offset: int
    name: int
    vector: int
    kicked: bool
