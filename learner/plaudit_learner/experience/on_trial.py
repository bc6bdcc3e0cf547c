"""The replies that votes on a canary are to decide by: both the store, which keeps them, and the judge ask here."""

from __future__ import annotations

from dataclasses import dataclass

from plaudit.releases import Releases


@dataclass(frozen=True, slots=True)
class OnTrial:
    """Of these versions, drawn, not asked for by name, and begun at `since` or later."""

    canary: str
    stable: str
    since: int
    """The time of the canary's event, Unix µs: with another share the comparison is another, and begins anew."""


def on_trial(releases: Releases) -> OnTrial | None:
    """What is on trial; None if nothing is. At a share of 0 a canary waits for an operator, and nobody waits for it."""
    canary = releases.canary
    event = releases.event(canary) if canary is not None else None
    if canary is None or event is None or not releases.share(canary):
        return None
    return OnTrial(canary, releases.stable, event.time.ToMicroseconds())
