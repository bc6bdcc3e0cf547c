"""A canary's trial through the real event log and store: votes come in, one event says what became of it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from plaudit.artifacts import PolicyStore
from plaudit.events import (
    FEEDBACK,
    INTERACTIONS,
    POLICIES,
    Entry,
    EventLog,
    EventLogUnavailable,
    Positions,
    Record,
    from_beginning,
    open_log,
)
from plaudit.releases import Releases
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_learner.canary.review import Reviewer
from plaudit_learner.config import LearnerSettings
from plaudit_learner.experience.intake import Intake
from plaudit_learner.experience.on_trial import on_trial
from plaudit_learner.experience.store import Experience
from plaudit_learner.gate.judge import Verdict
from plaudit_learner.metrics import LearnerMetrics
from plaudit_learner.policy import Policy
from plaudit_learner.release import Publisher
from tests.learner.test_experience import DOWN, UP, at, feedback, interaction
from tests.learner.test_reward_rounds import Rounds, vote

CANARY, STABLE = PolicyState.POLICY_STATE_CANARY, PolicyState.POLICY_STATE_STABLE
ROLLED_BACK, CANDIDATE = PolicyState.POLICY_STATE_ROLLED_BACK, PolicyState.POLICY_STATE_CANDIDATE
BEGAN = 1_000_000_000


class Home:
    """A learner's surroundings, and its reviewer, which may be begun anew as after a kill."""

    def __init__(self, path: Path, *, keep: int | None = None, **settings: int) -> None:
        """keep: the replies that the store keeps; None: all."""
        self.url = f"sqlite:{path / 'events.sqlite'}"
        self.settings = LearnerSettings(event_log=self.url, policy_store=str(path / "v"), state_dir=path, **settings)  # type: ignore[arg-type]
        self.log = open_log(self.url)
        self.store = Experience(path / "experience.sqlite", keep=keep)
        self.said = 0
        self.begin()

    def begin(self, log: EventLog | None = None) -> None:
        self.metrics = LearnerMetrics(CollectorRegistry())
        self.intake = Intake(log or self.log, self.store)
        self.intake.start()
        self.reviewer = Reviewer(self.settings, self.store, self.metrics)

    def announce(self, version: str, state: PolicyState.ValueType, share: float = 0.0, actor: str = "learner") -> None:
        event = PolicyEvent(schema_version=1, version=version, state=state, share=share, actor=actor, reason="said so")
        event.time.FromMicroseconds(BEGAN + self.said)
        event.metrics["round"] = 1.0
        self.log.append([Record(POLICIES, version, event.SerializeToString())])

    def vote(
        self, version: str, liked: float | None, count: int, *, pinned: bool = False, conversation: str = ""
    ) -> None:
        """So many replies of a version, each to another user, who likes it with this probability; None: no votes."""
        records = []
        for _ in range(count):
            self.said += 1
            reply = interaction(f"r{self.said}", version=version, time=BEGAN + self.said)
            reply.finished_at.CopyFrom(at(BEGAN + self.said + 1000))
            reply.pinned = pinned
            reply.conversation_id = conversation
            records.append(Record(INTERACTIONS, reply.response_id, reply.SerializeToString()))
            if liked is not None:
                up = random.Random(self.said).random() < liked
                vote = feedback(f"r{self.said}", key="k", time=BEGAN + self.said, thumb=UP if up else DOWN)
                records.append(Record(FEEDBACK, reply.response_id, vote.SerializeToString()))
        self.log.append(records)

    def both(self, ours: float, theirs: float, count: int) -> None:
        for _ in range(count):
            self.vote("v1", theirs, 1)
            self.vote("v2", ours, 1)

    def review(self) -> Releases:
        self.intake.drain(0.0)
        self.reviewer.review(self.intake)
        self.intake.read_policies()
        return self.intake.releases

    def events(self, version: str = "v2") -> list[PolicyEvent]:
        entries = self.log.read(from_beginning(self.log, POLICIES))
        return [PolicyEvent.FromString(entry.value) for entry in entries if entry.key == version]

    def close(self) -> None:
        self.store.close()
        self.log.close()


class Killed(BaseException):
    """The learner, at that point."""


