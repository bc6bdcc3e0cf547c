"""The evaluation gate: does a candidate deserve users? Judged on prompts that were not trained on.

`judge` is a pure function of three evaluations on the same prompts: of the candidate, of its parent and of the
base (the reference policy). Each thing that is wrong becomes one sentence; a candidate passes if there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit_learner.features import batches, encode
from plaudit_learner.policy import Policy
from plaudit_learner.ppo import exact_kl, token_logprobs
from plaudit_learner.reward import RewardModel
from plaudit_learner.rollouts import Rollout, sample

OPENING_TOKENS = 4
MICROBATCH = 16


@dataclass(frozen=True)
class GateSettings:
    """The bounds a candidate must keep."""

    min_gain_z: float = 1.64
    """The paired gain in reward must exceed this many standard errors: 1.64 is a one-sided 95% bound."""
    max_kl: float = 3.0
    """Nats per reply, to the reference."""
    min_openings: float = 0.7
    """Distinct openings (the first 4 tokens), as a share of the base's at the same number of replies."""
    min_entropy: float = 0.5
    """Entropy per token, as a share of the base's."""
    min_length: float = 0.25
    """Mean reply length, as a share of the base's."""
    max_length: float = 2.0
    """Mean reply length, as a share of the base's."""
    max_empty: float = 0.05
    """Empty replies, as a share of all, above the base's share."""


@dataclass(frozen=True)
class Evaluated:
    """One policy's replies to the held-out prompts; the replies to one prompt stand next to each other."""

    rollouts: list[Rollout]
    scores: list[float]
    """The reward model's score of each."""
    kl: float
    """KL to the reference, nats per reply; exact over the vocabulary at each sampled token."""


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate may be published, and why not."""

    passed: bool
    reasons: list[str]
    """One sentence for each bound that is broken."""
    metrics: dict[str, float]


def evaluate(
    policy: Policy,
    reward_model: RewardModel,
    prompts: Sequence[tuple[int, ...]],
    *,
    samples_per_prompt: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Evaluated:
    """Sample replies to held-out prompts and score them. Inside `policy.reference()` it evaluates the reference."""
    rollouts = sample(
        policy,
        prompts,
        samples_per_prompt=samples_per_prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    items = [r.item for r in rollouts]
    encodings = encode(policy, items)
    scores_N = reward_model.score_features(torch.stack([e.features_D for e in encodings]))
    kl = 0.0
    with torch.no_grad():
        for rows in batches(items, MICROBATCH):
            logits_BTV, tokens_BT, mask_BT = policy.reply_logits([items[row] for row in rows])
            states = [encodings[row].predicting_TH for row in rows]
            ref_BTV = policy.head(torch.nn.utils.rnn.pad_sequence(states, batch_first=True))
            ours_BTV, theirs_BTV = (token_logprobs(x, tokens_BT, temperature)[0] for x in (logits_BTV, ref_BTV))
            kl += float(exact_kl(ours_BTV, theirs_BTV, mask_BT).sum())
    return Evaluated(rollouts, scores_N.tolist(), kl / len(rollouts))


def judge(
    candidate: Evaluated,
    parent: Evaluated,
    base: Evaluated,
    *,
    eos_ids: frozenset[int],
    settings: GateSettings | None = None,
) -> Verdict:
    """Judge the candidate against its parent (reward) and the base (everything else).

    Raises ValueError if the three were not evaluated on the same prompts, or on fewer than 2.
    """
    s = settings or GateSettings()
    if not _prompts(candidate) == _prompts(parent) == _prompts(base):
        raise ValueError(
            "candidate, parent and base must be evaluated on the same prompts, with as many replies to each"
        )
    gain, error = paired_gain(candidate, parent)
    measured = {name: _measure(evaluated, eos_ids) for name, evaluated in (("candidate", candidate), ("base", base))}
    ours, theirs = measured["candidate"], measured["base"]
    ratio = {name: ours[name] / max(theirs[name], 1e-9) for name in ("openings", "entropy", "length")}
    metrics = {
        "reward_gain": gain,
        "reward_gain_error": error,
        "kl": candidate.kl,
        "empty": ours["empty"],
        "length": ours["length"],
        "openings_ratio": ratio["openings"],
        "entropy_ratio": ratio["entropy"],
        "length_ratio": ratio["length"],
    }
    bound = gain - s.min_gain_z * error
    checks = [
        (bound > 0, f"not surely better than its parent: reward gain {gain:+.2f}, lower bound {bound:+.2f}"),
        (
            candidate.kl <= s.max_kl,
            f"too far from the reference: {candidate.kl:.2f} nats per reply, bound {s.max_kl:g}",
        ),
        (
            ratio["openings"] >= s.min_openings,
            f"replies open alike: {ratio['openings']:.0%} of the base's distinct openings, bound {s.min_openings:.0%}",
        ),
        (
            ratio["entropy"] >= s.min_entropy,
            f"sampling has become too narrow: {ratio['entropy']:.0%} of the base's entropy, bound {s.min_entropy:.0%}",
        ),
        (
            ratio["length"] >= s.min_length,
            f"replies are too short: {ratio['length']:.0%} of the base's length, bound {s.min_length:.0%}",
        ),
        (
            ratio["length"] <= s.max_length,
            f"replies are too long: {ratio['length']:.0%} of the base's length, bound {s.max_length:.0%}",
        ),
        (
            ours["empty"] <= theirs["empty"] + s.max_empty,
            f"too many empty replies: {ours['empty']:.0%}, the base has {theirs['empty']:.0%}",
        ),
    ]
    # Written so that a nan fails its check.
    reasons = [reason for kept, reason in checks if not kept]
    return Verdict(not reasons, reasons, metrics)


def paired_gain(candidate: Evaluated, parent: Evaluated) -> tuple[float, float]:
    """Mean over prompts of the difference in mean score, and its standard error over prompts.

    Pairing by prompt removes what lies between prompts, most of the score's variance.
    """
    difference_P = _mean_by_prompt(candidate) - _mean_by_prompt(parent)
    if len(difference_P) < 2:
        raise ValueError("the gate needs at least 2 held-out prompts")
    return float(difference_P.mean()), float(difference_P.std() / math.sqrt(len(difference_P)))


def _prompts(evaluated: Evaluated) -> list[tuple[int, ...]]:
    return [rollout.prompt for rollout in evaluated.rollouts]


def _mean_by_prompt(evaluated: Evaluated) -> Tensor:
    scores: dict[tuple[int, ...], list[float]] = {}
    for rollout, score in zip(evaluated.rollouts, evaluated.scores, strict=True):
        scores.setdefault(rollout.prompt, []).append(score)
    return torch.tensor([sum(of_prompt) / len(of_prompt) for of_prompt in scores.values()], dtype=torch.float64)


def _measure(evaluated: Evaluated, eos_ids: frozenset[int]) -> dict[str, float]:
    rollouts = evaluated.rollouts
    tokens = sum(len(r.reply) for r in rollouts)
    return {
        "openings": len({r.reply[:OPENING_TOKENS] for r in rollouts}) / len(rollouts),
        # Minus the mean log-probability of what was sampled has the entropy as its expectation.
        "entropy": -sum(sum(r.logprobs) for r in rollouts) / tokens,
        "length": tokens / len(rollouts),
        "empty": sum(all(token in eos_ids for token in r.reply) for r in rollouts) / len(rollouts),
    }
