"""No vote lost, none doubled: votes by concurrent clients, with duplicates, changes and retractions, under faults.

A real plaudit-server (torch engine, hand-made tiny model), a real plaudit-learner that only takes in, and a Kafka
broker. Beside them, through the same faults, what a user would write (`votes_plain.py`). In the end what the learner's
store says must be what an oracle says that saw every acknowledged statement once.

What is killed. Server and learner with kill -9, and their plain counterparts with them; they are started again. The
broker of the wheel (Tansu) keeps its log in memory, so that killing it would lose the log and test nothing of ours: in
its place the network to it is cut (connections reset, then refused) or it is stopped for a while (SIGSTOP: connections
stay open, nothing answers), in turn. To its clients a cut is what the kill of a durable broker is. (Tansu on S3 does
survive kills; on a directory that is served as S3 it lists the whole bucket at each fetch, and 100,000 votes cannot be
read back.) With `KAFKA_BOOTSTRAP=HOST:PORT` that broker is used, and not touched. With `--log sqlite` there is no
broker, and no plain counterpart: only kill -9 of server and learner.

Before that, without faults: how long an acknowledgement takes, in short phases, ours and the plain one in turn, and
ours while the broker is stopped. The readers (learner, plain consumer) start after that: they run elsewhere in
production, and on two cores a time with them is mostly theirs; it is told, too.

    make bench-votes [ARGS="--log sqlite --votes N --kills N"] [SIZE=small]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.deployment import serves  # noqa: E402
from bench.processes import Kept, until_listening  # noqa: E402
from bench.report import report  # noqa: E402
from bench.votes_history import Said, Verdict, history, oracle  # noqa: E402
from plaudit import secret_file  # noqa: E402
from plaudit.broker import command, free_port  # noqa: E402
from plaudit_client import AsyncClient, Durability, InvalidRequest, PlauditError  # noqa: E402
from plaudit_server.receipts import Receipts, signing_keys  # noqa: E402

CHANNELS = 4
PACED_CLIENTS = 8
PACE_SECONDS = 0.02  # the longest pause between two votes of one client while acknowledgements are timed


@dataclass(frozen=True)
class Size:
    """How large a run is."""

    votes: int
    """Requests, under faults."""
    kills: int
    clients: int
    chats: int
    """Replies that are really chatted for; receipts of the others are made with the deployment's key."""
    pairs: int
    """Times that acknowledgements are timed, ours beside the plain ones."""
    timed: int
    """Votes in each such phase."""
    away: float
    """Seconds for which the broker is away once; else it is up to 3."""
    quiet: float
    """Seconds without news after which what has not come is lost."""


FULL = Size(votes=100_000, kills=20, clients=64, chats=200, pairs=9, timed=1000, away=15.0, quiet=60.0)
SMALL = Size(votes=300, kills=3, clients=8, chats=4, pairs=1, timed=60, away=1.0, quiet=20.0)


@dataclass
class Side:
    """One of the two that are compared."""

    name: str
    clients: list[AsyncClient]
    receipts: Receipts | None
    """Makes receipts; None: a reply's name is its receipt."""
    lines: list[list[Said]] = field(default_factory=list)
    """All that is sent, by client."""
    chatted: dict[str, str] = field(default_factory=dict)
    """reply → receipt, of those that were chatted for."""
    acknowledged: int = 0

    async def say(self, client: AsyncClient, said: Said) -> tuple[float, Durability]:
        """Send it until it is acknowledged; returns how long that took in seconds, and where it is."""
        receipt = self.chatted.get(said.reply) or self._receipt(said.reply)
        began = time.perf_counter()
        while True:
            try:
                if said.verdict == "retraction":
                    durability = await client.retract_feedback(receipt, idempotency_key=said.key)
                else:
                    durability = await client.submit_feedback(receipt, thumb=said.verdict, idempotency_key=said.key)
            except InvalidRequest:
                raise
            except PlauditError:
                await asyncio.sleep(0.2)
            else:
                self.acknowledged += 1
                return time.perf_counter() - began, durability

    async def send(self, lines: list[list[Said]], pace: float = 0.0) -> list[float]:
        """Send all lines at once, each in its order; returns the times to acknowledgement."""
        self.lines += lines
        chance = random.Random(0)

        async def one(client: AsyncClient, line: list[Said]) -> list[float]:
            times = []
            for said in line:
                await asyncio.sleep(chance.uniform(0, pace))
                times.append((await self.say(client, said))[0])
            return times

        clients = itertools.cycle(self.clients)
        return list(itertools.chain(*await asyncio.gather(*(one(next(clients), line) for line in lines))))

    def _receipt(self, reply: str) -> str:
        return self.receipts.issue(reply, "v0", "") if self.receipts else reply


