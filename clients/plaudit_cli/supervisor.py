"""Keeps a set of programs running: starts them, restarts what dies, stops all of them cleanly, in order.

    start ──▶ running ──exit──▶ back-off (1 s, doubled up to 30 s) ──▶ start …
                 │ stop
                 ▼
              SIGTERM ──exit or grace over──▶ (SIGKILL) ──▶ gone

Each program's standard input is a pipe that only this process holds open: when this process dies, however it dies, the
pipe ends, and the programs stop by themselves (--exit-with-parent).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_HEALTHY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Program:
    """What is kept running."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """On top of this process's own."""
    nice: int = 0
    """Added niceness: the learner gives way to the servers."""
    grace: float = 40.0
    """Seconds between SIGTERM and SIGKILL."""


class Supervisor:
    """Runs programs; their output goes to a file each, and line by line to `on_line(name, line)`."""

    def __init__(self, logs: Path, on_line: Callable[[str, str], None], on_event: Callable[[str], None]) -> None:
        self._logs = logs
        self._on_line = on_line
        self._on_event = on_event
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._graces: dict[str, float] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, program: Program) -> None:
        """Start it, and start it again whenever it ends, until `stop`."""
        self._graces[program.name] = program.grace
        self._tasks[program.name] = asyncio.create_task(self._keep_running(program), name=program.name)

    def pid(self, name: str) -> int | None:
        """The process id of a program that runs now."""
        process = self._processes.get(name)
        return process.pid if process is not None and process.returncode is None else None

    async def stop(self, names: Sequence[str] | None = None) -> None:
        """Stop these programs at the same time (default: all) and wait until they are gone."""
        await asyncio.gather(*(self._stop(name) for name in names or list(self._tasks)))

    async def _stop(self, name: str) -> None:
        task = self._tasks.pop(name)
        process = self._processes.pop(name, None)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._graces[name])
        except TimeoutError:
            self._on_event(f"{name} does not stop; killed")
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _keep_running(self, program: Program) -> None:
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            status = await self._run(program)
            if time.monotonic() - began > _HEALTHY_SECONDS:
                pause = _FIRST_PAUSE
            self._on_event(
                f"{program.name} ended with status {status}; starting it again in {pause:g} s "
                f"(see {self._logs / program.name}.log)"
            )
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run(self, program: Program) -> int:
        command = ["nice", "-n", str(program.nice), *program.command] if program.nice else list(program.command)
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **program.environment},
            start_new_session=True,  # Ctrl-C in the terminal is ours: we stop the programs in order
        )
        self._processes[program.name] = process
        assert process.stdout is not None
        with (self._logs / f"{program.name}.log").open("ab") as log:
            # A cancelled task stops reading here; the process is then stopped by `_stop`.
            while line := await _line(process.stdout):
                log.write(line)
                log.flush()
                self._on_line(program.name, line.decode(errors="replace").rstrip())
        return await process.wait()


async def _line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except ValueError:  # longer than the reader's buffer: pass it on in pieces
        return await stream.read(1 << 16)
