"""What an adapter costs with vLLM: the same model and requests, on engines that take turns.

    plain        vLLM as it comes, without adapters: the limit
    one process  the same in one process (cpu_executor.py; on a CPU)
    theirs       vLLM as it comes, with adapters: all requests on one
    none         Plaudit's engine, requests without an adapter
    stable       Plaudit's engine, all requests on one version
    canary       Plaudit's engine, two versions in turns

Decoding (short prompts, long replies) and prefill (the reverse) at several concurrencies: tokens/s as ratios to plain's
in the same repetition. Then, of Plaudit's engine: the longest gap in running streams when a version is loaded and first
used beside them, and how far log-probabilities are from those of transformers in float32 with the adapter merged.

    make bench-adapters [ARGS="--repetitions 5"] [SIZE=small]

SIZE=small: the hand-made tiny model, one repetition; its figures say only that everything runs.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.offline import model_directory  # noqa: E402
from bench.report import report, spread  # noqa: E402
from plaudit_server.engine import PolicyVersion  # noqa: E402
from plaudit_server.vllm_engine import VllmEngine  # noqa: E402
from tests.tiny_model import make_tiny_adapter  # noqa: E402

CONTEXT, MOST_RUNNING, KV_CACHE_BYTES, RANK = 2048, 16, 1 << 28, 16
GOAL = 0.97  # of plain's tokens/s, for the stable version
V1, V2, V3 = "v1", "v2", "v3"


@dataclass(frozen=True)
class Shape:
    """Requests of one kind."""

    name: str
    prompt: int
    """Tokens."""
    reply: int
    """Tokens."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    shapes: tuple[Shape, ...]
    concurrency: tuple[int, ...]
    repetitions: int
    checked: int
    """Replies whose log-probabilities are compared."""
    loads: int
    engines: tuple[str, ...]
    dtype: str = "auto"


SIZES = {
    "full": Size(
        (Shape("decode", 40, 48), Shape("prefill", 256, 4)),
        (1, 4, 16),
        repetitions=4,
        checked=12,
        loads=4,
        engines=("plain", "one process", "theirs", "ours"),
    ),
    "small": Size(
        (Shape("decode", 20, 16),), (4,), repetitions=1, checked=2, loads=1, engines=("plain", "ours"), dtype="float32"
    ),
}
CONDITIONS: dict[str, tuple[str, tuple[str | None, ...]]] = {
    "plain": ("plain", (None,)),
    "one process": ("one process", (None,)),
    "theirs": ("theirs", (V1,)),
    "none": ("ours", (None,)),
    "stable": ("ours", (V1,)),
    "canary": ("ours", (V1, V2)),
}
"""The engine of each, and the versions of its requests, in turns."""


