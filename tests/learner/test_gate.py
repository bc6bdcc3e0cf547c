"""Each veto of the gate, one at a time, and the paired comparison."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import pytest
import torch

from plaudit_learner.gate import Evaluated, GateSettings, evaluate, judge, paired_gain
from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.reward import Vote, fit
from plaudit_learner.rollouts import Rollout

EOS = frozenset([0])
PROMPTS = [(1, n) for n in range(20)]


def evaluated(
    gain: float = 0.0,
    *,
    kl: float = 0.5,
    length: int = 10,
    opening: int | None = None,
    logprob: float = -1.0,
    empty: int = 0,
) -> Evaluated:
    """Two replies to each prompt; scores vary much between prompts and little within."""
    noise = random.Random(gain)
    rollouts, scores = [], []
    for row, prompt in enumerate(prompt for prompt in PROMPTS for _ in range(2)):
        reply = (0,) if row < empty else (opening or 100 + row,) * (length - 1) + (0,)
        rollouts.append(Rollout(prompt, reply, (logprob,) * len(reply), True))
        scores.append(prompt[1] / 5 + gain + noise.gauss(0, 0.1))
    return Evaluated(rollouts, scores, kl)


def test_better_and_healthy_candidate_passes() -> None:
    verdict = judge(evaluated(0.3), evaluated(0.0), evaluated(0.0, kl=0.0), eos_ids=EOS)
    assert verdict.passed
    assert verdict.reasons == []
    assert verdict.metrics["reward_gain"] == pytest.approx(0.3, abs=0.1)
    assert verdict.metrics["length_ratio"] == 1.0


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (evaluated(0.0), "not surely better than its parent"),
        (evaluated(-0.3), "not surely better than its parent"),
        (evaluated(math.nan), "not surely better than its parent"),
        (evaluated(0.3, kl=3.5), "too far from the reference: 3.50 nats per reply, bound 3"),
        (evaluated(0.3, kl=math.nan), "too far from the reference"),
        (evaluated(0.3, opening=7), "replies open alike"),
        (evaluated(0.3, logprob=-0.4), "too narrow: 40% of the base's entropy"),
        (evaluated(0.3, length=2), "too short"),
        (evaluated(0.3, length=25), "too long"),
        (evaluated(0.3, empty=8), "too many empty replies: 20%, the base has 0%"),
    ],
)
def test_each_veto_is_one_sentence(candidate: Evaluated, reason: str) -> None:
    verdict = judge(candidate, evaluated(0.0), evaluated(0.0, kl=0.0), eos_ids=EOS)
    assert not verdict.passed
    assert len(verdict.reasons) == 1
    assert reason in verdict.reasons[0]


def test_reward_is_compared_with_the_parent_and_health_with_the_base() -> None:
    """A parent that is as far gone as the candidate does not excuse it."""
    parent = evaluated(0.0, length=2)
    verdict = judge(evaluated(0.3, length=2), parent, evaluated(0.0), eos_ids=EOS)
    assert [reason.split(":")[0] for reason in verdict.reasons] == ["replies are too short"]


def test_several_faults_give_several_reasons() -> None:
    verdict = judge(evaluated(0.0, kl=9.0, opening=7), evaluated(0.0), evaluated(0.0), eos_ids=EOS)
    assert len(verdict.reasons) == 3


def test_paired_gain_by_hand() -> None:
    def replies(scores: list[float]) -> Evaluated:
        return Evaluated([Rollout((1, i // 2), (5,), (0.0,), False) for i in range(4)], scores, 0.0)

    gain, error = paired_gain(replies([1.0, 3.0, 12.0, 14.0]), replies([0.0, 2.0, 10.0, 10.0]))
    # Differences by prompt: 2 - 1 = 1 and 13 - 10 = 3.
    assert gain == 2.0
    assert error == pytest.approx(math.sqrt(2) / math.sqrt(2))


def test_other_prompts_are_refused() -> None:
    other = evaluated(0.0)
    other = dataclasses.replace(other, rollouts=other.rollouts[::-1])
    with pytest.raises(ValueError, match="same prompts"):
        judge(evaluated(0.3), other, evaluated(0.0), eos_ids=EOS)


def test_bounds_are_settings() -> None:
    candidate = evaluated(0.3, kl=3.5)
    assert judge(candidate, evaluated(), evaluated(), eos_ids=EOS, settings=GateSettings(max_kl=4.0)).passed


def test_evaluation_measures_the_kl_to_the_reference(tiny_model: Path) -> None:
    policy = Policy.load(tiny_model)
    items = [PromptReply((257, 97 + i, 10), (65 + i, 66), False) for i in range(12)]
    model = fit(policy, [Vote(item, i % 3 == 0) for i, item in enumerate(items)])
    prompts = [item.prompt for item in items]

    def run() -> Evaluated:
        return evaluate(policy, model, prompts, samples_per_prompt=2, max_new_tokens=6, temperature=0.7, seed=0)

    untrained = run()
    assert untrained.kl == pytest.approx(0.0, abs=1e-4)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.add_(0.02)
    trained = run()
    with policy.reference():
        reference = run()
    assert trained.kl > 0.01
    assert reference.rollouts == untrained.rollouts
    assert reference.kl == pytest.approx(0.0, abs=1e-4)
