"""Log lines: JSON for programs, an object a line; words for a person at a terminal."""

import json
import logging
from datetime import datetime, timezone
from typing import Any


def tell(logger: logging.Logger, message: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log a message with fields of its own; pictures and prompts are none of them."""
    logger.log(level, message, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """time, level, logger, message, the fields of `tell`, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class PlainLines(logging.Formatter):
    """The same for reading: time of day, level where it is worse than info, message, fields."""

    def __init__(self) -> None:
        super().__init__("{asctime} {message}", "%H:%M:%S", "{")

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname}: " if record.levelno > logging.INFO else ""
        fields = getattr(record, "fields", {})
        told = "".join(f" {name}={value}" for name, value in fields.items())
        return f"{record.asctime} {level}{record.message}{told}"
