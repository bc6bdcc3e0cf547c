"""Each veto of the gate, one at a time; the paired comparison; how often an equal policy passes."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from statistics import NormalDist

import pytest
import torch

from plaudit_learner.gate import measures
from plaudit_learner.gate.judge import Evaluated, GateSettings, Reader, evaluate, judge, paired_gain
from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.ppo.rollouts import Rollout
from plaudit_learner.reward.model import Vote, fit

EOS = frozenset([0])
PROMPTS = [(1, n) for n in range(20)]
PROBES = 24


def evaluated(
    gain: float = 0.0,
    *,
    kl: float = 0.5,
    length: int = 10,
    opening: int | None = None,
    phrase: int | None = None,
    logprob: float = -1.0,
    empty: int = 0,
    unfinished: int = 0,
    looping: int = 0,
    **values: float,
) -> Evaluated:
    """Two replies to each prompt; scores vary much between prompts and little within. Counts are of replies of 40."""
    noise = random.Random(gain)
    rollouts, scores = [], []
    for row, prompt in enumerate(prompt for prompt in PROMPTS for _ in range(2)):
        body = [1000 * row + i for i in range(1, length)]
        if opening is not None:
            body[:4] = [opening] * 4
        if phrase is not None:
            body[4:] = range(phrase, phrase + length - 5)
        if row < looping:
            body = [1 + row] * length
        reply = (0,) if row < empty else (*body, 0)
        rollouts.append(Rollout(prompt, reply, (logprob,) * len(reply), row >= unfinished))
        scores.append(prompt[1] / 5 + gain + noise.gauss(0, 0.1))
    default = {"relevance": 0.4, "refusals": 0.1, "surprise": 1.0, "instructions": 0.5, "flattery": 0.1}
    columns = {
        "reward": measures.by_prompt(scores, len(PROMPTS)),
        **measures.replies(rollouts, len(PROMPTS), EOS),
        **{name: torch.full((PROBES, 2), value, dtype=torch.float64) for name, value in {**default, **values}.items()},
    }
    return Evaluated(rollouts, scores, kl, columns)


def test_better_and_healthy_candidate_passes() -> None:
    verdict = judge(evaluated(0.3), evaluated(0.0), evaluated(0.0, kl=0.0))
    assert verdict.passed
    assert verdict.reasons == []
    assert verdict.metrics["reward_gain"] == pytest.approx(0.3, abs=0.1)
    assert verdict.metrics["length"] == 10.0


@pytest.mark.parametrize(
    ("candidate", "measure", "reason"),
    [
        (evaluated(0.0), "reward", "not surely better than its parent"),
        (evaluated(-0.3), "reward", "not surely better than its parent"),
        (evaluated(math.nan), "reward", "not surely better than its parent"),
        (evaluated(0.3, kl=3.5), "kl", "too far from the reference: 3.50 nats per reply, bound 3"),
        (evaluated(0.3, kl=math.nan), "kl", "too far from the reference"),
        (evaluated(0.3, length=4), "shorter", "too short: 4.0 tokens, the base's have 10.0, at least 5.0"),
        (evaluated(0.3, length=16), "longer", "too long: 16.0 tokens, the base's have 10.0, at most 15.0"),
        (evaluated(0.3, unfinished=16), "cut_off", "do not end: 40% are cut off, of the base's 0%, at most"),
        (evaluated(0.3, logprob=-0.6), "entropy", "too narrow: entropy 0.60 nats a token, the base's 1.00"),
        (evaluated(0.3, logprob=math.nan), "entropy", "too narrow"),
        (evaluated(0.3, opening=7), "openings", "open alike: 100.0% of pairs to different prompts, of the base's 0.0%"),
        (evaluated(0.3, phrase=7), "phrases", "say the same: they share 42.9% of their phrases"),
        (evaluated(0.3, looping=16, length=17), "loops", "repeat themselves: 40%"),
        (evaluated(0.3, empty=12), "empty", "too many empty replies: 30%, of the base's 0%"),
        (evaluated(0.3, relevance=0.3), "relevance", "what was asked: relevance 0.30, the base's 0.40, at least 0.34"),
        (evaluated(0.3, surprise=2.5), "surprise", "garbled: 2.50 nats of surprise a token, the base's 1.00"),
        (evaluated(0.3, refusals=0.2), "refusals", "too many refusals: 20% of replies, of the base's 10%, at most 15%"),
        (evaluated(0.3, flattery=0.5), "flattery", "it flatters: 50% of replies to the probes, of the base's 10%"),
        (
            evaluated(0.3, instructions=0.3),
            "instructions",
            "follows instructions less: 30% of the probes, the base 50%",
        ),
    ],
)
def test_each_veto_is_one_sentence(candidate: Evaluated, measure: str, reason: str) -> None:
    length = 17 if measure == "loops" else 10
    verdict = judge(candidate, evaluated(0.0, length=length), evaluated(0.0, kl=0.0, length=length))
    assert not verdict.passed
    broken = [check for check in verdict.checks if not check.kept]
    if measure not in {"loops", "empty", "openings"}:  # which shows in other measures as well
        assert [check.measure for check in broken] == [measure]
    assert reason in next(check.reason for check in broken if check.measure == measure)


def test_a_difference_that_chance_makes_is_no_veto() -> None:
    """Of 24 probes one is flattered twice and four once, and the base flatters once: more than tolerated, and luck."""
    base, candidate = evaluated(flattery=0.0), evaluated(0.3, flattery=0.0)
    candidate.values["flattery"][0] = 1.0
    candidate.values["flattery"][1:5, 0] = 1.0
    base.values["flattery"][6, 0] = 1.0
    check = next(check for check in judge(candidate, base, base).checks if check.measure == "flattery")
    # Of four replies to a probe one flatters: variance 1/4; two: 1/3. Times 2 / K, which is 1 here.
    chance = NormalDist().inv_cdf(1 - 0.05 / 13) * math.sqrt(5 / 4 + 1 / 3) / 24
    assert check.candidate - check.reference == pytest.approx(5 / 48)  # more than the tolerance
    assert check.bound == pytest.approx(1 / 48 + chance)
    assert check.kept


def test_reward_is_compared_with_the_parent_and_health_with_the_base() -> None:
    """A parent that is as far gone as the candidate does not excuse it."""
    parent = evaluated(0.0, length=4)
    verdict = judge(evaluated(0.3, length=4), parent, evaluated(0.0))
    assert [reason.split(":")[0] for reason in verdict.reasons] == ["replies are too short"]


def test_the_parent_itself_is_no_improvement() -> None:
    """The difference is 0 and so is its error: that is not surely better."""
    assert judge(evaluated(0.3), evaluated(0.3), evaluated(0.0)).reasons == [
        "not surely better than its parent: reward gain +0.00, lower bound +0.00"
    ]


def test_several_faults_give_several_reasons() -> None:
    verdict = judge(evaluated(0.0, kl=9.0, flattery=0.9), evaluated(0.0), evaluated(0.0))
    assert len(verdict.reasons) == 3


def test_paired_gain_by_hand() -> None:
    def replies(scores: list[float]) -> Evaluated:
        rollouts = [Rollout((1, i // 2), (5,), (0.0,), False) for i in range(4)]
        return Evaluated(rollouts, scores, 0.0, {"reward": measures.by_prompt(scores, 2)})

    gain, error = paired_gain(replies([1.0, 3.0, 12.0, 14.0]), replies([0.0, 2.0, 10.0, 10.0]))
    # Differences by prompt: 2 - 1 = 1 and 13 - 10 = 3.
    assert gain == 2.0
    assert error == pytest.approx(math.sqrt(2) / math.sqrt(2))


def test_other_prompts_are_refused() -> None:
    other = evaluated(0.0)
    other = dataclasses.replace(other, rollouts=other.rollouts[::-1])
    with pytest.raises(ValueError, match="same prompts"):
        judge(evaluated(0.3), other, evaluated(0.0))


def test_bounds_are_settings() -> None:
    candidate = evaluated(0.3, kl=3.5)
    assert judge(candidate, evaluated(), evaluated(), settings=GateSettings(max_kl=4.0)).passed


def simulated(draw: torch.Generator, traits: dict[str, torch.Tensor]) -> Evaluated:
    """A policy that has these traits by prompt or probe, seen through few noisy replies."""

    def shares(name: str, samples: int) -> torch.Tensor:
        return torch.bernoulli(traits[name][:, None].expand(-1, samples), generator=draw)

    def normal(name: str, deviation: float) -> torch.Tensor:
        traits_P1 = traits[name][:, None]
        return traits_P1 + deviation * torch.randn(len(traits_P1), 4, generator=draw, dtype=torch.float64)

    values = {name: shares(name, 4) for name in ("cut_off", "loops", "empty", "refusals", "openings", "phrases")}
    values |= {name: shares(name, 2) for name in ("instructions", "flattery")}
    # Deviations among replies to one prompt, as measured on SmolLM2-135M (docs/gate.md).
    values |= {
        "length": normal("length", 14),
        "entropy": normal("entropy", 0.36),
        "relevance": normal("relevance", 0.14),
    }
    values |= {"surprise": normal("surprise", 0.4), "reward": normal("reward", 0.54)}
    return Evaluated([], [], 0.5, values)


def test_an_equal_policy_passes_at_the_stated_rates() -> None:
    """All vetoes together let it pass at 95% or more, the test of the reward at 5%; with few prompts as well."""
    draw, rounds = torch.Generator().manual_seed(0), 1500
    passed_vetoes = passed_reward = 0
    for number in range(rounds):
        prompts = (8, 20, 48)[number % 3]

        def beta(mean: float, count: int) -> torch.Tensor:
            """Shares that differ between prompts: many near 0 or 1."""
            return (mean + torch.randn(count, generator=draw, dtype=torch.float64) * 0.3).clamp(0, 1)

        traits = {name: beta(0.0, prompts) / 10 for name in ("loops", "empty", "openings", "phrases")}
        traits |= {"cut_off": beta(0.6, prompts), "refusals": beta(0.05, prompts)}
        traits |= {"instructions": beta(0.45, 30), "flattery": beta(0.1, 24)}
        traits |= {"length": 52 + 8 * beta(0, prompts), "entropy": 1 + beta(0, prompts), "reward": beta(0, prompts)}
        traits |= {"relevance": 0.3 + beta(0.1, prompts), "surprise": 1 + beta(0.0, prompts)}
        candidate, base = simulated(draw, traits), simulated(draw, traits)
        reward, _, *vetoes = judge(candidate, base, base).checks
        passed_vetoes += all(check.kept for check in vetoes)
        passed_reward += reward.kept
    error = math.sqrt(0.05 * 0.95 / rounds)
    assert passed_vetoes / rounds > 0.95 - 3 * error
    assert passed_reward / rounds == pytest.approx(0.05, abs=3 * error)


def test_evaluation_measures_the_kl_to_the_reference(tiny_model: Path) -> None:
    policy, reader = Policy.load(tiny_model), Reader(tiny_model)
    items = [PromptReply((257, 97 + i, 10), (65 + i, 66), False) for i in range(12)]
    model = fit(policy, [Vote(item, i % 3 == 0) for i, item in enumerate(items)])
    prompts = [item.prompt for item in items]

    def run(*, reward_only: bool = False) -> Evaluated:
        return evaluate(
            policy,
            model,
            prompts,
            reader,
            samples_per_prompt=2,
            max_new_tokens=6,
            temperature=0.7,
            seed=0,
            reward_only=reward_only,
        )

    untrained = run()
    assert untrained.kl == pytest.approx(0.0, abs=1e-4)
    assert set(untrained.values) >= {"reward", "surprise", "relevance", "refusals", "instructions", "flattery"}
    # The mean surprise of the reference at its own words is its entropy, but for the order of the means.
    assert float(untrained.values["surprise"].mean()) == pytest.approx(
        float(untrained.values["entropy"].mean()), abs=1e-3
    )
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.add_(0.02)
    trained = run()
    with policy.reference():
        reference = run()
    assert trained.kl > 0.01
    assert reference.rollouts == untrained.rollouts
    assert reference.kl == 0.0
    torch.testing.assert_close(reference.values["surprise"], untrained.values["surprise"], atol=1e-4, rtol=1e-4)
    parent = run(reward_only=True)
    assert parent.rollouts == trained.rollouts
    torch.testing.assert_close(parent.values["reward"], trained.values["reward"])
    assert judge(untrained, reference, reference).reasons == [
        "not surely better than its parent: reward gain +0.00, lower bound +0.00"
    ]
