"""What all programs have in common: one for each directory, stopped when asked, one line a log record."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from plaudit import logs


class Occupied(Exception):
    """Another process has this directory."""


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Hold `directory` (made if it is not there) for this process, until it ends however it ends.

    Raises Occupied if another process holds it, OSError if it cannot be made.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Occupied(f"another process uses {directory}: stop it, or give another directory") from None
        yield


def on_stop(stop: Callable[[], object], *, exit_with_parent: bool) -> None:
    """Call `stop`, in the main thread's signal handler, on the first request to stop; a second signal exits at once.

    With `exit_with_parent`, the end of standard input is such a request: the supervisor holds the other end of the pipe
    and never writes, so the pipe ends when the supervisor does, however it dies.
    """
    asked = threading.Event()

    def on_signal(number: int, _frame: object) -> None:
        if asked.is_set():
            os._exit(128 + number)
        asked.set()
        stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)

    if exit_with_parent:

        def wait_for_end() -> None:
            while os.read(sys.stdin.fileno(), 1024):
                pass
            if not asked.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=wait_for_end, name="lifeline", daemon=True).start()


def log_to_stderr(program: str, form: logs.Format = "human", level: logs.Level = "info") -> None:
    """One line a record, with the time (UTC), the level and the program."""
    logs.start(program, form, level)
