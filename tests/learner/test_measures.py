"""The measures by hand: small replies whose figures can be counted."""

from __future__ import annotations

import pytest
import torch

from plaudit_learner.gate import measures
from plaudit_learner.ppo.rollouts import Rollout

EOS = frozenset([0])


def test_alike_by_hand() -> None:
    """Prompts A and B with two replies each, C with two; a trait is a letter."""
    traits = [{"x"}, {"x", "y"}, {"x"}, {"z"}, {"z", "y"}, set[str]()]
    half = 2**-0.5
    pairs = [  # of replies to different prompts, each once
        1.0,  # A1 B1
        0.0,  # A1 B2
        0.0,  # A1 C1
        0.0,  # A1 C2
        half,  # A2 B1
        0.0,  # A2 B2
        0.5,  # A2 C1: y of {x, y} and {z, y}
        0.0,  # A2 C2
        0.0,  # B1 C1
        0.0,  # B1 C2
        half,  # B2 C1
        0.0,  # B2 C2
    ]
    shared = measures.alike(traits, 3)
    mean = sum(pairs) / 12
    assert float(shared.mean()) == pytest.approx(mean)
    # A1 takes part in four pairs, one of them alike.
    assert float(shared[0]) == pytest.approx(2 * 1 / 4 - mean)


def test_alike_is_one_for_one_phrase_and_none_for_different_ones() -> None:
    assert measures.alike([{"same"}] * 8, 4).tolist() == pytest.approx([1.0] * 8)
    assert measures.alike([{row} for row in range(8)], 4).tolist() == [0.0] * 8
    # What the replies to one prompt share among themselves does not count.
    assert measures.alike([{row // 2} for row in range(8)], 4).tolist() == [0.0] * 8


def test_the_deviation_of_alike_is_its_sampling_error() -> None:
    """Over many draws, the mean of the pairs varies as the projections say."""
    draw = torch.Generator().manual_seed(0)
    means, errors = [], []
    for _ in range(300):
        openings = torch.multinomial(torch.tensor([0.4, 0.3, 0.2, 0.1]), 60, replacement=True, generator=draw).tolist()
        shared = measures.alike([{opening} for opening in openings], 60)
        means.append(float(shared.mean()))
        errors.append(float(shared.std()) / 60**0.5)
    assert torch.tensor(means).mean() == pytest.approx(0.3, abs=0.01)  # 0.16 + 0.09 + 0.04 + 0.01
    assert torch.tensor(errors).mean() == pytest.approx(float(torch.tensor(means).std()), rel=0.15)


@pytest.mark.parametrize(
    ("body", "looping"),
    [
        (list(range(40)), False),
        ([1, 2, 3, 4, 5] * 8, True),
        ([7] * 16, True),
        ([7] * 15, False),  # too short to say
        ([*range(20), *range(20)], False),  # said twice: 18 of 38 phrases are repeated
        ([*range(12), *range(12), *range(12)], True),
    ],
)
def test_loops(body: list[int], looping: bool) -> None:
    assert measures.loops(body) is looping


def test_what_tokens_tell_by_hand() -> None:
    rollouts = [
        Rollout((1,), (5, 6, 0), (-1.0, -2.0, -3.0), True),
        Rollout((1,), (0,), (-0.5,), True),
        Rollout((2,), (5, 6, 7, 8), (-1.0,) * 4, False),
        Rollout((2,), (9, 0), (0.0, -1.0), True),
    ]
    values = measures.replies(rollouts, 2, EOS)
    assert values["length"].tolist() == [[3, 1], [4, 2]]
    assert values["cut_off"].tolist() == [[0, 0], [1, 0]]
    assert values["entropy"].tolist() == [[2.0, 0.5], [1.0, 0.5]]
    assert values["empty"].tolist() == [[0, 1], [0, 0]]
    assert values["openings"].sum() == 0
