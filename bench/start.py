"""How long until it serves: plaudit-server until health says SERVING, vLLM's own server until /health says 200.

The same model (SmolLM2-135M) and settings of vLLM; one after the other, in turn, each alone; every start is a new
process with a new state directory. Then some requests, one after the other: is the first as fast as the next?

    make bench-start [ARGS="--repetitions 3 --run NAME --table"] [SIZE=small]

Rows are kept in bench/results/start.jsonl. SIZE=small: the hand-made tiny model, once.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.load import Load, steady  # noqa: E402
from bench.report import report  # noqa: E402
from bench.rows import RESULTS, Row, Rows  # noqa: E402
from bench.sides import Side, both  # noqa: E402
from bench.stream import OURS, VLLM, spread  # noqa: E402

REQUESTS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--run", default="main", help="rows of another name are neither read nor mixed in")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the rows")
    parser.add_argument("--table", action="store_true", help="only print what the rows say")
    arguments = parser.parse_args()
    if arguments.size == "small":
        arguments.results, arguments.repetitions = arguments.results / "small", 1
    rows = Rows(arguments.results / "start.jsonl")
    common = {"run": arguments.run, "size": arguments.size}
    if not arguments.table:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
        for repetition in range(arguments.repetitions):
            if rows.get(key := {**common, "repetition": repetition}) is None:
                rows.add(key, asyncio.run(started(arguments.size, first=repetition % 2)))
    return conclude(arguments.size, rows.matching(common))


async def started(size: str, first: int) -> Row:
    """One start of each side; `first`: which of them."""
    with tempfile.TemporaryDirectory() as temporary:
        sides = dict(zip((OURS, VLLM), both(size, Path(temporary)), strict=True))
        row = {}
        for name in sorted(sides, reverse=bool(first)):
            row[name] = await start(sides[name])
            print(f"{name:<14}", row[name], flush=True)
    return row


async def start(side: Side) -> dict[str, float]:
    """Its start, and its first requests."""
    began = time.monotonic()
    async with side:
        await side.ready()
        seconds = time.monotonic() - began
        heard = [await side.ask(request) for request in questions().requests]
    first, *others = (one.arrivals[0] - one.asked for one in heard)
    return {
        "ready, s": round(seconds, 2),
        "first request's first token, ms": round(1000 * first, 1),
        "next ones', median, ms": round(1000 * statistics.median(others), 1),
    }


def questions() -> Load:
    return steady(1, 0, REQUESTS, (8, 8))


def conclude(size: str, rows: list[Row]) -> int:
    """The table, and the object."""
    print("\n| | ready, s | first token of the first request, ms | of the next ones |")
    print("|---|---|---|---|")
    for side in (OURS, VLLM):
        names = ("ready, s", "first request's first token, ms", "next ones', median, ms")
        values = [statistics.median(row[side][name] for row in rows) for name in names]
        print(f"| {side} | {values[0]:.1f} | {values[1]:.0f} | {values[2]:.0f} |")
    ratio = spread(rows, OURS, VLLM, "ready, s")
    goals = {"no later than vLLM's server": ratio["median"] <= 1} if size == "full" else {"ran": True}
    return report("start", size, figures={"ready, of vLLM's server's": ratio, "starts": len(rows)}, goals=goals)


if __name__ == "__main__":
    sys.exit(main())
