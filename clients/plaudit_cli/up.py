"""`plaudit up`: the whole loop on this machine, each program a process of its own, in one data directory."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from plaudit import logs, secret_file
from plaudit.broker import free_port
from plaudit.lifecycle import Occupied, only_one
from plaudit_cli.common import connect, fail, failures
from plaudit_cli.main import EMBEDDED_BROKER
from plaudit_cli.supervisor import Program, Supervisor
from plaudit_client import AsyncClient, PermissionDenied, PlauditError, Unauthenticated

_HOST = "127.0.0.1"
_LAST_PORT = 65_535
_WATCH_SECONDS = 0.5
_SHARE_OPTION = "--canary-share="
_CANARY_SHARE = 0.5  # few people chat here: half of them on each side decide a trial soonest
_BIND = "VLLM_CPU_OMP_THREADS_BIND"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Who read us has gone (`plaudit up | head`): the rest is said to nobody, and everything runs on."""
        self.quiet = True
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


console = _Console(highlight=False, soft_wrap=True)


def up(
    *,
    data: Annotated[Path, typer.Option(help="Where everything is kept: events, versions, logs.")] = Path(".plaudit"),
    port: Annotated[
        int, typer.Option(min=1, max=_LAST_PORT, help="Port of the first server; the others follow it.")
    ] = 50051,
    control_port: Annotated[
        int, typer.Option(min=1, max=_LAST_PORT, help="Port of the first server's control plane; the others follow it.")
    ] = 51051,
    metrics_port: Annotated[
        int,
        typer.Option(
            min=1,
            max=_LAST_PORT,
            help="Port of the learner's metrics; those of the servers and of the gateway follow it.",
        ),
    ] = 9464,
    gateway: Annotated[bool, typer.Option(help="Also serve HTTP: the web page, and OpenAI's chat API.")] = True,
    gateway_port: Annotated[int, typer.Option(min=1, max=_LAST_PORT, help="Its port.")] = 8080,
    servers: Annotated[int, typer.Option(min=1, max=16, help="How many servers.")] = 1,
    engine: Annotated[str, typer.Option(help="auto, vllm or torch.")] = "auto",
    model: Annotated[str, typer.Option(help="smollm2, or a directory in Hugging Face's format.")] = "smollm2",
    kafka: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of a Kafka broker; without a value: the embedded one. Default: a SQLite file."),
    ] = None,
    server_option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, passed on to plaudit-server as --NAME=VALUE.")
    ] = None,
    learner_option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, passed on to plaudit-learner as --NAME=VALUE.")
    ] = None,
) -> None:
    """Start event log, servers and learner; print where to chat; run until Ctrl-C. Continues where it stopped."""
    if engine not in ("auto", "vllm", "torch"):
        raise typer.BadParameter(f"{engine!r} is no engine; give auto, vllm or torch", param_hint="--engine")
    if gateway and find_spec("uvicorn") is None:
        console.print("[yellow]no web page and no OpenAI API here: pip install 'plaudit\\[gateway]'")
        gateway = False
    wanted = {
        "--port": range(port, port + servers),
        "--control-port": range(control_port, control_port + servers),
        "--metrics-port": range(metrics_port, metrics_port + servers + 1 + gateway),
        "--gateway-port": range(gateway_port, gateway_port + gateway),
    }
    ports = [port for span in wanted.values() for port in span]
    if len(set(ports)) < len(ports):
        raise typer.BadParameter(
            "the ports of servers, control, metrics and gateway overlap", param_hint="--control-port"
        )
    for option, span in wanted.items():
        if span.stop - 1 > _LAST_PORT:
            reason = f"{span.start} to {span.stop - 1} are wanted, and {_LAST_PORT} is the last port"
            raise typer.BadParameter(reason, param_hint=option)
        for taken in filter(_is_taken, span):
            raise typer.BadParameter(f"port {taken} is taken on {_HOST}; choose others", param_hint=option)
    data = data.resolve()
    try:
        with failures(), only_one(data):
            home = Home(
                data,
                port=port,
                control_port=control_port,
                metrics_port=metrics_port,
                gateway_port=gateway_port if gateway else None,
                servers=servers,
                engine=engine,
                model=model,
                server_options=server_option or [],
                learner_options=learner_option or [],
            )
            asyncio.run(home.run(kafka))
    except (Occupied, OSError) as error:
        fail(str(error))


