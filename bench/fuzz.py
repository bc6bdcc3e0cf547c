"""Bad input against a running server: what it answers, and what is left of it afterwards.

A real plaudit-server (torch engine, hand-made tiny model) gets 100,000 inputs, drawn from a seed (`hostile.py`): bytes
to every method that reflection lists, requests made from its descriptors with hostile values, odd calls (several
requests where one belongs, none, odd metadata, unknown methods, compressed and oversized ones, callers that leave), and
connections that are no HTTP/2. Good is: every answer is a refusal in words or a real reply, never INTERNAL, UNKNOWN or
UNAVAILABLE, and none shows anything of the code; nothing is logged above INFO; and afterwards the server does what it
did before, has all its places free, as many files open as after the first tenth, and as much memory as half-way.

    make bench-fuzz [ARGS="--seed N --inputs N"] [SIZE=small]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from urllib.request import urlopen

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import grpc  # noqa: E402
import psutil  # noqa: E402
from google.protobuf.message import Message  # noqa: E402

from bench.hostile import Hostile, Method, methods  # noqa: E402
from bench.processes import until_listening  # noqa: E402
from bench.report import report  # noqa: E402
from plaudit.broker import free_port  # noqa: E402
from plaudit.v1 import chat_pb2, feedback_pb2, policy_pb2, privacy_pb2, sampling_pb2  # noqa: E402
from plaudit_client import AsyncClient  # noqa: E402

INPUTS = {"full": 100_000, "small": 3_000}
WORKERS = 24
PLACES = 16
_GROWTH = 0.05
CALL_SECONDS = 20.0
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS}
CODE = re.compile(r'Traceback|File "|\.py\b|0x[0-9a-f]{6}|/site-packages/')
MEANT = re.compile(r"^\S+Z (INFO|WARNING plaudit-server: the event log does not take records)")  # a slow disk

_LOST = "Internal error from Core"
"""What grpc.aio's client makes of a refusal that comes while it still sends the next of several requests."""


