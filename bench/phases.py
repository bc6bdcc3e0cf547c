"""What a bench's program tells the one that started it: the CPU seconds of each update, and of its phases."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any


class Phases:
    """CPU seconds within some functions since it was last asked."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._began = time.process_time()

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added to that phase."""

        def timing(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self._spent[phase] = self._spent.get(phase, 0.0) + time.process_time() - began

        return timing

    def say(self, tokens: int) -> None:
        """Print a line of what was spent, and begin anew."""
        seconds = time.process_time() - self._began
        phases = {phase: round(spent, 3) for phase, spent in self._spent.items()}
        phases["other"] = round(seconds - sum(self._spent.values()), 3)
        print(json.dumps({"seconds": round(seconds, 3), "tokens": tokens, "phases": phases}), flush=True)

    def wait(self) -> None:
        """Until the next line comes in; ends the program if none does."""
        if not sys.stdin.readline():
            sys.exit(0)
        self._spent, self._began = {}, time.process_time()
