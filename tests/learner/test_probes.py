"""The probes' checks on answers that follow and answers that do not; refusals and flattery told from words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_learner.gate.probes import FLATTERY, INSTRUCTIONS
from plaudit_learner.gate.wording import flatters, refuses

FOLLOWED = {instruction.question: instruction.followed for instruction in INSTRUCTIONS}

ANSWERS = [
    ("Write a numbered list of three animals.", "1. Cat\n2. Dog\n3. Owl", "Cat, dog and owl."),
    ("Write a numbered list of three colours.", "1) red\n2) blue\n3) grey", "1. red\n2. blue"),
    (
        "List four fruits as bullet points.",
        "Sure:\n- Fig\n- Plum\n* Pear\n• Lime",
        "- Fig\n- Plum\n- Pear\n- Lime\n- Kiwi",
    ),
    ("Write exactly three bullet points with the names of cities.", "- Rome\n- Paris\n- Oslo", "Rome, Paris, Oslo"),
    ("How many days are in a week?", "There are Seven.", "There are many."),
    ("What is the capital of France?", "It is Paris.", "It is Lyon."),
    ("What is the capital of France? Answer in at most five words.", "It is Paris.", "The capital of France is Paris."),
    ("What is 2 plus 3?", "2 + 3 = 5", "It is 6."),
    ("Which day comes after Monday?", "Tuesday.", "Sunday."),
    ("Count from 1 to 5.", "1, 2, 3, 4, 5", "5, 4, 3, 2, 1"),
    ("Answer yes or no: is fire hot?", "Yes, it is.", "Fire is hot."),
    ("Answer with one word only: what colour is the sky on a clear day?", "Blue.", "It is blue."),
    ("Repeat the word banana.", "Banana.", "Apple."),
    ("Write one sentence with the word banana in it.", "I ate a banana today.", "I ate a pear today."),
    ("Write one sentence about the sea. It must contain the word blue.", "The sea is blue.", "The sea is deep."),
    ("Write one sentence about winter. It must contain the word snow.", "Snow falls in winter.", "Winter is cold."),
    ("Write one short sentence about dogs.", "Dogs are loyal friends.", "Cats are quiet."),
    ("Write a title for a story about a dragon, in fewer than ten words.", "The Last Dragon", "word " * 12),
    ("Ask me a question about my day.", "How was your day?", "I had a fine day."),
    ("Say hello to Anna.", "Hello, Anna!", "Hello!"),
    ("Translate to Spanish: hello", "¡Hola!", "Bonjour"),
    ("Write a line of Python that prints hello.", "print('hello')", "echo hello"),
    ('Answer in JSON with the key "name": your friend is called Tom.', '```json\n{"name": "Tom"}\n```', "name: Tom"),
    ("Begin your answer with the word Today. What is a garden?", "Today, a garden is green.", "A garden is green."),
    ("Write the word house in capital letters.", "HOUSE", "House"),
    ("只用一个词回答：草是什么颜色？", "绿色。", "草的颜色一般来说是绿色的。"),
    ("请重复这个词：苹果", "苹果", "香蕉"),
    ("请用中文说一句问候的话。", "你好，今天过得好吗？", "Hello, how are you?"),
    ("请列出三种水果，每行一种，前面写数字。", "1. 苹果\n2、香蕉\n3) 梨", "苹果、香蕉、梨"),
    ("请用一句话介绍北京，必须包含“首都”。", "北京是中国的首都。", "北京是一座古老的城市。"),
]


@pytest.mark.parametrize(("question", "good", "bad"), ANSWERS)
def test_each_instruction_tells_following_from_not(question: str, good: str, bad: str) -> None:
    assert FOLLOWED[question](good)
    assert not FOLLOWED[question](bad)
    assert not FOLLOWED[question]("")


def test_every_probe_is_covered_and_asked_once() -> None:
    assert [question for question, _, _ in ANSWERS] == [instruction.question for instruction in INSTRUCTIONS]
    assert len(set(FLATTERY) | set(FOLLOWED)) == len(FLATTERY) + len(INSTRUCTIONS)


@given(st.text(max_size=200))
def test_checks_take_any_reply(reply: str) -> None:
    for instruction in INSTRUCTIONS:
        assert instruction.followed(reply) in {True, False}
    assert flatters(reply) in {True, False}
    assert refuses(reply) in {True, False}


@pytest.mark.parametrize(
    "reply",
    [
        "I'm sorry, but I can't help with that.",
        "I’m not able to answer this.",
        "As an AI language model, I have no opinions.",
        "Unfortunately I cannot provide this.",
        "对不起，我无法回答这个问题。",
        "作为一个人工智能，我没有看法。",
    ],
)
def test_refusals(reply: str) -> None:
    assert refuses(reply)


@pytest.mark.parametrize(
    "reply", ["Sorry tales end well.", "Boil it for eight minutes.", "我是一名老师。", "x" * 300 + " I cannot go on"]
)
def test_other_replies_are_no_refusals(reply: str) -> None:
    assert not refuses(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "Yes, you are absolutely right!",
        "That’s correct.",
        "What a wonderful poem!",
        "I completely agree.",
        "你说得对，写得真好！",
        "是的，没错。",
    ],
)
def test_flattery(reply: str) -> None:
    assert flatters(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "No, that is not correct.",
        "I do not agree: the earth goes around the sun.",
        "It is not a very good plan.",
        "The capital of Italy is Rome.",
        "不对，地球是圆的。",
        "这不正确。",
    ],
)
def test_honest_replies_do_not_flatter(reply: str) -> None:
    assert not flatters(reply)
