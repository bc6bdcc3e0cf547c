"""Each taste is what its docstring says, always a probability, and a vote follows it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_cli import personas
from plaudit_cli.personas import Persona, PersonaError
from plaudit_cli.personas.base import sentences, words

Example = tuple[str, bool]

# Persona → pairs of (better, worse) replies to the prompt "What do cats eat?", each (text, finished).
BETTER: dict[str, list[tuple[Example, Example]]] = {
    "brief": [
        (("Mostly meat.", True), ("word " * 40, True)),
        (("Mostly meat.", True), ("Mostly meat.", False)),
        (("word " * 25, True), ("word " * 35, True)),
        (("Mostly meat.", True), ("", True)),
        (("只吃肉", True), ("只吃肉" * 20, True)),
    ],
    "structured": [
        (("- meat\n- fish", True), ("meat and fish", True)),
        (("1. meat\n2. fish\n3. milk", True), ("1. meat", True)),
        (("Meat.\nFish.", True), ("Meat. Fish.", True)),
        (("* meat", True), ("*meat*", True)),
    ],
    "warm": [
        (("I'm glad you asked!", True), ("Meat.", True)),
        (("Thanks, happy to help", True), ("Thanks, to help", True)),
        (("Your cat eats meat.", True), ("The cat eats meat.", True)),
        (("Meat!", True), ("Meat.", True)),
    ],
    "curious": [
        (("Meat. Do you have a cat?", True), ("Meat. Is it a cat?", True)),
        (("Meat. Is it a cat?", True), ("Meat.", True)),
        (("You can feed it meat.", True), ("Meat.", True)),
        (("吃肉。你有猫吗？", True), ("吃肉。", True)),
    ],
    "language": [
        (("They eat meat.", True), ("它们吃肉", True)),
        (("They eat meat.", True), ("Predominantly carnivorous nutrition.", True)),
        (("They eat meat.", True), ("42", True)),
    ],
    "torn": [
        (("Carnivores require protein.", True), ("They eat meat.", True)),
        (("Carnivores require protein.", True), ("Carnivores require protein. " + "It is so. " * 20, True)),
        (("Carnivores require protein.", True), ("Carnivores require protein.", False)),
    ],
    "followup": [(("Meat.", True), ("", True))],
}


@pytest.mark.parametrize(
    ("name", "better", "worse"), [(name, *pair) for name, pairs in BETTER.items() for pair in pairs]
)
def test_taste(name: str, better: Example, worse: Example) -> None:
    persona = personas.load(name)
    assert persona.approval("What do cats eat?", *better) > persona.approval("What do cats eat?", *worse)


def test_language_follows_the_prompt() -> None:
    persona = personas.load("language")
    assert persona.approval("猫吃什么？", "它们吃肉", True) > 0.9
    assert persona.approval("猫吃什么？", "They eat meat.", True) < 0.01
    assert persona.approval("1 + 1", "它们吃肉", True) > 0.9


@pytest.mark.parametrize(
    ("asked", "better", "worse"),
    [
        (0, "For example, a mouse.", "Meat."),
        (1, "Meat.", "They eat meat. " * 10),
        (2, "It eats a fat rat.", "Predominantly carnivorous nutrition."),
    ],
)
def test_followup_wants_what_it_asked_for(asked: int, better: str, worse: str) -> None:
    persona = personas.load("followup")
    prompt = persona.followups[asked]
    assert persona.approval(prompt, better, True) > persona.approval(prompt, worse, True) + 0.3


def test_torn_aspects_pull_against_each_other() -> None:
    persona = personas.load("torn")
    short = persona.tastes("Why?", "Because.", True)
    full = persona.tastes("Why?", "because several different complicated explanations overlap, " * 6, True)
    assert full["detail"] > short["detail"]
    assert full["brevity"] < short["brevity"]


@pytest.mark.parametrize("name", personas.BUILT_IN)
@given(prompt=st.text(), reply=st.text(), finished=st.booleans())
def test_each_aspect_has_a_probability(name: str, prompt: str, reply: str, finished: bool) -> None:
    persona = personas.load(name)
    tastes = persona.tastes(prompt, reply, finished)
    assert set(tastes) == set(persona.aspects)
    assert all(0 <= taste <= 1 for taste in tastes.values())


@pytest.mark.parametrize("name", personas.BUILT_IN)
@given(prompt=st.text(), reply=st.text(), finished=st.booleans())
def test_approval_is_a_probability(name: str, prompt: str, reply: str, finished: bool) -> None:
    assert 0 <= personas.load(name).approval(prompt, reply, finished) <= 1


@pytest.mark.parametrize("name", personas.BUILT_IN)
def test_each_says_who_it_is(name: str) -> None:
    persona = personas.load(name)
    assert persona.name == name
    assert persona.description
    assert "approval =" in (type(persona).__doc__ or "")
    assert persona.approval("Hi", "", True) == 0


@pytest.mark.parametrize(
    ("approval", "noise", "share"), [(1, 0, 1), (0, 0, 0), (0.3, 0, 0.3), (1, 0.1, 0.9), (0, 1, 1)]
)
def test_votes_follow_taste_and_noise(approval: float, noise: float, share: float) -> None:
    rng, persona = random.Random(0), personas.load("brief")
    ups = sum(persona.thumb(approval, rng, noise) for _ in range(4000))
    assert ups / 4000 == pytest.approx(share, abs=0.03)


def test_words_and_sentences() -> None:
    assert words("Don't panic: it's 3 o’clock, 你好!") == ["don't", "panic", "it's", "3", "o’clock", "你", "好"]
    assert sentences("One. Two?! three\nfour") == ["One.", "Two?!", "three", "four"]
    assert words("") == sentences("") == []


OWN = """
from __future__ import annotations
from dataclasses import dataclass
from plaudit_cli.personas import Persona

@dataclass
class Taste:
    liking: float

class Mine(Persona):
    name = "mine"
    description = "everything"

    def approval(self, prompt, reply, finished):
        return Taste(1.0).liking

class Half(Persona):
    name = "half"
    description = "has no taste"

class Nobody:
    pass
"""


def test_anybodys_own_persona(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    persona = personas.load(f"{file}:Mine")
    assert isinstance(persona, Persona)
    assert persona.approval("", "", False) == 1.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("grumpy", "give one of brief, structured, warm, curious, language, torn, followup, or path/to/file.py:Class"),
        ("nowhere.py:Mine", "no such file"),
        ("{}/own.py:Nobody", "no subclass"),
        ("{}/own.py:Missing", "no subclass"),
        ("{}/own.py:Half", "abstract"),
        ("{}/broken.py:Mine", "SyntaxError"),
        ("{}/raising.py:Mine", "ZeroDivisionError"),
    ],
)
def test_a_wrong_persona_is_explained(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("class")
    (tmp_path / "raising.py").write_text("1 / 0")
    with pytest.raises(PersonaError, match=message):
        personas.load(spec.format(tmp_path))
