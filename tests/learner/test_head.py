"""One head for thumbs, ratings and preferences: against other fits, by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from plaudit_learner.policy import PromptReply
from plaudit_learner.reward import head
from plaudit_learner.reward.head import Rows
from plaudit_learner.reward.judgements import Preference, Rating, Vote
from plaudit_learner.reward.validation import HeldOut, measure

ITEM = PromptReply((1,), (2,), True)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logistic(count: int, seed: int) -> Tensor:
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.logit(uniform)


def thumbs(x: Tensor, liked: Tensor) -> Rows:
    return Rows.of(x, [Vote(ITEM, bool(up)) for up in liked], [], [])


def ratings(x: Tensor, points: Tensor) -> Rows:
    return Rows.of(x, [], [], [Rating(ITEM, int(p)) for p in points])


def test_likelihoods_by_hand() -> None:
    """m = 0.5, t = -0.2, c = -1, 0, 1, 2: each probability is a difference of logistic functions."""
    rows = Rows.of(
        torch.tensor([[0.5]] * 8, dtype=torch.float64),
        [Vote(ITEM, True), Vote(ITEM, False)],
        [Preference(ITEM, ITEM)],
        [Rating(ITEM, points) for points in range(1, 6)],
    )
    one, edges = torch.ones(1, dtype=torch.float64), torch.tensor([-0.2, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)

    def s(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    below = [s(-1 - 0.5), s(0 - 0.5), s(1 - 0.5), s(2 - 0.5)]
    expected = [
        *(s(0.7), 1 - s(0.7), s(0.5)),
        *(below[0], below[1] - below[0], below[2] - below[1], below[3] - below[2], 1 - below[3]),
    ]
    likelihood = head.Fit(one, edges).log_likelihood(rows)
    assert likelihood.exp().tolist() == pytest.approx(expected, rel=1e-12)
    assert sum(expected[3:]) == pytest.approx(1)
    assert rows.points_N[rows.rated_N].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("points", [0, 6])
def test_a_rating_out_of_range_is_refused(points: int) -> None:
    with pytest.raises(ValueError, match="give 1 to 5"):
        ratings(torch.zeros(1, 1, dtype=torch.float64), torch.tensor([points]))


def test_thumbs_agree_with_balanced_logistic_regression() -> None:
    x = normal(300, 4, seed=0)
    liked = x[:, 0] + logistic(300, seed=1) > 1.5  # one in five
    found = head.fit(thumbs(x, liked), 0.1)
    sklearn = LogisticRegression(C=1 / (0.1 * 300), class_weight="balanced", tol=1e-10, max_iter=1000)
    sklearn.fit(x.numpy(), liked.numpy())
    np.testing.assert_allclose(found.weight_K.numpy(), sklearn.coef_[0], atol=2e-4)


def test_probabilities_have_the_true_rate() -> None:
    x = normal(300, 4, seed=0)
    liked = x[:, 0] + logistic(300, seed=1) > 2.5
    found = head.fit(thumbs(x, liked), 0.1)
    probability = torch.sigmoid(x @ found.weight_K - found.edges_C[0])
    assert float(probability.mean()) == pytest.approx(float(liked.double().mean()), abs=1e-9)
    assert float(liked.double().mean()) < 0.2


def test_ratings_find_weights_and_thresholds() -> None:
    """Against what made them: three weights, and four thresholds at unequal distances."""
    x, weight, edges = normal(6000, 3, seed=0), torch.tensor([1.0, -0.5, 0.0]).double(), [-1.5, -1.0, 0.5, 2.5]
    latent = x @ weight + logistic(6000, seed=1)
    points = 1 + sum((latent > edge).long() for edge in edges)
    found = head.fit(ratings(x, points), 1e-6)
    torch.testing.assert_close(found.weight_K, weight, atol=0.08, rtol=0)
    assert found.edges_C[1:].tolist() == pytest.approx(edges, abs=0.12)


def test_thresholds_stay_in_order_when_a_point_is_never_given() -> None:
    x = normal(200, 2, seed=0)
    points = torch.where(x[:, 0] + logistic(200, seed=1) > 0, 5, 2)
    found = head.fit(ratings(x, points), 0.01)
    assert (found.edges_C[1:].diff() > 0).all()
    assert torch.isfinite(found.weight_K).all()
    assert found.weight_K[0] > 0.5


def test_all_three_kinds_share_the_weights() -> None:
    """Each kind shows one third of the taste; only together do they show all of it."""
    x, weight = normal(900, 3, seed=0), torch.ones(3, dtype=torch.float64)
    parts = [x[i * 300 : (i + 1) * 300] * torch.eye(3, dtype=torch.float64)[i] * 2 for i in range(3)]
    noisy = [part @ weight + logistic(300, seed=i) for i, part in enumerate(parts)]
    votes = [Vote(ITEM, bool(m > 0)) for m in noisy[0]]
    signs = torch.where(noisy[1] > 0, 1.0, -1.0)[:, None]  # the chosen reply comes first
    stars = [Rating(ITEM, 1 + sum(bool(m > edge) for edge in (-2, -0.5, 0.5, 2))) for m in noisy[2]]
    found = head.fit(
        Rows.of(torch.cat([parts[0], parts[1] * signs, parts[2]]), votes, [Preference(ITEM, ITEM)] * 300, stars), 1e-4
    )
    torch.testing.assert_close(found.weight_K, weight, atol=0.25, rtol=0)


@pytest.mark.parametrize("kind", ["thumbs", "ratings", "preferences"])
def test_a_weight_of_two_is_two_judgements(kind: str) -> None:
    """In the weights, in the edges, in the class balance, and in what is known."""
    x, penalty = normal(60, 3, seed=0), 0.05
    latent = x[:, 0] + logistic(60, seed=1)
    weights = [float(1 + i % 2) for i in range(60)]

    def rows(copies: list[int], weight: list[float]) -> Rows:
        if kind == "thumbs":
            votes = [Vote(ITEM, bool(latent[i] > 0.7), weight=w) for i, w in zip(copies, weight, strict=True)]
            return Rows.of(x[copies], votes, [], [])
        if kind == "ratings":
            points = 1 + sum((latent > edge).long() for edge in (-1.5, -0.5, 0.5, 1.5))
            stars = [Rating(ITEM, int(points[i]), weight=w) for i, w in zip(copies, weight, strict=True)]
            return Rows.of(x[copies], [], [], stars)
        sign = torch.where(latent > 0, 1.0, -1.0)[:, None]
        return Rows.of((x * sign)[copies], [], [Preference(ITEM, ITEM, weight=w) for w in weight], [])

    weighted = rows(list(range(60)), weights)
    copies = [i for i in range(60) for _ in range(1 + i % 2)]
    repeated = rows(copies, [1.0] * len(copies))
    one, other = head.fit(weighted, penalty), head.fit(repeated, penalty)
    torch.testing.assert_close(one.weight_K, other.weight_K, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.edges_C, other.edges_C, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        covariance(one, weighted, penalty), covariance(one, repeated, penalty), atol=1e-9, rtol=1e-9
    )


def test_held_out_figures_by_hand() -> None:
    """Thumbs up of weight 1 and 0.5, down of 0.25; two preferences of 1 and 0.5, the second wrong."""
    votes = [Vote(ITEM, True), Vote(ITEM, True, weight=0.5), Vote(ITEM, False, weight=0.25)]
    pairs = [Preference(ITEM, ITEM), Preference(ITEM, ITEM, weight=0.5)]
    rows = Rows.of(torch.zeros(5, 1, dtype=torch.float64), votes, pairs, [])
    margin = torch.tensor([1.0, -1.0, 0.0, 2.0, -2.0], dtype=torch.float64)
    likelihood = torch.tensor([-0.1, -0.2, -0.4, -0.3, -0.6], dtype=torch.float64)
    found = measure(HeldOut(margin, likelihood, margin, []), rows, penalty=0.1, users=0, by_user=False)
    assert (found.votes, found.preferences) == (3, 2)
    assert found.approval == pytest.approx(1.5 / 1.75)
    assert found.auc == pytest.approx((0.25 * 1) / (0.25 * 1.5))
    assert found.accuracy == pytest.approx((1 + 0.25 + 1) / 3.25)
    assert found.pair_accuracy == pytest.approx(1 / 1.5)
    assert found.weights == {"thumbs": 1.75, "ratings": 0.0, "preferences": 1.5}
    assert found.bce == pytest.approx((0.1 + 0.5 * 0.2 + 0.25 * 0.4 + 0.3 + 0.5 * 0.6) / 3.25)
    entropy = -1.5 * math.log(1.5 / 1.75) - 0.25 * math.log(0.25 / 1.75)
    assert found.bce_constant == pytest.approx((entropy + 1.5 * math.log(2)) / 3.25)
    margin[3] = 0.0  # says nothing of the pair
    tied = measure(HeldOut(margin, likelihood, margin, []), rows, penalty=0.1, users=0, by_user=False)
    assert tied.pair_accuracy == pytest.approx(0.5 / 1.5)


def test_another_start_gives_the_same_answer() -> None:
    x = normal(200, 10, seed=0)
    rows = thumbs(x, x[:, 0] + logistic(200, seed=1) > 0)
    cold, near = head.fit(rows, 0.05), head.fit(rows, 0.1)
    for start in (near, near.weight_K, 3 * normal(10, seed=2)):
        torch.testing.assert_close(head.fit(rows, 0.05, start).weight_K, cold.weight_K, atol=1e-4, rtol=1e-3)


def covariance(found: head.Fit, rows: Rows, penalty: float) -> Tensor:
    known, prior = head.known(found, rows, penalty)
    return prior * (torch.eye(len(known), dtype=torch.float64) - known @ known.T)


@pytest.mark.parametrize("kind", ["thumbs", "ratings", "preferences"])
def test_laplace_is_the_inverse_of_the_hessian(kind: str) -> None:
    """Against automatic differentiation over weights and edges together."""
    x, penalty = normal(80, 3, seed=0), 0.05
    latent = x[:, 0] + logistic(80, seed=1)
    if kind == "thumbs":
        balanced = torch.where(torch.arange(80) % 2 == 0, x[:, 0].abs(), -x[:, 0].abs())
        rows = thumbs(torch.cat([balanced[:, None], x[:, 1:]], 1), torch.arange(80) % 4 < 2)
    elif kind == "ratings":
        rows = ratings(x, 1 + sum((latent > edge).long() for edge in (-1.5, -0.5, 0.5, 1.5)))
    else:
        rows = Rows.of(x * torch.where(latent > 0, 1.0, -1.0)[:, None], [], [Preference(ITEM, ITEM)] * 80, [])
    found = head.fit(rows, penalty)

    def negative_log_posterior(both: Tensor) -> Tensor:
        fit = head.Fit(both[:3], both[3:])
        return -fit.log_likelihood(rows).sum() + 80 * (penalty / 2 * both[:3] @ both[:3] + 1e-4 * both[3:] @ both[3:])

    at = torch.cat([found.weight_K, found.edges_C])
    hessian = torch.autograd.functional.hessian(negative_log_posterior, at)
    expected = torch.linalg.inv(hessian)[:3, :3]  # type: ignore[no-untyped-call, unused-ignore]
    torch.testing.assert_close(covariance(found, rows, penalty), expected, rtol=1e-6, atol=1e-9)


def test_intervals_cover() -> None:
    """Tastes drawn from the prior, votes from the tastes: 90 % intervals hold 90 % of new replies' true margins."""
    n, k, penalty = 150, 8, 0.02
    inside, total = 0, 0
    for seed in range(60):
        x, new = normal(n, k, seed=3 * seed), normal(50, k, seed=3 * seed + 1)
        weight = normal(k, seed=3 * seed + 2) / math.sqrt(penalty * n)
        rows = thumbs(x, x @ weight + logistic(n, seed=1000 + seed) > 0)
        found = head.fit(rows, penalty)
        deviation = ((new @ covariance(found, rows, penalty)) * new).sum(1).sqrt()
        inside += int(((new @ (found.weight_K - weight)).abs() < 1.645 * deviation).sum())
        total += 50
    assert 0.86 < inside / total < 0.94
