"""What is understood of files of instruction–output pairs, and what is said of those that are wrong."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_learner.instruct.annotate import Annotator
from plaudit_learner.instruct.check import prepare
from plaudit_learner.instruct.data import DataError, Example, FieldError, Source, parse, read

SHARED = Path(__file__).parents[3] / "shared" / "data"
PAIR = {"instruction": "Say hello.", "output": "Hello."}


def written(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def turn(role: str) -> dict[str, str]:
    return {"role": role, "content": f"of the {role}"}


def only(record: dict[str, Any]) -> Example:
    (example,) = parse(record, "here")
    return example


@pytest.mark.parametrize(
    "record",
    [
        PAIR,
        {"instruction": " Say hello.\n", "input": "", "output": "Hello. "},
        {"prompt": "Say hello.", "completion": "Hello."},
        {"question": "Say hello.", "std_answer": "Hello.", "class": "chat"},
        {"instruction": "Say hello.", "context": "", "response": "Hello.", "category": "chat"},
        {"instruction": "Say hello.", "instances": [{"input": "", "output": "Hello."}]},
        {"messages": [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Hello."}]},
        {"conversations": [{"from": "human", "value": "Say hello."}, {"from": "gpt", "value": "Hello."}]},
        {"instruction": "Say hello.", "output": "Hello.", "history": [], "system": None},
        {"instruction": "Say hello.", "output": "Hello.", "response": None, "messages": None},
    ],
)
def test_the_same_pair_under_many_names(record: dict[str, Any]) -> None:
    assert only(record) == Example("here", (("user", "Say hello."),), "Hello.", "Say hello.")


def test_input_and_history() -> None:
    record = {**PAIR, "input": "In French.", "history": [["Hi", "Yes?"]], "system": "Be kind."}
    example = only(record)
    assert example.turns == (
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "Yes?"),
        ("user", "Say hello.\nIn French."),
    )
    assert example.instruction == "Hi", "all turns of a conversation are on one side of the split"
    as_messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    assert only({**record, "history": as_messages}) == example
    assert only({**record, "history": json.dumps([["Hi", "Yes?"]])}) == example, "as a CSV cell holds it"


def test_each_instance_and_each_turn_of_the_assistant_is_an_example() -> None:
    instances = [{"input": "one", "output": "1"}, {"input": "two", "output": "2"}]
    examples = parse({"instruction": "Count.", "instances": instances}, "here")
    assert [(each.prompt, each.output, each.instruction) for each in examples] == [
        ("Count.\none", "1", "Count."),
        ("Count.\ntwo", "2", "Count."),
    ]
    said = ["a", "b", "c", "d"]
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    examples = parse({"messages": turns}, "here")
    assert [[text for _, text in each.turns] for each in examples] == [["a"], ["a", "b", "c"]]
    assert [each.output for each in examples] == ["b", "d"]


@pytest.mark.parametrize(
    ("record", "message", "empty"),
    [
        ([1], "the record is not a JSON object", False),
        ({"text": "a"}, "no instruction is there: one of the fields instruction, .* found text", False),
        ({"instruction": "a"}, "no output is there: one of output, .* found instruction", False),
        ({"instruction": "a", "output": 5}, "output is a int, not a text", False),
        ({"instruction": "a", "output": None}, "output is missing, not a text", False),
        ({"instruction": "a", "output": " \n"}, "output is empty", True),
        ({"instruction": "", "output": "a"}, "instruction is empty", True),
        ({"instruction": "a", "output": "\ud800"}, "output is not valid Unicode", False),
        ({"instruction": "a", "instances": []}, "instances is not a list of at least one", False),
        ({"instruction": "a", "instances": [3]}, r"instances\[0\] is not an object", False),
        ({"instruction": "a", "instances": [{"input": "b"}]}, r"no instances\[0\].output is there", False),
        ({**PAIR, "input": ["a"]}, "input is a list, not a text", False),
        ({**PAIR, "history": [["a"]]}, r"history\[0\] is not a pair", False),
        ({**PAIR, "history": "[["}, "is not JSON", False),
        ({**PAIR, "history": 3}, "history is not a list", False),
        ({**PAIR, "history": [turn("user")]}, "history has a turn of the user after one of the user", False),
        (
            {**PAIR, "system": "a", "history": [turn("system"), turn("user"), turn("assistant")]},
            "history has a turn of the system after one of the system",
            False,
        ),
        ({"messages": []}, "messages is not a list of at least one", False),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages has no turn of the assistant", False),
        ({"messages": [turn("assistant")]}, "messages has a turn of the assistant at its beginning", False),
        ({"messages": [turn("user"), turn("user"), turn("assistant")]}, "of the user after one of the user", False),
        (
            {"messages": [turn("user"), turn("assistant"), turn("system"), turn("user"), turn("assistant")]},
            "messages has a turn of the system after one of the assistant: a system message comes first",
            False,
        ),
        ({"messages": [{"role": "wizard", "content": "a"}]}, r"messages\[0\].role is 'wizard'", False),
        ({"conversations": [{"from": "gpt"}]}, r"conversations\[0\].value is missing", False),
    ],
)
def test_what_is_wrong_names_the_field(record: Any, message: str, empty: bool) -> None:
    with pytest.raises(FieldError, match=message) as raised:
        parse(record, "here")
    assert raised.value.empty is empty


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["instruction", "input", "output", "history", "messages", "role", "content", "instances"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(json_values)
def test_any_json_is_examples_or_a_field_error(record: object) -> None:
    try:
        examples = parse(record, "here")
    except FieldError:
        return
    assert examples
    for example in examples:
        assert example.output.strip() == example.output != ""
        assert example.turns[-1][0] == "user"
        assert all(content.strip() for _, content in example.turns)


def test_bad_records_are_named_by_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps(PAIR), "", "{broken", json.dumps({"instruction": "a", "output": 5}), json.dumps(PAIR), "7"]
    lines += [json.dumps({"instruction": "b", "output": ""}), "1" * 5000, "[" * 100_000]
    path.write_text("\n".join(lines))
    source = read([path])
    assert [example.where for example in source.examples] == [f"{path}, line 1", f"{path}, line 5"]
    assert source.bad == [
        f"{path}, line 3: is not JSON: Expecting property name enclosed in double quotes at column 2",
        f"{path}, line 4: output is a int, not a text",
        f"{path}, line 6: the record is not a JSON object with named fields",
        f"{path}, line 8: is not JSON that can be read: a number has too many digits",
        f"{path}, line 9: is not JSON that can be read: nested too deeply",
    ]
    assert source.empty == [f"{path}, line 7: output is empty"]
    assert source.records == 8


@pytest.mark.parametrize("style", ["chat", "tags"])
def test_a_conversation_that_the_assistant_opens_is_bad_in_either_annotation(
    tmp_path: Path, tiny_model: Path, style: str
) -> None:
    """Before its first turn stands none, and not its last: as ShareGPT has them, they end with the user."""
    opened = [{"from": ("gpt", "human")[i % 2], "value": text} for i, text in enumerate("abcd")]
    path = written(tmp_path / "pairs.jsonl", [PAIR, {"conversations": opened}])
    source = read([path])
    prepared, report = prepare(source, Annotator(tiny_model, style), held_out=0.0, max_length=100)
    (bad,) = source.bad
    assert bad.startswith(f"{path}, line 2: conversations has a turn of the assistant at its beginning: ")
    assert ([each.example.output for each in prepared.train], report.left_out) == (["Hello."], {"bad": 1})


def test_jsonl_of_every_dress(tmp_path: Path) -> None:
    text = json.dumps({"instruction": "one\u2028line", "output": "好"}, ensure_ascii=False)
    plain, packed, dos = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz", tmp_path / "c.json"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    dos.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    listed = tmp_path / "d.json"
    listed.write_text(json.dumps([PAIR, {**PAIR, "output": "Good day."}], indent=2))
    source = read([plain, packed, dos, listed])
    assert (source.bad, source.empty) == ([], [])
    assert {(example.prompt, example.output) for example in source.examples[:3]} == {("one\u2028line", "好")}
    assert [example.where for example in source.examples[3:]] == [f"{listed}, record 1", f"{listed}, record 2"]


def test_csv_cells_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(
        'instruction,input,output\nadd,1 2,3\nname none,,None\nwhen,,2026-01-01\n\n"two\nlines",,"a, ""b"""\ngap,,\n'
    )
    source = read([path])
    assert [(example.prompt, example.output) for example in source.examples] == [
        ("add\n1 2", "3"),
        ("name none", "None"),
        ("when", "2026-01-01"),
        ("two\nlines", 'a, "b"'),
    ]
    assert source.empty == [f"{path}, row 5: output is empty"]
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [example.output for example in read([packed]).examples] == [example.output for example in source.examples]
    tabs = tmp_path / "pairs.tsv"
    tabs.write_text("prompt\tresponse\na\tb\n")
    assert [(example.prompt, example.output) for example in read([tabs]).examples] == [("a", "b")]


