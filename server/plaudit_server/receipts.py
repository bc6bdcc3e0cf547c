"""Receipts: the signed right to vote on one reply, readable by any server of the deployment without a look-up.

receipt = base64url(Receipt) "." base64url(HMAC-SHA256(key, Receipt))
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from google.protobuf.message import DecodeError

from plaudit.pseudonym import pseudonym
from plaudit.v1.receipt_pb2 import Receipt
from plaudit_server.refusal import Refusal, invalid

_LONGEST = 2048


class Receipts:
    """Signs and reads receipts, and hashes user ids, all with one deployment's key."""

    def __init__(self, key: bytes, lifetime: float, clock: Callable[[], float] = time.time) -> None:
        if len(key) < 32:
            raise ValueError(f"the receipt key has {len(key)} bytes; it needs at least 32")
        # Two keys from one secret, so that neither use can be turned against the other; `pseudonym` makes its own.
        self._signing = hmac.digest(key, b"plaudit receipt", "sha256")
        self._key = key
        self._lifetime = lifetime
        self._clock = clock

    @classmethod
    def from_file(cls, path: Path, lifetime: float) -> Receipts:
        """Read the key. Raises OSError if it cannot be read, ValueError if it is shorter than 32 bytes."""
        return cls(path.read_bytes(), lifetime)

    def issue(self, response_id: str, policy_version: str, user: str) -> str:
        """A receipt for a reply; `user` is a pseudonym, or empty for whoever holds it."""
        expires_at = int(self._clock() + self._lifetime)
        payload = Receipt(
            response_id=response_id, policy_version=policy_version, expires_at=expires_at, user=user
        ).SerializeToString(deterministic=True)
        return f"{_encode(payload)}.{_encode(self._sign(payload))}"

    def read(self, receipt: str, field: str) -> Receipt:
        """What the receipt says.

        Raises Refusal, naming `field`: INVALID_ARGUMENT if it is missing or not one of this deployment's,
        FAILED_PRECONDITION if it has expired.
        """
        if not receipt:
            raise invalid(field, "is missing; give the receipt that came with the reply")
        if len(receipt) > _LONGEST:
            raise invalid(field, f"has {len(receipt)} characters; no receipt has more than {_LONGEST}")
        foreign = invalid(
            field, "is not a receipt of this deployment; give the one that came with the reply, unchanged"
        )
        payload_text, _, signature_text = receipt.partition(".")
        try:
            payload, signature = _decode(payload_text), _decode(signature_text)
        except (binascii.Error, ValueError):
            raise foreign from None
        if not hmac.compare_digest(signature, self._sign(payload)):
            raise foreign
        try:
            read = Receipt.FromString(payload)
        except DecodeError:
            raise foreign from None
        if read.expires_at < self._clock():
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION, "has expired; the reply can no longer be voted on", field=field
            )
        return read

    def pseudonym(self, user_id: str) -> str:
        """A keyed hash of a user id, 32 hex digits: what leaves the server in its place. Empty stays empty."""
        return pseudonym(self._key, user_id)

    def _sign(self, payload: bytes) -> bytes:
        return hmac.digest(self._signing, payload, hashlib.sha256)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """Raises ValueError for all but what `_encode` writes: of one receipt there is one spelling."""
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _encode(data) != text:
        raise ValueError("not as it was written")
    return data
