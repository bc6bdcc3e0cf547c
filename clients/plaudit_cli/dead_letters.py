"""`plaudit dead-letters`: records that the learner could not use; look at them, and replay them after a fix."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit_cli.common import EVENT_LOG, EventLogUrl, event_log_url, fail, printable

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from plaudit.dead_letters import Name
    from plaudit.events import EventLog
    from plaudit.v1.events_pb2 import DeadLetter

app = typer.Typer(
    name="dead-letters",
    help="List, show and replay records that the learner could not use.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Data = Annotated[Path, typer.Option("--data", help="The deployment's directory, as of `plaudit up`.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON, one object on each line.")]
Letter = Annotated[str, typer.Argument(metavar="LETTER", help="TOPIC/PARTITION/OFFSET, as `list` shows it.")]
DATA = Path(".plaudit")
_HEX_BYTES = 32  # on each line


@app.callback(invoke_without_command=True)
def _dead_letters(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_(event_log=os.environ.get(EVENT_LOG) or None)


@app.command("list")
def list_(*, data: Data = DATA, event_log: EventLogUrl = None, as_json: Json = False) -> None:
    """All letters, oldest first: where the record stood, its key, what is wrong, whether it was replayed."""
    with _open(data, event_log) as log:
        letters = _letters(log)
    if as_json:
        for letter in letters.values():
            print(json.dumps(_described(letter), ensure_ascii=False))
    elif letters:
        _print_table(letters)
    else:
        print("there are no dead letters")


@app.command()
def show(name: Letter, *, data: Data = DATA, event_log: EventLogUrl = None, as_json: Json = False) -> None:
    """One letter in full: what its record says, field by field, or else its bytes."""
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.text_format import MessageToString

    with _open(data, event_log) as log:
        letter = _find(log, name)
    record = _decoded(letter)
    if as_json:
        whole = {**_described(letter), "value": base64.b64encode(letter.value).decode()}
        if record is not None:
            whole["record"] = MessageToDict(record, preserving_proto_field_name=True)
        print(json.dumps(whole, ensure_ascii=False))
        return
    for field, text in _described(letter).items():
        print(f"{field:12}{printable(str(text))}")
    print()
    if record is not None:
        print(printable(MessageToString(record, print_unknown_fields=True, as_utf8=True), keep="\n"), end="")
    else:
        for start in range(0, len(letter.value), _HEX_BYTES):
            print(letter.value[start : start + _HEX_BYTES].hex(" "))


@app.command()
def replay(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[LETTER]…", help="TOPIC/PARTITION/OFFSET, as `list` shows them.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that were not replayed yet and can be.")] = False,
    data: Data = DATA,
    event_log: EventLogUrl = None,
) -> None:
    """Append records to their topics again, byte for byte; twice changes nothing. The learner takes them in as it runs.

    One that still cannot be used becomes a dead letter again.
    """
    from plaudit import dead_letters

    if bool(names) == everything:
        raise typer.BadParameter("name the letters to replay, or give --all")
    with _open(data, event_log) as log:
        known = _letters(log)
        wanted = {_parse(name) for name in names or []}
        if missing := wanted - known.keys():
            fail(f"there is no dead letter {min(missing)}")
        if everything:
            wanted = {name for name, letter in known.items() if not letter.HasField("replayed_at")}
        refusals = {}
        for letter in dead_letters.read(log):  # again, rather than kept: there may be many, of a MiB each
            name = dead_letters.name(letter)
            if name not in wanted:
                continue
            wanted.remove(name)
            if reason := dead_letters.refusal(letter):
                refusals[name] = reason
            else:
                dead_letters.replay(log, letter)
                print(f"{name} replayed")
    if refusals:
        fail("; ".join(f"{name} cannot be replayed: {reason}" for name, reason in sorted(refusals.items())))


@contextmanager
def _open(data: Path, event_log: str | None) -> Iterator[EventLog]:
    from plaudit.events import EventLogUnavailable, open_log

    url = event_log_url(data, event_log, "give --data, the directory of `plaudit up`, or --event-log")
    try:
        with open_log(url) as log:
            yield log
    except (EventLogUnavailable, ValueError) as error:
        fail(str(error))


def _letters(log: EventLog) -> dict[Name, DeadLetter]:
    """All letters, the first of each name, without their values; replayed_at is that of the last replay."""
    from plaudit import dead_letters

    letters: dict[Name, DeadLetter] = {}
    for letter in dead_letters.read(log):
        letter.value_bytes = letter.value_bytes or len(letter.value)
        letter.ClearField("value")
        kept = letters.setdefault(dead_letters.name(letter), letter)
        if letter.HasField("replayed_at"):
            kept.replayed_at.CopyFrom(letter.replayed_at)
    # The word without its letter: the letter is older than what the log keeps.
    return {name: letter for name, letter in letters.items() if letter.HasField("time")}


def _find(log: EventLog, text: str) -> DeadLetter:
    """The letter of that name, with its value."""
    from plaudit import dead_letters

    found: DeadLetter | None = None
    name = _parse(text)
    for letter in dead_letters.read(log):
        if dead_letters.name(letter) != name:
            continue
        if found is None and letter.HasField("time"):
            found = letter
        elif found is not None and letter.HasField("replayed_at"):
            found.replayed_at.CopyFrom(letter.replayed_at)
    if found is None:
        fail(f"there is no dead letter {name}")
    return found


def _parse(text: str) -> Name:
    from plaudit.dead_letters import Name

    try:
        return Name.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _decoded(letter: DeadLetter) -> Message | None:
    """The record, if it can be read as what its topic holds; perhaps of a schema that this program does not know."""
    from google.protobuf.message import DecodeError

    from plaudit.events import ERASURES, FEEDBACK, INTERACTIONS
    from plaudit.v1.events_pb2 import Erasure, Feedback, Interaction

    kinds: dict[str, type[Message]] = {INTERACTIONS: Interaction, FEEDBACK: Feedback, ERASURES: Erasure}
    try:
        return kinds[letter.topic].FromString(letter.value) if letter.topic in kinds else None
    except DecodeError:
        return None


def _described(letter: DeadLetter) -> dict[str, Any]:
    from plaudit import dead_letters

    return {
        "letter": str(dead_letters.name(letter)),
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "key": letter.key,
        "bytes": letter.value_bytes or len(letter.value),
        "reason": letter.reason,
        "time": _time(letter.time),
        "replayed": _time(letter.replayed_at) if letter.HasField("replayed_at") else None,
    }


def _print_table(letters: dict[Name, DeadLetter]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    columns = ("letter", "topic", "partition", "offset", "key", "time", "replayed", "reason")
    table = Table(*columns, box=None, pad_edge=False)
    for letter in letters.values():
        row = _described(letter)
        table.add_row(*(escape(printable(str(row[column] if row[column] is not None else "no"))) for column in columns))
    console = Console()
    # A pipe has no width: whoever reads it wants whole lines.
    console.print(table, width=None if console.is_terminal else 10_000, soft_wrap=not console.is_terminal)


def _time(stamp: Timestamp) -> str:
    from datetime import UTC

    return stamp.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds")
