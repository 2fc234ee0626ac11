"""The two dialects that a move can speak with a PF: the draft's contexts, and virtio 1.4's device parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vfu_client.move.by_context import ByContext
from vfu_client.move.by_parts import ByParts
from vfu_client.move.carrier import Carrier

CONTEXT: Final = "context"
DIALECTS: Final[Mapping[str, type[Carrier]]] = {CONTEXT: ByContext, "parts": ByParts}