def test_csv_rows_that_do_not_fit_the_first_row_are_bad(tmp_path: Path) -> None:
    """All of them have a cell too many: pandas would take the first one for the row's name."""
    path = tmp_path / "pairs.csv"
    path.write_text("instruction,output\nName colours,red, green\nName fruit,apple, pear\nSay hello,\n")
    source = read([path])
    problem = "the row has more cells than the first row names: a text that holds the separator has to stand in quotes"
    assert (source.examples, source.bad) == ([], [f"{path}, row 1: {problem}", f"{path}, row 2: {problem}"])
    assert source.empty == [f"{path}, row 3: output is empty"]
    path.write_text("instruction,input,output\nName colours,red\n")
    assert read([path]).bad == [f"{path}, row 1: output is missing, not a text"]


def test_csv_as_pandas_writes_it(tmp_path: Path) -> None:
    """Its index is a column without a name. A cell may be longer than `csv` takes by itself."""
    path = tmp_path / "pairs.csv"
    path.write_text(f",instruction,output\n0,Say hello.,Hello.\n1,Say a.,{'a' * 200_000}\n")
    source = read([path])
    assert [(each.prompt, each.output) for each in source.examples] == [
        ("Say hello.", "Hello."),
        ("Say a.", "a" * 200_000),
    ]


