"""Makes the chart's Grafana dashboards: Serving, Loop, Policy versions.

python -m monitoring.dashboards             write them to helm/plaudit/dashboards; `make dashboards`
"""

from __future__ import annotations

import json

from monitoring.grafana import Json, Panel, Row, dashboard
from monitoring.rules import CHART

DIRECTORY = CHART / "dashboards"

_IN = 'namespace=~"$namespace",instance=~"$instance"'
_OK_ABOVE = ((None, "red"), (1.0, "green"))
_BAD_ABOVE_0 = ((None, "green"), (1e-9, "red"))


def of(metric: str, **labels: str) -> str:
    """A metric's series in what is chosen above, with these labels; a value of several is separated by |."""
    matchers = ",".join([_IN, *(f'{name}=~"{value}"' for name, value in labels.items())])
    return f"{metric}{{{matchers}}}"


def recorded(rule: str) -> str:
    """A recording rule's, which has no instance."""
    return f'{rule}{{namespace=~"$namespace"}}'


def rate(metric: str, by: str) -> str:
    """A counter's rate a second, summed by some labels."""
    return f"sum by ({by}) (rate({of(metric)}[$__rate_interval]))"


def quantiles(histogram: str, *shares: float) -> list[tuple[str, str]]:
    """Quantiles of a histogram over all servers."""
    return [
        (f"histogram_quantile({share}, {rate(f'{histogram}_bucket', 'le')})", f"p{100 * share:.0f}") for share in shares
    ]


def _stat(title: str, description: str, expr: str, **more: object) -> Panel:
    return Panel(title, description, [(expr, "")], kind="stat", width=4, height=4, **more)  # type: ignore[arg-type]


