"""All sections, in the standard's order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.driver_statements.admin import ADMIN
from tests.driver_statements.basic import BASIC
from tests.driver_statements.block import BLOCK
from tests.driver_statements.net import NET
from tests.driver_statements.net_commands import NET_COMMANDS
from tests.driver_statements.pci import PCI
from tests.driver_statements.rings import RINGS
from tests.driver_statements.statement import Sections, Statement

SECTIONS: Final[Sections] = {**BASIC, **RINGS, **ADMIN, **PCI, **BLOCK, **NET, **NET_COMMANDS}


def statements() -> Iterator[tuple[str, Statement]]:
    """Each statement, with its section."""
    for title, found in SECTIONS.items():
        yield from ((title, statement) for statement in found)
