"""Who samples PPO's rollouts cheapest: the learner's own sampler beside what libraries have, in CPU seconds.

    ours            ppo/rollouts.py
    generate        transformers', on the PEFT model: batches padded on the left, num_return_sequences
    generate_batch  transformers' continuous batching, on the same model
    engine          vLLM as the server has it, the adapter as a LoRA request; one request a prompt (n)

The same prompts, replies to a prompt, length limit, temperature, precision and adapter (as the learner makes it, but
with weights that are not zero), as many replies at once, one thread each; all loaded, and in turns. Tokens are those of
the replies, CPU seconds those of all of a way's processes. Each draws its own random numbers: the replies differ.

Each must tell the log-probability of each token under the distribution that it was sampled from: what of its time goes
there, and how far they are from those that the learner works out in one pass, is in the figures. An update changes the
adapter: the ways within the learner's process have it at once; the engine is given it before each of its turns, and
that is counted apart.

    make bench-rollouts [ARGS="--repetitions 3"] [SIZE=small]

SIZE=small: the hand-made tiny model, without the engine; its figures say only that everything runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from bench.offline import SEED_TASKS, model_directory  # noqa: E402
from bench.report import report, spread  # noqa: E402
from bench.rollout_ways import Spent, Task, Transformers, Vllm, Way, ours  # noqa: E402
from plaudit_cli.prompts import read, user  # noqa: E402
from plaudit_learner.policy import Policy  # noqa: E402
from plaudit_learner.ppo.rollouts import Rollout  # noqa: E402
from plaudit_learner.template import ChatTemplate, Message  # noqa: E402

OURS, GENERATE, GENERATE_BATCH, ENGINE = "ours", "generate", "generate_batch", "engine"
WAYS = [OURS, GENERATE, GENERATE_BATCH, ENGINE]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--prompts", type=Path, default=SEED_TASKS, help="as `plaudit simulate` takes them")
    parser.add_argument("--count", type=int, default=24, help="prompts of one turn")
    parser.add_argument("--repetitions", type=int, default=3, help="of each, in turns")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="ours is always among them")
    arguments = parser.parse_args(argv)
    small = arguments.size == "small"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
            model = model_directory(arguments.size, Path(temporary))
            wanted = [user(f"word {n} of it") for n in range(4)] if small else read(arguments.prompts)
            template = ChatTemplate(model)
            ids = dict.fromkeys(tuple(template.prompt([Message(*turn) for turn in one.turns])) for one in wanted)
            task = Task([prompt for prompt in ids if len(prompt) <= 128][: arguments.count])
            if small:
                task = replace(task, samples=2, max_new_tokens=12)
            spent = Spent()
            wanted_ways = [name for name in arguments.ways if not (small and name == ENGINE)]
            policy, ways, missing = loaded(model, Path(temporary), task, spent, stack, wanted_ways)
            rows = alternate(policy, ways, task, arguments.repetitions, spent)
    finally:
        torch.set_num_threads(threads)
    return conclude(arguments.size, rows, missing)


def loaded(
    model: Path, directory: Path, task: Task, spent: Spent, stack: ExitStack, wanted: Sequence[str]
) -> tuple[Policy, dict[str, Way], dict[str, str]]:
    """The policy, the ways that run here, warmed up, and of those that do not, why."""
    policy = Policy.load(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():
            if not weight.any():  # B begins as 0
                weight.normal_(0.0, 0.005, generator=generator)
    policy.save_adapter(directory / "adapter")
    theirs = Transformers(model, directory / "adapter", policy.eos_ids, spent)
    ways = {OURS: Way(lambda task, seed: ours(policy, task, seed))}
    if GENERATE in wanted:
        ways[GENERATE] = Way(theirs.generate)
    if GENERATE_BATCH in wanted:
        ways[GENERATE_BATCH] = Way(theirs.generate_batch)
    missing: dict[str, str] = {}
    if ENGINE in wanted and importlib.util.find_spec("vllm") is None:
        missing[ENGINE] = "vLLM is not installed"
    elif ENGINE in wanted:
        vllm = stack.enter_context(Vllm(model, policy, directory, task.at_once))
        ways[ENGINE] = Way(vllm.sample, vllm.renew, below=True)
    for name, way in list(ways.items()):
        try:
            way.renew()
            way.sample(replace(task, prompts=task.prompts[-4:], max_new_tokens=8), 0)
        except Exception as error:  # that a library's way does not run here is a result too
            if name == OURS:
                raise
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            del ways[name]
            print(f"{name} does not run here: {missing[name]}", flush=True)
    return policy, ways, missing


def alternate(
    policy: Policy, ways: dict[str, Way], task: Task, repetitions: int, spent: Spent
) -> dict[str, list[dict[str, float]]]:
    """What each turn of each took; every other repetition the other way round."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    apart = logprob_seconds(task.at_once, int(policy.model.config.vocab_size))
    for repetition in range(repetitions):
        for name in list(ways)[:: -1 if repetition % 2 else 1]:
            spent.cpu, spent.wall = {}, {}
            way = ways[name]
            with spent.on("new weights", below=way.below):
                way.renew()
            with spent.on("sampling", below=way.below):
                rollouts = way.sample(task, repetition + 1)
            tokens = sum(len(rollout.reply) for rollout in rollouts)
            logprobs = spent.cpu.get("log-probabilities", tokens * apart.get(name, 0.0))
            row = {
                "replies": len(rollouts),
                "tokens": tokens,
                "tokens_per_cpu_second": tokens / spent.cpu["sampling"],
                "tokens_per_second": tokens / spent.wall["sampling"],
                "new_weights_cpu_seconds": spent.cpu["new weights"],
                "new_weights_seconds": spent.wall["new weights"],
                "logprobs_share": logprobs / spent.cpu["sampling"],
                "logprob_error": distance(policy, rollouts[:: task.samples], task),
            }
            rows[name].append(row)
            figures = ", ".join(f"{key} {value:.4g}" for key, value in row.items())
            print(f"{name} {repetition + 1}: {spent.cpu['sampling']:.1f} CPU s, {figures}", flush=True)
    return rows


