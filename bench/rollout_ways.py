"""The ways to sample rollouts that bench/rollouts.py compares: the learner's own, transformers' two, and vLLM's.

All give what the learner needs: the token ids of each reply up to its end, and the log-probability of each under the
distribution that it was sampled from.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from plaudit.precision import cpu_wants_float32
from plaudit_learner.policy import Policy, pad
from plaudit_learner.ppo.rollouts import Rollout, sample
from plaudit_learner.ranks import evenly
from plaudit_server.engine import PolicyVersion, Sampling

KV_CACHE_BYTES = 1 << 30  # twice what 48 sequences of 176 tokens take in float32
_PAGE = 32  # tokens; by default 256, more than most prompts and replies together


@dataclass(frozen=True)
class Task:
    """The rollouts of one update."""

    prompts: list[tuple[int, ...]]
    samples: int = 4
    """Replies to each."""
    max_new_tokens: int = 48
    temperature: float = 0.7
    at_once: int = 48
    """Replies sampled together at the most."""


@dataclass(frozen=True)
class Way:
    """One way to sample."""

    sample: Callable[[Task, int], list[Rollout]]
    """Takes a seed."""
    renew: Callable[[], None] = lambda: None
    """Take over what the policy has learnt."""
    below: bool = False
    """Whether it works in processes below this one."""


class Spent:
    """CPU and wall seconds, by what they went to."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    @contextmanager
    def on(self, what: str, *, below: bool = False) -> Iterator[None]:
        """Add what this block takes."""
        cpu, wall = cpu_seconds(below=below), time.perf_counter()
        yield
        self.cpu[what] = self.cpu.get(what, 0.0) + cpu_seconds(below=below) - cpu
        self.wall[what] = self.wall.get(what, 0.0) + time.perf_counter() - wall


def cpu_seconds(*, below: bool) -> float:
    """Of this process, to the microsecond, and, where asked, of all below it, to the hundredth, so far.

    Only where asked: an engine that has nothing to do takes 1.5 % of a core all the same.
    """
    children = psutil.Process().children(recursive=True) if below else []
    return time.process_time() + sum(sum(child.cpu_times()[:2]) for child in children)


def ours(policy: Policy, task: Task, seed: int) -> list[Rollout]:
    """As `improve` samples."""
    return sample(
        policy,
        task.prompts,
        samples_per_prompt=task.samples,
        max_new_tokens=task.max_new_tokens,
        temperature=task.temperature,
        seed=seed,
        batch_size=task.at_once,
    )


