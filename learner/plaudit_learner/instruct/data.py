"""Files of instruction–output pairs, read through `datasets`: which fields are understood, and what is wrong with them.

A record is one of

    instruction, output, optional input and history    also under the names in `INSTRUCTION`, `INPUT`, `OUTPUT`;
                                                       history is [[said, replied], …] or a list of messages
    instruction, instances: [{input, output}, …]       self-instruct; each instance is an example
    messages: [{role, content}, …]                     each of the assistant's turns is an example
    conversations: [{from, value}, …]                  the same under ShareGPT's names

with an optional `system`. Texts are stripped. The input stands on a line of its own after the instruction.

JSON and CSV come from `datasets` as lines and are parsed here: what makes tables of CSV guesses types, and shifts rows
that have a cell too many.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INSTRUCTION = ("instruction", "prompt", "question", "query")
INPUT = ("input", "context")
OUTPUT = ("output", "response", "completion", "answer", "std_answer", "target")
MESSAGES = {"messages": ("role", "content"), "conversations": ("from", "value")}
_FOLLOWS = {"system": (None,), "user": (None, "system", "assistant"), "assistant": ("user",)}
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
PACKED = {".gz", ".bz2", ".xz"}
_JSON, _CSV, _PARQUET = {".jsonl", ".json"}, {".csv": ",", ".tsv": "\t"}, {".parquet"}

Turn = tuple[str, str]
"""(role, content)."""


class DataError(Exception):
    """A file cannot be used; the message names it and says what would be right."""


class FieldError(ValueError):
    """A field of a record is not what it should be."""

    def __init__(self, name: str, problem: str, *, empty: bool = False) -> None:
        super().__init__(f"{name} {problem}")
        self.empty = empty


@dataclass(frozen=True)
class Example:
    """What is to be said (`output`) after `turns`. Made here, read by check.py and annotate.py."""

    where: str
    """File and line, or row."""
    turns: tuple[Turn, ...]
    """Oldest first; the last one is the user's."""
    output: str
    instruction: str
    """What the split goes by: the first thing that the user asked, without its input."""

    @property
    def prompt(self) -> str:
        """The user's last words."""
        return self.turns[-1][1]


@dataclass
class Source:
    """What the files hold."""

    examples: list[Example] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    """Records that cannot be understood: where, which field, why."""
    empty: list[str] = field(default_factory=list)
    """Records whose instruction or output is empty, in the same words."""
    records: int = 0


def read(paths: Iterable[Path]) -> Source:
    """Every example of the files, in their order. Raises DataError if a file cannot be read at all."""
    source = Source()
    for path in paths:
        for where, record in _records(path):
            source.records += 1
            try:
                source.examples.extend(parse(parse_json(record) if isinstance(record, str) else record, where))
            except FieldError as error:
                (source.empty if error.empty else source.bad).append(f"{where}: {error}")
    return source


