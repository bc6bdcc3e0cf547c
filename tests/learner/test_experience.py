"""What stands is a pure function of the set of records (invariants 2 and 3), against an oracle of a few lines."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from plaudit.v1.events_pb2 import Feedback, Interaction, PolicyEvent
from plaudit.v1.feedback_pb2 import Thumb
from plaudit.v1.sampling_pb2 import FinishReason, SamplingParameters
from plaudit_learner.experience.store import Experience, OtherBaseModel

UP, DOWN = Thumb.THUMB_UP, Thumb.THUMB_DOWN


def at(microseconds: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(microseconds)
    return stamp


def interaction(response_id: str, *, version: str = "v1", prompt: Sequence[int] = (1, 2), time: int = 0) -> Interaction:
    return Interaction(
        schema_version=1,
        response_id=response_id,
        policy_version=version,
        prompt_token_ids=prompt,
        reply_token_ids=[3, 4],
        behaviour_logprobs=[-0.5, -0.25],
        sampling=SamplingParameters(temperature=0.7, top_p=1.0, max_tokens=16),
        finish_reason=FinishReason.FINISH_REASON_STOP,
        started_at=at(time),
    )


def feedback(
    response_id: str, *, key: str, time: int, user: str = "", aspect: str = "quality", **verdict: object
) -> Feedback:
    return Feedback(
        schema_version=1,
        feedback_id=key,
        response_id=response_id,
        policy_version="v1",
        aspect=aspect,
        user=user,
        submitted_at=at(time),
        **verdict,  # type: ignore[arg-type]
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Experience]:
    store = Experience(tmp_path / "experience.sqlite")
    yield store
    store.close()


@st.composite
def histories(draw: st.DrawFn) -> list[Feedback]:
    """Statements by a few people on a few replies; keys repeat, with another time and verdict now and then."""
    records = []
    for _ in range(draw(st.integers(0, 25))):
        verdict: dict[str, object] = draw(
            st.sampled_from(
                [
                    {"thumb": UP},
                    {"thumb": DOWN},
                    {"rating": 2},
                    {"comment": "hm"},
                    {"retraction": True},
                    {"preferred_over": "r2"},
                ]
            )
        )
        records.append(
            feedback(
                draw(st.sampled_from(["r0", "r1"])),
                key=draw(st.sampled_from(["k0", "k1", "k2", "k3", "k4"])),
                time=draw(st.integers(0, 6)),
                user=draw(st.sampled_from(["", "ann"])),
                aspect=draw(st.sampled_from(["quality", "politeness"])),
                **verdict,
            )
        )
    return records


def oracle(records: list[Feedback]) -> dict[tuple[str, str], bool]:
    """(reply, user) → thumb on quality that stands: the earliest record of each key, then the last one that counts."""
    earliest: dict[tuple[str, str, str, str], Feedback] = {}

    def order(record: Feedback) -> tuple[object, ...]:
        kind = record.WhichOneof("verdict")
        slot = {"thumb": "vote", "rating": "vote", "preferred_over": "over r2"}.get(str(kind), str(kind))
        value = {"thumb": 1 if record.thumb == UP else -1, "rating": 12, "preferred_over": 1}.get(str(kind), 0)
        return (record.submitted_at.ToMicroseconds(), slot, value, record.comment)

    for record in records:
        identity = (record.response_id, record.user, record.aspect, record.feedback_id)
        if identity not in earliest or order(record) < order(earliest[identity]):
            earliest[identity] = record
    stands: dict[tuple[str, str], bool] = {}
    for record in sorted(
        earliest.values(), key=lambda record: (record.submitted_at.ToMicroseconds(), record.feedback_id)
    ):
        if record.aspect == "quality" and record.WhichOneof("verdict") in ("thumb", "rating", "retraction"):
            stands.pop((record.response_id, record.user), None)
            if record.WhichOneof("verdict") == "thumb":
                stands[record.response_id, record.user] = record.thumb == UP
    return stands


def standing(db: sqlite3.Connection) -> dict[tuple[str, str], bool]:
    rows = db.execute(
        "SELECT response_id, user, value FROM standing WHERE slot = 'vote' AND aspect = 'quality' AND value IN (1, -1)"
    )
    return {(response_id, user): value == 1 for response_id, user, value in rows}


@given(records=histories(), seed=st.integers(0, 1000))
def test_any_order_and_any_repetition_end_in_the_same_state(
    tmp_path_factory: pytest.TempPathFactory, records: list[Feedback], seed: int
) -> None:
    shuffled = random.Random(seed).sample(records, len(records)) + records[: seed % 5]
    path = tmp_path_factory.mktemp("experience") / "experience.sqlite"
    store = Experience(path)
    try:
        with store.transaction():
            for record in shuffled:
                store.add_feedback(record)
        with sqlite3.connect(path) as db:
            assert standing(db) == oracle(records)
        db.close()
    finally:
        store.close()


def test_a_vote_waits_for_its_interaction(store: Experience) -> None:
    store.add_feedback(feedback("r1", key="k", time=5, thumb=UP))
    assert store.votes("quality", 100) == []
    assert store.count_votes("quality") == 0
    store.add_interaction(interaction("r1"))
    (vote,) = store.votes("quality", 100)
    assert vote.liked
    assert vote.item.prompt == (1, 2)
    assert vote.item.reply == (3, 4)
    assert vote.item.finished
    assert store.count_votes("quality") == 1


def test_a_changed_vote_is_one_vote(store: Experience) -> None:
    store.add_interaction(interaction("r1"))
    store.add_feedback(feedback("r1", key="a", time=1, thumb=UP))
    store.add_feedback(feedback("r1", key="b", time=2, thumb=DOWN))
    store.add_feedback(feedback("r1", key="a", time=9, thumb=UP))  # the first one again, late, through another server
    assert [vote.liked for vote in store.votes("quality", 100)] == [False]
    store.add_feedback(feedback("r1", key="c", time=3, retraction=True))
    assert store.votes("quality", 100) == []


def test_a_comment_does_not_replace_a_vote_and_a_rating_does(store: Experience) -> None:
    store.add_interaction(interaction("r1"))
    store.add_feedback(feedback("r1", key="a", time=1, thumb=UP))
    store.add_feedback(feedback("r1", key="b", time=2, comment="nice"))
    assert store.count_votes("quality") == 1
    store.add_feedback(feedback("r1", key="c", time=3, rating=2))
    assert store.votes("quality", 100) == []
    assert store.count_votes("quality") == 1


def test_judgements_carry_their_aspect_and_user(store: Experience) -> None:
    for response_id in ("r1", "r2"):
        store.add_interaction(interaction(response_id))
    store.add_feedback(feedback("r1", key="a", time=1, user="ann", aspect="tone", rating=4))
    store.add_feedback(feedback("r1", key="b", time=2, user="bob", aspect="quality", thumb=DOWN))
    store.add_feedback(feedback("r2", key="c", time=3, user="ann", aspect="length", preferred_over="r1"))
    store.add_feedback(feedback("r2", key="d", time=3, user="ann", aspect="wit", comment="ha"))
    assert store.aspects(100) == ["length", "quality", "tone"]
    (rating,) = store.ratings("tone", 100)
    assert (rating.points, rating.user, rating.aspect) == (4, "ann", "tone")
    (vote,) = store.votes("quality", 100)
    assert (vote.liked, vote.user, vote.aspect) == (False, "bob", "quality")
    (pair,) = store.preferences("length", 100)
    assert (pair.user, pair.aspect) == ("ann", "length")
    assert store.ratings("quality", 100) == []
    assert store.count_votes("quality", "tone", "length") == 3
    assert store.count_votes("tone") == 1


def test_preferences_need_both_replies_to_one_prompt(store: Experience) -> None:
    for response_id, prompt in (("r1", (1,)), ("r2", (1,)), ("r3", (9,))):
        store.add_interaction(interaction(response_id, prompt=prompt))
    store.add_feedback(feedback("r1", key="a", time=1, preferred_over="r2"))
    store.add_feedback(feedback("r1", key="b", time=2, preferred_over="r3"))
    store.add_feedback(feedback("r1", key="c", time=3, preferred_over="nowhere"))
    (pair,) = store.preferences("quality", 100)
    assert pair.chosen.prompt == pair.rejected.prompt == (1,)


def test_tallies_prompts_and_sampling(store: Experience) -> None:
    for number in range(6):
        store.add_interaction(interaction(f"r{number}", version=f"v{number % 2}", prompt=(number % 3,), time=number))
        store.add_feedback(feedback(f"r{number}", key="k", time=1, thumb=UP if number < 4 else DOWN))
    tallies = store.tallies("quality")
    assert {version: (tally.up, tally.down) for version, tally in tallies.items()} == {"v0": (2, 1), "v1": (2, 1)}
    assert list(store.prompts(100).values()) == [(2,), (1,), (0,)]
    usual = store.usual_sampling(100)
    assert usual is not None
    assert usual[0] == pytest.approx(0.7)
    assert usual[1] == 16
    assert len(store.votes("quality", window=2)) == 2


def test_an_interaction_twice_is_one(store: Experience) -> None:
    store.add_interaction(interaction("r1"))
    store.add_interaction(interaction("r1"))
    store.add_feedback(feedback("r1", key="a", time=1, thumb=UP))
    assert store.count_votes("quality") == 1


def test_a_transaction_that_fails_leaves_nothing(store: Experience) -> None:
    def fail() -> None:
        with store.transaction():
            store.add_interaction(interaction("r1"))
            store.heard.set_positions("log", {("t", 0): 7})
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert store.heard.positions("log") == {}
    assert store.prompts(10) == {}


def test_positions_belong_to_a_log(store: Experience) -> None:
    store.heard.set_positions("a", {("t", 0): 7, ("t", 1): 3})
    store.heard.set_positions("a", {("t", 0): 9})
    assert store.heard.positions("a") == {("t", 0): 9, ("t", 1): 3}
    assert store.heard.positions("b") == {}


def test_policies_are_remembered_in_the_order_of_the_log(store: Experience) -> None:
    store.heard.keep_policy(PolicyEvent(version="v1"), 0)
    store.heard.keep_policy(PolicyEvent(version="v2"), 1)
    store.heard.keep_policy(PolicyEvent(version="v1", reason="again"), 2)
    assert [(event.version, event.reason) for event in store.heard.policies()] == [("v2", ""), ("v1", "again")]


def test_another_base_model_is_refused(store: Experience) -> None:
    store.belongs_to("a" * 64)
    store.belongs_to("a" * 64)
    with pytest.raises(OtherBaseModel, match="give another directory"):
        store.belongs_to("b" * 64)
