"""More requests than the machine can answer: what it still answers in time, and what grows.

Requests come as a Poisson process, whether earlier ones are answered or not (open loop), at 0.5, 1 and 2 times what the
machine can answer, which is measured first: replies a second with all places taken. Goodput is tokens a second, as they
come, of replies that end within 8 times what a reply takes alone. One request in ten is a modest user's, all others are
one greedy user's. Beside it, in the same run, a server with a queue of 64, which holds more than can be answered in
time.

    make bench-overload [ARGS="--repetitions 3 --waiting 16 64"] [SIZE=small]

--waiting: queue lengths to compare; the first one counts (default: the server's default, and 64). SIZE=small: the
hand-made tiny model on the torch engine, a minute; full: SmolLM2-135M on vLLM, six minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.deployment import free_range, serves  # noqa: E402
from bench.report import report  # noqa: E402
from bench.tiny import pairs  # noqa: E402
from plaudit_client import AsyncClient, ResourceExhausted  # noqa: E402
from plaudit_server.config import ServerSettings  # noqa: E402

LOADS = (0.5, 1.0, 2.0)
OBJECTIVE = 8.0  # times the latency of a reply that is alone: all places taken, a token takes some 3 to 4 times as long
GOAL = 0.9
MODEST = 0.1  # the modest user's share of requests
_START_SECONDS = 300.0


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    engine: str
    max_running: int
    max_tokens: tuple[int, int]
    """From, to: of different lengths, or replies would begin and end in waves."""
    alone: int
    """Replies, one after another."""
    capacity_seconds: float
    fill_seconds: float
    """Of a load, before anything is counted."""
    count_seconds: float


SIZES = {
    "small": Size("torch", 4, (16, 48), 5, 4.0, 2.0, 4.0),
    "full": Size("vllm", 16, (16, 48), 7, 14.0, 5.0, 12.0),
}


@dataclass(frozen=True)
class Answer:
    """One reply."""

    tokens: int
    seconds: float
    pieces: list[float]
    """When each came."""


@dataclass
class Outcome:
    """What became of the requests of one load, while it was counted."""

    seconds: float
    good_tokens: float = 0.0
    tokens: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    """Seconds until each was refused."""
    hinted: int = 0
    """Refusals that say when to come back."""
    modest: list[bool] = field(default_factory=list)
    """Of the modest user's requests: whether they were answered in time."""

    @property
    def goodput(self) -> float:
        """Tokens a second."""
        return self.good_tokens / self.seconds


class Server:
    """A server of its own, seen from outside."""

    def __init__(self, client: AsyncClient, process: psutil.Process, metrics_port: int, size: Size) -> None:
        self.client = client
        self.size = size
        self._process = process
        self._metrics_port = metrics_port
        self._prompts = pairs()

    async def ask(self, chance: random.Random, user_id: str = "greedy") -> Answer:
        """Raises ResourceExhausted."""
        began = time.perf_counter()
        prompt = chance.choice(self._prompts)
        reply = self.client.chat(prompt.turns[-1][1], max_tokens=chance.randint(*self.size.max_tokens), user_id=user_id)
        pieces = [time.perf_counter() async for _ in reply]
        assert reply.usage is not None
        return Answer(reply.usage.completion_tokens, time.perf_counter() - began, pieces)

    def waiting(self) -> float:
        """Requests in the queue now."""
        with urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return next(f.samples[0].value for f in families if f.name == "plaudit_requests_waiting")

    def size_now(self) -> dict[str, float]:
        """What may not grow, over the server and its engine's processes."""
        processes = [self._process, *self._process.children(recursive=True)]
        return {
            "MB": sum(process.memory_info().rss for process in processes) / 1e6,
            "threads": sum(process.num_threads() for process in processes),
            "files": sum(process.num_fds() for process in processes),
        }


