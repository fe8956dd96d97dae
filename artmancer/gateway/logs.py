"""Log lines: a JSON object a line for programs, words for a person at a terminal."""

import json
import logging
from datetime import datetime, timezone
from typing import Any

from .jobs import Job


def log_event(
    logger: logging.Logger, message: str, level: int = logging.INFO, **fields: Any
) -> None:
    """Log a message with fields; never an image or a prompt."""
    logger.log(level, message, extra={"fields": fields})


def log_job_ended(logger: logging.Logger, job: Job) -> None:
    """Log the end of a job."""
    log_event(
        logger,
        "job ended",
        job=job.id,
        workflow=job.workflow,
        state=job.state,
        seconds=round((job.finished or 0) - job.record.created, 3),
        error=job.error["error_type"] if job.error else None,
    )


class JsonLines(logging.Formatter):
    """Formats a record as JSON: time, level, logger, message, the fields of `log_event`, and the
    traceback where there is one.
    """

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
    """Formats a record for reading: time of day, level above info, message, fields."""

    def __init__(self) -> None:
        super().__init__("{asctime} {message}", "%H:%M:%S", "{")

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname}: " if record.levelno > logging.INFO else ""
        fields = getattr(record, "fields", {})
        text = "".join(f" {name}={value}" for name, value in fields.items())
        return f"{record.asctime} {level}{record.message}{text}"