class Drive:
    """Sends inputs to one server, and counts what it answers."""

    def __init__(self, addresses: Sequence[str], seed: int) -> None:
        """addresses: all at which it listens; chats are served at the first."""
        self.addresses = addresses
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        """Answers that should not be, in words."""
        self._chance = random.Random(seed)
        self._known: list[tuple[str, Method]] = []  # and where each is served
        self._before = ""

    async def begin(self) -> None:
        """Look what is served, and how a normal chat goes."""
        for address in self.addresses:
            with grpc.insecure_channel(address) as channel:
                self._known += [(address, method) for method in await asyncio.to_thread(methods, channel)]
        async with AsyncClient(self.addresses[0]) as client:
            replies = [client.chat("hello", max_tokens=4, temperature=0.0, user_id=user) for user in ("", "ann")]
            self._before, _ = [await reply.read() for reply in replies]
            receipts = [reply.receipt for reply in replies]
        self._hostile = Hostile(self._chance, receipts, _plausible(receipts))

    async def send(self, count: int) -> None:
        """Send `count` inputs, `WORKERS` at a time."""
        left = iter(range(count))

        async def work(channels: Mapping[str, grpc.aio.Channel]) -> None:
            for _ in left:
                await self._send_one(channels)

        channels = [
            {address: grpc.aio.insecure_channel(address, options=_OPTIONS) for address in self.addresses}
            for _ in range(4)
        ]
        try:
            await asyncio.gather(*(work(channels[n % len(channels)]) for n in range(WORKERS)))
        finally:
            await asyncio.gather(*(channel.close() for each in channels for channel in each.values()))

    async def as_before(self) -> dict[str, bool]:
        """Whether it serves as it did, and has all its places free."""
        async with AsyncClient(self.addresses[0]) as client:
            serving = await client.healthy()
            text = await client.chat("hello", max_tokens=4, temperature=0.0).read()
            replies = (client.chat(f"hello {n}", max_tokens=8).read() for n in range(PLACES))
            held = await asyncio.gather(*replies, return_exceptions=True)
        return {
            "health is SERVING": serving,
            "a normal chat goes as before": text == self._before,
            "all places are free": all(isinstance(reply, str) for reply in held),
        }

    async def _send_one(self, channels: Mapping[str, grpc.aio.Channel]) -> None:
        chance, hostile = self._chance, self._hostile
        address, method = chance.choice(self._known)
        channel = channels[address]
        draw = chance.random()
        if draw < 0.04:
            await self._connect(address, hostile.connection())
        elif draw < 0.52:
            await self._call(channel, method.path, [hostile.noise(method)])
        elif draw < 0.9:
            await self._call(channel, method.path, [hostile.request(method)])
        elif draw < 0.92:  # several, where most take one
            await self._call(channel, method.path, [hostile.request(method) for _ in range(chance.choice((2, 9)))])
        elif draw < 0.93:  # none
            await self._call(channel, method.path, [])
        elif draw < 0.95:
            await self._call(channel, method.path, [hostile.request(method)], metadata=hostile.metadata())
        elif draw < 0.97:
            path = chance.choice(("/", "/x/y", method.path + "x", method.path.lower(), "/plaudit.v1.ChatService/"))
            await self._call(channel, path, [hostile.noise(method)])
        elif draw < 0.98:
            large = [b"\n" + bytes(chance.choice((90_000, 3_000_000)))]
            await self._call(channel, method.path, large, compression=chance.choice(list(grpc.Compression)))
        else:
            await self._call(channel, method.path, [hostile.request(method)], patience=chance.uniform(0, 0.01))

    async def _call(
        self,
        channel: grpc.aio.Channel,
        path: str,
        requests: Sequence[bytes],
        *,
        patience: float = CALL_SECONDS,
        **options: Any,
    ) -> None:
        """Call as if every method gave a stream; of watches, which never end, the first answer is read."""

        async def sent() -> AsyncIterator[bytes]:
            for request in requests:
                yield request

        one, several = cast(Any, channel.unary_stream(path)), cast(Any, channel.stream_stream(path))
        options["timeout"] = patience
        call = one(requests[0], **options) if len(requests) == 1 else several(sent(), **options)
        try:
            async for _ in call:
                if "Watch" in path:
                    call.cancel()
        except asyncio.CancelledError:
            if not call.cancelled():
                raise
        except grpc.aio.AioRpcError as error:
            self._judge(path, requests, error, patience)
            return
        self.answers["OK"] += 1

    def _judge(self, path: str, requests: Sequence[bytes], error: grpc.aio.AioRpcError, patience: float) -> None:
        code, details = error.code(), str(error.details())
        if details == _LOST:
            self.answers["lost by the client"] += 1
            return
        self.answers[code.name] += 1
        late = code is grpc.StatusCode.DEADLINE_EXCEEDED and patience == CALL_SECONDS and "Watch" not in path
        if code in NEVER or late or CODE.search(details):
            self.wrong.append(f"{path} {[request[:200] for request in requests]}: {code.name} {details[:500]}")

    async def _connect(self, address: str, written: bytes) -> None:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        with suppress(ConnectionError, TimeoutError):
            writer.write(written)
            await asyncio.wait_for(writer.drain(), 1)
            await asyncio.wait_for(reader.read(), self._chance.choice((0.005, 0.05)))
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.answers["connection"] += 1


_OPTIONS = [("grpc.max_metadata_size", 1 << 20), ("grpc.absolute_max_metadata_size", 1 << 20)]


def _plausible(receipts: Sequence[str]) -> list[Message]:
    """Requests that are right, to begin with."""
    said = feedback_pb2.SubmitFeedbackRequest(receipt=receipts[0], thumb=feedback_pb2.THUMB_UP, idempotency_key="k")
    return [
        chat_pb2.StreamChatRequest(
            messages=[
                chat_pb2.Message(role=chat_pb2.ROLE_SYSTEM, content="be brief"),
                chat_pb2.Message(role=chat_pb2.ROLE_USER, content="hello"),
            ],
            sampling=sampling_pb2.SamplingParameters(temperature=0.5, max_tokens=2, seed=1, stop=["z"]),
            user_id="ann",
        ),
        said,
        feedback_pb2.RetractFeedbackRequest(receipt=receipts[1], user_id="ann"),
        feedback_pb2.StreamFeedbackRequest(submit=said),
        policy_pb2.GetPolicyRequest(version="v0"),
        policy_pb2.SetCanaryShareRequest(version="v0", share=0.5, reason="why"),
        privacy_pb2.EraseUserRequest(user_id="nobody", reason="asked"),
    ]


