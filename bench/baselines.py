"""What our way is compared with: supervised tuning on replies that were liked, and TRL's KTO on the very votes.

Both train the same adapter on the same tokens. KTO is TRL's trainer and loss, but for two things. Its way of making
token ids out of texts is left out, for that adds an end to replies that were cut off, and so would teach to stop in the
middle of a sentence; this way it may use every vote. And the model is asked for log-probabilities in the way that PPO
asks it, which comes to the same weights in half of the time (tests/learner/test_bench_baselines.py).
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from plaudit_learner.attention import use_grouped_attention
from plaudit_learner.instruct.tune import TuneSettings, tune
from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.ppo.improve import reference_logprobs
from plaudit_learner.ppo.loss import token_logprobs
from plaudit_learner.reward.features import encode
from plaudit_learner.reward.model import Vote
from plaudit_learner.trunk import Trunk


@dataclass(frozen=True)
class Training:
    """How a baseline is trained."""

    learning_rate: float
    epochs: int = 2
    batch_size: int = 8


GRID = (Training(1e-4), Training(3e-4), Training(1e-3), Training(3e-3))
"""What each baseline may choose from: above what TRL advises for KTO (5e-7 to 5e-6, batches of 16 to 128, more epochs),
as an adapter takes and 100 steps want. It was lengthened once, when both chose its end; KTO chooses its end again, for
little. Nothing bounds the KL."""


def supervised(policy: Policy, model: Path, replies: Sequence[PromptReply], how: Training, seed: int) -> None:
    """Tune the policy's adapter on replies, in place, by TRL's SFTTrainer as `plaudit instruct` does."""
    settings = TuneSettings(how.epochs, how.batch_size, how.learning_rate, checkpoint_steps=10_000, seed=seed)
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    with tempfile.TemporaryDirectory() as directory:
        tune(policy, tokenizer, replies, replies[:1], settings, Path(directory), lambda *_: None)


class _Reading:
    """In the place of TRL's model: each prompt is read once, and only by the layers that learn."""

    def __init__(self, policy: Policy, trunks: dict[PromptReply, Trunk]) -> None:
        self._policy, self._trunks = policy, trunks

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> SimpleNamespace:
        """The log-probability of each reply token (B, S - 1); what TRL merely logs is 0."""
        replies, prompts = labels != -100, attention_mask.bool() & (labels == -100)
        items = [
            PromptReply(tuple(tokens[prompt].tolist()), tuple(tokens[reply].tolist()), False)
            for tokens, prompt, reply in zip(input_ids, prompts, replies, strict=True)
        ]
        logits_BTV, tokens_BT, mask_BT = self._policy.reply_logits(items, [self._trunks[item] for item in items])
        logprobs_BT = token_logprobs(logits_BTV, tokens_BT, 1.0)[1] * mask_BT
        # TRL adds up each row: where in it they stand does not matter.
        logprobs_BS = torch.nn.functional.pad(logprobs_BT, (0, labels.shape[1] - 1 - mask_BT.shape[1]))
        nothing_BS = torch.zeros_like(logprobs_BS)
        return SimpleNamespace(log_probs=logprobs_BS, entropy=nothing_BS, mean_logits=nothing_BS)


def kto(
    policy: Policy,
    model: Path,
    votes: Sequence[Vote],
    how: Training,
    seed: int,
    *,
    beta: float = 0.1,
    read_by_trl: bool = False,
) -> None:
    """Train the policy's adapter on thumbs, in place, by TRL's KTOTrainer (Ethayarajh et al. 2024).

    The lesser of the two classes is given the weight that makes them equal, as TRL recommends.
    read_by_trl: ask the model as TRL does, of every layer, for the prompt of each reply anew.
    """
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    class TokensTrainer(KTOTrainer):  # type: ignore[misc]
        """Given token ids, it makes only the mismatched pairs of its KL term, within each batch, as TRL does."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            def turned(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
                replies = batch["completion_ids"]
                return {**batch, "KL_completion_ids": [replies[-1], *replies[:-1]]}

            return dataset.map(turned, batched=True, batch_size=how.batch_size)

    class ReadingTrainer(TokensTrainer):
        """Asks `_Reading` instead of the model, and the encodings for the reference's log-probabilities."""

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            asked = {
                f"ref_{kind}logps": [
                    PromptReply(tuple(row["prompt_ids"]), tuple(row[f"{kind}completion_ids"]), False) for row in dataset
                ]
                for kind in ("", "KL_")
            }
            items = sorted({item for column in asked.values() for item in column})
            encodings = encode(policy, items, trunks=True)
            logprobs = reference_logprobs(policy, items, encodings, 1.0)
            total = {item: float(each.sum()) for item, each in zip(items, logprobs, strict=True)}
            trunks = {item: each.trunk for item, each in zip(items, encodings, strict=True) if each.trunk}
            self._reading = _Reading(Policy(self.model, policy.base_name, policy.eos_ids), trunks)
            for name, column in asked.items():
                dataset = dataset.add_column(name, [total[item] for item in column])
            return dataset

        def _compute_loss(self, _: Any, inputs: Any, return_outputs: bool) -> Any:
            return super()._compute_loss(self._reading, inputs, return_outputs)

    # TRL reads the rows in their order, and the mismatched pairs of a last batch of one would be its own.
    order = random.Random(seed).sample(list(votes), len(votes) - (len(votes) % how.batch_size == 1))
    liked = sum(vote.liked for vote in order)
    weight = max(1, len(order) - liked) / max(1, liked)
    columns = {
        "prompt_ids": [list(vote.item.prompt) for vote in order],
        "completion_ids": [list(vote.item.reply) for vote in order],
        "label": [vote.liked for vote in order],
    }
    base = AutoModelForCausalLM.from_pretrained(
        model, dtype=policy.model.dtype, local_files_only=True, attn_implementation="eager"
    )
    if not read_by_trl:
        use_grouped_attention(base)
    with tempfile.TemporaryDirectory() as directory:
        arguments = KTOConfig(
            output_dir=directory,
            use_cpu=True,
            bf16=base.dtype == torch.bfloat16,
            num_train_epochs=how.epochs,
            per_device_train_batch_size=how.batch_size,
            learning_rate=how.learning_rate,
            beta=beta,
            desirable_weight=max(1.0, weight),
            undesirable_weight=max(1.0, 1 / weight),
            max_length=None,
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            warmup_steps=4,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = (TokensTrainer if read_by_trl else ReadingTrainer)(
            model=base,
            args=arguments,
            train_dataset=Dataset.from_dict(columns),
            processing_class=AutoTokenizer.from_pretrained(model, local_files_only=True),
            peft_config=policy.model.peft_config["default"],
        )
        trainer.train()
    # TRL changes the forward of the model that it trains: only the weights are taken over.
    set_peft_model_state_dict(policy.model, get_peft_model_state_dict(trainer.model, save_embedding_layers=False))
