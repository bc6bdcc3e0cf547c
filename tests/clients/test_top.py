"""`plaudit top` against a real server: once as text and JSON, live in a terminal, while the server is away and back."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import struct
import termios
from fcntl import ioctl
from pathlib import Path

from plaudit.broker import free_port
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_cli.top import Source
from plaudit_client import AsyncClient
from tests.clients.conftest import Outcome
from tests.fixtures_server import Deployment
from tests.server.test_loop_service import a_learner, a_round, report

ENVIRONMENT = {**os.environ, "NO_COLOR": "1", "TERM": "xterm"}


async def execute(plaudit: Path, *arguments: str, **more: str) -> Outcome:
    process = await asyncio.create_subprocess_exec(
        plaudit,
        "top",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=ENVIRONMENT | more,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return Outcome(process.returncode or 0, out.decode(), err.decode())


class Terminal:
    """A terminal of 80 × 24 in which the command runs."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.text = ""
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(self.ours, self._read)

    def _read(self) -> None:
        self.text += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(self.ours, 65536).decode(errors="replace"))
        self._news.set()

    async def until(self, words: str) -> None:
        """Wait until it shows this; what it showed before is forgotten."""
        async with asyncio.timeout(60):
            while words not in self.text:
                self._news.clear()
                await self._news.wait()
        self.text = self.text[self.text.index(words) + len(words) :]

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.ours)
        os.close(self.ours)
        os.close(self.theirs)


async def test_once_as_text_and_as_json(deployment: Deployment, plaudit: Path) -> None:
    port = free_port()
    report(deployment, a_round(1, 3), a_learner("improving"))
    deployment.announce("v1", PolicyState.POLICY_STATE_REJECTED, parent="v0", reason="KL 超过 3")
    async with deployment.running(metrics_port=port) as (public, control):
        async with AsyncClient(public) as client:
            await client.chat("hello", max_tokens=4).read()
        arguments = (f"--control={control}", f"--metrics=http://127.0.0.1:{port}/metrics")
        text, plain, ascii_ = await asyncio.gather(
            execute(plaudit, *arguments),  # no terminal: as with --once
            execute(plaudit, *arguments, "--json", "--metrics=http://127.0.0.1:9/metrics"),
            execute(plaudit, *arguments, "--once", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C"),
        )
    assert (text.code, text.err) == (0, "")
    for words in ("serves v0", "replies 0.00/s", "improving", "new votes 12/40", "update 3 of 5", "AUC quality 0.80"):
        assert words in text.out
    assert re.search(r"v0 stable .*●.* 75% \[ 41%, 93%\] of 8 votes", text.out)
    assert re.search(r"v1 rejected: KL 超过 3", text.out)
    assert (ascii_.code, ascii_.err) == (0, "")
    assert "v1 rejected: KL ?? 3" in ascii_.out
    assert ascii_.out.isascii()
    assert plain.code == 0
    said = json.loads(plain.out)
    assert said["loop"]["learner"]["stage"] == "improving"
    assert said["serving"]["servers"] == 1
    assert said["serving"]["time_to_first_token_p50"] > 0
    assert [p["state"] for p in said["policies"]["policies"]] == ["stable", "rejected"]
    assert said["endpoints"] == {
        arguments[1][len("--metrics=") :]: "",
        "http://127.0.0.1:9/metrics": "Connection refused",
    }


async def test_nothing_at_all_answers(plaudit: Path) -> None:
    where = f"127.0.0.1:{free_port()}"
    outcome = await execute(plaudit, f"--control={where}", "--metrics=http://127.0.0.1:9/metrics")
    assert outcome.code == 1
    assert outcome.err.startswith(f"plaudit: nothing answers: nothing answers at {where}")
    assert outcome.err.count("\n") == 1


async def test_live_until_q_is_pressed_while_the_server_goes_and_comes(deployment: Deployment, plaudit: Path) -> None:
    where, port = f"127.0.0.1:{free_port()}", free_port()
    terminal = Terminal()
    command = ["top", f"--control={where}", f"--metrics=http://127.0.0.1:{port}/metrics", "--interval=0.3"]
    try:
        before = termios.tcgetattr(terminal.theirs)
        async with deployment.running(control_listen=where, metrics_port=port):
            process = await asyncio.create_subprocess_exec(
                plaudit,
                *command,
                stdin=terminal.theirs,
                stdout=terminal.theirs,
                stderr=terminal.theirs,
                env={key: value for key, value in ENVIRONMENT.items() if key not in ("COLUMNS", "LINES")},
            )
            await terminal.until("it has said nothing yet")
            report(deployment, a_round(1, 3), a_learner("improving"))
            await terminal.until("improving for")
            await terminal.until("update 3 of 5")
        await terminal.until("AWAY: ")
        await terminal.until("update 3 of 5")
        report(deployment, a_learner("gating"))
        async with deployment.running(control_listen=where, metrics_port=port):
            await terminal.until("gating for")
            os.write(terminal.ours, b"q")
            assert await asyncio.wait_for(process.wait(), 30) == 0
        assert termios.tcgetattr(terminal.theirs) == before, "the terminal is as it was"
    finally:
        terminal.close()


async def test_who_may_only_observe_sees_the_loop(deployment: Deployment, tmp_path: Path) -> None:
    from plaudit import callers
    from plaudit.callers import ApiKey, Callers
    from plaudit.permission import Permission
    from plaudit_cli.common import Credentials, credentials

    secret, file = callers.new_secret(), tmp_path / "callers.json"
    key = ApiKey(name="wall", sha256=callers.digest(secret), permissions=frozenset({Permission.OBSERVE}))
    callers.write(file, Callers(keys=(key,)))
    async with deployment.running(callers_file=file) as (_, control):
        token = credentials.set(Credentials(api_key=secret))
        try:
            snapshot = await Source(control, ["http://127.0.0.1:9/metrics"]).look_once()
        finally:
            credentials.reset(token)
    assert snapshot.loop is not None
    assert "needs admin" in snapshot.policies_error
