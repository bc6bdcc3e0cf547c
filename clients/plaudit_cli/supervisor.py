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
import signal
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
    grace: float = 90.0
    """Seconds between SIGTERM and SIGKILL; longer than a server drains, by default, and its engine takes to stop."""


class Supervisor:
    """Runs programs; their output goes to a file each, and line by line to `on_line(name, line)`."""

    def __init__(self, logs: Path, on_line: Callable[[str, str], None], on_event: Callable[[str], None]) -> None:
        self._logs = logs
        self._on_line = on_line
        self._on_event = on_event
        self._running: dict[str, _Running] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, program: Program) -> None:
        """Start it, and start it again whenever it ends, until `stop`."""
        running = self._running[program.name] = _Running(program)
        running.task = asyncio.create_task(self._keep_running(running), name=program.name)

    async def stop(self, names: Sequence[str]) -> None:
        """Stop these programs at the same time and wait until they are gone; one that was never started is fine."""
        await asyncio.gather(*(self._stop(running) for name in names if (running := self._running.pop(name, None))))

    async def _stop(self, running: _Running) -> None:
        """Their output is read to its end: what a program says while it stops is in its log too."""
        running.stopping.set()
        assert running.task is not None
        running.signal(signal.SIGTERM)
        done, _ = await asyncio.wait({running.task}, timeout=running.program.grace)
        if not done:
            self._on_event(f"{running.program.name} does not stop; killed")
            running.signal(signal.SIGKILL)
        await running.task

    async def _keep_running(self, running: _Running) -> None:
        program, pause = running.program, _FIRST_PAUSE
        while not running.stopping.is_set():
            began = time.monotonic()
            status = await self._run(running)
            if running.stopping.is_set():
                return
            if time.monotonic() - began > _HEALTHY_SECONDS:
                pause = _FIRST_PAUSE
            self._on_event(
                f"{program.name} ended with status {status}; starting it again in {pause:g} s "
                f"(see {self._logs / program.name}.log)"
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(running.stopping.wait(), pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run(self, running: _Running) -> int:
        program = running.program
        command = ["nice", "-n", str(program.nice), *program.command] if program.nice else list(program.command)
        process = running.process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **program.environment},
            start_new_session=True,  # Ctrl-C in the terminal is ours: we stop the programs in order
        )
        if program.nice:
            _give_way(process.pid, program.nice)
        if running.stopping.is_set():
            running.signal(signal.SIGTERM)
        assert process.stdout is not None
        with (self._logs / f"{program.name}.log").open("ab") as log:
            while line := await _line(process.stdout):
                log.write(line)
                log.flush()
                self._on_line(program.name, line.decode(errors="replace").rstrip())
        return await process.wait()


class _Running:
    """A program, and the process that runs it now."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.stopping = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.process: asyncio.subprocess.Process | None = None

    def signal(self, number: signal.Signals) -> None:
        """Signal the process, if it runs; SIGKILL goes to its children too (it leads a session of its own)."""
        if self.process is None or self.process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)


def _give_way(session: int, nice: int) -> None:
    """Lower the share of a whole session.

    Where the kernel first shares cores out between sessions (autogroup, which most distributions have on), a process is
    only as nice as others of its own session let it be, and each program here leads one.
    """
    with suppress(OSError):  # the kernel has no autogroup, or the program has ended
        Path(f"/proc/{session}/autogroup").write_text(str(nice))


async def _line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except ValueError:  # longer than the reader's buffer: pass it on in pieces
        return await stream.read(1 << 16)
