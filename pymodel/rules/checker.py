"""All rules for drivers, and what holds a function's driver to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pymodel.pci.function import Function
from pymodel.rules.breaches import Breaches
from pymodel.rules.commands import Commands
from pymodel.rules.initialization import Initialization
from pymodel.rules.notifications import Notifications
from pymodel.rules.queues import Queues
from pymodel.rules.rule import Rule
from pymodel.rules.topic import Topic

TOPICS: Final[tuple[type[Topic], ...]] = (Initialization, Queues, Notifications, Commands)

RULES: Final[Mapping[str, Rule]] = {name: rule for topic in TOPICS for name, rule in topic.RULES.items()}
"""Every rule by its ID."""


def topics(function: Function, breaches: Breaches) -> list[Topic]:
    """Listeners that hold what `function`'s driver does against all rules, and count in `breaches`."""
    return [topic(function, breaches) for topic in TOPICS]