@asynccontextmanager
async def server(size: Size, model: str, waiting: int, work: Path) -> AsyncIterator[Server]:
    port, metrics_port = free_range(1), free_range(1)
    work.mkdir()
    (work / "key").write_bytes(b"k" * 32)
    command = [sys.executable, "-m", "plaudit_server.app", f"--model={model}", f"--engine={size.engine}"]
    command += [f"--listen=127.0.0.1:{port}", f"--metrics-port={metrics_port}", f"--max-waiting={waiting}"]
    command += [f"--event-log=sqlite:{work / 'events'}", f"--policy-store={work / 'versions'}"]
    command += [f"--state-dir={work / 'state'}", f"--receipt-keys={work / 'key'}", f"--user-key-file={work / 'key'}"]
    command += [f"--control-listen=127.0.0.1:{free_range(1)}"]
    command += [f"--max-running={size.max_running}"]
    with (work / "server.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        try:
            async with AsyncClient(f"127.0.0.1:{port}", max_retries=0) as client, asyncio.timeout(None) as patience:
                patience.reschedule(asyncio.get_running_loop().time() + _START_SECONDS)
                while not await serves(client):
                    if process.returncode is not None:
                        raise RuntimeError(f"the server ended: {(work / 'server.log').read_text()[-2000:]}")
                    await asyncio.sleep(0.1)
                patience.reschedule(None)
                yield Server(client, psutil.Process(process.pid), metrics_port, size)
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await process.wait()


async def alone(target: Server) -> float:
    """Seconds that a reply takes when it is the only one: the median."""
    chance = random.Random(1)
    return statistics.median([(await target.ask(chance)).seconds for _ in range(target.size.alone)])


async def capacity(target: Server) -> float:
    """Replies a second when as many callers as there are places, and a few more, each ask again once answered."""
    size, chance = target.size, random.Random(2)
    ends: list[float] = []

    async def caller() -> None:
        while True:
            await target.ask(chance)
            ends.append(time.perf_counter())

    callers = [asyncio.create_task(caller()) for _ in range(size.max_running + 2)]
    await asyncio.sleep(size.capacity_seconds)
    await cancelled(callers)
    counted = [end for end in ends if end > ends[0] + size.capacity_seconds / 4]  # all places are taken by then
    return (len(counted) - 1) / (counted[-1] - counted[0])


async def load(target: Server, rate: float, objective: float, fill_seconds: float, seed: int) -> tuple[Outcome, float]:
    """Send `rate` requests a second; returns what ended while it was counted, and the longest queue that was seen."""
    size, chance = target.size, random.Random(seed)
    outcome = Outcome(size.count_seconds)
    begin = time.perf_counter() + fill_seconds
    end = begin + size.count_seconds
    longest = 0.0

    async def request(user_id: str) -> None:
        sent = time.perf_counter()
        in_time = False
        try:
            answer = await target.ask(chance, user_id)
            in_time = answer.seconds <= objective
            counted = sum(begin <= piece < end for piece in answer.pieces)
            if counted:
                tokens = answer.tokens * counted / len(answer.pieces)
                outcome.latencies.append(answer.seconds)
                outcome.tokens += tokens
                outcome.good_tokens += tokens if in_time else 0
        except ResourceExhausted as refusal:
            if begin <= time.perf_counter() < end:
                outcome.refusals.append(time.perf_counter() - sent)
                outcome.hinted += refusal.retry_after is not None
        if user_id == "modest" and begin <= time.perf_counter() < end:
            outcome.modest.append(in_time)

    async def look() -> None:
        nonlocal longest
        while True:
            longest = max(longest, await asyncio.to_thread(target.waiting))
            await asyncio.sleep(0.5)

    looking = asyncio.create_task(look())
    requests: set[asyncio.Task[None]] = set()
    due = time.perf_counter()
    while due < end:
        due += chance.expovariate(rate)
        await asyncio.sleep(due - time.perf_counter())
        task = asyncio.create_task(request("modest" if chance.random() < MODEST else "greedy"))
        requests.add(task)
        task.add_done_callback(requests.discard)
    await asyncio.wait(requests, timeout=objective)  # those that run, and a few that waited
    await cancelled([*requests, looking])
    return outcome, longest


async def cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def measure(size: Size, model: str, queues: Sequence[int], repetitions: int, work: Path) -> dict[str, Any]:
    """All figures; those of the other queues are of twice the load only."""
    figures: dict[str, Any] = {}
    async with server(size, model, queues[0], work / "server") as ours:
        patience = OBJECTIVE * await alone(ours)
        fits = await capacity(ours)
        outcomes: dict[float, list[Outcome]] = {share: [] for share in LOADS}
        longest, sizes = 0.0, []
        for repetition in range(repetitions):
            for share in LOADS:
                outcome, queue = await load(ours, share * fits, patience, size.fill_seconds, repetition)
                outcomes[share].append(outcome)
                longest = max(longest, queue)
            sizes.append(ours.size_now())
    figures |= {
        "replies a second that fit": round(fits, 2),
        "objective, s": round(patience, 2),
        "loads": {share: summary(found) for share, found in outcomes.items()},
        "goodput at twice the load / its maximum": ratio(outcomes),
        "queue": queues[0],
        "longest queue seen": longest,
        "after each repetition": [{name: round(value) for name, value in now.items()} for now in sizes],
        "other queues, twice the load": {},
    }
    for queue in queues[1:]:
        async with server(size, model, queue, work / f"server-{queue}") as other:
            await capacity(other)  # warm, as the first was
            fill = size.fill_seconds + max(0, queue - queues[0]) / fits  # it is full, and its first have come out
            found = [(await load(other, 2 * fits, patience, fill, n))[0] for n in range(max(1, repetitions - 1))]
            figures["other queues, twice the load"][queue] = summary(found)
    return figures


def summary(found: Sequence[Outcome]) -> dict[str, Any]:
    latencies = [seconds for outcome in found for seconds in outcome.latencies]
    refusals = [seconds for outcome in found for seconds in outcome.refusals]
    modest = [in_time for outcome in found for in_time in outcome.modest]
    shown: dict[str, Any] = {
        "goodput, tokens/s": spread([outcome.goodput for outcome in found]),
        "tokens/s": spread([outcome.tokens / outcome.seconds for outcome in found]),
        "refused": len(refusals),
        "refused with RetryInfo": sum(outcome.hinted for outcome in found),
        "modest user in time": round(statistics.mean(modest), 3) if modest else None,
    }
    for name, values in (("latency, s", latencies), ("until refused, s", refusals)):
        if len(values) > 1:
            cuts = statistics.quantiles(values, n=100)
            shown[name] = {"p50": round(cuts[49], 3), "p90": round(cuts[89], 3), "p99": round(cuts[98], 3)}
    return shown


def ratio(outcomes: dict[float, list[Outcome]]) -> dict[str, float]:
    """Goodput at the highest load by the greatest, in each repetition."""
    rounds = zip(*outcomes.values(), strict=True)
    return spread([run[-1].goodput / max(outcome.goodput for outcome in run) for run in rounds])


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": round(statistics.mean(values), 3), "least": round(min(values), 3), "most": round(max(values), 3)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--repetitions", type=int, default=None)
    default = int(ServerSettings.model_fields["max_waiting"].default)
    parser.add_argument("--waiting", type=int, nargs="+", default=None)
    arguments = parser.parse_args(argv)
    small = arguments.size == "small"
    repetitions = arguments.repetitions or (2 if small else 3)
    queues = arguments.waiting or ([default] if small else [default, 64])
    with tempfile.TemporaryDirectory() as temporary:
        model = "smollm2"
        if small:
            from tests.tiny_model import make_tiny_model

            model = str(make_tiny_model(Path(temporary) / "model"))
        figures = asyncio.run(measure(SIZES[arguments.size], model, queues, repetitions, Path(temporary)))
    twice = figures["loads"][LOADS[-1]]
    first, last = figures["after each repetition"][0], figures["after each repetition"][-1]
    goals = {
        f"goodput at twice the load is at least {GOAL} of its maximum": (
            figures["goodput at twice the load / its maximum"]["mean"] >= GOAL
        ),
        "there were refusals, and all say when to come back": 0 < twice["refused"] == twice["refused with RetryInfo"],
        "the queue is bounded": figures["longest queue seen"] <= queues[0],
        "nothing grows": (
            last["MB"] <= 1.05 * first["MB"] and last["threads"] <= first["threads"] and last["files"] <= first["files"]
        ),
    }
    return report("overload", arguments.size, figures=figures, goals=goals)


if __name__ == "__main__":
    sys.exit(main())
