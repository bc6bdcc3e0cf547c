"""`make bench-reward_model`: the row that the goal is about is what the learner runs."""

from __future__ import annotations

from typing import Any, cast

import pytest

from bench import reward_model as bench
from plaudit_learner.config import LearnerSettings


class Features:
    """Of no pair."""

    layers = (0, 5, 10, 15, 20, 25, 30)

    def features(self, _pooled: object, *, shape: bool = True) -> bool:
        return shape


def test_the_goals_row_is_as_pessimistic_as_the_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: dict[str, float] = {}

    def ours(_data: object, name: str, _features: object, *, pessimism: float, interactions: bool) -> None:
        fitted[name] = pessimism

    monkeypatch.setattr(bench, "ours", ours)
    for way in bench._ways(cast(Any, Features()), 30)[2:-4]:
        way()
    assert fitted.pop(bench.OURS) == LearnerSettings.model_fields["pessimism"].default > 0
    assert fitted[bench.PLAIN] == 0
    assert set(fitted.values()) == {0}, "ablations are of the plain margin"
