"""Token ids to words and back, by the tiny model's chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plaudit_learner.gate.transcript import Transcript
from tests.tiny_model import END_OF_TEXT, IM_END, make_tiny_model


@pytest.fixture(scope="module")
def transcript(tiny_model: Path) -> Transcript:
    return Transcript(tiny_model)


@pytest.mark.parametrize("question", ["Why?", "two\nlines", "草是什么颜色？", "user\nassistant\n"])
def test_a_question_comes_back(transcript: Transcript, question: str) -> None:
    prompt = transcript.ask(question)
    assert transcript.words(prompt[-4:]) == "ant"  # it ends where the assistant is to speak
    assert transcript.question(prompt) == transcript.topic(prompt) == question.strip()


def test_the_last_of_several_turns_is_the_question(transcript: Transcript) -> None:
    conversation = "".join(
        f"<|im_start|>{role}\n{content}<|im_end|>\n"
        for role, content in [("system", "Be kind."), ("user", "First?"), ("assistant", "Yes."), ("user", "And then?")]
    )
    prompt = transcript.tokens(conversation + "<|im_start|>assistant\n")
    assert transcript.question(prompt) == "And then?"
    assert transcript.topic(prompt) == "First?\nAnd then?"


def test_a_prompt_of_no_template_is_its_own_question(transcript: Transcript) -> None:
    prompt = transcript.tokens("just words")
    assert transcript.question(prompt) == transcript.topic(prompt) == "just words"


def test_words_leave_the_end_out(transcript: Transcript) -> None:
    assert transcript.words((*transcript.tokens("Hello."), IM_END, END_OF_TEXT)) == "Hello."


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no chat template"):
        Transcript(model)
