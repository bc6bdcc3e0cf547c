"""The certificate of the HTTP port: one that is renewed on disk is what the next connection gets."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from plaudit.certificates import load_pair
from plaudit.file_state import file_state

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0


def context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What TLS is spoken with. Raises OSError if a file cannot be read, ValueError if it is not what it should be."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.set_alpn_protocols(["http/1.1"])
    load(made, certificate, key)
    return made


def load(made: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Show this certificate from now on. Raises as `context`; what was shown before then stands."""
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # half a pair that does not fit would stay in `made`
    load_pair(trial, certificate, key)
    load_pair(made, certificate, key)


async def renew(made: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Load the files again whenever they change, without end; a slip is logged, and shuts nobody out."""
    seen = file_state(certificate), file_state(key)
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        now = file_state(certificate), file_state(key)
        if now == seen:
            continue
        seen = now
        try:
            load(made, certificate, key)
        except (OSError, ValueError) as error:
            log.error("TLS certificates cannot be read, what they said before stands: %s", error)
        else:
            log.info("TLS certificates were read again")
