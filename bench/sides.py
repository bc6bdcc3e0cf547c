"""The sides of bench-stream and bench-start: Plaudit, vLLM's own server, the bare engine; each a process of its own.

    Plaudit      plaudit-server                 gRPC, log-probabilities taken, each reply recorded (or not)
    vLLM         vLLM's OpenAI server           server-sent events, no log-probabilities, nothing recorded
    the engine   bench/bare.py                  in its process, the limit: no server at all

All three start vLLM with what plaudit-server starts it with. The side that is not asked is stopped (SIGSTOP), engine
and all: it takes nothing of the two cores, and need not be started again.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Self

import aiohttp
import grpc
import psutil

from bench.load import Heard, Load, Request, drive, figures
from plaudit import base_model
from plaudit.broker import free_port
from plaudit.v1.chat_pb2 import Message, Role, StreamChatRequest
from plaudit.v1.chat_pb2_grpc import ChatServiceStub
from plaudit.v1.sampling_pb2 import SamplingParameters
from plaudit_client import AsyncClient, PlauditError
from plaudit_client.channel import OPTIONS
from plaudit_server.app import make_engine
from plaudit_server.config import ServerSettings
from plaudit_server.vllm_engine import VllmEngine

TEMPERATURE = 0.7
MOST = 64
"""Replies that each engine may sample at once."""
_START_SECONDS = 400.0
_EXIT_SECONDS = 60.0


def endless(model: Path, copy: Path) -> Path:
    """The same model, but for the token that ends a reply: one that it never samples, so that none ends early."""
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).symlink_to(file.resolve())
    vocabulary = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    for name in ("config.json", "generation_config.json"):
        changed = {**json.loads((model / name).read_text()), "eos_token_id": max(token["id"] for token in vocabulary)}
        (copy / name).unlink()
        (copy / name).write_text(json.dumps(changed))
    return copy


def both(size: str, data: Path) -> tuple[Plaudit, OpenAi]:
    """The two servers, not started yet; their files, logs included, go to `data`."""
    data.mkdir(parents=True, exist_ok=True)
    if size == "small":
        from tests.tiny_model import make_tiny_model

        model = make_tiny_model(data / "tiny")
    else:
        model = base_model.resolve(base_model.PACKAGED, Path("~/.cache/plaudit").expanduser())
    how = _settings(endless(model, data / "model"), data, dtype="float32" if size == "small" else "auto")
    engine = make_engine(how, Path(how.model))
    assert isinstance(engine, VllmEngine)
    return Plaudit(how, data / "plaudit.log"), OpenAi(engine.arguments(), data / "vllm.log")


def _settings(model: Path, data: Path, dtype: Literal["auto", "float32"]) -> ServerSettings:
    """Of plaudit-server, and so of every engine."""
    key = data / "receipt.key"
    key.write_bytes(os.urandom(32))
    return ServerSettings(
        model=str(model),
        engine="vllm",
        listen=f"127.0.0.1:{free_port()}",
        control_listen="127.0.0.1:0",
        event_log=f"sqlite:{data / 'events.sqlite'}",
        policy_store=str(data / "versions"),
        state_dir=data / "server",
        receipt_keys=key,
        user_key_file=key,
        max_running=MOST,
        dtype=dtype,
    )


class Side(ABC):
    """One program, from `async with` on: started, not yet ready."""

    def __init__(self, name: str, command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._command = command
        self._log = log
        self._environment = {**os.environ, **(environment or {})}
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE if self._answers else log,
                stderr=log,
                env=self._environment,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.go_on()
        assert self._process is not None
        tree = list(self._tree())
        self._end()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _EXIT_SECONDS)
        for one in tree:  # what has not ended by itself
            with suppress(psutil.NoSuchProcess):
                one.kill()

    _answers = False

    def _end(self) -> None:
        """Ask it to end."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.terminate()

    async def ready(self) -> None:
        """Wait until it says of itself that it serves. Raises TimeoutError, and RuntimeError if it has ended."""
        assert self._process is not None
        async with asyncio.timeout(_START_SECONDS):
            while not await self._serves():
                if self._process.returncode is not None:
                    raise RuntimeError(f"{self.name} ended with status {self._process.returncode}; see {self._log}")
                await asyncio.sleep(0.05)

    @abstractmethod
    async def _serves(self) -> bool: ...

    @abstractmethod
    async def ask(self, request: Request) -> Heard:
        """One reply."""

    async def measure(self, load: Load) -> dict[str, float]:
        """A row's figures of this side under a load."""
        front = self._front()
        before = cpu(front)
        heard = await drive(load, self.ask)
        return figures(heard, cpu(front) - before)

    def pause(self) -> None:
        """Its processes stand still until `go_on`."""
        for one in self._tree():
            one.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `pause`."""
        for one in self._tree():
            one.send_signal(signal.SIGCONT)

    def _front(self) -> psutil.Process:
        """Of its processes the one that the callers talk to; the engine's are its children."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def _tree(self) -> Iterator[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            front = self._front()
            yield from (front, *front.children(recursive=True))


