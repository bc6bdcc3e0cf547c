"""What heads add up: standardised by weight, and interactions where taste depends on the prompt."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from plaudit_learner.policy import PromptReply
from plaudit_learner.reward.calibration import auc
from plaudit_learner.reward.features import SHAPE_FEATURES
from plaudit_learner.reward.inputs import SHAPE_WEIGHT, Inputs
from plaudit_learner.reward.model import Preference, Vote, fit_features
from plaudit_learner.reward.validation import HeldOut, _surely_better

STATES, PROMPT = 20, 6


def replies(count: int, seed: int) -> tuple[Tensor, list[PromptReply]]:
    """Random features, four replies to a prompt; the prompt's first feature varies most and is 3 or -3."""
    generator = torch.Generator().manual_seed(seed)
    of_reply = torch.randn(count, STATES + SHAPE_FEATURES, generator=generator)
    of_prompt = 0.3 * torch.randn(count // 4, PROMPT, generator=generator)
    of_prompt[:, 0] = 3.0 * (torch.rand(count // 4, generator=generator) < 0.5) * 2 - 3.0
    items = [PromptReply((seed, i // 4), (i,), False) for i in range(count)]
    return torch.cat([of_reply, of_prompt.repeat_interleave(4, dim=0)], dim=1), items


def taste(features_ND: Tensor, by_prompt: bool) -> Tensor:
    """Likes the first feature; or where the prompt asks for the contrary, dislikes it."""
    asked_N = features_ND[:, -PROMPT].sign() if by_prompt else torch.ones(len(features_ND))
    return features_ND[:, 0] * asked_N > 0


def votes(features_ND: Tensor, items: list[PromptReply], *, by_prompt: bool, seed: int = 0) -> list[Vote]:
    """A tenth of them wrong."""
    wrong_N = torch.rand(len(items), generator=torch.Generator().manual_seed(seed)) < 0.1
    liked_N = taste(features_ND, by_prompt) ^ wrong_N
    return [Vote(item, liked) for item, liked in zip(items, liked_N.tolist(), strict=True)]


def test_inputs_by_hand() -> None:
    """Two replies of weight 3 and 1, d apart: the unbiased variance is 3/16 d^2 / (1 - 10/16) = d^2 / 2."""
    states, shape, prompt = torch.tensor([[0.0, 4.0], [2.0, 4.0]]), torch.tensor([[1.0], [2.0]]), torch.eye(2)
    features = torch.cat([states, shape.repeat(1, SHAPE_FEATURES), prompt], dim=1)
    inputs = Inputs.fitted(features, torch.tensor([3.0, 1.0]), prompt_features=2)
    root = math.sqrt(0.5)
    in_states, in_shape = 1 / (2 * root * math.sqrt(2)), math.sqrt(SHAPE_WEIGHT) / root
    expected = [[-0.5 * in_states, 0.0, *[-0.25 * in_shape] * 3], [1.5 * in_states, 0.0, *[0.75 * in_shape] * 3]]
    torch.testing.assert_close(inputs.replies(features), torch.tensor(expected))

    # The prompts lie on one line, at -1/4 and 3/4 of the way; their deviation is sqrt(3)/4 of it.
    both = inputs.with_interactions(features)
    assert both.shape == (2, 5 + 2)
    component = torch.tensor([-1.0, 3.0]) / math.sqrt(3)
    torch.testing.assert_close(both[:, 5].abs(), (inputs.replies(features)[:, 0] * component).abs())
    assert both[:, 6].tolist() == [0.0, 0.0]


def test_features_of_a_model_of_another_size_are_refused() -> None:
    features, _ = replies(40, seed=0)
    inputs = Inputs.fitted(features, torch.ones(40), PROMPT)
    with pytest.raises(RuntimeError):
        inputs.replies(features[:, :-1])


@pytest.mark.parametrize("kind", ["thumbs", "preferences"])
def test_a_taste_that_depends_on_the_prompt_is_learnt_with_interactions_only(kind: str) -> None:
    features, items = replies(400, seed=0)
    test, others = replies(400, seed=1)
    liked = torch.tensor([vote.liked for vote in votes(test, others, by_prompt=True, seed=9)])
    told = {}
    for name, prompt_features in (("with", PROMPT), ("without", 0)):
        columns = slice(None) if prompt_features else slice(-PROMPT)
        if kind == "thumbs":
            given = votes(features, items, by_prompt=True)
            model = fit_features(features[:, columns], given, prompt_features=prompt_features)
        else:
            better = taste(features, by_prompt=True)
            pairs = [(i, j) if better[i] else (j, i) for i in range(0, 400, 2) if better[i] != better[j := i + 1]]
            rows = torch.tensor([row for pair in pairs for row in pair])
            preferred = [Preference(items[a], items[b]) for a, b in pairs]
            model = fit_features(features[rows][:, columns], [], preferred, prompt_features=prompt_features)
        assert model.metrics.interactions == (name == "with")
        told[name] = auc(model.margin(test[:, columns]), liked)
    assert told["with"] > 0.75
    assert told["without"] < 0.65


def test_where_taste_does_not_depend_on_the_prompt_they_are_seldom_taken() -> None:
    """By chance, one is better than the other by a standard error once in six times."""
    taken = 0
    for seed in range(5):
        features, items = replies(120, seed=seed)
        model = fit_features(features, votes(features, items, by_prompt=False, seed=seed), prompt_features=PROMPT)
        assert ("with its prompt" in model.metrics.summary()) == model.metrics.interactions
        taken += model.metrics.interactions
    assert taken <= 1


def test_all_prompts_alike_leave_nothing_to_multiply_with() -> None:
    features, items = replies(100, seed=0)
    features[:, -PROMPT:] = 7.0
    model = fit_features(features, votes(features, items, by_prompt=False), prompt_features=PROMPT)
    assert model.inputs.prompt_axes_HC.shape == (PROMPT, 0)
    assert model.score_features(features).isfinite().all()


def test_surely_better_by_hand() -> None:
    """Of weights 1, 1, 2 and differences 0.4, 0, x: mean (0.4 + 2x)/4, error sqrt(d1^2 + d2^2 + 4 d3^2)/4."""

    def held_out(*likelihood: float) -> HeldOut:
        log_likelihood_N = torch.tensor(likelihood, dtype=torch.float64)
        return HeldOut(torch.zeros(3), log_likelihood_N, torch.zeros(3), [])

    weight, other = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64), held_out(-0.7, -0.7, -0.7)
    # x = 0: mean 0.1, error sqrt(0.09 + 0.01 + 0.04)/4 = 0.0935; x = -0.02: mean 0.09, error 0.0982.
    assert _surely_better(held_out(-0.3, -0.7, -0.7), other, weight)
    assert not _surely_better(held_out(-0.3, -0.7, -0.72), other, weight)
