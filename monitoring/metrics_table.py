"""Writes docs/metrics.md: every metric of the servers, the learner and the gateway, from the code that registers them.

python -m monitoring.metrics_table          write it; `make metrics-table`
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from monitoring.rules import CHART, metrics, rules
from plaudit_gateway.metrics import GatewayMetrics
from plaudit_learner.metrics import LearnerMetrics
from plaudit_server.metrics import ServerMetrics

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"

_UNITS = ("_timestamp_seconds", "_seconds", "_bytes", "_tokens", "_nats", "_ratio", "_ratio_low", "_ratio_high")
_UNIT_OF = {
    "plaudit_build_info": "",
    "plaudit_canary_replies": "replies",
    "plaudit_canary_share": "0 to 1",
    "plaudit_canary_votes": "votes",
    "plaudit_engine_up": "0 or 1",
    "plaudit_event_log_lag": "records",
    "plaudit_gate": "of the measure",
    "plaudit_gateway_refused_total": "requests",
    "plaudit_gateway_requests_running": "requests",
    "plaudit_gateway_requests_total": "requests",
    "plaudit_learner_stage": "0 or 1",
    "plaudit_new_votes": "votes",
    "plaudit_outbox_depth": "records",
    "plaudit_outbox_limit": "records",
    "plaudit_policy_info": "",
    "plaudit_policy_reward_gain": "sds",
    "plaudit_policy_state": "0 or 1",
    "plaudit_ppo_entropy": "nats a token",
    "plaudit_ppo_kl": "nats a reply",
    "plaudit_ppo_kl_budget": "nats a reply",
    "plaudit_ppo_reply_length": "tokens",
    "plaudit_ppo_reward": "sds",
    "plaudit_requests_running": "requests",
    "plaudit_requests_waiting": "requests",
    "plaudit_reward_model_accuracy": "0 to 1",
    "plaudit_reward_model_auc": "0 to 1",
    "plaudit_reward_model_ece": "0 to 1",
    "plaudit_reward_model_judgements": "judgements",
    "plaudit_version_loaded": "0 or 1",
    "plaudit_version_served": "0 or 1",
    "plaudit_votes": "votes",
    "plaudit_votes_per_round": "votes",
    "plaudit_learner_records_total": "records",
    "plaudit_dead_letters_total": "records",
    "plaudit_outbox_refused_total": "records",
    "plaudit_interactions_lost_total": "replies",
    "plaudit_requests_total": "replies",
    "plaudit_requests_refused_total": "requests",
    "plaudit_feedback_total": "statements",
    "plaudit_feedback_statements_total": "statements",
    "plaudit_generation_tokens_total": "tokens",
    "plaudit_prompt_tokens_total": "tokens",
    "plaudit_grpc_handled_total": "calls",
    "plaudit_calls_refused_total": "calls",
    "plaudit_version_failures_total": "attempts",
    "plaudit_engine_restarts_total": "attempts",
    "plaudit_event_log_failures_total": "attempts",
    "plaudit_reread_failures_total": "attempts",
    "plaudit_canary_decisions_total": "trials",
    "plaudit_rounds_total": "rounds",
    "plaudit_ppo_updates_total": "updates",
    "plaudit_gate_vetoes_total": "candidates",
}
_WORDS = {"_timestamp_seconds": "Unix time, s", "_seconds": "s", "_ratio": "0 to 1"}

_BEGIN = """# Metrics

Each program shows its metrics to Prometheus at `http://…:metrics-port/metrics`, over HTTP, open to whoever reaches the
address (`metrics-host`; `plaudit up` prints the addresses). They name no user and no caller, and hold no text. Names,
units and buckets follow Prometheus' conventions and vLLM's. This page is made from the code (`make metrics-table`), and
a test compares them.

A counter is called `…_total` when it is scraped; a histogram is `…_bucket`, `…_sum` and `…_count`. "Used by" names the
[alerts](operations.md) and recording rules (`helm/plaudit/rules`) and the dashboards (`helm/plaudit/dashboards`).

**Labels are bounded.** `policy_version` is, at a server, a version that is loaded, or one of the last 8 that were
unloaded, so that their last counts are still scraped; votes on others count as `other`. A version that is loaded again
later counts from 0, which Prometheus takes for a restart. At the learner it is a version in service, or one of the 16
newest. `aspect` is one of the server's setting `aspects`, `method` one that is served; all other labels have the values
that their row names, or a handful.
"""

_END = """
## Of the process