class Plaudit(Side):
    """plaudit-server, as `plaudit up` starts it."""

    def __init__(self, settings: ServerSettings, log: Path) -> None:
        given = settings.model_dump(mode="json", exclude_unset=True)
        options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        super().__init__("Plaudit", [sys.executable, "-m", "plaudit_server.app", *options], log)
        self.settings = settings
        self._address = settings.listen
        self._channels: list[grpc.aio.Channel] = []
        self._idle: list[Any] = []  # stubs
        self.unrecorded = False
        """Whether replies are asked for that are kept out of the event log."""

    async def __aexit__(self, *_: object) -> None:
        self.go_on()
        for channel in self._channels:
            await channel.close()
        await super().__aexit__()

    async def _serves(self) -> bool:
        try:
            async with AsyncClient(self._address) as client:
                if not await client.healthy():
                    return False
        except PlauditError:
            return False
        return True

    def _connected(self) -> Any:
        """A connection that nobody asks over: callers are strangers to each other, and over HTTP each has its own."""
        if self._idle:
            return self._idle.pop()
        channel = grpc.aio.insecure_channel(self._address, [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)])
        self._channels.append(channel)
        return ChatServiceStub(channel)

    async def ask(self, request: Request) -> Heard:
        """By the stub that protoc makes, over a channel with the SDK's options."""
        asked = StreamChatRequest(
            messages=[Message(role=Role.ROLE_USER, content=request.prompt)],
            sampling=SamplingParameters(temperature=TEMPERATURE, max_tokens=request.max_tokens),
            unrecorded=self.unrecorded,
        )
        stub = self._connected()
        heard = Heard(perf_counter())
        async for event in stub.StreamChat(asked):
            if event.delta.text:
                heard.arrivals.append(perf_counter())
            elif event.HasField("finished"):
                heard.tokens = event.finished.completion_tokens
        self._idle.append(stub)
        return heard


class OpenAi(Side):
    """vLLM's own server as it comes: with its metrics, which Plaudit passes on, and a line a request, as Plaudit."""

    def __init__(self, arguments: Mapping[str, Any], log: Path) -> None:
        port = free_port()
        options = [f"--port={port}", "--host=127.0.0.1"]
        as_it_comes = {"skip_tokenizer_init": False, "disable_log_stats": False, "served_model_name": "it"}
        for name, value in {**arguments, **as_it_comes}.items():
            flag = f"--{name.replace('_', '-')}"
            if value is not False:
                options.append(flag if value is True else f"{flag}={value}")
        environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options]
        super().__init__("vLLM's server", program, log, environment)
        self._url = f"http://127.0.0.1:{port}"
        self._session: aiohttp.ClientSession | None = None

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
        await super().__aexit__()

    async def _serves(self) -> bool:
        if self._session is None:
            self._session = aiohttp.ClientSession(self._url, connector=aiohttp.TCPConnector(limit=0))
        try:
            async with self._session.get("/health") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def ask(self, request: Request) -> Heard:
        """Server-sent events, line by line: less work than the openai package does."""
        assert self._session is not None
        asked = {
            "model": "it",
            "messages": [{"role": "user", "content": request.prompt}],
            "temperature": TEMPERATURE,
            "max_completion_tokens": request.max_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        heard = Heard(perf_counter())
        async with self._session.post("/v1/chat/completions", json=asked) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if event["choices"] and event["choices"][0]["delta"].get("content"):
                    heard.arrivals.append(perf_counter())
                elif event.get("usage"):
                    heard.tokens = event["usage"]["completion_tokens"]
        return heard


class Bare(Side):
    """The engine without a server; it is asked in its own process, and told what by lines of JSON."""

    _answers = True

    def __init__(self, settings: ServerSettings, log: Path) -> None:
        super().__init__("the engine", [sys.executable, "-m", "bench.bare", settings.model_dump_json()], log)
        self.logprobs = True
        """Whether it is asked for log-probabilities, as plaudit-server asks for them."""

    async def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).startswith(b"ready")

    def _end(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def ask(self, request: Request) -> Heard:
        """Not one by one."""
        raise NotImplementedError

    async def measure(self, load: Load) -> dict[str, float]:
        """As the others do, over there."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"load": asdict(load), "logprobs": self.logprobs}).encode() + b"\n")
        found: dict[str, float] = json.loads(await self._process.stdout.readline())
        return found


def cpu(process: psutil.Process) -> float:
    """Seconds of all its threads, its children not among them."""
    times = process.cpu_times()
    return float(times.user + times.system)
