"""A round that was cut off is gone on with: the same version comes of it, bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from plaudit.artifacts import PolicyStore
from plaudit_learner import rounds
from plaudit_learner.ppo.improve import ImproveSettings, IterationMetrics
from plaudit_learner.ppo.rollouts import sample
from plaudit_learner.rounds import Round
from tests.learner.test_experience import DOWN, UP, feedback, interaction
from tests.learner.test_reward_rounds import Rounds

ROUND = Round(3, "v1", 120, 3000, [(1, 2), (3,)], [(4, 5, 6)], ImproveSettings(iterations=2, trace=None))
OPTIONS = {"iterations": "2", "learning_rate": "0.005", "prompts_per_iteration": "6", "max_new_tokens": "8"}
OPTIONS["votes_for_kl_budget"] = "1"  # so that there are as many updates as said


def vote(home: Rounds, first: int, last: int) -> None:
    """Thumbs on replies of the base model, of one who likes odd numbers."""
    prompts = [(257, 97 + i % 26, 97 + i // 3 % 26, 258, 10) for i in range(first, last)]
    with home.policy.reference():
        replies = sample(home.policy, prompts, max_new_tokens=8, temperature=1.0, seed=first)
    for i, reply in zip(range(first, last), replies, strict=True):
        record = interaction(f"r{i}", prompt=reply.prompt, time=i)
        record.reply_token_ids[:] = reply.reply
        record.sampling.temperature, record.sampling.max_tokens = 1.0, 8
        home.store.add_interaction(record)
        liked = sum(token % 2 for token in reply.reply) >= 0.5 * len(reply.reply)
        home.store.add_feedback(feedback(f"r{i}", key="k", time=i, thumb=UP if liked else DOWN))


class Killed(BaseException):
    """What a kill is to the code: it ends."""


def test_what_is_kept_is_what_was_begun(tmp_path: Path) -> None:
    settings = {"iterations": 2}
    assert rounds.kept(tmp_path / "round", settings) is None
    ROUND.keep(tmp_path / "round", settings)
    (tmp_path / "round" / rounds.CHECKPOINT).write_text("of this round")
    assert rounds.kept(tmp_path / "round", settings) == ROUND
    assert rounds.kept(tmp_path / "round", {"iterations": 3}) is None, "other settings: another round"
    ROUND.keep(tmp_path / "round", settings)
    assert not (tmp_path / "round" / rounds.CHECKPOINT).exists(), "a round begun anew has no checkpoint"
    rounds.drop(tmp_path / "round")
    assert rounds.kept(tmp_path / "round", settings) is None


def test_half_written_is_not_kept(tmp_path: Path) -> None:
    ROUND.keep(tmp_path, {})
    file = tmp_path / "inputs.json"
    file.write_text(file.read_text()[:-20])
    assert rounds.kept(tmp_path, {}) is None


@pytest.mark.parametrize("killed_in", [1, 2])
def test_a_round_cut_off_ends_as_if_it_had_not_been(tmp_path: Path, tiny_model: Path, killed_in: int) -> None:
    """Votes that came in after it was begun are for the next one."""
    published = []
    for name in ("whole", "cut"):
        home = Rounds(tmp_path / name, tiny_model, **OPTIONS)
        home.learner._intake.start()
        vote(home, 0, 60)
        if name == "cut":

            def kill(iterations: int, metrics: IterationMetrics) -> None:
                if metrics.iteration == killed_in:
                    raise Killed

            home.learner._progress = kill  # type: ignore[method-assign]
            with pytest.raises(Killed):
                home.learner._round()
            home.close()
            home = Rounds(tmp_path / name, tiny_model, **OPTIONS)
            home.learner._intake.start()
            vote(home, 60, 80)
        home.learner._round()
        home.learner._intake.drain(0.0)
        event = home.learner._intake.releases.event("v1")
        assert event is not None
        assert event.metrics["votes"] == 60
        store = PolicyStore(str(tmp_path / name / "v"))
        files = store.manifest("v1")[0].files if "v1" in store.versions() else None
        published.append((event.state, event.reason, dict(event.metrics) | {"minutes": 0}, files))
        assert not (tmp_path / name / "round").exists()
        home.close()
    assert published[0] == published[1]
