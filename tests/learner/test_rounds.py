"""A round that was cut off is gone on with: the same version comes of it, bit by bit."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from plaudit.artifacts import PolicyStore
from plaudit.events import ERASURES, POLICIES, Record
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_learner import rounds
from plaudit_learner.config import LearnerSettings
from plaudit_learner.experience.store import Experience
from plaudit_learner.loop import _BegunAnew
from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.ppo.improve import ImproveSettings, IterationMetrics
from plaudit_learner.ppo.rollouts import Rollout, sample
from plaudit_learner.rounds import Round
from tests.learner.test_erasure import erasure
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
OPTIONS["votes_for_kl_budget"] = "1"  # so that there are as many updates as said


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


SETTINGS = LearnerSettings(event_log="sqlite:x", policy_store="x", state_dir=Path("x"))
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


def test_another_releases_round_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ROUND.keep(tmp_path / "round", {})
    monkeypatch.setattr("plaudit.__version__", "999")
    assert rounds.kept(tmp_path / "round", {}) is None, "its checkpoint may be something else"


def test_half_written_is_not_kept(tmp_path: Path) -> None:
    ROUND.keep(tmp_path, {})
    file = tmp_path / "inputs.json"
    file.write_text(file.read_text()[:-20])
    assert rounds.kept(tmp_path, {}) is None


def test_a_budget_that_strays_is_halved_and_grows_again_slowly() -> None:
    most, had = math.inf, []
    for strayed in (False, True, True, False, False, True):
        how = rounds.aim(SETTINGS, 400, temperature=0.7, max_new_tokens=48, most=most)
        had.append((how.kl_budget, how.iterations))
        most = rounds.allowance(most, how.kl_budget, strayed=strayed)
    # 12 updates for 3 nats; as many as the root of the budget says.
    assert had == [(3.0, 12), (3.0, 12), (1.5, 9), (0.75, 6), (0.9375, 7), (1.171875, 8)]
    assert most == 1.171875 / 2
    few = rounds.aim(SETTINGS, 30, temperature=0.7, max_new_tokens=48, most=most)
    assert few.kl_budget == pytest.approx(0.3), "so few votes ask for less anyway"


def test_the_gates_verdicts_allow_the_budget(tmp_path: Path, tiny_model: Path) -> None:
    home = Rounds(tmp_path, tiny_model)

    def budget(reference: str = "v0") -> float:
        home.learner._intake.drain(0)
        return home.learner._how(400, reference).kl_budget

    def ended(number: int, kl_budget: float, *broken: str, reference: str = "v0") -> None:
        event = PolicyEvent(schema_version=1, version=f"v{number}", parent="v0", reference=reference)
        event.state = PolicyState.POLICY_STATE_REJECTED if broken else PolicyState.POLICY_STATE_STABLE
        event.metrics.update({"round": number, "votes": 60 * number, "kl_budget": kl_budget})
        for measure in ("reward", "kl", "instructions"):
            event.checks.add(measure=measure, kept=measure not in broken)
        home.log.append([Record(POLICIES, event.version, event.SerializeToString())])

    try:
        home.learner._intake.start()
        assert budget() == 3.0
        ended(1, 2.0, "reward")
        assert budget() == 3.0, "what is no better has not strayed"
        ended(2, 3.0, "reward", "instructions")
        assert budget() == 1.5
        ended(3, 1.5)
        assert budget() == 1.5 * 1.25
        ended(4, 0.5, "instructions", reference="v9")
        assert budget() == 1.5 * 1.25, "from another reference"
        assert budget("v9") == 0.25
    finally:
        home.close()


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

            def kill(iterations: int, metrics: IterationMetrics) -> None:
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


def test_an_erasure_in_the_middle_of_a_round_begins_it_anew_without_it(tmp_path: Path, tiny_model: Path) -> None:
    home = Rounds(tmp_path, tiny_model, **OPTIONS)
    home.learner._intake.start()
    vote(home.store, home.policy, 0, 60)
    theirs = (257, 120, 120, 258, 10)
    for i in range(60, 80):
        record = interaction(f"r{i}", prompt=(*theirs, i), time=i)
        record.user = "ann"
        home.store.add_interaction(record)
        home.store.add_feedback(feedback(f"r{i}", key="k", time=i, user="ann", thumb=UP))
    home.learner._features[PromptReply(theirs, (1,), True)] = torch.zeros(1)
    progress = home.learner._progress
    begun: list[Round] = []

    def erase(iterations: int, metrics: IterationMetrics) -> None:
        settings = home.learner._settings.model_dump(mode="json")
        kept = rounds.kept(tmp_path / "round", settings)
        assert kept is not None
        begun.append(kept)
        if len(begun) == 1:
            home.log.append([Record(ERASURES, "ann", erasure("ann", 100).SerializeToString())])
        progress(iterations, metrics)

    home.learner._progress = erase  # type: ignore[method-assign]
    try:
        with pytest.raises(_BegunAnew):
            home.learner._round()
        assert any(prompt[:5] == theirs for prompt in begun[0].train), "it had learnt from them"
        assert not (tmp_path / "round").exists()
        assert not (tmp_path / "reward-models").exists()
        assert home.learner._features == {}
        assert not home.store.unsettled
        home.learner._round()
        assert (begun[-1].number, begun[-1].votes) == (1, 60)
        prompts = begun[-1].train + begun[-1].held_out
        assert prompts
        assert not any(prompt[:5] == theirs for prompt in prompts)
        home.learner._intake.drain(0)
        (event,) = home.store.heard.policies()
        assert event.metrics["votes"] == 60
    finally:
        home.close()


@pytest.mark.parametrize("derived", ["round", "reward-models/1"])
def test_what_must_go_and_cannot_ends_the_learner(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, derived: str
) -> None:
    home = Rounds(tmp_path, tiny_model)
    try:
        home.learner._intake.start()
        file = tmp_path / derived / "inputs.json"
        file.parent.mkdir(parents=True)
        file.write_text("what ann said")
        home.log.append([Record(ERASURES, "ann", erasure("ann", 100).SerializeToString())])
        with monkeypatch.context() as read_only:
            read_only.setattr(os, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError("read-only")))
            for _ in range(2):  # and whenever it comes back
                with pytest.raises(OSError, match=r"(round|reward-models) cannot be removed: read-only"):
                    home.learner._take_in(0.0)
        assert home.store.unsettled
        home.learner._take_in(0.0)
        assert not file.exists()
        assert not home.store.unsettled
    finally:
        home.close()


def test_what_is_dropped_is_gone_after_a_power_loss_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ROUND.keep(tmp_path / "round", {})
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append((os.fstat(fd).st_ino, (tmp_path / "round").exists())))
    for _ in range(2):  # the first time it may have been killed before it was synced
        rounds.drop(tmp_path / "round")
    assert synced == [(tmp_path.stat().st_ino, False)] * 2


def test_votes_that_were_erased_do_not_have_to_come_again(tmp_path: Path, tiny_model: Path) -> None:
    """A round is due when enough new votes stand, however many of the old ones are gone."""
    home = Rounds(tmp_path, tiny_model, votes_per_round="10")
    try:
        home.learner._intake.start()
        announce(home, votes=50)
        for i in range(50):
            home.store.add_interaction(interaction(f"r{i}", time=i))
            home.store.add_feedback(feedback(f"r{i}", key="k", time=i, user="ann", thumb=UP))
        assert not home.learner._due()
        home.store.erase(erasure("ann", 100))
        assert not home.learner._due()
        for i in range(50, 60):
            assert not home.learner._due()
            home.store.add_interaction(interaction(f"r{i}", time=i))
            home.store.add_feedback(feedback(f"r{i}", key="k", time=i, thumb=UP))
        assert home.learner._due()
    finally:
        home.close()


def announce(home: Rounds, *, votes: int) -> None:
    """Say that a round has ended."""
    event = PolicyEvent(schema_version=1, version="v1", state=PolicyState.POLICY_STATE_REJECTED)
    event.metrics.update({"round": 1, "votes": votes})
    home.log.append([Record(POLICIES, "v1", event.SerializeToString())])
    home.learner._intake.drain(0)