class Home:
    """One deployment on this machine."""

    def __init__(
        self,
        data: Path,
        *,
        port: int,
        control_port: int,
        metrics_port: int,
        gateway_port: int | None,
        servers: int,
        engine: str,
        model: str,
        server_options: list[str],
        learner_options: list[str],
    ) -> None:
        self._data = data
        self._ports = [port + index for index in range(servers)]
        self._control_ports = [control_port + index for index in range(servers)]
        self._metrics_port = metrics_port
        self._gateway_port = gateway_port
        self._engine = engine
        self._model = model
        self._server_options = [f"--{option}" for option in server_options]
        self._learner_options = [f"--{option}" for option in learner_options]
        if not any(option.startswith(_SHARE_OPTION) for option in self._learner_options):
            self._learner_options.append(f"{_SHARE_OPTION}{_CANARY_SHARE}")
        self._supervisor = Supervisor(
            data / "logs", self._show, lambda event: console.print(event, style="yellow", markup=False)
        )

    async def run(self, kafka: str | None) -> None:
        """Until SIGINT or SIGTERM."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        work = asyncio.create_task(self._work(kafka))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        failed = work.done()
        work.cancel()
        with suppress(OSError):  # our own output may be on the disk that is full
            console.print("stopping …")
        await asyncio.gather(work, return_exceptions=True)
        await self._supervisor.stop(["gateway"] if self._gateway_port is not None else [])
        await self._supervisor.stop([*self._server_names(), "learner"])
        await self._supervisor.stop(["broker"])  # last: what the servers still had to say goes into it
        if failed:
            work.result()
        console.print("stopped; `plaudit up` continues from here")

    async def _work(self, kafka: str | None) -> None:
        async with AsyncExitStack() as stack:
            # First of all: what is wrong with our credentials is said before anything is started.
            clients = {
                port: await stack.enter_async_context(connect(f"{_HOST}:{control}", timeout=5.0))
                for port, control in zip(self._ports, self._control_ports, strict=True)
            }
            await self._prepare_model()
            self._start(kafka)
            await self._watch(clients)

    def _start(self, kafka: str | None) -> None:
        event_log = self._event_log(kafka)
        make_keys(self._data)
        common = [
            f"--model={self._model}",
            f"--event-log={event_log}",
            f"--policy-store={self._data / 'versions'}",
            "--exit-with-parent",
        ]
        python = [sys.executable, "-m"]
        # One OpenMP thread each: two that spin collapse under contention. vLLM binds its own.
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        bound = bound_cores(sorted(os.sched_getaffinity(0)), len(self._ports))
        for index, (name, port) in enumerate(zip(self._server_names(), self._ports, strict=True)):
            command = [
                *python,
                "plaudit_server.app",
                *common,
                f"--engine={self._engine}",
                f"--listen={_HOST}:{port}",
                f"--control-listen={_HOST}:{self._control_ports[index]}",
                f"--metrics-port={self._metrics_port + 1 + index}",
                f"--state-dir={self._data / name}",
                f"--receipt-keys={self._data / 'receipt.key'}",
                f"--user-key-file={self._data / 'user.key'}",
                *self._server_options,
            ]
            self._supervisor.start(Program(name, command, threads if self._engine == "torch" else bound[index]))
        command = [
            *python,
            "plaudit_learner.app",
            *common,
            f"--metrics-port={self._metrics_port}",
            f"--state-dir={self._data / 'learner'}",
            *self._learner_options,
        ]
        self._supervisor.start(Program("learner", command, threads, nice=19))
        if self._gateway_port is not None:
            command = [
                *python,
                "plaudit_gateway.app",
                f"--listen={_HOST}:{self._gateway_port}",
                f"--server={','.join(f'{_HOST}:{port}' for port in self._ports)}",
                f"--control={_HOST}:{self._control_ports[0]}",
                f"--metrics-port={self._metrics_port + 1 + len(self._ports)}",
                "--exit-with-parent",
            ]
            command += [option for option in self._server_options if option.startswith("--aspects=")]
            self._supervisor.start(Program("gateway", command))

    async def _prepare_model(self) -> None:
        """Convert the packaged model, once, before the programs would both begin to."""
        with console.status(f"preparing the model {self._model} (the first time: about half a minute) …"):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "plaudit.base_model",
                self._model,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in the terminal is ours
            )
            try:
                output, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode != 0:
            raise typer.Exit(1)
        console.print(f"model    {output.decode().strip()}")

    def _event_log(self, kafka: str | None) -> str:
        if kafka is None:
            return f"sqlite:{self._data / 'events.sqlite'}"
        if kafka == EMBEDDED_BROKER:
            port = free_port()
            command = [sys.executable, "-m", "plaudit.broker", f"--port={port}", "--exit-with-parent"]
            self._supervisor.start(Program("broker", command))
            kafka = f"{_HOST}:{port}"
        console.print(f"kafka    {kafka}")
        return f"kafka://{kafka}"

    def _server_names(self) -> list[str]:
        return [f"server-{index}" for index in range(len(self._ports))]

    async def _watch(self, clients: dict[int, AsyncClient]) -> None:
        """Say which versions each server serves whenever that changes; once all of them serve, say how to chat."""
        console.print("starting the engine (vLLM takes about half a minute) …")
        serving: dict[int, str] = {}
        while True:
            for port, client in clients.items():
                answer = await _served(client)
                if not answer or serving.get(port) == answer:
                    continue
                first = port not in serving
                serving[port] = answer
                with suppress(OSError):  # that nobody can be told ends nothing
                    console.print(f"[bold green]serving  {answer} at {_HOST}:{port}")
                    if first and len(serving) == len(clients):
                        self._say_how()
            await asyncio.sleep(_WATCH_SECONDS)

    def _say_how(self) -> None:
        command = Path(sys.argv[0])
        with suppress(ValueError):
            command = command.relative_to(Path.cwd())
        server = "" if self._ports[0] == 50051 else f" --server {_HOST}:{self._ports[0]}"
        control = "" if self._control_ports[0] == 51051 else f" --control {_HOST}:{self._control_ports[0]}"
        names = ["learner", *["server"] * len(self._ports), *["gateway"] * (self._gateway_port is not None)]
        metrics = [f"{name} http://{_HOST}:{self._metrics_port + index}/metrics" for index, name in enumerate(names)]
        if self._gateway_port is not None:
            console.print(f"[bold]chat     in the browser:  http://{_HOST}:{self._gateway_port}")
        console.print(f"metrics  {', '.join(metrics)}")
        console.print(f"control  {command} policies list{control}")
        console.print(f"chat     in another terminal:  {command} chat{server}")
        console.print("         vote with + and -; every new version is announced here; Ctrl-C stops all")

    def _show(self, name: str, line: str) -> None:
        """Our own programs' lines; what their libraries say stays in the log files."""
        ours = logs.parse(line)
        if ours:
            style = {"INFO": "dim", "WARNING": "yellow", "ERROR": "red"}[ours.level]
            console.print(f"{name:9}", style=style, end="")
            console.print(ours.message, style=style, markup=False)


