"""The encoder tells replies to a prompt from others, in English and Chinese; the contrast by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plaudit_learner.gate.evaluation import Reader
from plaudit_learner.gate.judge import GateSettings
from plaudit_learner.gate.relevance import Encoder, contrast
from plaudit_learner.ppo.rollouts import Rollout

PAIRS = [
    ("How do I boil an egg?", "Put the egg into boiling water and wait for eight minutes."),
    ("Why is the sky blue?", "Air scatters the short waves of sunlight most, and those are blue."),
    ("Suggest a gift for my grandmother.", "A photo album of the family, or a warm scarf, would please her."),
    ("What is a good exercise for my back?", "Try the plank, or swim twice a week: both strengthen the spine."),
    ("怎样才能学好英语？", "每天坚持阅读和听英语，多和外国朋友练习口语。"),
    ("请推荐一道简单的家常菜。", "西红柿炒鸡蛋很简单：先炒鸡蛋，再放西红柿，最后加盐。"),
    ("地球为什么有四季？", "因为地轴是倾斜的，地球绕太阳公转时各地接受的阳光不同。"),
    ("怎样缓解工作压力？", "可以适当运动，保证睡眠，和朋友谈谈工作中的烦恼。"),
]


def test_contrast_by_hand() -> None:
    questions_PE = torch.eye(3, dtype=torch.float64)
    replies_NE = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]], dtype=torch.float64)
    # The first speaks of prompt 0 only; the second of prompt 0 (0.6) and 1 (0.8), and was to answer prompt 1.
    assert contrast(replies_NE, questions_PE, torch.tensor([0, 1])).tolist() == pytest.approx([1.0, 0.8 - 0.6 / 2])
    with pytest.raises(ValueError, match="at least 2 prompts"):
        contrast(replies_NE, questions_PE[:1], torch.tensor([0, 0]))


def test_own_prompts_are_nearer_in_both_languages() -> None:
    encoder = Encoder()
    questions_PE = encoder([question for question, _ in PAIRS])
    replies_NE = encoder([reply for _, reply in PAIRS])
    own_N = torch.arange(len(PAIRS))
    assert torch.allclose(questions_PE.norm(dim=1), torch.ones(len(PAIRS), dtype=torch.float64), atol=1e-5)
    assert contrast(replies_NE, questions_PE, own_N).min() > 0.1
    assert contrast(replies_NE.roll(1, 0), questions_PE, own_N).mean() < 0.05
    phrase_NE = encoder(["I'm ready to help. What can I help you with?"]).expand(len(PAIRS), -1)
    assert float(contrast(phrase_NE, questions_PE, own_N).mean()) == pytest.approx(0.0, abs=1e-6)


def test_an_empty_reply_has_a_vector() -> None:
    assert Encoder()([""]).shape == (1, 512)


def test_one_phrase_for_every_second_turn_is_told(tiny_model: Path) -> None:
    """Users ask back in the same few words, whatever they talk about: what they talk about is in their first turn."""
    reader = Reader(tiny_model)

    def second(question: str) -> tuple[int, ...]:
        said = [("user", question), ("assistant", "Well."), ("user", "Give me an example.")]
        turns = "".join(f"<|im_start|>{role}\n{words}<|im_end|>\n" for role, words in said)
        return reader.transcript.tokens(turns + "<|im_start|>assistant\n")

    prompts = [second(question) for question, _ in PAIRS]

    def relevance(replies: list[str]) -> float:
        said = [
            Rollout(prompt, reader.transcript.tokens(reply), (), True)
            for prompt, reply in zip(prompts, replies, strict=True)
        ]
        return float(reader.read(said, prompts)["relevance"].mean())

    assert relevance([reply for _, reply in PAIRS]) > 3 * GateSettings().max_relevance_loss
    assert relevance(["I'm ready to help. What can I help you with?"] * len(PAIRS)) == pytest.approx(0.0, abs=1e-6)
