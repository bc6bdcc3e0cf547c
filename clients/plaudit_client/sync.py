"""The synchronous client: the asynchronous one, run on an event loop in the background, with a thin face before it.

There is one logic: retries, fail-over, kept feedback and streams are AsyncClient's, and go on between two calls. A
method is taken over by its kind, with its signature, docstring and types (docs/decisions/0016).
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from plaudit_client.background import Background, background
from plaudit_client.client import AsyncClient
from plaudit_client.reply import Reply
from plaudit_client.retry import MAX_RETRIES
from plaudit_client.stream import Statement
from plaudit_client.types import Durability, FinishReason, Settled, Token, Usage

P = ParamSpec("P")
R = TypeVar("R")


class _Face:
    """Stands before an object that lives on the background's loop."""

    _background: Background
    _inner: Any


def _like(function: Callable[P, R], method: Callable[..., Any]) -> Callable[P, R]:
    """For `help`: the signature of `method`, with what `function` really returns."""
    signature = inspect.signature(method)
    returns = str(signature.return_annotation).removeprefix("Async").replace("Reply", "SyncReply")  # or Iterator
    function.__signature__ = signature.replace(return_annotation=returns)  # type: ignore[attr-defined]
    return function


def _value(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Any, P], R]:
    """`method` as one that waits for what it returns."""

    @wraps(method)
    def wait(self: Any, /, *arguments: P.args, **options: P.kwargs) -> R:
        background: Background = self._background
        return background.run(method(self._inner, *arguments, **options))

    return _like(wait, method)


def _each(method: Callable[Concatenate[Any, P], AsyncIterator[R]]) -> Callable[Concatenate[Any, P], Iterator[R]]:
    """`method` as one whose items are waited for, one by one."""

    @wraps(method)
    def iterate(self: Any, /, *arguments: P.args, **options: P.kwargs) -> Iterator[R]:
        background: Background = self._background
        return background.each(method(self._inner, *arguments, **options))

    return _like(iterate, method)


def _reply(method: Callable[Concatenate[Any, P], Reply]) -> Callable[Concatenate[Any, P], SyncReply]:
    """`method` as one that returns the synchronous reply."""

    @wraps(method)
    def begin(self: Any, /, *arguments: P.args, **options: P.kwargs) -> SyncReply:
        return SyncReply(self._background, method(self._inner, *arguments, **options))

    return _like(begin, method)


def _other(method: Callable[Concatenate[Any, P], AsyncClient]) -> Callable[Concatenate[Any, P], Client]:
    """`method` as one that returns another synchronous client."""

    @wraps(method)
    def make(self: Any, /, *arguments: P.args, **options: P.kwargs) -> Client:
        made = Client.__new__(Client)
        made._background = self._background
        made._inner = made._background.call(lambda: method(self._inner, *arguments, **options))
        return made

    return _like(make, method)


class Client(_Face):
    """Talks to Plaudit's servers, from programs without an event loop; all of `AsyncClient`, and each call waits.

        with Client("127.0.0.1:50051") as client:
            reply = client.chat("Name three birds.")
            for text in reply:
                print(text, end="")
            reply.thumbs_up()

    One client serves all threads of a process. It does not survive a fork: make none before, and one in each process.
    """

    def __init__(
        self,
        address: str,
        *,
        control: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        timeout: float = 30.0,
        max_retries: int = MAX_RETRIES,
        keep_feedback: int = 1000,
        feedback_file: str | Path | None = None,
    ) -> None:
        """As `AsyncClient`; a client that is never closed is closed when the interpreter ends.

        Raises RuntimeError where a parent process has made one before it forked.
        """
        self._background = background()
        self._inner: AsyncClient = self._background.call(
            lambda: AsyncClient(
                address,
                control=control,
                credentials=credentials,
                api_key=api_key,
                timeout=timeout,
                max_retries=max_retries,
                keep_feedback=keep_feedback,
                feedback_file=feedback_file,
            )
        )
        self._background.closing.add(self._inner)

    @property
    def address(self) -> str:
        """Where chats and votes go."""
        return self._inner.address

    @property
    def control(self) -> str:
        """Where operators' calls go."""
        return self._inner.control

    @property
    def pending_feedback(self) -> int:
        """How many statements are kept here, because no server could take them yet."""
        return self._background.call(lambda: self._inner.pending_feedback)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stream_feedback(self, statements: Iterable[Statement]) -> Iterator[Settled]:
        """Say many things over one connection; see `AsyncClient.stream_feedback`.

        `statements` is iterated in a thread of its own, so it may block.

            for settled in client.stream_feedback(statements):
                forget(settled.count)
        """
        return self._background.each(self._inner.stream_feedback(self._background.pulled(statements)))

    close = _value(AsyncClient.close)
    chat = _reply(AsyncClient.chat)
    submit_feedback = _value(AsyncClient.submit_feedback)
    retract_feedback = _value(AsyncClient.retract_feedback)
    flush_feedback = _value(AsyncClient.flush_feedback)
    list_policies = _value(AsyncClient.list_policies)
    get_policy = _value(AsyncClient.get_policy)
    promote_policy = _value(AsyncClient.promote_policy)
    rollback_policy = _value(AsyncClient.rollback_policy)
    set_canary_share = _value(AsyncClient.set_canary_share)
    watch_policies = _each(AsyncClient.watch_policies)
    get_loop = _value(AsyncClient.get_loop)
    watch_loop = _each(AsyncClient.watch_loop)
    erase_user = _value(AsyncClient.erase_user)
    healthy = _value(AsyncClient.healthy)
    with_api_key = _other(AsyncClient.with_api_key)


