"""Watchers: streams that last. How many there may be at once, and what ends them."""

from __future__ import annotations

import grpc

from plaudit_server.places import Places
from plaudit_server.refusal import Refusal

_COME_BACK_SECONDS = 30.0


def watchers(most: int, *, instead: str) -> Places:
    """Places for those of one service; `instead`: the rpc that shows the same once."""
    full = f"{most} watch already, the most that this server takes; look with {instead} instead"
    return Places(most, full, come_back=_COME_BACK_SECONDS)


def stopping() -> Refusal:
    """What ends a watch when the server does."""
    return Refusal(grpc.StatusCode.UNAVAILABLE, "this server is stopping; please watch another", retry_after=1.0)
