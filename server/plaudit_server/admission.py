"""Who may ask the engine for a reply, and whose turn it is.

    enter ──▶ waiting ──turn──▶ in the engine ──▶ left
      │          └─ gave way, in a full queue, to a caller who has less here: refused
      └─ no room, a limit, draining, the engine is down: refused at once

The queue is here and not in the engine, because an engine serves whoever came first, and one caller who sends many
requests would keep all others waiting. Two rules, both by what each caller has here now, nothing remembered of those
who have nothing here:

- A free place goes to the caller who has fewest in the engine, then to that one's user who has fewest, then to the
  oldest request (as Hadoop's fair scheduler shares slots: Zaharia et al., EuroSys 2010). Replies in one batch advance
  in step, so equal places are about equal tokens a second.
- When the queue is full, the newest waiting request of the caller who has most here is refused, which is often the one
  that just came (longest-queue drop: Suter et al., INFOCOM 1998).

Counting tokens instead of places (Virtual Token Counter: Sheng et al., OSDI 2024) also weighs prompts, but must
remember those who left, and under new users without end an old one's second request never gets its turn.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import grpc

from plaudit_server import caller
from plaudit_server.allowance import Allowance
from plaudit_server.config import ServerSettings
from plaudit_server.metrics import ServerMetrics
from plaudit_server.refusal import Refusal

RESTART_SECONDS = 5.0
"""Until a dead engine may be back: torch takes seconds, vLLM half a minute."""

_AHEAD = 2  # requests that the engine itself keeps ready, so that no slot stands empty between two replies
_LEAST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds that a caller is told to wait where they can only be guessed
_NEWEST = 0.1  # weight of the newest in the moving average


class Place:
    """One request, from `Admission.enter` until it leaves."""

    def __init__(self, admission: Admission, name: str, user: str, number: int) -> None:
        self.caller, self.user = (name,), (name, user)  # as keys: users are their caller's
        self.number = number
        self.since = time.perf_counter()
        """When it was admitted."""
        self.reserved: list[tuple[Allowance, tuple[str, ...], int]] = []
        self.spent = 0
        """Tokens of prompt and reply so far: what is charged in the end, instead of what was reserved."""
        self.answer: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        """None: its turn has come."""
        self._admission = admission

    def reserve(self, tokens: int) -> None:
        """Reserve what the request can need at most. Raises Refusal RESOURCE_EXHAUSTED past a rate limit."""
        self._admission.reserve(self, tokens)

    async def turn(self) -> None:
        """Wait for a place in the engine. Raises Refusal RESOURCE_EXHAUSTED if it had to give way."""
        refusal = await self.answer
        if refusal is not None:
            raise refusal


class Admission:
    """The places in the engine, the queue before them, and the limits of each caller and user."""

    def __init__(self, settings: ServerSettings, healthy: Callable[[], bool], metrics: ServerMetrics) -> None:
        """healthy: whether the engine takes requests."""
        self._healthy = healthy
        self._metrics = metrics
        self._places = settings.max_running + _AHEAD
        self._most = settings.max_running + settings.max_waiting
        self._most_of_caller = settings.max_requests_per_caller
        self._most_of_user = settings.max_requests_per_user
        self._caller_tokens = Allowance(settings.tokens_per_minute_per_caller)
        self._user_tokens = Allowance(settings.tokens_per_minute_per_user)
        self._numbers = itertools.count()
        self._waiting: set[Place] = set()
        self._running: dict[Place, float] = {}  # since when
        # Requests of each caller, and of each user; who has none is in neither.
        self._admitted_of: Counter[tuple[str, ...]] = Counter()
        self._running_of: Counter[tuple[str, ...]] = Counter()
        self._held_seconds = 0.0  # how long a place is held, a moving average; 0: not known yet
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def admitted(self) -> int:
        """Requests running or waiting."""
        return len(self._waiting) + len(self._running)

    @contextmanager
    def enter(self, user: str) -> Iterator[Place]:
        """A place in the engine or in its queue, for the current caller and its user (a pseudonym, or empty).

        Raises Refusal, at once: RESOURCE_EXHAUSTED if there is no room, or past a limit; UNAVAILABLE while draining, or
        while the engine is down.
        """
        place = Place(self, caller.current.get().name, user, next(self._numbers))
        self._check(place)
        self._waiting.add(place)
        self._admitted_of.update((place.caller, place.user))
        self._idle.clear()
        if self.admitted > self._most:
            refusal = self._displace()
            if place not in self._waiting:
                raise refusal
        self._grant()
        try:
            yield place
        except asyncio.CancelledError:
            if place in self._waiting:
                self._metrics.requests_refused.labels("left").inc()
            raise
        finally:
            self._leave(place)
            for allowance, who, tokens in place.reserved:
                allowance.give_back(who, tokens - place.spent)

    def reserve(self, place: Place, tokens: int) -> None:
        """See Place.reserve."""
        longest, why, message = 0.0, "", ""
        for allowance, who, whose in (
            (self._caller_tokens, place.caller, "caller"),
            (self._user_tokens, place.user, "user"),
        ):
            wait = allowance.take(who, tokens)
            if not wait:
                place.reserved.append((allowance, who, tokens))  # given back as it leaves, which may be now
            elif wait > longest:
                longest, why = wait, f"{whose}_tokens"
                message = f"this {whose} has used up its {allowance.per_minute:,} tokens a minute"
        if why:
            raise self._exhausted(why, message, longest)

    async def drain(self, seconds: float) -> None:
        """Refuse new requests from now on, and wait up to `seconds` for the admitted ones to end."""
        self._draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    def _check(self, place: Place) -> None:
        if self._draining:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "this server is stopping; please try another", retry_after=1.0)
        if not self._healthy():
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE,
                "the engine is being restarted; please try again, or try another server",
                retry_after=RESTART_SECONDS,
            )
        for who, most, whose in (
            (place.caller, self._most_of_caller, "caller"),
            (place.user, self._most_of_user, "user"),
        ):
            if most and self._admitted_of[who] >= most:
                message = f"{most} requests of this {whose} are running or waiting here, the most that one may have"
                raise self._exhausted(f"{whose}_requests", message, self._pause(1))

    def _displace(self) -> Refusal:
        """One too many is here: refuse the newest that waits, of whoever has most."""
        victim = max(
            self._waiting,
            key=lambda place: (self._admitted_of[place.caller], self._admitted_of[place.user], place.number),
        )
        message = f"{self._most} requests are running or waiting here, the most that this server takes"
        refusal = self._exhausted("queue", message, self._pause(len(self._waiting)))
        self._leave(victim)
        if not victim.answer.done():
            victim.answer.set_result(refusal)
        return refusal

    def _grant(self) -> None:
        while self._waiting and len(self._running) < self._places:
            place = min(
                self._waiting,
                key=lambda place: (self._running_of[place.caller], self._running_of[place.user], place.number),
            )
            self._waiting.remove(place)
            now = self._running[place] = time.perf_counter()
            self._running_of.update((place.caller, place.user))
            self._metrics.request_queue_time.observe(now - place.since)
            if not place.answer.done():  # its caller has just gone away, and it is about to leave
                place.answer.set_result(None)
        self._metrics.requests_waiting.set(len(self._waiting))
        self._metrics.requests_running.set(len(self._running))

    def _leave(self, place: Place) -> None:
        if place in self._running:
            held = time.perf_counter() - self._running.pop(place)
            self._held_seconds += (held - self._held_seconds) * (_NEWEST if self._held_seconds else 1.0)
            _discount(self._running_of, place)
        elif place in self._waiting:
            self._waiting.remove(place)
        else:
            return  # it gave way before
        _discount(self._admitted_of, place)
        self._grant()
        if not self.admitted:
            self._idle.set()

    def _pause(self, requests: int) -> float:
        """Seconds until so many more will have got their turn, as far as can be told from those before."""
        return min(max(_LEAST_PAUSE, requests * self._held_seconds / self._places), _LONGEST_PAUSE)

    def _exhausted(self, why: str, message: str, seconds: float) -> Refusal:
        self._metrics.requests_refused.labels(why).inc()
        return Refusal(
            grpc.StatusCode.RESOURCE_EXHAUSTED, f"{message}; try again in {seconds:.1f} s", retry_after=seconds
        )


def _discount(counts: Counter[tuple[str, ...]], place: Place) -> None:
    counts.subtract((place.caller, place.user))
    for who in (place.caller, place.user):
        if not counts[who]:
            del counts[who]
