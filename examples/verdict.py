"""Which rules the drivers broke so far; the status is 1 if one was a MUST, 2 if nobody could be asked.

See docs/driver-author.md.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from qemu.qmp import QMPClient, QMPError


async def main() -> int:
    """Ask the monitor at the path given."""
    monitor = QMPClient()
    await monitor.connect(sys.argv[1])
    rules: Any = await monitor.execute("query-rules")
    await monitor.disconnect()
    broken = [rule for rule in rules if rule["breaches"]]
    for rule in broken:
        for breach in rule["breaches"]:
            print(rule["rule"], rule["level"], breach["function"], breach["subject"] or "-", breach["count"])
    return int(any(rule["level"] in {"MUST", "MUST NOT"} for rule in broken))


try:
    sys.exit(asyncio.run(main()))
except (QMPError, IndexError) as error:
    print(f"no verdict: {error}", file=sys.stderr)
    sys.exit(2)