class Cut(EventLog):
    """A log from which the learner is cut off at an append: before it, or when it is done but for the answer."""

    def __init__(
        self, log: EventLog, *, before: bool = False, after: int = 0, by: type[BaseException] = Killed
    ) -> None:
        """after: so many appends."""
        self._log, self._before, self._left, self._by = log, before, after, by

    @property
    def identity(self) -> str:
        return self._log.identity

    def append(self, records: Sequence[Record]) -> None:
        self._left -= 1
        if self._before and self._left < 0:
            raise self._by
        self._log.append(records)
        if self._left < 0:
            raise self._by

    def partitions(self, topic: str) -> Sequence[int]:
        return self._log.partitions(topic)

    def read(self, positions: Positions, *, limit: int = 1000, timeout: float = 0.0) -> Sequence[Entry]:
        return self._log.read(positions, limit=limit, timeout=timeout)

    def lag(self, positions: Positions) -> int:
        return self._log.lag(positions)

    def close(self) -> None: ...


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    home.announce("v1", STABLE)
    home.announce("v2", CANARY, 0.5)
    yield home
    home.close()


def test_a_disliked_canary_is_rolled_back_by_one_event_that_says_why(home: Home) -> None:
    assert on_trial(home.review())
    home.both(0.0, 0.7, 40)
    releases = home.review()
    assert (releases.stable, releases.canary) == ("v1", None)
    event = home.events()[-1]
    assert (event.state, event.actor) == (ROLLED_BACK, "learner")
    assert event.reason.startswith("liked less than the stable version: 0.00 of 40 votes (100% of 40 replies voted on")
    assert event.metrics["round"] == 1.0
    assert (event.metrics["canary_votes"], event.metrics["canary_approval"]) == (40.0, 0.0)
    assert event.metrics["canary_stable_votes"] == 39.0, "the first one came before both answered"
    count = len(home.events())
    home.both(0.0, 0.7, 10)
    home.review()
    assert len(home.events()) == count, "it is over"
    decided = home.metrics.canary_decisions.labels("roll back")
    assert decided._value.get() == 1.0
    assert home.metrics.policy_state.labels("v2", "rolled_back")._value.get() == 1.0


def test_a_liked_canary_is_promoted(home: Home) -> None:
    home.both(0.9, 0.4, 60)
    releases = home.review()
    assert (releases.stable, releases.canary) == ("v2", None)
    assert home.events()[-1].reason.startswith("surely not liked less by 0.1 or more: ")


@pytest.mark.parametrize(
    ("canary_answers", "became", "why"),
    [
        (True, STABLE, "no sign of harm to the end of its trial: "),
        (False, ROLLED_BACK, "of about 20 replies that were to be its own it gave few: no votes (no replies"),
    ],
)
def test_a_trial_with_hardly_a_vote_ends_though_it_is_longer_than_the_window(
    tmp_path: Path, canary_answers: bool, became: PolicyState.ValueType, why: str
) -> None:
    home = Home(tmp_path, keep=16, window=16, canary_most_replies=20)
    home.announce("v1", STABLE)
    home.announce("v2", CANARY, 0.1)
    home.review()
    for number in range(20):
        assert on_trial(home.review()), number
        home.vote("v2" if canary_answers else "v1", None, 1)
        home.vote("v1", 1.0 if number % 10 == 0 else None, 1)
        home.vote("v1", None, 8)
    home.vote("v1", None, 1)  # the first of all came before both answered
    home.review()
    assert home.events()[-1].state == became
    assert home.events()[-1].reason.startswith(why)
    home.vote("v1", None, 1)
    home.review()
    assert len(home.store.exposures("v1", 0, 1000)) <= 16, "what was on trial has left"
    assert home.store.count_votes("quality") == 2
    home.close()


def test_a_trial_that_begins_while_nothing_is_taken_in_keeps_all_of_its_votes(tmp_path: Path) -> None:
    """By hand, during a round: its replies come in together with its event, and are more than the window."""
    home = Home(tmp_path, keep=16, window=16)
    home.announce("v1", STABLE)
    home.announce("v2", CANARY, 0.0)
    home.review()
    home.announce("v2", CANARY, 0.5, actor="operator")
    home.both(0.5, 0.5, 20)
    home.vote("v1", 1.0, 20, pinned=True)  # asked for by name, which fills the window
    home.review()
    assert len(home.store.exposures("v2", 0, 100)) == 20
    assert home.metrics.canary_votes.labels("canary")._value.get() == 20.0
    home.close()