class Server:
    """A plaudit-server of its own, whose standard error is kept."""

    def __init__(self, data: Path, options: Sequence[str] = ()) -> None:
        self.address, self.control = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self._metrics_port = free_port()
        self._data = data
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Server:
        from tests.tiny_model import make_tiny_model

        model = await asyncio.to_thread(make_tiny_model, self._data / "model")
        secret = self._data / "secret.key"
        secret.write_bytes(b"fuzz" * 8)
        command = [
            *(sys.executable, "-m", "plaudit_server.app", "--engine=torch", f"--model={model}"),
            *(
                f"--listen={self.address}",
                f"--control-listen={self.control}",
                f"--metrics-port={self._metrics_port}",
                "--max-context=512",
            ),
            *("--max-tokens=8", "--default-max-tokens=4", f"--max-running={PLACES // 4}"),
            *(f"--max-waiting={PLACES * 3 // 4}", f"--event-log=sqlite:{self._data / 'events.sqlite'}"),
            *(f"--policy-store={self._data / 'versions'}", f"--state-dir={self._data / 'server'}"),
            *(f"--receipt-keys={secret}", f"--user-key-file={secret}", *self._options),
        ]
        with (self._data / "stderr").open("wb") as stderr:
            self._process = await asyncio.create_subprocess_exec(*command, stdout=stderr, stderr=stderr)
        try:
            for address in (self.address, self.control):
                await until_listening(address, 300)
        except BaseException:
            self._process.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()

    def holds(self) -> dict[str, int]:
        """Its memory in KiB, open files and threads."""
        assert self._process is not None
        process = psutil.Process(self._process.pid)
        with process.oneshot():
            memory = process.memory_info().rss // 1024
            return {"rss, KiB": memory, "files": process.num_fds(), "threads": process.num_threads()}

    def alive(self) -> bool:
        """Whether it is still the process that was started."""
        return self._process is not None and self._process.returncode is None

    def active(self) -> float:
        """Requests that run or wait, by its metrics."""
        with urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[1]) for line in lines if re.match("plaudit_requests_(running|waiting) ", line))

    def said(self) -> list[str]:
        """Lines of its standard error that are not meant."""
        return [line for line in (self._data / "stderr").read_text().splitlines() if not MEANT.match(line)]


async def until(true: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Wait until it is; returns whether it came to be."""
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        await asyncio.sleep(0.1)
    return true()


async def run(inputs: int, seed: int, data: Path) -> tuple[dict[str, object], dict[str, bool]]:
    """Figures, and which goals were met."""
    async with Server(data) as server:
        drive = Drive([server.address, server.control], seed)
        await drive.begin()
        held = []
        began = time.monotonic()
        for _ in range(10):
            await drive.send(inputs // 10)
            idle = await until(lambda: server.active() == 0)
            held.append(server.holds())
        seconds = time.monotonic() - began
        first, middle, last = held[0], held[4], held[9]
        files = await until(lambda: server.holds()["files"] <= first["files"])
        goals = {
            "no INTERNAL, UNKNOWN, UNAVAILABLE, nothing of the code": not drive.wrong,
            "nothing runs or waits": idle,
            "no files are left open": files,
            "no threads are left": last["threads"] <= first["threads"] + 2,
            f"memory grows by at most {_GROWTH:.0%} in the second half": (
                last["rss, KiB"] <= middle["rss, KiB"] * (1 + _GROWTH)
            ),
            **await drive.as_before(),
            "it is the same process": server.alive(),
        }
    said = server.said()
    goals["nothing is logged that is not meant"] = not said
    for line in [*drive.wrong[:20], *said[:40]]:
        print(line)
    figures: dict[str, object] = {
        "inputs": inputs,
        "seed": seed,
        "seconds": round(seconds, 1),
        "answers": dict(drive.answers),
    }
    figures["rss by tenth, MiB"] = [each["rss, KiB"] // 1024 for each in held]
    return {**figures, "after a tenth": first, "after all": last, "wrong": len(drive.wrong), "lines": len(said)}, goals


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=INPUTS, default="full")
    parser.add_argument("--inputs", type=int, help="how many, instead of the size's")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as data:
        figures, goals = asyncio.run(run(arguments.inputs or INPUTS[arguments.size], arguments.seed, Path(data)))
    return report("fuzz", arguments.size, figures=figures, goals=goals)


if __name__ == "__main__":
    sys.exit(main())
