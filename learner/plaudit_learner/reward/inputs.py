"""What a head adds up: a reply's features, standardised; and their products with what the prompt is about.

A sum over features of the reply cannot like a short one more where a short one was asked for. Its interactions, the
products of each of the reply's states with the first principal components of the prompt's state, can; and as they cost
accuracy where taste does not depend on the prompt, each head has them only if they predict better (`validation.py`).

Shapes: N replies, D features of a reply and its prompt (`features.py`), R of them of the reply, S of those its states,
H of the prompt, C principal components.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit_learner.reward.features import SHAPE_FEATURES

COMPONENTS = 2
"""Of the prompt's state: with four and eight there was less gain, with one more loss (docs/decisions/0022)."""
SHAPE_WEIGHT = 0.1
"""Of a shape feature, beside 1 of all states together: at 1 they outweigh the words (docs/decisions/0022)."""
_LEAST_SD = 1e-4  # a feature that varies less than this is taken to be constant


@dataclass(frozen=True)
class Inputs:
    """How features become inputs; made by `fitted`."""

    mean_R: Tensor
    scale_R: Tensor
    prompt_mean_H: Tensor
    prompt_axes_HC: Tensor
    """The principal axes, over their standard deviations."""

    @classmethod
    def fitted(cls, features_ND: Tensor, weight_N: Tensor, prompt_features: int) -> Inputs:
        """Standardise by these replies, which count by weight: a flood of one kind must not set the scale of a feature.

        prompt_features: H, how many of the last features are the prompt's.
        """
        share_N = weight_N / weight_N.sum()
        replies_NR, prompts_NH = features_ND.tensor_split([features_ND.shape[1] - prompt_features], dim=1)
        mean_R, sd_R = _mean_sd(replies_NR, share_N)
        states = replies_NR.shape[1] - SHAPE_FEATURES
        # To variance 1 in all of the states, of which the widest block would decide alone otherwise.
        sd_R[:states] *= states**0.5
        sd_R[states:] /= SHAPE_WEIGHT**0.5
        prompt_mean_H = share_N @ prompts_NH
        _, sd_K, axes_KH = torch.linalg.svd(share_N.sqrt()[:, None] * (prompts_NH - prompt_mean_H), full_matrices=False)
        first = slice(int((sd_K[:COMPONENTS] > _LEAST_SD).sum()))
        return cls(mean_R, sd_R, prompt_mean_H, (axes_KH[first] / sd_K[first, None]).T.contiguous())

    @property
    def width(self) -> int:
        """R."""
        return len(self.mean_R)

    def replies(self, features_ND: Tensor) -> Tensor:
        """The reply's features, standardised (N, R). Raises RuntimeError for features of a model of another size."""
        replies_NR, _ = features_ND.split([self.width, len(self.prompt_mean_H)], dim=1)
        return (replies_NR - self.mean_R) / self.scale_R

    def with_interactions(self, features_ND: Tensor) -> Tensor:
        """The same and, to their right, the interactions (N, R + S * C), of about the weight of the states."""
        replies_NR = self.replies(features_ND)
        prompts_NC = (features_ND[:, self.width :] - self.prompt_mean_H) @ self.prompt_axes_HC
        states_NS = replies_NR[:, :-SHAPE_FEATURES] / max(1, prompts_NC.shape[1]) ** 0.5
        return torch.cat([replies_NR, (states_NS[:, :, None] * prompts_NC[:, None, :]).flatten(1)], dim=1)


def _mean_sd(values_NR: Tensor, share_N: Tensor) -> tuple[Tensor, Tensor]:
    mean_R = share_N @ values_NR
    # The unbiased estimate with shares for 1 / N.
    variance_R = share_N @ (values_NR - mean_R).square() / (1 - share_N.square().sum())
    return mean_R, variance_R.sqrt().clamp(min=_LEAST_SD)
