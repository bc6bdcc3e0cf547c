"""The reward model learns a declared taste, is judged by prompt, and survives a round trip without pickle."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from plaudit_learner.features import SHAPE_FEATURES, batches, encode
from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.reward import (
    CLIP,
    NotEnoughVotesError,
    Preference,
    RewardModel,
    Vote,
    auc,
    fit,
    fit_features,
)

D = 20 + SHAPE_FEATURES


def synthetic(count: int, seed: int, flips: float = 0.1) -> tuple[Tensor, list[Vote]]:
    """Features whose first column decides the vote; four votes a prompt."""
    random_ = random.Random(seed)
    features = torch.randn(count, D, generator=torch.Generator().manual_seed(seed))
    votes = [
        Vote(PromptReply((seed, i // 4), (i,), False), (float(features[i, 0]) > 0) != (random_.random() < flips))
        for i in range(count)
    ]
    return features, votes


def test_finds_what_decides_the_votes_and_holds_on_other_prompts() -> None:
    model = fit_features(*synthetic(400, seed=0))
    features, votes = synthetic(400, seed=1, flips=0.0)
    assert auc(model.score_features(features), torch.tensor([v.liked for v in votes])) > 0.95
    assert model.metrics.bce < 0.8 * model.metrics.bce_constant
    assert 0.8 < model.metrics.auc < 0.97  # of noisy votes
    assert (model.metrics.votes, model.metrics.preferences) == (400, 0)


def test_noise_is_not_mistaken_for_a_taste() -> None:
    features, votes = synthetic(200, seed=0, flips=0.5)
    metrics = fit_features(features, votes).metrics
    assert 0.35 < metrics.auc < 0.65
    assert metrics.bce < metrics.bce_constant + 0.03


def test_a_prompt_never_lies_in_two_folds() -> None:
    """Votes decided by the prompt alone cannot be predicted on other prompts: a random split would say they can."""
    by_prompt = torch.randn(60, D, generator=torch.Generator().manual_seed(0))
    random_ = random.Random(0)
    taste = [random_.random() < 0.5 for _ in range(60)]
    votes = [Vote(PromptReply((p,), (i,), False), taste[p]) for p in range(60) for i in range(8)]
    assert fit_features(by_prompt.repeat_interleave(8, dim=0), votes).metrics.auc < 0.7


def test_preferences_alone_teach_the_same_taste() -> None:
    features, _ = synthetic(300, seed=0)
    pairs = [(i, i + 1) if features[i, 0] > features[i + 1, 0] else (i + 1, i) for i in range(0, 300, 2)]
    reply = [PromptReply((i // 4,), (i,), False) for i in range(300)]
    preferences = [Preference(reply[a], reply[b]) for a, b in pairs]
    model = fit_features(features[[row for pair in pairs for row in pair]], [], preferences)
    assert model.metrics.accuracy > 0.85
    test, votes = synthetic(300, seed=1, flips=0.0)
    assert auc(model.score_features(test), torch.tensor([v.liked for v in votes])) > 0.95


def test_weight_zero_silences_a_vote() -> None:
    features, votes = synthetic(200, seed=0, flips=0.0)
    liar = [Vote(v.item, not v.liked, weight=0.0) for v in votes]
    model = fit_features(torch.cat([features, features]), [*votes, *liar])
    assert auc(model.score_features(features), torch.tensor([v.liked for v in votes])) > 0.95


def test_scores_are_standardised_and_clipped() -> None:
    features, votes = synthetic(400, seed=0)
    model = fit_features(features, votes)
    scores = model.score_features(features)
    assert abs(float(scores.mean())) < 0.05
    assert abs(float(scores.std()) - 1) < 0.05
    assert float(model.score_features(features * 1000).abs().max()) == CLIP


def test_fit_is_a_function_of_its_votes() -> None:
    features, votes = synthetic(100, seed=0)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    a, b = fit_features(features, votes), fit_features(features[order], [votes[i] for i in order])
    torch.testing.assert_close(a.score_features(features), b.score_features(features), atol=0.01, rtol=0.01)


def test_auc_by_hand() -> None:
    assert auc(torch.tensor([1.0, 2.0, 3.0, 2.0]), torch.tensor([False, True, True, False])) == 3.5 / 4


def test_too_little_is_refused() -> None:
    features, votes = synthetic(8, seed=0)
    with pytest.raises(NotEnoughVotesError, match="at least 10"):
        fit_features(features, votes)
    features, votes = synthetic(40, seed=0)
    with pytest.raises(NotEnoughVotesError, match="same way"):
        fit_features(features, [Vote(v.item, True) for v in votes])


def test_real_replies_round_trip(tiny_model: Path, tmp_path: Path) -> None:
    """Features come from the reference, whatever the adapter is; each reply is read once; saving loses nothing."""
    policy = Policy.load(tiny_model)
    random_ = random.Random(0)
    items = [
        PromptReply((257, 97 + i % 20, 258, 10), tuple(random_.choices(range(97, 123), k=12)), False)
        for i in range(120)
    ]
    votes = [Vote(item, sum(token in b"aeiou" for token in item.reply) > 2) for item in items]
    cache: dict[PromptReply, Tensor] = {}
    model = fit(policy, votes, cache=cache)
    assert set(cache) == set(items)
    assert model.metrics.auc > 0.8

    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.1)
    torch.testing.assert_close(model.score(policy, items), model.score_features(torch.stack([cache[i] for i in items])))

    model.save(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    loaded = RewardModel.load(tmp_path)
    assert loaded.metrics == model.metrics
    torch.testing.assert_close(loaded.score(policy, items[:5]), model.score(policy, items[:5]))


def test_encoding_does_not_depend_on_the_batch(tiny_model: Path) -> None:
    policy = Policy.load(tiny_model)
    items = [PromptReply((257, *range(97, 97 + n % 5), 10), tuple(range(65, 66 + n)), n % 2 == 0) for n in range(9)]
    together, alone = encode(policy, items, batch_size=4), [encode(policy, [item])[0] for item in items]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.features_D, b.features_D, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.predicting_TH, b.predicting_TH, atol=1e-4, rtol=1e-4)


def test_batches_hold_every_row_once_and_keep_a_prompt_together() -> None:
    items = [PromptReply((1,) * (1 + i % 3), (i + 1,), False) for i in range(12)]
    rows = list(batches(items, 4))
    assert sorted(row for batch in rows for row in batch) == list(range(12))
    assert all(len({items[row].prompt for row in batch}) == 1 for batch in rows)
