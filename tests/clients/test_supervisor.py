"""How `plaudit up` keeps programs running, stops them, and shares the machine out between them."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console

from plaudit_cli import supervisor as supervisors
from plaudit_cli import up
from plaudit_cli.supervisor import Program, Supervisor
from plaudit_cli.up import Home, bound_cores

_STOPS_WHEN_TOLD = """
import signal
def stop(*_):
    print("stopped", flush=True)
    raise SystemExit
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
signal.pause()
"""
_CHATTY = """
for number in range(2000):  # far more than a pipe holds
    print(number, "x" * 1000, flush=True)
import sys
sys.stdin.read()
"""
_UNHEARD = """
import sys
from plaudit_cli.up import console
for number in range(3):
    console.print(number)
print("still here", file=sys.stderr)
"""
_LEAVES_A_CHILD = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
print("child", child.pid, flush=True)
os._exit(9)
"""

_GIVES_WAY = """
import os, sys, time
while "nice 19" not in open("/proc/self/autogroup").read():
    time.sleep(0.01)
print("gives way at", os.nice(0), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel does not group by sessions")
async def test_a_nice_program_gives_way_with_its_whole_session(tmp_path: Path) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    supervisor = Supervisor(tmp_path, lambda _, line: said.put_nowait(line), said.put_nowait)
    supervisor.start(Program("learner", [sys.executable, "-c", _GIVES_WAY], nice=19))
    try:
        async with asyncio.timeout(60):
            assert await said.get() == "gives way at 19"
    finally:
        await supervisor.stop(["learner"])


class _Full(io.StringIO):
    """A file on a disk without room."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def _runs(process: str) -> bool:
    try:
        return ") Z " not in Path("/proc", process, "stat").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(supervisors, "_LAST_WORDS", 0.5)


@pytest.fixture(params=["No space left on device", "Is a directory"])
def unwritable(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Why a program named `full` cannot have its log."""
    if request.param == "Is a directory":
        (tmp_path / "full.log").mkdir()
    else:
        (tmp_path / "full.log").symlink_to("/dev/full")
    return str(request.param)


async def test_a_full_disk_stops_neither_the_program_nor_its_supervision(tmp_path: Path, unwritable: str) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    events: asyncio.Queue[str] = asyncio.Queue()
    supervisor = Supervisor(tmp_path, lambda _, line: said.put_nowait(line), events.put_nowait)
    supervisor.start(Program("full", [sys.executable, "-c", _CHATTY]))
    async with asyncio.timeout(60):
        while not (await said.get()).startswith("1999 "):
            pass
        await supervisor.stop(["full"])
    told = events.get_nowait()
    assert f"full.log cannot be written ({unwritable})" in told
    assert events.empty(), "said more than once"


async def test_what_nobody_can_be_told_stops_nothing(tmp_path: Path) -> None:
    written = asyncio.Queue[str]()

    def fail(*words: str) -> None:
        written.put_nowait(words[-1])
        raise OSError(errno.ENOSPC, "No space left on device")

    supervisor = Supervisor(tmp_path, fail, fail)
    supervisor.start(Program("ends", [sys.executable, "-c", "print('one'); print('two')"]))
    async with asyncio.timeout(60):
        assert [await written.get() for _ in range(2)] == ["one", "two"]
        assert "ended with status 0" in await written.get()
        assert await written.get() == "one", "not started again"
        await supervisor.stop(["ends"])
    assert (tmp_path / "ends.log").read_text().startswith("one\ntwo\n")


async def test_a_program_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    supervisor = Supervisor(tmp_path, lambda _, line: said.put_nowait(line), said.put_nowait)
    program = tmp_path / "program"
    supervisor.start(Program("late", [str(program)]))
    async with asyncio.timeout(60):
        for pause in ("0.05", "0.1"):
            told = await said.get()
            assert "late cannot be started ([Errno 2] No such file or directory" in told
            assert f"starting it again in {pause} s" in told
        (tmp_path / "new").write_text("#!/bin/sh\necho here\nread line\n")
        (tmp_path / "new").chmod(0o700)
        (tmp_path / "new").rename(program)
        while (word := await said.get()) != "here":
            assert "cannot be started" in word
        await supervisor.stop(["late"])


async def test_a_program_is_started_again_while_a_child_of_it_lives_on(tmp_path: Path) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    supervisor = Supervisor(tmp_path, lambda _, line: said.put_nowait(line), said.put_nowait)
    supervisor.start(Program("parent", [sys.executable, "-c", _LEAVES_A_CHILD], grace=1))
    async with asyncio.timeout(60):
        child = (await said.get()).removeprefix("child ")
        assert await said.get() == "parent left processes behind; killed"
        assert "parent ended with status 9; starting it again" in await said.get()
        while _runs(child):
            await asyncio.sleep(0.01)
        assert (await said.get()).startswith("child ")
        await supervisor.stop(["parent"])  # the second child is killed as well: it holds the output that stop waits for


async def test_stop_stops_all_whatever_becomes_of_one(tmp_path: Path) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()

    def told(event: str) -> None:
        said.put_nowait(event)
        if event.startswith("broken ended"):
            raise KeyError(event)  # a bug

    supervisor = Supervisor(tmp_path, lambda _, line: said.put_nowait(line), told)
    supervisor.start(Program("broken", ["true"]))
    async with asyncio.timeout(60):
        assert "broken ended" in await said.get()
        supervisor.start(Program("sound", [sys.executable, "-c", _STOPS_WHEN_TOLD]))
        assert await said.get() == "up"
        await supervisor.stop(["broken", "sound"])
    assert said.get_nowait() == "stopped"
    assert said.get_nowait().startswith("broken was no longer watched: KeyError")


async def test_up_stops_everything_though_nobody_can_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(
        tmp_path,
        port=1,
        control_port=2,
        metrics_port=3,
        gateway_port=None,
        servers=1,
        engine="torch",
        model="smollm2",
        server_options=[],
        learner_options=[],
    )
    log = tmp_path / "logs" / "server-0.log"

    async def work(kafka: str | None) -> None:
        home._supervisor.start(Program("server-0", [sys.executable, "-c", _STOPS_WHEN_TOLD]))
        while not log.exists() or log.read_text() != "up\n":
            await asyncio.sleep(0.01)
        raise typer.Exit(1)

    monkeypatch.setattr(home, "_work", work)
    monkeypatch.setattr(up, "console", Console(file=_Full()))
    async with asyncio.timeout(60):
        with pytest.raises(typer.Exit):
            await home.run(None)
    assert log.read_text() == "up\nstopped\n"


@pytest.mark.parametrize(
    ("cores", "servers", "bound"),
    [
        ([0, 1], 1, [None]),
        ([0, 1], 2, ["0", "1"]),
        ([0, 1, 2, 3, 6], 2, ["0,2", "1,3"]),
        ([4], 2, ["nobind", "nobind"]),
    ],
)
def test_no_two_servers_compute_on_the_same_cores(
    monkeypatch: pytest.MonkeyPatch, cores: list[int], servers: int, bound: list[str | None]
) -> None:
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    assert [told.get("VLLM_CPU_OMP_THREADS_BIND") for told in bound_cores(cores, servers)] == bound


def test_a_terminal_that_is_gone_ends_nothing() -> None:
    """`plaudit up | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as unheard:
        done = subprocess.run(
            [sys.executable, "-c", _UNHEARD], stdout=unheard, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (done.returncode, done.stderr.decode().split()) == (0, ["still", "here"])
