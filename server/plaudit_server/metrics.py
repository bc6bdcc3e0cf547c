"""Prometheus metrics of the server; docs/metrics.md is made from this module.

Label values are bounded, and never name a user or a caller. A version has its own series while it is loaded, and then
until `_KEPT` others have been unloaded after it, so that its last counts are scraped. A version that is loaded again
later counts from 0, which Prometheus takes for a restart, as it should. What is said of a version that has no series
any more counts under `OTHER`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.registry import Collector

import plaudit

OTHER = "other"
"""Stands for all versions that have no series of their own."""
_KEPT = 8

# vLLM's buckets, so that its dashboards and ours can be laid over each other.
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_ITL = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
_WAITS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_E2E = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0)


class ServerMetrics:
    """One set a server; a registry of its own lets several servers live in one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._of_versions: list[Counter | Gauge | Histogram] = []
        self._loaded = {"v0"}
        self._unloaded: dict[str, None] = {}  # the last ones, in their order
        ProcessCollector(registry=registry)
        self.build_info = Gauge(
            "plaudit_build_info",
            "1; which program this is, and what it runs: vllm or torch, and the directory's name of the base model.",
            ["version", "program", "engine", "model"],
            registry=registry,
        )
        self.time_to_first_token = Histogram(
            "plaudit_time_to_first_token_seconds",
            "From admission to the first token.",
            ["policy_version"],
            buckets=_TTFT,
            registry=registry,
        )
        self.inter_token_latency = Histogram(
            "plaudit_inter_token_latency_seconds",
            "Between two tokens of one reply; several tokens in one step share its time.",
            ["policy_version"],
            buckets=_ITL,
            registry=registry,
        )
        self.e2e_request_latency = Histogram(
            "plaudit_e2e_request_latency_seconds",
            "From admission to the last token.",
            ["policy_version"],
            buckets=_E2E,
            registry=registry,
        )
        self.request_queue_time = Histogram(
            "plaudit_request_queue_time_seconds",
            "From admission to a place in the engine.",
            buckets=_WAITS,
            registry=registry,
        )
        self.requests_running = Gauge(
            "plaudit_requests_running", "Requests that have a place in the engine.", registry=registry
        )
        self.requests_waiting = Gauge(
            "plaudit_requests_waiting", "Requests that wait for a place in the engine.", registry=registry
        )
        self.requests = Counter(
            "plaudit_requests", "Replies ended, by how.", ["policy_version", "finish_reason"], registry=registry
        )
        self.requests_refused = Counter(
            "plaudit_requests_refused",
            "Requests that got no place in the engine, by why: queue (it was full), caller_requests, user_requests, "
            "caller_tokens, user_tokens (a limit), left (the caller went away, or its deadline passed).",
            ["why"],
            registry=registry,
        )
        for why in ("queue", "caller_requests", "user_requests", "caller_tokens", "user_tokens", "left"):
            self.requests_refused.labels(why)
        self.prompt_tokens = Counter("plaudit_prompt_tokens", "Tokens read.", registry=registry)
        self.generation_tokens = Counter(
            "plaudit_generation_tokens", "Tokens sampled.", ["policy_version"], registry=registry
        )
        self.feedback = Counter(
            "plaudit_feedback",
            "Statements acknowledged, by version voted on, aspect and verdict (up, down, rating, preference, comment, "
            "retraction). Repeats are counted again; the learner's figures are not.",
            ["policy_version", "aspect", "verdict"],
            registry=registry,
        )
        self.feedback_statements = Counter(
            "plaudit_feedback_statements",
            "Statements by what became of them: event_log, outbox (acknowledged from there), invalid (refused for "
            "good), limited (refused for now: a limit), unavailable (it could not be written down).",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("event_log", "outbox", "invalid", "limited", "unavailable"):
            self.feedback_statements.labels(outcome)
        self.feedback_acknowledgement = Histogram(
            "plaudit_feedback_acknowledgement_seconds",
            "From a statement that was found right to its acknowledgement.",
            buckets=_WAITS,
            registry=registry,
        )
        self.grpc_handled = Counter(
            "plaudit_grpc_handled",
            "Calls that ended, by service and method, and by status code.",
            ["method", "code"],
            registry=registry,
        )
        for code in ("OK", "UNAVAILABLE", "INTERNAL"):  # 0 until there is one, so that a ratio is 0 and not nothing
            self.grpc_handled.labels("ChatService/StreamChat", code)
        self.version_loaded = Gauge(
            "plaudit_version_loaded", "1 for each version that requests can get.", ["policy_version"], registry=registry
        )
        self.version_loaded.labels("v0").set(1)
        self.version_served = Gauge(
            "plaudit_version_served",
            "1 for the version that new requests get, but for the canary's share.",
            ["policy_version"],
            registry=registry,
        )
        self.canary_share = Gauge(
            "plaudit_canary_share", "Share of conversations that get the canary.", ["policy_version"], registry=registry
        )
        self.version_failures = Counter(
            "plaudit_version_failures",
            "Attempts to fetch, verify or load a version that failed, by why: artefact (what is stored is wrong, or "
            "cannot be fetched), engine (it does not take it), no_room (it waits for streams of others to end).",
            ["why"],
            registry=registry,
        )
        for why in ("artefact", "engine", "no_room"):
            self.version_failures.labels(why)
        self.event_log_failures = Counter(
            "plaudit_event_log_failures",
            "Reads of the event log that failed; they are tried again.",
            registry=registry,
        )
        self.engine_up = Gauge(
            "plaudit_engine_up",
            "1 while the engine is alive and has its versions; chats are refused while it is 0.",
            registry=registry,
        )
        self.engine_restarts = Counter(
            "plaudit_engine_restarts", "Attempts to restart a dead engine, by outcome.", ["outcome"], registry=registry
        )
        for outcome in ("up", "failed"):
            self.engine_restarts.labels(outcome)
        self.outbox_depth = Gauge(
            "plaudit_outbox_depth", "Records that are not in the event log yet.", registry=registry
        )
        self.outbox_age = Gauge(
            "plaudit_outbox_oldest_seconds",
            "How long ago the oldest of them was handed in; 0 if there is none.",
            registry=registry,
        )
        self.outbox_limit = Gauge(
            "plaudit_outbox_limit", "Records from which on the outbox takes no more.", registry=registry
        )
        self.outbox_refused = Counter(
            "plaudit_outbox_refused",
            "Records that the event log will never take; they are in the server's refused.sqlite, and dead letters.",
            registry=registry,
        )
        self.interactions_lost = Counter(
            "plaudit_interactions_lost",
            "Replies that were served, and are not learnt from: the outbox was full, or nothing could be written.",
            registry=registry,
        )
        self.calls_refused = Counter(
            "plaudit_calls_refused",
            "Calls by nobody who is known here (unauthenticated), or by somebody who may not (permission_denied).",
            ["reason"],
            registry=registry,
        )
        for reason in ("unauthenticated", "permission_denied"):
            self.calls_refused.labels(reason)
        self.reread_failures = Counter(
            "plaudit_reread_failures",
            "Files that changed and could not be read again; what they said before stands.",
            ["what"],
            registry=registry,
        )

        self._of_versions += [
            self.time_to_first_token,
            self.inter_token_latency,
            self.e2e_request_latency,
            self.requests,
            self.generation_tokens,
            self.feedback,
            self.version_loaded,
        ]

    def built(self, engine: str, model: str, engine_metrics: Callable[[], Iterable[Metric]]) -> None:
        """Say what runs here, and pass the engine's own metrics through."""
        self.build_info.labels(plaudit.__version__, "server", engine, model).set(1)
        self.registry.register(_Passed(engine_metrics))

    def load(self, version: str) -> None:
        """Say that requests can get `version` from now on."""
        self._unloaded.pop(version, None)
        self._loaded.add(version)
        self.version_loaded.labels(version).set(1)

    def unload(self, version: str) -> None:
        """Say that no request gets `version` any more."""
        self._loaded.discard(version)
        self._unloaded[version] = None
        self.version_loaded.remove(version)
        while len(self._unloaded) > _KEPT:
            oldest = next(iter(self._unloaded))
            del self._unloaded[oldest]
            for metric in self._of_versions:
                metric.remove_by_labels({"policy_version": oldest})

    def version(self, name: str) -> str:
        """The label of a version that somebody speaks of, who may speak of any."""
        return name if name in self._loaded or name in self._unloaded else OTHER

    def serve(self, version: str) -> None:
        """Say that new requests get `version`, and no other."""
        self.version_served.clear()
        self.version_served.labels(version).set(1)

    def try_out(self, version: str | None, share: float) -> None:
        """Say which share of conversations gets `version`; None: there is no canary here."""
        self.canary_share.clear()
        if version is not None:
            self.canary_share.labels(version).set(share)


class _Passed(Collector):
    """Metrics that somebody else keeps."""

    def __init__(self, metrics: Callable[[], Iterable[Metric]]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """As they are now."""
        return self._metrics()

    def describe(self) -> Iterable[Metric]:
        """None: what there will be is not known before the engine runs."""
        return ()
