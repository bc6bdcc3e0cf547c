"""For each alert, series in which it fires and series in which it does not, in promtool's notation, a sample a minute.

`1x60` is 1 for an hour (61 samples), `0+5x60` rises by 5 a minute, `_` is no sample.
"""

from __future__ import annotations

from dataclasses import dataclass

Series = dict[str, str]


@dataclass(frozen=True)
class Case:
    """One alert's two sides, at one time."""

    alert: str
    fires: Series
    quiet: Series
    at: str = "1h"
    """When it is looked at."""
    step: str = "1m"
    """Between two samples."""


S0, S1 = 'namespace="a",job="server",instance="s0"', 'namespace="a",job="server",instance="s1"'
L = 'namespace="a",job="learner",instance="l"'
SERVER = {f'plaudit_build_info{{{S0},program="server"}}': "1x200"}
LEARNER = {f'plaudit_build_info{{{L},program="learner"}}': "1x200"}
# Another deployment, in which everything is there: it must not hide what is missing in the first one.
OTHER = {
    'plaudit_build_info{namespace="b",job="server",instance="x",program="server"}': "1x200",
    'plaudit_build_info{namespace="b",job="learner",instance="y",program="learner"}': "1x200",
}
GONE = "1x40 _x100"

CHATS = f'plaudit_grpc_handled_total{{{S0},method="ChatService/StreamChat",code='


def chats(good: str, bad: str, code: str = "UNAVAILABLE") -> Series:
    return {f'{CHATS}"OK"}}': good, f'{CHATS}"{code}"}}': bad, shed(): "0x6000"}


def shed() -> str:
    return f'plaudit_requests_refused_total{{{S0},why="queue"}}'


def acknowledged(within_a_second: str, all_of_them: str) -> Series:
    name = "plaudit_feedback_acknowledgement_seconds_bucket"
    bounds = {"1.0": within_a_second, "2.5": all_of_them, "+Inf": all_of_them}
    return {f'{name}{{{S0},le="{bound}"}}': values for bound, values in bounds.items()}


def first_tokens(soon: str, all_of_them: str) -> Series:
    name = "plaudit_time_to_first_token_seconds_bucket"
    bounds = {"1.0": soon, "2.5": soon, "5.0": all_of_them, "+Inf": all_of_them}
    return {f'{name}{{{S0},policy_version="v1",le="{bound}"}}': values for bound, values in bounds.items()}


def release(approval: tuple[float, float, float], votes: int, state: str = "stable", gain: float = 0.4) -> Series:
    """v2, whose parent v1 is liked by 0.6 (0.55 to 0.65) of 400: low, share and high of its approval, its votes."""
    low, share, high = approval
    return {
        f'plaudit_policy_info{{{L},policy_version="v2",parent="v1"}}': "1x200",
        f'plaudit_policy_info{{{L},policy_version="v1",parent="v0"}}': "1x200",
        f'plaudit_policy_state{{{L},policy_version="v2",state="{state}"}}': "1x200",
        f'plaudit_policy_state{{{L},policy_version="v1",state="retired"}}': "1x200",
        f'plaudit_policy_reward_gain{{{L},policy_version="v2"}}': f"{gain}x200",
        f'plaudit_approval_ratio_low{{{L},policy_version="v1"}}': "0.55x200",
        f'plaudit_approval_ratio{{{L},policy_version="v1"}}': "0.6x200",
        f'plaudit_approval_ratio_high{{{L},policy_version="v1"}}': "0.65x200",
        f'plaudit_approval_ratio_low{{{L},policy_version="v2"}}': f"{low}x200",
        f'plaudit_approval_ratio{{{L},policy_version="v2"}}': f"{share}x200",
        f'plaudit_approval_ratio_high{{{L},policy_version="v2"}}': f"{high}x200",
        f'plaudit_votes{{{L},policy_version="v1",thumb="up"}}': "240x200",
        f'plaudit_votes{{{L},policy_version="v1",thumb="down"}}': "160x200",
        f'plaudit_votes{{{L},policy_version="v2",thumb="up"}}': f"{round(votes * share)}x200",
        f'plaudit_votes{{{L},policy_version="v2",thumb="down"}}': f"{votes - round(votes * share)}x200",
    }


