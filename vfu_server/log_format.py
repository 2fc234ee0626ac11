"""How lines of the log look: for people, or an object of JSON each."""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Callable, Mapping
from typing import Final


class JsonFormatter(logging.Formatter):
    """`time` (ISO 8601), `level`, `logger` and `message`; `exception` is a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        when = dt.datetime.fromtimestamp(record.created).astimezone()
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _for_people() -> logging.Formatter:
    return logging.Formatter(
        "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )


FORMATS: Final[Mapping[str, Callable[[], logging.Formatter]]] = {"text": _for_people, "json": JsonFormatter}
