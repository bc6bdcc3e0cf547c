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
from io import FileIO
from pathlib import Path
from typing import Self

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_HEALTHY_SECONDS = 60.0
_LAST_WORDS = 1.0
"""Seconds that the output of a program that has ended may last."""
_LONGEST_LINE = 1 << 16


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
        """Stop these programs at the same time and wait until they are gone; one that was never started is fine.

        What goes wrong with one of them is told; it keeps none of the others from being stopped.
        """
        stopping = [running for name in names if (running := self._running.pop(name, None))]
        outcomes = await asyncio.gather(*map(self._stop, stopping), return_exceptions=True)
        for running, outcome in zip(stopping, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._tell(f"{running.program.name} was no longer watched: {outcome!r}")

    async def _stop(self, running: _Running) -> None:
        """Their output is read to its end: what a program says while it stops is in its log too."""
        running.stopping.set()
        assert running.task is not None
        running.signal(signal.SIGTERM)
        done, _ = await asyncio.wait({running.task}, timeout=running.program.grace)
        if not done:
            self._tell(f"{running.program.name} does not stop; killed")
            running.signal(signal.SIGKILL)
        await running.task

    async def _keep_running(self, running: _Running) -> None:
        program, pause = running.program, _FIRST_PAUSE
        while not running.stopping.is_set():
            began = time.monotonic()
            try:
                ended = f"ended with status {await self._run(running)}"
            except OSError as error:  # too many processes or open files, no memory: it may pass
                ended = f"cannot be started ({error})"
            if running.stopping.is_set():
                return
            if time.monotonic() - began > _HEALTHY_SECONDS:
                pause = _FIRST_PAUSE
            self._tell(
                f"{program.name} {ended}; starting it again in {pause:g} s (see {self._logs / program.name}.log)"
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(running.stopping.wait(), pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run(self, running: _Running) -> int:
        """Run it once; its status. Raises OSError when it cannot be started."""
        program = running.program
        command = ["nice", "-n", str(program.nice), *program.command] if program.nice else list(program.command)
        with _Log(self._logs / f"{program.name}.log", self._tell) as log:
            output = _Output(lambda line: self._take(program.name, log, line))
            process, _ = await asyncio.get_running_loop().subprocess_exec(
                lambda: output,
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **program.environment},
                start_new_session=True,  # Ctrl-C in the terminal is ours: we stop the programs in order
            )
            running.process = process
            if program.nice:
                _give_way(process.get_pid(), program.nice)
            if running.stopping.is_set():
                running.signal(signal.SIGTERM)
            await output.exited.wait()
            try:
                await asyncio.wait_for(output.ended.wait(), _LAST_WORDS)
            except TimeoutError:  # a child of it holds the output open, and perhaps a port that the next one needs
                self._tell(f"{program.name} left processes behind; killed")
                running.signal(signal.SIGKILL)
            process.close()
            await output.ended.wait()
        status = process.get_returncode()
        assert status is not None
        return status

    def _take(self, name: str, log: _Log, line: bytes) -> None:
        log.write(line)
        with suppress(OSError, ValueError):  # nobody can be told: the program goes on
            self._on_line(name, line.decode(errors="replace").rstrip())

    def _tell(self, event: str) -> None:
        with suppress(OSError, ValueError):  # a terminal that is gone, a full disk, a character that it cannot show
            self._on_event(event)


class _Running:
    """A program, and the process that runs it now."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.stopping = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.process: asyncio.SubprocessTransport | None = None

    def signal(self, number: signal.Signals) -> None:
        """Signal the process, if it runs; SIGKILL goes to its children (it leads a session), even where it is gone."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self.process.get_pid(), number)
            elif self.process.get_returncode() is None:
                self.process.send_signal(number)


class _Output(asyncio.SubprocessProtocol):
    """What a process says, line by line, and the ends of both.

    asyncio's own `Process.wait` waits for the end of the output, too, which a child of the process may hold open.
    """

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self.exited = asyncio.Event()
        self.ended = asyncio.Event()
        self._take = take
        self._rest = b""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line + b"\n")
        if len(self._rest) > _LONGEST_LINE:  # passed on in pieces
            self._take(self._rest)
            self._rest = b""

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self.ended.set()
            if self._rest:
                self._take(self._rest)

    def process_exited(self) -> None:
        self.exited.set()


class _Log:
    """A program's log file. What it cannot take is lost, which is said once: the program must not stand for it."""

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self._path = path
        self._tell = tell
        self._file: FileIO | None = None
        self._failed = False

    def write(self, line: bytes) -> None:
        """Append; after a failure, each line tries again."""
        try:
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)
            self._file.write(line)
        except OSError as error:
            if not self._failed:
                self._failed = True
                self._tell(f"{self._path} cannot be written ({error.strerror}); lines are lost until it can")

    def __enter__(self) -> Self:
        self.write(b"")  # it is there, whatever the program says
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


def _give_way(session: int, nice: int) -> None:
    """Lower the share of a whole session.

    Where the kernel first shares cores out between sessions (autogroup, which most distributions have on), a process is
    only as nice as others of its own session let it be, and each program here leads one.
    """
    with suppress(OSError):  # the kernel has no autogroup, or the program has ended
        Path(f"/proc/{session}/autogroup").write_text(str(nice))