def entropy(last: str) -> Series:
    return {
        f"plaudit_ppo_entropy{{{L}}}": last,
        f'plaudit_gate{{{L},measure="entropy",figure="reference"}}': "1.0x200",
        f'plaudit_gate{{{L},measure="entropy",figure="candidate"}}': "0.1x200",
    }


def rounds(rejected: str, canary: str) -> Series:
    return {
        f'plaudit_rounds_total{{{L},outcome="rejected"}}': rejected,
        f'plaudit_rounds_total{{{L},outcome="canary"}}': canary,
        f'plaudit_rounds_total{{{L},outcome="stable"}}': "0x200",
    }


def trial(began: str) -> Series:
    return {f"plaudit_canary_started_timestamp_seconds{{{L}}}": began}


def waiting(votes: str, canary: str) -> Series:
    return {
        f"plaudit_new_votes{{{L}}}": votes,
        f"plaudit_votes_per_round{{{L}}}": "40x200",
        f"plaudit_canary_started_timestamp_seconds{{{L}}}": canary,
    }


def versions(second: str) -> Series:
    return {
        f'plaudit_version_served{{{S0},policy_version="v1"}}': "1x200",
        f'plaudit_version_served{{{S1},policy_version="{second}"}}': "1x200",
    }


def unvoted(statements: str) -> Series:
    return {
        f'plaudit_requests_total{{{S0},policy_version="v1",finish_reason="stop"}}': "0+200x200",
        f'plaudit_feedback_statements_total{{{S0},outcome="event_log"}}': statements,
        f'plaudit_feedback_statements_total{{{S0},outcome="invalid"}}': "0+1x200",  # was said, and is no vote
    }


