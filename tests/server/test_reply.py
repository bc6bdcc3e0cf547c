"""Text of a reply, token by token: whole characters only, stop strings held back and cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from plaudit_server.engine import FinishReason, Generation, PolicyVersion, Sampling
from plaudit_server.reply import Reply, ReplyMaker
from tests.tiny_model import END_OF_TEXT, IM_END, IM_START


@pytest.fixture(scope="module")
def maker(tiny_model: Path) -> ReplyMaker:
    return ReplyMaker(tiny_model, max_context=100)


def begin(maker: ReplyMaker, *stop: str, max_tokens: int = 50) -> Reply:
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=max_tokens, seed=None, stop=stop)
    return maker.reply(Generation("test", (IM_START,), sampling, PolicyVersion("v0", None)))


def feed(maker: ReplyMaker, reply: Reply, text: str) -> list[str]:
    """The pieces of text that come out for each byte of `text`."""
    return [reply.add([token_id], [-1.0]).text for token_id in maker.tokenizer.encode(text).ids]


def test_a_character_comes_when_its_last_byte_does(maker: ReplyMaker) -> None:
    assert feed(maker, begin(maker), "aé语🙂b") == ["a", "", "é", "", "", "语", "", "", "", "🙂", "b"]


@pytest.mark.parametrize("ending", ["end of sequence", "max_tokens"])
def test_the_end_flushes_a_broken_character(maker: ReplyMaker, ending: str) -> None:
    token_ids = maker.tokenizer.encode("a语").ids[:-1]
    if ending == "max_tokens":
        reply = begin(maker, max_tokens=len(token_ids))
    else:
        reply = begin(maker)
        token_ids.append(IM_END)
    tokens = reply.add(token_ids, [-1.0] * len(token_ids))
    assert tokens.text == maker.tokenizer.decode(token_ids) == "a\ufffd"
    assert tokens.token_ids == tuple(token_ids)
    assert tokens.finish_reason is (FinishReason.LENGTH if ending == "max_tokens" else FinishReason.STOP)


def test_special_tokens_have_no_text_and_either_end_of_sequence_token_ends(maker: ReplyMaker) -> None:
    reply = begin(maker)
    assert reply.add([IM_START], [-1.0]).text == ""
    assert feed(maker, reply, "ok") == ["o", "k"]
    assert reply.add([END_OF_TEXT], [-1.0]).finish_reason is FinishReason.STOP


def test_what_may_become_a_stop_string_is_held_back(maker: ReplyMaker) -> None:
    reply = begin(maker, "aab", "END")
    assert feed(maker, reply, "xaac") == ["x", "", "", "aac"]
    assert feed(maker, reply, "EN-") == ["", "", "EN-"]
    assert feed(maker, reply, "aaab") == ["", "", "a", ""]
    assert reply.finish_reason is FinishReason.STOP


def test_the_stop_string_that_is_complete_first_wins(maker: ReplyMaker) -> None:
    reply = begin(maker, "bcd", "c")
    assert "".join(feed(maker, reply, "abc")) == "ab"
    assert reply.finish_reason is FinishReason.STOP


def test_a_stop_string_met_at_max_tokens_is_a_stop(maker: ReplyMaker) -> None:
    reply = begin(maker, "bc", max_tokens=3)
    assert "".join(feed(maker, reply, "abc")) == "a"
    assert reply.finish_reason is FinishReason.STOP


def test_tokens_after_the_end_are_dropped(maker: ReplyMaker) -> None:
    token_ids = [*maker.tokenizer.encode("ab").ids, IM_END, *maker.tokenizer.encode("cd").ids]
    tokens = begin(maker).add(token_ids, [-1.0, -2.0, -3.0, -4.0, -5.0])
    assert tokens.text == "ab"
    assert tokens.token_ids == tuple(token_ids[:3])
    assert tokens.logprobs == (-1.0, -2.0, -3.0)
