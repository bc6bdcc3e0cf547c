"""What stands in place of a user id outside the servers: a keyed hash, the same for the same person everywhere.

Its key is the deployment's for good: with another one, everybody would be somebody else, whose earlier votes nobody
could take back or erase.
"""

from __future__ import annotations

import hmac


def pseudonym(key: bytes, user_id: str) -> str:
    """32 hex digits, from a deployment's user key; an empty id stays empty."""
    # Derived, so that what is hashed can never be turned against anything else that is done with the key: it once
    # signed receipts too, and where it was taken over from there it still does.
    hashing = hmac.digest(key, b"plaudit user", "sha256")
    return hmac.digest(hashing, user_id.encode(), "sha256").hex()[:32] if user_id else ""