def logprob_seconds(rows: int, vocabulary: int) -> dict[str, float]:
    """CPU seconds for a token that each spends on log-probabilities: the same operations, timed apart.

    `generate`'s are timed in place, and not here.
    """
    logits_BV = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0))
    probabilities_BV, tokens_B1 = logits_BV.softmax(-1), logits_BV.argmax(-1, keepdim=True)

    def of_probabilities() -> None:
        probabilities_BV.gather(1, tokens_B1).log()

    def of_logits() -> None:  # vLLM's: and the token's rank
        logprobs_BV = logits_BV.log_softmax(-1)
        (logprobs_BV >= logprobs_BV.gather(1, tokens_B1)).sum(-1)

    found: dict[str, float] = {}
    for names, operations in (((OURS, GENERATE_BATCH), of_probabilities), ((ENGINE,), of_logits)):
        operations()
        began = time.process_time()
        for _ in range(10):
            operations()
        found |= dict.fromkeys(names, (time.process_time() - began) / 10 / rows)
    return found


def distance(policy: Policy, rollouts: Sequence[Rollout], task: Task) -> float:
    """The largest difference from the log-probabilities that the policy works out in one pass."""
    with torch.no_grad():
        logits_BTV, tokens_BT, _ = policy.reply_logits([rollout.item for rollout in rollouts])
        logprobs_BTV = torch.log_softmax(logits_BTV.float() / task.temperature, dim=-1)
    expected_BT: list[list[float]] = logprobs_BTV.gather(-1, tokens_BT[..., None])[..., 0].tolist()
    return max(
        abs(told - expected)
        for rollout, row in zip(rollouts, expected_BT, strict=True)
        for told, expected in zip(rollout.logprobs, row, strict=False)  # pads follow
    )


def conclude(size: str, rows: dict[str, list[dict[str, float]]], missing: dict[str, str]) -> int:
    """The table, and the object."""
    figures: dict[str, Any] = {"missing": missing, "of_ours": {}}
    print(
        "\n| | reply tokens per CPU s | of ours (lowest–highest) | per s "
        "| of it log-probabilities | new weights, CPU s |\n|---|---|---|---|---|---|"
    )
    for name, found in rows.items():
        rates, others = ([row["tokens_per_cpu_second"] for row in which] for which in (found, rows[OURS]))
        figures["of_ours"][name] = of = spread([rate / other for rate, other in zip(rates, others, strict=True)])
        figures[name] = {key: spread([row[key] for row in found]) for key in found[0] if key != "logprob_error"}
        figures[name]["logprob_error"] = max(row["logprob_error"] for row in found)
        print(
            f"| {name} | {statistics.median(rates):.1f} | {of['median']:.2f} ({of['min']:.2f}–{of['max']:.2f}) "
            f"| {figures[name]['tokens_per_second']['median']:.1f} | {figures[name]['logprobs_share']['median']:.2%} "
            f"| {figures[name]['new_weights_cpu_seconds']['median']:.2f} |"
        )
    for name, reason in missing.items():
        print(f"| {name} | does not run here: {reason} | | | | |")
    medians = [ratio["median"] for ratio in figures["of_ours"].values()]
    # The tiny model is all overhead: the small size only asks whether everything ran.
    goals = {"ours is the fastest per CPU second": max(medians) <= 1} if size == "full" else {"ran": not missing}
    return report("rollouts", size, figures=figures, goals=goals)


if __name__ == "__main__":
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(main())