@dataclass
class Reply:
    """What one request saw."""

    times: list[float] = field(default_factory=list)
    """Of each token; the first is of the request."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Running:
    """An engine of vLLM, driven without anything of ours in between."""

    def __init__(self, llm: Any, vocabulary: int) -> None:
        self.llm = llm
        self._vocabulary = vocabulary
        self._numbers = itertools.count()
        self._random = random.Random(0)

    def prompt(self, tokens: int) -> list[int]:
        """One that no cache has seen."""
        return [self._random.randrange(self._vocabulary) for _ in range(tokens)]

    async def ask(self, prompt: Sequence[int], tokens: int, adapter: Any, reply: Reply | None = None) -> Reply:
        """Sample so many tokens at temperature 1."""
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        number = next(self._numbers)
        params = SamplingParams(
            temperature=1.0,
            max_tokens=tokens,
            logprobs=0,
            output_kind=RequestOutputKind.DELTA,
            detokenize=False,
            ignore_eos=True,  # and no seed: plain vLLM dies of one in a prompt that it reads in parts
        )
        reply = reply if reply is not None else Reply()
        reply.times.append(time.perf_counter())
        async for output in self.llm.generate(
            tokens_input(list(prompt)), params, f"bench-{number}", lora_request=adapter
        ):
            completion = output.outputs[0]
            reply.times += [time.perf_counter()] * len(completion.token_ids)
            reply.token_ids += completion.token_ids
            reply.logprobs += [
                logprobs[token_id].logprob
                for logprobs, token_id in zip(completion.logprobs, completion.token_ids, strict=True)
            ]
        return reply

    async def burst(self, shape: Shape, count: int, adapters: Sequence[Any]) -> dict[str, float]:
        """So many requests at once: all tokens (prompts' too) a second, time to the first token, cores kept busy."""
        before, began = cpu_seconds(), time.perf_counter()
        replies = await asyncio.gather(
            *[
                self.ask(self.prompt(shape.prompt), shape.reply, adapters[index % len(adapters)])
                for index in range(count)
            ]
        )
        seconds = time.perf_counter() - began
        return {
            "tokens_per_second": count * (shape.reply if shape.reply > shape.prompt else shape.prompt) / seconds,
            "first_token_ms": 1e3 * statistics.median(reply.times[1] - reply.times[0] for reply in replies),
            "cores": (cpu_seconds() - before) / seconds,
        }


def cpu_seconds() -> float:
    """Of this process and all below it, so far."""
    process = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--repetitions", type=int, help="of every measurement, taken in turns")
    arguments = parser.parse_args(argv)
    size = SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as temporary:
        model = model_directory(arguments.size, Path(temporary))
        adapters = {
            name: make_tiny_adapter(
                Path(temporary) / name, model, seed=seed, rank=RANK, scale=0.005, layers=_top_layers(model)
            )
            for seed, name in enumerate((V1, V2, V3))
        }
        figures = asyncio.run(measure(model, adapters, size, arguments.repetitions or size.repetitions))
    return conclude(arguments.size, figures)


def _top_layers(model: Path) -> list[int]:
    """Those that the learner adapts by default."""
    from transformers import AutoConfig

    layers = AutoConfig.from_pretrained(model).num_hidden_layers
    return list(range(max(layers - 12, 0), layers))


async def measure(model: Path, adapters: dict[str, Path], size: Size, repetitions: int) -> dict[str, Any]:
    """All figures; the engines run side by side, and only one of them has requests at a time."""
    from transformers import AutoConfig
    from vllm.lora.request import LoRARequest

    vocabulary = AutoConfig.from_pretrained(model).vocab_size - 3
    requests = {name: LoRARequest(name, int(name[1:]), str(path)) for name, path in adapters.items()}
    ours = VllmEngine(
        model,
        max_context=CONTEXT,
        max_running=MOST_RUNNING,
        max_versions=4,
        max_lora_rank=RANK,
        kv_cache_bytes=KV_CACHE_BYTES,
        dtype=size.dtype,
    )
    engines: dict[str, Running] = {}
    try:
        for name in size.engines:
            if name == "ours":
                await ours.start()
                for version in (V1, V2):
                    await ours.load(PolicyVersion(version, adapters[version]))
                engines[name] = Running(ours._engine, vocabulary)
            else:
                engines[name] = Running(await asyncio.to_thread(_plain, model, name, size.dtype), vocabulary)
        rows: dict[str, list[dict[str, float]]] = {}
        conditions = {name: which for name, which in CONDITIONS.items() if which[0] in engines}
        for repetition in range(repetitions + 1):
            for shape, count in itertools.product(size.shapes, size.concurrency):
                for name, (engine, versions) in conditions.items():
                    wanted = [requests[version] if version else None for version in versions]
                    small = Shape(shape.name, shape.prompt, min(shape.reply, 4))
                    row = await engines[engine].burst(shape if repetition else small, count, wanted)
                    if repetition:  # the first is to warm up
                        rows.setdefault(f"{shape.name} {count} {name}", []).append(row)
                        print(f"{shape.name} {count} {name}: {row['tokens_per_second']:.1f} tokens/s", flush=True)
        figures: dict[str, Any] = {"speed": rows}
        figures["stall"] = await stalls(engines["ours"], ours, adapters, requests, size.loads)
        figures["distance"] = {
            f"{name} {version or 'v0'}": await distance(engines[name], model, adapters, version, requests, size.checked)
            for name, version in (("plain", None), ("theirs", V1), ("ours", None), ("ours", V1))
            if name in engines
        }
        return figures
    finally:
        await ours.stop()
        for name, running in engines.items():
            if name != "ours":
                running.llm.shutdown()
        engines.clear()
        gc.collect()  # they are parts of cycles, and complain if they are only collected when the interpreter exits


def _plain(model: Path, name: str, dtype: str) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    args = AsyncEngineArgs(
        model=str(model),
        dtype=dtype,
        max_model_len=CONTEXT,
        max_num_seqs=MOST_RUNNING,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        logprobs_mode="processed_logprobs",
        skip_tokenizer_init=True,
        disable_log_stats=True,
        enforce_eager=current_platform.is_cpu(),
        seed=0,
    )
    if name == "theirs":
        args.enable_lora, args.max_loras, args.max_lora_rank = True, 5, RANK
    if name == "one process" and current_platform.is_cpu():
        from plaudit_server.cpu_executor import CpuExecutor, omp_threads

        args.distributed_executor_backend = CpuExecutor
        config = args.create_engine_config()
        with omp_threads(config):
            return AsyncLLM.from_vllm_config(config, disable_log_stats=True)
    return AsyncLLM.from_engine_args(args)


async def stalls(
    engine: Running, ours: VllmEngine, adapters: dict[str, Path], requests: dict[str, Any], loads: int
) -> list[dict[str, float]]:
    """Of each load: the longest gap between two tokens of four running streams, and the usual one, in ms."""
    found = []
    for _ in range(loads):
        replies = [Reply() for _ in range(4)]
        streams = [asyncio.create_task(engine.ask(engine.prompt(40), 120, requests[V1], reply)) for reply in replies]
        while min(len(reply.times) for reply in replies) < 30:
            await asyncio.sleep(0.005)
        began = time.perf_counter()
        await ours.load(PolicyVersion(V3, adapters[V3]))
        loaded = time.perf_counter()
        await engine.ask(engine.prompt(40), 4, requests[V3])
        await asyncio.gather(*streams)
        await ours.unload(PolicyVersion(V3, adapters[V3]))
        gaps = [(later, later - earlier) for reply in replies for earlier, later in itertools.pairwise(reply.times[1:])]
        found.append(
            {
                "load_ms": 1e3 * (loaded - began),
                "longest_gap_ms": 1e3 * max(gap for at, gap in gaps if at >= began),
                "usual_gap_ms": 1e3 * statistics.median(gap for at, gap in gaps if at < began),
            }
        )
    return found


async def distance(
    engine: Running,
    model: Path,
    adapters: dict[str, Path],
    version: str | None,
    requests: dict[str, Any],
    count: int,
) -> dict[str, float]:
    """|Δ log-probability| of sampled tokens, from transformers in float32 with the adapter merged."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def expected(prompt: list[int], reply: Reply) -> list[float]:
        ids = torch.tensor([[*prompt, *reply.token_ids]])
        with torch.inference_mode():
            logprobs = reference(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return [float(logprobs[index, token_id]) for index, token_id in enumerate(reply.token_ids)]

    adapter = requests[version] if version else None
    prompts = [engine.prompt(24) for _ in range(count)]
    replies = await asyncio.gather(*[engine.ask(prompt, 32, adapter) for prompt in prompts])
    with _one_thread():
        reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        if version:
            reference = PeftModel.from_pretrained(reference, adapters[version]).merge_and_unload()
        differences = [
            abs(one - other)
            for prompt, reply in zip(prompts, replies, strict=True)
            for one, other in zip(reply.logprobs, expected(prompt, reply), strict=True)
        ]
    return {"mean": statistics.mean(differences), "max": max(differences)}


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def conclude(size: str, figures: dict[str, Any]) -> int:
    """The tables, and the object."""
    rows = figures.pop("speed")
    figures["ratios"], figures["speed"] = {}, {}
    print("\n| | tokens/s | of plain's | of one process's | first token, ms | cores busy |\n|---|---|---|---|---|---|")
    for name, found in rows.items():
        shape, count, _ = name.split(" ", 2)
        ratio, to_one = (
            spread([a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(found, others, strict=True)])
            for others in (rows[f"{shape} {count} plain"], rows.get(f"{shape} {count} one process", found))
        )
        figures["ratios"][name] = {"plain": ratio, "one process": to_one}
        figures["speed"][name] = {key: round(statistics.median(row[key] for row in found), 2) for key in found[0]}
        median = figures["speed"][name]
        print(
            f"| {name} | {median['tokens_per_second']:.1f} "
            f"| {ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f}) "
            f"| {to_one['median']:.2f} ({to_one['min']:.2f}–{to_one['max']:.2f}) "
            f"| {median['first_token_ms']:.0f} | {median['cores']:.2f} |"
        )
    figures["stall"] = {key: spread([row[key] for row in figures["stall"]]) for key in figures["stall"][0]}
    print(f"\nA version loaded beside 4 streams: {figures['stall']}")
    print(f"|Δ log-probability| from float32: {figures['distance']}")
    worst = min(ratio["plain"]["median"] for name, ratio in figures["ratios"].items() if name.endswith("stable"))
    goals = (
        {f"the stable version runs at {GOAL:g} of plain vLLM's speed": worst >= GOAL}
        if size == "full"
        else {"ran": True}
    )
    return report("adapters", size, figures=figures, goals=goals)


if __name__ == "__main__":
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(main())
