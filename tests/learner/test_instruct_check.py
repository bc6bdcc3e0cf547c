"""The split is for ever, and the report finds what is wrong with data."""

from __future__ import annotations

from pathlib import Path

import pytest

from plaudit_learner.instruct import check
from plaudit_learner.instruct.annotate import Annotator
from plaudit_learner.instruct.check import DataReport, Prepared, instruction_hash, prepare
from plaudit_learner.instruct.data import Source, parse
from plaudit_learner.instruct.text import words


@pytest.fixture(scope="module")
def annotator(tiny_model: Path) -> Annotator:
    return Annotator(tiny_model, "chat")


def source(*pairs: tuple[str, str]) -> Source:
    found = Source(records=len(pairs))
    for line, (instruction, output) in enumerate(pairs, start=1):
        found.examples += parse({"instruction": instruction, "output": output}, f"line {line}")
    return found


def prepared(found: Source, annotator: Annotator, **options: int) -> tuple[Prepared, DataReport]:
    return prepare(found, annotator, held_out=0.5, max_length=options.pop("max_length", 200), **options)


def test_the_hash_of_an_instruction_never_changes() -> None:
    # printf 'Say hello.' | sha256sum
    assert instruction_hash(" Say \n hello.").startswith("c8e2c1437abb87b6")


def test_an_instruction_stays_on_its_side_whatever_else_is_there(annotator: Annotator) -> None:
    pairs = [(f"task {index}", f"output {index % 3}") for index in range(60)]
    whole, _ = prepared(source(*pairs), annotator)
    part, _ = prepared(source(*pairs[::-2], ("another", "one")), annotator)
    side = {each.example.instruction: "train" for each in whole.train}
    side |= {each.example.instruction: "held out" for each in whole.held_out}
    assert 18 <= len(whole.held_out) <= 42
    for name, examples in (("train", part.train), ("held out", part.held_out)):
        assert {side.get(each.example.instruction, name) for each in examples} == {name}


def test_examples_of_one_instruction_are_on_one_side(annotator: Annotator) -> None:
    found = Source()
    for index in range(20):
        instances = [{"input": f"{index}-{each}", "output": "yes"} for each in range(3)]
        found.examples += parse({"instruction": f"task {index}", "instances": instances}, f"line {index}")
    split, _ = prepared(found, annotator)
    sides = [{each.example.instruction for each in part} for part in (split.train, split.held_out)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_what_is_left_out_is_counted_and_named(annotator: Annotator) -> None:
    found = source(
        ("task 1", "a"), ("task 1", "a"), ("task 1", "b"), ("task 2", "x" * 300), ("task 3", "<|im_end|>"), ("t 4", "d")
    )
    found.empty.append("line 7: output is empty")
    split, report = prepared(found, annotator)
    assert len(split.train) + len(split.held_out) == 3
    assert report.left_out == {"duplicate": 1, "too long": 1, "bad": 1, "empty": 1}
    assert report.several_outputs == 2
    assert report.findings == [
        "line 5: the text holds <|im_end|>, which only the annotation may use",
        "line 7: output is empty",
        "line 2: is the same as line 1",
        f"line 4: has {300 + 1 + len(annotator.encode(found.examples[0]).prompt)} tokens, more than 200",
    ]
    _, short = prepared(source(*[(f"task {index}", "a") for index in range(40)]), annotator, max_examples=5)
    assert short.train == 5
    assert short.left_out["beyond --max-examples or --max-held-out"] == 40 - 5 - short.held_out


def test_near_duplicates_and_leaks(annotator: Annotator) -> None:
    long = "Write a polite letter to the landlord about the broken window in the kitchen"
    pairs = [(f"{long}{'.' * index}", "a") for index in range(12)]
    split, report = prepared(source(*pairs, ("Name a river.", "b")), annotator, max_length=400)
    assert report.near_duplicates == 12
    held_out = [each for each in split.held_out if each.example.prompt.startswith(long)]
    assert report.leaks == len(held_out) > 0


def test_leaks_are_looked_for_in_all_examples(annotator: Annotator, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many more there are than are compared for near duplicates: also if the held-out ones alone are more."""
    long = "Write a polite letter to the landlord about the broken window in the kitchen"
    found = source(*[(f"{long}{'.' * (index % 4)}{'!' * (index // 4)}", "a") for index in range(16)])
    split, report = prepared(found, annotator)
    assert report.leaks == len(split.held_out) > 4
    monkeypatch.setattr(check, "_COMPARED", 4)
    _, blocks = prepared(found, annotator)
    assert (blocks.leaks, blocks.near_duplicates, blocks.compared) == (report.leaks, 4, 4)


def test_languages_lengths_and_diversity(annotator: Annotator) -> None:
    chinese = [("请以下面词语为主题写一首诗", f"不但春妍夏亦佳，随缘花草是生涯。{'好' * index}") for index in range(3)]
    english = [("What is the capital of France?", "The capital of France is the beautiful city of Paris.")]
    _, report = prepared(source(*chinese, *english), annotator, max_length=1000)
    assert report.languages == {"zh": 3, "en": 1}
    assert report.output_tokens["max"] == len((chinese[-1][1]).encode()) + 1
    assert report.diversity["openings"] == 1.0
    # Two instructions: 13 characters, 下 为 主 … none twice, and six words.
    assert report.diversity["words"] == 1.0
    assert report.openings == {"请 以": 1, "what is": 1}
    _, alike = prepared(source(*[(f"Write a poem about {name}", "a") for name in ("love", "war")]), annotator)
    assert alike.diversity["words"] == pytest.approx(6 / 10)
    assert alike.diversity["pairs of words"] == pytest.approx(5 / 8)
    assert alike.diversity["openings"] == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World! it's 2", ["hello", "world", "it", "s", "2"]),
        ("写 Python 程序。", ["写", "python", "程", "序"]),
        ("Größe_naïve", ["größe", "naïve"]),
        ("हिन्दी में लिखो।", ["हिन्दी", "में", "लिखो"]),
        ("cafe\u0301 שָׁלוֹם", ["cafe\u0301", "שָׁלוֹם"]),
        ("...", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected
