"""The reward model from round to round: kept beside the state, started from, and the same however often it is begun."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from plaudit.events import open_log
from plaudit_learner.config import LearnerSettings
from plaudit_learner.experience.intake import Intake
from plaudit_learner.experience.store import Experience
from plaudit_learner.loop import Learner
from plaudit_learner.metrics import LearnerMetrics
from plaudit_learner.policy import Policy
from plaudit_learner.progress import ProgressSender
from plaudit_learner.reward.judgements import NotEnoughVotesError
from plaudit_learner.reward.model import RewardModel
from tests.learner.test_experience import DOWN, UP, feedback, interaction


def vote(store: Experience, first: int, last: int, aspect: str = "quality") -> None:
    """Thumbs of one who likes vowels, or in another aspect: consonants."""
    draw = random.Random(first)
    for i in range(first, last):
        liked = i % 2 == 0
        record = interaction(f"{aspect} {i}", prompt=(257, 97 + i % 13, 258), time=i)
        record.reply_token_ids[:] = draw.choices(b"aeiou" if liked == (aspect == "quality") else b"bcdfg", k=8)
        store.add_interaction(record)
        store.add_feedback(feedback(f"{aspect} {i}", key="k", time=i, aspect=aspect, thumb=UP if liked else DOWN))


class Rounds:
    """A learner whose rounds are its reward model alone."""

    def __init__(self, path: Path, model: Path, **more: str) -> None:
        log_url = f"sqlite:{path / 'events.sqlite'}"
        settings = LearnerSettings(event_log=log_url, policy_store=str(path / "v"), state_dir=path, **more)  # type: ignore[arg-type]
        self.log = open_log(log_url)
        self.store = Experience(path / "experience.sqlite")
        self.learner = Learner(
            settings,
            model=model,
            base_model_sha256="0" * 64,
            event_log=self.log,
            store=self.store,
            metrics=LearnerMetrics(CollectorRegistry()),
            progress=ProgressSender(self.log),
        )
        self.learner._intake = Intake(self.log, self.store)
        self.policy = Policy.load(model)
        self.models = path / "reward-models"

    def fit(self) -> RewardModel:
        return self.learner._fit(self.policy, "v0")

    def close(self) -> None:
        self.store.close()
        self.log.close()


@pytest.fixture
def rounds(tmp_path: Path, tiny_model: Path) -> Iterator[Rounds]:
    rounds = Rounds(tmp_path, tiny_model)
    yield rounds
    rounds.close()


def test_a_round_begun_again_ends_in_the_same_bits(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    vote(rounds.store, 0, 40)
    first = rounds.fit()
    assert [path.name for path in rounds.models.iterdir()] == ["1"]
    again = rounds.fit()  # as after a kill: the round has not ended
    assert all(torch.equal(first.weights[name], again.weights[name]) for name in first.weights)

    monkeypatch.setattr(rounds.learner, "_last_round", lambda: (1, 40))
    vote(rounds.store, 40, 60)
    second, begun_again = rounds.fit(), rounds.fit()
    assert sorted(path.name for path in rounds.models.iterdir()) == ["1", "2"]
    assert second.metrics.votes == 60
    assert all(torch.equal(second.weights[name], begun_again.weights[name]) for name in second.weights)
    monkeypatch.setattr(rounds.learner, "_last_round", lambda: (2, 60))
    rounds.fit()
    assert sorted(path.name for path in rounds.models.iterdir()) == ["2", "3"]


@pytest.mark.parametrize("name", ["reward_model.json", "reward_model.safetensors"])
def test_a_torn_file_is_passed_over(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    vote(rounds.store, 0, 40)
    rounds.fit()
    file = rounds.models / "1" / name
    file.write_bytes(file.read_bytes()[:-20])
    monkeypatch.setattr(rounds.learner, "_last_round", lambda: (1, 40))
    assert rounds.fit().metrics.votes == 40
    (warning,) = (record.message for record in caplog.records if "fitted from nothing" in record.message)
    assert str(file) in warning


def test_every_aspect_is_fitted_and_the_declared_ones_are_needed(tmp_path: Path, tiny_model: Path) -> None:
    rounds = Rounds(tmp_path, tiny_model, reward="quality,tone=0.5<=1")
    try:
        vote(rounds.store, 0, 40)
        with pytest.raises(NotEnoughVotesError, match="aspect tone has no judgements yet"):
            rounds.fit()
        vote(rounds.store, 0, 40, aspect="tone")
        model = rounds.fit()
        assert sorted(model.heads) == ["quality", "tone"]
        assert [term.aspect for term in model.terms] == ["quality", "tone"]
        assert model.pessimism == 1.0
    finally:
        rounds.close()
