"""An engine that comes back when it dies, with the versions that it had.

    UP ──it dies──▶ DOWN: running streams have ended, chats are refused, health says so
     ▲                │ back-off ─▶ stop what is left ─▶ start ─▶ load what was loaded ─▶ (failed: once more)
     └────────────────┤
                      └─ too many attempts in a row ─▶ EngineError: the process ends, and its supervisor starts it anew

Loading and unloading wait while the engine is down. A version whose loading the engine did not survive is tried once
more, since the engine may have died of something else, and then refused for as long as this process lives.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import suppress

from prometheus_client import Metric

from plaudit_server.engine import Engine, EngineError, Generation, PolicyVersion, Tokens
from plaudit_server.metrics import ServerMetrics

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25  # no engine tells when it dies; each can be asked
_FIRST_PAUSE = 0.5  # seconds before the first attempt, doubled after each
_STEADY_SECONDS = 60.0  # after that long alive, attempts are counted anew
_MOST_DEATHS = 2
_START_FAILURES = (EngineError, OSError, RuntimeError, ValueError)  # RuntimeError: torch's, out of memory included


class KeptEngine(Engine):
    """Delegates to the engine that it keeps; `run` is the keeping, a task beside the server's others."""

    def __init__(self, engine: Engine, *, attempts: int, metrics: ServerMetrics) -> None:
        """attempts: how often in a row a dead engine is started again."""
        self._engine = engine
        self._attempts = attempts
        self._metrics = metrics
        self._up = False
        self._loaded: dict[str, PolicyVersion] = {}
        self._deaths: Counter[str] = Counter()  # of the engine, while the version was loaded
        self._changing = asyncio.Lock()
        self._starting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the engine for the first time; what fails then is the caller's to deal with."""
        await self._begin()
        self._say(up=True)

    async def run(self, tell: Callable[[bool], Awaitable[None]]) -> None:
        """Bring the engine back whenever it dies, and tell when it is down and when it is up again.

        Raises EngineError when that failed too often in a row.
        """
        attempt = 0
        clock = asyncio.get_running_loop().time
        while True:
            since = clock()
            while self._engine.healthy:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_SECONDS)
            if clock() - since > _STEADY_SECONDS:
                attempt = 0
            self._say(up=False)
            log.error("the engine has died; chats are refused until it is back, feedback is taken")
            await tell(False)
            async with self._changing:
                while not self._up:
                    if attempt >= self._attempts:
                        raise EngineError(f"the engine has died, and {attempt} attempts in a row to restart it failed")
                    await asyncio.sleep(_FIRST_PAUSE * 2**attempt)
                    attempt += 1
                    await self._attempt(attempt)
            await tell(True)

    def generate(self, generation: Generation) -> AsyncGenerator[Tokens, None]:
        """As the engine does; raises EngineError while it is down."""
        return self._engine.generate(generation)

    async def load(self, version: PolicyVersion) -> None:
        """Load it, and again whenever the engine comes back; waits while it is down."""
        async with self._changing:
            if self._deaths[version.name] >= _MOST_DEATHS:
                raise EngineError(f"{version.name} is not loaded: the engine died of it {_MOST_DEATHS} times")
            alive = self._engine.healthy
            try:
                await self._engine.load(version)
            except EngineError:
                if alive and not self._engine.healthy:
                    self._deaths[version.name] += 1
                raise
            except Exception as error:  # whatever an engine makes of an adapter: what is served goes on being served
                raise EngineError(f"{version.name} cannot be loaded: {error or type(error).__name__}") from error
            self._loaded[version.name] = version

    async def unload(self, version: PolicyVersion) -> None:
        """Unload it; waits while the engine is down."""
        async with self._changing:
            self._loaded.pop(version.name, None)
            await self._engine.unload(version)

    async def stop(self) -> None:
        """Stop it, also while it is being started; nothing of it is left behind."""
        self._up = False
        await self._end()
        if self._starting is not None:
            with suppress(*_START_FAILURES):
                await self._starting
        await self._end()  # if it had just started

    @property
    def healthy(self) -> bool:
        """Whether it is alive, and has what it had."""
        return self._up and self._engine.healthy

    @property
    def running(self) -> int:
        """As the engine counts."""
        return self._engine.running

    def metrics(self) -> Iterable[Metric]:
        """As the engine measures."""
        return self._engine.metrics()

    async def _attempt(self, number: int) -> None:
        log.warning("restarting the engine: attempt %d of %d", number, self._attempts)
        try:
            await self._end()
            await self._begin()
            for version in self._loaded.values():
                await self._engine.load(version)
        except _START_FAILURES as error:
            self._metrics.engine_restarts.labels("failed").inc()
            log.error("the engine could not be restarted: %s", error)
            return
        self._metrics.engine_restarts.labels("up").inc()
        self._say(up=True)
        log.info("the engine is back, with %s", ", ".join(["v0", *self._loaded]))

    async def _begin(self) -> None:
        self._starting = asyncio.create_task(self._engine.start())
        await asyncio.shield(self._starting)  # cancelled half-way, its child processes would be nobody's
        # What is there now stays. Looking through it for garbage, time and again, takes 0.1 s and more, in which all
        # streams stand still.
        gc.collect()
        gc.freeze()

    async def _end(self) -> None:
        gc.unfreeze()  # the engine is part of cycles, and is garbage from here on
        await self._engine.stop()

    def _say(self, *, up: bool) -> None:
        self._up = up
        self._metrics.engine_up.set(up)
