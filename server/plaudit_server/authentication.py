"""Who calls, told by an API key or a client certificate; and what each call needs.

caller = authentication.caller(context)      UNAUTHENTICATED: nobody whom the callers file names
permit(caller, method)                       PERMISSION_DENIED: somebody who may not do this
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import grpc

from plaudit import callers
from plaudit.callers import Callers
from plaudit.permission import Permission
from plaudit_server.caller import ANYBODY, Caller
from plaudit_server.config import ServerSettings
from plaudit_server.metrics import ServerMetrics
from plaudit_server.refusal import Refusal
from plaudit_server.reread import Reread

NEEDED = {
    "plaudit.v1.ChatService": Permission.CHAT,
    "plaudit.v1.FeedbackService": Permission.FEEDBACK,
    "plaudit.v1.LoopService": Permission.OBSERVE,
    "plaudit.v1.PolicyService": Permission.ADMIN,
    "plaudit.v1.PrivacyService": Permission.ADMIN,
}
"""The permission that each service needs. Health and reflection are not in it: probes and balancers have no keys, and
what they tell, whether this server serves and the published contract, is no secret."""

_LONGEST_NAME = 128


class Authentication:
    """Knows callers by the callers file, as it is now; without one, by their certificates alone, or not at all."""

    def __init__(self, known: Callable[[], Callers] | None, *, certificates: bool) -> None:
        """`certificates`: TLS lets nobody in without one that the clients' CA signed."""
        self._known = known
        self._certificates = certificates

    @classmethod
    def from_settings(cls, settings: ServerSettings, metrics: ServerMetrics) -> Authentication:
        """With the callers file, read again when it changes. Raises OSError or ValueError, as callers.read does."""
        path = settings.callers_file
        known = Reread("callers", [path], partial(callers.read, path), metrics) if path else None
        return cls(known, certificates=settings.tls_client_ca is not None)

    def caller(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """Who makes this call. Raises Refusal UNAUTHENTICATED."""
        if self._known is None and not self._certificates:
            return ANYBODY
        identities = [name.decode(errors="replace") for name in context.peer_identities() or ()]
        if self._known is None:
            return Caller("".join(identities[:1])[:_LONGEST_NAME], ANYBODY.permissions)
        known = self._known()
        for name, value in context.invocation_metadata() or ():
            if name == "authorization":
                return _by_key(known, str(value))
        for certificate in known.certificates:
            if certificate.name in identities:
                return Caller(certificate.name, certificate.permissions)
        if identities:
            raise _stranger("the client certificate's name is not known here; have it added to the callers file")
        raise _stranger("give an API key, as metadata `authorization: Bearer KEY`")


def permit(caller: Caller, method: str) -> None:
    """Raises Refusal PERMISSION_DENIED if `caller` may not call `method` (/package.Service/Method)."""
    needed = NEEDED[method.split("/")[1]]
    if not any(permission.opens(needed) for permission in caller.permissions):
        has = " and ".join(sorted(permission.value for permission in caller.permissions))
        raise Refusal(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{caller.name} has permission for {has}; this call needs {needed.value}",
        )


def _by_key(known: Callers, authorization: str) -> Caller:
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise _stranger("`authorization` must be `Bearer KEY`, KEY being an API key")
    shown = callers.digest(secret.strip())
    found = None
    for key in known.keys:  # all of them, in a time that tells nothing of how near a guess was
        if hmac.compare_digest(key.sha256, shown):
            found = key
    if found is None:
        raise _stranger("the API key is not known here; it may have been revoked")
    if found.expires is not None and found.expires <= datetime.now(UTC):
        raise _stranger(f"the API key {found.name} expired on {found.expires:%Y-%m-%d}; ask for a new one")
    return Caller(found.name, found.permissions)


def _stranger(message: str) -> Refusal:
    return Refusal(grpc.StatusCode.UNAUTHENTICATED, message)
