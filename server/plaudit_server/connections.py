"""What gRPC does with connections by itself: how many calls at once, how old one may get, whether its peer is there.

A connection past its age is told so (GOAWAY): its client makes a new one for new calls, and no running call is touched
until the grace is over, which ends what is still running there with UNAVAILABLE. gRPC spreads ages by ± 10 %, so that
not all clients come back at once.

Peers ask each other whether they are there. The SDK does so every 30 s while a call runs, which is within what is
permitted here; a client that asks more often than every 10 s is sent away (GOAWAY, too_many_pings).
"""

from __future__ import annotations

from plaudit_server.config import ServerSettings

LEAST_PING_SECONDS = 10.0
"""Between two pings of a client that has nothing else to send; gRPC's own default, 300 s, is longer than anybody's."""


def options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Of the gRPC server, beside wire.py's."""
    age = [
        ("grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(settings.max_connection_age_grace)),
    ]
    return [
        *(age if settings.max_connection_age else []),
        ("grpc.keepalive_time_ms", _milliseconds(settings.keepalive)),
        ("grpc.keepalive_timeout_ms", _milliseconds(settings.keepalive / 3)),
        ("grpc.http2.ping_timeout_ms", _milliseconds(settings.keepalive / 3)),  # the one that gRPC 1.85 goes by
        ("grpc.keepalive_permit_without_calls", 1),  # or an idle connection whose client is gone is kept for ever
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(LEAST_PING_SECONDS)),
    ]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
