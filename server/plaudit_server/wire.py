"""What may come in over the wire, as far as gRPC itself can bound it; docs/limits.md has all limits in a table.

What passes here is read into memory before any of Plaudit's code sees it, so this is tight: a request that is valid by
`validation.py` always passes, and not much more does. Empty messages in a request take 2 bytes each on the wire and 24
times that in memory.
"""

from __future__ import annotations

from plaudit_server.config import ServerSettings
from plaudit_server.validation import most_text

METADATA_BYTES = 8192
"""Of one call's metadata: names, values, and 32 for each pair, gRPC's own and the path included."""
CALLS_A_CONNECTION = 1024
"""Open at once on one connection; gRPC's clients let the next one wait."""

_AROUND_TEXT_BYTES = 65_536  # in a request: identifiers, stop strings, the frames of at most 256 messages
_HANDSHAKE_SECONDS = 10


def most_message(settings: ServerSettings) -> int:
    """Bytes of the longest message that is read, unpacked if it comes compressed."""
    return most_text(settings) + _AROUND_TEXT_BYTES


def options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Of the gRPC server."""
    return [
        ("grpc.max_receive_message_length", most_message(settings)),
        # The first is where gRPC begins to refuse some, by chance; the second where it refuses all.
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.max_concurrent_streams", CALLS_A_CONNECTION),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_SECONDS * 1000),
    ]
