"""How `plaudit top` looks: everything that matters, within the terminal's width and height, in any character set."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.cells import cell_len
from rich.console import Console

from plaudit.wilson import wilson
from plaudit_cli.scrape import Serving
from plaudit_cli.top_view import ASCII, UNICODE, Glyphs, Snapshot, render
from plaudit_client import (
    Approval,
    LearnerReport,
    Loop,
    Policies,
    Policy,
    PpoUpdate,
    ReleaseStep,
    RewardModelHead,
    RoundReport,
)

NOW = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def approval(version: str, up: int, down: int) -> Approval:
    return Approval(version, up, down, *wilson(up, up + down))


def policy(version: str, state: str) -> Policy:
    return Policy(version, "v0", state, "", None, {}, (), "v0")


UPDATES = tuple(PpoUpdate(n, 0.1 * n, 0.05 * n, 2.0, 30.0, ago(60 - n)) for n in range(1, 8))
ROUND = RoundReport(
    number=3,
    started_at=ago(300),
    ended_at=None,
    parent="v1",
    reference="v0",
    votes=120,
    heads=(RewardModelHead("quality", 0.78, 0.71, 0.05, 120), RewardModelHead("tone", math.nan, 0.5, math.nan, 7)),
    updates=UPDATES,
    updates_planned=12,
    kl_budget=1.2,
    version="",
    outcome="",
    reason="",
)
LONG = "passed the gate, 过了门, after a long look at all that it could look at and more than that, which does not end"
LOOP = Loop(
    learner=LearnerReport(
        time=ago(3),
        stage="improving",
        stage_since=ago(250),
        lag=0,
        new_votes=17,
        votes_per_round=40,
        approvals=(approval("v0", 40, 60), approval("v1", 45, 5), approval("v2", 0, 0)),
        buckets=(),
    ),
    rounds=(ROUND,),
    releases=(
        ReleaseStep("v1", "v0", "canary", "passed the gate", "learner", ago(900), 0.25),
        ReleaseStep("v1", "v0", "stable", LONG, "learner", ago(600), 0.0),
        ReleaseStep("v2", "v1", "rolled back", "people\x1b[31m dislike it", "operator", ago(30), 0.0),
    ),
)
SNAPSHOT = Snapshot(
    time=NOW,
    control="127.0.0.1:51051",
    loop=LOOP,
    loop_error="",
    policies=Policies((policy("v0", "retired"), policy("v1", "stable"), policy("v2", "rolled back")), "v1", (), {}),
    policies_error="",
    serving=Serving(2, 3.21, 141.0, 0.043, 1.5, 0.021, 60.0, 4, 1, 0, 0),
    endpoints={"http://127.0.0.1:9464/metrics": "", "http://127.0.0.1:9466/metrics": "Connection refused"},
)


def shown(snapshot: Snapshot, width: int | None, height: int | None = None, glyphs: Glyphs = UNICODE) -> list[str]:
    console = Console(file=io.StringIO(), width=width or 10_000, height=height, color_system=None)
    console.print(render(snapshot, width=width, height=height, glyphs=glyphs))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (40, 12)])
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
def test_it_fits(width: int, height: int, glyphs: Glyphs) -> None:
    many = tuple(approval(f"v{n}", n, 5) for n in range(60))
    assert LOOP.learner is not None
    full = replace(LOOP, learner=replace(LOOP.learner, approvals=many), releases=LOOP.releases * 20)
    for snapshot in (SNAPSHOT, replace(SNAPSHOT, loop=full)):
        lines = shown(snapshot, width, height, glyphs)
        assert len(lines) <= height
        assert max(map(cell_len, lines)) <= width
        if glyphs is ASCII:
            assert all(line.isascii() for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_all_that_matters_is_there(width: int) -> None:
    lines = shown(SNAPSHOT, width, 24)
    text = "\n".join(lines)
    for words in (
        "serves v1",
        "replies 3.21/s   tokens 141/s   running 4   waiting 1   outbox 0   2 servers",
        "first token p50 43 ms, p99 1.5 s   between tokens p50 21 ms   last 60 s",
        "http://127.0.0.1:9466/metrics: Connection refused",
        "improving for 4 min   new votes 17/40   records behind 0",
        "round 3, 120 votes: ",
        " update 7 of 12   entropy 2.00   30 tokens",
        "AUC quality 0.78, tone -",
        "reward +0.70   KL 0.35 of 1.20 nats",
        "canary at 0.25: passed the gate",
    ):
        assert words in text
    assert "9464" not in text, "what answers needs no line"
    assert "\x1b" not in text
    assert "rolled back: people [31m dislike it (by operator)" in text, "what a reason says, a terminal does not obey"
    (v0,) = [line for line in lines if line.startswith("  v0 ")]
    assert " 40% [ 31%, 50%] of 100 votes" in v0
    (v1,) = [line for line in lines if line.startswith("  v1 ")]
    assert "stable" in v1
    assert v1.index("●") > v0.index("●"), "what is liked more stands further to the right"
    assert v0.count("━") > 0
    (v2,) = [line for line in lines if line.startswith("  v2 ")]
    assert "no votes" in v2
    assert "●" not in v2


def test_a_pipe_gets_whole_lines() -> None:
    assert any(LONG in line for line in shown(SNAPSHOT, None))


def test_what_is_away_is_said_and_the_last_is_kept() -> None:
    nothing = Snapshot(
        NOW, "127.0.0.1:51051", None, "nothing answers", None, "nothing answers", None, {"http://x": "no"}
    )
    text = "\n".join(shown(nothing, 80, 24))
    for words in (
        "AWAY: nothing answers",
        "no server's metrics answer",
        "http://x: no",
        "the server is away",
        "no votes",
    ):
        assert words in text
    text = "\n".join(shown(replace(SNAPSHOT, loop_error="nothing answers"), 80, 24))
    assert "AWAY: nothing answers" in text
    assert "update 7 of 12" in text
    assert LOOP.learner is not None
    silent = replace(LOOP, learner=replace(LOOP.learner, time=ago(700)))
    assert "SILENT for 11 min" in "\n".join(shown(replace(SNAPSHOT, loop=silent), 80, 24))
    new = "\n".join(shown(replace(SNAPSHOT, loop=Loop(None, (), ())), 80, 24))
    assert "it has said nothing yet" in new
    assert "none yet" in new


def test_how_a_round_ended_is_said() -> None:
    done = replace(ROUND, ended_at=ago(20), version="v3", outcome="rejected", reason="KL too large")
    assert "round 3, 120 votes, 20 s ago: v3 is rejected: KL too large" in "\n".join(
        shown(replace(SNAPSHOT, loop=replace(LOOP, rounds=(done,))), 80, 24)
    )
    waits = replace(ROUND, ended_at=ago(20), updates=(), heads=(), reason="waits for more votes: too few")
    assert "20 s ago: waits for more votes: too few" in "\n".join(
        shown(replace(SNAPSHOT, loop=replace(LOOP, rounds=(waits,))), 80, 24)
    )


def test_json_is_json() -> None:
    plain = json.loads(json.dumps(SNAPSHOT.to_json(), allow_nan=False))
    assert plain["loop"]["rounds"][0]["heads"][1]["auc"] is None
    assert plain["loop"]["learner"]["stage_since"] == "2026-11-26T11:55:50+00:00"
    assert plain["serving"]["tokens_per_second"] == 141.0
