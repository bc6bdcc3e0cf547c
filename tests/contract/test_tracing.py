"""Spans: none unless asked for, told of by type and never by words, and no reason to wait."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry import trace

from plaudit import tracing
from tests.fixtures_traces import Spans, collector, links_of, name_of

OTHER = f"00-{'4b' * 16}-{'a1' * 8}-01"


def test_off_it_is_nothing_and_imports_nothing() -> None:
    code = (
        "import sys; from plaudit import tracing; import plaudit_client, plaudit_server.chat, plaudit_server.follower;"
        "import plaudit_server.interceptors, plaudit_server.policies; from plaudit_client.channel import current_span;"
        "span = tracing.span('x', links=['y'], parent={}); assert span is tracing.NONE is tracing.current();"
        "assert not tracing.traceparent() and not current_span();"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_spans_nest_link_and_name_failures_by_their_type(spans: Spans) -> None:
    with tracing.on("test"):
        with tracing.span("outer", parent={}) as outer:
            assert tracing.traceparent() == outer.traceparent
            with pytest.raises(ValueError, match="secret"):
                with tracing.span("inner", links=[OTHER, "nonsense", ""]):
                    raise ValueError("secret")
            tracing.span("by hand").end()
        with pytest.raises(KeyboardInterrupt):
            with tracing.span("stopped", parent={"traceparent": OTHER}):
                raise KeyboardInterrupt
    outer_, inner, stopped = spans.one("outer"), spans.one("inner"), spans.one("stopped")
    assert inner.parent == spans.one("by hand").parent == outer_.context
    assert links_of(inner) == [OTHER]
    assert inner.attributes == {"error.type": "ValueError"}
    assert not inner.status.is_ok
    assert not [word for word in spans.words() if "secret" in word]
    assert tracing.trace_of(name_of(stopped)) == tracing.trace_of(OTHER)
    assert stopped.status.is_unset, "to be stopped is no failure"
    assert tracing.span("after") is tracing.NONE


@pytest.mark.parametrize(
    ("text", "trace_id"),
    [
        (OTHER, "4b" * 16),
        ("", ""),
        (OTHER.upper(), ""),
        (OTHER + "-x", ""),
        (f"01{OTHER[2:]}", ""),
        (f"00-{'0' * 32}-{'a1' * 8}-01", ""),
        (f"00-{'4b' * 16}-{'0' * 16}-01", ""),
    ],
)
def test_what_is_a_traceparent(text: str, trace_id: str) -> None:
    assert tracing.trace_of(text) == trace_id


@pytest.fixture
def nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a tracer provider, whatever other tests did in it."""
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nobodys")
def test_they_go_to_a_collector_by_the_standard_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as taken:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", taken.environment["OTEL_EXPORTER_OTLP_ENDPOINT"])
        with tracing.on("plaudit-x"), tracing.span("work"):
            pass
        monkeypatch.setenv("OTEL_SERVICE_NAME", "elsewhere")
        with tracing.on("plaudit-x"), tracing.span("work"):
            pass
        assert [service for service, _ in taken.spans] == ["plaudit-x", "elsewhere"]


@pytest.mark.usefixtures("nobodys")
def test_a_collector_that_does_not_answer_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_FLUSH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with tracing.on("plaudit-x"), tracing.span("work"):
            pass
        connection, _ = silent.accept()  # it was asked, and has not answered when we come here
        connection.close()


@pytest.mark.usefixtures("nobodys")
@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]
)
def test_what_is_not_there_is_named(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable} is '{value}'; give "):
        with tracing.on("plaudit-x"):
            pass


def test_without_opentelemetry_it_is_said_before_anything_is_started(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from plaudit_learner.config import LearnerSettings; from plaudit.settings import parse\n"
        "parse(LearnerSettings, 'x', ['--event-log=sqlite:e', '--policy-store=v', '--state-dir=s', '--traces'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "--traces: Value error, traces need OpenTelemetry: pip install 'plaudit[otel]'" in done.stderr