@dataclass
class Stage:
    """What runs."""

    data: Path
    ours: Side
    plain: Side | None
    victims: dict[str, list[Kept]]
    broker: Kept | None
    """None: there is none, or it is not ours to touch."""
    network: Kept | None
    start_readers: Callable[[], Awaitable[None]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--log", choices=["kafka", "sqlite"], default="kafka")
    parser.add_argument("--votes", type=int, help="requests under faults")
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="keep the files, logs included, here")
    arguments = parser.parse_args()
    size = SMALL if arguments.size == "small" else FULL
    size = replace(size, votes=arguments.votes or size.votes, kills=arguments.kills or size.kills)
    with tempfile.TemporaryDirectory() as temporary:
        return asyncio.run(measure(arguments, size, arguments.data or Path(temporary) / "data"))


async def measure(arguments: argparse.Namespace, size: Size, data: Path) -> int:
    began = time.monotonic()
    figures: dict[str, object] = {"event_log": arguments.log, "requests": size.votes, "seed": arguments.seed}
    goals: dict[str, bool] = {}
    async with running(arguments.log, data) as stage:
        say(began, "all serve")
        await chat(stage.ours, size.chats)
        timed = await latencies(stage, size, "alone")
        figures |= timed
        say(began, f"timed: {timed}")
        await stage.start_readers()
        if arguments.size == "full":
            await settled(lambda: ours_found(data), *truth(stage.ours), size.quiet)  # they have caught up
            if stage.plain is not None:
                await settled(lambda: plain_found(data), *truth(stage.plain), size.quiet)
            figures["with the readers on the same cores"] = await latencies(stage, replace(size, pairs=2), "together")
        faults = await under_faults(stage, size, arguments.seed)
        figures |= faults
        say(began, f"all is acknowledged: {faults}")
        expected, keys = truth(stage.ours)
        found = await settled(lambda: ours_found(data), expected, keys, size.quiet)
        figures["ours"] = {
            "lost": len(keys - found.keys.keys()),
            "doubled": sum(count - 1 for count in found.keys.values()) + len(found.keys.keys() - keys),
            "replies that stand wrong": wrong(found.stands, expected),
            "statements": len(keys),
        }
        say(began, f"ours: {figures['ours']}")
        goals["nothing lost, nothing doubled, all stands as the oracle says"] = (
            found.keys == dict.fromkeys(keys, 1) and found.stands == expected
        )
        if stage.plain is not None:
            expected, keys = truth(stage.plain)
            found = await settled(lambda: plain_found(data), expected, keys, size.quiet)
            figures["plain"] = {
                "lost": len(keys - found.keys.keys()),
                "doubled": sum(count - 1 for count in found.keys.values()),
                "replies that stand wrong": wrong(found.stands, expected),
                "statements": len(keys),
            }
            say(began, f"plain: {figures['plain']}")
    if arguments.size == "full" and stage.broker is not None:
        up, away = timed["ours/plain p99, up"], timed["ours away/plain up p99"]
        goals["p99 of an acknowledgement at most 1.5 × the plain producer's"] = up["median"] <= 1.5
        goals["and at most 3 × while the broker is away"] = away["median"] <= 3
    figures["minutes"] = round((time.monotonic() - began) / 60, 1)
    return report("votes", arguments.size, figures=figures, goals=goals)


def say(began: float, what: str) -> None:
    print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)


