"""Figures of `plaudit evaluate reward-model`: how sure they are."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
import torch

from plaudit import html_report
from plaudit.wilson import wilson
from plaudit_learner.policy import PromptReply
from plaudit_learner.reward import reliability_report
from plaudit_learner.reward.judgements import Preference
from plaudit_learner.reward.model import fit_features
from plaudit_learner.reward.report import Figure, measure, reliability_tables
from tests.learner.test_reward import synthetic


def test_few_prompts_claim_little() -> None:
    """Three prompts, all right, was 1.000 to 1.000; ten pairs on one prompt, 6 right, 0.600 to 0.600."""
    features, votes = synthetic(200, seed=0, flips=0.0)
    model = fit_features(features, votes)
    row = torch.zeros(2, features.shape[1])
    row[:, 0] = torch.tensor([3.0, -3.0])
    known = {PromptReply((prompt,), (n,), False): row[n - 1] for prompt in range(3) for n in (1, 2)}

    def pair(prompt: int, right: bool) -> Preference:
        a, b = (PromptReply((prompt,), (n,), False) for n in ((1, 2) if right else (2, 1)))
        return Preference(a, b)

    (agreed,) = measure(model, known, [], [pair(prompt, True) for prompt in range(3)], [])
    assert (agreed.value, agreed.low, agreed.high) == (1.0, wilson(3, 3)[0], 1.0)
    assert agreed.low < 0.5
    (one,) = measure(model, known, [], [pair(0, i < 6) for i in range(10)], [])
    assert one.value == pytest.approx(0.6)
    assert one.text().split() == ["quality", "accuracy", "on", "pairs", "0.600", "(unknown)", "10"]


def test_columns_stand_under_one_another() -> None:
    sure, unsure = (Figure("quality", "AUC on thumbs", 10, 0.6, *ends) for ends in ((0.5, 0.7), (float("nan"),) * 2))
    assert len(sure.text()) == len(unsure.text())


def test_the_page_draws_what_the_table_says(tmp_path: Path) -> None:
    features, votes = synthetic(200, seed=0)
    model = fit_features(features, votes)
    known = {vote.item: features[i] for i, vote in enumerate(votes)}
    tables = reliability_tables(model, known, votes)
    assert list(tables) == ["quality"]
    assert sum(row.count for row in tables["quality"]) == 200
    page = tmp_path / "report.html"
    reliability_report.write(page, "a < b", measure(model, known, votes, [], []), {"<b>": tables["quality"]})
    html = page.read_text()
    assert "<p>a &lt; b</p>" in html
    assert "<b>" not in html
    svg = base64.b64decode(html.split("base64,")[1].split('"')[0]).decode()
    dots = re.search(r'<g id="PathCollection_1">(.*?)</g>\s*<g id="matplotlib', svg, re.DOTALL)
    assert dots is not None
    assert dots[1].count("<path") + dots[1].count("<use") >= len(tables["quality"]), "a point for each tenth"


def test_the_plot_needs_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_report, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'plaudit\[instruct\]'"):
        html_report.require_plots()
