"""Which version a request gets, decided once, at admission (invariant 4).

    asked for by name ───────────────────────────────▶ that version, if it is offered
    else   draw(canary, conversation) < share ───────▶ the canary
           else ─────────────────────────────────────▶ the stable version

Offered are the base model, what is in service, and what is kept for a roll-back. A version that is loaded beyond these
ends its streams and takes no new ones: who goes on asking for it by name would keep it, and its place, for ever.

The draw is a hash: of one conversation the same on every server and after any restart, and a larger share only adds
conversations to those that had the canary before. The version's name is in it, so that it is not always the same
people who try what is new.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from plaudit.releases import BASE
from plaudit_server.engine import PolicyVersion
from plaudit_server.refusal import Refusal


def draw(version: str, conversation: str) -> float:
    """Where a conversation falls between 0 and 1 when `version` is the canary; uniform over conversations."""
    digest = hashlib.sha256(f"{version}\0{conversation}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


class Router:
    """Knows what is loaded, what new requests get, and how many streams each version still has."""

    def __init__(self, base: PolicyVersion) -> None:
        self.serving = base
        """What new requests get, unless it is the canary."""
        self.canary: PolicyVersion | None = None
        """What a share of conversations gets; None: nothing is on trial, or it cannot be loaded here."""
        self.share = 0.0
        self.loaded = {base.name: base}
        """By name. What is not offered has streams that still run, or is about to be unloaded."""
        self.kept: frozenset[str] = frozenset()
        """What is offered beside the base and what is in service, once it is loaded."""
        self._streams: Counter[str] = Counter()

    @contextmanager
    def pin(self, requested: str, conversation: str) -> Iterator[PolicyVersion]:
        """The version of one request, held until the request ends; `requested` may be empty.

        conversation: what is to stay with one version, in a word of its own.
        Raises Refusal NOT_FOUND if `requested` is not offered here.
        """
        version = self._offered().get(requested) if requested else self._choose(conversation)
        if version is None:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND,
                f"{requested[:32]!r} is not served here; leave it empty, or give one of {', '.join(self._offered())}",
                field="policy_version",
            )
        self._streams[version.name] += 1
        try:
            yield version
        finally:
            self._streams[version.name] -= 1

    def _choose(self, conversation: str) -> PolicyVersion:
        if self.canary is not None and draw(self.canary.name, conversation) < self.share:
            return self.canary
        return self.serving

    def unused(self, keep: set[str]) -> list[PolicyVersion]:
        """Loaded versions with no stream, neither in service nor to be kept nor the base; they can be unloaded."""
        stay = keep | self._in_service()
        return [version for name, version in self.loaded.items() if name not in stay and not self._streams[name]]

    def _offered(self) -> dict[str, PolicyVersion]:
        named = self.kept | self._in_service()
        return {name: version for name, version in self.loaded.items() if name in named}

    def _in_service(self) -> set[str]:
        """The base is always among them: it is what is left when nothing else can be loaded."""
        return {BASE, self.serving.name, self.canary.name if self.canary else BASE}