class Transformers:
    """`generate` and `generate_batch`, with the model's own attention."""

    def __init__(self, model: Path, adapter: Path, eos_ids: frozenset[int], spent: Spent) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(
            model,
            dtype="float32" if cpu_wants_float32() else "auto",
            local_files_only=True,
            attn_implementation="eager",  # the fused kernel took as long, in both
        )
        self._model = PeftModel.from_pretrained(base, adapter, autocast_adapter_dtype=False).eval()
        self._eos_ids = eos_ids
        self._spent = spent

    def _how(self, task: Task, **options: Any) -> Any:
        from transformers import GenerationConfig

        eos = sorted(self._eos_ids)
        return GenerationConfig(
            do_sample=True,
            temperature=task.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=task.max_new_tokens,
            num_return_sequences=task.samples,
            eos_token_id=eos,
            pad_token_id=eos[0],
            **options,
        )

    def generate(self, task: Task, seed: int) -> list[Rollout]:
        """Log-probabilities are worked out of the scores that it gives; that is counted apart too."""
        torch.manual_seed(seed)
        how = self._how(task, return_dict_in_generate=True, output_scores=True)
        by_length = sorted(range(len(task.prompts)), key=lambda i: len(task.prompts[i]))
        found = []
        for chunk in evenly(by_length, task.at_once // task.samples):
            prompts = [task.prompts[i] for i in chunk]
            ids_PS, mask_PS = pad(prompts, left=True)
            output = self._model.generate(input_ids=ids_PS, attention_mask=mask_PS, generation_config=how)
            tokens_BT = output.sequences[:, ids_PS.shape[1] :]
            with self._spent.on("log-probabilities"):
                logprobs_BT = torch.cat(
                    [
                        scores_BV.gather(1, tokens_BT[:, t : t + 1]) - scores_BV.logsumexp(1, keepdim=True)
                        for t, scores_BV in enumerate(output.scores)
                    ],
                    dim=1,
                )
            for row, (reply, logprobs) in enumerate(zip(tokens_BT.tolist(), logprobs_BT.tolist(), strict=True)):
                found.append(_rollout(prompts[row // task.samples], reply, logprobs, self._eos_ids))
        return found

    def generate_batch(self, task: Task, seed: int) -> list[Rollout]:
        """Raises RuntimeError with transformers' reason if replies are missing."""
        from transformers import ContinuousBatchingConfig

        longest = max(map(len, task.prompts)) + task.max_new_tokens
        config = ContinuousBatchingConfig(
            page_size=_PAGE,
            num_blocks=(task.at_once + 2) * (longest // _PAGE + 2),  # else: most of the memory there is
            max_batch_tokens=max(512, longest),
            max_requests_per_batch=task.at_once,
            return_logprobs=True,
            seed=seed,
        )
        outputs = self._model.generate_batch(
            [list(prompt) for prompt in task.prompts],
            generation_config=self._how(task),
            continuous_batching_config=config,
        )
        errors = [output.error for output in outputs.values() if output.error is not None]
        if errors or len(outputs) < len(task.prompts) * task.samples:
            raise RuntimeError(errors[0] if errors else "generate_batch gave fewer replies than it was asked for")
        return [
            _rollout(output.prompt_ids, output.generated_tokens, output.logprobs, self._eos_ids)
            for output in outputs.values()
        ]


class Vllm:
    """The server's engine; each set of weights is a version of its own, as it is there. Started by `with`."""

    def __init__(self, model: Path, policy: Policy, directory: Path, at_once: int) -> None:
        from plaudit_server.vllm_engine import VllmEngine

        self._engine = VllmEngine(
            model,
            max_context=256,
            max_running=at_once,
            max_versions=1,
            max_lora_rank=policy.model.peft_config["default"].r,
            kv_cache_bytes=KV_CACHE_BYTES,
        )
        self._policy, self._directory = policy, directory
        self._version = PolicyVersion("v0", None)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Vllm:
        self._runner.run(self._engine.start())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._engine.stop())
        self._runner.close()

    def renew(self) -> None:
        """Write the adapter, and load it in the place of the last one."""
        last, name = self._version, f"v{self._version.number + 1}"
        self._policy.save_adapter(self._directory / name)
        self._version = PolicyVersion(name, self._directory / name)
        self._runner.run(self._engine.unload(last))
        self._runner.run(self._engine.load(self._version))

    def sample(self, task: Task, seed: int) -> list[Rollout]:
        """By the engine's own random numbers: the seed is not used."""
        return self._runner.run(self._sample(task))

    async def _sample(self, task: Task) -> list[Rollout]:
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        from plaudit_server.vllm_engine import sampling_params

        eos_ids = self._policy.eos_ids
        params = sampling_params(Sampling(task.temperature, 1.0, task.max_new_tokens, None, ()), eos_ids)
        params.n, params.output_kind = task.samples, RequestOutputKind.FINAL_ONLY

        async def ask(number: int, prompt: tuple[int, ...]) -> list[Rollout]:
            stream = self._engine._engine.generate(
                tokens_input(list(prompt)),
                params,
                f"{self._version.name}-{number}",
                lora_request=self._engine._adapters[self._version.name],
            )
            [output] = [output async for output in stream]
            found = []
            for reply in output.outputs:
                logprobs = [of[token].logprob for of, token in zip(reply.logprobs, reply.token_ids, strict=True)]
                found.append(_rollout(prompt, reply.token_ids, logprobs, eos_ids))
            return found

        replies = await asyncio.gather(*[ask(number, prompt) for number, prompt in enumerate(task.prompts)])
        return [rollout for rollouts in replies for rollout in rollouts]


def _rollout(prompt: Sequence[int], reply: Sequence[int], logprobs: Sequence[float], eos: frozenset[int]) -> Rollout:
    ends = next((t + 1 for t, token in enumerate(reply) if token in eos), len(reply))  # pads may follow
    return Rollout(tuple(prompt), tuple(reply[:ends]), tuple(logprobs[:ends]), reply[ends - 1] in eos)
