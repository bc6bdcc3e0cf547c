"""The reward model: how much people would like a reply, from thumbs and preferences.

A linear head on frozen features of the reference policy (`features.py`), fitted to thumbs by logistic
regression and to preferences by the Bradley-Terry model (Bradley and Terry 1952; Christiano et al. 2017,
section 2.2.3), both with one L2 penalty that grouped cross-validation chooses. The problem is convex: it has one
answer, found in a second, with no seed and no early stopping.

Shapes: N judgements, D features, K coordinates (at most N).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import softplus

from plaudit_learner.features import SHAPE_FEATURES, encode
from plaudit_learner.policy import Policy, PromptReply

FOLDS = 5
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Candidates for the L2 penalty; the loss is a mean over judgements, the features are scaled by `_scaling`."""
CLIP = 3.0
"""Scores are clipped to this many deviations: the linear head is not to be trusted far from what was voted on."""


class NotEnoughVotesError(ValueError):
    """There are too few votes, or all are alike: nothing can be learned from them."""


@dataclass(frozen=True)
class Vote:
    """A thumb on a reply. Made by the intake."""

    item: PromptReply
    liked: bool
    weight: float = 1.0
    """Below 1 for voters who vote very much."""


@dataclass(frozen=True)
class Preference:
    """Of two replies to one prompt, the one preferred."""

    chosen: PromptReply
    rejected: PromptReply
    weight: float = 1.0


@dataclass(frozen=True)
class RewardMetrics:
    """How good the model is on prompts that it was not fitted on (`FOLDS`-fold cross-validation by prompt)."""

    votes: int
    preferences: int
    approval: float
    """Thumbs-up divided by all thumbs."""
    auc: float
    """Probability that an upvoted reply scores above a downvoted one, over prompts."""
    accuracy: float
    """Share of judgements predicted right."""
    bce: float
    """Mean negative log-likelihood, nats a judgement."""
    bce_constant: float
    """The same of a model that knows the approval rate only: what `bce` has to beat."""
    penalty: float
    """The L2 penalty chosen."""


FeatureCache = dict[PromptReply, Tensor]
"""Features of replies read before; the caller keeps it between fits, and bounds it."""