def test_parquet(tmp_path: Path) -> None:
    from datasets import Dataset

    path = tmp_path / "pairs.parquet"
    records = [{**PAIR, "history": [["Hi", "Yes?"]]}, {"instruction": "a", "output": None, "history": None}]
    Dataset.from_list(records).to_parquet(path)
    source = read([path])
    assert [example.turns for example in source.examples] == [
        (("user", "Hi"), ("assistant", "Yes?"), ("user", "Say hello."))
    ]
    assert source.bad == [f"{path}, row 2: output is missing, not a text"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pairs.txt", b"a", "give a .jsonl, .json, .csv, .tsv or .parquet file"),
        ("pairs.jsonl", None, "there is no such file"),
        ("pairs.jsonl", b"", "is empty"),
        ("pairs.jsonl", b'{"a": "b"}\n{"a": "\xff"}\n', "line 2: is not UTF-8"),
        ("pairs.json", b"[1, ", "neither JSON Lines nor a JSON list"),
        (
            "pairs.json",
            b"[" + b"1" * 5000 + b"]",
            "pairs.json: is not JSON that can be read: a number has too many digits",
        ),
        ("pairs.parquet", b"no parquet", "cannot be read"),
        ("pairs.csv", b"a,a\n1,2\n", "names a field twice"),
        ("pairs.csv", b"\n", "its first row names no field"),
        (
            "pairs.csv",
            b'instruction,output\na,b\nc,"d\ne,f\n',
            "line 3: the row that begins here is not CSV: .* doubled",
        ),
        ("pairs.tsv", b'instruction\toutput\n"Hi" you\tb\n', "line 2: the row that begins here is not CSV: .* doubled"),
        ("pairs.csv", b"instruction,output\na,b\nc,\xff\n", "line 3: is not UTF-8"),
        ("pairs.csv.gz", b"instruction,output\na,b\nc,\xff\n", "line 3: is not UTF-8"),
        ("pairs.jsonl.gz", b'{"a": "b"}\n{"a": "\xff"}\n', "line 2: is not UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    with pytest.raises(DataError, match=message):
        read([path])


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data sets are not on this machine")
@pytest.mark.parametrize(
    ("name", "count", "start"),
    [
        ("self-instruct-seed/seed_tasks.jsonl", 175, "Is there anything I can eat for a breakfast"),
        ("belle-zh/zh_seed_tasks.json", 175, "请以下面词语为主题写一首诗\n夏天"),
    ],
)
def test_real_data_sets(name: str, count: int, start: str) -> None:
    source = read([SHARED / name])
    assert (len(source.examples), source.bad, source.empty) == (count, [], [])
    assert source.examples[0].prompt.startswith(start)


def test_nothing_of_what_is_cached_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    source: Source = read([written(tmp_path / "pairs.jsonl", [PAIR])])
    assert len(source.examples) == 1
    assert list((tmp_path / "tmp").iterdir()) == []
