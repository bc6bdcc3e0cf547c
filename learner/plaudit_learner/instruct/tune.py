"""Supervised tuning by TRL's SFTTrainer: maximise Σ_t log P(y_t | x, y_<t) over the adapter.

The trainer is given token ids and labels, so that nothing is tokenised a second way, and what is not output has the
label −100, which no loss counts. It runs on the CPU, as the whole learner does.

A run is checkpointed (weights, optimiser, schedule, random state, what was logged) and, started again, goes on from the
last whole checkpoint to the same weights, bit for bit, as if it had never been stopped.
"""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plaudit_learner.instruct.evaluate import losses
from plaudit_learner.instruct.progress import Tell
from plaudit_learner.policy import Policy, PromptReply

log = logging.getLogger(__name__)

IGNORED = -100
_CURVE_POINTS = 5
_WARM_UP = 0.05
_KEPT = 2
_POOL = 8  # batches whose rows are sorted by length together

Point = dict[str, float]
"""One point of the curves: `step`, and what is known of `loss` (nats a token), `learning_rate`, `held_out_loss`."""


@dataclass(frozen=True)
class TuneSettings:
    """How to tune."""

    epochs: int = 2
    batch_size: int = 8
    learning_rate: float = 3e-4
    checkpoint_steps: int = 20
    seed: int = 0


def labelled(item: PromptReply) -> dict[str, list[int]]:
    """Token ids, and the labels: those of the output; `IGNORED` at the prompt."""
    return {
        "input_ids": [*item.prompt, *item.reply],
        "labels": [IGNORED] * len(item.prompt) + list(item.reply),
    }


def steps(examples: int, settings: TuneSettings) -> int:
    """Updates of a whole run."""
    return math.ceil(settings.epochs * examples / settings.batch_size)


def order(lengths: Sequence[int], settings: TuneSettings) -> list[int]:
    """The rows of all batches, one after the other: each row `epochs` times, at random, batches of like lengths.

    Fewer pads make an update several times as fast. The trainer's own samplers draw from the global random state, whose
    past a continued run does not have: from the second epoch on it would go another way.
    """
    draw = random.Random(settings.seed)  # noqa: S311  (not for secrets)
    rows: list[int] = []
    for _ in range(settings.epochs):
        rows += draw.sample(range(len(lengths)), len(lengths))
    ordered: list[int] = []
    size = settings.batch_size
    for start in range(0, len(rows), _POOL * size):
        pool = sorted(rows[start : start + _POOL * size], key=lambda row: lengths[row])
        batches = [pool[first : first + size] for first in range(0, len(pool) - size + 1, size)]
        rest = pool[len(batches) * size :]  # of the last pool only
        ordered += [row for batch in draw.sample(batches, len(batches)) for row in batch] + rest
    return ordered


def tune(
    policy: Policy,
    tokenizer: Any,
    train: Sequence[PromptReply],
    held_out: Sequence[PromptReply],
    settings: TuneSettings,
    directory: Path,
    tell: Tell,
) -> list[Point]:
    """Tune the policy's adapter, in place; returns the curves. Checkpoints are kept in `directory`.

    The same arguments give the same weights, however often the run was killed and started again on the way.
    Raises OSError if a checkpoint cannot be written or read.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    total = steps(len(train), settings)
    every = max(1, total // _CURVE_POINTS)
    half = policy.model.get_output_embeddings().weight.dtype == torch.bfloat16

    class Follower(TrainerCallback):  # type: ignore[misc]
        """Adds the held-out loss to the trainer's own log, which is in every checkpoint, and moves the bar."""

        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step % every == 0 or state.global_step == total:
                policy.model.eval()
                nats = losses(policy, held_out, lambda _: None)
                policy.model.train()
                loss = sum(nats) / sum(len(item.reply) for item in held_out)
                state.log_history.append({"step": state.global_step, "held_out_loss": loss})
            tell(1, _words(state.log_history))

    arguments = SFTConfig(
        output_dir=str(directory),
        use_cpu=True,
        bf16=half,  # the adapter is float32 on a bfloat16 base: autocast multiplies both in bfloat16
        max_length=None,
        packing=False,
        gradient_checkpointing=False,
        num_train_epochs=1,  # `order` holds all epochs
        train_sampling_strategy="sequential",
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(_WARM_UP * total),
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=settings.seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=_KEPT,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = SFTTrainer(
        model=policy.model,
        args=arguments,
        train_dataset=Dataset.from_list([labelled(train[row]) for row in order([*map(_length, train)], settings)]),
        processing_class=_padded(tokenizer),
        callbacks=[Follower()],
    )
    _quiet(trainer)
    checkpoint = last_checkpoint(directory)
    if checkpoint is not None:
        done = int(checkpoint.name.rpartition("-")[2])
        log.info("continued from update %d of %d", done, total)
        tell(done, "")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    policy.model.eval()
    return _curves(trainer.state.log_history)


def last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint; those that a kill left in pieces are removed.

    The trainer writes `trainer_state.json` last, so a checkpoint in which it can be read is whole.
    """
    found = sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            shutil.rmtree(path)
        else:
            return path
    return None


def _length(item: PromptReply) -> int:
    return len(item.prompt) + len(item.reply)


def _curves(history: Sequence[dict[str, Any]]) -> list[Point]:
    names = ("loss", "learning_rate", "held_out_loss")
    points = [
        {"step": float(entry["step"]), **{name: float(entry[name]) for name in names if name in entry}}
        for entry in history
    ]
    return [point for point in points if len(point) > 1]


def _words(history: Sequence[dict[str, Any]]) -> str:
    latest: dict[str, float] = {}
    for entry in history[-2 * _CURVE_POINTS :]:
        latest |= {name: entry[name] for name in ("loss", "held_out_loss") if name in entry}
    return ", ".join(f"{name.replace('_', '-')} {value:.3f}" for name, value in latest.items())


def _padded(tokenizer: Any) -> Any:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # which one does not matter: pads are masked by length
    return tokenizer


def _quiet(trainer: Any) -> None:
    """No printing of logs, and no model card that its author would not recognise."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    silent: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    trainer.create_model_card = silent