def test_what_has_counted_goes_on_counting(tmp_path: Path) -> None:
    """At each look a learner with a small window sees what one that keeps everything sees."""
    homes = []
    for name, keep in (("small", 16), ("everything", None)):
        (tmp_path / name).mkdir()
        homes.append(Home(tmp_path / name, keep=keep, window=16))
        homes[-1].announce("v1", STABLE)
        homes[-1].vote("v1", 0.5, 20)  # before the trial: no part of it
        homes[-1].review()
        homes[-1].announce("v2", CANARY, 0.5)
    for look in range(30):
        seen = []
        for home in homes:
            home.both(0.3, 0.5, 2)
            home.vote("v1", 1.0, 5, pinned=True)  # asked for by name, which fills the window
            home.review()
            figures = home.metrics
            seen.append(
                [
                    child._value.get()
                    for child in (
                        figures.canary_votes.labels("canary"),
                        figures.canary_votes.labels("stable"),
                        figures.canary_approval.labels("canary"),
                        figures.canary_harm,
                    )
                ]
            )
        assert seen[0] == seen[1], look
    assert seen[0][0] >= 59
    for home in homes:
        home.close()


def test_it_is_told_how_the_trial_goes_and_the_trial_goes_on(home: Home) -> None:
    home.both(0.5, 0.5, 10)
    home.review()
    assert len(home.events()) == 1
    home.both(0.5, 0.5, 10)
    home.review()
    first, told = home.events()
    assert (told.state, told.share, told.time) == (CANARY, 0.5, first.time)
    assert told.metrics["canary_votes"] == 20.0
    home.both(0.5, 0.5, 15)
    home.review()
    assert len(home.events()) == 2, "the next time when there are twice as many"
    home.both(0.5, 0.5, 6)
    home.review()
    assert home.events()[-1].metrics["canary_votes"] == 41.0


def test_a_learner_killed_between_decision_and_event_decides_the_same_again(home: Home) -> None:
    home.both(0.0, 0.7, 30)
    home.begin(Cut(home.log, before=True))
    with pytest.raises(Killed):
        home.review()
    assert len(home.events()) == 1
    home.begin()
    assert len(home.events()) == 1, "decided anew, by what is known by then"
    home.review()
    decided = home.events()[-1]
    home.begin()  # and killed after it: nothing is said twice
    home.review()
    assert [event.state for event in home.events()] == [CANARY, ROLLED_BACK]
    assert decided.metrics["canary_votes"] == 30.0


def test_what_was_asked_for_by_name_or_before_the_trial_does_not_count(home: Home) -> None:
    home.vote("v2", 0.0, 40, pinned=True)
    home.vote("v1", 1.0, 40, pinned=True)
    home.review()
    assert len(home.events()) == 1
    home.vote("v1", 0.5, 300)
    home.announce("v2", CANARY, 0.25, actor="operator")
    home.both(0.0, 1.0, 10)
    releases = home.review()
    assert releases.share("v2") == 0.25
    assert home.metrics.canary_votes.labels("canary")._value.get() == 10.0
    assert home.metrics.canary_votes.labels("stable")._value.get() == 9.0


def test_an_operators_word_that_a_decision_overtook_holds(home: Home) -> None:
    home.both(0.9, 0.4, 60)
    home.intake.drain(0.0)  # the learner knows the votes, and not yet what the operator says
    home.announce("v2", ROLLED_BACK, actor="operator")
    home.reviewer.review(home.intake)
    assert [(event.state, event.actor) for event in home.events()] == [
        (CANARY, "learner"),
        (ROLLED_BACK, "operator"),
        (STABLE, "learner"),
        (ROLLED_BACK, "operator"),
    ]
    assert home.review().stable == "v1"
    assert len(home.events()) == 4


def test_so_does_his_promotion_of_another_version(home: Home) -> None:
    home.both(0.9, 0.4, 60)
    home.intake.drain(0.0)
    home.announce("v3", STABLE, actor="operator")
    home.reviewer.review(home.intake)
    releases = home.review()
    assert (releases.stable, releases.previous) == ("v3", "v2")
    assert len(home.events("v3")) == 2


@pytest.mark.parametrize("by", [Killed, EventLogUnavailable], ids=["killed", "no answer"])
@pytest.mark.parametrize("said_again", [False, True], ids=["at its event", "at the operator's"])
def test_it_holds_though_the_learner_is_cut_off_meanwhile(
    home: Home, by: type[BaseException], said_again: bool
) -> None:
    home.both(0.9, 0.4, 60)
    home.begin(Cut(home.log, after=int(said_again), by=by))
    home.intake.drain(0.0)
    home.announce("v2", ROLLED_BACK, actor="operator")
    with pytest.raises(by):
        home.reviewer.review(home.intake)
    home.begin()
    assert home.intake.releases.stable == "v1"
    assert [(event.state, event.actor) for event in home.events()] == [
        (CANARY, "learner"),
        (ROLLED_BACK, "operator"),
        (STABLE, "learner"),
        (ROLLED_BACK, "operator"),
    ]
    home.begin()
    home.review()
    assert len(home.events()) == 4, "said again once"


