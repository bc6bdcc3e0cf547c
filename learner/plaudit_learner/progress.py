"""Sends the learner's reports to the event log, beside the learning, and whatever becomes of them.

    say ──▶ the newest of each key ──▶ thread, every two seconds at most ──▶ topic plaudit.progress

Who says something never waits: while the log is away or slow, what is newer takes the place of what was not sent.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Self

from plaudit.events import PROGRESS, EventLog, EventLogUnavailable, Record, RecordRefused
from plaudit.v1.events_pb2 import Progress
from plaudit.v1.loop_pb2 import LearnerReport, RoundReport

log = logging.getLogger(__name__)

PAUSE_SECONDS = 2.0
"""Between two sendings."""
HEARTBEAT_SECONDS = 30.0
"""So often the last report is sent again where nothing changes: who looks sees that the learner lives."""
_CLOSE_SECONDS = 2.0
_SEND_SECONDS = 30.0
_LEARNER = "learner"


class ProgressSender:
    """A thread while it is entered; before and after that, it only keeps what is said."""

    def __init__(
        self, event_log: EventLog, *, pause: float = PAUSE_SECONDS, heartbeat: float = HEARTBEAT_SECONDS
    ) -> None:
        self._log = event_log
        self._pause = pause
        self._heartbeat = heartbeat
        self._said = threading.Condition()
        self._waiting: dict[str, Progress] = {}
        self._learner: LearnerReport | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send what waits, if that can be done in two seconds."""
        with self._said:
            self._stopping = True
            self._said.notify()
        self._thread.join(_CLOSE_SECONDS)

    def say_learner(self, report: LearnerReport) -> None:
        """To be sent if it differs from the one before; its `time` is set as it is sent."""
        with self._said:
            if report != self._learner:
                self._learner = LearnerReport()
                self._learner.CopyFrom(report)
                self._keep(_LEARNER, Progress(schema_version=1, learner=report))

    def say_round(self, report: RoundReport) -> None:
        """To be sent."""
        with self._said:
            self._keep(f"round-{report.number}", Progress(schema_version=1, round=report))

    def _keep(self, key: str, progress: Progress) -> None:
        self._waiting.pop(key, None)  # the newest last: of a batch, it is the last that people see
        self._waiting[key] = progress
        self._said.notify()

    def _run(self) -> None:
        away = False
        while True:
            with self._said:
                self._said.wait_for(lambda: self._waiting or self._stopping, self._heartbeat)
                if not self._waiting and self._learner is not None and not self._stopping:
                    self._keep(_LEARNER, Progress(schema_version=1, learner=self._learner))
                batch, self._waiting = self._waiting, {}
            try:
                self._send(batch)
                away = False
            except EventLogUnavailable as error:
                if not away:
                    log.warning("what the learner does cannot be reported now: %s", error)
                away = True
                with self._said:
                    self._waiting = batch | self._waiting
            with self._said:
                if self._said.wait_for(lambda: self._stopping, self._pause) and (away or not self._waiting):
                    return

    def _send(self, batch: dict[str, Progress]) -> None:
        if not batch:
            return
        if _LEARNER in batch:
            batch[_LEARNER].learner.time.GetCurrentTime()
        try:
            records = [Record(PROGRESS, key, progress.SerializeToString()) for key, progress in batch.items()]
            # Not append(): its failure would take the connection away from who learns.
            self._log.begin(records).result(_SEND_SECONDS)
        except TimeoutError:
            raise EventLogUnavailable("it took the records, and does not say what became of them") from None
        except (RecordRefused, ValueError) as error:  # larger than the log takes: so would be the next attempt
            log.warning("a report of what the learner does was refused: %s", error)
