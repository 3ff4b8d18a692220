"""The log: lines for people, or JSON objects for machines, on stderr; never what a request contains.

What comes from callers can neither begin a line of its own nor pass for another field. docs/operations.md lists the
fields.
"""

import json
import logging
import uuid
from datetime import UTC, datetime
from typing import Any

from heed.server.settings import LogFormat, LogLevel
from heed.server.telemetry.request_trace import RequestTrace

log = logging.getLogger("heed.requests")

MAX_ID = 64  # characters of a caller's id


def configure(format: LogFormat, level: LogLevel) -> None:
    """How this process logs from now on. `level` is heed's own; libraries say what is worth knowing, and no more."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    handler.addFilter(_is_no_callers_bytes)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("heed").setLevel(level.upper())


def _is_no_callers_bytes(record: logging.LogRecord) -> bool:
    """gRPC logs metadata that is not UTF-8, a token say, as it came and as often as it comes."""
    return not any(isinstance(argument, bytes) for argument in record.args or ())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


class TextFormatter(logging.Formatter):
    """A line for each record, and below it the lines of a traceback, indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")
        fields = "".join(f" {name}={_word(value)}" for name, value in _fields(record).items())
        return "\n    ".join([_printable(lines[0]) + fields, *map(_printable, lines[1:])])


def _printable(line: str) -> str:
    """Characters that would move the cursor or end a line are written as escapes."""
    if line.isprintable():
        return line
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in line)


def _word(value: object) -> str:
    """In quotes, unless it is plainly one word."""
    word = str(value)
    return word if word.isascii() and word.isprintable() and not set(word) & set(' "=\\') else json.dumps(word)


class JsonFormatter(logging.Formatter):
    """An object on one line for each record."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class RequestLog:
    """A line for each request that ends."""

    def __init__(self, level: int) -> None:
        self._level = level

    def request_ended(self, trace: RequestTrace) -> None:
        log.log(self._level, "request", extra={"fields": _fields_of(trace)})


def _fields_of(trace: RequestTrace) -> dict[str, Any]:
    """The fields of a request, without empty ones."""
    fields: dict[str, Any] = {
        "id": _id(trace),
        "method": trace.call.method,
        "model": trace.model,
        "version": trace.version,
        "code": trace.code,
        "reason": trace.reason,
        "reference": trace.reference,
        "rows": trace.rows,
        "tokens": trace.tokens,
        "ms": _milliseconds(trace.seconds),
        **{f"{stage.name}_ms": _milliseconds(stage.end - stage.begin) for stage in trace.stages},
        "peer": trace.call.peer,
        "trace_id": trace.trace_id,
    }
    return {name: value for name, value in fields.items() if value != ""}


def _id(trace: RequestTrace) -> str:
    """The caller's, if it is one: not too long, and nothing that could not be typed. Otherwise a new one."""
    return trace.id if 0 < len(trace.id) <= MAX_ID and trace.id.isprintable() else uuid.uuid4().hex


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)
