"""`plaudit chat`: a conversation in the terminal, or line by line from a pipe.

Synchronous on purpose: `input()` waits in the main thread, where Ctrl-C reaches it, and each reply runs the event loop
until it has ended. Ctrl-C during a reply ends that reply; at the prompt it ends the chat.
"""

from __future__ import annotations

import asyncio
import random
import sys
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit_cli.common import DEFAULT_SERVER, Server, connect, failures, printable, typed

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any, TypeVar

    from plaudit_client import AsyncClient, Message, Reply

    T = TypeVar("T")

_KEPT = "\n\t\u3000\u200c\u200d"
"""Not printable to Python, but part of texts: the space of Chinese, the joiners of Persian, Hindi and emoji."""
HELP = """\
  +        the last reply was good        r        another reply; say which was better
  -        the last reply was bad         /new     a new conversation
  /help    this                           /quit    leave (or Ctrl-D)
Everything else is said to the model."""


def chat(
    *,
    system: Annotated[str, typer.Option(help="Instructions to the model, before the conversation.")] = "",
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(max=1, help="Sample among the most likely tokens only.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest reply.")] = None,
    user: Annotated[str, typer.Option(help="Who you are; default: nobody in particular.")] = "",
    policy_version: Annotated[str, typer.Option(help="Ask for this version, e.g. v3.")] = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Chat with the policy, and vote on its replies."""
    with failures(), asyncio.Runner() as runner:
        session = Session(runner, typed(), user, policy_version, system)
        session.sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
        session.talk(server)


@dataclass
class Session:
    """One person at one keyboard."""

    runner: asyncio.Runner
    interactive: bool
    user: str
    policy_version: str
    system: str
    sampling: dict[str, Any] = field(default_factory=dict)
    client: AsyncClient = field(init=False)
    messages: list[Message] = field(default_factory=list)
    """The conversation so far."""
    asked: list[Message] = field(default_factory=list)
    """What `last` replied to."""
    last: Reply | None = None
    conversation: str = ""

    def talk(self, server: str) -> None:
        """Until /quit or the end of input. Raises PlauditError (interactive: only at the start), KeyboardInterrupt."""
        self.client = self._run(_connect(server))
        try:
            self._new()
            if self.interactive:
                _enable_line_editing()
                print(f"connected to {server}; /help says what you can do")
            while (line := self._read("> ")) is not None and line != "/quit":
                self._obey(line)
        finally:
            self._run(self.client.close())

    def _obey(self, line: str) -> None:
        from plaudit_client import PlauditError

        try:
            match line:
                case "":
                    pass
                case "/help":
                    print(HELP)
                case "/new":
                    self._new()
                    print("a new conversation")
                case "+" | "-":
                    self._vote(line)
                case "r":
                    self._regenerate()
                case _ if line.startswith("/"):
                    print(f"there is no {line.split(maxsplit=1)[0]}; /help says what there is")
                case _:
                    self._say(line)
        except PlauditError as error:
            if not self.interactive:  # a script must notice
                raise
            print(f"plaudit: {error}", file=sys.stderr)

    def _new(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.last = None
        self.conversation = uuid.uuid4().hex  # keeps the whole conversation on one side of a canary

    def _say(self, text: str) -> None:
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        if reply := self._show(asked):
            self._keep(asked, reply)

    def _keep(self, asked: list[Message], reply: Reply) -> None:
        self.asked, self.last = asked, reply
        # A reply of no text could not be sent back as history; the turn is then as if it had not been.
        if reply.text.strip():
            self.messages = [*asked, {"role": "assistant", "content": reply.text}]

    def _vote(self, sign: str) -> None:
        if self.last is None:
            print("nothing to vote on yet")
        else:
            self._run(self.last.thumbs_up() if sign == "+" else self.last.thumbs_down())
            print(f"recorded: {'good' if sign == '+' else 'bad'} ({self.last.policy_version})")

    def _regenerate(self) -> None:
        first = self.last
        if first is None:
            print("nothing to try again yet")
            return
        second = self._show(self.asked)
        if second is None:
            return
        answer = self._read("which was better, 1 (the first) or 2 (this one)? ")
        while answer not in {"1", "2", "", None}:
            answer = self._read("1 or 2 (Enter: neither)? ")
        better, worse = (first, second) if answer == "1" else (second, first)
        if answer in {"1", "2"}:
            self._run(better.prefer_over(worse))
            print(f"recorded: {answer} is better")
        self._keep(self.asked, better)

    def _show(self, messages: list[Message]) -> Reply | None:
        """Print the reply as it comes; None if it was stopped before it began."""
        reply = self.client.chat(
            messages,
            user_id=self.user,
            conversation_id=self.conversation,
            policy_version=self.policy_version,
            seed=random.getrandbits(32),  # a server may be given a fixed seed; `r` is to differ
            **self.sampling,
        )
        try:
            self._run(_stream(reply))
        except KeyboardInterrupt:
            if not self.interactive:
                raise
        finally:
            if reply.text:
                print(flush=True)
        if not reply.receipt:
            print("(stopped)")
            return None
        reason = f", {reply.finish_reason.value}" if reply.finish_reason else ""
        print(f"[{reply.policy_version}{reason}]")
        return reply

    def _read(self, prompt: str) -> str | None:
        while True:
            try:
                return input(prompt if self.interactive else "").strip()
            except UnicodeDecodeError:
                print("that was not text in this terminal's encoding; say it again", file=sys.stderr)
            except (EOFError, RuntimeError):  # RuntimeError: standard input is closed
                if self.interactive:
                    print()
                return None

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)


async def _connect(server: str) -> AsyncClient:
    from plaudit_client import Unavailable

    client = connect(server)
    if not await client.healthy():
        raise Unavailable(f"the server at {server} does not serve yet, or is going down; try again in a moment")
    return client


async def _stream(reply: Reply) -> None:
    async for text in reply:
        print(printable(text, keep=_KEPT), end="", flush=True)


def _enable_line_editing() -> None:
    with suppress(ImportError):  # not on every platform
        import readline  # noqa: F401  (importing it gives input() editing and history)