class SyncReply(_Face):
    """Made by `Client.chat`. The call begins when the reply is first iterated, and a reply is read once.

    `cancel` may be called from another thread than the one that reads; the reader's loop then ends.
    """

    def __init__(self, background: Background, reply: Reply) -> None:
        self._background = background
        self._inner: Reply = reply

    @property
    def text(self) -> str:
        """The reply so far."""
        return self._inner.text

    @property
    def receipt(self) -> str:
        """The right to vote on this reply; empty until the reply has started."""
        return self._inner.receipt

    @property
    def policy_version(self) -> str:
        """The version that samples this reply, from its first token to its last; empty until it has started."""
        return self._inner.policy_version

    @property
    def response_id(self) -> str:
        """Names the reply in logs; no right to vote."""
        return self._inner.response_id

    @property
    def finish_reason(self) -> FinishReason | None:
        """None while it runs, and after it failed."""
        return self._inner.finish_reason

    @property
    def usage(self) -> Usage | None:
        """None while it runs, and if it was cancelled."""
        return self._inner.usage

    @property
    def tokens(self) -> list[Token]:
        """The sampled tokens, if asked for with `logprobs=True`."""
        return self._inner.tokens

    def __iter__(self) -> Iterator[str]:
        """The reply's text, in the pieces in which it is sampled. Raises as `Reply.__aiter__` does."""
        return self._background.each(aiter(self._inner))

    def cancel(self) -> None:
        """End the reply now and free the server's slot. What came until now stays; an ended reply does not change."""
        self._background.call(self._inner.cancel)

    def close(self) -> None:
        """As `cancel`, for `contextlib.closing` and `with`."""
        self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def prefer_over(self, other: SyncReply, *, aspect: str = "", comment: str | None = None) -> Durability:
        """Say that this reply is better than `other`. Raises as `thumbs_up` does."""
        return self._background.run(self._inner.prefer_over(other._inner, aspect=aspect, comment=comment))

    read = _value(Reply.read)
    thumbs_up = _value(Reply.thumbs_up)
    thumbs_down = _value(Reply.thumbs_down)
    rate = _value(Reply.rate)
    comment = _value(Reply.comment)
    retract = _value(Reply.retract)


def _take_over(face: type[_Face], inner: type) -> None:
    """Give `face` the methods that `inner` got since; a line above gives them their types, too."""
    for name, member in vars(inner).items():
        if name.startswith("_") or hasattr(face, name):
            continue
        if inspect.iscoroutinefunction(member):
            setattr(face, name, _value(member))
        elif inspect.isasyncgenfunction(member):
            setattr(face, name, _each(member))
        elif inspect.isfunction(member) and inspect.signature(member).return_annotation in {"Self", "AsyncClient"}:
            setattr(face, name, _other(member))


_take_over(Client, AsyncClient)
_take_over(SyncReply, Reply)
