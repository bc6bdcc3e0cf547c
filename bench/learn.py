"""How fast the policy learns: one PPO update of ours beside one of TRL's last PPOTrainer, in CPU seconds.

The same model, prompts, replies to a prompt, length limit, temperature, LoRA, minibatches, one epoch, one thread each.
Both stay loaded; they take turns, so that what else the machine does meets both. TRL's has an environment of its own
(requirements/bench-learn.txt), made under bench/results/work.

TRL is given everything in bfloat16, its adapter too (ours is float32), eager attention (the faster one here), no
gradient checkpointing; and a reward model and a value model that cost nothing, while ours pays for its own. It samples
and reads 48 replies at once, ours 96: whether it is faster otherwise was not tried.

    make bench-learn [ARGS="--repetitions 5"] [SIZE=small]

SIZE=small: the hand-made tiny model, a minute; its figures say only that everything runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.offline import SEED_TASKS, model_directory  # noqa: E402
from bench.report import report, spread  # noqa: E402
from bench.rows import RESULTS  # noqa: E402
from plaudit_cli.prompts import read, user  # noqa: E402
from plaudit_learner.template import ChatTemplate, Message  # noqa: E402

REQUIREMENTS = ROOT / "requirements" / "bench-learn.txt"
GOAL = 2.0
OURS, TRL = "ours", "TRL"


@dataclass(frozen=True)
class Task:
    """One update of either, as both read it from their first line."""

    model: str
    prompts: list[list[int]]
    updates: int
    samples_per_prompt: int = 4
    minibatch_prompts: int = 8
    microbatch: int = 16
    """Replies in one pass forward and back; the gradients of a minibatch are added up."""
    max_new_tokens: int = 48
    temperature: float = 0.7
    rank: int = 16
    alpha: int = 32
    layers: int = 12


class EnvironmentMissingError(Exception):
    """TRL's PPO cannot be had here."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--prompts", type=Path, default=SEED_TASKS, help="as `plaudit simulate` takes them")
    parser.add_argument("--repetitions", type=int, default=3, help="updates of each")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of TRL's environment")
    arguments = parser.parse_args(argv)
    small = arguments.size == "small"
    try:
        packages = environment(arguments.results / "work")
    except EnvironmentMissingError as error:
        print(error, file=sys.stderr)
        return report("learn", arguments.size, figures={"missing": str(error)}, goals={"TRL's PPO is there": False})
    with tempfile.TemporaryDirectory() as temporary:
        model = model_directory(arguments.size, Path(temporary))
        template = ChatTemplate(model)
        wanted = [user(f"word {n} of it") for n in range(8)] if small else read(arguments.prompts)
        ids = [template.prompt([Message(*turn) for turn in prompt.turns]) for prompt in wanted]
        task = Task(
            str(model),
            [list(prompt) for prompt in dict.fromkeys(ids) if len(prompt) <= 128][: 8 if small else 24],
            arguments.repetitions,
            **({"minibatch_prompts": 4, "max_new_tokens": 16} if small else {}),
        )
        found = alternate(task, packages)
    return conclude(arguments.size, found)


def environment(work: Path) -> Path:
    """The directory of TRL's own packages, installed if it is not there.

    Raises EnvironmentMissingError, with pip's reason, if it cannot be installed.
    """
    pins = [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    target = work / "-".join(pins).replace("==", "-")
    if target.exists():
        return target
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as staging:
        made = Path(staging) / "packages"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*command, "--target", str(made), "-r", str(REQUIREMENTS)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise EnvironmentMissingError(f"TRL's PPO ({' '.join(pins)}) cannot be installed: {reason}")
        made.rename(target)
    return target


def alternate(task: Task, packages: Path) -> dict[str, list[dict[str, Any]]]:
    """As many updates of each as the task says, in turns; what each said of its own."""
    found: dict[str, list[dict[str, Any]]] = {OURS: [], TRL: []}
    with ExitStack() as stack:
        workers = {
            OURS: stack.enter_context(worker("learn_ours.py", task, [])),
            TRL: stack.enter_context(worker("learn_trl.py", task, [str(packages)])),
        }
        for number in range(task.updates):
            for name, process in workers.items():
                seen = update(process)
                found[name].append(seen)
                phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in seen["phases"].items())
                rate = seen["tokens"] / seen["seconds"]
                print(f"{name} {number + 1}: {seen['seconds']:.1f} CPU s, {rate:.1f} tokens/s ({phases})", flush=True)
    return found


@contextmanager
def worker(script: str, task: Task, first: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program that does one update for each line that it is sent, and answers with a line of JSON.

    first: directories whose packages win over the project's.
    """
    path = [*first, str(ROOT), *(path for path in sys.path if path)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "bench" / script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)},
    )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(task)) + "\n")
        process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.communicate()


def update(process: subprocess.Popen[str]) -> dict[str, Any]:
    """One update. Raises RuntimeError if the program ended instead; why stands on standard error."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith('{"seconds"'):  # libraries print too
            seen: dict[str, Any] = json.loads(line)
            return seen
    raise RuntimeError(f"{process.args!r} ended before its update did")


def conclude(size: str, found: dict[str, list[dict[str, Any]]]) -> int:
    """The table, and the object."""

    ratios = [
        theirs["seconds"] / ours["seconds"] * (ours["tokens"] / theirs["tokens"])
        for ours, theirs in zip(found[OURS], found[TRL], strict=True)
    ]
    figures: dict[str, Any] = {"times_as_fast": spread(ratios)}
    print("\n| | CPU s an update | tokens/s | of it |\n|---|---|---|---|")
    for name, rows in found.items():
        seconds = spread([row["seconds"] for row in rows])
        rate = spread([row["tokens"] / row["seconds"] for row in rows])
        phases = {
            phase: round(statistics.median(row["phases"][phase] for row in rows), 2) for phase in rows[0]["phases"]
        }
        figures[name] = {"cpu_seconds": seconds, "tokens_per_second": rate, "phases": phases}
        parts = ", ".join(f"{phase} {value:.1f}" for phase, value in phases.items())
        print(
            f"| {name} | {seconds['median']:.1f} ({seconds['min']:.1f}–{seconds['max']:.1f}) "
            f"| {rate['median']:.1f} | {parts} |"
        )
    fast = figures["times_as_fast"]
    print(f"\nOurs is {fast['median']:.2f} times as fast per reply token ({fast['min']:.2f}–{fast['max']:.2f}).")
    # The tiny model is all overhead: the small size only asks whether everything ran.
    goals = {f"at least {GOAL:g} times TRL's speed": fast["median"] >= GOAL} if size == "full" else {"ran": True}
    return report("learn", size, figures=figures, goals=goals)


if __name__ == "__main__":
    sys.exit(main())
