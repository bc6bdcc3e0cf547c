"""What operators change under a running server: files that are read again when they change.

    read at the start ──▶ value ◀── looked at, at most once a second, when somebody asks
                            │ changed, and can be read: the new value
                            └ changed, and cannot: the last good value stays; logged once, and counted

So keys and certificates are renewed without a restart, and a slip of an editor shuts nobody out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from plaudit.file_state import FileState, file_state
from plaudit_server.metrics import ServerMetrics

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0

T = TypeVar("T")


class Reread(Generic[T]):
    """Call it for the value; it is the same object for as long as nothing has changed."""

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], T], metrics: ServerMetrics) -> None:
        """`what` names it in logs and metrics; a directory stands for its files. Raises what `read` raises."""
        self._what = what
        self._paths = paths
        self._read = read
        self._failures = metrics.reread_failures.labels(what)
        self._seen = self._look()
        self._value = read()
        self._next = time.monotonic() + _LOOK_SECONDS

    def __call__(self) -> T:
        """As the files say, or as they said when they could last be read; no older than a second."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOOK_SECONDS
            try:
                seen = self._look()
            except OSError:
                seen = []  # gone; whatever is wrong, reading it says
            if seen != self._seen:
                self._seen = seen
                self._again()
        return self._value

    def _again(self) -> None:
        try:
            self._value = self._read()
        except (OSError, ValueError) as error:
            self._failures.inc()
            log.error("%s cannot be read, what they said before stands: %s", self._what, error)
        else:
            log.info("%s were read again", self._what)

    def _look(self) -> list[FileState]:
        """What tells one state of the files from another."""
        files: list[Path] = []
        for path in self._paths:
            files += sorted(path.iterdir()) if path.is_dir() else [path]
        return [file_state(file) for file in files]
