"""Log lines, as text or as JSON, each with the worker, the request and the trace that it belongs to."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

REQUEST_ID = b"x-request-id"

_request: ContextVar[str | None] = ContextVar("request", default=None)
_trace: ContextVar[str | None] = ContextVar("trace", default=None)

_SANE_ID = re.compile(rb"[!-~]{1,128}")
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


def set_up(level: str, form: Literal["text", "json"], worker: int | None = None) -> None:
    """Log to standard error. Of several workers, each says which one it is."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(worker) if form == "json" else TextLines(worker))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def begin_request(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """From here on log lines of this task belong to the request with these headers. Returns its id: the caller's, if
    that can be shown in a log, or a new one.
    """
    ids = [value for name, value in headers if name == REQUEST_ID]
    parents = [value for name, value in headers if name == b"traceparent"]
    sane = len(ids) == 1 and _SANE_ID.fullmatch(ids[0])
    request_id = ids[0].decode() if sane else uuid.uuid4().hex
    _request.set(request_id)
    _trace.set(_trace_id(parents[0]) if len(parents) == 1 else None)
    return request_id.encode()


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a line has besides its message: `extra={"fields": …}` of the call, and whose line it is."""
    given: dict[str, Any] = getattr(record, "fields", {})
    return given | {
        name: value for name, value in (("request_id", _request.get()), ("trace_id", _trace.get())) if value is not None
    }


class TextLines(logging.Formatter):
    """Lines for people."""

    def __init__(self, worker: int | None) -> None:
        """Of which worker, if there are several."""
        super().__init__(f"%(asctime)s %(levelname)s {'' if worker is None else f'worker {worker}: '}%(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        """The line without a traceback."""
        return " ".join((super().formatMessage(record), *_flat(fields(record))))


class JsonLines(logging.Formatter):
    """One JSON object per line."""

    def __init__(self, worker: int | None) -> None:
        """Of which worker, if there are several."""
        super().__init__()
        self._who = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        """The whole line, ASCII only, so that no terminal or collector can spoil it."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._who,
            **fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _trace_id(traceparent: bytes) -> str | None:
    """The trace id of a valid W3C `traceparent`: no version is ff, 00 ends after the flags, and zeros are no id."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace, parent, more = match.groups()
    valid = version != b"ff" and not (version == b"00" and more) and trace.strip(b"0") and parent.strip(b"0")
    return trace.decode() if valid else None


def _flat(given: Mapping[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield f"{name}={value}"
