"""How sure an approval rate is: the learner reports it, the command shows it."""

from __future__ import annotations

import math


def wilson(up: int, votes: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share (95% by default), which is right for few votes and for shares near 0 and 1."""
    if votes == 0:
        return 0.0, 1.0
    share, weight = up / votes, z * z / votes
    centre = share + weight / 2
    spread = z * math.sqrt(share * (1 - share) / votes + weight / (4 * votes))
    low, high = (centre - spread) / (1 + weight), (centre + spread) / (1 + weight)
    # The share lies within; rounding may leave an end just short of it.
    return max(0.0, min(low, share)), min(1.0, max(high, share))
