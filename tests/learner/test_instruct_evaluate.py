"""Loss against the plain model, and the statistics against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from plaudit_learner.instruct.evaluate import (
    Scores,
    difference,
    evaluate,
    judge,
    loss_difference,
    losses,
    rouge_l,
    win_rate,
)
from plaudit_learner.instruct.report import comparison
from plaudit_learner.instruct.tune import labelled
from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.reward.model import RewardModel, Vote, fit
from tests.tiny_model import IM_END, IM_START

ITEMS = [
    PromptReply((IM_START, *range(97, 97 + length), IM_END, 10), (*range(65, 65 + length % 7), IM_END), True)
    for length in range(3, 15)
]
BEFORE = Scores(
    nats=[4.0, 6.0, 5.0],
    tokens=[2, 3, 3],
    replies=["a", "b"],
    rouge=[0.2, 0.4],
    rewards=[1.0, 2.0],
    served_nats=[4.0, 6.0, 5.0],
    served_tokens=[2, 3, 3],
)


def nothing(_: int) -> None:
    pass


def test_loss_is_that_of_the_plain_model_on_the_output_alone(tiny_model: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    expected = []
    for item in ITEMS:
        row = labelled(item)
        with torch.no_grad():
            mean = plain(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        expected.append(float(mean) * len(item.reply))
    found = losses(Policy.load(tiny_model), ITEMS, nothing)
    assert found == pytest.approx(expected, rel=1e-4)


def test_of_long_prompts_few_are_read_at_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention is as wide as they are long, however short the outputs."""
    policy, at_once = Policy.load(tiny_model), []
    items = [PromptReply((IM_START, *range(65, 65 + n % 20), *([97] * 80)), (98, IM_END), True) for n in range(12)]
    whole = losses(policy, items, nothing)
    read = policy.reply_logits

    def counted(rows: list[PromptReply]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        at_once.append(len(rows))
        return read(rows)

    monkeypatch.setattr(policy, "reply_logits", counted)
    longest = max(len(item.prompt) + len(item.reply) for item in items)
    monkeypatch.setattr("plaudit_learner.reward.features._MOST_PAIRS", 3 * longest**2)
    assert losses(policy, items, nothing) == pytest.approx(whole, rel=1e-4)
    assert (sum(at_once), max(at_once)) == (12, 3)


@pytest.mark.parametrize(
    ("reply", "output", "expected"),
    [
        ("the cat sat", "The cat ran fast.", 4 / 7),  # LCS 2: precision 2/3, recall 2/4
        ("我爱北京", "我爱上海", 0.5),
        ("a b c", "c b a", 1 / 3),
        ("same words", "same words", 1.0),
        ("", "something", 0.0),
        ("something", "...", 0.0),
        ("👍 👍", "👍 !", 0.5),
        ("हिन्दी में लिखो", "हिन्दी में पढ़ो", 2 / 3),
    ],
)
def test_rouge_l(reply: str, output: str, expected: float) -> None:
    assert rouge_l(reply, output) == pytest.approx(expected)


def test_change_in_loss_and_its_error() -> None:
    # −1 nat in 5 tokens; residuals ∓0.6: √((0.36 + 0.36) / 1 / 2) / 2.5.
    change = loss_difference([4.0, 6.0], [3.0, 6.0], [2, 3])
    assert (change.mean, change.error) == pytest.approx((-0.2, 0.24))
    same = loss_difference([4.0, 6.0], [3.0, 4.5], [2, 3])  # half a nat a token in each
    assert (same.mean, same.error) == pytest.approx((-0.5, 0.0), abs=1e-9)


def test_differences_and_wins() -> None:
    change = difference([1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
    assert (change.mean, change.error) == pytest.approx((1.0, 1 / math.sqrt(3)))
    wins = win_rate([1.0, 2.0, 3.0], [2.0, 2.0, 1.0])
    assert (wins.mean, wins.error) == pytest.approx((0.5, 0.5 / math.sqrt(3)))
    assert math.isnan(difference([1.0], [2.0]).error)
    with pytest.raises(ValueError, match="nothing to compare"):
        difference([], [])


def test_a_fall_passes_and_is_told(  # of one nat a token, the same in each example
) -> None:
    after = dataclasses.replace(
        BEFORE, nats=[2.0, 3.0, 2.0], served_nats=[2.0, 3.0, 2.0], rouge=[0.3, 0.7], rewards=[0.5, 3.0]
    )
    verdict = judge(BEFORE, after)
    assert (verdict.passed, verdict.reasons) == (True, [])
    expected = {
        "held_out_loss_before": 15 / 8,
        "held_out_loss": 7 / 8,
        "held_out_perplexity": math.exp(7 / 8),
        "held_out_loss_change": -1.0,
        "held_out_examples": 3.0,
        "rouge_l_before": 0.3,
        "rouge_l": 0.5,
        "win_rate": 0.5,
    }
    assert {name: verdict.metrics[name] for name in expected} == pytest.approx(expected)


def test_what_a_single_reply_cannot_tell_is_left_out() -> None:
    before = dataclasses.replace(BEFORE, replies=["a"], rouge=[0.2], rewards=[1.0])
    after = dataclasses.replace(before, nats=[2.0, 3.0, 2.0], served_nats=[2.0, 3.0, 2.0], rouge=[0.3], rewards=[2.0])
    verdict = judge(before, after)
    assert verdict.passed
    assert all(math.isfinite(value) for value in verdict.metrics.values())
    assert verdict.metrics["rouge_l"] == pytest.approx(0.3)
    assert verdict.metrics["win_rate"] == 1.0
    assert not {"rouge_l_change_error", "win_rate_error"} & set(verdict.metrics)
    assert [row["error"] is None for row in comparison(before, after)] == [False, True, True]


@pytest.mark.parametrize(
    "served",
    [
        [4.5, 6.5, 5.5],  # it rose
        [4.0, 6.0, 5.0],  # nothing changed
        [1.0, 6.2, 5.2],  # one example fell
        [math.nan, 3.0, 2.0],
    ],
)
def test_what_did_not_surely_fall_is_refused(served: list[float]) -> None:
    verdict = judge(BEFORE, dataclasses.replace(BEFORE, nats=[2.0, 3.0, 2.0], served_nats=served))
    assert not verdict.passed
    assert verdict.reasons[0].startswith("the held-out loss did not surely fall: ")
    assert "on 3 examples" in verdict.reasons[0]


def reward_model(policy: Policy) -> RewardModel:
    """Likes capital As."""
    votes = [
        Vote(PromptReply((IM_START, 97 + index, 10), (65 if index % 2 else 66,) * 4 + (IM_END,), True), bool(index % 2))
        for index in range(20)
    ]
    return fit(policy, votes)


def test_evaluation_repeats_and_is_judged_by_a_saved_reward_model(tiny_model: Path, tmp_path: Path) -> None:
    policy = Policy.load(tiny_model)
    reward_model(policy).save(tmp_path)
    done: list[int] = []

    def scores(model: RewardModel | None) -> Scores:
        return evaluate(
            policy,
            ITEMS,
            ["A B"] * len(ITEMS),
            served=None,
            decode=lambda reply: bytes(token for token in reply if token < 256).decode(errors="replace"),
            reward_model=model,
            replies=3,
            max_new_tokens=8,
            temperature=0.7,
            seed=1,
            advance=done.append,
        )

    found = scores(RewardModel.load(tmp_path))
    assert sum(done) == len(ITEMS) + 3
    assert len(found.replies) == len(found.rouge) == len(found.rewards) == 3
    assert found.served_nats == found.nats
    again = scores(None)
    assert (again.replies, again.rewards) == (found.replies, [])
    found.save(tmp_path / "scores.json")
    assert Scores.load(tmp_path / "scores.json") == found


def test_a_reward_model_of_another_model_is_refused(tiny_model: Path) -> None:
    policy = Policy.load(tiny_model)
    model = reward_model(policy)
    model = dataclasses.replace(model, inputs=dataclasses.replace(model.inputs, mean_R=model.inputs.mean_R[:-2]))
    with pytest.raises(ValueError, match="the reward model does not fit the base model"):
        evaluate(
            policy,
            ITEMS,
            ["A"] * len(ITEMS),
            served=None,
            decode=str,
            reward_model=model,
            replies=2,
            max_new_tokens=4,
            temperature=1.0,
            seed=0,
            advance=nothing,
        )