def parse_json(text: str) -> Any:
    """A JSON value. Raises FieldError if it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FieldError("is", f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise FieldError("is", f"not JSON that can be read: {_beyond(error)}") from error


def _beyond(error: Exception) -> str:
    """What json.loads raises beside JSONDecodeError, in words; Python converts no integer of over 4,300 digits."""
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def parse(record: object, where: str) -> list[Example]:
    """The examples that a record holds, at least one. Raises FieldError."""
    if not isinstance(record, Mapping):
        raise FieldError("the record", "is not a JSON object with named fields")
    if None in record:
        more = "has more cells than the first row names"
        raise FieldError("the row", f"{more}: a text that holds the separator has to stand in quotes")
    system = record.get("system")
    before: list[Turn] = [("system", _text("system", system))] if system else []
    for messages, (role, content) in MESSAGES.items():
        if record.get(messages) is not None:
            turns = [*before, *_turns(messages, record[messages], role, content)]
            _check_order(messages, turns)
            return list(_conversation(messages, turns, where))
    name = _name(record, INSTRUCTION)
    if name is None:
        known = ", ".join((*INSTRUCTION, *MESSAGES))
        raise FieldError("no instruction", f"is there: one of the fields {known} is needed, found {_names(record)}")
    instruction = _text(name, record[name])
    before += _history(record.get("history"))
    _check_order("history", [*before, ("user", instruction)])
    first = next((content for role, content in before if role == "user"), instruction)
    instances = record.get("instances")
    if instances is None or _name(record, OUTPUT) is not None:
        return [_pair("", record, before, instruction, first, where)]
    if not isinstance(instances, list) or not instances:
        raise FieldError("instances", "is not a list of at least one {input, output}")
    examples = []
    for index, instance in enumerate(instances):
        if not isinstance(instance, Mapping):
            raise FieldError(f"instances[{index}]", "is not an object with input and output")
        examples.append(_pair(f"instances[{index}].", instance, before, instruction, first, where))
    return examples


def _pair(
    prefix: str, holder: Mapping[str, Any], before: list[Turn], instruction: str, first: str, where: str
) -> Example:
    name = _name(holder, OUTPUT)
    if name is None:
        known = ", ".join(OUTPUT)
        raise FieldError(f"no {prefix}output", f"is there: one of {known} is needed, found {_names(holder)}")
    given = _name(holder, INPUT)
    extra = _text(prefix + given, holder[given], may_be_empty=True) if given else ""
    said = f"{instruction}\n{extra}" if extra else instruction
    return Example(where, (*before, ("user", said)), _text(prefix + name, holder[name]), first)


def _conversation(name: str, turns: list[Turn], where: str) -> Iterator[Example]:
    first = next((content for role, content in turns if role == "user"), "")
    found = False
    for index, (role, content) in enumerate(turns):
        if role == "assistant":
            found = True
            yield Example(where, tuple(turns[:index]), content, first)
    if not found:
        raise FieldError(name, "has no turn of the assistant: there is nothing to learn")


def _check_order(name: str, turns: list[Turn]) -> None:
    """As servers take messages: a system message is the first; then user and assistant in turn, the user first."""
    before = None
    for role, _ in turns:
        if before not in _FOLLOWS[role]:
            where = f"after one of the {before}" if before else "at its beginning"
            rule = "a system message comes first, then user and assistant take turns, the user first"
            raise FieldError(name, f"has a turn of the {role} {where}: {rule}")
        before = role


def _turns(name: str, messages: object, role_name: str, content_name: str) -> Iterator[Turn]:
    if not isinstance(messages, list) or not messages:
        raise FieldError(name, "is not a list of at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise FieldError(f"{name}[{index}]", f"is not an object with {role_name} and {content_name}")
        role = message.get(role_name)
        if not isinstance(role, str) or role not in ROLES:
            raise FieldError(f"{name}[{index}].{role_name}", f"is {role!r}, not one of {', '.join(ROLES)}")
        yield ROLES[role], _text(f"{name}[{index}].{content_name}", message.get(content_name))


def _history(history: object) -> list[Turn]:
    if isinstance(history, str) and history.strip():
        history = parse_json(history)  # a CSV cell
    if not history:
        return []
    if not isinstance(history, list):
        raise FieldError("history", "is not a list of [said, replied] pairs")
    if isinstance(history[0], Mapping):
        return list(_turns("history", history, "role", "content"))
    turns: list[Turn] = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise FieldError(f"history[{index}]", "is not a pair [said, replied]")
        turns += [
            ("user", _text(f"history[{index}][0]", pair[0])),
            ("assistant", _text(f"history[{index}][1]", pair[1])),
        ]
    return turns


def _text(name: str, value: object, *, may_be_empty: bool = False) -> str:
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        raise FieldError(name, f"is {'missing' if value is None else f'a {type(value).__name__}'}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no encoding can
        raise FieldError(name, "is not valid Unicode text") from error
    text = value.strip()
    if not text and not may_be_empty:
        raise FieldError(name, "is empty", empty=True)
    return text


def _name(record: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of these fields that says something; failing that, the first that is there at all."""
    there = [name for name in names if name in record]
    return next((name for name in there if record[name] is not None), there[0] if there else None)


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in record if name) or "none"


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, record) for each; of JSON Lines the record is the line's text, parsed where errors are caught."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in PACKED
    suffix = suffixes[-2 if packed else -1] if len(suffixes) > packed else ""
    if suffix not in _JSON | _CSV.keys() | _PARQUET:
        raise DataError(f"{path}: give a .jsonl, .json, .csv, .tsv or .parquet file")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty")
    # The rows are read into memory at once; what `datasets` caches of them is not kept.
    with tempfile.TemporaryDirectory(prefix="plaudit-instruct-") as cache:
        if suffix in _PARQUET:
            rows = _load(path, cache, "parquet")
            yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))
        elif suffix in _CSV:
            yield from _csv(path, _lines(path, cache), _CSV[suffix])
        else:
            yield from _json(path, _lines(path, cache))


def _json(path: Path, lines: list[str]) -> Iterator[tuple[str, Any]]:
    if next((line for line in lines if line.strip()), "").lstrip().startswith("["):
        try:
            records = json.loads("".join(lines))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: is neither JSON Lines nor a JSON list: {error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: is not JSON that can be read: {_beyond(error)}") from error
        yield from ((f"{path}, record {number}", record) for number, record in enumerate(records, start=1))
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def _csv(path: Path, lines: list[str], separator: str) -> Iterator[tuple[str, Any]]:
    """Every cell is a text: "None", "7" and "2026-01-01", too. Those beyond the first row's names are under None."""
    csv.field_size_limit(sys.maxsize)  # how long an example may be is told in tokens
    reader = csv.DictReader(lines, delimiter=separator, strict=True)
    try:
        names = [name for name in reader.fieldnames or () if name]  # pandas leaves its column of row numbers nameless
        if not names:
            raise DataError(f"{path}: its first row names no field")
        if len(set(names)) < len(names):
            raise DataError(f"{path}: its first row names a field twice: {', '.join(names)}")
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(reader, start=1))
    except csv.Error as error:
        begins = f"{path}, line {reader.line_num + 1}: the row that begins here"  # it counts the lines of whole rows
        right = "a text with a quote in it stands in quotes, and its own are doubled"
        raise DataError(f"{begins} is not CSV: {error}; {right}") from error


def _load(path: Path, cache: str, kind: str, **options: Any) -> list[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # it logs what it also raises
    try:
        table = datasets.load_dataset(kind, data_files=[str(path)], split="train", cache_dir=cache, **options)
        return list(table)
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, UnicodeDecodeError):
            raise DataError(f"{_not_utf8(path)}: is not UTF-8") from error
        raise DataError(f"{path}: cannot be read: {' '.join(str(cause).split())}") from error


def _lines(path: Path, cache: str) -> list[str]:
    """With their ends, which are "\\n" whatever the file has."""
    return [row["text"] for row in _load(path, cache, "text", encoding="utf-8-sig", keep_linebreaks=True)]


def _not_utf8(path: Path) -> str:
    import fsspec

    with fsspec.open(str(path), "rb", compression="infer") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"{path}, line {number}"
    return str(path)
