"""The caller's span, for the server to go on from (W3C Trace Context), where the application makes any."""

from __future__ import annotations

import sys


def current_span() -> list[tuple[str, str]]:
    """`traceparent`, and `tracestate` if it is not empty, as metadata; nothing outside of spans.

    An application that has not imported OpenTelemetry has no spans: then it is not imported here, either.
    """
    if "opentelemetry.trace" not in sys.modules:
        return []
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return list(carrier.items())