def serving() -> Json:
    """Requests, latencies, votes on their way, versions as servers have them."""
    rows = [
        Row(
            "Now",
            [
                _stat("Servers", "Servers that answer.", f"count({of('plaudit_build_info', program='server')})"),
                _stat(
                    "Engines up",
                    "Share of servers whose engine is up; chats are refused by the others.",
                    f"avg({of('plaudit_engine_up')})",
                    unit="percentunit",
                    thresholds=_OK_ABOVE,
                ),
                _stat("Running", "Requests in the engines.", f"sum({of('plaudit_requests_running')})"),
                _stat(
                    "Waiting",
                    "Requests that wait for a place; what replicas are scaled by.",
                    f"sum({of('plaudit_requests_waiting')})",
                    thresholds=((None, "green"), (1.0, "orange")),
                ),
                _stat(
                    "Chats that failed",
                    "Share of chats within 5 minutes that a server failed or had no room for. Objective: 0.5 %.",
                    recorded("namespace:plaudit_chat_errors:ratio_rate5m"),
                    unit="percentunit",
                    thresholds=((None, "green"), (0.005, "orange"), (0.072, "red")),
                ),
                _stat(
                    "First token, p95",
                    "From admission to the first token. Objective: 2.5 s.",
                    recorded("namespace:plaudit_time_to_first_token_seconds:p95_rate5m"),
                    unit="s",
                    thresholds=((None, "green"), (2.5, "red")),
                ),
            ],
        ),
        Row(
            "Latency",
            [
                Panel(
                    "Time to first token",
                    "From admission to the first token; waiting for a place is in it.",
                    quantiles("plaudit_time_to_first_token_seconds", 0.5, 0.95, 0.99),
                    unit="s",
                    thresholds=((None, "green"), (2.5, "red")),
                ),
                Panel(
                    "Between two tokens",
                    "Of one reply; several tokens in one step share its time.",
                    quantiles("plaudit_inter_token_latency_seconds", 0.5, 0.95, 0.99),
                    unit="s",
                ),
                Panel(
                    "Whole replies",
                    "From admission to the last token.",
                    quantiles("plaudit_e2e_request_latency_seconds", 0.5, 0.95, 0.99),
                    unit="s",
                ),
                Panel(
                    "Waiting for a place",
                    "From admission to a place in the engine.",
                    quantiles("plaudit_request_queue_time_seconds", 0.5, 0.95, 0.99),
                    unit="s",
                ),
                Panel(
                    "Requests",
                    "In the engines, and waiting for a place there.",
                    [
                        (f"sum({of('plaudit_requests_running')})", "running"),
                        (f"sum({of('plaudit_requests_waiting')})", "waiting"),
                    ],
                ),
                Panel(
                    "Budget of errors: how fast it burns",
                    "1: the budget of 30 days lasts 30 days. Alerts at 14.4 (1 h) and 6 (6 h), at 3 (1 d) and 1 (3 d).",
                    [
                        (f"{recorded(f'namespace:plaudit_chat_errors:ratio_rate{span}')} / 0.005", span)
                        for span in ("5m", "1h", "6h", "1d", "3d")
                    ],
                    thresholds=((None, "green"), (1.0, "orange"), (14.4, "red")),
                ),
            ],
        ),
        Row(
            "Throughput",
            [
                Panel(
                    "Replies by how they ended",
                    "stop and length are as meant; cancelled: the caller left; error: the engine failed.",
                    [(rate("plaudit_requests_total", "finish_reason"), "{{finish_reason}}")],
                    unit="reqps",
                ),
                Panel(
                    "Tokens",
                    "Read and sampled, a second.",
                    [
                        (f"sum(rate({of('plaudit_prompt_tokens_total')}[$__rate_interval]))", "read"),
                        (f"sum(rate({of('plaudit_generation_tokens_total')}[$__rate_interval]))", "sampled"),
                    ],
                ),
                Panel(
                    "Refused, by why",
                    "queue: it was full; caller_… and user_…: a limit of theirs; left: the caller gave up waiting.",
                    [(rate("plaudit_requests_refused_total", "why"), "{{why}}")],
                    unit="reqps",
                ),
                Panel(
                    "Calls by status",
                    "All gRPC calls, health checks too.",
                    [(rate("plaudit_grpc_handled_total", "code"), "{{code}}")],
                    unit="reqps",
                ),
                Panel(
                    "Calls by method",
                    "All gRPC calls.",
                    [(rate("plaudit_grpc_handled_total", "method"), "{{method}}")],
                    unit="reqps",
                ),
                Panel(
                    "Calls of strangers",
                    "unauthenticated: nobody known here; permission_denied: somebody who may not.",
                    [(rate("plaudit_calls_refused_total", "reason"), "{{reason}}")],
                    unit="reqps",
                ),
            ],
        ),
        Row(
            "Votes on their way",
            [
                Panel(
                    "Statements by what became of them",
                    "event_log and outbox are acknowledged; invalid and limited are the caller's to put right.",
                    [(rate("plaudit_feedback_statements_total", "outcome"), "{{outcome}}")],
                    unit="reqps",
                ),
                Panel(
                    "Acknowledgement",
                    "From a statement that is right to its acknowledgement.",
                    quantiles("plaudit_feedback_acknowledgement_seconds", 0.5, 0.99),
                    unit="s",
                ),
                Panel(
                    "Outbox",
                    "Records that are not in the event log yet, and how many a server takes.",
                    [
                        (of("plaudit_outbox_depth"), "{{instance}}"),
                        (f"min({of('plaudit_outbox_limit')})", "limit"),
                    ],
                ),
                Panel(
                    "Oldest record in the outbox",
                    "How long the event log has not taken it.",
                    [(of("plaudit_outbox_oldest_seconds"), "{{instance}}")],
                    unit="s",
                    thresholds=((None, "green"), (10.0, "red")),
                ),
                Panel(
                    "Lost, refused",
                    "Replies served and not recorded, and records that the event log refuses for good, within an hour.",
                    [
                        (f"sum(increase({of('plaudit_interactions_lost_total')}[1h]))", "replies lost"),
                        (f"sum(increase({of('plaudit_outbox_refused_total')}[1h]))", "records refused"),
                    ],
                    thresholds=_BAD_ABOVE_0,
                ),
                Panel(
                    "What could not be read",
                    "Reads of the event log, and of changed files, that failed within an hour.",
                    [
                        (f"sum by (instance) (increase({of('plaudit_event_log_failures_total')}[1h]))", "{{instance}}"),
                        (f"sum by (what) (increase({of('plaudit_reread_failures_total')}[1h]))", "{{what}}"),
                    ],
                    thresholds=_BAD_ABOVE_0,
                ),
            ],
        ),
        Row(
            "Versions and processes",
            [
                Panel(
                    "Served",
                    "What each server gives new requests, but for the canary's share.",
                    [(f"{of('plaudit_version_served')} == 1", "{{instance}}: {{policy_version}}")],
                    kind="state-timeline",
                    mappings=((1, "served", "green"),),
                ),
                Panel(
                    "Loaded",
                    "How many servers have each version ready.",
                    [(f"sum by (policy_version) ({of('plaudit_version_loaded')})", "{{policy_version}}")],
                ),
                Panel(
                    "Attempts to load that failed",
                    "By why, within an hour; no_room only waits for streams to end.",
                    [(f"sum by (why) (increase({of('plaudit_version_failures_total')}[1h]))", "{{why}}")],
                    thresholds=_BAD_ABOVE_0,
                ),
                Panel(
                    "Restarts of engines",
                    "Within an hour, by outcome.",
                    [(f"sum by (outcome) (increase({of('plaudit_engine_restarts_total')}[1h]))", "{{outcome}}")],
                    thresholds=_BAD_ABOVE_0,
                ),
                Panel(
                    "Processor",
                    "Cores that each program keeps busy; vLLM's children are not in it.",
                    [(f"rate({of('process_cpu_seconds_total')}[$__rate_interval])", "{{instance}}")],
                ),
                Panel(
                    "Memory",
                    "Resident; vLLM's children are not in it.",
                    [(of("process_resident_memory_bytes"), "{{instance}}")],
                    unit="bytes",
                ),
                Panel(
                    "What runs",
                    "Program, version, engine and base model of each instance.",
                    [(of("plaudit_build_info"), "{{instance}}")],
                    kind="table",
                    width=24,
                ),
            ],
        ),
    ]
    return dashboard("plaudit-serving", "Plaudit: Serving", "Requests, latencies, votes on their way.", rows)


