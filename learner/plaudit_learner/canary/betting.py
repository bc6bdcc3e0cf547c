"""Evidence that may be looked at after every vote: a bettor's capital, which a fair game does not let grow.

Given g_1, g_2, … in [-1, 1], one after the other, and the null hypothesis that each is on the average at most 0 given
those before it: E[g_i | g_1 … g_i-1] <= 0. Whoever stakes the fraction l of what he has on each has

    K_n(l) = (1 + l g_1) (1 + l g_2) … (1 + l g_n),      0 <= l < 1,

which is never negative and, under the null hypothesis, a supermartingale that begins at 1; so is the mean of several
such bettors, each with his own l. By Ville's inequality its capital ever reaches 1/α with probability at most α. So
there is no count to be settled beforehand, and no price for looking too often: H0 is rejected at level α at the first n
at which the capital is 1/α, and the chance of ever doing so wrongly is at most α.

Nothing is assumed of the g_i but their bounds: they need not be alike, nor independent, and what people like may drift
from hour to hour, as long as the null hypothesis holds at each step.

Sources: Ville, "Étude critique de la notion de collectif" (1939); Waudby-Smith & Ramdas, "Estimating means of bounded
random variables by betting", JRSS-B 86 (2024), section 4: the capital process. A mean over a grid of fixed fractions
is the simplest of the betting strategies there; it is Cover's universal portfolio (1991) in small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

BETTORS = tuple(number / 20 for number in range(1, 20))
"""The fractions l that are staked, in equal parts: one of them is near the best for any mean from 0.03 to 1."""


def log_capital(gains: Iterable[float]) -> float:
    """The largest log(capital) that the bettors had at any time; 0 before the first. Reject H0 at `-log(α)` or more.

    The largest, because a test that was passed is passed: so it does not matter after which votes one looked.
    Raises ValueError if a gain is not within -1 and 1.
    """
    log_each = [0.0] * len(BETTORS)
    peak = 0.0
    for gain in gains:
        if not -1 <= gain <= 1:
            raise ValueError(f"a gain of {gain}; they are -1 to 1")
        log_each = [log + math.log1p(fraction * gain) for log, fraction in zip(log_each, BETTORS, strict=True)]
        most = max(log_each)
        mean = most + math.log(sum(math.exp(log - most) for log in log_each) / len(log_each))
        peak = max(peak, mean)
    return peak