As prometheus_client has them, for each program: `process_cpu_seconds_total`, `process_resident_memory_bytes`,
`process_virtual_memory_bytes`, `process_open_fds`, `process_max_fds`, `process_start_time_seconds`. vLLM's children are
processes of their own, and are not in them.

## Of the engine

With vLLM, its own metrics are on the server's page as vLLM names them (`vllm:…`; `model_name` is the directory's name
of the base model): running and waiting requests, use of the KV cache, tokens, the phases of a request. Its dashboards
can be laid over ours. They begin at 0 when the engine is restarted. Not passed through is `vllm:lora_requests_info`,
whose labels are lists of adapters, more with every version. The torch engine has none.
"""


@dataclass(frozen=True)
class Row:
    """One metric."""

    name: str
    """As it is scraped, but for a histogram's suffixes."""
    kind: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def unit(self) -> str:
        """In words. Raises KeyError if nobody has said which."""
        if self.name in _UNIT_OF:
            return _UNIT_OF[self.name]
        suffix = next((unit for unit in _UNITS if self.name.endswith(unit)), None)
        if suffix is None:
            raise KeyError(f"{self.name}: name its unit in monitoring/metrics_table.py")
        return _WORDS.get(suffix.removesuffix("_low").removesuffix("_high"), suffix.removeprefix("_"))

    @property
    def scraped(self) -> set[str]:
        """The names that it has when it is scraped."""
        if self.kind == "histogram":
            return {f"{self.name}_{part}" for part in ("bucket", "sum", "count")}
        return {self.name}


def rows(registry: CollectorRegistry) -> list[Row]:
    """What a program registers of its own, by name."""
    found = []
    for collector in set(registry._collector_to_names):
        metric: Any = collector
        if not hasattr(metric, "_labelnames"):
            continue  # the process's
        (family,) = metric.describe()
        name, kind = family.name + "_total" * (family.type == "counter"), family.type
        labels = metric._labelnames
        if kind == "stateset":  # in the text format, a gauge for each state
            kind, labels = "gauge", (*labels, family.name)
        found.append(Row(name, kind, tuple(labels), family.documentation))
    return sorted(found, key=lambda row: row.name)


def programs() -> dict[str, list[Row]]:
    """Every metric of the code, by program."""
    return {
        "Of a server": rows(ServerMetrics(CollectorRegistry()).registry),
        "Of the learner": rows(LearnerMetrics(CollectorRegistry()).registry),
        "Of the gateway": rows(GatewayMetrics(CollectorRegistry()).registry),
    }


def uses() -> dict[str, list[str]]:
    """Who reads a metric, by its name as it is scraped: alerts, recording rules, dashboards."""
    readers: dict[str, list[str]] = {}
    for rule in rules():
        for name in rule.metrics:
            readers.setdefault(name, []).append(rule.name if rule.alert else f"`{rule.name}`")
    for file in sorted((CHART / "dashboards").glob("*.json")):
        dashboard = json.loads(file.read_text())
        for name in {
            name for panel in dashboard["panels"] for t in panel.get("targets", []) for name in metrics(t["expr"])
        }:
            readers.setdefault(name, []).append(f"*{dashboard['title'].removeprefix('Plaudit: ')}*")
    return readers


def page() -> str:
    """The whole page."""
    readers = uses()
    parts = [_BEGIN]
    for title, found in programs().items():
        parts.append(
            f"\n## {title}\n\n| metric | type | labels | unit | meaning | used by |\n|---|---|---|---|---|---|\n"
        )
        for row in found:
            by = dict.fromkeys(reader for name in sorted(row.scraped) for reader in readers.get(name, []))
            cells = (f"`{row.name}`", row.kind, ", ".join(f"`{label}`" for label in row.labels), row.unit, row.meaning)
            parts.append(f"| {' | '.join((*cells, _short(list(by))))} |\n")
    return "".join([*parts, _END])


def _short(readers: list[str]) -> str:
    """The seven windows of one recording rule are one reader."""
    ratios = [name for name in readers if name.startswith("`namespace:plaudit_chat_errors:")]
    rest = [name for name in readers if name not in ratios]
    return ", ".join((["`namespace:plaudit_chat_errors:ratio_rate…`"] if ratios else []) + rest)


if __name__ == "__main__":
    PAGE.write_text(page())
