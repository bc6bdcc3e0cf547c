"""`make bench-reward_tastes`: what it correlates, and that it runs."""

from __future__ import annotations

import json

import pytest
import torch

from bench.reward_tastes import WAYS, main, within_prompts


def test_what_lies_between_prompts_counts_for_nothing() -> None:
    """Less the prompts' means the scores are (1, -1, 2, -2), the likings (1, -1, -1, 1): -2 / (sqrt(10) * 2)."""
    prompt = torch.tensor([0, 0, 1, 1])
    score, liking = torch.tensor([11.0, 9.0, 2.0, -2.0]), torch.tensor([1.0, -1.0, 99.0, 101.0])
    assert within_prompts(score, liking, prompt) == pytest.approx(-2 / (10**0.5 * 2))
    assert within_prompts(torch.ones(4), liking, prompt) == 0.0


@pytest.mark.timeout(300)
def test_small_size_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "small"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert set(figures) == set(WAYS)
    for way in WAYS:
        # With a taste for short replies, even a tiny model's features tell something.
        assert figures[way]["brief"]["median"] > 0.3
