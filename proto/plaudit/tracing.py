"""Spans, where they are asked for (docs/observability.md): OpenTelemetry, imported only then.

Without `on`, every call here does nothing, and costs a function call. Spans of different programs find one another by
`traceparent` (W3C Trace Context), a string that travels in metadata and stands in events. Attributes say what was done,
never what people said, nor who they are: an exception is told by its type, because its words may quote a request.
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Link, SpanContext, Tracer
    from opentelemetry.trace import Span as OtelSpan

MOST_LINKS = 128
"""Of one span: OpenTelemetry's own limit, unless OTEL_SPAN_LINK_COUNT_LIMIT says otherwise."""

Attributes = Mapping[str, str | int | float | bool | Sequence[str]]
Kind = Literal["internal", "server", "producer"]

_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_FLUSH_SECONDS = 5.0


def trace_of(traceparent: str) -> str:
    """The trace's id, 32 hexadecimal digits; empty if `traceparent` is none, or of a version that is not known."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return match[1] if match else ""


def missing() -> str | None:
    """What has to be installed before `on` can work, in words; None: it can."""
    if importlib.util.find_spec("opentelemetry") and importlib.util.find_spec("opentelemetry.sdk"):
        return None
    return "traces need OpenTelemetry: pip install 'plaudit[otel]'"


class Span(AbstractContextManager["Span"]):
    """A span; this one, where there are none: it does nothing. Used in a `with` statement it is the current one there,
    and ends with it; otherwise `end` ends it.
    """

    @property
    def traceparent(self) -> str:
        """What names it elsewhere; empty if nobody keeps it: a link would lead nowhere."""
        return ""

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""

    def event(self, name: str) -> None:
        """Something happened in it, now."""

    def link(self, *traceparents: str) -> None:
        """Point to other spans; what is no traceparent is passed over."""

    def fail(self, kind: str) -> None:
        """Mark it as failed; `kind`: a code, or the name of an exception's type."""

    def end(self) -> None:
        """It is over."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


NONE = Span()
"""The span where there is none."""


@dataclass
class _Switch:
    """Traces are a process's, as logs are: whoever made a span current, it is found by the code below."""

    tracer: Tracer | None = None
    users: int = 0


_switch = _Switch()
_lock = threading.Lock()


@contextmanager
def on(program: str) -> Iterator[None]:
    """Make spans meanwhile, as the service `program`; at the end, what was not exported yet is, for up to 5 s.

    Where they go, the standard OTEL_* variables say. If this process has a tracer provider already (that of an
    application, or a test), it is used, and left as it is.
    Raises ValueError if OpenTelemetry is not installed, or OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_PROTOCOL name
    what is not there.
    """
    if why := missing():
        raise ValueError(why)
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    own = _provider(program) if isinstance(provider, trace.ProxyTracerProvider) else None
    with _lock:
        _switch.users += 1
        _switch.tracer = (own or provider).get_tracer("plaudit")
    try:
        yield
    finally:
        with _lock:
            _switch.users -= 1
            if not _switch.users:
                _switch.tracer = None
        if own is not None:
            # Not waited for longer: a collector that is away must not keep a program from stopping.
            ending = threading.Thread(target=own.shutdown, name="traces", daemon=True)
            ending.start()
            ending.join(_FLUSH_SECONDS)


def span(
    name: str,
    *,
    kind: Kind = "internal",
    parent: Mapping[str, str] | None = None,
    links: Iterable[str] = (),
    attributes: Attributes | None = None,
) -> Span:
    """Begin a span below the current one, or below that of a caller elsewhere.

    parent: the caller's `traceparent` and `tracestate`, if it sent any; without them it begins a trace. links:
    traceparents.
    """
    tracer = _switch.tracer
    if tracer is None:
        return NONE
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return _Recorded(
        tracer.start_span(
            name,
            context=None if parent is None else TraceContextTextMapPropagator().extract(parent),
            kind=SpanKind[kind.upper()],
            attributes=attributes,
            links=_links(links),
        )
    )


def traceparent() -> str:
    """That of the current span; empty if there is none, or nobody keeps it."""
    return current().traceparent


def current() -> Span:
    """The current span."""
    if _switch.tracer is None:
        return NONE
    from opentelemetry import trace

    return _Recorded(trace.get_current_span())


class _Recorded(Span):
    """One of OpenTelemetry's."""

    def __init__(self, inner: OtelSpan) -> None:
        self._inner = inner
        self._current: AbstractContextManager[OtelSpan] | None = None

    @property
    def traceparent(self) -> str:
        context = self._inner.get_span_context()
        if not (context.is_valid and context.trace_flags.sampled):
            return ""
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def set(self, attributes: Attributes) -> None:
        self._inner.set_attributes(attributes)

    def event(self, name: str) -> None:
        self._inner.add_event(name)

    def link(self, *traceparents: str) -> None:
        for link in _links(traceparents):
            self._inner.add_link(link.context)

    def fail(self, kind: str) -> None:
        from opentelemetry.trace import StatusCode

        self._inner.set_attribute("error.type", kind)
        self._inner.set_status(StatusCode.ERROR)

    def end(self) -> None:
        self._inner.end()

    def __enter__(self) -> Self:
        from opentelemetry import trace

        self._current = trace.use_span(self._inner, record_exception=False, set_status_on_exception=False)
        self._current.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._current is not None, "entered before"
        self._current.__exit__(None, None, None)  # it is told below what happened
        if kind is not None and issubclass(kind, Exception):
            self.fail(kind.__name__)
        self.end()


def _links(traceparents: Iterable[str]) -> list[Link]:
    from opentelemetry.trace import Link

    return [Link(context) for context in map(_context, traceparents) if context is not None]


def _context(traceparent: str) -> SpanContext | None:
    from opentelemetry.trace import SpanContext, TraceFlags

    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    return SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=TraceFlags(int(match[3], 16)))


def _provider(program: str) -> TracerProvider:
    """Sends to where the environment says. The sampler, limits and batches are the SDK's to read."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from plaudit import __version__

    resource = Resource.create({"service.version": __version__})
    if str(resource.attributes["service.name"]).startswith("unknown_service"):  # the environment does not say
        resource = resource.merge(Resource({"service.name": program}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter()))
    return provider


def _exporter() -> SpanExporter:
    """Raises ValueError for one that is not known, or not installed."""
    name = os.environ.get("OTEL_TRACES_EXPORTER", "") or "otlp"
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER is {name!r}; give otlp or console")
    protocol = (
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    )
    try:
        if protocol == "http/protobuf":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

            return OverHttp()
        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

            return OverGrpc()
    except ImportError as error:
        raise ValueError(f"traces cannot be exported over {protocol} ({error}): pip install 'plaudit[otel]'") from error
    raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; give http/protobuf or grpc")
