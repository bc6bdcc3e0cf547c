"""`plaudit top`: the loop as it goes, live in a terminal, or once for scripts.

    LoopService, PolicyService (--control) ──┐
                                             ├──▶ Snapshot (top_view.py) ──▶ terminal | text | JSON
    Prometheus endpoints (--metrics) ────────┘

Each source is asked by a task of its own; one that is away is said to be, and asked again.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit_cli.common import DEFAULT_CONTROL, Control, connect, fail, failures, typed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, Group

    from plaudit_cli.top_view import Snapshot
    from plaudit_client import AsyncClient, Loop, PlauditError, Policies

LEARNER_METRICS, SERVER_METRICS, MOST_SERVERS = 9464, 9465, 8
"""Where `plaudit up` serves the metrics of its learner and of its first server; so many servers are looked for."""
_AGAIN_SECONDS = 2.0
_ONCE_SECONDS = 1.0  # between the two looks at counters that a rate takes
_TIMEOUT_SECONDS = 5.0


def top(
    control: Control = DEFAULT_CONTROL,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A server's or learner's Prometheus endpoint, http://HOST:PORT/metrics; may be repeated. Left out: "
            "those of `plaudit up` on this machine.",
        ),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between two looks at metrics.")] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print it once, as text; so it is where the output is no terminal.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it once, as one JSON object.")] = False,
) -> None:
    """How serving and learning go: speed, votes, approval by version, the learner, releases. q ends it."""
    from rich.console import Console

    console = Console(highlight=False)
    source = Source(control, metrics)
    with failures():
        if as_json or once or not console.is_terminal:
            snapshot = asyncio.run(source.look_once())
            if snapshot.loop_error and not any(not error for error in snapshot.endpoints.values()):
                fail(
                    f"nothing answers: {snapshot.loop_error}; start it with `plaudit up`, or give --control, --metrics"
                )
            _print(console, snapshot, as_json=as_json)
        else:
            asyncio.run(_live(console, source, interval))


class Source:
    """Asks everybody; keeps what was seen last."""

    def __init__(self, control: str, metrics: list[str] | None) -> None:
        from plaudit_cli.scrape import Endpoint

        self._control = control
        self._loop: Loop | None = None
        self._policies: Policies | None = None
        self._errors = {"loop": "not asked yet", "policies": "not asked yet"}
        if metrics:
            self._endpoints = [Endpoint(url) for url in metrics]
        else:
            known = [LEARNER_METRICS, SERVER_METRICS]
            more = range(SERVER_METRICS + 1, SERVER_METRICS + MOST_SERVERS)
            self._endpoints = [Endpoint(_local(port)) for port in known]
            self._endpoints += [Endpoint(_local(port), optional=True) for port in more]

    def snapshot(self) -> Snapshot:
        """What is known now."""
        from plaudit_cli.scrape import serving
        from plaudit_cli.top_view import Snapshot

        return Snapshot(
            time=datetime.now(UTC),
            control=self._control,
            loop=self._loop,
            loop_error=self._errors["loop"],
            policies=self._policies,
            policies_error=self._errors["policies"],
            serving=serving(self._endpoints),
            endpoints={endpoint.url: endpoint.error for endpoint in self._endpoints if endpoint.known},
        )

    async def look_once(self) -> Snapshot:
        """Ask each once, and the metrics twice, a second apart, for the rates. Raises CommandError."""
        async with connect(self._control, timeout=_TIMEOUT_SECONDS) as client:
            await asyncio.gather(self._ask_loop(client), self._ask_policies(client), self._scrape())
        if any(not endpoint.error for endpoint in self._endpoints):
            await asyncio.sleep(_ONCE_SECONDS)
            await self._scrape()
        return self.snapshot()

    @asynccontextmanager
    async def followed(self, interval: float, changed: Callable[[], None]) -> AsyncIterator[None]:
        """Ask all of them again and again meanwhile; `changed` is called after each answer. Raises CommandError."""
        async with connect(self._control, timeout=_TIMEOUT_SECONDS) as client:
            asked = [
                asyncio.create_task(_repeat(ask, seconds, changed))
                for ask, seconds in (
                    (lambda: self._watch_loop(client, changed), _AGAIN_SECONDS),
                    (lambda: self._ask_policies(client), _AGAIN_SECONDS),
                    (self._scrape, interval),
                )
            ]
            try:
                yield
            finally:
                for task in asked:
                    task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)

    async def _watch_loop(self, client: AsyncClient, changed: Callable[[], None]) -> None:
        from plaudit_client import PlauditError

        try:
            async for loop in client.watch_loop():
                self._loop, self._errors["loop"] = loop, ""
                changed()
        except PlauditError as error:
            self._errors["loop"] = _words(error)

    async def _ask_loop(self, client: AsyncClient) -> None:
        from plaudit_client import PlauditError

        try:
            self._loop, self._errors["loop"] = await client.get_loop(), ""
        except PlauditError as error:
            self._errors["loop"] = _words(error)

    async def _ask_policies(self, client: AsyncClient) -> None:
        from plaudit_client import PlauditError

        try:
            self._policies, self._errors["policies"] = await client.list_policies(), ""
        except PlauditError as error:
            self._errors["policies"] = _words(error)

    async def _scrape(self) -> None:
        await asyncio.gather(*(endpoint.scrape() for endpoint in self._endpoints))


async def _repeat(ask: Callable[[], Awaitable[None]], seconds: float, changed: Callable[[], None]) -> None:
    while True:
        await ask()
        changed()
        await asyncio.sleep(seconds)


async def _live(console: Console, source: Source, interval: float) -> None:
    """Until q is pressed, or Ctrl-C."""
    from rich.live import Live

    from plaudit_cli.top_view import ASCII, UNICODE, render

    glyphs = ASCII if console.options.ascii_only else UNICODE
    news, ended = asyncio.Event(), asyncio.Event()

    def shown() -> Group:
        return render(source.snapshot(), width=console.width, height=console.height, glyphs=glyphs)

    def pressed(keys: str) -> None:
        if "q" in keys.lower():
            ended.set()
            news.set()

    with Live(shown(), console=console, screen=True, auto_refresh=False) as live, _keys(pressed):
        async with source.followed(interval, news.set):
            while not ended.is_set():
                live.update(shown(), refresh=True)
                with suppress(TimeoutError):  # then the clock, and how long ago things were, go on
                    await asyncio.wait_for(news.wait(), 1.0)
                news.clear()


@contextmanager
def _keys(pressed: Callable[[str], None]) -> Iterator[None]:
    """Tell of each key at once, and show none, while the standard input is a terminal."""
    if not typed():
        yield
        return
    import os
    import termios
    import tty

    stdin, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(stdin)
    tty.setcbreak(stdin)
    loop.add_reader(stdin, lambda: pressed(os.read(stdin, 64).decode(errors="replace")))
    try:
        yield
    finally:
        loop.remove_reader(stdin)
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _print(console: Console, snapshot: Snapshot, *, as_json: bool) -> None:
    from plaudit_cli.top_view import ASCII, UNICODE, render

    if as_json:
        print(json.dumps(snapshot.to_json()))
        return
    glyphs = ASCII if console.options.ascii_only else UNICODE
    # A pipe has no width: whoever reads it wants whole lines.
    width = console.width if console.is_terminal else None
    console.print(render(snapshot, width=width, glyphs=glyphs), soft_wrap=width is None)


def _local(port: int) -> str:
    return f"http://127.0.0.1:{port}/metrics"


def _words(error: PlauditError) -> str:
    return getattr(error, "message", "") or str(error)
