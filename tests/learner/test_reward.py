"""The reward model learns a declared taste, is judged by prompt, and survives a round trip without pickle."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from plaudit_learner.policy import Policy, PromptReply, prompt_key
from plaudit_learner.ranks import evenly
from plaudit_learner.reward.aspects import parse
from plaudit_learner.reward.features import SHAPE_FEATURES, batches, encode, features
from plaudit_learner.reward.model import (
    CLIP,
    NotEnoughVotesError,
    Preference,
    Rating,
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


def test_equal_weights_are_no_weights() -> None:
    features, votes = synthetic(200, seed=0)
    half = [dataclasses.replace(vote, weight=0.5) for vote in votes]
    whole, halved = fit_features(features, votes), fit_features(features, half)
    torch.testing.assert_close(halved.score_features(features), whole.score_features(features), atol=1e-4, rtol=1e-4)
    assert halved.metrics.auc == whole.metrics.auc
    assert (halved.deviation(features) > whole.deviation(features)).all(), "half as much is known"


def test_a_flood_of_little_weight_sets_no_scale() -> None:
    """Two thousand strange replies that together weigh as one: neither mean nor scale of the features follow them."""
    features, votes = synthetic(200, seed=0)
    strange = torch.full((2000, D), 5.0)
    flood = [Vote(PromptReply((9, i % 50), (i,), False), i % 2 == 0, weight=1 / 2000) for i in range(2000)]
    alone, flooded = fit_features(features, votes), fit_features(torch.cat([features, strange]), [*votes, *flood])
    test, _ = synthetic(300, seed=1)
    torch.testing.assert_close(flooded.inputs.mean_R, alone.inputs.mean_R, atol=0.3, rtol=0)
    assert correlation(alone.margin(test), flooded.margin(test)) > 0.97


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


def two_aspects(count: int, seed: int) -> tuple[Tensor, list[Vote]]:
    """Quality is the first feature, tone the second; each reply has a vote on both."""
    features = torch.randn(count, D, generator=torch.Generator().manual_seed(seed))
    items = [PromptReply((seed, i // 4), (i,), False) for i in range(count)]
    votes = [
        Vote(item, float(features[i, column]) > 0, aspect=aspect)
        for column, aspect in enumerate(("quality", "tone"))
        for i, item in enumerate(items)
    ]
    return features.repeat(2, 1), votes


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def test_each_aspect_has_a_head_and_the_reward_is_what_was_declared() -> None:
    features, votes = two_aspects(300, seed=0)
    test, _ = synthetic(300, seed=5)
    model = fit_features(features, votes)
    assert sorted(model.heads) == ["quality", "tone"]
    assert correlation(model.margin(test, "tone"), test[:, 1]) > 0.9
    assert correlation(model.score_features(test), test[:, 0]) > 0.9, "quality alone, unless more is declared"
    against = fit_features(features, votes, terms=parse("quality=1,tone=-1")).score_features(test)
    assert correlation(against, test[:, 0] - test[:, 1]) > 0.9


def test_a_cap_ends_what_an_aspect_earns() -> None:
    """However charming, charm adds no more than its cap; below the cap it counts as ever."""
    features, votes = two_aspects(300, seed=0)
    test = torch.zeros(6, D)
    test[:, 1] = torch.tensor([-9.0, -3.0, 0.0, 3.0, 9.0, 90.0])
    capped = fit_features(features, votes, terms=parse("quality=1,tone=1<=0.5")).score_features(test)
    assert (capped[:3].diff() > 0).all()
    spread = capped[3:] - capped[3]
    # Past the cap only quality is left, and of the second feature it knows next to nothing.
    assert float(spread[:2].abs().max()) < 0.25 * float(capped[3] - capped[0])
    free = fit_features(features, votes, terms=parse("quality=1,tone=1")).score_features(test)
    assert float(free[4] - free[3]) > 0.5, "without a cap it goes on rising, up to the clip"


def test_rewards_are_normalised_over_the_reference_replies() -> None:
    features, votes = two_aspects(300, seed=0)
    model = fit_features(features, votes, terms=parse("quality=1,tone=0.5<=1"), pessimism=1.0)
    reference = 0.3 * synthetic(400, seed=7)[0] + 2
    before, after = model.score_features(reference), model.normalised(reference).score_features(reference)
    assert abs(float(before.mean())) > 0.5
    assert abs(float(after.mean())) < 0.05
    assert abs(float(after.std()) - 1) < 0.05
    again = model.normalised(reference).normalised(features)
    torch.testing.assert_close(again.score_features(features), model.score_features(features))
    with pytest.raises(ValueError, match="at least 2"):
        model.normalised(reference[:1])


def test_without_pessimism_the_reward_is_the_standardised_margin() -> None:
    features, votes = synthetic(400, seed=0)
    model = fit_features(features, votes)
    margin = model.margin(features)
    expected = ((margin - margin.mean()) / margin.std()).clamp(-CLIP, CLIP)
    torch.testing.assert_close(model.score_features(features), expected)


def test_uncertainty_grows_away_from_the_votes_and_shrinks_with_them() -> None:
    features, votes = synthetic(400, seed=0)
    features[:, 5] = 0.01 * features[:, 5] + 0.3 * features[:, 4]  # hardly ever seen apart
    model = fit_features(features, votes)
    steps = torch.zeros(5, D)
    steps[:, 0] = torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0])
    assert (model.deviation(steps).diff() > 0).all()
    along, apart = torch.zeros(1, D), torch.zeros(1, D)
    along[0, 4], along[0, 5], apart[0, 4], apart[0, 5] = 1.0, 0.3, 1.0, -0.3
    assert model.deviation(apart) > 2 * model.deviation(along), "no vote tells the two features apart"
    few = fit_features(features[:100], votes[:100])
    assert float(model.deviation(features).mean()) < float(few.deviation(features).mean())


def test_pessimism_lowers_what_is_uncertain() -> None:
    features, votes = synthetic(200, seed=0)
    hopeful, wary = (fit_features(features, votes, pessimism=k) for k in (0.0, 2.0))
    far = torch.zeros(1, D)
    far[0, 1] = 30.0 * torch.sign(hopeful.weights["quality.weight_W"][1])  # a fluke of the fit, followed far out
    near = torch.zeros(1, D)
    assert hopeful.score_features(far) > hopeful.score_features(near)
    assert wary.score_features(far) < wary.score_features(near)


def test_ratings_alone_teach_the_same_taste() -> None:
    features, votes = synthetic(400, seed=0)
    ratings = [
        Rating(v.item, 1 + sum(float(features[i, 0]) > edge for edge in (-1, -0.3, 0.3, 1)))
        for i, v in enumerate(votes)
    ]
    model = fit_features(features, [], ratings=ratings)
    test, liked = synthetic(300, seed=1, flips=0.0)
    assert auc(model.score_features(test), torch.tensor([v.liked for v in liked])) > 0.95
    assert model.metrics.ratings == 400
    assert model.metrics.concordance is not None
    assert model.metrics.discrimination == model.metrics.concordance > 0.9
    assert model.metrics.bce < 0.8 * model.metrics.bce_constant


def test_two_thumbs_among_many_pairs_decide_nothing() -> None:
    """Whether two thumbs fall right is chance: neither do they hold up what pairs tell, nor wave through noise."""
    features, votes = synthetic(600, seed=0)
    sign = [1 if features[i, 0] > features[i + 1, 0] else -1 for i in range(0, 600, 2)]
    rows = [row for i, s in zip(range(0, 600, 2), sign, strict=True) for row in (i, i + 1)[::s]]
    pairs = [Preference(votes[a].item, votes[b].item) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    thumbs = features[[rows[1], rows[200]]]  # a dispreferred reply liked, a preferred one disliked
    false = [Vote(PromptReply((7,), (1,), False), True), Vote(PromptReply((8,), (2,), False), False)]
    metrics = fit_features(torch.cat([thumbs, features[rows]]), false, pairs).metrics
    assert metrics.pair_accuracy is not None
    assert metrics.auc == 0
    assert metrics.discrimination == pytest.approx(300 / 302 * metrics.pair_accuracy)
    assert metrics.discrimination > 0.8
    known = f"AUC 0.00 on 2 thumbs, share right {metrics.pair_accuracy:.2f} on 300 preferences"
    assert metrics.told_by == f"{metrics.discrimination:.2f} by weight of {known}"
    faint = dataclasses.replace(metrics, weights={"thumbs": 0.5, "ratings": 0.0, "preferences": 1.5})
    assert faint.discrimination == pytest.approx(0.75 * metrics.pair_accuracy), "by weight, not by number"


def test_many_thumbs_that_nearly_all_point_one_way_decide_little() -> None:
    """Two of 100 thumbs down: the AUC hangs on those two, and weighs as four even ones among the pairs."""
    alone = fit_features(*synthetic(60, seed=0)).metrics
    metrics = dataclasses.replace(
        alone, votes=100, approval=0.98, auc=0.0, preferences=100, pair_accuracy=0.8, weights={}
    )
    assert metrics.discrimination == pytest.approx(0.8 * 100 / (100 + 4 * 0.98 * 0.02 * 100))
    even = dataclasses.replace(metrics, approval=0.5)
    assert even.discrimination == pytest.approx(0.4)


def test_thumbs_alone_are_told_by_their_auc() -> None:
    metrics = fit_features(*synthetic(60, seed=0)).metrics
    assert metrics.discrimination == metrics.auc, "to the bit"
    assert metrics.told_by == f"AUC {metrics.auc:.2f} on 60 thumbs"


def test_a_user_never_lies_in_two_folds() -> None:
    """Thumbs decided by the voter alone cannot be predicted of another voter; folds by prompt say they can."""
    random_ = random.Random(0)
    taste = torch.randn(40, D, generator=torch.Generator().manual_seed(1))  # each user writes in a style of their own
    generous = [random_.random() < 0.5 for _ in range(40)]
    votes, rows = [], []
    for i in range(400):
        user = random_.randrange(40)
        votes.append(Vote(PromptReply((i % 97,), (i,), False), generous[user], user=f"user {user}"))
        rows.append(taste[user] + 0.1 * torch.randn(D, generator=torch.Generator().manual_seed(i)))
    features = torch.stack(rows)
    by_user = fit_features(features, votes).metrics
    nameless = fit_features(features, [dataclasses.replace(vote, user="") for vote in votes]).metrics
    assert (by_user.by_user, by_user.users) == (True, 40)
    assert (nameless.by_user, nameless.users) == (False, 0)
    assert nameless.auc > 0.9
    assert by_user.auc < 0.7


def test_probabilities_are_calibrated_whatever_the_rate() -> None:
    """One thumb in seven is up; balanced fitting must not show in the probabilities."""
    features, _ = synthetic(1500, seed=0)
    random_ = random.Random(0)
    chance = torch.sigmoid(1.5 * features[:, 0] - 2.5)
    votes = [Vote(PromptReply((i // 4,), (i,), False), random_.random() < p) for i, p in enumerate(chance.tolist())]
    metrics = fit_features(features, votes).metrics
    assert metrics.approval < 0.2
    assert metrics.ece is not None
    assert metrics.brier is not None
    assert metrics.ece < 0.04
    assert metrics.brier < metrics.approval * (1 - metrics.approval), "better than the base rate"
    assert sum(row.count for row in metrics.reliability) == 1500


def test_a_model_before_changes_the_time_and_not_the_answer() -> None:
    features, votes = synthetic(300, seed=0)
    before = fit_features(features[:200], votes[:200])
    cold, warm = fit_features(features, votes), fit_features(features, votes, before=before)
    torch.testing.assert_close(warm.score_features(features), cold.score_features(features), atol=1e-3, rtol=1e-3)


def test_an_aspect_without_judgements_is_named() -> None:
    features, votes = synthetic(100, seed=0)
    with pytest.raises(NotEnoughVotesError, match="tone has no judgements yet; there are judgements of: quality"):
        fit_features(features, votes, terms=parse("quality,tone"))
    few = [Vote(votes[0].item, True, aspect="tone")]
    with pytest.raises(NotEnoughVotesError, match="aspect tone: 1 votes"):
        fit_features(torch.cat([features, features[:1]]), [*votes, *few], terms=parse("quality,tone"))
    assert list(fit_features(torch.cat([features, features[:1]]), [*votes, *few]).heads) == ["quality"]


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
    assert loaded.prompts == {prompt_key(item.prompt) for item in items}
    torch.testing.assert_close(loaded.score(policy, items[:5]), model.score(policy, items[:5]))


def test_what_cannot_be_told_is_null_in_the_file(tmp_path: Path) -> None:
    """Without thumbs there is no AUC; NaN is no JSON. Files of older releases have it, and are read."""
    features, votes = synthetic(60, seed=0)
    model = fit_features(features, [], ratings=[Rating(vote.item, 4 if vote.liked else 2) for vote in votes])
    model.save(tmp_path)
    file = tmp_path / "reward_model.json"

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(file.read_text(), parse_constant=refuse)["heads"]["quality"]["auc"] is None
    for _ in range(2):
        metrics = RewardModel.load(tmp_path).metrics
        assert math.isnan(metrics.auc)
        assert metrics.pair_accuracy is None
        assert metrics.discrimination == model.metrics.concordance
        file.write_text(file.read_text().replace('"auc": null', '"auc": NaN'))


FILES = ("reward_model.safetensors", "reward_model.json")


def test_what_a_power_loss_leaves_is_no_model(tmp_path: Path) -> None:
    fit_features(*synthetic(40, seed=0)).save(tmp_path)
    spoilt: list[Callable[[bytes], bytes]] = [lambda whole: whole[:-20], lambda _: b"", lambda whole: bytes(len(whole))]
    for file in (tmp_path / name for name in FILES):
        whole = file.read_bytes()
        for spoil in spoilt:
            file.write_bytes(spoil(whole))
            with pytest.raises(ValueError, match=f"{re.escape(str(file))} is not a reward model"):
                RewardModel.load(tmp_path)
        file.write_bytes(whole)
    RewardModel.load(tmp_path)


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        assert not (tmp_path / FILES[len(synced)]).exists()
        synced.append((status.st_ino, status.st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    fit_features(*synthetic(40, seed=0)).save(tmp_path)
    found = [(tmp_path / name).stat() for name in FILES]
    assert synced == [(status.st_ino, status.st_size) for status in found]


def test_encoding_does_not_depend_on_the_batch(tiny_model: Path) -> None:
    policy = Policy.load(tiny_model)
    items = [PromptReply((257, *range(97, 97 + n % 5), 10), tuple(range(65, 66 + n)), n % 2 == 0) for n in range(9)]
    together, alone = encode(policy, items, batch_size=4), [encode(policy, [item])[0] for item in items]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.features_D, b.features_D, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.predicting_TH, b.predicting_TH, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features(policy, items), torch.stack([e.features_D for e in together]))
    with pytest.raises(ValueError, match="no replies to read"):
        features(policy, [])


def test_batches_hold_every_row_once_and_keep_a_prompt_together() -> None:
    items = [PromptReply((1,) * (1 + i % 3), (i + 1,), False) for i in range(12)]
    rows = list(batches(items, 4))
    assert sorted(row for batch in rows for row in batch) == list(range(12))
    assert all(len({items[row].prompt for row in batch}) == 1 for batch in rows)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60), st.integers(1, 16), st.integers(1, 3))
def test_long_replies_are_read_few_at_a_time(lengths: list[int], size: int, of: int) -> None:
    items = [PromptReply((1,) * length, (2,), True) for length in lengths]
    found = batches(items, size, of)
    assert sorted(row for rows in found for row in rows) == list(range(len(items)))
    for rows in found:
        longest = max(lengths[row] for row in rows) + 1
        assert len(rows) <= size
        assert len(rows) == 1 or len(rows) * longest**2 <= 8_000_000, "memory goes with the square"
    if max(lengths) < 700:
        assert found == evenly([row for rows in found for row in rows], size, of), "of short ones none is cut"
