"""Follows the policy topic: what is announced is fetched, verified, loaded beside the old version, then served.

    event log ──▶ Releases (fold) ──▶ stable? ──▶ fetch + verify ──▶ engine.load ──▶ router.serving
                                        │ not the one served            │ refused: say so, serve on what is served
                                        └───────────────────────────────┘ and try again later

New requests get the new version only once it is loaded; requests in flight stay with theirs, and a version is unloaded
after its last stream. The stable version and the one that a roll-back would return to stay loaded. Where every place is
taken by versions whose streams still run, a new version waits for the first of them to end.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from google.protobuf.message import DecodeError

from plaudit.artifacts import ArtifactError, PolicyStore
from plaudit.events import POLICIES, EventLog, EventLogUnavailable, from_beginning
from plaudit.releases import BASE, Releases
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit_server.engine import Engine, EngineError, PolicyVersion
from plaudit_server.metrics import ServerMetrics
from plaudit_server.router import Router

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_RETRY_SECONDS = 2.0


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
        """Set once everything announced so far was read and the stable version (or an older one) is served."""
        self.failures: dict[str, str] = {}
        """Why a version could not be served here, in words."""
        self._log = event_log
        self._store = store
        self._engine = engine
        self._router = router
        self._metrics = metrics
        self._copies = copies
        self._base_model_sha256 = base_model_sha256
        self._max_versions = max_versions
        self._moved = asyncio.Condition()
        self._positions: dict[tuple[str, int], int] = {}
        self._identity = ""  # of the log, while it is there
        self._known_identity = ""
        self._followed = 0  # the offset up to which everything was not only read but acted upon
        metrics.serve(router.serving.name)

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self._check_log()
                entries = await asyncio.to_thread(
                    self._log.read, self._positions, timeout=_POLL_SECONDS if self.caught_up.is_set() else 0.0
                )
            except EventLogUnavailable as error:
                log.warning("policies cannot be read, %s goes on being served: %s", self._router.serving.name, error)
                self._identity = ""
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            for entry in entries:
                self._positions[entry.topic, entry.partition] = entry.offset + 1
                try:
                    event = PolicyEvent.FromString(entry.value)
                except DecodeError:
                    log.error("policy event at offset %d is not one; passed over", entry.offset)
                    continue
                self.releases.apply(event, entry.offset)
            if entries and not self.caught_up.is_set():
                continue  # read all that is there before loading anything: only the last stable version matters
            await self._converge()
            self.caught_up.set()
            async with self._moved:
                self._followed = max(self._positions.values())
                self._moved.notify_all()

    async def _check_log(self) -> None:
        """After the log was away: is it still the same one? Positions in one mean nothing in another."""
        if self._identity:
            return
        self._identity = await asyncio.to_thread(lambda: self._log.identity)
        if self._identity != self._known_identity:
            self._positions = from_beginning(self._log, POLICIES)
            self._known_identity = self._identity
            # A new log knows no versions until the learner has announced them again: until then what is served stays.
            self.releases = Releases()
            self._followed = 0

    async def followed(self, version: str, offset_known: int, seconds: float) -> None:
        """Wait until an event of `version` newer than offset `offset_known` was followed here, or `seconds` passed.

        Raises TimeoutError.
        """
        async with self._moved:
            await asyncio.wait_for(
                self._moved.wait_for(lambda: offset_known < self.releases.offset(version) < self._followed), seconds
            )

    async def _converge(self) -> None:
        """One step towards serving the stable version; leaves everything as it is if that cannot be done."""
        if self.releases.empty:
            return
        wanted = self.releases.stable
        if wanted != self._router.serving.name:
            try:
                version = await self._loaded(wanted)
            except (ArtifactError, EngineError) as error:
                if self.failures.get(wanted) != str(error):  # once for each reason, not every half second
                    log.error("%s REFUSED, %s goes on being served: %s", wanted, self._router.serving.name, error)
                self.failures[wanted] = str(error)
                self._metrics.version_failures.inc()
                await asyncio.sleep(_RETRY_SECONDS)
                return
            before = self._router.serving.name
            self._router.serving = version
            self._metrics.serve(version.name)
            self.failures.pop(wanted, None)
            log.info("serving %s (was %s); %s loaded", version.name, before, ", ".join(self._router.loaded))
        await self._unload_unused()

    async def _loaded(self, name: str) -> PolicyVersion:
        """`name`, loaded. Raises ArtifactError or EngineError."""
        if name in self._router.loaded:
            return self._router.loaded[name]
        event = self.releases.event(name)
        path, _ = await asyncio.to_thread(
            self._store.fetch,
            name,
            self._copies,
            base_model_sha256=self._base_model_sha256,
            manifest_sha256=event.manifest_sha256 if event else None,
        )
        version = PolicyVersion(name=name, adapter=path)
        await self._make_room()
        await self._engine.load(version)
        self._router.loaded[name] = version
        return version

    async def _make_room(self) -> None:
        while True:
            self._router.idle.clear()
            adapters = [name for name in self._router.loaded if name != BASE]
            if len(adapters) < self._max_versions:
                return
            unused = self._router.unused(keep=set())
            if unused:
                await self._unload(unused[0])
            else:
                await self._router.idle.wait()

    async def _unload_unused(self) -> None:
        for version in self._router.unused(keep={self.releases.stable, self.releases.previous}):
            await self._unload(version)

    async def _unload(self, version: PolicyVersion) -> None:
        del self._router.loaded[version.name]  # first, so that no request can be pinned to it any more
        try:
            await self._engine.unload(version)
        except EngineError as error:
            log.warning("%s could not be unloaded: %s", version.name, error)
