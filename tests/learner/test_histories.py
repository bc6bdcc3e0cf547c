"""Whatever people say, however it arrives: the store ends where an oracle of ten lines does (invariants 2 and 3)."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.events import open_log
from plaudit.v1.events_pb2 import Feedback, Interaction
from plaudit_client import AsyncClient
from plaudit_learner.experience.intake import Intake
from plaudit_learner.experience.store import Experience
from tests.fixtures_server import Deployment
from tests.learner.test_experience import DOWN, UP, feedback, interaction

USERS, REPLIES, ASPECTS = ("", "ann", "bob"), ("r0", "r1", "r2"), ("quality", "politeness")
KINDS = ("thumb", "rating", "preference", "comment", "retraction")
"""Thumbs and ratings share a place; so do preferences over the same other reply."""


@dataclass(frozen=True)
class Said:
    """What one person says of one reply and aspect."""

    user: str
    reply: str
    aspect: str
    kind: str
    value: Any = None


State = dict[tuple[str, ...], Any]
"""(user, reply, aspect, place) → what stands there."""


def oracle(history: list[Said]) -> State:
    """What must stand when people have said all this, in this order."""
    stands: State = {}
    for said in history:
        about = (said.user, said.reply, said.aspect)
        if said.kind == "retraction":
            stands = {place: value for place, value in stands.items() if place[:3] != about}
        elif said.kind == "preference":
            stands[*about, f"over {said.value}"] = True
        else:
            stands[*about, "words" if said.kind == "comment" else "vote"] = (said.kind, said.value)
    return stands


@st.composite
def statements(draw: st.DrawFn) -> Said:
    reply, kind = draw(st.sampled_from(REPLIES)), draw(st.sampled_from(KINDS))
    values: dict[str, st.SearchStrategy[Any]] = {
        "thumb": st.booleans(),
        "rating": st.integers(1, 5),
        "preference": st.sampled_from([other for other in REPLIES if other != reply]),
        "comment": st.sampled_from(["hm", "nice"]),
    }
    value = draw(values.get(kind, st.none()))
    return Said(draw(st.sampled_from(USERS)), reply, draw(st.sampled_from(ASPECTS)), kind, value)


def record(said: Said, number: int, time: int) -> Feedback:
    """The record of the statement that was made as number `number`, accepted at `time`."""
    verdicts: dict[str, dict[str, Any]] = {
        "thumb": {"thumb": UP if said.value else DOWN},
        "rating": {"rating": said.value},
        "preference": {"preferred_over": said.value},
        "comment": {"comment": said.value},
        "retraction": {"retraction": True},
    }
    return feedback(said.reply, key=f"k{number}", time=time, user=said.user, aspect=said.aspect, **verdicts[said.kind])


def state(path: Path) -> State:
    """What the store says that stands."""
    found: State = {}
    with closing(sqlite3.connect(path)) as db:
        for user, reply, aspect, slot, value, words in db.execute(
            "SELECT user, response_id, aspect, slot, value, words FROM standing"
        ):
            if slot == "comment":
                found[user, reply, aspect, "words"] = ("comment", words)
            elif slot == "vote":
                found[user, reply, aspect, "vote"] = (
                    ("thumb", value == 1) if value in (1, -1) else ("rating", value - 10)
                )
            else:
                found[user, reply, aspect, slot] = True
    return found


@given(history=st.lists(statements(), max_size=20), seed=st.integers(0, 2**16))
def test_any_delivery_of_any_history_ends_in_one_state(
    tmp_path_factory: pytest.TempPathFactory, history: list[Said], seed: int
) -> None:
    chance = random.Random(seed)
    records: list[Feedback | Interaction] = []
    for number, said in enumerate(history):
        # A retry has the same key, and is accepted later: perhaps after what its author has said since.
        times = [10 * number, *(chance.randrange(10 * number + 1, 300) for _ in range(chance.choice((0, 0, 0, 1, 2))))]
        records += [record(said, number, time) for time in times]
    records += chance.choices(records, k=len(records) // 4)  # read twice
    records += [interaction(reply) for reply in REPLIES]  # early or late
    chance.shuffle(records)

    path = tmp_path_factory.mktemp("history") / "experience.sqlite"
    while records:
        with closing(Experience(path)) as store, store.transaction():  # as after a restart
            for _ in range(chance.randint(1, len(records))):
                delivered = records.pop()
                if isinstance(delivered, Feedback):
                    store.add_feedback(delivered)
                else:
                    store.add_interaction(delivered)

    expected = oracle(history)
    assert state(path) == expected
    with closing(Experience(path)) as store:
        for aspect in ASPECTS:
            votes = [value for place, value in expected.items() if place[2:] == (aspect, "vote")]
            assert sorted(vote.liked for vote in store.votes(aspect, 99)) == sorted(
                value for kind, value in votes if kind == "thumb"
            )
            assert sorted(rating.points for rating in store.ratings(aspect, 99)) == sorted(
                value for kind, value in votes if kind == "rating"
            )
            pairs = [place for place in expected if place[2] == aspect and place[3].startswith("over ")]
            assert len(store.preferences(aspect, 99)) == len(pairs)
        assert store.count_votes(*ASPECTS) == sum(place[3] != "words" for place in expected)


@pytest.mark.parametrize("seed", range(2))
async def test_the_same_by_way_of_servers_log_and_intake(deployment: Deployment, seed: int) -> None:
    chance = random.Random(seed)
    receipts = deployment.receipts()
    receipt = {reply: receipts.issue(reply, "v0", "") for reply in REPLIES}

    def anything() -> Said:
        reply, kind = chance.choice(REPLIES), chance.choice(KINDS)
        other = chance.choice([other for other in REPLIES if other != reply])
        values = {"thumb": chance.random() < 0.5, "rating": chance.randint(1, 5), "preference": other, "comment": "hm"}
        return Said(chance.choice(USERS), reply, chance.choice(ASPECTS), kind, values.get(kind))

    history = [anything() for _ in range(80)]

    async def say(client: AsyncClient, number: int) -> None:
        said = history[number]
        said_how: dict[str, Any] = {
            "thumb": {"thumb": "up" if said.value else "down"},
            "rating": {"rating": said.value},
            "preference": {"preferred_over": receipt.get(said.value, "")},
            "comment": {"comment": said.value},
        }
        about: dict[str, Any] = {"aspect": said.aspect, "user_id": said.user, "idempotency_key": f"k{number}"}
        if said.kind == "retraction":
            await client.retract_feedback(receipt[said.reply], **about)
        else:
            await client.submit_feedback(receipt[said.reply], **about, **said_how[said.kind])

    async with deployment.server("server-0") as one, deployment.server("server-1") as two:
        async with AsyncClient(one) as first, AsyncClient(two) as second:
            for number in range(len(history)):
                await say(chance.choice((first, second)), number)
                if chance.random() < 0.2:
                    await say(chance.choice((first, second)), chance.randint(0, number))  # a late retry

    path = deployment.root / "experience.sqlite"
    with open_log(deployment.event_log) as log, closing(Experience(path)) as store:
        intake = Intake(log, store)
        intake.start()
        assert intake.drain(0) >= len(history)
    pseudonyms = {deployment.pseudonym(user): user for user in USERS}
    assert {(pseudonyms[user], *rest): value for (user, *rest), value in state(path).items()} == oracle(history)
