"""What a person sees while a run works: a bar on a terminal, lines of the log elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

_LINES = 10

Tell = Callable[[int, str], None]
"""Told how many more were done, and a few words on how it goes."""


@contextmanager
def stage(title: str, total: int) -> Iterator[Tell]:
    """A bar of `total` steps; gives what is to be called after each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    done = 0
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total, words="")
            yield lambda steps, words: bar.update(task, advance=steps, words=words)
        return

    def line(steps: int, words: str) -> None:
        nonlocal done
        before, done = done, done + steps
        if done * _LINES // max(1, total) > before * _LINES // max(1, total):
            log.info("%s: %d of %d%s", title, done, total, f", {words}" if words else "")

    yield line
