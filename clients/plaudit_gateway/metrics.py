"""Prometheus metrics of the gateway. Label values are bounded: routes, never addresses or users."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)


class GatewayMetrics:
    """One set a gateway; a registry of its own lets several live in one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "plaudit_gateway_requests",
            "Requests answered, by route and status; 499: the caller left.",
            ["route", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "plaudit_gateway_request_seconds",
            "From a request's head to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.running = Gauge("plaudit_gateway_requests_running", "Requests not yet answered.", registry=registry)
        self.first_piece = Histogram(
            "plaudit_gateway_first_piece_seconds",
            "Of streamed replies: from the request's body to the first piece of text.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.refused = Counter(
            "plaudit_gateway_refused",
            "What was refused before any route saw it: requests by host (a foreign name) or origin (another web page); "
            "connections (one too many, or without a request's head in time).",
            ["why"],
            registry=registry,
        )
        for why in ("host", "origin", "connection"):
            self.refused.labels(why)
