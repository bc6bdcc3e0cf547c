"""What programs log (docs/observability.md): one line a record, for people or as JSON, with the trace it belongs to.

    2026-11-26T14:42:08Z INFO plaudit-server: serving v3 (was v2); v0, v2, v3 loaded (trace 4bf9…)
    {"time": "2026-11-26T14:42:08.123Z", "level": "info", "program": "plaudit-server", "message": "serving v3 …", …}

What a record has beside its words stands in `extra=fields(…)`: names and figures, in JSON only. Nobody's words, and no
user's id, are ever logged; what a library of others says at its own level is its own.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from plaudit import tracing

Format = Literal["human", "json"]
Level = Literal["debug", "info", "warning", "error"]

ACCESS = "plaudit.access"
"""The logger of calls: one line for each, when it has ended."""

_OURS = ("plaudit", "plaudit_server", "plaudit_learner", "plaudit_gateway", "plaudit_cli")
_SHOWN = ("INFO", "WARNING", "ERROR")
_HUMAN = re.compile(r"^\S+Z (INFO|WARNING|ERROR) plaudit-[\w-]+(?:\[\d+\])?: (.*)$")
_MOST_WAITING = 10_000  # lines about calls that are not written yet: about 5 MB


class Line(NamedTuple):
    """What `parse` makes of a line."""

    level: str
    message: str


def fields(**named: object) -> dict[str, Mapping[str, object]]:
    """For `extra`: what a record has beside its words; None is left out. `trace_id` instead of the current one's."""
    return {"fields": {name: value for name, value in named.items() if value is not None and value != ""}}


def start(program: str, form: Format, level: Level) -> None:
    """Log to standard error from now on. At `debug` only Plaudit's own modules say more, which may quote a request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(program) if form == "json" else HumanFormatter(program))
    handler.addFilter(_stamp)
    logging.basicConfig(level=logging.INFO if level == "debug" else level.upper(), handlers=[handler])
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())


@contextmanager
def calls_apart() -> Iterator[None]:
    """Write the lines of ACCESS in a thread of their own meanwhile: who reads slowly what is logged must not hold up
    replies. Where too many wait, more are dropped, and a warning says how many. After `start`.
    """
    access, handlers = logging.getLogger(ACCESS), logging.getLogger().handlers
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    apart, listener = _Apart(waiting), logging.handlers.QueueListener(waiting, *handlers)
    apart.addFilter(_stamp)
    access.addHandler(apart)
    access.propagate = False
    listener.start()
    try:
        yield
    finally:
        access.propagate = True
        access.removeHandler(apart)
        listener.stop()  # writes what waits


def parse(line: str) -> Line | None:
    """The level and the words of a line that a program of ours logged, in either form; None: of another, or of a call.

    What is told of calls is for machines: a person who looks on would see nothing else.
    """
    if match := _HUMAN.match(line):
        return Line(match[1], match[2])
    if line.startswith("{"):
        try:
            found = json.loads(line)
            level = str(found["level"]).upper()
            if str(found["program"]).startswith("plaudit-") and found["logger"] != ACCESS and level in _SHOWN:
                return Line(level, str(found["message"]))
        except (ValueError, KeyError, TypeError):
            pass
    return None


def _stamp(record: logging.LogRecord) -> bool:
    """Say which trace a record belongs to, in the thread and task that made it."""
    if not hasattr(record, "trace_id"):
        own = getattr(record, "fields", {}).get("trace_id")
        record.trace_id = own or tracing.trace_of(tracing.traceparent())
    return True


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))


class HumanFormatter(logging.Formatter):
    """A line for people; of calls, with a name that tells them apart."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See the module."""
        program = f"{self._program}/call" if record.name == ACCESS else self._program
        trace_id = getattr(record, "trace_id", "")
        trace = f" (trace {trace_id})" if trace_id else ""
        return f"{_time(record)}Z {record.levelname} {program}: {record.message}{trace}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        """See the module."""
        line: dict[str, object] = {
            "time": f"{_time(record)}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "program": self._program,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if trace_id := getattr(record, "trace_id", ""):
            line["trace_id"] = trace_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _Apart(logging.handlers.QueueHandler):
    """Hands records over as they are: they are formatted where they are written."""

    def __init__(self, waiting: queue.SimpleQueue[Any]) -> None:
        super().__init__(waiting)
        self._waiting = waiting
        self._dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        if self._waiting.qsize() >= _MOST_WAITING:  # counted here, so that the end of all always finds room
            self._dropped += 1
            return
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            log, words = logging.getLogger(__name__), "%d lines about calls were dropped: they are read too slowly"
            self._waiting.put(log.makeRecord(log.name, logging.WARNING, __file__, 0, words, (dropped,), None))
        self._waiting.put(record)
