"""What bfloat16 costs or saves on this machine's CPU: the engine and an update of the policy, in it and in float32.

The same model (SmolLM2-135M), vLLM's bare engine with 1 and 4 callers, and one step of the learner (forward and
backward over 16 replies); both precisions in turn.

    make bench-precision [ARGS="--repetitions 3"] [SIZE=small]

The goal is that what Plaudit takes by itself (`plaudit/precision.py`) is the quicker one. SIZE=small: the
hand-made tiny model in float32 twice (vLLM's bfloat16 cannot run it everywhere): it only shows that everything runs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from bench.load import steady  # noqa: E402
from bench.report import report  # noqa: E402
from bench.sides import Bare, both  # noqa: E402
from plaudit.precision import cpu_wants_float32  # noqa: E402
from plaudit_learner.policy import Policy, PromptReply  # noqa: E402

CALLERS = (1, 4)
Found = dict[str, list[float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    small = arguments.size == "small"
    repetitions = 1 if small else arguments.repetitions
    with tempfile.TemporaryDirectory() as temporary:
        engine, steps = asyncio.run(measured(arguments.size, repetitions, Path(temporary) / "data"))
    print("\n| float32, of bfloat16 | median | least | most |\n|---|---|---|---|")
    figures = {}
    for name, ratios in [*engine.items(), ("an update's seconds", steps)]:
        figures[name] = {
            "median": round(statistics.median(ratios), 2),
            "least": round(min(ratios), 2),
            "most": round(max(ratios), 2),
        }
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in figures[name].values())} |")
    quicker = statistics.median(engine[f"tokens/s, {CALLERS[-1]} callers"]) > 1, statistics.median(steps) < 1
    goals = {"ran": True}
    if not small:
        parts = zip(("the engine with several callers", "the learner"), quicker, strict=True)
        goals = {f"{part}: what is taken is the quicker one": faster is cpu_wants_float32() for part, faster in parts}
    return report("precision", arguments.size, figures=figures, goals=goals)


async def measured(size: str, repetitions: int, data: Path) -> tuple[Found, list[float]]:
    """float32's tokens/s of bfloat16's by number of callers, and its seconds an update of bfloat16's."""
    ours, _ = both(size, data)
    precisions = ["float32", "float32" if size == "small" else "bfloat16"]
    engine: Found = {f"tokens/s, {callers} callers": [] for callers in CALLERS}
    steps = []
    for repetition in range(repetitions):
        order = [0, 1][:: -1 if repetition % 2 else 1]
        speeds, seconds = {}, {}
        for which in order:
            settings = ours.settings.model_copy(update={"dtype": precisions[which]})
            speeds[which] = await sampled(Bare(settings, data / "bare.log"), repetition)
        for which in order:
            seconds[which] = step(Path(settings.model), exact=which == 0)
        print("tokens/s", speeds, "an update, s", seconds, flush=True)
        for name, exact, half in zip(engine, speeds[0], speeds[1], strict=True):
            engine[name].append(exact / half)
        steps.append(seconds[0] / seconds[1])
    return engine, steps


async def sampled(engine: Bare, repetition: int) -> list[float]:
    """Tokens/s by number of callers."""
    async with engine:
        await engine.ready()
        await engine.measure(steady(1, 0, 2, (8, 8)))  # warm
        loads = [steady(callers, repetition, 2 * callers, (24, 24)) for callers in CALLERS]
        return [(await engine.measure(load))["tokens/s"] for load in loads]


def step(model: Path, *, exact: bool) -> float:
    """Seconds of one forward and backward pass of the learner, one thread."""
    with patch("plaudit_learner.policy.cpu_wants_float32", lambda: exact):
        policy = Policy.load(model)
    torch.set_num_threads(1)
    items = [PromptReply(tuple(range(5, 45)), tuple(range(50, 98)), finished=True)] * 16
    for _ in range(2):  # the first one warms
        began = time.process_time()
        logits, _, mask = policy.reply_logits(items)
        (torch.log_softmax(logits.float(), -1)[..., 7] * mask).sum().backward()
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
