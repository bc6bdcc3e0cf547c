"""The real `plaudit` command: what it prints, where, and with which exit code."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from bench.deployment import free_range
from plaudit.v1.feedback_pb2 import Thumb
from plaudit_cli.main import COMMANDS, load
from tests.clients.conftest import Run
from tests.clients.scripted import Failure, Script, serving

Code = grpc.StatusCode


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands_is_true(name: str) -> None:
    assert load(name).name == name


def test_help_answers_at_once(plaudit: Path) -> None:
    subprocess.run([plaudit, "--help"], check=True, capture_output=True)  # byte-compiles
    begun = time.monotonic()
    done = subprocess.run([plaudit, "--help"], check=True, capture_output=True, text=True)
    assert time.monotonic() - begun < 2  # a quarter of a second when the machine is idle
    for name, (_, line) in COMMANDS.items():
        assert name in done.stdout
        assert line in done.stdout


def test_nothing_heavy_is_imported() -> None:
    heavy = ("torch", "transformers", "vllm", "plaudit_server", "plaudit_learner", "pydantic", "numpy")
    modules = ["plaudit_client", *(target.split(":")[0] for target, _ in COMMANDS.values())]
    program = f"import sys, {', '.join(modules)}; print(*set({heavy}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("dance",),
        ("vote", "r"),
        ("vote", "r", "sideways"),
        ("vote", "r", "up", "--rating", "3"),
        ("vote", "r", "up", "--retract"),
        ("vote", "r", "--rating", "6"),
        ("simulate", "--persona", "brief"),
        ("chat", "--server", "nonsense"),
        ("policies", "list", "--control", "nonsense"),
        ("up", "--port", "70000"),
        ("up", "--metrics-port", "65535"),
        ("keys", "create", "x", "--days", "99999999"),
    ],
)
async def test_wrong_usage_exits_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = await run(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err


async def test_up_names_the_port_that_is_taken(run: Run, address: str, tmp_path: Path) -> None:
    taken, first = address.rpartition(":")[2], free_range(6)
    ports = (f"--port={first}", f"--control-port={first + 1}", f"--metrics-port={first + 2}")
    outcome = await run("up", f"--data={tmp_path}", *ports, f"--gateway-port={taken}")
    assert outcome.code == 2
    assert "--gateway-port" in outcome.err
    assert f"port {taken} is taken" in outcome.err
    outcome = await run("up", f"--data={tmp_path}", *ports, f"--gateway-port={first + 5}", f"--servers={4}")
    assert "the ports of servers, control, metrics and gateway overlap" in outcome.err


async def test_up_says_in_one_line_what_it_cannot_use(run: Run, tmp_path: Path) -> None:
    first = free_range(6)
    names = {"port": first, "control-port": first + 1, "metrics-port": first + 2, "gateway-port": first + 5}
    ports = [f"--{name}={port}" for name, port in names.items()]
    file = tmp_path / "file"
    file.touch()
    outcome = await run("up", f"--data={file / 'x'}", *ports)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == f"plaudit: [Errno 20] Not a directory: '{file / 'x'}'\n"
    missing = tmp_path / "missing.pem"
    outcome = await run("--ca", str(missing), "up", f"--data={tmp_path}", *ports)
    assert (outcome.code, outcome.err) == (1, f"plaudit: {missing}: No such file or directory\n")
    assert not any((tmp_path / "logs").iterdir()), "nothing was started"
    assert not (tmp_path / "user.key").exists()


@pytest.mark.parametrize(
    "arguments", [("policies", "list"), ("chat",), ("vote", "r", "up"), ("policies", "promote", "v1")]
)
async def test_no_server_is_one_line(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = await run(*arguments, server="127.0.0.1:1", stdin="Hi\n")
    assert outcome.code == 1
    assert outcome.err == (
        "plaudit: nothing answers at 127.0.0.1:1 (connection refused); "
        "start one with `plaudit up`, or name another with --server or --control\n"
    )


async def test_feedback_is_not_imported_where_nobody_reads_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "user.key").write_bytes(b"k" * 32)
    outcome = await run("import", str(tmp_path / "feedback.jsonl"), "--data", str(tmp_path))
    assert outcome.code == 1
    embedded = tmp_path / "events.sqlite"
    wants = "a deployment with Kafka wants --event-log kafka://HOST:PORT"
    assert outcome.err == f"plaudit: there is no {embedded}: {wants}\n"
    assert not embedded.exists()


@pytest.mark.parametrize(
    ("said", "told"), [(None, ""), (b"caf\xe9\n", "that was not text in this terminal's encoding")]
)
async def test_chat_with_what_is_no_text(plaudit: Path, address: str, said: bytes | None, told: str) -> None:
    """Standard input is closed, or has a byte of another encoding."""
    process = await asyncio.create_subprocess_exec(
        *(plaudit, "chat"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PLAUDIT_SERVER": address, "PYTHONIOENCODING": "utf-8:strict"},
        preexec_fn=(lambda: os.close(0)) if said is None else None,
    )
    _, err = await process.communicate(said)
    assert process.returncode == 0
    assert err.decode().startswith(told)
    assert b"Traceback" not in err


async def test_chat_from_a_pipe(run: Run, script: Script) -> None:
    outcome = await run("chat", "--system", "Be kind.", "--user", "ada", stdin="hello\n+\nhow are you\n-\n/new\nbye\n")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "HELLO ",
        "[v0, stop]",
        "recorded: good (v0)",
        "HOW ARE YOU ",
        "[v0, stop]",
        "recorded: bad (v0)",
        "a new conversation",
        "BYE ",
        "[v0, stop]",
    ]
    assert [[message.content for message in request.messages] for request in script.chats] == [
        ["Be kind.", "hello"],
        ["Be kind.", "hello", "HELLO ", "how are you"],
        ["Be kind.", "bye"],
    ]
    conversations = [request.conversation_id for request in script.chats]
    assert conversations[0] == conversations[1] != conversations[2]
    assert [(vote.receipt, vote.thumb, vote.user_id) for vote in script.feedback] == [
        ("receipt-1", Thumb.THUMB_UP, "ada"),
        ("receipt-2", Thumb.THUMB_DOWN, "ada"),
    ]


async def test_a_terminal_obeys_no_reply(run: Run, script: Script) -> None:
    script.replies = iter(["\x1b[2Jgone\x1b]0;title\x07\r\x9b1m\n\tthere می\u200cخواهم"])
    outcome = await run("chat", stdin="hello\n")
    assert outcome.out == " [2Jgone ]0;title   1m\n\tthere می\u200cخواهم \n[v0, stop]\n"


@pytest.mark.parametrize(("answer", "better", "kept"), [("1", 1, "one "), ("2", 2, "two ")])
async def test_chat_regenerates(run: Run, script: Script, answer: str, better: int, kept: str) -> None:
    script.replies = iter(["one", "two", "three"])
    outcome = await run("chat", stdin=f"hello\nr\nmaybe\n{answer}\ngo on\n/quit\nnot said\n")
    assert (outcome.code, outcome.err) == (0, "")
    (vote,) = script.feedback
    assert vote.receipt == f"receipt-{better}"
    assert vote.preference.over_receipt == f"receipt-{3 - better}"
    assert [message.content for message in script.chats[1].messages] == ["hello"]
    assert [message.content for message in script.chats[2].messages] == ["hello", kept, "go on"]
    assert script.chats[0].sampling.seed != script.chats[1].sampling.seed


async def test_a_reply_without_text_is_not_history_but_can_be_tried_again(run: Run, script: Script) -> None:
    script.replies = iter(["one", "", "two", "three"])
    outcome = await run("chat", stdin="hello\nspeak\nr\n\ngo on\n")
    assert (outcome.code, script.feedback) == (0, [])
    assert [[message.content for message in request.messages] for request in script.chats[1:3]] == [
        ["hello", "one ", "speak"]
    ] * 2
    assert [message.content for message in script.chats[3].messages] == ["hello", "one ", "speak", "two ", "go on"]


async def test_chat_with_nothing_to_vote_on(run: Run, script: Script) -> None:
    outcome = await run("chat", stdin="+\nr\n/what\n/help\n\n")
    assert outcome.code == 0
    assert outcome.out.splitlines()[:3] == [
        "nothing to vote on yet",
        "nothing to try again yet",
        "there is no /what; /help says what there is",
    ]
    assert script.chats == []


async def test_a_script_notices_that_its_chat_failed(run: Run, script: Script) -> None:
    script.failures = [Failure(Code.INVALID_ARGUMENT, violations=(("messages", "are too long"),))]
    outcome = await run("chat", stdin="hello\n+\n")
    assert (outcome.code, outcome.err) == (1, "plaudit: messages: are too long\n")


async def test_chat_with_a_server_that_is_not_ready(run: Run) -> None:
    async with serving(Script(), healthy=False) as address:
        outcome = await run("chat", server=address)
    assert outcome.code == 1
    assert "does not serve yet" in outcome.err


async def test_chat_in_a_terminal(plaudit: Path, address: str, script: Script) -> None:
    """Ctrl-C ends a reply, an error does not end the chat, Ctrl-D does."""
    master, slave = pty.openpty()
    environment = {**os.environ, "PLAUDIT_SERVER": address, "TERM": "dumb", "NO_COLOR": "1"}
    process = await asyncio.create_subprocess_exec(
        plaudit,
        "chat",
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(slave)
    os.set_blocking(master, False)
    seen = ""

    async def expect(text: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 20
        while text not in seen:
            assert time.monotonic() < deadline, f"{text!r} is not in {seen!r}"
            try:
                seen += os.read(master, 4096).decode()
            except BlockingIOError:
                await asyncio.sleep(0.02)
        seen = seen[seen.index(text) + len(text) :]

    try:
        await expect("> ")
        script.endless = True
        os.write(master, b"hello\n")
        await expect("more ")
        os.write(master, b"\x03")
        await expect("[v0, cancelled]")
        await asyncio.wait_for(script.freed.wait(), 5)
        script.endless = False
        script.failures = [Failure(Code.INVALID_ARGUMENT, violations=(("messages", "are too long"),))]
        await expect("> ")
        os.write(master, b"again\n")
        await expect("plaudit: messages: are too long")
        await expect("> ")
        os.write(master, b"+\n")
        await expect("recorded: good")
        await expect("> ")
        os.write(master, b"\x04")
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C typed into it becomes a signal


async def test_vote(run: Run, script: Script) -> None:
    outcome = await run("vote", "r", "up", "--aspect", "politeness", "--comment", "well said", "--user", "ada")
    assert (outcome.code, outcome.out) == (0, "recorded (event log)\n")
    comment, thumb = script.feedback
    assert (comment.comment, comment.aspect) == ("well said", "politeness")
    assert (thumb.thumb, thumb.aspect, thumb.user_id) == (Thumb.THUMB_UP, "politeness", "ada")
    assert (await run("vote", "r", "--rating", "4")).code == 0
    assert script.feedback[2].rating == 4
    assert (await run("vote", "r", "--retract", "--aspect", "x")).out == "recorded (outbox)\n"
    assert script.retractions[0].aspect == "x"


async def test_a_refused_vote(run: Run, script: Script) -> None:
    script.failures = [Failure(Code.INVALID_ARGUMENT, violations=(("receipt", "is not\none of ours"),))]
    outcome = await run("vote", "forged", "down")
    assert (outcome.code, outcome.err) == (1, "plaudit: receipt: is not one of ours\n")


async def test_policies(run: Run, script: Script) -> None:
    listed = await run("policies", "list")
    assert listed.code == 0
    head, base, newest = listed.out.splitlines()
    assert head.split() == ["version", "state", "parent", "since", "metrics", "votes", "reason"]
    assert "v0" in base
    assert "retired (serves)" in base
    assert "stable (loaded)" in newest
    assert "kl 0.5" in newest
    assert "because [it] could" in newest
    shown = (await run("policies", "show", "v1")).out
    assert "reference  v0\n" in shown
    assert "kl         0.5\n" in shown
    assert shown.splitlines()[-3:] == [
        "the gate  this version  reference       bound",
        "reward    0.250         0.125 (parent)  at least 0.200  ok",
        "longer    80.500        50.000          at most 75.000  REJECTED",
    ]
    assert (await run("policies", "promote", "v1", "--reason", "good")).out == "v1 is stable\n"
    assert (await run("policies", "rollback")).out == "v1 is rolled back; v0 serves\n"
    assert script.reasons == ["good", ""]
    missing = await run("policies", "show", "v9")
    assert (missing.code, missing.err) == (1, "plaudit: there is no version v9\n")


async def test_a_canary(run: Run, script: Script) -> None:
    shared = await run("policies", "share", "v2", "0.1", "--reason", "try it")
    assert (shared.code, shared.out) == (0, "v2 is canary, at 0.1 of conversations\n")
    assert script.reasons == ["try it"]
    wrong = await run("policies", "share", "v2", "1.5")
    assert (wrong.code, wrong.err) == (1, "plaudit: share: give 0 to below 1\n")
    watched = await run("policies", "watch")
    first, second = watched.out.splitlines()
    assert first.endswith("v1    stable: because [it] could")
    assert second.endswith("v2    canary at 0.1: because [it] could (0.50 of 32, stable 0.25 of 300)")
    assert (watched.code, watched.err) == (1, "plaudit: this server is stopping\n")
    script.canary = 0.25
    *_, listed = (await run("policies", "list")).out.splitlines()
    assert "canary at 0.25" in listed
    assert "kl 0.5" in listed
    assert "0.50 of 32, stable 0.25 of 300" in listed
    assert "canary_" not in listed
    shown = (await run("policies", "show", "v2")).out
    assert "state      canary, at 0.25 of conversations\n" in shown
    assert "votes      0.50 of 32, stable 0.25 of 300\n" in shown


async def test_simulate(run: Run, script: Script, tmp_path: Path) -> None:
    prompts, votes = tmp_path / "prompts.txt", tmp_path / "votes.jsonl"
    prompts.write_text("one\ntwo\nthree\n")
    script.failures = [Failure(Code.INVALID_ARGUMENT, violations=(("messages", "are too long"),))]
    arguments = ("simulate", "--persona", "brief", "--prompts", str(prompts), "--conversations", "7", "--noise", "0")
    outcome = await run(*arguments, "--json", str(votes))
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == "brief: complete replies of at most about 30 words"
    assert lines[-2].startswith("v0: approval 1.000 (95% interval 0.610 – 1.000), 6 up of 6 votes, without noise 0.9")
    assert lines[-1].startswith("6 votes in ")
    assert lines[-1].endswith("; 1 prompts skipped: longer than the server takes")
    written = [json.loads(line) for line in votes.read_text().splitlines()]
    assert len(written) == 6
    assert {line["version"] for line in written} == {"v0"}
    assert all(line["up"] and line["user"].startswith("sim-brief-") for line in written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--persona": "grumpy"}, "persona 'grumpy': give one of"),
        ({"--prompts": "missing.txt"}, "missing.txt: cannot be read"),
        ({"--json": "/no/such/directory/x"}, "cannot be written"),
        ({"--server": "127.0.0.1:1"}, "nothing answers"),
    ],
)
async def test_simulate_says_what_is_wrong(run: Run, tmp_path: Path, change: dict[str, str], message: str) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\n")
    options = {"--persona": "brief", "--prompts": str(prompts), "--conversations": "3"} | change
    outcome = await run("simulate", *(part for option in options.items() for part in option))
    assert outcome.code == 1
    assert message in outcome.err
    assert outcome.err.startswith("plaudit: ")
    assert outcome.err.count("\n") == 1


async def test_ctrl_c_ends_a_simulation_with_what_it_counted(
    plaudit: Path, address: str, script: Script, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\n")
    arguments = ("simulate", "--persona", "brief", "--prompts", prompts, "--conversations", "9")
    reach = ("--server", address, "--control", address)
    process = await asyncio.create_subprocess_exec(
        plaudit,
        *arguments,
        *reach,
        "--votes-per-version",
        "3",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    out = ""
    while "waiting for a newer version" not in out:
        out += (await process.stdout.readline()).decode()
    await asyncio.sleep(0.3)
    process.send_signal(2)
    rest, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 130
    assert "3 votes in" in rest.decode()
    assert b"Traceback" not in err
