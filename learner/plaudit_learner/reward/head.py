"""One aspect's head: thumbs, ratings and preferences fitted together, and how sure the fit is.

Every judgement says that a latent liking, m + logistic noise, lies between two edges, where m = w . x:

    thumb up        (t, inf)             thumb down    (-inf, t)
    rating r        (c_{r-1}, c_r]       cumulative link, proportional odds (McCullagh 1980), c_0 = -inf, c_5 = inf
    a rather than b (0, inf)             of x_a - x_b: Bradley and Terry 1952

so one likelihood, sigmoid(high - m) - sigmoid(low - m), holds them all, and all share w. Its logarithm is concave in m
and the edges (Pratt 1981): with the L2 penalty there is one w, found in a second, with no seed and no early stopping.

Thumbs are balanced (both kinds weigh the same), so that w is not moved by how generous people are; t is then set
anew so that the mean probability is the true rate of thumbs up.

Shapes: N judgements, K coordinates, C = 5 edges that are fitted (t, c_1 to c_4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from plaudit_learner.reward.judgements import Preference, Rating, Vote

POINTS = 5
"""Ratings go from 1 to this."""
_NEVER, _ALWAYS, _ZERO, _THUMB = range(4)  # edges; those of ratings follow
_FAINT = 1e-4  # a pull on the edges that keeps them finite when all judgements fall on one side


@dataclass(frozen=True)
class Rows:
    """Judgements of one aspect, a row each; a preference's is the chosen reply's less the rejected one's."""

    x_NK: Tensor
    low_N: Tensor
    """The number of the edge that the liking lies above."""
    high_N: Tensor
    """The number of the edge that it lies below."""
    weight_N: Tensor

    def __getitem__(self, mask_N: Tensor) -> Rows:
        return Rows(self.x_NK[mask_N], self.low_N[mask_N], self.high_N[mask_N], self.weight_N[mask_N])

    @classmethod
    def of(
        cls, x_NK: Tensor, votes: Sequence[Vote], preferences: Sequence[Preference], ratings: Sequence[Rating]
    ) -> Rows:
        """Rows of votes, then preferences, then ratings. Raises ValueError if a rating is not 1 to POINTS."""
        between = [(_THUMB, _ALWAYS) if vote.liked else (_NEVER, _THUMB) for vote in votes]
        between += [(_ZERO, _ALWAYS)] * len(preferences) + [_rating(rating.points) for rating in ratings]
        low_N, high_N = torch.tensor(between, dtype=torch.long).reshape(-1, 2).T
        weights = [judgement.weight for kind in (votes, preferences, ratings) for judgement in kind]
        return cls(x_NK, low_N, high_N, torch.tensor(weights, dtype=torch.float64))

    @property
    def up_N(self) -> Tensor:
        """Which are thumbs up."""
        return self.low_N == _THUMB

    @property
    def thumb_N(self) -> Tensor:
        """Which are thumbs."""
        return self.up_N | (self.high_N == _THUMB)

    @property
    def pair_N(self) -> Tensor:
        """Which are preferences."""
        return self.low_N == _ZERO

    @property
    def rated_N(self) -> Tensor:
        """Which are ratings."""
        return ~self.thumb_N & ~self.pair_N

    @property
    def points_N(self) -> Tensor:
        """What ratings give, 1 to POINTS; of other judgements, no matter."""
        return (self.low_N - _THUMB).clamp(min=0) + 1


@dataclass(frozen=True)
class Fit:
    """The answer, in the coordinates of the rows."""

    weight_K: Tensor
    edges_C: Tensor
    """t, then c_1 < … < c_4."""

    def margin(self, rows: Rows) -> Tensor:
        """w . x (N,): of a reply, its liking; of a preference, the difference of two."""
        return rows.x_NK @ self.weight_K

    def log_likelihood(self, rows: Rows) -> Tensor:
        """Of each judgement (N,), in nats."""
        low_N, high_N = _edges(self.edges_C, rows)
        return _log_likelihood(self.margin(rows), low_N, high_N)


_START = torch.tensor([0.0, -1.5, -0.5, 0.5, 1.5], dtype=torch.float64)


def fit(rows: Rows, penalty: float, start: Fit | Tensor | None = None) -> Fit:
    """Minimise the mean weighted negative log-likelihood + penalty / 2 |w|^2 by L-BFGS, all in float64.

    start: where to begin, e.g. the answer to nearly the same question, or its weights; the answer is the same, and
    comes sooner.
    """
    weight_N = _balanced(rows)
    edges_C = start.edges_C if isinstance(start, Fit) else _START
    start = torch.zeros(rows.x_NK.shape[1], dtype=torch.float64) if start is None else start
    w_K = (start.weight_K if isinstance(start, Fit) else start).clone()
    # The edges of ratings as the first and the logarithms of the gaps above it: they cannot cross.
    free_C = torch.cat([edges_C[:2], edges_C[1:].diff().clamp(min=1e-6).log()])
    w_K.requires_grad_()
    free_C.requires_grad_()
    optimizer = torch.optim.LBFGS([w_K, free_C], max_iter=300, tolerance_grad=1e-7, line_search_fn="strong_wolfe")
    total = weight_N.sum()

    def closure() -> Tensor:
        optimizer.zero_grad()
        likelihood_N = _log_likelihood(rows.x_NK @ w_K, *_edges(_ordered(free_C), rows))
        loss = -(weight_N * likelihood_N).sum() / total + penalty / 2 * w_K @ w_K + _FAINT * free_C @ free_C
        loss.backward()
        return loss

    optimizer.step(closure)
    weight_K, edges_C = w_K.detach(), _ordered(free_C.detach())
    if rows.thumb_N.any():
        edges_C[0] = _true_rate_edge(rows.x_NK @ weight_K, rows)
    return Fit(weight_K, edges_C)


