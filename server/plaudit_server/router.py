"""Which version a request gets, decided once, at admission (invariant 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from plaudit_server.engine import PolicyVersion
from plaudit_server.refusal import Refusal


class Router:
    """Knows what is loaded, what new requests get, and how many streams each version still has."""

    def __init__(self, base: PolicyVersion) -> None:
        self.serving = base
        """What new requests get."""
        self.loaded = {base.name: base}
        """What a request can be pinned to, by name."""
        self._streams: Counter[str] = Counter()

    @contextmanager
    def pin(self, requested: str) -> Iterator[PolicyVersion]:
        """The version of one request, held until the request ends; `requested` may be empty.

        Raises Refusal NOT_FOUND if `requested` is not loaded here.
        """
        version = self.loaded.get(requested) if requested else self.serving
        if version is None:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND,
                f"{requested[:32]!r} is not served here; leave it empty, or give one of {', '.join(self.loaded)}",
                field="policy_version",
            )
        self._streams[version.name] += 1
        try:
            yield version
        finally:
            self._streams[version.name] -= 1

    def unused(self, keep: set[str]) -> list[PolicyVersion]:
        """Loaded versions with no stream, which are not to be kept and are not the base; they can be unloaded."""
        return [
            version
            for name, version in self.loaded.items()
            if version.adapter is not None
            and name not in keep
            and name != self.serving.name
            and not self._streams[name]
        ]
