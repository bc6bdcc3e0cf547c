"""How often and how patiently feedback is sent again while a server is unavailable."""

from __future__ import annotations

import asyncio
import random

ATTEMPTS = 5
_FIRST_PAUSE = 0.1  # seconds, doubled after each attempt: 1.5 s in all, longer than a server's hand-over


async def pause(attempt: int) -> None:
    """Wait after the attempt of that number, the first being 0."""
    # Jitter: many clients that lost the same server must not come back in step.
    await asyncio.sleep(_FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311