CASES = [
    Case(
        "PlauditServerDown",
        {f"up{{{S0}}}": "1x50 0x100", next(iter(SERVER)): GONE},
        {f"up{{{S0}}}": "1x200", **SERVER},
    ),
    # Not ours: a target that never was a server.
    Case(
        "PlauditServerDown",
        {f"up{{{S0}}}": "1x50 0x100", next(iter(SERVER)): GONE},
        {f"up{{{L}}}": "0x200", **SERVER},
    ),
    Case("PlauditNoServers", {**LEARNER, next(iter(SERVER)): GONE, **OTHER}, {**LEARNER, **SERVER, **OTHER}),
    Case(
        "PlauditEngineDown",
        {f"plaudit_engine_up{{{S0}}}": "1x50 0x100"},
        {f"plaudit_engine_up{{{S0}}}": "1x50 0x3 1x100"},
    ),
    Case(
        "PlauditEngineRestarting",
        {f'plaudit_engine_restarts_total{{{S0},outcome="up"}}': "0x10 1x10 2x10 3x10 4x100"},
        {f'plaudit_engine_restarts_total{{{S0},outcome="up"}}': "0x10 1x100"},
    ),
    Case("PlauditTimeToFirstTokenHigh", first_tokens("0+50x200", "0+60x200"), first_tokens("0+59x200", "0+60x200")),
    # 14.4 x 0.5 % = 7.2 % over 1 h and 5 min; not if it is over.
    Case("PlauditErrorBudgetBurnFast", chats("0+90x200", "0+10x200"), chats("0+90x200", "0+20x25 500x100")),
    Case(
        "PlauditErrorBudgetBurnFast",
        chats("0+90x200", "0+10x200", "INTERNAL"),
        chats("0+90x200", "0+50x200", "CANCELLED"),
    ),
    Case(
        "PlauditErrorBudgetBurnFast", {**chats("0+90x200", "0x200"), shed(): "0+10x200"}, chats("0+99x200", "0+1x200")
    ),
    # 6 x 0.5 % = 3 % over 6 h and 30 min, which 1 h does not show as much.
    Case("PlauditErrorBudgetBurnFast", chats("0+96x600", "0+4x600"), chats("0+98x600", "0+2x600"), at="8h", step="10m"),
    # 3 x 0.5 % over a day, 1 x over three days.
    Case(
        "PlauditErrorBudgetBurnSlow",
        chats("0+98x6000", "0+2x6000"),
        chats("0+997x6000", "0+3x6000"),
        at="30h",
        step="30m",
    ),
    Case(
        "PlauditErrorBudgetBurnSlow",
        chats("0+992x6000", "0+8x6000"),
        chats("0+996x6000", "0+4x6000"),
        at="80h",
        step="30m",
    ),
    Case("PlauditRequestsShed", {shed(): "0+3x200"}, {shed(): "0+3x20 60x100"}),
    Case("PlauditServersDisagree", versions("v2"), versions("v1")),
    Case(
        "PlauditVersionFailsToLoad",
        {f'plaudit_version_failures_total{{{S0},why="artefact"}}': "0x40 0+30x100"},
        {f'plaudit_version_failures_total{{{S0},why="no_room"}}': "0x40 0+30x100"},
    ),
    Case("PlauditFeedbackSlow", acknowledged("0+90x200", "0+100x200"), acknowledged("0+100x200", "0+100x200")),
    Case(
        "PlauditOutboxGrowing",
        {f"plaudit_outbox_oldest_seconds{{{S0}}}": "0x40 0+60x100"},
        {f"plaudit_outbox_oldest_seconds{{{S0}}}": "0x40 60 120 0.2x100"},
    ),
    Case(
        "PlauditOutboxNearlyFull",
        {f"plaudit_outbox_depth{{{S0}}}": "0+1500x200", f"plaudit_outbox_limit{{{S0}}}": "100000x200"},
        {f"plaudit_outbox_depth{{{S0}}}": "0+1000x200", f"plaudit_outbox_limit{{{S0}}}": "100000x200"},
    ),
    Case(
        "PlauditInteractionsLost",
        {f"plaudit_interactions_lost_total{{{S0}}}": "0x55 1x100"},
        {f"plaudit_interactions_lost_total{{{S0}}}": "7x200"},
    ),
    Case(
        "PlauditOutboxRefused",
        {f"plaudit_outbox_refused_total{{{S0}}}": "0x30 1x100"},
        {f"plaudit_outbox_refused_total{{{S0}}}": "1x200"},
    ),
    Case(
        "PlauditFileNotReread",
        {f'plaudit_reread_failures_total{{{S0},what="TLS certificates"}}': "0x55 1x100"},
        {f'plaudit_reread_failures_total{{{S0},what="TLS certificates"}}': "0x10 1x100"},
    ),
    Case("PlauditNoVotes", unvoted("0x200"), unvoted("0x14 1x200"), at="2h30m", step="5m"),
    Case(
        "PlauditRestartsOften",
        {f"process_start_time_seconds{{{S0}}}": "1x10 2x10 3x10 4x10 5x100", **SERVER},
        {f"process_start_time_seconds{{{S0}}}": "1x10 2x100", **SERVER},
    ),
    Case("PlauditLearnerDown", {**SERVER, next(iter(LEARNER)): GONE, **OTHER}, {**SERVER, **LEARNER, **OTHER}),
    Case(
        "PlauditLearnerStuck",
        {f"plaudit_learner_progress_timestamp_seconds{{{L}}}": "0+60x20 1200x100"},
        {f"plaudit_learner_progress_timestamp_seconds{{{L}}}": "0+60x200"},
    ),
    Case(
        "PlauditLearnerLagging",
        {f"plaudit_learner_caught_up_timestamp_seconds{{{L}}}": "0+60x20 1200x200"},
        {f"plaudit_learner_caught_up_timestamp_seconds{{{L}}}": "0+60x20 1200x40 5000x200"},
        at="1h30m",
    ),
    Case(
        "PlauditEventLogUnavailable",
        {f"plaudit_event_log_failures_total{{{L}}}": "0x50 0+20x100"},
        {f"plaudit_event_log_failures_total{{{L}}}": "0x10 0+20x3 60x100"},
    ),
    Case(
        "PlauditDeadLetters",
        {f'plaudit_dead_letters_total{{{L},topic="plaudit.feedback"}}': "0x30 1x100"},
        {f'plaudit_dead_letters_total{{{L},topic="plaudit.feedback"}}': "9x200"},
    ),
    # Apart; touching; the same in a version that is no longer in service.
    Case("PlauditApprovalFell", release((0.3, 0.4, 0.5), 100), release((0.4, 0.5, 0.6), 100)),
    Case("PlauditApprovalFell", release((0.3, 0.4, 0.5), 100), release((0.3, 0.4, 0.5), 100, "rolled_back")),
    # Liked less by 0.1; by 0.03; on few votes; a version that the reward model does not prefer either.
    Case("PlauditRewardHacking", release((0.4, 0.5, 0.6), 100), release((0.47, 0.57, 0.67), 100)),
    Case("PlauditRewardHacking", release((0.4, 0.5, 0.6), 100, "canary"), release((0.2, 0.5, 0.8), 10)),
    Case("PlauditRewardHacking", release((0.4, 0.5, 0.6), 100), release((0.4, 0.5, 0.6), 100, gain=-0.1)),
    Case("PlauditCanaryStuck", trial("0x10 1000x200"), trial("0x10 1000x60 0x10 5000x130"), at="33h", step="10m"),
    Case("PlauditCanaryStuck", trial("1000x200"), trial("0x200"), at="33h", step="10m"),
    Case(
        "PlauditCanariesRolledBack",
        {f'plaudit_canary_decisions_total{{{L},decision="roll back"}}': "0x10 1x10 2x200"},
        {
            f'plaudit_canary_decisions_total{{{L},decision="roll back"}}': "0x10 1x200",
            f'plaudit_canary_decisions_total{{{L},decision="promote"}}': "0x10 1x10 2x200",
        },
    ),
    Case(
        "PlauditGateRejectsAll", rounds("0x10 1x10 2x10 3x100", "0x200"), rounds("0x10 1x10 2x10 3x100", "0x20 1x100")
    ),
    Case(
        "PlauditKlOutOfBounds",
        {f"plaudit_ppo_kl{{{L}}}": "1x40 3.5x100", f"plaudit_ppo_kl_budget{{{L}}}": "3x200"},
        {f"plaudit_ppo_kl{{{L}}}": "2.9x200", f"plaudit_ppo_kl_budget{{{L}}}": "3x200"},
    ),
    Case("PlauditEntropyOutOfBounds", entropy("1x40 0.4x100"), entropy("1x40 0.6x100")),
    Case("PlauditEntropyOutOfBounds", entropy("1x40 2.1x100"), entropy("1x40 1.9x100")),
    Case(
        "PlauditRewardModelWeak",
        {f'plaudit_reward_model_auc{{{L},aspect="quality"}}': "0.52x200"},
        {f'plaudit_reward_model_auc{{{L},aspect="quality"}}': "0.7x200"},
        at="2h",
        step="5m",
    ),
    Case("PlauditRoundsStalled", waiting("0+20x200", "0x200"), waiting("0+20x200", "1000x200"), at="8h", step="5m"),
    Case("PlauditRoundsStalled", waiting("0+20x200", "0x200"), waiting("70x200", "0x200"), at="8h", step="5m"),
]
