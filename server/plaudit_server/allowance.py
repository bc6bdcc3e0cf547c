"""So much a minute for each of any number of spenders: token buckets, filled evenly, that hold a minute's worth each.

Of a bucket, only the time at which it will be full again is kept (GCRA's virtual scheduling, ITU-T I.371), and only
until then: who spends nothing costs nothing. The rate-limiting libraries count what was asked for; none was found that
takes back what was reserved and not used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

_MINUTE = 60.0
_FEW = 1024


class Allowance:
    """What each spender may spend a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """per_minute: units, 0: without limit; clock: seconds, never going back."""
        self.per_minute = per_minute
        self._clock = clock
        self._full_at: dict[Hashable, float] = {}
        self._sweep_at = _FEW

    def take(self, who: Hashable, units: int) -> float:
        """Take `units` from who's bucket, and return 0; or take nothing, and return in how many seconds it would do.

        More than a bucket holds can be taken once it is full; then it stays empty for longer.
        """
        if not self.per_minute:
            return 0.0
        now = self._clock()
        full_at = max(now, self._full_at.get(who, now))
        wait = full_at - now + self._seconds(min(units, self.per_minute)) - _MINUTE
        if wait > 0:
            return wait
        self._full_at[who] = full_at + self._seconds(units)
        if len(self._full_at) > self._sweep_at:
            self._sweep(now)
        return 0.0

    def give_back(self, who: Hashable, units: int) -> None:
        """Put back what was taken and not used."""
        if who in self._full_at:
            self._full_at[who] -= self._seconds(units)

    def __len__(self) -> int:
        """Buckets that are kept, some of which may be full by now."""
        return len(self._full_at)

    def _seconds(self, units: int) -> float:
        return units * _MINUTE / self.per_minute

    def _sweep(self, now: float) -> None:
        """Forget the full ones; the next sweep comes once there are twice as many as now, so each costs little."""
        self._full_at = {who: full_at for who, full_at in self._full_at.items() if full_at > now}
        self._sweep_at = max(_FEW, 2 * len(self._full_at))
