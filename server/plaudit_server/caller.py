"""Who makes the call that this task serves: established by interceptors.py, read by whoever limits or permits.

Each rpc is a task of its own, so a context variable is its own too.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from plaudit.permission import Permission


@dataclass(frozen=True, slots=True)
class Caller:
    """Made by authentication.py for each call."""

    name: str
    """Of the API key or the client certificate; empty where the server asks for neither. Bounded: for logs, limits."""
    permissions: frozenset[Permission]


ANYBODY = Caller("", frozenset(Permission))
"""The caller where neither keys nor client certificates are asked for."""

current: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)
"""The caller of the rpc that this task serves."""
