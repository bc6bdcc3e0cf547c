"""Intake: each record once, with the position after it; poison aside; a log that forgot."""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plaudit import dead_letters
from plaudit.events import (
    DEAD_LETTERS,
    ERASURES,
    FEEDBACK,
    INTERACTIONS,
    POLICIES,
    TOPICS,
    EventLog,
    EventLogUnavailable,
    Record,
    from_beginning,
    open_log,
)
from plaudit.v1.events_pb2 import DeadLetter, Feedback, Interaction, PolicyEvent
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_learner.experience import records
from plaudit_learner.experience.intake import Intake
from plaudit_learner.experience.store import Experience
from tests.fixtures_broker import delete_topics
from tests.learner.test_erasure import erasure, kept, reply
from tests.learner.test_experience import DOWN, UP, feedback, interaction


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with open_log(f"sqlite:{tmp_path / 'events.sqlite'}") as log:
        yield log


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Experience]:
    store = Experience(tmp_path / "experience.sqlite")
    yield store
    store.close()


def say(log: EventLog, *messages: Interaction | Feedback) -> None:
    log.append(
        [
            Record(
                INTERACTIONS if isinstance(message, Interaction) else FEEDBACK,
                message.response_id,
                message.SerializeToString(),
            )
            for message in messages
        ]
    )


def test_takes_in_what_is_there_and_goes_on_from_there(log: EventLog, store: Experience) -> None:
    say(log, feedback("r1", key="k", time=1, thumb=UP), interaction("r1"))
    intake = Intake(log, store)
    intake.start()
    assert intake.drain(0) == 2
    assert intake.drain(0) == 0
    assert store.count_votes("quality") == 1
    say(log, interaction("r2"))
    again = Intake(log, store)  # as after a restart
    again.start()
    assert again.drain(0) == 1
    assert again.lag() == 0