def test_what_the_operator_said_last_is_his_last_word(home: Home) -> None:
    home.both(0.9, 0.4, 60)
    home.begin(Cut(home.log))
    home.intake.drain(0.0)
    home.announce("v2", ROLLED_BACK, actor="operator")
    with pytest.raises(Killed):
        home.reviewer.review(home.intake)
    home.announce("v3", STABLE, actor="operator")  # to a log without a learner
    home.announce("v2", STABLE, actor="operator")
    home.begin()
    releases = home.review()
    assert (releases.stable, releases.previous) == ("v2", "v3")


def test_a_word_that_comes_while_another_is_said_again_holds_too(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.both(0.9, 0.4, 60)
    home.intake.drain(0.0)
    home.announce("v2", ROLLED_BACK, actor="operator")
    append, last = home.log.append, iter(["v3", "v4"])

    def overtaken(records: Sequence[Record]) -> None:
        if version := next(last, None):
            event = PolicyEvent(schema_version=1, version=version, state=STABLE, actor="operator", reason="meanwhile")
            append([Record(POLICIES, version, event.SerializeToString())])
        append(records)

    monkeypatch.setattr(home.log, "append", overtaken)
    home.reviewer.review(home.intake)
    monkeypatch.undo()
    releases = home.review()
    assert releases.promoted() == ["v0", "v1", "v3", "v4"]


def test_a_canary_that_was_overtaken_stays_out(home: Home) -> None:
    home.announce("v3", STABLE, actor="operator")
    home.review()
    event = home.events()[-1]
    assert (event.state, event.reason) == (ROLLED_BACK, "v3 took its place before it was judged")
    home.announce("v3", ROLLED_BACK, actor="operator")
    releases = home.review()
    assert (releases.stable, releases.canary) == ("v1", None)


def test_a_canary_at_no_share_waits_for_its_operator(home: Home) -> None:
    home.announce("v2", CANARY, 0.0, actor="operator")
    home.both(0.0, 1.0, 60)
    releases = home.review()
    assert releases.canary == "v2"
    assert not on_trial(releases)


def test_no_round_begins_while_a_canary_is_on_trial(tmp_path: Path, tiny_model: Path) -> None:
    rounds = Rounds(tmp_path, tiny_model)
    rounds.learner._intake.start()
    vote(rounds.store, 0, 60)
    assert rounds.learner._due()
    for share, due in ((0.1, False), (0.0, True)):
        event = PolicyEvent(schema_version=1, version="v1", state=CANARY, share=share)
        rounds.log.append([Record(POLICIES, "v1", event.SerializeToString())])
        rounds.learner._intake.drain(0.0)
        assert rounds.learner._due() is due
    rounds.close()


def test_what_passes_the_gate_is_published_as_a_canary(tmp_path: Path, tiny_model: Path) -> None:
    home = Home(tmp_path)
    publisher = Publisher(PolicyStore(str(tmp_path / "v")), home.intake.announce, "0" * 64)
    states = []
    for share in (0.1, 0.0):
        releases = home.review()
        event = publisher.publish(
            Policy.load(tiny_model),
            Verdict([], {}),
            releases,
            parent="v0",
            reference="v0",
            share=share,
            window={},
            metrics={},
        )
        states.append((event.version, event.state, event.share))
    assert states == [("v1", CANARY, 0.1), ("v2", STABLE, 0.0)]
    home.close()


@pytest.mark.parametrize("cut", [False, True])
def test_what_an_operator_says_during_a_publication_holds(tmp_path: Path, tiny_model: Path, cut: bool) -> None:
    home = Home(tmp_path)
    home.announce("v1", STABLE)
    home.announce("v2", CANARY, 0.0)
    home.begin(Cut(home.log, by=EventLogUnavailable) if cut else None)
    home.review()
    home.announce("v2", STABLE, actor="operator")  # the learner is uploading
    publisher = Publisher(PolicyStore(str(tmp_path / "v")), home.intake.announce, "0" * 64)
    with pytest.raises(EventLogUnavailable) if cut else nullcontext():
        publisher.publish(
            Policy.load(tiny_model),
            Verdict([], {"kl": 0.1}),
            home.intake.releases,
            parent="v1",
            reference="v0",
            window={},
            metrics={},
        )
    home.begin()
    releases = home.review()
    assert releases.promoted() == ["v0", "v1", "v3", "v2"]
    assert len(home.events("v3")) == 1
    home.close()


def test_an_event_with_a_figure_that_is_no_number_is_heard(home: Home) -> None:
    event = PolicyEvent(schema_version=1, version="v3", state=PolicyState.POLICY_STATE_REJECTED, actor="learner")
    event.metrics["kl"] = float("nan")
    home.intake.announce(event)
    assert len(home.events("v3")) == 1


def test_a_store_of_an_earlier_release_gets_its_columns(tmp_path: Path) -> None:
    file = tmp_path / "experience.sqlite"
    Experience(file).close()
    with sqlite3.connect(file) as db:
        db.execute("DROP INDEX interactions_in_order")
        db.execute("CREATE INDEX interactions_at ON interactions (at)")
        for column in ("finished_at", "pinned", "traceparent", "conversation"):
            db.execute(f"ALTER TABLE interactions DROP COLUMN {column}")
        db.execute("DROP VIEW standing")  # SQLite does not drop a column that a view shows
        db.execute("ALTER TABLE statements DROP COLUMN traceparent")
        db.execute("INSERT INTO statements VALUES ('old', '', 'quality', 'k', 'vote', 1, '', 6)")
        db.execute("INSERT INTO interactions VALUES ('old', 'v1', '', 'k', x'', x'00000000', x'', 0.7, 16, 1, 5)")
    db.close()
    store = Experience(file)
    told = interaction("new", time=9)
    told.conversation_id = "c"
    store.add_interaction(told)
    old, new = store.exposures("v1", 0, 10)
    assert (old.response_id, old.seconds, old.tokens) == ("old", 0.0, 1)
    assert (new.response_id, new.tokens) == ("new", 2)
    assert old.conversation == "" != new.conversation
    record = feedback("new", key="k", time=9, thumb=UP)
    record.traceparent = f"00-{'4b' * 16}-{'a1' * 8}-01"
    store.add_feedback(record)
    assert store.traces(["quality"], 10, 10) == ([record.traceparent], 1)
    assert store.count_votes("quality") == 2
    store.close()
    Experience(file).close()


def test_a_conversation_is_one_vote_and_its_id_stays_out_of_the_store(home: Home) -> None:
    for number in range(40):
        home.vote("v1", 1.0, 1, conversation=f"calm {number}")
        home.vote("v2", 0.0, 1, conversation="a quarrel about ann@example.org")
    home.vote("v2", 1.0, 1, conversation="another")
    home.review()
    assert home.metrics.canary_votes.labels("canary")._value.get() == 2.0
    assert home.metrics.canary_approval.labels("canary")._value.get() == 0.5
    assert home.metrics.canary_replies.labels("canary")._value.get() == 41.0
    assert len({one.conversation for one in home.store.exposures("v2", 0, 100)}) == 2
    dump = "\n".join(home.store._db.iterdump())
    assert "a quarrel" not in dump


def test_ratings_are_votes_and_what_is_retracted_is_none(tmp_path: Path) -> None:
    store = Experience(tmp_path / "experience.sqlite")
    for number in range(4):
        reply = interaction(f"r{number}", time=number)
        reply.user = "ann" if number == 0 else ""
        store.add_interaction(reply)
    store.add_feedback(feedback("r0", key="a", time=1, user="ann", rating=4))
    store.add_feedback(feedback("r1", key="b", time=2, user="bob", thumb=DOWN))
    store.add_feedback(feedback("r2", key="c", time=3, thumb=UP))
    store.add_feedback(feedback("r2", key="d", time=4, retraction=True))
    store.add_feedback(feedback("r3", key="e", time=5, thumb=UP, aspect="tone"))
    assert [(b.response_id, b.asker, b.user, b.score) for b in store.ballots("quality", ("v1",), 0)] == [
        ("r0", "ann", "ann", 0.75),
        ("r1", "", "bob", 0.0),
    ]
    assert store.ballots("quality", ("v1",), 1)[0].response_id == "r1"
    assert store.ballots("quality", ("v9",), 0) == []
    store.close()
