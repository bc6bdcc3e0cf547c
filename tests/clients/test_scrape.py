"""Reading Prometheus endpoints: as prometheus-client does, and what rates and quantiles are made of it."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from plaudit_cli import scrape
from plaudit_cli.scrape import Endpoint, parse, quantile, serving
from plaudit_server.metrics import ServerMetrics


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(blacklist_categories=["Cs"]), max_size=8),
            st.one_of(st.floats(), st.integers(-(10**6), 10**6)),
        ),
        max_size=6,
    )
)
def test_it_reads_what_prometheus_client_reads(samples: list[tuple[str, float]]) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("plaudit_gauge", "With \\ and\nlines.", ["label", "other"], registry=registry)
    counter = Counter("plaudit_counter", "Counts.", registry=registry)
    histogram = Histogram("plaudit_seconds", "Takes.", ["version"], buckets=(0.1, 1.0), registry=registry)
    Gauge("other_gauge", "Not ours.", registry=registry)
    for label, value in samples:
        gauge.labels(label, 'a "quoted" \\ one').set(value)
        counter.inc()
        histogram.labels("v1").observe(abs(value))
    text = generate_latest(registry).decode()
    theirs = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("plaudit_")
    }
    ours = {(name, labels): value for name, series in parse(text).items() for labels, value in series.items()}
    assert ours.keys() == theirs.keys()
    assert all(ours[key] == value or math.isnan(value) for key, value in theirs.items())


def test_lines_that_are_none_are_passed_over() -> None:
    assert parse("plaudit_a 1 1700000000\nplaudit_b{ 2\nplaudit_c two\n<html>plaudit_d 3") == {
        "plaudit_a": {(): 1.0},
    }


def test_quantiles_are_those_of_histogram_quantile() -> None:
    # Prometheus' own: histogram_quantile(0.5, …) of 2, 2, 4, 2 observations in (0, 1], (1, 2], (2, 4], (4, +Inf).
    buckets = {1.0: 2.0, 2.0: 4.0, 4.0: 8.0, math.inf: 10.0}
    assert quantile(buckets, 0.5) == pytest.approx(2.5)
    assert quantile(buckets, 0.1) == pytest.approx(0.5)
    assert quantile(buckets, 0.99) == 4.0, "what is beyond the last bound is more than that"
    assert quantile({1.0: 0.0, math.inf: 0.0}, 0.5) is None
    assert quantile({}, 0.5) is None


async def test_rates_and_latencies_of_servers_that_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("plaudit_cli.scrape.time.monotonic", lambda: clock[0])
    metrics = ServerMetrics(CollectorRegistry())
    http, thread = start_http_server(0, addr="127.0.0.1", registry=metrics.registry)
    url = f"http://127.0.0.1:{http.server_port}/metrics"
    endpoint, absent = Endpoint(url), Endpoint("http://127.0.0.1:9/metrics", optional=True)

    def reply(count: int, seconds: float) -> None:
        for _ in range(count):
            metrics.requests.labels("v1", "stop").inc()
            metrics.generation_tokens.labels("v1").inc(10)
            metrics.time_to_first_token.labels("v1").observe(seconds)
            metrics.inter_token_latency.labels("v1").observe(0.02)

    async def look() -> scrape.Serving:
        await asyncio.gather(endpoint.scrape(), absent.scrape())
        found = serving([endpoint, absent])
        assert found is not None
        return found

    try:
        assert serving([endpoint, absent]) is None
        metrics.engine_up.set(1)
        reply(10, 0.03)
        metrics.requests_running.set(3)
        first = await look()
        assert (first.servers, first.running, first.replies_per_second, first.engines_down) == (1, 3, None, 0)
        assert first.latency_over is None
        assert first.time_to_first_token_p50 == pytest.approx(0.03, abs=0.01)
        clock[0] += 4
        reply(8, 0.9)
        metrics.engine_up.set(0)
        second = await look()
        assert (second.replies_per_second, second.tokens_per_second, second.engines_down) == (2.0, 20.0, 1)
        assert second.latency_over == scrape.LATENCY_SECONDS
        assert 0.75 <= (second.time_to_first_token_p50 or 0) <= 1.0, "of the last minute, not since the start"
        assert 0.01 <= (second.inter_token_p50 or 0) <= 0.025
        clock[0] += 120
        third = await look()
        assert third.latency_over is None
        # Started again, it counts from 0.
        clock[0] += 2
        metrics.requests.clear()
        metrics.requests.labels("v1", "stop").inc(6)
        assert ((await look()).replies_per_second or 0) == pytest.approx(3.0)
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
    await endpoint.scrape()
    assert "refused" in endpoint.error
    assert serving([endpoint]) is None
    assert (endpoint.known, absent.known) == (True, False)


async def test_what_is_no_endpoint_is_said_in_words() -> None:
    registry = CollectorRegistry()
    Gauge("other", "Not ours.", registry=registry)
    http, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        for url, words in [
            (f"http://127.0.0.1:{http.server_port}/metrics", "no metrics of Plaudit's"),
            ("file:///etc/passwd", "no http:// or https:// URL"),
            ("http://127.0.0.1:notaport/", "nonnumeric port"),
        ]:
            endpoint = Endpoint(url)
            await endpoint.scrape()
            assert words in endpoint.error
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