def known(fit_: Fit, rows: Rows, penalty: float) -> tuple[Tensor, float]:
    """What the judgements say of w, by Laplace's approximation (MacKay 1992): (known_KK, prior), so that the posterior
    covariance of w is prior * (I - known_KK known_KK^T), the edges integrated out.

    prior: the variance of each coordinate before any judgement, 1 / (penalty * total weight). Along what no judgement
    varied in, the variance stays that of the prior: it grows with the distance from what was judged.
    """
    weight_N = _balanced(rows)
    precision = penalty * float(weight_N.sum())
    low_N, high_N = _edges(fit_.edges_C, rows)
    margin_N = fit_.margin(rows)
    # Second derivatives of the negative log-likelihood by m, the edges, and both; `gap` is that of the edges' distance.
    at_high_N, at_low_N = (torch.sigmoid(edge - margin_N) * torch.sigmoid(margin_N - edge) for edge in (high_N, low_N))
    shrink_N = torch.exp(low_N - high_N)
    gap_N = shrink_N / (1 - shrink_N).square()
    low_NC, high_NC = (one_hot(n, 8).double()[:, _THUMB:] for n in (rows.low_N, rows.high_N))

    def product(a: Tensor, by_N: Tensor, b: Tensor) -> Tensor:
        return a.T @ ((weight_N * by_N)[:, None] * b)

    x_NK = rows.x_NK
    data_KK = product(x_NK, at_high_N + at_low_N, x_NK)
    mixed_KC = -product(x_NK, at_high_N, high_NC) - product(x_NK, at_low_N, low_NC)
    across_CC = product(high_NC, gap_N, low_NC)
    edges_CC = product(high_NC, at_high_N + gap_N, high_NC) + product(low_NC, at_low_N + gap_N, low_NC)
    edges_CC += 2 * _FAINT * weight_N.sum() * torch.eye(len(edges_CC), dtype=torch.float64) - across_CC - across_CC.T
    data_KK -= mixed_KC @ torch.linalg.solve(edges_CC, mixed_KC.T)
    value_K, vector_KK = torch.linalg.eigh((data_KK + data_KK.T) / 2)
    value_K = value_K.clamp(min=0)
    return vector_KK * (value_K / (value_K + precision)).sqrt(), 1 / precision


def _balanced(rows: Rows) -> Tensor:
    """Weights under which thumbs up and down weigh the same, and as much together as before."""
    weight_N = rows.weight_N.clone()
    up_N, down_N = rows.up_N, rows.thumb_N & ~rows.up_N
    up, down = weight_N[up_N].sum(), weight_N[down_N].sum()
    if up > 0 and down > 0:
        weight_N[up_N] *= (up + down) / (2 * up)
        weight_N[down_N] *= (up + down) / (2 * down)
    return weight_N


def _true_rate_edge(margin_N: Tensor, rows: Rows) -> Tensor:
    """The t at which the mean probability of a thumb up is the true rate, half a thumb from all or none at most."""
    weight_N, margin_N = rows.weight_N[rows.thumb_N], margin_N[rows.thumb_N]
    total, up = weight_N.sum(), rows.weight_N[rows.up_N].sum()
    wanted = torch.clamp(up, 0.5, float(total) - 0.5) if total > 1 else total / 2
    low, high = margin_N.min() - 30, margin_N.max() + 30
    for _ in range(80):  # bisection: the expected number falls as t rises
        middle = (low + high) / 2
        above = (weight_N * torch.sigmoid(margin_N - middle)).sum() > wanted
        low, high = (middle, high) if above else (low, middle)
    return (low + high) / 2


def _ordered(free_C: Tensor) -> Tensor:
    first = free_C[1:2]
    return torch.cat([free_C[:1], first, first + free_C[2:].exp().cumsum(0)])


def _edges(edges_C: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    fixed = torch.tensor([-torch.inf, torch.inf, 0.0], dtype=torch.float64)
    every = torch.cat([fixed, edges_C])
    return every[rows.low_N], every[rows.high_N]


def _log_likelihood(margin_N: Tensor, low_N: Tensor, high_N: Tensor) -> Tensor:
    # log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - e^(b - a)), stable far out.
    a_N, b_N = high_N - margin_N, low_N - margin_N
    return logsigmoid(a_N) + logsigmoid(-b_N) + torch.log1p(-torch.exp(low_N - high_N))


def _rating(points: int) -> tuple[int, int]:
    if not 1 <= points <= POINTS:
        raise ValueError(f"a rating of {points}: give 1 to {POINTS}")
    return _NEVER if points == 1 else _THUMB + points - 1, _ALWAYS if points == POINTS else _THUMB + points
