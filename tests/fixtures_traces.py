"""Spans, kept in memory: of what runs in this process; and a collector, of what runs in others."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ExportedSpan
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext


class Spans:
    """Those that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        trace.set_tracer_provider(provider)  # a process's, once
        self.tracer = provider.get_tracer("test")

    def clear(self) -> None:
        self._exporter.clear()

    def all(self) -> list[ReadableSpan]:
        """In the order in which they ended."""
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def words(self) -> list[str]:
        """All that any span says: names, attributes, events."""
        said: list[str] = []
        for span in self.all():
            said += [span.name, str(dict(span.attributes or {})), str(span.status.description)]
            said += [f"{event.name} {dict(event.attributes or {})}" for event in span.events]
        return said


def name_of(span: ReadableSpan) -> str:
    """Its traceparent."""
    assert span.context is not None
    return _traceparent(span.context)


def links_of(span: ReadableSpan) -> list[str]:
    return [_traceparent(link.context) for link in span.links]


def _traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


@pytest.fixture(scope="session")
def _spans() -> Spans:
    return Spans()


@pytest.fixture
def spans(_spans: Spans) -> Spans:
    _spans.clear()
    return _spans


class Collector:
    """Takes spans over OTLP/HTTP, from programs that are told of `environment`."""

    def __init__(self, port: int) -> None:
        self.environment = {"PLAUDIT_TRACES": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        self.environment["OTEL_BSP_SCHEDULE_DELAY"] = "200"  # ms
        self.spans: list[tuple[str, ExportedSpan]] = []
        """With the service that each is of."""

    def take(self, body: bytes) -> None:
        for of_service in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = {one.key: one.value.string_value for one in of_service.resource.attributes}["service.name"]
            self.spans += [(service, span) for scope in of_service.scope_spans for span in scope.spans]

    def named(self, service: str, name: str) -> list[ExportedSpan]:
        return [span for of, span in list(self.spans) if (of, span.name) == (service, name)]


@contextmanager
def collector() -> Iterator[Collector]:
    """One that runs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *ignored: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        taken = Collector(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield taken
        finally:
            server.shutdown()
            thread.join()