@asynccontextmanager
async def running(kind: str, data: Path) -> AsyncIterator[Stage]:
    """Everything started and serving."""
    from tests.tiny_model import make_tiny_model

    data.mkdir(parents=True)
    model = make_tiny_model(data / "model")
    key, user_key = data / "receipt.key", data / "user.key"
    secret_file.make_key(key)
    secret_file.make_key(user_key)
    port = free_port()
    async with AsyncExitStack() as stack:

        async def start(name: str, *command: str) -> Kept:
            return await stack.enter_async_context(Kept(name, [sys.executable, *command], data / f"{name}.log"))

        broker, network, address = None, None, os.environ.get("KAFKA_BOOTSTRAP", "")
        if kind == "kafka" and not address:
            inner, outer = free_port(), free_port()
            # The broker tells its clients where it is: behind the proxy.
            run = [
                part.replace(str(inner), str(outer)) if part.startswith("--advertised") else part
                for part in command(inner, "bench")
            ]
            broker = await stack.enter_async_context(Kept("broker", run, data / "broker.log"))
            network = await start("network", "-m", "bench.proxy", str(outer), str(inner))
            address = f"127.0.0.1:{outer}"
            await until_listening(f"127.0.0.1:{inner}")
            await until_listening(address)
        event_log = f"sqlite:{data / 'events.sqlite'}" if kind == "sqlite" else f"kafka://{address}"
        common = [f"--model={model}", f"--event-log={event_log}", f"--policy-store={data / 'versions'}"]
        server = await start(
            "server",
            "-m",
            "plaudit_server.app",
            *common,
            f"--state-dir={data / 'server'}",
            f"--receipt-keys={key}",
            f"--user-key-file={user_key}",
            f"--listen=127.0.0.1:{port}",
            f"--control-listen=127.0.0.1:{free_port()}",
            "--engine=torch",
            "--max-context=512",
            "--max-tokens=64",
            "--default-max-tokens=16",
        )
        victims, plain = {"server": [server]}, None
        if kind == "kafka":
            plain_port = free_port()
            victims["server"].append(await start("plain", "-m", "bench.votes_plain", "serve", str(plain_port), address))
            plain = Side("plain", await channels(stack, plain_port), None)
            await until_listening(f"127.0.0.1:{plain_port}", 120)

        async def start_readers() -> None:
            learner = ["-m", "plaudit_learner.app", *common, f"--state-dir={data / 'learner'}"]
            victims["learner"] = [await start("learner", *learner, "--votes-per-round=1000000000")]
            if plain is not None:
                consumer = ["-m", "bench.votes_plain", "consume", str(data / "plain.sqlite"), address]
                victims["learner"].append(await start("consumer", *consumer))

        keys = signing_keys(key)
        ours = Side("ours", await channels(stack, port), Receipts(lambda: keys, 86400))
        async with asyncio.timeout(300):
            while not await serves(ours.clients[0]):
                await asyncio.sleep(0.2)
        yield Stage(data, ours, plain, victims, broker, network, start_readers)


async def channels(stack: AsyncExitStack, port: int) -> list[AsyncClient]:
    return [await stack.enter_async_context(AsyncClient(f"127.0.0.1:{port}", keep_feedback=0)) for _ in range(CHANNELS)]


async def chat(side: Side, count: int) -> None:
    """Replies of the real server, voted on with the rest."""
    line = []
    for number in range(count):
        reply = side.clients[0].chat(f"question {number}")
        await reply.read()
        side.chatted[reply.response_id] = reply.receipt
        line.append(Said(reply.response_id, "up", f"chat-{number}"))
    await side.send([line])


async def latencies(stage: Stage, size: Size, title: str) -> dict[str, dict[str, float]]:
    """Times to acknowledgement without faults, phase by phase."""
    p99s: dict[str, list[float]] = {"ours": [], "plain": [], "ours away": []}
    medians: dict[str, list[float]] = {name: [] for name in p99s}

    async def phase(name: str, side: Side, number: int) -> None:
        lines = history(f"{title}-{name.replace(' ', '-')}-{number}", size.timed, PACED_CLIENTS, number)
        times = sorted(await side.send(lines, PACE_SECONDS))
        p99s[name].append(times[int(0.99 * (len(times) - 1))])
        medians[name].append(statistics.median(times))

    for number in range(size.pairs):
        sides = [side for side in (stage.plain, stage.ours) if side is not None]
        for side in sides if number % 2 else reversed(sides):  # neither always goes first
            await phase(side.name, side, number)
        if stage.broker is not None:
            stage.broker.pause()
            await phase("ours away", stage.ours, number)
            stage.broker.go_on()
            await until_in_log(stage.ours, f"{title}-back-{number}")
    figures = {f"{name} p99, ms": spread([1000 * p99 for p99 in values]) for name, values in p99s.items() if values}
    figures |= {f"{name} median, ms": spread([1000 * m for m in values]) for name, values in medians.items() if values}
    for ratio, name in (("ours/plain p99, up", "ours"), ("ours away/plain up p99", "ours away")):
        if p99s["plain"] and p99s[name]:
            figures[ratio] = spread([a / b for a, b in zip(p99s[name], p99s["plain"], strict=True)])
    return figures


