"""From what was said, a round's span, and from that the version: what the learner keeps of traces, and tells."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from plaudit import tracing
from plaudit.v1.events_pb2 import Feedback, Interaction
from plaudit_learner.experience.store import Experience
from tests.fixtures_traces import Spans, links_of, name_of
from tests.learner.test_erasure import erasure
from tests.learner.test_experience import DOWN, UP, feedback, interaction
from tests.learner.test_reward_rounds import Rounds
from tests.learner.test_rounds import OPTIONS, vote


def traceparent(number: int) -> str:
    return f"00-{number:032x}-{number:016x}-01"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Experience]:
    store = Experience(tmp_path / "experience.sqlite", keep=100)
    yield store
    store.close()


def reply(number: int, user: str = "") -> Interaction:
    record = interaction(f"r{number}", time=number)
    record.user, record.traceparent = user, traceparent(1000 + number)
    return record


def thumb(number: int, user: str = "", time: int = 0, aspect: str = "quality") -> Feedback:
    record = feedback(f"r{number}", key=f"k{number}", time=time or 100 + number, user=user, aspect=aspect, thumb=UP)
    record.traceparent = traceparent(2000 + number)
    return record


def test_the_newest_are_known_and_all_are_counted(store: Experience) -> None:
    for number in range(1, 6):
        store.add(reply(number))
        store.add(thumb(number))
    store.add(thumb(5, aspect="tone"))  # of another aspect, in the same call
    store.add(reply(6))  # nothing is said of it
    spans, total = store.traces(["quality"], 100, 3)
    assert spans == [traceparent(1005), traceparent(2005), traceparent(1004)], "the replies' own among them"
    assert total == 10
    spans, total = store.traces(["quality", "tone"], 2, 100)
    assert spans == [traceparent(1005), traceparent(2005)], "one span once, and of the window only"
    assert total == 2


def test_what_is_not_traced_or_no_traceparent_is_passed_over(store: Experience) -> None:
    for number, given in enumerate(("", "nonsense", f"00-{'0' * 32}-{'a1' * 8}-01", f"ff-{'4b' * 16}-{'a1' * 8}-01")):
        record, said = reply(number), thumb(number)
        record.traceparent = said.traceparent = given
        store.add(record)
        store.add(said)
    assert store.traces(["quality"], 100, 100) == ([], 0)
    assert store.count_votes("quality") == 4


def test_a_statement_made_twice_has_the_span_of_its_earliest_record(store: Experience) -> None:
    store.add(reply(1))
    first, again = thumb(1, time=101), thumb(1, time=102)
    first.traceparent, again.traceparent = traceparent(7), traceparent(8)
    for record in (again, first, again):
        store.add(record)
    assert store.traces(["quality"], 100, 1) == ([traceparent(7)], 2)


def test_an_erasure_takes_the_spans_along(store: Experience, tmp_path: Path) -> None:
    for number, user in ((1, "ann"), (2, "bob")):
        store.add(reply(number, user))
        store.add(thumb(number, user))
    store.add(erasure("ann", 1000))
    store.settle()
    assert set(store.traces(["quality"], 100, 100)[0]) == {traceparent(1002), traceparent(2002)}
    with sqlite3.connect(tmp_path / "experience.sqlite") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    assert traceparent(2001).encode() not in (tmp_path / "experience.sqlite").read_bytes()
    assert traceparent(2002).encode() in (tmp_path / "experience.sqlite").read_bytes()


@pytest.mark.timeout(300)
def test_a_round_leads_from_the_votes_to_the_version(
    tmp_path: Path, tiny_model: Path, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    home = Rounds(tmp_path, tiny_model, **OPTIONS)
    home.learner._intake.start()
    vote(home.store, home.policy, 0, 60)
    for number in range(60, 130):  # more than a span can have links
        record = reply(number)
        record.prompt_token_ids[:] = (257, 97 + number % 26, 98, 258, 10)
        home.store.add(record)
        home.store.add(thumb(number, time=number))
    with tracing.on("plaudit-learner"):
        home.learner._round()
    home.learner._intake.drain(0.0)
    home.close()
    event = home.learner._intake.releases.event("v1")
    assert event is not None
    this = spans.one("round")
    assert event.traceparent == name_of(this), "the version leads to its round"
    links = links_of(this)
    assert len(links) == tracing.MOST_LINKS
    assert {traceparent(1000 + number) for number in range(66, 130)} < set(links), "of the newest, all"
    assert this.attributes is not None
    assert this.attributes["plaudit.spans_learnt_from"] == 140
    assert this.attributes["plaudit.policy_version"] == "v1"
    children = [span for span in spans.all() if span.parent == this.context]
    assert {"reward model", "reference rollouts", "PPO update", "gate"} <= {span.name for span in children}
    assert len(spans.named("PPO update")) <= 2
    (decided,) = [record for record in caplog.records if record.getMessage().startswith("round 1: v1 is")]
    assert decided.fields["policy_version"] == "v1"  # type: ignore[attr-defined]


def test_a_file_of_feedback_has_no_spans(store: Experience) -> None:
    record = interaction("f1", version="imported", time=1)
    del record.behaviour_logprobs[:]
    store.add(record)
    store.add(feedback("f1", key="k", time=2, thumb=DOWN))
    assert store.traces(["quality"], 100, 100) == ([], 0)
