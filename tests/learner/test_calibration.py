"""AUC, concordance, ECE and Brier by hand and against scikit-learn; the bootstrap against a known standard error."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import brier_score_loss, roc_auc_score

from plaudit_learner.reward.calibration import Bin, auc, bootstrap, brier, concordance, ece, reliability


def test_auc_by_hand_and_as_sklearn() -> None:
    assert auc(torch.tensor([1.0, 2.0, 3.0, 2.0]), torch.tensor([False, True, True, False])) == 3.5 / 4
    score = torch.randint(0, 20, (300,), generator=torch.Generator().manual_seed(0)).double()  # with many ties
    liked = score + torch.randn(300, generator=torch.Generator().manual_seed(1)) * 8 > 10
    assert auc(score, liked) == pytest.approx(roc_auc_score(liked, score))
    assert math.isnan(auc(score, torch.ones(300, dtype=torch.bool)))


def test_concordance_by_hand() -> None:
    """Grades 1, 2, 3, 3: five pairs differ; (1,2) right, (1,3) right and right, (2,3) right and a tie."""
    assert concordance(torch.tensor([0.0, 1.0, 2.0, 1.0]), torch.tensor([1, 2, 3, 3])) == pytest.approx(4.5 / 5)
    assert math.isnan(concordance(torch.tensor([0.0, 1.0]), torch.tensor([2, 2])))


def test_ece_and_brier_by_hand() -> None:
    probability = torch.tensor([0.15, 0.15, 0.85, 0.95, 1.0], dtype=torch.float64)
    liked = torch.tensor([False, True, True, True, False])
    table = reliability(probability, liked)
    assert [(row.count, round(row.predicted, 3), row.observed) for row in table] == [
        (2, 0.15, 0.5),
        (1, 0.85, 1.0),
        (2, 0.975, 0.5),
    ]
    assert ece(table) == pytest.approx((2 * 0.35 + 1 * 0.15 + 2 * 0.475) / 5)
    assert brier(probability, liked) == pytest.approx(brier_score_loss(liked, probability))
    assert math.isnan(ece(()))
    assert ece([Bin(4, 0.5, 0.5)]) == 0


def test_weighted_by_hand() -> None:
    """Of weights 1, 0.5, 1, 0.25: pairs weigh 1.5 x 1.25, and all but half of the tie (0.5 x 0.25) is right."""
    score, liked = torch.tensor([1.0, 2.0, 3.0, 2.0]), torch.tensor([False, True, True, False])
    weight = torch.tensor([1.0, 0.5, 1.0, 0.25], dtype=torch.float64)
    assert auc(score, liked, weight) == pytest.approx((1.875 - 0.0625) / 1.875)
    probability = torch.tensor([0.15, 0.15, 0.85, 0.25], dtype=torch.float64)
    table = reliability(probability, liked, weight)
    assert [(row.count, round(row.predicted, 3), round(row.observed, 3)) for row in table] == [
        (1.5, 0.15, 0.333),
        (0.25, 0.25, 0.0),
        (1.0, 0.85, 1.0),
    ]
    assert ece(table) == pytest.approx((1.5 * (1 / 3 - 0.15) + 0.25 * 0.25 + 0.15) / 2.75)
    assert brier(probability, liked, weight) == pytest.approx(
        (0.15**2 + 0.5 * 0.85**2 + 0.15**2 + 0.25 * 0.25**2) / 2.75
    )


def test_a_weight_of_three_is_three_judgements() -> None:
    generator = torch.Generator().manual_seed(0)
    score, grade = torch.randint(0, 9, (80,), generator=generator).double(), torch.randint(1, 6, (80,))
    weight = torch.randint(1, 4, (80,), generator=generator)
    many = score.repeat_interleave(weight), grade.repeat_interleave(weight)
    assert concordance(score, grade, weight) == pytest.approx(concordance(*many), rel=1e-12)
    assert concordance(score, grade, torch.ones(80)) == concordance(score, grade)


def test_bootstrap_knows_the_standard_error_of_a_mean() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    interval = bootstrap(lambda rows: float(values[rows].mean()), list(range(400)))
    assert interval.value == pytest.approx(float(values.mean()))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * float(values.std()) / 20, rel=0.1)


def test_bootstrap_draws_groups_not_rows() -> None:
    """Every judgement said four times adds nothing: the interval must not shrink."""
    values = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    once = bootstrap(lambda rows: float(values[rows].mean()), list(range(100)))
    fourfold = values.repeat(4)
    again = bootstrap(lambda rows: float(fourfold[rows].mean()), list(range(100)) * 4)
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=0.01)


def test_bootstrap_without_rows_or_without_an_answer() -> None:
    assert math.isnan(bootstrap(lambda _: math.nan, []).low)
    assert math.isnan(bootstrap(lambda _: math.nan, list(range(20))).high)


def test_bootstrap_of_too_little_is_unknown_not_certain() -> None:
    """Ten judgements on one prompt, 6 right; nine prompts; twenty that all agree. It said 0.600 to 0.600."""
    mixed = torch.tensor([1.0] * 6 + [0.0] * 4, dtype=torch.float64).repeat(2)
    for rows, groups in ((10, [1] * 10), (9, list(range(9)))):
        value, low, high = bootstrap(lambda drawn: float(mixed[drawn].mean()), groups)
        assert value == pytest.approx(float(mixed[:rows].mean()))
        assert math.isnan(low)
        assert math.isnan(high)
    known = bootstrap(lambda drawn: float(mixed[drawn].mean()), list(range(10)))
    assert known.low < known.value < known.high
    assert math.isnan(bootstrap(lambda drawn: float(torch.ones(20)[drawn].mean()), list(range(20))).low)