def make_keys(data: Path) -> None:
    """Make what keys a deployment's directory does not have yet. Raises OSError."""
    receipts, users = data / "receipt.key", data / "user.key"
    if receipts.exists() and not users.exists():
        secret_file.write(users, receipts.read_bytes())  # one key did both, once: everybody stays who they are
    secret_file.make_key(receipts)
    secret_file.make_key(users)


async def _served(client: AsyncClient) -> str:
    """Which versions a server gives new requests, in words; empty while it does not answer."""
    try:
        policies = await client.list_policies()
    except (Unauthenticated, PermissionDenied):
        return "what it tells operators only (PLAUDIT_API_KEY)"
    except PlauditError:
        return ""
    answer = policies.serving_version
    for policy in policies.policies:
        if policy.state == "canary":
            answer += f" (and {policy.version} to {policy.share:.3g} of conversations, on trial)"
    return answer


def bound_cores(cores: Sequence[int], servers: int) -> list[dict[str, str]]:
    """What to tell each server's vLLM of the cores to compute on: on a CPU, each would bind itself to the same ones.

    One server is told nothing (vLLM takes all cores but the last), nor is one that was told by whoever started us.
    """
    if servers == 1 or _BIND in os.environ:
        return [{}] * servers
    if len(cores) < servers:
        return [{_BIND: "nobind", "OMP_NUM_THREADS": "1"}] * servers
    computing = cores[:-1] if len(cores) > servers else cores  # the last is the learner's and the rest's, if it can be
    return [{_BIND: ",".join(map(str, computing[index::servers]))} for index in range(servers)]


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return True
    return False
