"""A round that was cut off is gone on with: the same version comes of it, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plaudit.artifacts import PolicyStore
from plaudit_learner import rounds
from plaudit_learner.experience.store import Experience
from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.ppo.improve import ImproveSettings, IterationMetrics
from plaudit_learner.ppo.rollouts import Rollout, sample
from plaudit_learner.rounds import Round
from tests.learner.test_experience import DOWN, UP, feedback, interaction
from tests.learner.test_reward_rounds import Rounds

ROUND = Round(
    3,
    "v1",
    120,
    3000,
    train=[(1, 2), (3,)],
    held_out=[(4, 5, 6)],
    how=ImproveSettings(iterations=2, trace=None),
    examples=[PromptReply((1, 2), (7, 8, 0), True)],
    logged=[Rollout((3,), (9, 5), (-0.1, -1.7), False)],
)
OPTIONS = {"iterations": "2", "learning_rate": "0.005", "prompts_per_iteration": "6", "max_new_tokens": "8"}


def vote(store: Experience, policy: Policy, first: int, last: int) -> None:
    """Thumbs on replies of the base model, of one who likes odd numbers."""
    prompts = [(257, 97 + i % 26, 97 + i // 3 % 26, 258, 10) for i in range(first, last)]
    with policy.reference():
        replies = sample(policy, prompts, max_new_tokens=8, temperature=1.0, seed=first)
    for i, reply in zip(range(first, last), replies, strict=True):
        record = interaction(f"r{i}", prompt=reply.prompt, time=i)
        record.reply_token_ids[:], record.behaviour_logprobs[:] = reply.reply, reply.logprobs
        record.sampling.temperature, record.sampling.max_tokens = 1.0, 8
        store.add_interaction(record)
        liked = sum(token % 2 for token in reply.reply) >= 0.5 * len(reply.reply)
        store.add_feedback(feedback(f"r{i}", key="k", time=i, thumb=UP if liked else DOWN))


MIXED = {"logged_share": "0.5", "instruct_weight": "0.2"}


def instructions(file: Path, verb: str) -> None:
    records = [{"instruction": f"{verb} {i}.", "output": f"{i}!"} for i in range(30)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


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


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("killed_in", "mixed"), [(1, False), (2, False), (2, True)])
def test_a_round_cut_off_ends_as_if_it_had_not_been(
    tmp_path: Path, tiny_model: Path, killed_in: int, mixed: bool
) -> None:
    """Votes that came in after it was begun are for the next one; so are served replies, and other instructions."""
    published = []
    pairs = tmp_path / "pairs.jsonl"
    options = OPTIONS | MIXED | {"instruct_data": str(pairs)} if mixed else OPTIONS
    for name in ("whole", "cut"):
        instructions(pairs, "Say")
        home = Rounds(tmp_path / name, tiny_model, **options)
        home.learner._intake.start()
        vote(home.store, home.policy, 0, 60)
        if name == "cut":

            def kill(metrics: IterationMetrics) -> None:
                if metrics.iteration == killed_in:
                    raise Killed

            home.learner._progress = kill  # type: ignore[method-assign]
            with pytest.raises(Killed):
                home.learner._round()
            home.close()
            instructions(pairs, "Shout")
            home = Rounds(tmp_path / name, tiny_model, **options)
            home.learner._intake.start()
            vote(home.store, home.policy, 60, 80)
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
