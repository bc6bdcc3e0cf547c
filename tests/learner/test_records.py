"""Whatever stands in the log, it is taken in or put aside with a reason, and the learner goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plaudit.events import ERASURES, FEEDBACK, INTERACTIONS, Entry
from plaudit.v1.events_pb2 import Erasure, Feedback, Interaction
from plaudit_learner.experience.records import Poison, parse
from plaudit_learner.experience.store import Experience
from tests.learner.test_experience import UP, feedback, interaction

NOW = 1000.0


def entry(topic: str, value: bytes) -> Entry:
    return Entry(topic, 0, 0, "key", value, 0.0)


def erasure(**fields: object) -> Erasure:
    return Erasure(**{"schema_version": 1, "user": "ann", "time": Timestamp(seconds=5), **fields})  # type: ignore[arg-type]


def vote(**verdict: object) -> Feedback:
    return feedback("r1", key="k", time=1, **verdict)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("topic", "message", "spoil", "reason"),
    [
        (INTERACTIONS, interaction("r"), {"schema_version": 0}, "schema_version is 0; this learner knows 1"),
        (INTERACTIONS, interaction("r"), {"schema_version": 2**32 - 1}, "schema_version is 4294967295"),
        (
            INTERACTIONS,
            interaction("r"),
            {"response_id": "", "policy_version": ""},
            "response_id and policy_version",
        ),
        (INTERACTIONS, interaction("r"), {"policy_version": "v12345678901"}, "no name of a version"),
        (INTERACTIONS, interaction("r"), {"policy_version": "imported"}, "which nobody can know"),
        (INTERACTIONS, interaction("r", prompt=()), {}, "prompt_token_ids missing"),
        (FEEDBACK, vote(thumb=UP), {"schema_version": 2}, "schema_version is 2"),
        (FEEDBACK, vote(thumb=UP), {"feedback_id": ""}, "feedback_id missing"),
        (FEEDBACK, vote(), {}, "verdict is missing"),
        (FEEDBACK, vote(thumb=9), {}, "thumb is 9"),
        (FEEDBACK, vote(rating=6), {}, "rating is 6, not 1 to 5"),
        (ERASURES, erasure(), {"user": ""}, "user missing"),
        (ERASURES, erasure(time=Timestamp(seconds=1601)), {}, "time is 1970-01-01T00:26:41Z, 0:10:01 after this"),
        (
            FEEDBACK,
            feedback("r", key="k", time=87_400_000_000, thumb=UP),
            {},
            "submitted_at is 1970-01-02T00:16:40Z, 1 day, 0:00:00 after this learner's clock; at most 0:10:00",
        ),
        (ERASURES, Erasure(schema_version=1, user="ann"), {}, "time missing"),
    ],
)
def test_each_fault_has_its_reason(
    topic: str, message: Interaction | Feedback | Erasure, spoil: dict[str, object], reason: str
) -> None:
    spoilt = type(message).FromString(message.SerializeToString())
    for field, value in spoil.items():
        setattr(spoilt, field, value)
    with pytest.raises(Poison, match=reason):
        parse(entry(topic, spoilt.SerializeToString()), NOW)


def _set(change: Callable[[Interaction], object]) -> bytes:
    record = interaction("r")
    change(record)
    return record.SerializeToString()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (_set(lambda r: r.behaviour_logprobs.append(-1.0)), "2 reply_token_ids, but 3 behaviour_logprobs"),
        (_set(lambda r: r.behaviour_logprobs.__setitem__(0, float("-inf"))), "log-probability is not finite"),
        (_set(lambda r: setattr(r.sampling, "temperature", float("nan"))), "temperature is not finite"),
        (_set(lambda r: setattr(r.started_at, "seconds", 2**62)), "started_at is no time"),
        (_set(lambda r: setattr(r.started_at, "nanos", -1)), "started_at is no time"),
        (_set(lambda r: setattr(r.finished_at, "seconds", -5)), "finished_at is no time"),
        (_set(lambda r: setattr(r.started_at, "seconds", 253_402_300_799)), "started_at is 9999-12-31T23:59:59Z"),
        (_set(lambda r: setattr(r.finished_at, "seconds", 2000)), "finished_at is 1970-01-01T00:33:20Z, 0:16:40"),
        (b"\xff garbage", "no Interaction: "),
        (b"", "schema_version is 0"),
    ],
)
def test_numbers_that_cannot_be_are_named(value: bytes, reason: str) -> None:
    with pytest.raises(Poison, match=reason):
        parse(entry(INTERACTIONS, value), NOW)


def test_ids_of_another_model_are_named() -> None:
    value = _set(lambda record: record.prompt_token_ids.append(512))
    assert parse(entry(INTERACTIONS, value), NOW, 513)
    with pytest.raises(Poison, match="prompt_token_ids has 512; the base model has 512: another model's reply"):
        parse(entry(INTERACTIONS, value), NOW, 512)


def test_clocks_differ_a_little() -> None:
    assert parse(entry(ERASURES, erasure(time=Timestamp(seconds=1600)).SerializeToString()), NOW)


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[str, bytes]:
    """A record of each kind, some bytes of it changed, cut off or put in."""
    topic, value = draw(
        st.sampled_from(
            [
                (INTERACTIONS, interaction("r1").SerializeToString()),
                (FEEDBACK, vote(thumb=UP).SerializeToString()),
                (FEEDBACK, vote(rating=3).SerializeToString()),
                (ERASURES, erasure().SerializeToString()),
            ]
        )
    )
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(value)))
        value = value[:start] + draw(st.binary(max_size=4)) + value[start + draw(st.integers(0, 4)) :]
    return topic, value


@settings(max_examples=40)
@given(records=st.lists(spoilt(), min_size=1, max_size=20))
@example(records=[(FEEDBACK, b""), (ERASURES, b"\x08\x01\x12\x01a\x1a\x00")])
def test_whatever_comes_is_kept_or_has_a_reason(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, bytes]]
) -> None:
    store = Experience(Path(tmp_path_factory.mktemp("records")) / "experience.sqlite", keep=16)
    store._db.execute("PRAGMA synchronous = OFF")  # power does not fail here
    try:
        with store.transaction():
            for topic, value in records:
                try:
                    record = parse(entry(topic, value), NOW)
                except Poison:
                    continue
                store.add(record)
            store.retain()
        store.prompts(16)
        store.votes("quality", 16)
    finally:
        store.close()