def loop() -> Json:
    """Votes → reward model → PPO → gate → release."""
    rows = [
        Row(
            "Learner",
            [
                Panel(
                    "Stage",
                    "What the learner does.",
                    [(f"{of('plaudit_learner_stage')} == 1", "{{plaudit_learner_stage}}")],
                    kind="state-timeline",
                    mappings=((1, "here", "blue"),),
                ),
                Panel(
                    "Behind the event log",
                    "Records that the learner has not taken in.",
                    [(of("plaudit_event_log_lag"), "{{instance}}")],
                ),
                Panel(
                    "Since it last …",
                    "… got on, caught up with the event log, wrote down the running round.",
                    [
                        (f"time() - {of('plaudit_learner_progress_timestamp_seconds')}", "got on"),
                        (f"time() - {of('plaudit_learner_caught_up_timestamp_seconds')}", "caught up"),
                        (f"time() - ({of('plaudit_learner_checkpoint_timestamp_seconds')} > 0)", "wrote down"),
                    ],
                    unit="s",
                ),
            ],
        ),
        Row(
            "Votes",
            [
                Panel(
                    "Taken in",
                    "Records of all kinds, a second.",
                    [(f"rate({of('plaudit_learner_records_total')}[$__rate_interval])", "{{instance}}")],
                ),
                Panel(
                    "Votes for the next round",
                    "That stand and that no round has used, and how many begin one.",
                    [
                        (of("plaudit_new_votes"), "new votes"),
                        (of("plaudit_votes_per_round"), "begin a round"),
                    ],
                ),
                Panel(
                    "Dead letters",
                    "Records put aside, by topic, within an hour.",
                    [(f"sum by (topic) (increase({of('plaudit_dead_letters_total')}[1h]))", "{{topic}}")],
                    thresholds=_BAD_ABOVE_0,
                ),
            ],
        ),
        Row(
            "Reward model",
            [
                Panel(
                    "Tells good from bad",
                    "Whether the better reply scores higher, on votes held out by prompt: AUC of thumbs, concordance "
                    "of ratings, share of pairs right, by weight; below 0.55 nothing is learnt from it.",
                    [(of("plaudit_reward_model_auc"), "{{aspect}}")],
                    thresholds=((None, "red"), (0.55, "green")),
                    least=0.5,
                    most=1,
                ),
                Panel(
                    "Predicts, and knows how well",
                    "Accuracy, and expected calibration error, on votes held out by prompt.",
                    [
                        (of("plaudit_reward_model_accuracy"), "accuracy, {{aspect}}"),
                        (of("plaudit_reward_model_ece"), "calibration error, {{aspect}}"),
                    ],
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "Judgements",
                    "That it was fitted on.",
                    [(of("plaudit_reward_model_judgements"), "{{aspect}}")],
                ),
            ],
        ),
        Row(
            "PPO",
            [
                Panel(
                    "Reward",
                    "Mean over the last update's rollouts, in deviations under the reference.",
                    [(of("plaudit_ppo_reward"), "reward")],
                    least=None,
                ),
                Panel(
                    "KL",
                    "To the reference, nats a reply, and its budget.",
                    [(of("plaudit_ppo_kl"), "KL"), (of("plaudit_ppo_kl_budget"), "budget")],
                ),
                Panel(
                    "Entropy",
                    "Nats a token, and the reference's as the gate measured it last.",
                    [
                        (of("plaudit_ppo_entropy"), "policy"),
                        (of("plaudit_gate", measure="entropy", figure="reference"), "reference"),
                    ],
                ),
                Panel(
                    "Length of replies",
                    "Mean over the last update's rollouts, in tokens.",
                    [(of("plaudit_ppo_reply_length"), "tokens")],
                ),
                Panel(
                    "Updates",
                    "Of the policy, within an hour.",
                    [(f"increase({of('plaudit_ppo_updates_total')}[1h])", "updates")],
                ),
                Panel(
                    "How long rounds take",
                    "Mean within a day.",
                    [
                        (
                            f"increase({of('plaudit_round_duration_seconds_sum')}[1d])"
                            f" / (increase({of('plaudit_round_duration_seconds_count')}[1d]) > 0)",
                            "a round",
                        )
                    ],
                    unit="s",
                ),
            ],
        ),
        Row(
            "Gate",
            [
                Panel(
                    "The last candidate",
                    "What the gate measured of it, what that was compared with, and the bound.",
                    [(f"sum by (measure, figure) ({of('plaudit_gate')})", "")],
                    kind="table",
                    width=12,
                    height=9,
                    least=None,
                ),
                Panel(
                    "Rounds by outcome",
                    "Within a day.",
                    [(f"sum by (outcome) (increase({of('plaudit_rounds_total')}[1d]))", "{{outcome}}")],
                    width=6,
                    height=9,
                ),
                Panel(
                    "Checks broken",
                    "Candidates that broke each check, within a week.",
                    [(f"sum by (measure) (increase({of('plaudit_gate_vetoes_total')}[1w]))", "{{measure}}")],
                    width=6,
                    height=9,
                ),
            ],
        ),
        Row(
            "Release",
            [
                Panel(
                    "Approval in the trial",
                    "Of the votes that count, canary beside stable version.",
                    [(of("plaudit_canary_approval_ratio"), "{{side}}")],
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "Votes and replies in the trial",
                    "By side.",
                    [
                        (of("plaudit_canary_votes"), "votes, {{side}}"),
                        (of("plaudit_canary_replies"), "replies, {{side}}"),
                    ],
                ),
                Panel(
                    "Evidence of harm",
                    "Log of the bettors' capital; above 3.5 (log 1/0.03) the canary is rolled back.",
                    [(of("plaudit_canary_harm_nats"), "harm")],
                    least=None,
                    thresholds=((None, "green"), (3.5, "red")),
                ),
                Panel(
                    "The canary's share",
                    "Of conversations: as the learner says, and as servers do.",
                    [(of("plaudit_canary_share"), "{{instance}}: {{policy_version}}")],
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "Trials by decision",
                    "Within a week.",
                    [(f"sum by (decision) (increase({of('plaudit_canary_decisions_total')}[1w]))", "{{decision}}")],
                ),
                Panel(
                    "How long the trial has run",
                    "0: votes decide about nothing.",
                    [
                        (
                            f"(time() - {of('plaudit_canary_started_timestamp_seconds')})"
                            f" * ({of('plaudit_canary_started_timestamp_seconds')} > bool 0)",
                            "trial",
                        )
                    ],
                    unit="s",
                ),
            ],
        ),
    ]
    return dashboard("plaudit-loop", "Plaudit: Loop", "Votes → reward model → PPO → gate → release.", rows)


