"""Does learning on the same machine make users wait? Time to the first token and tokens/s, with and without it.

One server (vLLM where it is installed) answers a few callers who ask again as soon as they are answered. The learner is
`improve`, the loop of PPO updates as plaudit-learner calls it, one thread, in a session of its own as `plaudit up`
starts it. It is stopped and continued (SIGSTOP, SIGCONT), and its session's share changed, between windows of some
seconds that take turns:

    alone        the learner is stopped
    equal        it runs, and the kernel shares cores out as among equals
    gives way    it runs as `plaudit up` has it run: its session at niceness 19
    pinned       it runs as before, and on the last core only

    make bench-beside [ARGS="--repetitions 8 --callers 2"] [SIZE=small]

SIZE=small: the hand-made tiny model on the torch engine, a few seconds each; its figures say only that everything runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.deployment import free_range  # noqa: E402
from bench.learn import Task  # noqa: E402
from bench.offline import model_directory  # noqa: E402
from bench.processes import Kept, until_listening  # noqa: E402
from bench.report import report, spread  # noqa: E402
from plaudit_client import AsyncClient  # noqa: E402
from plaudit_learner.template import ChatTemplate, Message  # noqa: E402

GOAL = 1.5  # the first token's p99, beside over alone
ALONE, EQUAL, GIVES_WAY, PINNED = "alone", "equal", "gives way", "pinned"
CONDITIONS = (ALONE, EQUAL, GIVES_WAY, PINNED)
REPLY_TOKENS = 24


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--repetitions", type=int, help="windows of each kind")
    parser.add_argument("--seconds", type=float, help="of a window")
    parser.add_argument("--callers", type=int, default=4)
    arguments = parser.parse_args(argv)
    small = arguments.size == "small"
    repetitions = arguments.repetitions or (1 if small else 5)
    seconds = arguments.seconds or (1.0 if small else 12.0)
    with tempfile.TemporaryDirectory() as temporary:
        model = model_directory(arguments.size, Path(temporary))
        measured = asyncio.run(
            measure(model, Path(temporary), "torch" if small else "auto", arguments.callers, repetitions, seconds)
        )
    return conclude(arguments.size, measured)


async def measure(
    model: Path, work: Path, engine: str, callers: int, repetitions: int, seconds: float
) -> dict[str, list[dict[str, Any]]]:
    """The windows of each condition."""
    address = f"127.0.0.1:{free_range(1)}"
    (work / "receipt.key").write_bytes(os.urandom(32))
    command = [
        *(sys.executable, "-m", "plaudit_server.app", f"--model={model}", f"--engine={engine}"),
        *(
            f"--listen={address}",
            "--control-listen=127.0.0.1:0",
            f"--event-log=sqlite:{work / 'events.sqlite'}",
            f"--policy-store={work / 'versions'}",
        ),
        *(
            f"--state-dir={work / 'server'}",
            f"--receipt-keys={work / 'receipt.key'}",
            f"--user-key-file={work / 'receipt.key'}",
        ),
    ]
    windows: dict[str, list[dict[str, Any]]] = {condition: [] for condition in CONDITIONS}
    with ExitStack() as stack:
        async with Kept("server", command, work / "server.log"):
            learner = stack.enter_context(learning(model, work))
            await until_listening(address, 300)
            async with AsyncClient(address) as client:
                await window(client, callers, min(seconds, 3.0))  # to warm up
                for repetition in range(repetitions):
                    for condition in CONDITIONS[:: 1 if repetition % 2 else -1]:
                        arrange(learner.pid, condition)
                        found = await window(client, callers, seconds)
                        windows[condition].append(found)
                        print(f"{condition}: {describe([found])}", flush=True)
    return windows


@contextmanager
def learning(model: Path, work: Path) -> Iterator[subprocess.Popen[str]]:
    """The learner's updates, without end."""
    template = ChatTemplate(model)
    prompts = [template.prompt([Message("user", f"Tell me of {thing}s, please.")]) for thing in _THINGS]
    task = Task(str(model), [list(prompt) for prompt in prompts], updates=10_000)
    with (work / "learner.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "bench" / "learn_ours.py")],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(task)) + "\n" + "go\n" * task.updates)
        process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.wait()


_THINGS = ("river", "stone", "cloud", "tree", "bird", "fish", "moon", "star", "wind", "house", "road", "king")


def arrange(learner: int, condition: str) -> None:
    """Stop the learner, or let it run in one way."""
    os.kill(learner, signal.SIGSTOP if condition == ALONE else signal.SIGCONT)
    nice = 19 if condition in (GIVES_WAY, PINNED) else 0
    autogroup = Path(f"/proc/{learner}/autogroup")
    if autogroup.exists():
        autogroup.write_text(str(nice))
    os.setpriority(os.PRIO_PROCESS, learner, nice)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(learner, {max(cores)} if condition == PINNED else cores)


async def window(client: AsyncClient, callers: int, seconds: float) -> dict[str, Any]:
    """Seconds to each first token, and tokens/s."""
    first: list[float] = []
    tokens = 0
    began = time.perf_counter()

    async def call(number: int) -> None:
        nonlocal tokens
        turn = 0
        while time.perf_counter() - began < seconds:
            asked = time.perf_counter()
            turn += 1
            reply = client.chat(f"Say something of {number} and {turn}.", max_tokens=REPLY_TOKENS)
            waiting = True
            async for _ in reply:
                if waiting:
                    first.append(time.perf_counter() - asked)
                    waiting = False
            assert reply.usage is not None
            tokens += reply.usage.completion_tokens

    await asyncio.gather(*[call(number) for number in range(callers)])
    return {"first": first, "tokens_per_second": tokens / (time.perf_counter() - began)}


def describe(windows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of some windows together."""
    first = sorted(1e3 * one for found in windows for one in found["first"])
    return {
        "first_token_p50_ms": round(statistics.median(first), 1),
        "first_token_p99_ms": round(first[int(0.99 * (len(first) - 1))], 1),
        "tokens_per_second": round(statistics.median(found["tokens_per_second"] for found in windows), 1),
        "requests": len(first),
    }


def conclude(size: str, windows: dict[str, list[dict[str, Any]]]) -> int:
    """The table, and the object."""
    figures: dict[str, Any] = {condition: describe(found) for condition, found in windows.items()}
    print("\n| | first token p50 | p99, ms | of alone's | tokens/s | of alone's |\n|---|---|---|---|---|---|")
    for condition, found in windows.items():
        row, alone = figures[condition], figures[ALONE]
        row["p99_ratio"] = round(row["first_token_p99_ms"] / alone["first_token_p99_ms"], 3)
        for key, name in (("first_token_p50_ms", "p50_ratio"), ("tokens_per_second", "speed_ratio")):
            row[name] = spread(
                [describe([a])[key] / describe([b])[key] for a, b in zip(found, windows[ALONE], strict=True)]
            )
        speed = row["speed_ratio"]
        print(
            f"| {condition} | {row['first_token_p50_ms']} | {row['first_token_p99_ms']} | {row['p99_ratio']} "
            f"| {row['tokens_per_second']} | {speed['median']} ({speed['min']}–{speed['max']}) |"
        )
    goals = {
        f"the first token's p99 beside the learner, at most {GOAL:g} times": figures[GIVES_WAY]["p99_ratio"] <= GOAL
    }
    return report("beside", size, figures=figures, goals=goals if size == "full" else {"ran": True})


if __name__ == "__main__":
    sys.exit(main())
