"""The critic: foretells scores of replies it was not fitted on, and never explains a reply's own luck away."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from plaudit_learner.policy import Policy
from plaudit_learner.ppo.critic import FOLDS, MEMORY, PENALTY, Critic, _fold
from plaudit_learner.ppo.rollouts import Rollout, sample
from plaudit_learner.reward.features import encode
from plaudit_learner.reward.model import RewardModel, Vote, fit


def prompts(count: int, seed: int) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [(257, *draw.choices(range(97, 123), k=draw.randint(5, 20)), 258, 10) for _ in range(count)]


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Policy:
    return Policy.load(tiny_model)


@pytest.fixture(scope="module")
def replies(policy: Policy) -> list[Rollout]:
    with policy.reference():
        return sample(policy, prompts(60, 0), samples_per_prompt=4, max_new_tokens=24, temperature=1.0, seed=0)


@pytest.fixture(scope="module")
def reward_model(policy: Policy, replies: list[Rollout]) -> RewardModel:
    """Of a taste for some letters: every token settles a part of the score."""
    share = [sum(token % 2 for token in r.reply) / len(r.reply) for r in replies]
    return fit(policy, [Vote(r.item, s > sum(share) / len(share)) for r, s in zip(replies, share, strict=True)])


def test_features_of_a_prefix_are_those_of_the_reply_cut_there(policy: Policy, replies: list[Rollout]) -> None:
    whole = next(r for r in replies if len(r.reply) > 5)
    cut = whole.item._replace(reply=whole.reply[:3], finished=False)
    with_prefixes, alone = encode(policy, [whole.item], prefixes=True)[0], encode(policy, [cut])[0]
    assert with_prefixes.prefix_TD.shape[0] == len(whole.reply)
    torch.testing.assert_close(with_prefixes.prefix_TD[2], alone.features_D, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(with_prefixes.features_D, encode(policy, [whole.item])[0].features_D)


def test_the_score_is_foretold_ever_better_along_the_reply(
    policy: Policy, replies: list[Rollout], reward_model: RewardModel
) -> None:
    encodings = encode(policy, [r.item for r in replies], prefixes=True)
    rewards = reward_model.score_features(torch.stack([e.features_D for e in encodings]))
    values = Critic(reward_model, 24).values(replies, encodings, rewards)
    assert [len(v) for v in values] == [len(r.reply) for r in replies]
    first, last = (torch.stack([v[at] for v in values]) for at in (0, -1))

    def unexplained(foretold: torch.Tensor) -> float:
        return float(((rewards - foretold) ** 2).mean() / rewards.var())

    assert unexplained(last) < 0.8 * unexplained(first)
    assert unexplained(last) < 0.7


def test_a_reply_is_not_judged_by_its_own_score(
    policy: Policy, replies: list[Rollout], reward_model: RewardModel
) -> None:
    """Had the critic seen it, another score would move its values. Those of other folds do move."""
    encodings = encode(policy, [r.item for r in replies], prefixes=True)
    rewards = reward_model.score_features(torch.stack([e.features_D for e in encodings]))
    changed = rewards.clone()
    changed[0] += 5.0
    before, after = (Critic(reward_model, 24).values(replies, encodings, r) for r in (rewards, changed))
    own = _fold(replies[0].prompt)
    for rollout, old, new in zip(replies, before, after, strict=True):
        assert torch.equal(old, new) == (_fold(rollout.prompt) == own)


def test_values_are_those_of_a_ridge_regression(
    policy: Policy, replies: list[Rollout], reward_model: RewardModel
) -> None:
    """Against the textbook solution with all rows at hand, older rollouts weighted down."""
    encodings = encode(policy, [r.item for r in replies], prefixes=True)
    rewards = reward_model.score_features(torch.stack([e.features_D for e in encodings]))
    critic, half = Critic(reward_model, 24), len(replies) // 2
    critic.values(replies[:half], encodings[:half], rewards[:half])
    values = critic.values(replies[half:], encodings[half:], rewards[half:])

    fold = _fold(replies[half].prompt)
    used = [i for i, r in enumerate(replies) if _fold(r.prompt) != fold]
    x = torch.cat([critic._inputs(encodings[i]) for i in used])
    y = torch.cat([rewards[i].double().expand(len(replies[i].reply)) for i in used])
    weight = torch.cat([torch.full((len(replies[i].reply),), MEMORY if i < half else 1.0).double() for i in used])
    mean = float((weight * y).sum() / weight.sum())
    gram = x.T @ (weight[:, None] * x) + PENALTY * torch.eye(x.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(gram, x.T @ (weight * (y - mean)))
    expected = critic._inputs(encodings[half]) @ solution + mean
    torch.testing.assert_close(values[0], expected.float(), rtol=1e-3, atol=1e-4)


def test_one_prompt_alone_has_nothing_to_go_by(
    policy: Policy, replies: list[Rollout], reward_model: RewardModel
) -> None:
    encodings = encode(policy, [r.item for r in replies[:4]], prefixes=True)
    values = Critic(reward_model, 24).values(replies[:4], encodings, torch.ones(4))
    assert not any(v.any() for v in values)
    assert len({_fold(p) for p in prompts(60, 0)}) == FOLDS
