"""A certificate chain and its key, as they stand on disk."""

from __future__ import annotations

import ssl
from pathlib import Path


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Have `context` show them. Raises OSError if a file cannot be read, ValueError if it is not what it should be."""
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        raise ValueError(
            f"{certificate} and {key} must be a certificate chain and its unencrypted key, as PEM ({error.reason})"
        ) from None


def _no_password() -> str:
    """Instead of asking the terminal."""
    return ""
