"""Annotated as served, token by token, and in the article's tags; of both, the output's tokens alone are learnt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from plaudit.v1.chat_pb2 import Message, Role
from plaudit_learner.instruct.annotate import Annotator
from plaudit_learner.instruct.data import Example, FieldError, parse
from plaudit_learner.instruct.tune import IGNORED, labelled
from plaudit_server.prompts import ChatTemplate
from tests.tiny_model import IM_END, IM_START

ENGLISH = {"instruction": "Say hello.", "input": "In French.", "output": "Bonjour."}
CHINESE = {"instruction": "写一首诗", "input": "夏天", "output": "不但春妍夏亦佳", "history": [["你好", "您好"]]}
_ROLES = {"system": Role.ROLE_SYSTEM, "user": Role.ROLE_USER, "assistant": Role.ROLE_ASSISTANT}


def example(record: Mapping[str, object]) -> Example:
    (found,) = parse(record, "here")
    return found


@pytest.mark.parametrize("record", [ENGLISH, CHINESE, {**ENGLISH, "system": "Be kind."}])
def test_chat_prompts_are_those_that_a_server_makes(tiny_model: Path, record: Mapping[str, object]) -> None:
    found = example(record)
    messages = [Message(role=_ROLES[role], content=content) for role, content in found.turns]
    item = Annotator(tiny_model, "chat").encode(found)
    assert item.prompt == ChatTemplate(tiny_model).encode(messages)
    assert bytes(ordinary(item.reply[:-1], tiny_model)).decode() == found.output
    assert item.reply[-1] == IM_END


def test_tags(tiny_model: Path) -> None:
    annotator = Annotator(tiny_model, "tags")
    item = annotator.encode(example(CHINESE))
    assert annotator.tokenizer.decode(item.prompt) == (
        "<指令>你好</指令> <输出>您好</输出>\n<指令>写一首诗\n夏天</指令> <输出>"
    )
    assert annotator.tokenizer.decode(item.reply) == "不但春妍夏亦佳</输出><|im_end|>"
    assert annotator.decode(item.reply) == "不但春妍夏亦佳"


@pytest.mark.parametrize("style", ["chat", "tags"])
@pytest.mark.parametrize("record", [ENGLISH, CHINESE])
def test_labels_are_the_output_and_nothing_else(tiny_model: Path, style: str, record: Mapping[str, object]) -> None:
    annotator = Annotator(tiny_model, style)
    found = example(record)
    row = labelled(annotator.encode(found))
    learnt = [label for label in row["labels"] if label != IGNORED]
    end = "</输出><|im_end|>" if style == "tags" else "<|im_end|>"
    assert annotator.tokenizer.decode(learnt) == found.output + end
    assert row["input_ids"][-len(learnt) :] == learnt
    assert row["labels"] == [IGNORED] * (len(row["input_ids"]) - len(learnt)) + learnt


@pytest.mark.parametrize(
    ("style", "text", "token"),
    [
        ("chat", "a<|im_end|>b", "<|im_end|>"),
        ("tags", "a</输出>b", "</输出>"),
        ("tags", "<|endoftext|>", "<|endoftext|>"),
    ],
)
def test_texts_with_the_annotation_in_them_are_refused(tiny_model: Path, style: str, text: str, token: str) -> None:
    annotator = Annotator(tiny_model, style)
    for record in ({**ENGLISH, "input": text}, {**ENGLISH, "output": text}):
        with pytest.raises(FieldError) as raised:
            annotator.encode(example(record))
        assert token in str(raised.value)


def test_tags_may_be_spoken_of_in_a_chat(tiny_model: Path) -> None:
    assert Annotator(tiny_model, "chat").encode(example({**ENGLISH, "input": "<输出>"})).prompt[0] == IM_START


def test_a_model_without_a_template_can_have_tags_only(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    bare = shutil.copytree(tiny_model, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="bare has no chat template: give --annotate tags"):
        Annotator(bare, "chat")
    assert Annotator(bare, "tags").encode(example(ENGLISH)).reply[-1] == IM_END


def ordinary(ids: tuple[int, ...], model: Path) -> list[int]:
    """The bytes that the tiny model's tokens are."""
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(model).decode(list(ids))
    return list(text.encode())
