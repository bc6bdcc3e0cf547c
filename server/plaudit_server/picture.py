"""The picture of the loop that people look at: follows the progress topic, and keeps every step of every version.

    event log ─┬─ progress ──▶ learner, rounds ─┐
               └─ policies ──▶ steps ───────────┴──▶ Loop ──▶ LoopService (loop.py)

It reads the log through a connection of its own, and nothing is decided by it: whatever happens here, serving goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from google.protobuf.message import DecodeError

from plaudit.events import POLICIES, PROGRESS, Entry, EventLog, EventLogUnavailable
from plaudit.events.tail import Tail
from plaudit.v1.events_pb2 import PolicyEvent, Progress
from plaudit.v1.loop_pb2 import LearnerReport, Loop, ReleaseStep, RoundReport

log = logging.getLogger(__name__)

_WAIT_SECONDS = 10.0  # for news, which end it at once; and so does the end of the log
_RETRY_SECONDS = 2.0
_SCHEMA_VERSION = 1
_MOST_ROUNDS = 100
_MOST_STEPS = 500
_MOST_BYTES = 3 << 20  # gRPC's clients take 4 MiB


class Picture:
    """One task that keeps `loop` at what the event log says."""

    def __init__(self, event_log: EventLog) -> None:
        """event_log: opened for this alone, so that nobody waits for what is read here. Closed by whoever opened it."""
        self.loop = Loop()
        """As it is now: made anew at each change, never changed itself."""
        self._log = event_log
        self._changed = asyncio.Condition()
        self._forget()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self._follow()
            except EventLogUnavailable as error:
                log.warning("how the loop goes cannot be read: %s", error)
            except Exception:  # that nobody foresaw: what people look at is not worth an end of serving
                log.exception("how the loop goes cannot be read")
            await asyncio.sleep(_RETRY_SECONDS)

    async def changed(self, shown: Loop | None) -> None:
        """Wait until `loop` is another than `shown`, or `wake` is called."""
        async with self._changed:
            if self.loop is shown:
                await self._changed.wait()

    async def wake(self) -> None:
        """End every wait of `changed` now."""
        async with self._changed:
            self._changed.notify_all()

    async def _follow(self) -> None:
        tail = Tail(self._log, POLICIES, PROGRESS)
        while True:
            anew, entries = await asyncio.to_thread(tail.read, _WAIT_SECONDS)
            if anew:
                self._forget()
            for entry in entries:
                try:
                    self._take(entry)
                except DecodeError as error:
                    log.warning("%s at offset %d passed over: %s", entry.topic, entry.offset, error)
            if entries:
                self.loop = self._draw()
                await self.wake()

    def _forget(self) -> None:
        self._learner: LearnerReport | None = None
        self._rounds: dict[int, RoundReport] = {}
        self._steps: deque[ReleaseStep] = deque(maxlen=_MOST_STEPS)

    def _take(self, entry: Entry) -> None:
        """Raises DecodeError."""
        if entry.topic == POLICIES:
            step = _step(PolicyEvent.FromString(entry.value))
            if step not in self._steps:  # said again, with a new tally or by a learner that came back: no step
                self._steps.append(step)
            return
        progress = Progress.FromString(entry.value)
        if progress.schema_version != _SCHEMA_VERSION:
            return
        if progress.HasField("learner"):
            self._learner = progress.learner
        elif progress.HasField("round"):
            self._rounds[progress.round.number] = progress.round
            for old in sorted(self._rounds)[:-_MOST_ROUNDS]:
                del self._rounds[old]

    def _draw(self) -> Loop:
        loop = Loop(
            learner=self._learner,
            rounds=[self._rounds[number] for number in sorted(self._rounds)],
            releases=self._steps,
        )
        while loop.ByteSize() > _MOST_BYTES and (loop.rounds or loop.releases):
            del loop.rounds[: len(loop.rounds) // 2 + 1], loop.releases[: len(loop.releases) // 2]
        return loop


def _step(event: PolicyEvent) -> ReleaseStep:
    return ReleaseStep(
        policy_version=event.version,
        parent=event.parent,
        state=event.state,
        reason=event.reason,
        actor=event.actor,
        time=event.time,
        share=event.share,
    )
