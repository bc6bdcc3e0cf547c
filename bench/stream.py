"""How much of the engine's speed reaches the caller: Plaudit, beside vLLM's own server, beside the bare engine.

The same model (SmolLM2-135M), the same settings of vLLM, the same machine, one after the other in each repetition, the
order turned each time; a ratio is always of one repetition. Loads: 1, 4, 16 and 64 callers, each of which asks again as
soon as it was answered, and a replay of a public trace (load.py says how it is scaled).

What is compared is not quite alike, to our disadvantage: Plaudit always takes each token's log-probability and records
each reply in the event log, vLLM's server does neither, as its user would have it. What that costs is measured, too:
`unrecorded` is Plaudit asked to keep the reply out of the log (nothing else changes: log-probabilities are still
taken), `no log-probabilities` is the bare engine not asked for them.

CPU is that of the process in front of the engine, user and system. The caller is this process, or for the bare engine
part of its own.

    make bench-stream [ARGS="--loads 1 4 16 64 trace --repetitions 5 --minutes 6 --run NAME --table"] [SIZE=small]

Rows are kept in bench/results/stream.jsonl, those that are there already are not measured again; --minutes stops early,
and the next call goes on from there. --run tells apart what is not to be mixed, e.g. before and after a change.
SIZE=small: the hand-made tiny model, 4 callers; its figures say only that everything runs.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.load import TRACE, Load, replay, steady  # noqa: E402
from bench.report import report  # noqa: E402
from bench.rows import RESULTS, Row, Rows  # noqa: E402
from bench.sides import Bare, OpenAi, Plaudit, Side, both  # noqa: E402

LOADS = ("1", "4", "16", "64", "trace")
OURS, UNRECORDED, VLLM, BARE, PLAIN = "Plaudit", "unrecorded", "vLLM's server", "the engine", "no log-probabilities"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no repetition that would end after so many")
    parser.add_argument("--run", default="main", help="rows of another name are neither read nor mixed in")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the rows")
    parser.add_argument("--data", type=Path, help="keep the programs' files, logs included, here")
    parser.add_argument("--table", action="store_true", help="only print what the rows say")
    arguments = parser.parse_args()
    if arguments.size == "small":
        arguments.results, arguments.loads, arguments.repetitions = arguments.results / "small", ["4"], 1
    if "trace" in arguments.loads and not TRACE.exists():
        print(f"no replay of the trace: {TRACE.name} is not there")
        arguments.loads.remove("trace")
    rows = Rows(arguments.results / "stream.jsonl")
    if not arguments.table:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
        with tempfile.TemporaryDirectory() as temporary:
            data = arguments.data or Path(temporary) / "data"
            asyncio.run(Bench(arguments, rows, data).run())
    return conclude(arguments.size, rows.matching({"run": arguments.run, "size": arguments.size}))


class Bench:
    """All sides up, each measured in turn."""

    def __init__(self, arguments: argparse.Namespace, rows: Rows, data: Path) -> None:
        self._arguments, self._rows, self._data = arguments, rows, data
        self._ends = time.monotonic() + 60 * arguments.minutes

    async def run(self) -> None:
        """Measure what is not measured yet, until the time is over."""
        missing = [
            (load, repetition)
            for repetition in range(self._arguments.repetitions)
            for load in self._arguments.loads
            if self._rows.get(self._key(load, repetition)) is None
        ]
        if not missing:
            return
        async with AsyncExitStack() as stack:
            ours, vllm = both(self._arguments.size, self._data)
            bare = Bare(ours.settings, self._data / "bare.log")
            for side in (ours, vllm, bare):
                await stack.enter_async_context(side)
            for side in (ours, vllm, bare):
                await side.ready()
                await side.measure(steady(4, 0, 8, (8, 8)))  # warm
                side.pause()
            longest: dict[str, float] = {}
            for load, repetition in missing:
                began = time.monotonic()
                if began + longest.get(load, 60.0) > self._ends:
                    print("the time is over; the same command goes on from here", flush=True)
                    return
                sides = variants(ours, vllm, bare, all_of_them=load != "trace")
                row = await self._measured(sides, load, repetition)
                longest[load] = time.monotonic() - began
                self._rows.add(self._key(load, repetition), row)

    async def _measured(self, variants: list[Variant], name: str, repetition: int) -> Row:
        load = self._load(name, repetition)
        found = {}
        for side, told, prepare in turned(variants, repetition):
            prepare()
            side.go_on()
            found[told] = await side.measure(load)
            side.pause()
            print(f"{name:>5} #{repetition} {told:<21}", found[told], flush=True)
        return found

    def _load(self, name: str, repetition: int) -> Load:
        if name == "trace":
            return replay(TRACE, repetition, 60)
        callers = int(name)
        return steady(callers, repetition, max(6, round(callers * 1.5)), (24, 72))

    def _key(self, load: str, repetition: int) -> Row:
        return {"run": self._arguments.run, "size": self._arguments.size, "load": load, "repetition": repetition}


Variant = tuple[Side, str, Callable[[], None]]


def variants(ours: Plaudit, vllm: OpenAi, bare: Bare, *, all_of_them: bool) -> list[Variant]:
    """What is measured of each side, under which name, and what is to be said to it before."""

    def ask(side: Side, **how: bool) -> Callable[[], None]:
        return lambda: vars(side).update(how)

    found: list[Variant] = [
        (ours, OURS, ask(ours, unrecorded=False)),
        (vllm, VLLM, ask(vllm)),
        (bare, BARE, ask(bare, logprobs=True)),
    ]
    if all_of_them:
        found.insert(1, (ours, UNRECORDED, ask(ours, unrecorded=True)))
        found.append((bare, PLAIN, ask(bare, logprobs=False)))
    return found


def turned(variants: list[Variant], by: int) -> list[Variant]:
    """Each begins once."""
    by %= len(variants)
    return variants[by:] + variants[:by]


def conclude(size: str, rows: list[Row]) -> int:
    """The table, and the object."""
    loads = [load for load in LOADS if any(row["key"]["load"] == load for row in rows)]
    found = {load: [row for row in rows if row["key"]["load"] == load] for load in loads}
    print(
        "\n| callers | | tokens/s | of the engine's | first token, ms: p50, p99 | between two, ms: p50, p99 "
        "| CPU s / 1,000 tokens |"
    )
    print("|---|---|---|---|---|---|---|")
    for load in loads:
        for side in (OURS, UNRECORDED, VLLM, BARE, PLAIN):
            if side in found[load][0]:
                print(line(load, side, found[load]))
    figures = {load: ratios(found[load]) for load in loads}
    goals = {"ran": bool(loads)}
    if size == "full":
        for load in loads:
            met = {name: spread["median"] for name, spread in figures[load].items()}
            goals |= {
                f"{load}: at least 0.97 of the engine's tokens/s": met["tokens/s, of the engine's"] >= 0.97,
                f"{load}: less CPU than vLLM's server": met["CPU, of vLLM's server's"] < 1,
                f"{load}: first token before vLLM's server's, p50": met["first token p50, of vLLM's server's"] < 1,
                f"{load}: and p99": met["first token p99, of vLLM's server's"] < 1,
            }
            if UNRECORDED in found[load][0]:
                goals[f"{load}: recording costs at most 5 % of tokens/s"] = met["tokens/s, of unrecorded"] >= 0.95
    return report("stream", size, figures=figures, goals=goals)


def line(load: str, side: str, rows: Sequence[Row]) -> str:
    """Medians over the repetitions; of the ratio the range, too."""

    def median(name: str) -> float:
        values: list[float] = [row[side][name] for row in rows]
        return statistics.median(values)

    share = spread(rows, side, BARE, "tokens/s")
    return (
        f"| {load} | {side} | {median('tokens/s'):.1f} "
        f"| {share['median']:.3f} ({share['least']:.3f}–{share['most']:.3f}) "
        f"| {median('first token p50, ms'):.0f}, {median('first token p99, ms'):.0f} "
        f"| {median('between p50, ms'):.1f}, {median('between p99, ms'):.1f} "
        f"| {median('CPU s/1,000 tokens'):.3f} |"
    )


def ratios(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """What the goals are about, each of one repetition."""
    found = {
        "tokens/s, of the engine's": spread(rows, OURS, BARE, "tokens/s"),
        "tokens/s, of vLLM's server's": spread(rows, OURS, VLLM, "tokens/s"),
        "CPU, of vLLM's server's": spread(rows, OURS, VLLM, "CPU s/1,000 tokens"),
        "first token p50, of vLLM's server's": spread(rows, OURS, VLLM, "first token p50, ms"),
        "first token p99, of vLLM's server's": spread(rows, OURS, VLLM, "first token p99, ms"),
    }
    if UNRECORDED in rows[0]:
        found["tokens/s, of unrecorded"] = spread(rows, OURS, UNRECORDED, "tokens/s")
        found["tokens/s of the engine, of it without log-probabilities"] = spread(rows, BARE, PLAIN, "tokens/s")
    return found


def spread(rows: Sequence[Row], side: str, other: str, name: str) -> dict[str, float]:
    """Median and range of the repetitions' ratios."""
    values: list[float] = [row[side][name] / row[other][name] for row in rows]
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