async def until_in_log(side: Side, name: str) -> None:
    """Vote until the outbox has drained and a vote goes straight to the log."""
    for number in itertools.count():
        said = Said(f"{name}-{number}", "up", f"{name}-{number}")
        side.lines.append([said])
        if (await side.say(side.clients[0], said))[1] is Durability.EVENT_LOG:
            return
        await asyncio.sleep(0.2)


async def under_faults(stage: Stage, size: Size, seed: int) -> dict[str, object]:
    """Send everything to both while things are killed; returns what was done."""
    chance = random.Random(seed)
    kinds = ["server", "learner", *(["broker"] if stage.broker is not None else [])]
    victims = [kind for kind, _ in zip(itertools.cycle(kinds), range(size.kills), strict=False)]
    chance.shuffle(victims)
    points = sorted(chance.uniform(0.02, 0.9) * size.votes for _ in victims)
    before, done = stage.ours.acknowledged, {"server": 0, "learner": 0, "cut": 0, "stop": 0}

    async def faults() -> None:
        long = True
        for point, victim in zip(points, victims, strict=True):
            while stage.ours.acknowledged - before < point:
                await asyncio.sleep(0.02)
            seconds = chance.uniform(0, 3)
            if victim != "broker":
                for process in stage.victims[victim]:
                    process.kill(seconds)
                done[victim] += 1
                continue
            assert stage.broker is not None
            assert stage.network is not None
            seconds, long = (size.away if long else seconds), False
            if (done["cut"] + done["stop"]) % 2:
                stage.broker.pause()
                asyncio.get_running_loop().call_later(seconds, stage.broker.go_on)
                done["stop"] += 1
            else:
                stage.network.kill(seconds)
                done["cut"] += 1

    lines = history("faults", size.votes, size.clients, seed)
    sides = [side for side in (stage.ours, stage.plain) if side is not None]
    began = time.monotonic()
    await asyncio.gather(faults(), *(side.send(lines) for side in sides))
    return {"faults": done, "seconds under faults": round(time.monotonic() - began, 1)}


@dataclass
class Found:
    """What a store holds in the end."""

    keys: dict[str, int] = field(default_factory=dict)
    """Statements by their idempotency key, and how often each is there."""
    stands: dict[str, Verdict] = field(default_factory=dict)


def truth(side: Side) -> tuple[dict[str, Verdict], set[str]]:
    """What must stand, and the keys of what was acknowledged; that is everything, since all was sent until it was."""
    return oracle(side.lines), {said.key for line in side.lines for said in line}


async def settled(read: Callable[[], Found], expected: dict[str, Verdict], keys: set[str], quiet: float) -> Found:
    """What is found once it is what was expected; else once nothing has changed for `quiet` seconds, or, if everything
    has come, for a quarter of them.
    """
    found = await asyncio.to_thread(read)
    last = time.monotonic()
    while found.keys != dict.fromkeys(keys, 1) or found.stands != expected:
        if time.monotonic() - last > (quiet / 4 if found.keys.keys() >= keys else quiet):
            break
        await asyncio.sleep(0.5)
        newer = await asyncio.to_thread(read)
        if newer != found:
            found, last = newer, time.monotonic()
    return found


def ours_found(data: Path) -> Found:
    """What the learner's store holds. A key that is there for two replies or users would count twice."""
    if not (data / "learner" / "experience.sqlite").exists():
        return Found()
    with database(data / "learner" / "experience.sqlite") as db:
        keys = dict(db.execute("SELECT feedback_id, count(*) FROM statements GROUP BY feedback_id"))
        votes = db.execute("SELECT response_id, value FROM standing WHERE slot = 'vote'")
        return Found(keys, {reply: "up" if value == 1 else "down" for reply, value in votes})


def plain_found(data: Path) -> Found:
    """What the plain consumer has written; the last word on a reply is its last row."""
    if not (data / "plain.sqlite").exists():
        return Found()
    with database(data / "plain.sqlite") as db:
        keys = dict(db.execute("SELECT key, count(*) FROM votes GROUP BY key"))
        stands: dict[str, Verdict] = dict(db.execute("SELECT reply, verdict FROM votes ORDER BY rowid"))
    return Found(keys, {reply: verdict for reply, verdict in stands.items() if verdict != "retraction"})


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as db:
        yield db


def wrong(found: dict[str, Verdict], expected: dict[str, Verdict]) -> int:
    return sum(found.get(reply) != expected.get(reply) for reply in found.keys() | expected.keys())


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
    }


if __name__ == "__main__":
    sys.exit(main())
