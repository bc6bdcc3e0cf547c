"""Sampling: seeded, in order, with true log-probabilities."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from plaudit_learner.policy import Policy
from plaudit_learner.ppo.rollouts import Rollout, _draw, sample

PROMPTS = [(257, *range(97, 97 + n), 258, 10) for n in (3, 9, 1, 5)]


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Policy:
    return Policy.load(tiny_model)


def rollouts(policy: Policy, *, seed: int = 0, samples: int = 3, length: int = 12, batch: int = 48) -> list[Rollout]:
    return sample(
        policy,
        PROMPTS,
        samples_per_prompt=samples,
        max_new_tokens=length,
        temperature=0.8,
        seed=seed,
        batch_size=batch,
    )


def test_same_seed_same_replies_another_seed_others(policy: Policy) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert rollouts(policy) == rollouts(policy)
    assert torch.rand(1) == expected, "the global generator was used"
    assert rollouts(policy) != rollouts(policy, seed=1)


def test_replies_stand_in_the_order_of_their_prompts(policy: Policy) -> None:
    expected = [prompt for prompt in PROMPTS for _ in range(3)]
    assert [r.prompt for r in rollouts(policy, batch=6)] == expected
    assert len({r.reply for r in rollouts(policy)}) == len(expected)


def test_replies_do_not_depend_on_who_shares_their_batch(policy: Policy) -> None:
    """What is drawn belongs to a reply's place: so several processes may share the work."""
    assert [r.reply for r in rollouts(policy, batch=3)] == [r.reply for r in rollouts(policy, batch=48)]


def test_logprobs_are_those_of_the_sampled_tokens_at_the_temperature(policy: Policy) -> None:
    """Also after finished replies have left the batch."""
    sampled = rollouts(policy, samples=20, length=30)
    assert 0 < sum(r.finished for r in sampled) < len(sampled)
    logits, tokens, _ = policy.reply_logits([r.item for r in sampled])
    logprobs = torch.log_softmax(logits.detach() / 0.8, dim=-1).gather(-1, tokens[..., None])[..., 0]
    for row, rollout in enumerate(sampled):
        torch.testing.assert_close(
            torch.tensor(rollout.logprobs), logprobs[row, : len(rollout.reply)], atol=1e-3, rtol=0
        )


def test_reply_ends_at_eos_or_at_the_limit(policy: Policy) -> None:
    for rollout in rollouts(policy, samples=20, length=30):
        assert not policy.eos_ids & set(rollout.reply[:-1])
        assert rollout.finished == (rollout.reply[-1] in policy.eos_ids)
        assert rollout.finished or len(rollout.reply) == 30
        assert len(rollout.logprobs) == len(rollout.reply)


def test_first_tokens_follow_the_models_distribution(policy: Policy) -> None:
    draws = sample(
        policy, PROMPTS[:1], samples_per_prompt=4000, max_new_tokens=1, temperature=0.8, seed=0, batch_size=4000
    )
    counts = Counter(r.reply[0] for r in draws)
    probabilities = {r.reply[0]: math.exp(r.logprobs[0]) for r in draws}
    for token, count in counts.most_common(5):
        p = probabilities[token]
        assert abs(count / 4000 - p) < 4 * math.sqrt(p * (1 - p) / 4000)


def test_draws_follow_the_weights_within_and_between_blocks() -> None:
    weights = torch.zeros(700)
    weights[[3, 255, 256, 511, 699]] = torch.tensor([1.0, 2.0, 3.0, 4.0, 6.0]) / 16
    uniform = (torch.arange(1600, dtype=torch.float64)[:, None] + 0.5) / 1600
    counts = torch.bincount(_draw(weights.expand(1600, -1), uniform)[:, 0], minlength=700)
    torch.testing.assert_close(counts.float(), 1600 * weights)
    edges = torch.tensor([[0.0], [1 / 16], [3 / 16], [6 / 16], [10 / 16], [1 - 2**-53]], dtype=torch.float64)
    assert _draw(weights.expand(6, -1), edges)[:, 0].tolist() == [3, 255, 256, 511, 699, 699]


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"max_new_tokens": 0}, {"samples_per_prompt": 0}])
def test_nonsense_is_refused(policy: Policy, bad: dict[str, float]) -> None:
    settings = {"temperature": 1.0, "max_new_tokens": 1, "samples_per_prompt": 1} | bad
    with pytest.raises(ValueError, match="must be positive"):
        sample(policy, PROMPTS, seed=0, **settings)  # type: ignore[arg-type]
