"""The critic: what a reply will score, foretold from its beginning.

Ridge regression of the reply's score on what is known before each of its tokens is sampled: the reward model's
features of the prefix, the score that it would give the prefix as it stands (alone, and times the share of the length
limit that is used up: the part of the final score that is already settled), and the state that predicts the next token.
All of it is read by the frozen reference policy and costs no further forward pass; the fit is one linear solve.

Each prompt belongs to one of a few folds, and its replies are judged by a critic that was fitted without that fold:
a critic that had seen the very replies would explain their luck away, and with it what there is to learn.
Older rollouts fade by `MEMORY` an iteration, since the policy that wrote them has changed.

Shapes: T tokens of one reply, C inputs, D features of the reward model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from plaudit_learner.ppo.rollouts import Rollout
from plaudit_learner.reward.features import Encoding
from plaudit_learner.reward.model import RewardModel

FOLDS = 4
PENALTY = 100.0
"""Of the ridge, against a sum over tokens of inputs whose blocks have variance 1. Held-out error is flat from 30."""
MEMORY = 0.8
_SETTLED = 3.0  # weight of the prefix's score: by far the most telling input, so the penalty is to shrink it least


@dataclass
class _Sums:
    """All that a ridge regression needs to know of its data, from which a fold can be taken away again."""

    inputs_CC: Tensor
    targets_C: Tensor
    inputs_C: Tensor
    target: float = 0.0
    count: float = 0.0

    @classmethod
    def zero(cls, width: int) -> _Sums:
        return cls(
            torch.zeros(width, width, dtype=torch.float64),
            torch.zeros(width, dtype=torch.float64),
            torch.zeros(width, dtype=torch.float64),
        )

    def fade(self) -> None:
        for tensor in (self.inputs_CC, self.targets_C, self.inputs_C):
            tensor.mul_(MEMORY)
        self.target *= MEMORY
        self.count *= MEMORY

    def add(self, inputs_TC: Tensor, score: float) -> None:
        self.inputs_CC.addmm_(inputs_TC.T, inputs_TC)
        total_C = inputs_TC.sum(dim=0)
        self.inputs_C += total_C
        self.targets_C += score * total_C
        self.target += score * len(inputs_TC)
        self.count += len(inputs_TC)


class Critic:
    """Fitted anew with every batch of rollouts that it is shown."""

    def __init__(self, reward_model: RewardModel, horizon: int) -> None:
        """`horizon`: the length limit of replies, tokens."""
        self._reward_model = reward_model
        self._horizon = horizon
        self._sums: list[_Sums] = []

    def values(self, rollouts: Sequence[Rollout], encodings: Sequence[Encoding], rewards_B: Tensor) -> list[Tensor]:
        """Learn from these replies, and say of each what was to be expected before each of its tokens (T,), float32.

        The encodings must hold the features of all prefixes; rewards_B are the scores that the replies got.
        """
        inputs = [self._inputs(encoding) for encoding in encodings]
        if not self._sums:
            self._sums = [_Sums.zero(inputs[0].shape[1]) for _ in range(FOLDS)]
        for sums in self._sums:
            sums.fade()
        folds = [_fold(rollout.prompt) for rollout in rollouts]
        for inputs_TC, fold, score in zip(inputs, folds, rewards_B.tolist(), strict=True):
            self._sums[fold].add(inputs_TC, score)
        solved = {fold: self._solve(fold) for fold in set(folds)}
        values = []
        for inputs_TC, fold in zip(inputs, folds, strict=True):
            weights_C, mean = solved[fold]
            values.append((inputs_TC @ weights_C + mean).float())
        return values

    def state(self) -> list[dict[str, Any]]:
        """All that its values depend on, besides what it was made with."""
        return [vars(sums) for sums in self._sums]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Become what `state` was taken of."""
        self._sums = [_Sums(**sums) for sums in state]

    def _solve(self, left_out: int) -> tuple[Tensor, float]:
        """Weights, and the mean score around which they predict, without one fold."""
        used = [sums for fold, sums in enumerate(self._sums) if fold != left_out and sums.count]
        if not used:  # all prompts are in one fold: nothing to go by
            return torch.zeros_like(self._sums[0].inputs_C), 0.0
        gram_CC = torch.stack([sums.inputs_CC for sums in used]).sum(dim=0)
        mean = sum(sums.target for sums in used) / sum(sums.count for sums in used)
        right_C = torch.stack([sums.targets_C - mean * sums.inputs_C for sums in used]).sum(dim=0)
        gram_CC.diagonal().add_(PENALTY)
        return torch.cholesky_solve(right_C[:, None], torch.linalg.cholesky(gram_CC))[:, 0], mean

    def _inputs(self, encoding: Encoding) -> Tensor:
        """What is known before each token (T, C), float64; before the first one there is no prefix: zeros."""
        model = self._reward_model
        known_TD = encoding.prefix_TD[:-1]
        scaled_TD = pad(model.inputs.replies(known_TD), (0, 0, 1, 0))
        length = len(scaled_TD)
        position_T = torch.arange(length) / self._horizon
        settled_T = torch.cat([torch.zeros(1), model.score_features(known_TD)]) * _SETTLED
        first_T = torch.zeros(length)
        first_T[0] = 1.0
        extra_TX = torch.stack([settled_T, settled_T * position_T, position_T, position_T**2, first_T], dim=1)
        return torch.cat([scaled_TD, normalize(encoding.predicting_TH.float(), dim=1), extra_TX], dim=1).double()


def _fold(prompt: tuple[int, ...]) -> int:
    return hashlib.sha256(repr(prompt).encode()).digest()[1] % FOLDS
