"""Processes that a benchmark kills and stops; what has ended is started again, as a supervisor would."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

_AGAIN_SECONDS = 0.5


class Kept:
    """One program, kept running between `async with`; its output goes to a file."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.kills = 0
        self._command = command
        self._log = log
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._away_until = 0.0
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._keeping is not None
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        if self._process is not None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGKILL)
            await self._process.wait()

    def kill(self, away: float) -> None:
        """kill -9; started again after `away` seconds."""
        self._away_until = asyncio.get_running_loop().time() + away
        self.kills += 1
        self._signal(signal.SIGKILL)

    def pause(self) -> None:
        """It hangs from now on: its connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _keep(self) -> None:
        while True:
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment or os.environ,
                )
            await self._process.wait()
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(max(_AGAIN_SECONDS, self._away_until - now))


async def until_listening(address: str, seconds: float = 60.0) -> None:
    """Wait until somebody takes connections at `HOST:PORT`. Raises TimeoutError."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(seconds):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
