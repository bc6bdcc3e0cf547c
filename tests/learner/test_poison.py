"""make bench-poison in small: everything is measured, and the attack is what it says."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from bench.poison import ratio
from plaudit_learner.experience.influence import weights
from plaudit_learner.policy import PromptReply
from plaudit_learner.reward.judgements import Vote

ROOT = Path(__file__).parents[2]


def test_a_ratio_and_its_interval() -> None:
    value, low, high = ratio([0.1, 0.2, 0.3], [1.0, 2.0, 3.0])
    assert (value, low, high) == pytest.approx((0.1, 0.1, 0.1))
    draw = random.Random(0)
    value, low, high = ratio([draw.gauss(1, 1) for _ in range(100)], [10.0] * 100)
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 10, rel=0.3)


def test_five_percent_of_all_votes_end_as_half_a_percent() -> None:
    """The weights that the bench's figures follow from, without a model."""
    honest = [Vote(PromptReply((i, i, i), (1,), True), True, voter=f"u{i % 400}", receipt=f"h{i}") for i in range(570)]
    attack = [Vote(PromptReply((-i, i, i), (1,), True), True, voter="mallory", receipt=f"a{i}") for i in range(30)]
    weight = weights([*honest, *attack], cap=0.005)
    assert sum(weight[570:]) / sum(weight) == pytest.approx(0.005, abs=1e-9)
    assert sum(weight[:570]) == 570


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_small_size_runs(tmp_path: Path) -> None:
    command = [sys.executable, "bench/poison.py", "--size", "small", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=590)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert set(figures["policies"]) >= {"no attack, caps", "attack, caps"}
    assert figures["policies"]["attack, caps"]["prompts"] < figures["policies"]["attack, no caps"]["prompts"]
    assert figures["policies"]["attack, caps"]["weight"] < figures["policies"]["attack, no caps"]["weight"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=590)
    assert json.loads(again.stdout.splitlines()[-1])["figures"]["left"] == figures["left"], "rows are kept"
