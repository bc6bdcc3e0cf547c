"""The synchronous client: all that the asynchronous one can, streaming, from any thread, and no loop to be seen."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, assert_type

import grpc
import pytest

from plaudit_client import (
    AsyncClient,
    Cancelled,
    Client,
    Durability,
    FinishReason,
    InvalidRequest,
    NotFound,
    Policy,
    Reply,
    ServerError,
    Settled,
    Statement,
    SyncReply,
    Token,
    Unavailable,
    Usage,
)
from plaudit_client import sync as facade
from tests.clients.scripted import Failure, Script

Code = grpc.StatusCode
RENAMED = {"aclose": "close"}


@pytest.fixture
async def sync(address: str) -> AsyncIterator[Client]:
    """A client for threads; the scripted server runs on the test's loop."""
    made = await asyncio.to_thread(Client, address, timeout=10)
    yield made
    await asyncio.to_thread(made.close)


def shown(method: Any) -> list[tuple[str, Any, Any]]:
    """What a caller has to know to call it."""
    return [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize(("face", "inner"), [(Client, AsyncClient), (SyncReply, Reply)])
def test_nothing_is_missing(face: type, inner: type) -> None:
    names = [name for name in vars(inner) if not name.startswith("_")]
    assert len(names) > 5
    for name in names:
        theirs, ours = getattr(inner, name), getattr(face, RENAMED.get(name, name))
        assert ours.__doc__, name
        if isinstance(theirs, property):
            assert isinstance(ours, property), name
        else:
            assert shown(ours) == shown(theirs), name
            assert not inspect.iscoroutinefunction(ours), name
            assert not inspect.isasyncgenfunction(ours), name


def test_both_are_made_alike() -> None:
    assert shown(Client.__init__) == shown(AsyncClient.__init__)


def test_a_method_that_came_later_is_taken_over() -> None:
    class Later(AsyncClient):
        async def newest(self, version: str) -> str:
            """Newest."""
            return version

    class Face(Client):
        pass

    assert not hasattr(Face, "newest")
    facade._take_over(Face, Later)
    assert shown(Face.newest) == shown(Later.newest)  # type: ignore[attr-defined]
    assert inspect.signature(Face.newest).return_annotation == "str"  # type: ignore[attr-defined]


def test_help_tells_what_is_returned() -> None:
    assert inspect.signature(Client.chat).return_annotation == "SyncReply"
    assert inspect.signature(Client.watch_policies).return_annotation == "Iterator[Policy]"


def typed(client: Client) -> None:
    """Not run: mypy holds what the face gives against what it takes over."""
    assert_type(client.chat("Hi"), SyncReply)
    assert_type(client.chat("Hi").read(), str)
    assert_type(client.chat("Hi").thumbs_down(comment="no"), Durability)
    assert_type(client.get_policy("v1"), Policy)
    assert_type(client.watch_policies(), Iterator[Policy])
    assert_type(client.rollback_policy(reason="bad"), tuple[Policy, str])
    client.chat("Hi", temperature="hot")  # type: ignore[arg-type]
    client.get_policy(1)  # type: ignore[arg-type]
    client.chat("Hi", heat=1)  # type: ignore[call-arg]


async def test_a_reply_streams_while_it_is_sampled(sync: Client, script: Script) -> None:
    script.endless = True

    def read() -> SyncReply:
        reply = sync.chat("hello there", logprobs=True)
        assert (reply.text, reply.receipt, reply.finish_reason, reply.usage) == ("", "", None, None)
        pieces = iter(reply)
        assert [next(pieces), next(pieces), next(pieces)] == ["HELLO ", "THERE ", "more "]
        assert (reply.receipt, reply.policy_version, reply.response_id) == ("receipt-1", "v0", "response-1")
        assert reply.tokens[:2] == [Token(5, -0.5)] * 2
        assert not script.freed.is_set()
        return reply  # and leave: the iterator goes with this call

    reply = await asyncio.to_thread(read)
    await asyncio.wait_for(script.freed.wait(), 10)
    assert reply.text.startswith("HELLO THERE more ")


async def test_a_reply_ends(sync: Client) -> None:
    reply = sync.chat("Hi")
    assert await asyncio.to_thread(reply.read) == "HI "
    assert (reply.finish_reason, reply.usage) == (FinishReason.STOP, Usage(7, 3))
    with pytest.raises(RuntimeError, match="only once"):
        await asyncio.to_thread(reply.read)
    await asyncio.to_thread(reply.close)
    assert reply.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("leave", ["cancel", "with", "close the client"])
async def test_another_thread_ends_it(sync: Client, script: Script, leave: str) -> None:
    script.endless = True
    reply = sync.chat("Hi")
    reading = asyncio.create_task(asyncio.to_thread(reply.read))
    async with asyncio.timeout(10):
        while "more" not in reply.text:  # what the server has sent, the reader may not have read
            await asyncio.sleep(0.01)

    def end() -> None:
        if leave == "cancel":
            reply.cancel()
        elif leave == "with":
            with reply:
                pass
        else:
            sync.close()

    await asyncio.to_thread(end)
    if leave == "close the client":
        with pytest.raises(Cancelled, match="closed"):
            await reading
    else:
        assert (await reading).startswith("HI ")
    await asyncio.wait_for(script.freed.wait(), 10)
    assert reply.finish_reason is FinishReason.CANCELLED


async def test_votes(sync: Client, script: Script) -> None:
    def vote() -> list[Durability]:
        first, second = sync.chat("a", user_id="ada"), sync.chat("b", user_id="ada")
        with pytest.raises(RuntimeError, match="not started"):
            first.thumbs_up()
        first.read()
        second.read()
        return [
            first.thumbs_up(),
            first.thumbs_down(aspect="politeness", comment="rude"),
            first.rate(4),
            second.prefer_over(first),
            second.comment("better"),
            second.retract(),
        ]

    said = await asyncio.to_thread(vote)
    assert said == [Durability.EVENT_LOG] * 5 + [Durability.OUTBOX]
    assert [
        (request.receipt, request.WhichOneof("verdict"), request.aspect, request.comment) for request in script.feedback
    ] == [
        ("receipt-1", "thumb", "", ""),
        ("receipt-1", "comment", "politeness", "rude"),
        ("receipt-1", "thumb", "politeness", ""),
        ("receipt-1", "rating", "", ""),
        ("receipt-2", "preference", "", ""),
        ("receipt-2", "comment", "", "better"),
    ]
    assert {request.user_id for request in script.feedback} == {"ada"}


async def test_a_comment_that_is_refused_leaves_no_vote(sync: Client, script: Script) -> None:
    def vote() -> None:
        reply = sync.chat("a")
        reply.read()
        script.failures = [Failure(Code.INVALID_ARGUMENT, violations=(("comment", "is too long"),))]
        with pytest.raises(InvalidRequest, match="too long"):
            reply.thumbs_up(comment="…")

    await asyncio.to_thread(vote)
    assert [request.WhichOneof("verdict") for request in script.feedback] == ["comment"]


async def test_failures_are_the_same(sync: Client, script: Script) -> None:
    def fail() -> None:
        with pytest.raises(NotFound, match="no version v9"):
            sync.get_policy("v9")
        with pytest.raises(InvalidRequest):
            sync.chat("x", max_tokens=-1)
        script.truncated = True
        with pytest.raises(ServerError, match="broke off"):
            sync.chat("Hi").read()

    await asyncio.to_thread(fail)


async def test_another_callers_client(sync: Client) -> None:
    def chat() -> str:
        with sync.with_api_key("of-another-caller") as other:
            assert_type(other, Client)
        return other.chat("still there").read()

    assert await asyncio.to_thread(chat) == "STILL THERE "


async def test_operators_watch(sync: Client) -> None:
    def watch() -> list[str]:
        policies = sync.watch_policies()
        seen = [next(policies).version, next(policies).version]
        with pytest.raises(Unavailable, match="stopping"):
            next(policies)
        return seen

    assert await asyncio.to_thread(watch) == ["v1", "v2"]
    assert await asyncio.to_thread(sync.healthy)


async def test_feedback_is_kept_and_sent(sync: Client, script: Script) -> None:
    def vote() -> None:
        script.failures = [Failure(Code.UNAVAILABLE)] * 1000
        assert sync.submit_feedback("r", thumb="up", idempotency_key="k") is Durability.PENDING
        assert sync.pending_feedback == 1
        script.failures = []
        assert sync.flush_feedback(20).pending == 0

    await asyncio.to_thread(vote)
    assert script.feedback[-1].idempotency_key == "k"


async def test_many_threads_share_a_client(sync: Client, script: Script) -> None:
    def talk(name: str) -> list[str]:
        return [sync.chat(f"{name} {number}").read() for number in range(5)]

    with ThreadPoolExecutor(8) as pool:
        loop = asyncio.get_running_loop()
        said = await asyncio.gather(*(loop.run_in_executor(pool, talk, f"t{thread}") for thread in range(8)))
    assert said == [[f"T{thread} {number} " for number in range(5)] for thread in range(8)]


async def test_statements_are_streamed_from_any_iterable(sync: Client, script: Script) -> None:
    more = threading.Event()

    def statements() -> Iterator[Statement]:
        yield Statement("r", rating=1, idempotency_key="k1")
        assert more.wait(10), "what was said before is settled while this blocks"
        yield Statement("r", rating=2, idempotency_key="k2")

    def send() -> list[Settled]:
        answers = []
        for settled in sync.stream_feedback(statements()):
            answers.append(settled)
            more.set()
        return answers

    answers = await asyncio.to_thread(send)
    assert [answer.count for answer in answers] == [1, 2]
    assert [request.idempotency_key for request in script.feedback] == ["k1", "k2"]


async def test_what_the_iterable_raises_is_raised(sync: Client) -> None:
    def statements() -> Iterator[Statement]:
        yield Statement("r", rating=1)
        raise LookupError("no more")

    def send() -> None:
        with pytest.raises(LookupError, match="no more"):
            list(sync.stream_feedback(statements()))

    await asyncio.to_thread(send)


async def test_leaving_the_stream_leaves_no_thread(sync: Client) -> None:
    ended = threading.Event()

    def statements() -> Iterator[Statement]:
        try:
            while True:
                yield Statement("r", rating=1)
        finally:
            ended.set()

    def send() -> None:
        for _ in sync.stream_feedback(statements()):
            break
        assert ended.wait(10)

    await asyncio.to_thread(send)


Program = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def program(address: str) -> Callable[..., Any]:
    """Runs a program that has `client`, a Client of the scripted server."""

    async def run(source: str) -> str:
        whole = (
            "import faulthandler, os, signal, sys, threading\nfrom plaudit_client import *\n"
            f"faulthandler.dump_traceback_later(40)\n"
            f"signal.signal(signal.SIGINT, signal.default_int_handler)\nclient = Client({address!r})\n"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "error",
            "-c",
            whole + textwrap.dedent(source),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(50):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, out.decode()
        return out.decode()

    return run


async def test_ctrl_c_ends_a_reply_and_a_program_may_end_without_closing(
    program: Callable[..., Any], script: Script
) -> None:
    script.endless = True
    out = await program(
        """
        reply = client.chat("Hi")
        try:
            for text in reply:
                signal.raise_signal(signal.SIGINT) if text == "more " else None
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert out == "interrupted\n"
    await asyncio.wait_for(script.freed.wait(), 10)


async def test_ctrl_c_ends_a_wait(program: Callable[..., Any], script: Script) -> None:
    script.failures = [Failure(Code.RESOURCE_EXHAUSTED, retry_after=50)]
    out = await program(
        """
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            client.chat("Hi").read()
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert out == "interrupted\n"


async def test_what_was_said_last_is_sent_before_the_program_ends(program: Callable[..., Any], script: Script) -> None:
    script.failures = [Failure(Code.UNAVAILABLE)] * 6
    out = await program('print(client.submit_feedback("r", thumb="up", idempotency_key="k").value)')
    assert out == "pending\n"
    assert len(script.feedback) == 7
    assert {request.idempotency_key for request in script.feedback} == {"k"}


async def test_a_forked_process_is_told_to_make_its_own(program: Callable[..., Any]) -> None:
    out = await program(
        """
        if child := os.fork():
            client.chat("Hi").read()
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        for attempt in (lambda: client.chat("Hi").read(), lambda: Client("127.0.0.1:1")):
            try:
                attempt()
            except RuntimeError as error:
                print(error, flush=True)
        os._exit(0)
        """
    )
    assert out.count("does not survive the fork") == 2


async def test_importing_it_is_light() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        # grpc imports what it finds of its other packages.
        "import sys, grpc.aio, google.protobuf.message; before = {*sys.modules}; import plaudit_client\n"
        "print(*{name.split('.')[0] for name in {*sys.modules} - before} - sys.stdlib_module_names)",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert set(out.decode().split()) == {"google", "grpc", "plaudit", "plaudit_client"}
