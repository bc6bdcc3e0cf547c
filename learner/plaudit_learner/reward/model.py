"""The reward model: how much people would like a reply, from thumbs, ratings and preferences on its aspects.

One backbone, one linear head for each aspect: the features are the frozen reference policy's (`features.py`), a head
adds up what `inputs.py` makes of them. It is the one answer of a convex problem (`head.py`), its L2 penalty chosen by
cross-validation over prompts (`validation.py`), and so is whether it sees interactions with the prompt. The reward is a
declared combination of aspects (`aspects.py`), each taken pessimistically and up to its cap:

    z_a    = (m_a - k * sd_a(m_a) - mean) / sd       m_a: log-odds of a thumb up; mean, sd: of the reference's replies
    reward = (sum_a min(weight_a * z_a, cap_a) - mean) / sd, clipped

Shapes: N judgements or replies, M replies that were judged, D features, W inputs of a head (with interactions or
without), K coordinates (at most N or W).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from plaudit.releases import BASE
from plaudit_learner import strict_json
from plaudit_learner.policy import Policy, PromptReply, prompt_key
from plaudit_learner.reward import aspects, head
from plaudit_learner.reward.aspects import DEFAULT, Term
from plaudit_learner.reward.calibration import auc
from plaudit_learner.reward.features import features
from plaudit_learner.reward.inputs import Inputs
from plaudit_learner.reward.judgements import (
    Judgement,
    NotEnoughVotesError,
    Preference,
    Rating,
    Vote,
    require_enough,
)
from plaudit_learner.reward.validation import RewardMetrics, validate
from plaudit_learner.whole_file import whole

__all__ = ["NotEnoughVotesError", "Preference", "Rating", "RewardMetrics", "RewardModel", "Vote", "auc", "fit"]

CLIP = 3.0
"""Rewards are clipped to this many deviations: the linear head is not to be trusted far from what was voted on."""
_RANK = 1e-10  # squared singular values below this share of the largest are rounding
_KNOWN = 1e-3  # directions of which the judgements say less than this share are left to the prior

FeatureCache = dict[PromptReply, Tensor]
"""Features of replies read before; the caller keeps it between fits, and bounds it."""
T = TypeVar("T", bound=Judgement)
_Judged = tuple[list[Vote], list[Preference], list[Rating]]


@dataclass(frozen=True)
class RewardModel:
    """Heads, and how they make up the reward. Made by `fit`, `fit_features` or `load`."""

    inputs: Inputs
    weights: dict[str, Tensor]
    """The heads': each aspect's are named `aspect.…`."""
    heads: dict[str, RewardMetrics]
    """The aspects that a head was fitted for."""
    terms: tuple[Term, ...] = DEFAULT
    pessimism: float = 0.0
    """How many deviations of its own uncertainty a margin is lowered by."""
    reference: str = BASE
    """The version of the reference policy whose states are its features: with those of another it makes no sense."""
    _scale: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Over the reference replies: mean and deviation of each aspect's lowered margin, and under "" of the whole."""
    prompts: frozenset[str] = frozenset()
    """Keys of the prompts that it was fitted on (`prompt_key`): on others only it is judged fairly."""

    @property
    def metrics(self) -> RewardMetrics:
        """Those of the aspect that weighs most."""
        return self.heads[max(self.terms, key=lambda term: abs(term.weight)).aspect]

    def margin(self, features_ND: Tensor, aspect: str | None = None) -> Tensor:
        """The log-odds of a thumb up (N,), float32; of the first aspect unless one is named.

        Without thumbs, of a liking above 0.
        """
        aspect = aspect or self.terms[0].aspect
        return self._inputs(features_ND, aspect) @ self._weight(aspect) - self.weights[f"{aspect}.edges_C"][0]

    def deviation(self, features_ND: Tensor, aspect: str | None = None) -> Tensor:
        """How uncertain the margins are (N,), relative to that of the average reply: one standard deviation, float32.

        It is 0 at the average reply, small along what was voted on, and grows without end away from it.
        """
        aspect = aspect or self.terms[0].aspect
        inputs_NW = self._inputs(features_ND, aspect).double()
        explained_N = (inputs_NW @ self.weights[f"{aspect}.known_WK"].double()).square().sum(dim=1)
        left_N = (inputs_NW.square().sum(dim=1) - explained_N).clamp(min=0)
        return (left_N * self.weights[f"{aspect}.prior"]).sqrt().float()

    def score_features(self, features_ND: Tensor) -> Tensor:
        """Rewards (N,) of mean 0 and variance 1 over the reference's replies, clipped to +-CLIP.

        The reference's replies are those of `normalised`; before it, those that were judged.
        """
        mean, sd = self._scale[""]
        return ((self._combined(features_ND) - mean) / sd).clamp(-CLIP, CLIP)

    def score(self, policy: Policy, items: Sequence[PromptReply]) -> Tensor:
        """Rewards (N,) as `score_features` gives, of replies that are read first."""
        return self.score_features(features(policy, items))

    def normalised(self, features_ND: Tensor) -> RewardModel:
        """The model whose rewards have mean 0 and variance 1 over these replies, which the reference policy sampled.

        Each aspect's score is brought to mean 0 and variance 1 first, so that weights and caps are in its deviations.
        Raises ValueError if there are fewer than two replies.
        """
        if len(features_ND) < 2:
            raise ValueError(f"{len(features_ND)} replies have no variance: give at least 2")
        lowered = {term.aspect: self.lowered(features_ND, term.aspect) for term in self.terms}
        model = replace(self, _scale={aspect: _mean_sd(margin_N) for aspect, margin_N in lowered.items()})
        model._scale[""] = _mean_sd(model._combined(features_ND))
        return model

    def save(self, directory: Path) -> None:
        """Write reward_model.safetensors and reward_model.json, each wholly or not at all, the description last."""
        directory.mkdir(parents=True, exist_ok=True)
        with whole(directory / "reward_model.safetensors") as unfinished:
            save_file(vars(self.inputs) | self.weights, unfinished)
        described = {
            "aspects": ",".join(map(str, self.terms)),
            "pessimism": self.pessimism,
            "reference": self.reference,
            "scale": self._scale,
            "heads": {aspect: asdict(metrics) for aspect, metrics in self.heads.items()},
            "prompts": sorted(self.prompts),
        }
        with whole(directory / "reward_model.json") as unfinished:
            unfinished.write_text(strict_json.dumps(described, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> RewardModel:
        """Read what `save` wrote. Raises OSError if it is not there, ValueError if it is something else, or torn."""
        description, weights = directory / "reward_model.json", directory / "reward_model.safetensors"
        try:
            described = json.loads(description.read_text())
            heads = {aspect: RewardMetrics.of(row) for aspect, row in described["heads"].items()}
            scale = {name: (float(mean), float(sd)) for name, (mean, sd) in described["scale"].items()}
            terms, pessimism = aspects.parse(described["aspects"]), described["pessimism"]
            reference, prompts = described["reference"], frozenset(described["prompts"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{description} is not a reward model of this version: {error}") from None
        try:
            tensors = load_file(weights)
            inputs = Inputs(**{each.name: tensors.pop(each.name) for each in fields(Inputs)})
            return cls(inputs, tensors, heads, terms, pessimism, reference, scale, prompts)
        except (KeyError, SafetensorError) as error:
            raise ValueError(f"{weights} is not a reward model of this version, or torn: {error}") from None

    def _weight(self, aspect: str) -> Tensor:
        return self.weights[f"{aspect}.weight_W"]

    def _inputs(self, features_ND: Tensor, aspect: str) -> Tensor:
        if self.heads[aspect].interactions:
            return self.inputs.with_interactions(features_ND)
        return self.inputs.replies(features_ND)

    def lowered(self, features_ND: Tensor, aspect: str) -> Tensor:
        """Margins (N,) less `pessimism` deviations."""
        margin_N = self.margin(features_ND, aspect)
        if self.pessimism == 0:
            return margin_N
        # Pessimism is about the part in the reward: what counts against a reply is uncertain upwards.
        sign = next(math.copysign(1, term.weight) for term in self.terms if term.aspect == aspect)
        return margin_N - sign * self.pessimism * self.deviation(features_ND, aspect)

    def _combined(self, features_ND: Tensor) -> Tensor:
        total_N = torch.zeros(len(features_ND))
        for term in self.terms:
            mean, sd = self._scale[term.aspect]
            z_N = (self.lowered(features_ND, term.aspect) - mean) / sd
            total_N += (term.weight * z_N).clamp(max=term.cap)
        return total_N


def fit(
    policy: Policy,
    votes: Sequence[Vote],
    preferences: Sequence[Preference] = (),
    ratings: Sequence[Rating] = (),
    *,
    terms: tuple[Term, ...] = DEFAULT,
    pessimism: float = 0.0,
    cache: FeatureCache | None = None,
    before: RewardModel | None = None,
) -> RewardModel:
    """Fit a head for each aspect that is judged. The policy serves as the frozen backbone: its adapter is not used.

    before: the model of fewer judgements, from which the search starts; it changes the time, not the answer.
    Raises NotEnoughVotesError if an aspect of `terms` has fewer than 10 judgements on 5 prompts, or judgements that all
    say the same.
    """
    _require_terms(terms, votes, preferences, ratings)
    cache = {} if cache is None else cache
    items = [v.item for v in votes] + [item for p in preferences for item in (p.chosen, p.rejected)]
    items += [r.item for r in ratings]
    new = [item for item in dict.fromkeys(items) if item not in cache]
    if new:
        cache.update(zip(new, features(policy, new), strict=True))
    model = fit_features(
        torch.stack([cache[item] for item in items]),
        votes,
        preferences,
        ratings,
        prompt_features=policy.hidden_size,
        terms=terms,
        pessimism=pessimism,
        before=before,
    )
    return replace(model, prompts=frozenset(map(prompt_key, {item.prompt for item in items})))


def fit_features(
    features_MD: Tensor,
    votes: Sequence[Vote],
    preferences: Sequence[Preference] = (),
    ratings: Sequence[Rating] = (),
    *,
    prompt_features: int = 0,
    terms: tuple[Term, ...] = DEFAULT,
    pessimism: float = 0.0,
    before: RewardModel | None = None,
) -> RewardModel:
    """Fit to features: rows of the votes first, then each preference's chosen and rejected reply, then the ratings.

    prompt_features: how many of the last features are the prompt's; without any there are no interactions.
    Other arguments, and errors, are those of `fit`.
    """
    _require_terms(terms, votes, preferences, ratings)
    weights_M = [vote.weight for vote in votes] + [pair.weight for pair in preferences for _ in range(2)]
    weights_M += [rating.weight for rating in ratings]
    inputs = Inputs.fitted(features_MD, torch.tensor(weights_M), prompt_features)
    inputs_MW = inputs.with_interactions(features_MD).double()
    weights: dict[str, Tensor] = {}
    heads: dict[str, RewardMetrics] = {}
    needed = {term.aspect for term in terms}
    for aspect, rows_NW, judged in _by_aspect(inputs_MW, votes, preferences, ratings):
        try:
            require_enough(*judged)
        except NotEnoughVotesError as error:
            if aspect in needed:
                raise NotEnoughVotesError(f"aspect {aspect}: {error}") from None
            continue
        start_R = None
        if before is not None and aspect in before.heads:
            start_R = before._weight(aspect)[: inputs.width] / before.inputs.scale_R * inputs.scale_R
        found, heads[aspect] = _fit_head(rows_NW, inputs.width, judged, start_R)
        weights |= {f"{aspect}.{name}": tensor.float().contiguous() for name, tensor in found.items()}
    return RewardModel(inputs, weights, heads, terms, pessimism).normalised(features_MD)


def _by_aspect(
    inputs_MW: Tensor, votes: Sequence[Vote], preferences: Sequence[Preference], ratings: Sequence[Rating]
) -> Iterator[tuple[str, Tensor, _Judged]]:
    """Each aspect's rows (N, W) and judgements; a preference's row is the difference of its replies'."""
    n, p = len(votes), len(preferences)
    pairs_MW = inputs_MW[n : n + 2 * p]
    rows_NW = torch.cat([inputs_MW[:n], pairs_MW[::2] - pairs_MW[1::2], inputs_MW[n + 2 * p :]])
    judgements: list[Judgement] = [*votes, *preferences, *ratings]

    def of(kind: Sequence[T], aspect: str) -> list[T]:
        return [judgement for judgement in kind if judgement.aspect == aspect]

    for aspect in sorted({judgement.aspect for judgement in judgements}):
        here_N = torch.tensor([judgement.aspect == aspect for judgement in judgements])
        yield aspect, rows_NW[here_N], (of(votes, aspect), of(preferences, aspect), of(ratings, aspect))


def _fit_head(
    rows_NW: Tensor, plain: int, judged: _Judged, start_R: Tensor | None
) -> tuple[dict[str, Tensor], RewardMetrics]:
    """A head's tensors, and what cross-validation says of it. The first `plain` inputs are not interactions."""
    views = [_View.of(rows_NW[:, :width], judged) for width in sorted({plain, rows_NW.shape[1]})]
    chosen, metrics = validate([view.rows for view in views], [judgement for kind in judged for judgement in kind])
    rows, axes_KW = views[chosen].rows, views[chosen].axes_KW
    start_K = None if start_R is None else axes_KW[:, : len(start_R)] @ start_R.double()
    found = head.fit(rows, metrics.penalty, start_K)
    known_KK, prior = head.known(found, rows, metrics.penalty)
    known_KK = known_KK[:, known_KK.square().sum(dim=0) > _KNOWN]
    tensors = {
        "weight_W": axes_KW.T @ found.weight_K,
        "edges_C": found.edges_C,
        "known_WK": axes_KW.T @ known_KK,
        "prior": torch.tensor(prior),
    }
    return tensors, metrics


class _View(NamedTuple):
    """Judgements in coordinates of as few dimensions as the solution has: it lies in the span of their rows."""

    rows: head.Rows
    axes_KW: Tensor
    """Orthonormal."""

    @classmethod
    def of(cls, rows_NW: Tensor, judged: _Judged) -> _View:
        if rows_NW.shape[0] >= rows_NW.shape[1]:
            return cls(head.Rows.of(rows_NW, *judged), torch.eye(rows_NW.shape[1], dtype=torch.float64))
        # The singular vectors, by way of the Gram matrix: of few long rows that is many times as fast.
        value_N, u_NN = torch.linalg.eigh(rows_NW @ rows_NW.T)
        kept_N = value_N > _RANK * value_N[-1]
        u_NK, s_K = u_NN[:, kept_N], value_N[kept_N].sqrt()
        return cls(head.Rows.of(u_NK * s_K, *judged), (u_NK / s_K).T @ rows_NW)


def _mean_sd(margin_N: Tensor) -> tuple[float, float]:
    return float(margin_N.mean()), float(margin_N.std().clamp(min=1e-6))


def _require_terms(
    terms: Sequence[Term], votes: Sequence[Vote], preferences: Sequence[Preference], ratings: Sequence[Rating]
) -> None:
    judgements: list[Judgement] = [*votes, *preferences, *ratings]
    judged = sorted({judgement.aspect for judgement in judgements})
    for term in terms:
        if term.aspect not in judged:
            there = ", ".join(judged) or "none"
            raise NotEnoughVotesError(f"aspect {term.aspect} has no judgements yet; there are judgements of: {there}")
