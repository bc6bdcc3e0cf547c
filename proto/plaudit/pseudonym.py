"""What stands in place of a user id outside the servers: a keyed hash, the same for the same person everywhere."""

from __future__ import annotations

import hmac


def pseudonym(key: bytes, user_id: str) -> str:
    """32 hex digits, from a deployment's receipt key; an empty id stays empty."""
    # A key of its own, so that what is hashed can never be turned against what the key signs.
    hashing = hmac.digest(key, b"plaudit user", "sha256")
    return hmac.digest(hashing, user_id.encode(), "sha256").hex()[:32] if user_id else ""