def versions() -> Json:
    """Policy versions side by side: how they are liked, how fast and how long they answer."""
    rows = [
        Row(
            "Approval",
            [
                Panel(
                    "Approval",
                    "Thumbs-up ÷ all thumbs that stand.",
                    [(of("plaudit_approval_ratio"), "{{policy_version}}")],
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "With its 95 % interval",
                    "Low end, share and high end (Wilson), version by version.",
                    [
                        (of("plaudit_approval_ratio_low"), "{{policy_version}} low"),
                        (of("plaudit_approval_ratio"), "{{policy_version}}"),
                        (of("plaudit_approval_ratio_high"), "{{policy_version}} high"),
                    ],
                    unit="percentunit",
                    kind="bargauge",
                    most=1,
                ),
                Panel(
                    "Beside its parent",
                    "Approval less that of the version that it had to beat.",
                    [
                        (
                            f"max by (namespace, policy_version) ({of('plaudit_approval_ratio')})"
                            " - on (namespace, policy_version) "
                            + recorded("namespace_policy_version:plaudit_parent_approval_ratio:max"),
                            "{{policy_version}}",
                        )
                    ],
                    unit="percentunit",
                    least=None,
                    thresholds=((None, "red"), (0.0, "green")),
                ),
                Panel(
                    "Approval of the last hour",
                    "Thumbs-up ÷ all thumbs that servers acknowledged within an hour, repeats included.",
                    [
                        (
                            f"sum by (policy_version) (increase({of('plaudit_feedback_total', verdict='up')}[1h]))"
                            " / (sum by (policy_version) (increase("
                            f"{of('plaudit_feedback_total', verdict='up|down')}[1h])) > 0)",
                            "{{policy_version}}",
                        )
                    ],
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "Votes",
                    "Thumbs that stand, by version and thumb.",
                    [(of("plaudit_votes"), "{{policy_version}} {{thumb}}")],
                ),
                Panel(
                    "Statements",
                    "As servers acknowledge them, by version and verdict, a second.",
                    [(rate("plaudit_feedback_total", "policy_version,verdict"), "{{policy_version}} {{verdict}}")],
                    unit="reqps",
                ),
            ],
        ),
        Row(
            "Where they stand",
            [
                Panel(
                    "State",
                    "candidate, canary, stable, retired, rejected or rolled back.",
                    [(f"{of('plaudit_policy_state')} == 1", "{{policy_version}} {{state}}")],
                    kind="state-timeline",
                    mappings=((1, "here", "blue"),),
                ),
                Panel(
                    "What the gate promised",
                    "How much better than its parent the gate found it by the reward model, in reference deviations.",
                    [(of("plaudit_policy_reward_gain"), "{{policy_version}}")],
                    least=None,
                ),
                Panel(
                    "Parents",
                    "The version that each had to beat.",
                    [(of("plaudit_policy_info"), "")],
                    kind="table",
                ),
            ],
        ),
        Row(
            "How they answer",
            [
                Panel(
                    "Replies",
                    "By version, a second.",
                    [(rate("plaudit_requests_total", "policy_version"), "{{policy_version}}")],
                    unit="reqps",
                ),
                Panel(
                    "Length",
                    "Tokens a reply, mean within an hour.",
                    [
                        (
                            f"sum by (policy_version) (increase({of('plaudit_generation_tokens_total')}[1h]))"
                            f" / (sum by (policy_version) (increase({of('plaudit_requests_total')}[1h])) > 0)",
                            "{{policy_version}}",
                        )
                    ],
                ),
                Panel(
                    "Cut off",
                    "Share of replies that ended at the limit of tokens, within an hour.",
                    [
                        (
                            "sum by (policy_version) (increase("
                            f"{of('plaudit_requests_total', finish_reason='length')}[1h]))"
                            f" / (sum by (policy_version) (increase({of('plaudit_requests_total')}[1h])) > 0)",
                            "{{policy_version}}",
                        )
                    ],
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "Time to first token, p95",
                    "By version.",
                    [
                        (
                            "histogram_quantile(0.95, "
                            f"{rate('plaudit_time_to_first_token_seconds_bucket', 'policy_version,le')})",
                            "{{policy_version}}",
                        )
                    ],
                    unit="s",
                ),
                Panel(
                    "Between two tokens, p95",
                    "By version.",
                    [
                        (
                            "histogram_quantile(0.95, "
                            f"{rate('plaudit_inter_token_latency_seconds_bucket', 'policy_version,le')})",
                            "{{policy_version}}",
                        )
                    ],
                    unit="s",
                ),
                Panel(
                    "Whole replies, p95",
                    "By version.",
                    [
                        (
                            "histogram_quantile(0.95, "
                            f"{rate('plaudit_e2e_request_latency_seconds_bucket', 'policy_version,le')})",
                            "{{policy_version}}",
                        )
                    ],
                    unit="s",
                ),
            ],
        ),
    ]
    return dashboard("plaudit-versions", "Plaudit: Policy versions", "Policy versions side by side.", rows)


def files() -> dict[str, str]:
    """What the files hold, by their names."""
    made = {"serving.json": serving(), "loop.json": loop(), "policy-versions.json": versions()}
    return {name: json.dumps(each, indent=1, ensure_ascii=False) + "\n" for name, each in made.items()}


if __name__ == "__main__":
    for name, text in files().items():
        (DIRECTORY / name).write_text(text)
