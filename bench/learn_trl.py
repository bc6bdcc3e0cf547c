"""TRL's side of bench/learn.py: its last PPOTrainer, an update for each line that comes in.

Its phase "other" is the backward pass, its optimiser and what it makes of rewards and values.
Its reward model and its value model are a table of one number a token: it asks for modules, and these cost nothing.
The pad is a token that no prompt holds: TRL knows pads by their id, and a chat template ends its turns with EOS.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bench.phases import Phases


class Table(nn.Module):  # type: ignore[misc]
    """What TRL asks of a reward or value model: a backbone by its name, and `score` on its last hidden state."""

    base_model_prefix = "backbone"

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.backbone = _Numbers(vocabulary)
        self.score = nn.Linear(1, 1)


class _Numbers(nn.Module):  # type: ignore[misc]
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        numbers = torch.randn(vocabulary, 1, generator=torch.Generator().manual_seed(0))
        self.numbers = nn.Embedding.from_pretrained(numbers, freeze=True)

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=[self.numbers(input_ids)])


def main() -> None:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    torch.set_num_threads(1)
    task = json.loads(sys.stdin.readline())
    tokenizer = AutoTokenizer.from_pretrained(task["model"], local_files_only=True, padding_side="left")
    tokenizer.pad_token_id = unused(task["prompts"], tokenizer.all_special_ids)
    base = AutoModelForCausalLM.from_pretrained(
        task["model"], dtype="auto", local_files_only=True, attn_implementation="eager"
    )
    depth, vocabulary = base.config.num_hidden_layers, base.config.vocab_size
    lora = LoraConfig(
        r=task["rank"],
        lora_alpha=task["alpha"],
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(max(0, depth - task["layers"]), depth)),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora, autocast_adapter_dtype=False)  # bfloat16 as the base: no conversions

    phases = Phases()
    sampled: list[int] = []

    def generation(*arguments: Any, **options: Any) -> Any:
        replies, logits = ppo_batch_generation(*arguments, **options)
        lengths = (replies[:, -logits.shape[1] :] == tokenizer.eos_token_id).long().cumsum(1).eq(0).sum(1) + 1
        sampled.append(int(lengths.clamp(max=logits.shape[1]).sum()))
        return replies, logits

    ppo_batch_generation = ppo_trainer.batch_generation
    ppo_trainer.batch_generation = phases.timed("sampling", generation)
    ppo_trainer.get_reward = phases.timed("reward and value", ppo_trainer.get_reward)
    reference, steps = (phases.timed(phase, ppo_trainer.forward) for phase in ("reference", "steps, forward"))

    def forward(*arguments: Any) -> Any:
        return (steps if torch.is_grad_enabled() else reference)(*arguments)

    ppo_trainer.forward = forward

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            phases.wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            phases.say(sampled.pop())
            phases.wait()

    rows = [{"input_ids": prompt} for prompt in task["prompts"] for _ in range(task["samples_per_prompt"])]
    with tempfile.TemporaryDirectory() as directory:
        arguments = PPOConfig(
            output_dir=directory,
            use_cpu=True,
            bf16=False,  # of mixed precision; the weights are bfloat16 themselves
            gradient_checkpointing=False,
            total_episodes=len(rows) * task["updates"],
            per_device_train_batch_size=task["microbatch"],
            gradient_accumulation_steps=len(rows) // task["microbatch"],
            num_mini_batches=len(task["prompts"]) // task["minibatch_prompts"],
            local_rollout_forward_batch_size=min(48, len(rows)),
            num_ppo_epochs=1,
            num_sample_generations=0,
            response_length=task["max_new_tokens"],
            stop_token="eos",  # noqa: S106
            temperature=task["temperature"],
            learning_rate=5e-4,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        PPOTrainer(
            args=arguments,
            processing_class=tokenizer,
            model=model,
            ref_model=None,
            reward_model=Table(vocabulary),
            value_model=Table(vocabulary),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows[:1]),
            callbacks=[Turns()],
        ).train()


def unused(prompts: Sequence[Sequence[int]], special: Sequence[int]) -> int:
    """A special token that no prompt holds. Raises ValueError if there is none."""
    free = set(special).difference(*prompts)
    if not free:
        raise ValueError("every special token stands in some prompt: TRL could not tell pads from them")
    return min(free)


if __name__ == "__main__":
    main()