def test_a_batch_and_its_position_are_kept_together_or_not_at_all(
    log: EventLog, store: Experience, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(log, interaction("r1"), interaction("r2"))
    intake = Intake(log, store)
    intake.start()
    with monkeypatch.context() as killed:
        killed.setattr(store.heard, "set_positions", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            intake.drain(0)
    assert store.prompts(10) == {}
    again = Intake(log, store)
    again.start()
    assert again.drain(0) == 2
    assert len(store.prompts(10)) == 1


def test_what_was_rolled_back_is_taken_in_by_the_next_drain(log: EventLog, store: Experience, tmp_path: Path) -> None:
    log.append([Record(FEEDBACK, "r0", b"\xff")])
    say(log, interaction("r1"))
    intake = Intake(log, store)
    intake.start()
    other = sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # the log can be read, and takes no dead letter
    with pytest.raises(EventLogUnavailable):
        intake.drain(0)
    other.close()
    assert intake.drain(0) == 2
    assert len(store.prompts(10)) == 1


@pytest.mark.kafka
def test_a_steady_stream_of_votes_does_not_keep_the_learner_from_learning(
    kafka_bootstrap: str, store: Experience
) -> None:
    over = threading.Event()
    said: list[int] = []

    def vote(log: EventLog) -> None:
        while not over.wait(0.05):
            say(log, feedback(f"r{len(said)}", key="k", time=1, thumb=UP))
            said.append(1)

    with open_log(f"kafka://{kafka_bootstrap}?prefix=test-{uuid.uuid4().hex}.") as log, ThreadPoolExecutor(2) as pool:
        intake = Intake(log, store)
        intake.start()
        voting = pool.submit(vote, log)
        try:
            assert pool.submit(intake.drain, 5.0).result(timeout=30) > 0
        finally:
            over.set()
        voting.result()
        while intake.drain(0):
            pass
        assert sum(store.heard.positions(log.identity).values()) == len(said)


def test_poison_goes_to_dead_letters_and_the_rest_goes_on(log: EventLog, store: Experience) -> None:
    uneven = interaction("r1")
    uneven.behaviour_logprobs.append(-1.0)
    newer = interaction("r2")
    newer.schema_version = 2
    empty = feedback("r3", key="k", time=1)
    log.append(
        [
            Record(INTERACTIONS, "r0", b"\xff garbage"),
            Record(INTERACTIONS, "r1", uneven.SerializeToString()),
            Record(INTERACTIONS, "r2", newer.SerializeToString()),
            Record(FEEDBACK, "r3", empty.SerializeToString()),
            Record(FEEDBACK, "r4", b"\xff"),
            Record(INTERACTIONS, "r6", b"\xff" * (4 << 20)),
            Record(FEEDBACK, "r7", feedback("r7", key="k", time=1, thumb=9).SerializeToString()),
        ]
    )
    say(log, interaction("r5"))
    intake = Intake(log, store)
    intake.start()
    assert intake.drain(0) == 8
    assert len(store.prompts(10)) == 1, "what is right is taken in"
    letters = [DeadLetter.FromString(entry.value) for entry in log.read(from_beginning(log, DEAD_LETTERS))]
    assert {letter.key: letter.value for letter in letters}["r0"] == b"\xff garbage"
    reasons = {letter.key: letter.reason for letter in letters}
    assert "no Interaction: " in reasons["r0"]
    assert reasons["r1"] == "2 reply_token_ids, but 3 behaviour_logprobs"
    assert reasons["r2"] == "schema_version is 2; this learner knows 1"
    assert reasons["r3"] == "verdict is missing"
    assert "no Feedback: " in reasons["r4"]
    assert "r6" in reasons
    assert reasons["r7"] == "thumb is 9, neither up nor down"
    assert all(letter.topic in (INTERACTIONS, FEEDBACK) for letter in letters)
    assert intake.drain(0) == 0


@pytest.mark.parametrize("key", ["k" * 5000, "\N{REPLACEMENT CHARACTER}" * 1400], ids=["long", "no text"])
def test_a_foreign_key_longer_than_ours_may_be_stops_nothing(
    log: EventLog, store: Experience, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka takes any bytes as a key; those that are no UTF-8 are read as replacement characters, three bytes each."""
    with monkeypatch.context() as somebody_else:
        somebody_else.setattr("plaudit.events.MAX_KEY_BYTES", 1 << 20)
        log.append([Record(FEEDBACK, key, b"\xff")])
    say(log, interaction("r1"), feedback("r1", key="k", time=1, thumb=UP))
    intake = Intake(log, store)
    intake.start()
    assert intake.drain(0) == 3
    assert store.count_votes("quality") == 1
    (letter,) = dead_letters.read(log)
    assert letter.key == key[: len(letter.key)]
    assert 4096 - 2 <= len(letter.key.encode()) <= 4096
    dead_letters.replay(log, letter)
    assert intake.drain(0) == 1


def test_one_poison_record_makes_one_letter_however_often_it_is_met(
    log: EventLog, store: Experience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the store's disk is full, and the learner is started again and again."""
    log.append([Record(INTERACTIONS, "r0", b"\xff"), Record(FEEDBACK, "r1", b"\xff")])
    aside: list[str] = []
    for _ in range(5):
        intake = Intake(log, store, aside.append)
        intake.start()
        with monkeypatch.context() as full:
            full.setattr(store.heard, "set_positions", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
            with pytest.raises(OSError, match="full"):
                intake.drain(0)
            with pytest.raises(OSError, match="full"):
                intake.drain(0)  # and it does not pass over what it could not keep
    assert len(log.read(from_beginning(log, DEAD_LETTERS))) == 2
    assert sorted(aside) == [FEEDBACK, INTERACTIONS]
    log.append([Record(FEEDBACK, "r2", b"\xff")])
    again = Intake(log, store, aside.append)
    again.start()
    assert again.drain(0) == 3
    assert len(log.read(from_beginning(log, DEAD_LETTERS))) == 3
    assert len(aside) == 3


def test_what_is_replayed_after_a_fix_is_taken_in_once(
    log: EventLog, store: Experience, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = interaction("r1")
    newer.schema_version = 2
    log.append([Record(INTERACTIONS, "r1", newer.SerializeToString()), Record(INTERACTIONS, "r2", b"\xff")])
    intake = Intake(log, store)
    intake.start()
    intake.drain(0)
    say(log, feedback("r1", key="k", time=1, thumb=UP))
    letters = list(dead_letters.read(log))
    assert [str(dead_letters.name(letter)) for letter in letters] == ["interactions/0/0", "interactions/0/1"]
    with monkeypatch.context() as newer_learner:
        newer_learner.setattr(records, "_SCHEMA_VERSION", 2)
        for letter in (*letters, *letters):
            dead_letters.replay(log, letter)
        intake.drain(0)
    assert len(store.prompts(10)) == 1
    after = list(dead_letters.read(log))
    assert [str(dead_letters.name(letter)) for letter in after if not letter.HasField("replayed_at")] == [
        "interactions/0/0",
        "interactions/0/1",
        "feedback/0/0",  # to a learner that knows 2 alone
        "interactions/0/3",  # what still cannot be used is a letter again, each time that it is replayed
        "interactions/0/5",
    ]
    assert [str(dead_letters.name(letter)) for letter in after if letter.HasField("replayed_at")] == [
        "interactions/0/0",
        "interactions/0/1",
        "interactions/0/0",
        "interactions/0/1",
    ]


def test_a_clock_that_ran_ahead_blinds_nobody(log: EventLog, tmp_path: Path) -> None:
    """A server is a day ahead for longer than a window; another one's clock is right."""
    day, now = 86_400_000_000, 10_000_000
    store, aside, clock = Experience(tmp_path / "experience.sqlite", keep=16), list[str](), [now / 1e6]
    intake = Intake(log, store, aside.append, clock=lambda: clock[0])
    intake.start()
    for i in range(20):
        say(log, interaction(f"ahead {i}", time=day + i), feedback(f"ahead {i}", key="k", time=day + i, thumb=UP))
    say(log, interaction("r"), reply("ann's", "ann", 1), feedback("r", key="no", time=day, retraction=True))
    log.append([Record(ERASURES, "ann", erasure("ann", day).SerializeToString())])
    say(log, feedback("r", key="k", time=now, thumb=UP), feedback("ann's", key="k", time=now, user="ann", thumb=DOWN))
    assert intake.drain(0) == 46
    assert [vote.liked for vote in store.votes("quality", 16)] == [True, False]
    assert len(aside) == 42
    letters = list(dead_letters.read(log))
    assert {letter.reason.partition(" is ")[0] for letter in letters} == {"started_at", "submitted_at", "time"}
    (erased,) = (letter for letter in letters if letter.topic == ERASURES)
    assert erased.reason == (
        "time is 1970-01-02T00:00:00Z, 23:59:50 after this learner's clock; at most 0:10:00: one of the clocks is wrong"
    )
    dead_letters.replay(log, erased)
    intake.drain(0)
    assert len(aside) == 43, "not yet"
    clock[0] += 86_400
    for letter in letters:
        dead_letters.replay(log, letter)
    intake.drain(0)
    assert len(aside) == 43
    assert store.count_votes("quality") == 20
    assert len(store.exposures("v1", day, 100)) == 16
    again = Experience(tmp_path / "again.sqlite", keep=16)  # by then all of it is of the past
    other = Intake(log, again)
    other.start()
    other.drain(0)
    assert kept(tmp_path / "again.sqlite") == kept(tmp_path / "experience.sqlite")
    store.close()
    again.close()


def test_what_was_cut_or_is_a_step_is_not_replayed(log: EventLog, store: Experience) -> None:
    log.append([Record(INTERACTIONS, "r1", b"\xff" * (2 << 20))])
    intake = Intake(log, store)
    intake.start()
    intake.drain(0)
    (letter,) = dead_letters.read(log)
    assert (len(letter.value), letter.value_bytes) == (1 << 20, 2 << 20)
    with pytest.raises(ValueError, match="only the first 1,048,576 were kept"):
        dead_letters.replay(log, letter)
    letter.topic = POLICIES
    with pytest.raises(ValueError, match="steps in an order"):
        dead_letters.replay(log, letter)


def test_an_erasure_is_followed_and_outlives_the_store(tmp_path: Path, log: EventLog, store: Experience) -> None:
    say(log, reply("r1", "ann", 1), reply("r2", "bob", 1), feedback("r2", key="k", time=2, user="ann", thumb=UP))
    request = erasure("ann", 5)
    log.append([Record(ERASURES, "ann", request.SerializeToString())])
    say(log, reply("r3", "ann", 2))  # from a server's outbox, late
    log.append([Record(ERASURES, "", b"\xff")])
    other = Experience(tmp_path / "other.sqlite")
    for each in (store, other):  # the second reads the log from its beginning, as a learner with a new directory
        intake = Intake(log, each)
        intake.start()
        assert intake.drain(0) == 6
        assert len(each.prompts(10)) == 1
        assert each.count_votes("quality") == 0
        assert each.unsettled
    other.close()
    (letter,) = dead_letters.read(log)
    assert letter.topic == ERASURES


def test_a_new_log_is_read_from_its_beginning_and_told_the_versions(
    tmp_path: Path, log: EventLog, store: Experience
) -> None:
    say(log, interaction("r1"))
    for version in ("v1", "v2"):
        event = PolicyEvent(schema_version=1, version=version, state=PolicyState.POLICY_STATE_STABLE)
        log.append([Record(POLICIES, version, event.SerializeToString())])
    intake = Intake(log, store)
    intake.start()
    intake.drain(0)
    assert intake.releases.stable == "v2"
    with open_log(f"sqlite:{tmp_path / 'new.sqlite'}") as new:
        say(new, interaction("r2", prompt=(7,)))
        after = Intake(new, store)
        after.start()
        assert after.releases.stable == "v2"
        assert after.drain(0) == 1
        told = [PolicyEvent.FromString(entry.value).version for entry in new.read(from_beginning(new, POLICIES))]
        assert told == ["v1", "v2"]
        Intake(new, store).start()
        assert len(new.read(from_beginning(new, POLICIES))) == 2, "told once"
    assert len(store.prompts(10)) == 2


@pytest.mark.kafka
def test_topics_that_were_made_anew_are_a_new_log(kafka_bootstrap: str, store: Experience) -> None:
    """In the same cluster; while a store from before identities had topics' ids in them goes on where it was."""
    prefix = f"test-{uuid.uuid4().hex}."
    event = PolicyEvent(schema_version=1, version="v1", state=PolicyState.POLICY_STATE_STABLE)
    with open_log(f"kafka://{kafka_bootstrap}?prefix={prefix}") as log:
        say(log, interaction("r1"), interaction("r2"))
        log.append([Record(POLICIES, "v1", event.SerializeToString())])
        intake = Intake(log, store)
        intake.start()
        assert intake.drain(5) == 2
        former, sep, _ = log.identity.partition("#")
        assert sep
        store.heard.rename_log(log.identity, former)
        intake = Intake(log, store)
        intake.start()
        say(log, interaction("r3"))
        assert intake.drain(5) == 1, "nothing is read twice after an upgrade"

        delete_topics(kafka_bootstrap, *(prefix + topic for topic in TOPICS))
        with open_log(f"kafka://{kafka_bootstrap}?prefix={prefix}") as server:  # makes them
            say(server, interaction("r4", prompt=(7,)))
        with pytest.raises(EventLogUnavailable, match="made anew"):
            intake.drain(5)
        after = Intake(log, store)  # as the loop does
        after.start()
        assert after.releases.stable == "v1", "the new log was told"
        assert after.drain(5) == 1
        assert len(log.read(from_beginning(log, POLICIES))) == 1
    assert len(store.prompts(10)) == 2


STABLE = PolicyState.POLICY_STATE_STABLE


def step(version: str, actor: str = "learner") -> Record:
    event = PolicyEvent(schema_version=1, version=version, state=STABLE, actor=actor, reason="said so")
    return Record(POLICIES, version, event.SerializeToString())


@pytest.fixture
def remembered(log: EventLog, store: Experience) -> None:
    """Of a log that is lost: v3 is stable; v2 was promoted by hand."""
    log.append([step("v1"), step("v2", "operator"), step("v3")])
    say(log, interaction("r1"))
    intake = Intake(log, store)
    intake.start()
    intake.drain(0)


def promoted(log: EventLog, store: Experience) -> list[str]:
    intake = Intake(log, store)
    intake.start()
    return intake.releases.promoted()


def test_a_new_log_is_told_each_version_that_it_lacks(tmp_path: Path, remembered: None, store: Experience) -> None:
    """As when a learner of an earlier release was killed in the middle of it."""
    with open_log(f"sqlite:{tmp_path / 'new.sqlite'}") as new:
        new.append([step("v1")])
        assert promoted(new, store) == ["v0", "v1", "v2", "v3"]
        assert promoted(new, store) == ["v0", "v1", "v2", "v3"]
        assert len(new.read(from_beginning(new, POLICIES))) == 3


@pytest.mark.parametrize("before", ["of v1", "of v2"])
def test_what_an_operator_says_while_a_new_log_is_told_holds(
    tmp_path: Path, remembered: None, store: Experience, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Kafka may take the first ones of several records, and then say that it is away."""
    with open_log(f"sqlite:{tmp_path / 'new.sqlite'}") as new:
        append = new.append

        def cut(records: Sequence[Record]) -> None:
            if before == "of v1":
                append([step("v0", "operator")])
            append(records[:1])
            if before == "of v2":
                append([step("v0", "operator")])
            raise EventLogUnavailable

        with monkeypatch.context() as away:
            away.setattr(new, "append", cut)
            with pytest.raises(EventLogUnavailable):
                Intake(new, store).start()
        assert promoted(new, store) == ["v1", "v2", "v3", "v0"]
        assert promoted(new, store) == ["v1", "v2", "v3", "v0"]
        assert len(new.read(from_beginning(new, POLICIES))) == 5
        new.append([step("v2", "operator")])
        new.append([step("v1", "operator")])
        assert promoted(new, store) == ["v3", "v0", "v2", "v1"], "no new log any more"


def test_in_a_copy_of_the_log_old_words_are_no_news(tmp_path: Path, log: EventLog, store: Experience) -> None:
    """Another cluster has a copy, without the last event."""
    events = [step("v1", "operator"), step("v2"), step("v3")]
    log.append(events)
    Intake(log, store).start()
    with open_log(f"sqlite:{tmp_path / 'copy.sqlite'}") as copy:
        copy.append(events[:2])
        assert promoted(copy, store) == ["v0", "v1", "v2", "v3"]
    with open_log(f"sqlite:{tmp_path / 'another.sqlite'}") as another:
        another.append([*events[:2], step("v0", "operator")])
        assert promoted(another, store) == ["v1", "v2", "v3", "v0"]


def test_a_learner_killed_when_it_has_read_a_new_log_has_heard_nothing(
    tmp_path: Path, remembered: None, store: Experience, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_log(f"sqlite:{tmp_path / 'new.sqlite'}") as new:
        new.append([step("v0", "operator")])
        with monkeypatch.context() as killed:
            killed.setattr(store.heard, "announce", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                Intake(new, store).start()
        assert promoted(new, store) == ["v1", "v2", "v3", "v0"]
