"""The loop, end to end: simulated users chat and vote, the learner learns, new versions answer; does approval rise?

Votes are given on one part of the prompts; true approval (the persona's own probability of a thumbs-up, without its
noise) is measured on the other part, which the learner never sees: those replies are sampled unrecorded. Prints the
README's table.

    make bench-loop [ARGS="--prompts FILE --persona NAME --kafka --servers N"] [SIZE=small]

SIZE=small: a hand-made tiny model on the torch engine, a minute. Full: SmolLM2-135M on vLLM, 300 conversations.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import tiny  # noqa: E402
from bench.deployment import running, until_round  # noqa: E402
from bench.report import report  # noqa: E402
from plaudit_cli import personas  # noqa: E402
from plaudit_cli.personas import Persona  # noqa: E402
from plaudit_cli.prompts import Prompt, read, split  # noqa: E402
from plaudit_cli.simulation import Simulation, approval, run  # noqa: E402
from plaudit_cli.tally import Approval, Tally  # noqa: E402
from plaudit_client import AsyncClient  # noqa: E402

SEED_TASKS = ROOT.parent / "shared" / "data" / "self-instruct-seed" / "seed_tasks.jsonl"
HELD_OUT = 0.3


@dataclass(frozen=True)
class Size:
    """How large a run is."""

    rounds: int
    conversations: int
    """In each round; all of them vote."""
    samples: int
    """Replies to held-out prompts, for each version."""
    max_tokens: int
    temperature: float
    options: tuple[str, ...]
    seconds_per_round: float


# A round begins at less than is voted: what one voter says again of much the same prompt weighs less than a vote.
FULL = Size(3, 100, 240, 48, 0.7, ("--learner-option=votes-per-round=80",), 3600.0)
SMALL = Size(
    2,
    200,
    400,
    24,
    1.0,
    (
        "--engine=torch",
        "--server-option=max-context=512",
        "--server-option=max-tokens=256",
        "--learner-option=votes-per-round=160",
        "--learner-option=max-new-tokens=24",
        # Few enough that a round ends halfway, and leaves the next one something to gain.
        "--learner-option=iterations=4",
    ),
    300.0,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--prompts", type=Path, default=SEED_TASKS)
    parser.add_argument("--persona", default="brief")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--kafka", action="store_true", help="through the embedded Kafka broker")
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--data", type=Path, help="keep the deployment's directory here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        return asyncio.run(measure(arguments, arguments.data or Path(temporary) / "data"))


async def measure(arguments: argparse.Namespace, data: Path) -> int:
    size = SMALL if arguments.size == "small" else FULL
    persona = personas.load(arguments.persona)
    # Served at once: what is asked is whether it learns, and a trial would take votes that a round could learn from.
    options = [*size.options, f"--learner-option=seed={arguments.seed}", "--learner-option=canary-share=0"]
    if arguments.size == "small":
        options.append(f"--model={_tiny_model(data / 'model')}")
        prompts = tiny.pairs()
    else:
        options.append(f"--engine={arguments.engine}")
        prompts = read(arguments.prompts)
    if arguments.kafka:
        options.append("--kafka")
    train, held_out = split(prompts, HELD_OUT)
    print(
        f"{persona.name}: {persona.description}; {len(train)} prompts to vote on, {len(held_out)} held out", flush=True
    )

    began = time.monotonic()
    rows: list[Row] = []
    async with running(data, *options, servers=arguments.servers) as deployment:
        client = deployment.clients[0]
        rows.append(Row("v0", await held(client, persona, held_out, "v0", size), Tally(), 0.0, 0.0))
        for number in range(1, size.rounds + 1):
            simulation = Simulation(
                size.conversations,
                seed=1000 * arguments.seed + number,
                max_tokens=size.max_tokens,
                temperature=size.temperature,
            )
            summary = await run(client, persona, train, simulation)
            rows[-1].add(summary.versions)
            print(rows[-1].text(), flush=True)
            try:
                policies = await until_round(client, number, size.seconds_per_round)
            except TimeoutError:
                print(f"round {number} has not ended: the learner waits for more votes, or is slow; see the log")
                break
            newest = policies.policies[-1]
            print(f"round {number}: {newest.version} is {newest.state}: {newest.reason}", flush=True)
            if policies.serving_version != rows[-1].version:
                approved = await held(client, persona, held_out, policies.serving_version, size)
                minutes = (time.monotonic() - began) / 60
                rows.append(Row(policies.serving_version, approved, Tally(), newest.metrics["kl"], minutes))
        print(rows[-1].text(), flush=True)
    return conclude(arguments.size, persona, rows, (time.monotonic() - began) / 60)


@dataclass
class Row:
    """One version."""

    version: str
    held_out: Approval
    votes: Tally
    kl: float
    minutes: float

    def add(self, votes: dict[str, Tally]) -> None:
        """Count the votes on this version; it may answer for several rounds."""
        more = votes.get(self.version, Tally())
        self.votes = Tally(self.votes.up + more.up, self.votes.down + more.down, self.votes.liked + more.liked)

    def text(self) -> str:
        """The row of the table."""
        votes = "–"
        if self.votes.votes:
            low, high = self.votes.interval
            votes = f"{self.votes.rate:.2f} ({low:.2f}–{high:.2f}) of {self.votes.votes}"
        return (
            f"| {self.version} | {self.held_out.mean:.3f} ± {self.held_out.standard_error:.3f} | {votes} "
            f"| {self.kl:.2f} | {self.minutes:.0f} |"
        )


def conclude(size: str, persona: Persona, rows: list[Row], minutes: float) -> int:
    gain, error = rows[-1].held_out.minus(rows[0].held_out)
    print("\n| version | true approval, held-out prompts | votes: approval (95 %) | KL, nats a reply | after, min |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(row.text())
    print(f"\ngain on held-out prompts, paired by prompt: {gain:+.3f} ± {error:.3f}; {minutes:.0f} minutes in all")
    figures = {
        "persona": persona.name,
        "gain": round(gain, 4),
        "standard_error": round(error, 4),
        "versions": [
            {
                "version": row.version,
                "held_out_approval": round(row.held_out.mean, 4),
                "standard_error": round(row.held_out.standard_error, 4),
                "votes": row.votes.votes,
                "voted_approval": round(row.votes.rate, 4) if row.votes.votes else None,
                "kl": round(row.kl, 3),
            }
            for row in rows
        ],
        "minutes": round(minutes, 1),
    }
    goals = {"at least two new versions served": len(rows) >= 3, "gain above 2 standard errors": gain > 2 * error}
    return report("loop", size, figures=figures, goals=goals)


async def held(client: AsyncClient, persona: Persona, prompts: list[Prompt], version: str, size: Size) -> Approval:
    return await approval(
        client, persona, prompts, version, size.samples, max_tokens=size.max_tokens, temperature=size.temperature
    )


def _tiny_model(directory: Path) -> Path:
    from tests.tiny_model import make_tiny_model

    return make_tiny_model(directory)


if __name__ == "__main__":
    sys.exit(main())
