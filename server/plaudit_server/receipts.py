"""Receipts: the signed right to vote on one reply, readable by any server of the deployment without a look-up.

receipt = base64url(Receipt) "." base64url(HMAC-SHA256(key, Receipt))
"""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import grpc
from google.protobuf.message import DecodeError

from plaudit import secret_file
from plaudit.v1.receipt_pb2 import Receipt
from plaudit_server.metrics import ServerMetrics
from plaudit_server.refusal import Refusal, invalid
from plaudit_server.reread import Reread

_LONGEST = 2048


def signing_keys(path: Path) -> tuple[bytes, ...]:
    """What a file signs with; or the files of a directory, by name: the last one signs, the others are still accepted.

    Raises OSError if they cannot be read, ValueError if one is shorter than 32 bytes, or there is none.
    """
    files = sorted(file for file in path.iterdir() if _is_key(file)) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no key file; put one of at least {secret_file.LEAST_BYTES} random bytes there")
    # Derived, so that what is signed can never be turned against anything else that is done with the same bytes.
    return tuple(hmac.digest(secret_file.read_key(file), b"plaudit receipt", "sha256") for file in files)


def _is_key(file: Path) -> bool:
    return file.is_file() and not file.name.startswith(".")


class Receipts:
    """Signs with the last of `keys`, as they are now; reads what any of them signed."""

    def __init__(
        self, keys: Callable[[], Sequence[bytes]], lifetime: float, clock: Callable[[], float] = time.time
    ) -> None:
        """`keys`: of `signing_keys`; lifetime: seconds."""
        self._keys = keys
        self._lifetime = lifetime
        self._clock = clock

    @classmethod
    def from_path(cls, path: Path, lifetime: float, metrics: ServerMetrics) -> Receipts:
        """With the keys of `signing_keys(path)`, read again when they change. Raises as that does."""
        return cls(Reread("receipt keys", [path], partial(signing_keys, path), metrics), lifetime)

    def issue(self, response_id: str, policy_version: str, user: str) -> str:
        """A receipt for a reply; `user` is a pseudonym, or empty for whoever holds it."""
        expires_at = int(self._clock() + self._lifetime)
        payload = Receipt(
            response_id=response_id, policy_version=policy_version, expires_at=expires_at, user=user
        ).SerializeToString(deterministic=True)
        return f"{_encode(payload)}.{_encode(_sign(self._keys()[-1], payload))}"

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
        if not any(hmac.compare_digest(signature, _sign(key, payload)) for key in reversed(self._keys())):
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


def _sign(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, "sha256")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """Raises ValueError for all but what `_encode` writes: of one receipt there is one spelling."""
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _encode(data) != text:
        raise ValueError("not as it was written")
    return data
