"""What a person sees of a simulation: a live table in a terminal, plain lines elsewhere, a summary at the end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from plaudit_cli.tally import Summary

_LINE_EVERY = 10.0  # seconds between plain lines


class Scoreboard:
    """Approval by policy version. Leaving it, by Ctrl-C or failure too, leaves the last state on the screen."""

    def __init__(self, title: str, conversations: int, console: Console | None = None) -> None:
        self._title = title
        self._conversations = conversations
        self._console = console or Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._summary = Summary()
        self._note = ""
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        else:
            self._print(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.update(self._table())
            self._live.stop()
        elif self._summary.versions:
            for line in self._lines():
                self._print(line)
        if self._summary.conversations:
            self._print(self._ending())

    def show(self, summary: Summary, *, last: bool = False) -> None:
        """Show how it stands."""
        new = len(summary.versions) != len(self._summary.versions)
        self._summary = summary
        if self._live:
            self._live.update(self._table())
        elif not last and (new or time.monotonic() - self._last_line > _LINE_EVERY):
            self._last_line = time.monotonic()
            scores = ", ".join(
                f"{version} {tally.rate:.2f} ({tally.votes})" for version, tally in summary.versions.items()
            )
            self._print(f"{summary.conversations}/{self._conversations}  approval: {scores}")

    def note(self, text: str) -> None:
        """Say something about what is going on."""
        self._note = text
        if self._live:
            self._live.update(self._table())
        else:
            self._print(text)

    def _table(self) -> Table:
        progress = f"{self._summary.conversations}/{self._conversations} conversations"
        table = Table(title=Text(self._title), caption=Text(" · ".join(filter(None, (progress, self._note)))))
        for column in ("version", "votes", "up", "approval", "95% interval", "without noise"):
            table.add_column(column, justify="left" if column == "version" else "right")
        for version, tally in self._summary.versions.items():
            low, high = tally.interval
            table.add_row(
                version,
                str(tally.votes),
                str(tally.up),
                f"{tally.rate:.3f}",
                f"{low:.3f} – {high:.3f}",
                f"{tally.true_rate:.3f}",
            )
        return table

    def _lines(self) -> list[str]:
        return [
            f"{version}: approval {tally.rate:.3f} (95% interval {tally.interval[0]:.3f} – {tally.interval[1]:.3f}), "
            f"{tally.up} up of {tally.votes} votes, without noise {tally.true_rate:.3f}"
            for version, tally in self._summary.versions.items()
        ]

    def _ending(self) -> str:
        summary = self._summary
        ending = f"{summary.votes} votes in {summary.seconds:.0f} s"
        if summary.skipped:
            ending += f"; {summary.skipped} prompts skipped: longer than the server takes"
        if summary.retries:
            ending += f"; {summary.retries} calls made again: the server was busy or away"
        if summary.vain_waits:
            ending += f"; {summary.vain_waits} waits for a newer version in vain"
        return ending

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