class RewardModel:
    """A linear head on standardised features. Made by `fit` or `load`."""

    def __init__(self, weights: dict[str, Tensor], metrics: RewardMetrics) -> None:
        self.weights = weights
        self.metrics = metrics

    def margin(self, features_ND: Tensor) -> Tensor:
        """The log-odds of a thumb up (N,), float32."""
        scaled_ND = (features_ND - self.weights["mean_D"]) / self.weights["scale_D"]
        return scaled_ND @ self.weights["weight_D"] + self.weights["bias"]

    def score_features(self, features_ND: Tensor) -> Tensor:
        """Scores (N,) of mean 0 and variance 1 over the replies that were judged, clipped to +-CLIP."""
        margin_N = self.margin(features_ND)
        score_N = (margin_N - self.weights["score_mean"]) / self.weights["score_sd"]
        return score_N.clamp(-CLIP, CLIP)

    def score(self, policy: Policy, items: Sequence[PromptReply]) -> Tensor:
        """Scores (N,) as `score_features` gives, of replies that are read first."""
        return self.score_features(torch.stack([e.features_D for e in encode(policy, items)]))

    def save(self, directory: Path) -> None:
        """Write reward_model.safetensors and reward_model.json."""
        directory.mkdir(parents=True, exist_ok=True)
        save_file(self.weights, directory / "reward_model.safetensors")
        (directory / "reward_model.json").write_text(json.dumps(asdict(self.metrics), indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> RewardModel:
        """Read what `save` wrote. Raises OSError if it is not there."""
        metrics = RewardMetrics(**json.loads((directory / "reward_model.json").read_text()))
        return cls(load_file(directory / "reward_model.safetensors"), metrics)


def fit(
    policy: Policy,
    votes: Sequence[Vote],
    preferences: Sequence[Preference] = (),
    *,
    cache: FeatureCache | None = None,
) -> RewardModel:
    """Fit a reward model. The policy serves as the frozen backbone: its adapter is not used.

    Raises NotEnoughVotesError without at least 10 judgements on 5 prompts, or if all thumbs point one way and there
    are no preferences.
    """
    cache = {} if cache is None else cache
    items = [v.item for v in votes] + [item for p in preferences for item in (p.chosen, p.rejected)]
    _require_enough(votes, preferences)
    new = [item for item in dict.fromkeys(items) if item not in cache]
    cache.update((item, encoding.features_D) for item, encoding in zip(new, encode(policy, new), strict=True))
    return fit_features(torch.stack([cache[item] for item in items]), votes, preferences)


def fit_features(features_MD: Tensor, votes: Sequence[Vote], preferences: Sequence[Preference] = ()) -> RewardModel:
    """Fit to features: rows of the votes first, then for each preference the chosen and the rejected reply's."""
    _require_enough(votes, preferences)
    n = len(votes)
    mean_D, scale_D = _scaling(features_MD)
    scaled_MD = ((features_MD - mean_D) / scale_D).double()
    # A judgement is a row x, an offset flag and a sign: its likelihood is sigmoid(sign * (w . x + flag * b)).
    rows_ND = torch.cat([scaled_MD[:n], scaled_MD[n::2] - scaled_MD[n + 1 :: 2]])
    flag_N = torch.tensor([1.0] * n + [0.0] * len(preferences), dtype=torch.float64)
    sign_N = torch.tensor([1.0 if v.liked else -1.0 for v in votes] + [1.0] * len(preferences), dtype=torch.float64)
    weight_N = torch.tensor([v.weight for v in votes] + [p.weight for p in preferences], dtype=torch.float64)
    folds_N = torch.tensor([_fold(v.item.prompt) for v in votes] + [_fold(p.chosen.prompt) for p in preferences])

    # The solution lies in the span of the rows: in the coordinates of their singular vectors it is the same, and small.
    u, s, vt = torch.linalg.svd(rows_ND, full_matrices=False)
    coordinates_NK = u * s

    def held_out(penalty: float) -> Tensor:
        margin_N = torch.zeros(len(rows_ND), dtype=torch.float64)
        for fold in range(FOLDS):
            test = folds_N == fold
            if test.any() and not test.all():
                train = ~test
                w_K, b = _logistic(coordinates_NK[train], flag_N[train], sign_N[train], weight_N[train], penalty)
                margin_N[test] = coordinates_NK[test] @ w_K + flag_N[test] * b
        return margin_N

    penalty, margin_N = _best_penalty(held_out, sign_N, weight_N)
    w_K, b = _logistic(coordinates_NK, flag_N, sign_N, weight_N, penalty)
    weight_D = (w_K @ vt).float()
    model = RewardModel(
        {"mean_D": mean_D, "scale_D": scale_D, "weight_D": weight_D, "bias": b.float()},
        _metrics(margin_N, sign_N, weight_N, n, penalty),
    )
    judged_M = model.margin(features_MD)
    model.weights |= {"score_mean": judged_M.mean(), "score_sd": judged_M.std().clamp(min=1e-6)}
    return model


def auc(score_N: Tensor, liked_N: Tensor) -> float:
    """Area under the ROC curve: the probability that a liked reply scores above one that is not, ties half.

    nan if there is none of either kind.
    """
    difference = score_N[liked_N][:, None] - score_N[~liked_N][None, :]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def _scaling(features_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Each feature to mean 0; then each block of the encoding, and each shape feature, to the same weight.

    Without it the widest block would decide alone, and the three shape features would go under among thousands.
    """
    mean_D = features_MD.mean(dim=0)
    scale_D = features_MD.std(dim=0).clamp(min=1e-4)
    states = features_MD.shape[1] - SHAPE_FEATURES
    scale_D[:states] *= states**0.5
    return mean_D, scale_D


def _logistic(x_NK: Tensor, flag_N: Tensor, sign_N: Tensor, weight_N: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Minimise mean weight * log(1 + exp(-sign * (w . x + flag * b))) + penalty / 2 |w|^2 by L-BFGS; b is free."""
    w_K = torch.zeros(x_NK.shape[1], dtype=torch.float64, requires_grad=True)
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w_K, b], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses_N = softplus(-sign_N * (x_NK @ w_K + flag_N * b))
        # The faint pull on b keeps it finite when all thumbs of a fold point one way.
        loss = (weight_N * losses_N).sum() / weight_N.sum() + penalty / 2 * w_K @ w_K + 1e-4 * b * b
        loss.backward()
        return loss

    optimizer.step(closure)
    return w_K.detach(), b.detach()


def _best_penalty(held_out: Callable[[float], Tensor], sign_N: Tensor, weight_N: Tensor) -> tuple[float, Tensor]:
    results = [(penalty, held_out(penalty)) for penalty in PENALTIES]
    return min(results, key=lambda result: _bce(result[1], sign_N, weight_N))


def _bce(margin_N: Tensor, sign_N: Tensor, weight_N: Tensor) -> float:
    return float((weight_N * softplus(-sign_N * margin_N)).sum() / weight_N.sum())


def _metrics(margin_N: Tensor, sign_N: Tensor, weight_N: Tensor, votes: int, penalty: float) -> RewardMetrics:
    liked = sign_N[:votes] > 0
    approval = float(liked.double().mean()) if votes else float("nan")
    constant = torch.zeros_like(margin_N)
    if votes:
        constant[:votes] = torch.logit(torch.tensor(approval, dtype=torch.float64), eps=1e-6)
    return RewardMetrics(
        votes=votes,
        preferences=len(sign_N) - votes,
        approval=approval,
        auc=auc(margin_N[:votes], liked),
        accuracy=float((margin_N * sign_N > 0).double().mean()),
        bce=_bce(margin_N, sign_N, weight_N),
        bce_constant=_bce(constant, sign_N, weight_N),
        penalty=penalty,
    )


def _fold(prompt: tuple[int, ...]) -> int:
    """All judgements on one prompt share a fold, at any time and on any machine: never split at random."""
    return hashlib.sha256(repr(prompt).encode()).digest()[0] % FOLDS


def _require_enough(votes: Sequence[Vote], preferences: Sequence[Preference]) -> None:
    prompts = {v.item.prompt for v in votes} | {p.chosen.prompt for p in preferences}
    if len(votes) + len(preferences) < 10 or len(prompts) < 5:
        raise NotEnoughVotesError(
            f"{len(votes)} votes and {len(preferences)} preferences on {len(prompts)} prompts: "
            "at least 10 judgements on 5 prompts are needed"
        )
    if not preferences and len({v.liked for v in votes}) < 2:
        raise NotEnoughVotesError("all votes point the same way: there is nothing to tell good from bad by")
