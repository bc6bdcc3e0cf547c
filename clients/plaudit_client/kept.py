"""Feedback that no server could take: kept here, and sent later, in the order in which it was said.

submit ──▶ anything kept? ── no ──▶ send ──▶ answered
                │ yes                 │ cannot be sent now
                ▼                     ▼
              kept (in memory, or in a file) ──in order──▶ send ──▶ answered: forgotten
                │ full                                      └────▶ refused for good: told, forgotten
                ▼
              raised

Nothing overtakes what is kept, nor what is being sent of the same reply and is perhaps tried again just now: a vote
that was changed could come before the one it changes. Only what a server fails on lets other replies' statements pass.
Each statement keeps its idempotency key, so one that was sent and not heard of, or sent by two processes that share a
file, counts once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeAlias
from weakref import WeakValueDictionary

from plaudit.v1.feedback_pb2 import RetractFeedbackRequest, StreamFeedbackRequest, SubmitFeedbackRequest
from plaudit_client.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    PlauditError,
    ResourceExhausted,
    ServerError,
    Unavailable,
)
from plaudit_client.retry import back_off
from plaudit_client.types import Durability, Flushed, RefusedFeedback

logger = logging.getLogger("plaudit_client")

_LATER = (Unavailable, ResourceExhausted, DeadlineExceeded, Cancelled)
"""What says nothing against the statement, unless it is `_final`."""
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 20.0  # seconds between two attempts to send what is kept
_LAST_CHANCE = 5.0  # seconds for what is kept in memory when the client is closed
_MOST_FAILED = 8
"""Replies whose statements a server may fail on before it is left alone for a while: it is not the statements, then."""


Turns: TypeAlias = "WeakValueDictionary[str, asyncio.Lock]"
"""By receipt: who holds it sends, the others wait in the order in which they came. Goes with the last of them."""


class Shelf:
    """The statements that are kept, oldest first, in SQLite: in memory, or in a file that processes may share."""

    def __init__(self, file: str | Path | None) -> None:
        """Raises InvalidRequest if `file` cannot be used."""
        try:
            if file is not None:  # receipts are rights to vote, and users are named: for nobody else's eyes
                os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
            self._rows = sqlite3.connect(":memory:" if file is None else file, timeout=2.0, isolation_level=None)
            self._rows.execute(
                "CREATE TABLE IF NOT EXISTS statements (id INTEGER PRIMARY KEY AUTOINCREMENT, statement BLOB NOT NULL)"
            )
        except (OSError, sqlite3.Error) as error:
            raise InvalidRequest("feedback_file", f"{file} cannot be used: {error}") from None

    def __len__(self) -> int:
        """Raises Unavailable, as whoever asks wants to send."""
        try:
            with closing(self._rows.execute("SELECT count(*) FROM statements")) as rows:
                count: int = rows.fetchone()[0]
        except sqlite3.Error as error:
            raise Unavailable(f"feedback_file: it cannot be read just now: {error}") from None
        return count

    def add(self, statement: StreamFeedbackRequest) -> None:
        """Behind all others; on disk when this returns. Raises sqlite3.Error."""
        self._rows.execute("INSERT INTO statements (statement) VALUES (?)", (statement.SerializeToString(),))

    def after(self, number: int) -> tuple[int, StreamFeedbackRequest] | None:
        """The oldest whose number is higher, with it; None: there is none. Raises sqlite3.Error."""
        query = "SELECT id, statement FROM statements WHERE id > ? ORDER BY id LIMIT 1"
        with closing(self._rows.execute(query, (number,))) as rows:
            row = rows.fetchone()
        return None if row is None else (row[0], StreamFeedbackRequest.FromString(row[1]))

    def remove(self, number: int) -> None:
        """Forget one. Raises sqlite3.Error."""
        self._rows.execute("DELETE FROM statements WHERE id = ?", (number,))

    def close(self) -> None:
        """What is in a file stays there."""
        self._rows.close()


class Kept:
    """Sends statements, and keeps up to `limit` that cannot be sent now (0: none is kept)."""

    def __init__(
        self, send: Callable[[StreamFeedbackRequest], Awaitable[Durability]], limit: int, file: str | Path | None
    ) -> None:
        """To be made inside a running event loop. What the file holds already is sent. Raises InvalidRequest."""
        if limit < 0:
            raise InvalidRequest("keep_feedback", f"is {limit}; it must be 0 (nothing is kept) or more")
        if file is not None and limit == 0:
            raise InvalidRequest("feedback_file", "is given, and keep_feedback is 0: give one, or neither")
        self._send = send
        self.turns: Turns = WeakValueDictionary()
        self._limit = limit
        self._shelf = Shelf(file)
        self._in_file = file is not None
        self._one_at_a_time = asyncio.Lock()
        self._sending: asyncio.Task[None] | None = None
        self._delivered = 0
        self._refused: deque[RefusedFeedback] = deque(maxlen=max(1, limit))
        self._closed = False
        if len(self):
            self._deliver_in_time()

    def __len__(self) -> int:
        return 0 if self._closed else len(self._shelf)

    async def submit(self, statement: StreamFeedbackRequest) -> Durability:
        """Where the statement is safe; PENDING: here. Raises what sending does, if it cannot be kept either."""
        async with _turn(self.turns, statement):
            return await self._submit(statement)

    async def _submit(self, statement: StreamFeedbackRequest) -> Durability:
        failure: PlauditError | None = None
        if not len(self):
            try:
                return await self._send(statement)
            except _LATER as error:
                if not self._limit or _final(error):
                    raise
                failure = error
        if (count := len(self)) >= self._limit:
            full = f"{count} statements are kept already, which is all that keep_feedback allows; this one is not"
            raise Unavailable(full if failure is None else f"{failure.message} ({full})")
        try:
            self._shelf.add(statement)
        except sqlite3.Error as error:
            raise failure or Unavailable(f"feedback_file: this statement cannot be kept: {error}") from None
        if failure is not None:
            logger.info("feedback is kept, and will be sent later: %s", failure)
        self._deliver_in_time()
        return Durability.PENDING

    async def flush(self, seconds: float) -> Flushed:
        """Send what is kept, trying again for so long; tells what became of it since this was asked last."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._deliver()
        told = Flushed(self._delivered, len(self), tuple(self._refused))
        self._delivered = 0
        self._refused.clear()
        return told

    async def close(self) -> None:
        """Give what is in memory a last chance, and say what is lost."""
        if self._closed:
            return
        if not self._in_file and len(self):
            try:
                async with asyncio.timeout(_LAST_CHANCE):
                    await self._deliver()
            except TimeoutError:
                logger.warning(
                    "feedback that could not be sent and is lost: %d statements; a feedback_file would have kept them",
                    len(self),
                )
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        self._closed = True
        self._shelf.close()

    def _deliver_in_time(self) -> None:
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._deliver())

    async def _deliver(self) -> None:
        """Return when nothing is kept any more."""
        attempt = 0
        while True:
            try:
                async with self._one_at_a_time:
                    async for _ in self._settling():
                        attempt = 0
                return
            except (PlauditError, sqlite3.Error) as error:
                if not isinstance(error, _LATER):  # a key that is unknown, a file that is locked: somebody may mend it
                    logger.warning("feedback is kept and cannot be sent: %s", error)
                asked = error.retry_after if isinstance(error, ResourceExhausted | Unavailable) else None
                await asyncio.sleep(max(asked or 0.0, back_off(attempt, _FIRST_PAUSE, _LONGEST_PAUSE)))
                attempt += 1

    async def _settling(self) -> AsyncIterator[None]:
        """Settle all, oldest first; yields after each. Raises PlauditError if any is left, sqlite3.Error."""
        failed: dict[str, ServerError] = {}
        number = 0
        while len(failed) < _MOST_FAILED and (following := self._shelf.after(number)) is not None:
            number, statement = following
            receipt = _said(statement).receipt
            if receipt in failed:
                continue
            try:
                await self._settle(number, statement)
            except ServerError as error:  # of this one, perhaps: the others need not wait until somebody has mended it
                failed[receipt] = error
            else:
                yield
        for failure in failed.values():
            raise failure

    async def _settle(self, number: int, statement: StreamFeedbackRequest) -> None:
        """Send one, and forget it. Raises PlauditError if it cannot be sent now."""
        try:
            await self._send(statement)
        except PlauditError as error:
            if not _final(error):
                raise
            said = _said(statement)
            logger.warning("feedback that was kept is refused, and dropped: %s", error)
            self._refused.append(RefusedFeedback(said.receipt, said.idempotency_key, str(error)))
        else:
            self._delivered += 1
        self._shelf.remove(number)


class NotKept(Kept):
    """Keeps nothing: what cannot be sent now raises."""

    def __init__(self, send: Callable[[StreamFeedbackRequest], Awaitable[Durability]], turns: Turns) -> None:
        self._send = send
        self.turns = turns

    def __len__(self) -> int:
        return 0

    async def submit(self, statement: StreamFeedbackRequest) -> Durability:
        """Where the statement is safe. Raises what sending does."""
        async with _turn(self.turns, statement):
            return await self._send(statement)

    async def flush(self, seconds: float) -> Flushed:
        """There is nothing."""
        return Flushed(0, 0, ())

    async def close(self) -> None:
        """There is nothing."""


def _said(statement: StreamFeedbackRequest) -> SubmitFeedbackRequest | RetractFeedbackRequest:
    return statement.submit if statement.HasField("submit") else statement.retract


def _turn(turns: Turns, statement: StreamFeedbackRequest) -> asyncio.Lock:
    return turns.setdefault(_said(statement).receipt, asyncio.Lock())


def _final(error: PlauditError) -> bool:
    """Whether sending the statement again would change nothing."""
    if isinstance(error, ResourceExhausted):
        return error.retry_after is None
    return isinstance(error, InvalidRequest | FailedPrecondition)
