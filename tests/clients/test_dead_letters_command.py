"""`plaudit dead-letters`: the real command on a real log."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from plaudit import dead_letters
from plaudit.events import DEAD_LETTERS, FEEDBACK, INTERACTIONS, POLICIES, Record, from_beginning, open_log
from plaudit.v1.events_pb2 import Feedback
from tests.clients.conftest import Run

NEWER = Feedback(schema_version=2, response_id="r1", feedback_id="k", rating=3)


@pytest.fixture
def event_log(tmp_path: Path) -> str:
    """Three records, each of them put aside with a reason; the first of them twice."""
    url = f"sqlite:{tmp_path / 'events.sqlite'}"
    with open_log(url) as log:
        log.append([Record(FEEDBACK, "r1", NEWER.SerializeToString()), Record(INTERACTIONS, "r2", b"\xff\x00 bytes")])
        log.append([Record(INTERACTIONS, "r3", b"\xff" * (2 << 20))])
        entries = log.read(from_beginning(log, FEEDBACK, INTERACTIONS))
        reasons = ["schema_version is 2", "no Interaction: [broken]", "no Interaction"]
        letters = [dead_letters.write(entry, reason) for entry, reason in zip(entries, reasons, strict=True)]
        log.append([letters[0], *letters])
        log.append([Record(DEAD_LETTERS, "x", b"\xff not even a letter")])
    return url


async def test_lists_each_letter_once(run: Run, event_log: str) -> None:
    outcome = await run("dead-letters", "list", "--event-log", event_log)
    assert (outcome.code, outcome.err.count("\n")) == (0, 1), "what is no letter is named on stderr"
    header, *rows = outcome.out.splitlines()
    assert header.split() == ["letter", "topic", "partition", "offset", "key", "time", "replayed", "reason"]
    assert [row.split()[0] for row in rows] == ["feedback/0/0", "interactions/0/0", "interactions/0/1"]
    assert "no Interaction: [broken]" in rows[1]
    as_json = await run("dead-letters", "list", "--json", "--event-log", event_log)
    described = [json.loads(line) for line in as_json.out.splitlines()]
    assert described[2]["bytes"] == 2 << 20
    assert described[0] | {"time": ""} == {
        "letter": "feedback/0/0",
        "topic": FEEDBACK,
        "partition": 0,
        "offset": 0,
        "key": "r1",
        "bytes": len(NEWER.SerializeToString()),
        "reason": "schema_version is 2",
        "time": "",
        "replayed": None,
    }


async def test_no_letters_and_no_log(run: Run, tmp_path: Path) -> None:
    outcome = await run("dead-letters", "list", "--event-log", f"sqlite:{tmp_path / 'new.sqlite'}")
    assert (outcome.code, outcome.out) == (0, "there are no dead letters\n")
    outcome = await run("dead-letters", "list", "--data", str(tmp_path / "nowhere"))
    assert (outcome.code, "give --data" in outcome.err) == (1, True)
    outcome = await run("dead-letters", "list", "--event-log", "ftp://x")
    assert (outcome.code, "give sqlite:PATH or kafka://" in outcome.err) == (1, True)


async def test_without_a_command_it_lists_the_log_of_the_environment(
    run: Run, event_log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAUDIT_EVENT_LOG", event_log)
    outcome = await run("dead-letters")
    assert (outcome.code, outcome.out) == (0, (await run("dead-letters", "list")).out)
    assert "feedback/0/0" in outcome.out


async def test_a_terminal_obeys_no_letter(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'events.sqlite'}"
    with open_log(url) as log:
        log.append([Record(FEEDBACK, "\x1b[2Jkey", Feedback(response_id="\x9b2Jid").SerializeToString())])
        (entry,) = log.read(from_beginning(log, FEEDBACK))
        log.append([dead_letters.write(entry, "\x1b]0;title\x07reason")])
    for arguments in (("list",), ("show", "feedback/0/0")):
        outcome = await run("dead-letters", *arguments, "--event-log", url)
        assert " [2Jkey" in outcome.out
        assert " ]0;title reason" in outcome.out
        assert all(line.isprintable() for line in outcome.out.split("\n"))


async def test_shows_one_in_full_decoded_or_as_bytes(run: Run, event_log: str) -> None:
    outcome = await run("dead-letters", "show", "feedback/0/0", "--event-log", event_log)
    assert outcome.code == 0
    assert 'response_id: "r1"' in outcome.out
    assert "rating: 3" in outcome.out
    outcome = await run("dead-letters", "show", "plaudit.interactions/0/0", "--event-log", event_log)
    assert outcome.out.rstrip().endswith("ff 00 20 62 79 74 65 73")
    outcome = await run("dead-letters", "show", "feedback/0/0", "--json", "--event-log", event_log)
    shown = json.loads(outcome.out)
    assert base64.b64decode(shown["value"]) == NEWER.SerializeToString()
    assert shown["record"]["rating"] == 3
    outcome = await run("dead-letters", "show", "feedback/0/9", "--event-log", event_log)
    assert (outcome.code, outcome.err.splitlines()[-1]) == (1, "plaudit: there is no dead letter feedback/0/9")
    outcome = await run("dead-letters", "show", "nonsense", "--event-log", event_log)
    assert (outcome.code, "TOPIC/PARTITION/OFFSET" in outcome.err) == (2, True)


async def test_replays_byte_for_byte_and_says_so(run: Run, event_log: str) -> None:
    outcome = await run("dead-letters", "replay", "feedback/0/0", "--event-log", event_log)
    assert (outcome.code, outcome.out) == (0, "feedback/0/0 replayed\n")
    outcome = await run("dead-letters", "replay", "--all", "--event-log", event_log)
    assert outcome.out == "interactions/0/0 replayed\n", "not again what was replayed, unless it is named"
    assert outcome.code == 1
    assert "interactions/0/1 cannot be replayed: its value had 2,097,152 bytes, of which" in outcome.err
    with open_log(event_log) as log:
        entries = log.read(from_beginning(log, FEEDBACK, INTERACTIONS))
    values = [entry.value for entry in entries]
    assert values == [NEWER.SerializeToString()] * 2 + [b"\xff\x00 bytes", b"\xff" * (2 << 20), b"\xff\x00 bytes"]
    assert [entry.key for entry in entries] == ["r1", "r1", "r2", "r3", "r2"]
    listed = await run("dead-letters", "list", "--json", "--event-log", event_log)
    replayed = [json.loads(line)["replayed"] is not None for line in listed.out.splitlines()]
    assert replayed == [True, True, False]


@pytest.mark.parametrize("arguments", [(), ("feedback/0/0", "--all")])
async def test_replay_wants_letters_or_all(run: Run, event_log: str, arguments: tuple[str, ...]) -> None:
    outcome = await run("dead-letters", "replay", *arguments, "--event-log", event_log)
    assert (outcome.code, "name the letters to replay, or give --all" in outcome.err) == (2, True)


async def test_steps_are_not_replayed(run: Run, event_log: str) -> None:
    with open_log(event_log) as log:
        log.append([Record(POLICIES, "v1", b"\xff")])
        (entry,) = log.read(from_beginning(log, POLICIES))
        log.append([dead_letters.write(entry, "no PolicyEvent")])
    outcome = await run("dead-letters", "replay", "policies/0/0", "--event-log", event_log)
    assert (outcome.code, "steps in an order" in outcome.err) == (1, True)
