"""How good a head is on judgements that it was not fitted to, and the inputs and L2 penalty that are best there.

Both are chosen with prompts held out; what is reported then is measured with prompts and, where there are enough users,
users held out (`judgements.py` says how and why).

Shapes: N judgements, P preferences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from plaudit_learner.reward import head
from plaudit_learner.reward.calibration import Bin, auc, brier, concordance, ece, mean, reliability, right
from plaudit_learner.reward.judgements import Judgement, cells, prompt_folds, user_folds

PENALTIES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Candidates for the L2 penalty; the loss is a mean over judgements, and features are standardised."""


@dataclass(frozen=True)
class RewardMetrics:
    """How good a head is on judgements held out by prompt and, where there are enough users, by user.

    Counts are of judgements; all else is of their weight.
    Of kinds of judgement that there are none of, the older numbers are nan, and the optional ones None.
    """

    votes: int
    preferences: int
    approval: float
    """Thumbs-up divided by all thumbs."""
    auc: float
    """Probability that an upvoted reply scores above a downvoted one, over prompts."""
    accuracy: float
    """Share of thumbs and preferences predicted right."""
    bce: float
    """Mean negative log-likelihood, nats a judgement."""
    bce_constant: float
    """The same of a model that knows how often each verdict is given and no more: what `bce` has to beat."""
    penalty: float
    """The L2 penalty chosen."""
    ratings: int = 0
    users: int = 0
    """Named users."""
    by_user: bool = False
    """Whether users were held out too."""
    concordance: float | None = None
    """Probability that of two replies rated differently the better one scores higher."""
    pair_accuracy: float | None = None
    """Share of preferences predicted right."""
    ece: float | None = None
    """Expected calibration error of the probabilities of a thumb up."""
    brier: float | None = None
    """Their mean squared error."""
    reliability: tuple[Bin, ...] = ()
    """What was predicted beside what came, in tenths."""
    weights: dict[str, float] = field(default_factory=dict)
    """What the thumbs, ratings and preferences weigh; models of older releases do not say, then each counts 1."""
    interactions: bool = False
    """Whether the head sees interactions of the reply with its prompt."""

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> RewardMetrics:
        """From what `asdict` made and JSON kept. Raises KeyError, TypeError or ValueError if it is something else."""
        # JSON has no nan: null stands for it where there has to be a number.
        required = {each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING}
        row: dict[str, Any] = {
            name: math.nan if value is None and name in required else value for name, value in dict(described).items()
        }
        return cls(**{**row, "reliability": tuple(Bin(**bin_) for bin_ in row["reliability"])})

    @property
    def discrimination(self) -> float:
        """Probability of putting the better of two replies first, 0.5 for one who guesses; nan if it cannot be told.

        AUC of thumbs, concordance of ratings and share of pairs right, each by what its kind weighs: of one kind alone
        it is that kind's figure, and two thumbs among hundreds of pairs decide nothing. Nor do a hundred nearly all of
        which point one way: how many stand on each side tells an AUC, so they weigh twice the harmonic mean of both.
        """
        told = self._told()
        if len(told) == 1:  # to the bit
            return told[0][1]
        total = sum(weight for weight, *_ in told)
        return sum(weight * value for weight, value, _ in told) / total if total else math.nan

    @property
    def told_by(self) -> str:
        """What `discrimination` is made of, in words."""
        parts = [words for *_, words in self._told()]
        return parts[0] if len(parts) == 1 else f"{self.discrimination:.2f} by weight of " + ", ".join(parts)

    def _told(self) -> list[tuple[float, float, str]]:
        """(weight, value, in words) of the figures that the kinds of judgements give."""
        both_sides = 4 * self.approval * (1 - self.approval)  # of the thumbs' weight; all of it if they are even
        kinds = (
            ("AUC", self.votes, "thumbs", self.auc, both_sides),
            ("concordance", self.ratings, "ratings", self.concordance, 1.0),
            ("share right", self.preferences, "preferences", self.pair_accuracy, 1.0),
        )
        return [
            (share * self.weights.get(kind, float(count)), value, f"{figure} {value:.2f} on {count} {kind}")
            for figure, count, kind, value, share in kinds
            if value is not None and not math.isnan(value)
        ]

    def summary(self) -> str:
        """One line for the log."""
        kinds = ((self.votes, "thumbs"), (self.ratings, "ratings"), (self.preferences, "preferences"))
        there = ", ".join(f"{count} {kind}" for count, kind in kinds if count)
        numbers = {
            "up": self.approval,
            "AUC": self.auc,
            "ECE": self.ece,
            "Brier": self.brier,
            "concordance": self.concordance,
            "pairs right": self.pair_accuracy,
        }
        known = ", ".join(
            f"{name} {value:.2f}" for name, value in numbers.items() if value is not None and not math.isnan(value)
        )
        seen = ", seen with its prompt" if self.interactions else ""
        return f"{there}{seen}; held out by prompt{' and user' if self.by_user else ''}: {known}"


