"""Files of prompts: every good line is a prompt, every bad one is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_cli.prompts import Prompt, PromptsError, read, split, user

# Text that UTF-8 can encode and that is more than white space.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


def attempt(file: Path) -> list[Prompt] | str:
    """The prompts, or what is wrong."""
    try:
        return read(file)
    except PromptsError as error:
        return str(error)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prompts")


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"prompt": "Hi"}, (("user", "Hi"),)),
        ({"question": "Why?"}, (("user", "Why?"),)),
        ({"instruction": "Add", "input": "1 2"}, (("user", "Add\n1 2"),)),
        ({"instruction": "Add", "input": "", "instances": [{"input": "3"}]}, (("user", "Add"),)),
        ({"instruction": "Add", "instances": [{"input": "1 2", "output": "3"}]}, (("user", "Add\n1 2"),)),
        ({"instruction": "Add", "instances": []}, (("user", "Add"),)),
        ({"instruction": "Add", "instances": [{"input": ""}]}, (("user", "Add"),)),
        (
            {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]},
            (("system", "Be kind."), ("user", "Hi")),
        ),
    ],
)
def test_good_records(tmp_path: Path, record: object, turns: tuple[tuple[str, str], ...]) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f"\n{json.dumps(record)}\r\n\n")
    (prompt,) = read(file)
    assert prompt.turns == turns
    assert prompt.text == turns[-1][1]
    assert prompt.messages[-1] == {"role": "user", "content": turns[-1][1]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ("{}", "none of messages, prompt, question and instruction"),
        ('{"prompt": ""}', "prompt is not a text, or an empty one"),
        ('{"prompt": 7}', "prompt is not a text"),
        ('{"prompt": "\\ud800"}', "not valid Unicode"),
        ('{"instruction": "x", "input": [1]}', "input is not a text"),
        ('{"messages": []}', "not a list of at least one"),
        ('{"messages": ["x"]}', r"messages\[0\].role is None"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "role is 'robot'"),
        ('{"messages": [{"role": "user"}]}', r"messages\[0\].content is not a text"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "does not end with the user"),
        ("[" * 100_000, "line 3"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "fine"}}\n\n{line}\n')
    with pytest.raises(PromptsError, match=message) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}, line 3: ")


def test_bad_files_are_named(tmp_path: Path) -> None:
    for name, content, message in [
        ("empty.txt", b"\n \n", "holds no prompt"),
        ("latin.txt", b"fine\nna\xefve\n", "line 2: is not UTF-8"),
        ("prompts.csv", b"x", r"give a \.txt or \.jsonl file"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PromptsError, match=message):
            read(tmp_path / name)
    with pytest.raises(PromptsError, match="cannot be read: No such file"):
        read(tmp_path / "missing.txt")


@given(st.lists(TEXTS, min_size=1))
def test_what_was_written_is_read(directory: Path, texts: list[str]) -> None:
    file = directory / "some.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text}, ensure_ascii=False) for text in texts), encoding="utf-8")
    assert read(file) == [user(text) for text in texts]


@given(st.binary())
def test_any_bytes_are_prompts_or_an_error(directory: Path, content: bytes) -> None:
    for name in ("any.txt", "any.jsonl"):
        file = directory / name
        file.write_bytes(content)
        match attempt(file):
            case str(message):
                assert name in message
            case prompts:
                assert prompts
                assert all(prompt.text.strip() for prompt in prompts)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["messages", "prompt", "instruction", "input", "instances", "role", "content"]), inner
            )
        ),
    )
)
def test_any_json_is_a_prompt_or_an_error(directory: Path, value: object) -> None:
    file = directory / "value.jsonl"
    file.write_text(json.dumps(value))
    match attempt(file):
        case str(message):
            assert "line 1" in message
        case [prompt]:
            assert prompt.turns[-1][0] == "user"
        case other:
            pytest.fail(f"one line is one prompt, not {other}")


@given(st.lists(TEXTS, unique=True), st.floats(0, 1), st.randoms())
def test_a_split_does_not_depend_on_company(texts: list[str], share: float, rng: object) -> None:
    prompts = [user(text) for text in texts]
    train, held_out = split(prompts, share)
    assert sorted(prompt.text for prompt in [*train, *held_out]) == sorted(texts)
    for prompt in prompts:
        assert split([prompt], share) == (([prompt], []) if prompt in train else ([], [prompt]))


def test_a_split_has_about_the_share() -> None:
    prompts = [user(f"prompt {number}") for number in range(1000)]
    train, held_out = split(prompts, 0.2)
    assert 150 < len(held_out) < 250
    assert split(prompts, 0) == (prompts, [])
    assert split(prompts, 1) == ([], prompts)
    assert len(train) + len(held_out) == 1000


def test_a_key_tells_turns_apart() -> None:
    assert user("a").key == Prompt((("user", "a"),)).key
    assert len({user("a").key, user("b").key, Prompt((("system", "a"), ("user", "a"))).key}) == 3
