"""All rules for drivers, and what holds a function's driver to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pymodel.pci.function import Function
from pymodel.rules.breaches import Breaches
from pymodel.rules.changes import Changes
from pymodel.rules.checksums import Checksums
from pymodel.rules.commands import Commands
from pymodel.rules.disks import Disks
from pymodel.rules.initialization import Initialization
from pymodel.rules.network_commands import NetworkCommands
from pymodel.rules.networks import Networks
from pymodel.rules.notifications import Notifications
from pymodel.rules.queues import Queues
from pymodel.rules.registers import Registers
from pymodel.rules.rings import Rings
from pymodel.rules.rule import Rule
from pymodel.rules.topic import Topic

TOPICS: Final[tuple[type[Topic], ...]] = (
    Registers,
    Initialization,
    Queues,
    Notifications,
    Rings,
    Disks,
    Networks,
    Checksums,
    NetworkCommands,
    Changes,
    Commands,
)

RULES: Final[Mapping[str, Rule]] = {name: rule for topic in TOPICS for name, rule in topic.RULES.items()}
"""Every rule by its ID."""


def topics(function: Function, breaches: Breaches) -> list[Topic]:
    """Listeners that hold what `function`'s driver does against all rules, and count in `breaches`."""
    return [topic(function, breaches) for topic in TOPICS]
