"""How fast simulated users go: patient with a server that is busy, and waiting for a version that learnt from them.

Nobody waits while a canary is on trial: it is their votes that decide it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from plaudit_cli.tally import Summary
from plaudit_client import AsyncClient, ResourceExhausted, Unavailable

_PATIENCE = 120.0  # seconds for which a server may be busy or away (it restarts) before the simulation gives up
_LONGEST_PAUSE = 5.0
_POLL = 0.5  # seconds between two looks at which version serves

T = TypeVar("T")


class Patience:
    """Makes a call again while the server is busy, or away though it has answered before."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary
        self._answered = False

    async def call(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` returns. Raises what it raises, ResourceExhausted and Unavailable only after two minutes."""
        deadline = time.monotonic() + _PATIENCE
        pause = 0.1
        while True:
            try:
                result = await attempt()
            except (ResourceExhausted, Unavailable) as error:
                # If nothing ever answered, it is rather a wrong address than a restart.
                hopeless = isinstance(error, Unavailable) and not self._answered
                hint = error.retry_after if isinstance(error, ResourceExhausted) else None
                pause = min(hint or pause * 2, _LONGEST_PAUSE)
                if hopeless or time.monotonic() + pause > deadline:
                    raise
                self._summary.retries += 1
                await asyncio.sleep(pause)
            else:
                self._answered = True
                return result


class Pace:
    """Holds conversations back: `votes_per_version` (0: any number) on one version, then none until a newer one serves.

    admit ──▶ allowance left? ── yes ──▶ go
                  └── no: one worker polls the server, the others queue behind it, until a newer version, a canary
                      on trial, or the bound
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        votes_per_version: int,
        wait: float,
        summary: Summary,
        patience: Patience,
        note: Callable[[str], None],
    ) -> None:
        self._client = client
        self._allowance = votes_per_version
        self._wait = wait
        self._summary = summary
        self._patience = patience
        self._note = note
        self._admitted: Counter[int] = Counter()
        self._newest = -1
        self._turn = asyncio.Lock()

    async def admit(self) -> None:
        """Return when the next conversation may begin. Raises PlauditError."""
        if not self._allowance:
            return
        async with self._turn:
            if self._newest < 0:
                await self._look()
            if self._admitted[self._newest] >= self._allowance:
                await self._wait_for_newer(self._newest)
            self._admitted[self._newest] += 1

    def saw(self, version: str) -> None:
        """A reply came from, or the server serves, `version`."""
        self._newest = max(self._newest, _number(version))

    async def _wait_for_newer(self, than: int) -> None:
        if await self._look():
            return
        self._note(f"{self._admitted[than]} votes on v{than}: waiting for a newer version")
        deadline = time.monotonic() + self._wait
        while self._newest <= than:
            if time.monotonic() >= deadline:
                self._summary.vain_waits += 1
                self._admitted[than] = 0
                self._note(f"no version newer than v{than} in {self._wait:g} s: going on with it")
                return
            await asyncio.sleep(_POLL)
            if await self._look():
                break
        self._note(f"v{self._newest} answers")

    async def _look(self) -> bool:
        """See which version is the newest that answers; whether it is a canary on trial."""
        policies = await self._patience.call(self._client.list_policies)
        on_trial = [policy.version for policy in policies.policies if policy.state == "canary" and policy.share > 0]
        for version in (policies.serving_version, *on_trial):
            self.saw(version)
        return bool(on_trial)


def _number(version: str) -> int:
    return int(version[1:]) if re.fullmatch(r"v\d+", version) else -1
