"""When a program is asked to stop: SIGTERM, SIGINT, or its supervisor gone."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable


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


def log_to_stderr(program: str) -> None:
    """One line a record, with the time (UTC), the level and the program."""
    import time

    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)sZ %(levelname)s {program}: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