def validate(views: Sequence[head.Rows], judgements: Sequence[Judgement]) -> tuple[int, RewardMetrics]:
    """Choose the inputs and the penalty, and measure the head they give.

    views: the judgements' rows without interactions, and with them if there are any. Those with are taken if they
    predict better by more than a standard error (the one-standard-error rule: Breiman et al. 1984, section 3.4.3).
    Gives the number of the view taken, and what is measured of it.
    """
    prompt_N, user_N = prompt_folds(judgements), user_folds(judgements)
    parts = list(cells(prompt_N, None))
    found = [_best_penalty(rows, parts) for rows in views]
    taken = int(len(views) > 1 and _surely_better(found[1][0], found[0][0], views[0].weight_N))
    best, penalty = found[taken]
    if user_N is not None:
        best = held_out(views[taken], penalty, list(cells(prompt_N, user_N)))
    users = len({judgement.user for judgement in judgements if judgement.user})
    metrics = measure(best, views[taken], penalty=penalty, users=users, by_user=user_N is not None)
    return taken, replace(metrics, interactions=bool(taken))


def _best_penalty(rows: head.Rows, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[HeldOut, float]:
    best, penalty, worse = held_out(rows, PENALTIES[-1], parts), PENALTIES[-1], 0
    starts = best.found
    for candidate in reversed(PENALTIES[:-1]):
        # From the stiffest to the freest, each from the one before: the answers lie close together.
        result = held_out(rows, candidate, parts, starts)
        starts = result.found
        if result.loss(rows.weight_N) < best.loss(rows.weight_N):
            best, penalty, worse = result, candidate, 0
        elif (worse := worse + 1) == 2:
            break  # the loss falls and then rises; the freest fits take the longest
    return best, penalty


def _surely_better(one: HeldOut, other: HeldOut, weight_N: Tensor) -> bool:
    """Whether one's likelihood is the higher by more than the standard error of the difference, over judgements."""
    share_N = weight_N / weight_N.sum()
    more_N = one.log_likelihood_N - other.log_likelihood_N
    more = share_N @ more_N
    return bool(more > (share_N * (more_N - more)).norm())


@dataclass(frozen=True)
class HeldOut:
    """What is predicted of judgements, each by a fit that did not see it."""

    margin_N: Tensor
    log_likelihood_N: Tensor
    thumb_N: Tensor
    """Log-odds of a thumb up."""
    found: list[head.Fit]

    def loss(self, weight_N: Tensor) -> float:
        """Mean negative log-likelihood, nats a judgement."""
        return -float((weight_N * self.log_likelihood_N).sum() / weight_N.sum())


def held_out(
    rows: head.Rows, penalty: float, parts: Sequence[tuple[Tensor, Tensor]], starts: Sequence[head.Fit] = ()
) -> HeldOut:
    """Predict each part's test rows by a fit to its training rows. Rows in no part are guessed at."""
    margin_N, likelihood_N, thumb_N = torch.zeros(3, len(rows.weight_N), dtype=torch.float64)
    likelihood_N += math.log(0.5)
    found = []
    for number, (train_N, test_N) in enumerate(parts):
        fit, test = head.fit(rows[train_N], penalty, starts[number] if starts else None), rows[test_N]
        margin_N[test_N], likelihood_N[test_N] = fit.margin(test), fit.log_likelihood(test)
        thumb_N[test_N] = margin_N[test_N] - fit.edges_C[0]
        found.append(fit)
    return HeldOut(margin_N, likelihood_N, thumb_N, found)


def measure(predicted: HeldOut, rows: head.Rows, *, penalty: float, users: int, by_user: bool) -> RewardMetrics:
    """The report on predictions of the rows."""
    liked_N, logit_N, weight_N = rows.up_N[rows.thumb_N], predicted.thumb_N[rows.thumb_N], rows.weight_N[rows.thumb_N]
    preferred_P, weight_P = right(predicted.margin_N[rows.pair_N]), rows.weight_N[rows.pair_N]
    right_N = torch.cat([((logit_N > 0) == liked_N).double(), preferred_P])
    probability_N = logit_N.sigmoid()
    table = reliability(probability_N, liked_N, weight_N)
    rated_N = rows.rated_N
    kinds = {"thumbs": rows.thumb_N, "ratings": rated_N, "preferences": rows.pair_N}
    return RewardMetrics(
        votes=len(liked_N),
        preferences=len(preferred_P),
        ratings=int(rated_N.sum()),
        users=users,
        by_user=by_user,
        approval=mean(liked_N.double(), weight_N),
        auc=auc(logit_N, liked_N, weight_N),
        accuracy=mean(right_N, torch.cat([weight_N, weight_P])),
        pair_accuracy=_known(mean(preferred_P, weight_P)),
        concordance=_known(concordance(predicted.margin_N[rated_N], rows.points_N[rated_N], rows.weight_N[rated_N])),
        bce=predicted.loss(rows.weight_N),
        bce_constant=_constant_loss(rows),
        ece=_known(ece(table)),
        brier=_known(brier(probability_N, liked_N, weight_N)),
        reliability=table,
        weights={kind: float(rows.weight_N[kind_N].sum()) for kind, kind_N in kinds.items()},
        penalty=penalty,
    )


def _constant_loss(rows: head.Rows) -> float:
    """Of guessing each kind's verdicts at their frequencies; of a preference: one half."""
    nats = math.log(2) * float(rows.weight_N[rows.pair_N].sum())
    for kind_N, verdict_N in ((rows.thumb_N, rows.up_N.long()), (rows.rated_N, rows.points_N)):
        weight_V = torch.bincount(verdict_N[kind_N], weights=rows.weight_N[kind_N])
        nats -= float(torch.xlogy(weight_V, weight_V / weight_V.sum()).sum()) if len(weight_V) else 0.0
    return nats / float(rows.weight_N.sum())


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
