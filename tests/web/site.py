"""A real server and a real gateway, and people who visit their page with a browser."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from playwright.sync_api import Browser, ConsoleMessage, Page

from plaudit.events import FEEDBACK, INTERACTIONS, PROGRESS, Record, from_beginning, open_log
from plaudit.v1.events_pb2 import Feedback, Interaction, Progress
from plaudit.v1.loop_pb2 import LearnerReport, RoundReport
from plaudit_client import AsyncClient
from plaudit_server.rpc import Addresses
from tests.fixtures_server import Deployment, until_serving
from tests.gateway.conftest import gateway

T = TypeVar("T")

WAIT = 15_000
"""Milliseconds that something on the page may take."""


@dataclass
class Site:
    """A server that can be stopped and started, and the gateway before it, in a loop of their own."""

    deployment: Deployment
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    url: str = ""
    addresses: Addresses | None = None
    _server: AsyncExitStack = field(default_factory=AsyncExitStack)
    _gateway: AsyncExitStack = field(default_factory=AsyncExitStack)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it in the loop of the site."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def start_server(self) -> None:
        """Where it was before, if it was."""
        # Long replies: a version must be able to arrive while one streams.
        limits: dict[str, Any] = {"max_context": 2048, "max_tokens": 1500, "default_max_tokens": 1500}
        if self.addresses is not None:
            limits |= {"listen": self.addresses.public, "control_listen": self.addresses.control}
        self.addresses = await self._server.enter_async_context(self.deployment.running(**limits))

    async def stop_server(self) -> None:
        await self._server.aclose()

    async def start_gateway(self) -> None:
        assert self.addresses is not None
        self.url = await self._gateway.enter_async_context(gateway(self.addresses))

    async def stop(self) -> None:
        await self._gateway.aclose()
        await self._server.aclose()

    def serve(self, version: str) -> None:
        """Wait until the server gives new requests `version`."""

        async def wait() -> None:
            assert self.addresses is not None
            async with AsyncClient(self.addresses.public, control=self.addresses.control) as client:
                await until_serving(client, version)

        self.do(wait())

    def records(self, topic: str) -> list[bytes]:
        """All of a topic in the event log, in its order."""
        with open_log(self.deployment.event_log) as log:
            return [entry.value for entry in log.read(from_beginning(log, topic), limit=10_000)]

    def feedback(self) -> list[Feedback]:
        return [Feedback.FromString(value) for value in self.records(FEEDBACK)]

    def report(self, key: str, report: LearnerReport | RoundReport) -> None:
        """Say in the event log what a learner would say of itself."""
        report.time.GetCurrentTime() if isinstance(report, LearnerReport) else report.started_at.GetCurrentTime()
        progress = Progress(schema_version=1)
        (progress.learner if isinstance(report, LearnerReport) else progress.round).MergeFrom(report)  # type: ignore[arg-type]
        with open_log(self.deployment.event_log) as log:
            log.append([Record(PROGRESS, key, progress.SerializeToString())])

    def interaction(self, response_id: str) -> Interaction:
        """The reply of that id, once it is in the event log: that may be after the page has all of it."""
        until = time.monotonic() + WAIT / 1000
        while time.monotonic() < until:
            for record in self.interactions():
                if record.response_id == response_id:
                    return record
            time.sleep(0.02)
        raise TimeoutError(f"reply {response_id} was not written to the event log")

    def everything(self) -> list[Interaction | Feedback]:
        """What a learner would take in."""
        return [*self.interactions(), *self.feedback()]

    def interactions(self) -> list[Interaction]:
        return [Interaction.FromString(value) for value in self.records(INTERACTIONS)]


class Visit:
    """One person's browser: a page with a storage of its own. Whatever it complains about is remembered."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        page.set_default_timeout(WAIT)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._asked)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(self.url):
            self.complaints.append(f"a request to a third party: {request.url}")

    def say(self, text: str) -> None:
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")

    def replied(self, count: int = 1) -> None:
        """Wait until so many replies are whole, each with its thumbs."""
        self.page.wait_for_function("count => document.querySelectorAll('.thumbs').length === count", arg=count)

    def sent(self) -> None:
        """Wait until no vote waits any more."""
        self.page.wait_for_function(
            "() => !Object.keys(localStorage).some((name) => name.startsWith('plaudit.outbox.'))"
        )


@contextmanager
def visiting(browser: Browser, site: Site, **options: Any) -> Iterator[Visit]:
    """Opens the page, as `options` of a browser context say."""
    context = browser.new_context(
        **{"locale": "en-GB", "viewport": {"width": 1100, "height": 800}, "reduced_motion": "reduce", **options}
    )
    try:
        visit = Visit(context.new_page(), site.url)
        visit.page.goto(site.url)
        yield visit
    finally:
        context.close()
