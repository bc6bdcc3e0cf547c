"""Tuning learns, from output tokens alone, and a kill changes nothing of the outcome."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit_learner.instruct.evaluate import losses
from plaudit_learner.instruct.tune import Point, TuneSettings, last_checkpoint, order, steps, tune
from plaudit_learner.policy import Policy, PromptReply
from tests.tiny_model import IM_END, IM_START

SETTINGS = TuneSettings(epochs=2, batch_size=4, learning_rate=1e-2, checkpoint_steps=2)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def pairs(count: int, first: int = 0) -> list[PromptReply]:
    """Answer with the letter that was said, as a capital, three times."""
    return [
        PromptReply((IM_START, *[97 + i % 26] * (1 + i % 5), IM_END, 10), (*[65 + i % 26] * 3, IM_END), True)
        for i in range(first, first + count)
    ]


def tuned(
    tiny_model: Path,
    tokenizer: Any,
    directory: Path,
    train: list[PromptReply],
    *,
    kill_at: int | None = None,
    settings: TuneSettings = SETTINGS,
) -> tuple[Policy, list[Point], list[str]]:
    policy = Policy.load(tiny_model)
    done, said = 0, []

    def tell(count: int, words: str) -> None:
        nonlocal done
        done += count
        said.append(words)
        if done == kill_at:
            raise Killed

    points = tune(policy, tokenizer, train, pairs(6, 100), settings, directory, tell)
    return policy, points, said


def total(policy: Policy) -> float:
    return sum(losses(policy, pairs(6, 100), lambda _: None))


def test_it_learns_what_it_was_not_trained_on(tiny_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    before = total(Policy.load(tiny_model))
    settings = TuneSettings(epochs=4, batch_size=4, learning_rate=3e-3, checkpoint_steps=100)
    policy, points, _ = tuned(tiny_model, tokenizer, tmp_path, pairs(26), settings=settings)
    assert total(policy) < 0.5 * before
    held_out = [(point["step"], point["held_out_loss"]) for point in points if "held_out_loss" in point]
    assert held_out[-1] == pytest.approx((26.0, total(policy) / 24), rel=1e-5), "24 output tokens in 6 examples"
    assert held_out[0][1] > held_out[-1][1]
    assert [point["step"] for point in points if "loss" in point] == list(range(1, 27))
    assert steps(26, settings) == 26


def test_the_trainers_loss_is_that_of_the_output_tokens(tiny_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    train = pairs(4)
    settings = TuneSettings(epochs=1, batch_size=4)
    reference = Policy.load(tiny_model)
    nats = sum(losses(reference, train, lambda _: None))
    _, points, _ = tuned(tiny_model, tokenizer, tmp_path, train, settings=settings)
    (loss,) = [point["loss"] for point in points if "loss" in point]
    assert loss == pytest.approx(nats / sum(len(item.reply) for item in train), rel=1e-4)


@pytest.mark.parametrize("kill_at", [3, 6, 11])
def test_killed_and_started_again_it_ends_with_the_same_weights(
    tiny_model: Path, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, kill_at: int
) -> None:
    caplog.set_level("INFO")
    whole, curve, _ = tuned(tiny_model, tokenizer, tmp_path / "whole", pairs(24))
    with pytest.raises(Killed):
        tuned(tiny_model, tokenizer, tmp_path / "cut", pairs(24), kill_at=kill_at)
    resumed, again, said = tuned(tiny_model, tokenizer, tmp_path / "cut", pairs(24))
    # The kill came before that update's own checkpoint was written.
    assert f"continued from update {(kill_at - 1) // 2 * 2} of 12" in caplog.text
    assert len(said) == 1 + 12 - (kill_at - 1) // 2 * 2
    assert all(torch.equal(a, b) for a, b in zip(whole.snapshot(), resumed.snapshot(), strict=True))
    assert again == curve


def test_the_order_is_random_and_fair_in_batches_of_like_lengths() -> None:
    lengths = [(37 * row) % 101 for row in range(101)]  # each of 0 … 100 once
    settings = TuneSettings(epochs=3, batch_size=4, seed=1)
    rows = order(lengths, settings)
    assert sorted(rows) == sorted([*range(101)] * 3)
    batches = [[lengths[row] for row in rows[i : i + 4]] for i in range(0, 300, 4)]
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 20, "of four at random it is about 60"
    assert rows == order(lengths, settings)
    assert rows != order(lengths, TuneSettings(epochs=3, batch_size=4, seed=2))
    means = [sum(lengths[row] for row in rows[i : i + 4]) for i in range(0, 32, 4)]
    assert means != sorted(means), "short ones do not always come first"


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for name, state in (("checkpoint-8", "{}"), ("checkpoint-10", None), ("checkpoint-12", '{"epoch": 1')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "optimizer.pt").write_bytes(b"")
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-8"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-8"]


def test_another_seed_other_weights(tiny_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    weights = []
    for seed in (0, 1):
        settings = TuneSettings(epochs=1, batch_size=4, learning_rate=1e-2, seed=seed)
        policy, *_ = tuned(tiny_model, tokenizer, tmp_path / str(seed), pairs(24), settings=settings)
        weights.append(policy.snapshot())
    assert not all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_checkpoints_hold_no_model_card_but_the_curves(tiny_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    tuned(tiny_model, tokenizer, tmp_path, pairs(8))
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint is not None
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert any("held_out_loss" in entry for entry in state["log_history"])
