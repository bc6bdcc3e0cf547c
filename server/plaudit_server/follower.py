"""Follows the policy topic: what is announced is fetched, verified, loaded beside the old version, then served.

    event log ──▶ Releases (fold) ─┬▶ stable? ──▶ fetch + verify ──▶ engine.load ──▶ router.serving
                                   │    │ not the one served            │ refused: say so, serve on what is served
                                   │    └───────────────────────────────┘ (rather than v0 on what was promoted before),
                                   │                                      and try again later
                                   └▶ canary? ──▶ the same ──▶ router.canary, or none: the stable one is served

New requests get the new version only once it is loaded; requests in flight stay with theirs, and a version is unloaded
after its last stream. The stable version, the canary and the one that a roll-back would return to are kept loaded, in
this order where there are fewer places. Where every place is taken by versions whose streams still run, a new version
waits for the first of them to end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from plaudit import logs, tracing
from plaudit.artifacts import ArtifactError, Manifest, PolicyStore
from plaudit.events import POLICIES, EventLog, EventLogUnavailable
from plaudit.events.tail import Tail
from plaudit.releases import BASE, Releases
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_server.engine import Engine, EngineError, PolicyVersion
from plaudit_server.metrics import ServerMetrics
from plaudit_server.router import Router

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # between two looks at what the log says nothing of: streams that ended, loads that failed
_RETRY_SECONDS = 2.0
_FETCH_SECONDS = 5.0


class NoRoom(Exception):
    """Every place for a version is taken by one with running streams."""


def _why(failure: ArtifactError | EngineError | NoRoom) -> str:
    """As metrics name it."""
    if isinstance(failure, NoRoom):
        return "no_room"
    return "artefact" if isinstance(failure, ArtifactError) else "engine"


class Follower:
    """One task that keeps `router` at what the event log says."""

    def __init__(
        self,
        event_log: EventLog,
        store: PolicyStore,
        engine: Engine,
        router: Router,
        metrics: ServerMetrics,
        *,
        copies: Path,
        base_model_sha256: str,
        max_versions: int,
    ) -> None:
        self.releases = Releases()
        self.caught_up = asyncio.Event()
        """Set once everything announced so far was read and the stable version is served; or the newest promoted one
        that can be loaded; or the base model, if none can be, as where the store is away."""
        self.failures: dict[str, str] = {}
        """Why a version could not be served here, in words."""
        self._tail = Tail(event_log, POLICIES)
        self._store = store
        self._engine = engine
        self._router = router
        self._metrics = metrics
        self._copies = copies
        self._base_model_sha256 = base_model_sha256
        self._max_versions = max_versions
        self._copies_left = True  # of versions that nothing needs; at first those of the process before
        self._fetching: dict[str, asyncio.Task[tuple[Path, Manifest]]] = {}
        self._retry_at: dict[str, float] = {}
        self._moved = asyncio.Condition()
        self._followed = 0  # the offset up to which everything was not only read but acted upon
        metrics.serve(router.serving.name)

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                patience = _LOOK_SECONDS if self.caught_up.is_set() else 0.0
                anew, entries = await asyncio.to_thread(self._tail.read, patience)
            except EventLogUnavailable as error:
                self._metrics.event_log_failures.inc()
                log.warning("policies cannot be read, %s goes on being served: %s", self._router.serving.name, error)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if anew:
                # A new log knows no versions until the learner has announced them again: until then what is served
                # stays.
                self.releases = Releases()
                self._followed = 0
            for entry in entries:
                try:
                    self.releases.read(entry.value, entry.offset)
                except ValueError as error:
                    log.error("policy event at offset %d passed over: %s", entry.offset, error)
            if entries and not self.caught_up.is_set():
                continue  # read all that is there before loading anything: only the last stable version matters
            if not self.releases.empty:
                await self._converge()
            self.caught_up.set()
            async with self._moved:
                self._followed = self._tail.offset
                self._moved.notify_all()
            # Whoever waits for a step has seen it by now: this may take long, while an engine starts for instance.
            if not self.releases.empty:
                await self._tidy()

    async def followed(self, version: str, offset_known: int, seconds: float) -> None:
        """Wait until an event of `version` newer than offset `offset_known` was followed here, or `seconds` passed.

        Raises TimeoutError.
        """
        async with self._moved:
            await asyncio.wait_for(
                self._moved.wait_for(lambda: offset_known < self.releases.offset(version) < self._followed), seconds
            )

    async def moved(self) -> None:
        """Wait until something may have changed: within a second, unless the event log is away."""
        async with self._moved:
            await self._moved.wait()

    async def wake(self) -> None:
        """End every wait of `moved` now."""
        async with self._moved:
            self._moved.notify_all()

    async def _converge(self) -> None:
        """One step towards serving what is in service; leaves everything as it is if that cannot be done now."""
        self._router.kept = frozenset(self._kept())  # first: what is out from here on takes no new streams
        if self._router.canary is not None and self._router.canary.name != self.releases.canary:
            left = self._router.canary.name
            log.info("%s is no longer the canary", left, extra=self._told(left, "canary withdrawn"))
            self._router.canary = None  # before anything is loaded: its place may be needed
        for wanted in self._wanted():
            if await self._serve(wanted):
                break
        else:
            if self._router.serving.name == BASE:  # a server that has just started, for instance
                await self._serve_older()
        await self._try_canary()

    async def _tidy(self) -> None:
        """Load what a roll-back would need, which is to take effect within seconds, and unload what nothing needs.

        Its copy goes, too: copies share their disk with the outbox.
        """
        kept = self._kept()
        if self.releases.previous in kept and self.releases.previous not in self._router.loaded:
            await self._load(self.releases.previous)
        while unused := self._router.unused(keep=set(kept)):
            await self._unload(unused[0])
        if self._copies_left and not self._fetching:  # last: nothing is being loaded now
            self._copies_left = False
            await asyncio.to_thread(self._store.forget_others, self._copies, {*kept, *self._router.loaded})

    def _wanted(self) -> list[str]:
        """The stable version; and if what is served was rolled back, what else was promoted, the last one first."""
        served = self.releases.policy(self._router.serving.name)
        if served is not None and served.state == PolicyState.POLICY_STATE_ROLLED_BACK:
            return self.releases.promoted()[::-1]
        return [self.releases.stable]

    async def _serve_older(self) -> None:
        """Rather than the base model the newest version that was promoted before the stable one and can be loaded."""
        try:
            stored = await asyncio.to_thread(self._store.versions)
        except ArtifactError:  # away: to try each of them would take as many times as long, and who starts waits for it
            return
        for older in self.releases.promoted()[-2::-1]:
            if older in [BASE, *stored] and await self._serve(older):
                break

    async def _serve(self, name: str) -> bool:
        """Give new requests this version; False if it cannot be loaded now."""
        before = self._router.serving.name
        if name == before:
            return True
        if name not in self._router.loaded and not await self._load(name):
            return False
        self._router.serving = self._router.loaded[name]
        self._metrics.serve(name)
        loaded = ", ".join(self._router.loaded)
        log.info("serving %s (was %s); %s loaded", name, before, loaded, extra=self._told(name, "serving"))
        return True

    async def _try_canary(self) -> None:
        """Give a share of conversations the canary; none, if there is none or it cannot be loaded now."""
        name, router = self.releases.canary, self._router
        if name is not None and (name in router.loaded or await self._load(name)):
            share = self.releases.share(name)
            if router.canary is None or router.share != share:
                told = self._told(name, "canary")
                log.info("%s is the canary, at %.3g of conversations", name, share, extra=told)
            router.canary, router.share = router.loaded[name], share
        self._metrics.try_out(router.canary.name if router.canary else None, router.share)

    def _kept(self) -> list[str]:
        """What is to be loaded, the most important first: no more than there are places."""
        wanted = dict.fromkeys([self.releases.stable, self.releases.canary or BASE, self.releases.previous])
        return [name for name in wanted if name != BASE][: self._max_versions]

    async def _load(self, name: str) -> bool:
        """Fetch, verify, load; False if that fails or there is no room, and `failures` says why."""
        if time.monotonic() < self._retry_at.get(name, 0.0):
            return False
        event = self.releases.event(name)
        span = tracing.span(f"load {name}", attributes={"plaudit.policy_version": name})
        span.link(event.traceparent if event else "")  # to the round that made it, or to who promoted it by hand
        try:
            await self._make_room(name)
            version = PolicyVersion(name=name, adapter=await self._fetched(name, event))
            await self._engine.load(version)
        except (ArtifactError, EngineError, NoRoom) as error:
            if self.failures.get(name) != str(error):  # once for each reason, not at every attempt
                served, told = self._router.serving.name, self._told(name, "refused")
                log.error("%s REFUSED, %s goes on being served: %s", name, served, error, extra=told)
            self.failures[name] = str(error)
            self._retry_at[name] = time.monotonic() + _RETRY_SECONDS
            self._metrics.version_failures.labels(_why(error)).inc()
            span.fail(type(error).__name__)
            return False
        finally:
            span.end()
        self._router.loaded[name] = version
        self._metrics.load(name)
        self.failures.pop(name, None)
        return True

    async def _fetched(self, name: str, event: PolicyEvent | None) -> Path:
        """The copy of a version. Raises ArtifactError, also if the store takes its time: it is waited for meanwhile.

        A store that hangs must hold up nothing else, least of all a roll-back. Only a server that has just started has
        nothing better to do.
        """
        if name not in self._fetching:
            fetch = partial(
                self._store.fetch,
                name,
                self._copies,
                base_model_sha256=self._base_model_sha256,
                manifest_sha256=event.manifest_sha256 if event else None,
            )
            self._fetching[name] = asyncio.create_task(asyncio.to_thread(fetch))
        await asyncio.wait({self._fetching[name]}, timeout=_FETCH_SECONDS if self.caught_up.is_set() else None)
        if not self._fetching[name].done():
            raise ArtifactError(f"version {name}: the policy store has not sent it yet; it is waited for")
        path, _ = self._fetching.pop(name).result()
        return path

    def _told(self, name: str, step: str) -> dict[str, Mapping[str, object]]:
        """What a line about a version has beside its words: the trace of the round, or of the call, that it came of."""
        event = self.releases.event(name)
        trace_id = tracing.trace_of(event.traceparent) if event else ""
        return logs.fields(step=step, policy_version=name, trace_id=trace_id)

    async def _make_room(self, wanted: str) -> None:
        """Unload what no stream uses until one more fits. Raises NoRoom: the next round tries again."""
        kept = self._kept()
        ahead = set(kept[: kept.index(wanted)]) if wanted in kept else set()
        while sum(name != BASE for name in self._router.loaded) >= self._max_versions:
            unused = self._router.unused(keep=set(kept)) or self._router.unused(keep=ahead)
            if not unused:
                raise NoRoom(f"{self._max_versions} versions still have streams; it waits for one of them to end")
            await self._unload(unused[0])

    async def _unload(self, version: PolicyVersion) -> None:
        self._metrics.unload(version.name)
        del self._router.loaded[version.name]  # first, so that no request can be pinned to it any more
        try:
            await self._engine.unload(version)
        except EngineError as error:
            log.warning("%s could not be unloaded: %s", version.name, error)
        self._copies_left = True
