"""A reply as it comes, and the votes that its holder may cast on it.

async for text in reply       begins the call, yields text as it is sampled
    leaving the loop early    ends the call: the server's slot is free within a token
reply.text, .receipt, …       filled in as they arrive, complete after the loop
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import grpc

from plaudit.v1.chat_pb2 import StreamChatRequest, StreamChatResponse
from plaudit_client.channel import Channel
from plaudit_client.errors import PlauditError, ServerError
from plaudit_client.servers import at
from plaudit_client.types import Durability, FinishReason, Token, Usage

if TYPE_CHECKING:
    from plaudit_client.client import AsyncClient

Method = grpc.aio.UnaryStreamMultiCallable[StreamChatRequest, StreamChatResponse]
Call = grpc.aio.UnaryStreamCall[StreamChatRequest, StreamChatResponse]


class Reply:
    """Made by `AsyncClient.chat`. The call begins when the reply is first iterated, and a reply is read once."""

    def __init__(
        self,
        client: AsyncClient,
        channel: Channel,
        method: Method,
        request: StreamChatRequest,
        timeout: float | None,
    ) -> None:
        self._client = client
        self._channel = channel
        self._method = method
        self._request = request
        self._timeout = timeout
        self._call: Call | None = None
        self._read = False
        self._answering = False
        self._ended = False
        self._cancelled = asyncio.Event()
        self.text = ""
        """The reply so far."""
        self.receipt = ""
        """The right to vote on this reply; empty until the reply has started."""
        self.policy_version = ""
        """The version that samples this reply, from its first token to its last; empty until it has started."""
        self.response_id = ""
        """Names the reply in logs; no right to vote."""
        self.finish_reason: FinishReason | None = None
        """None while it runs, and after it failed."""
        self.usage: Usage | None = None
        """None while it runs, and if it was cancelled."""
        self.tokens: list[Token] = []
        """The sampled tokens, if asked for with `logprobs=True`."""

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        """The reply's text, in the pieces in which it is sampled.

        Until its first token, the call is made again, at another server if there are several, as `AsyncClient` says.
        Raises InvalidRequest, NotFound (the `policy_version` is not served), ResourceExhausted (the queue is full, or a
        limit is reached), Unavailable, DeadlineExceeded or ServerError, and RuntimeError if the reply was read before.
        After `cancel` it just ends.
        """
        if self._read:
            raise RuntimeError("a reply can be read only once; its text is in reply.text")
        self._read = True
        attempts = self._channel.attempts(self._timeout)
        try:
            while not self._cancelled.is_set():
                server = attempts.server()
                self._call = at(self._method, server)(
                    self._request, timeout=attempts.remaining(), metadata=self._channel.metadata
                )
                try:
                    async for event in self._call:
                        self._take(event)
                        if event.WhichOneof("event") == "delta" and event.delta.text:
                            yield event.delta.text
                    server.answered()
                    break
                except grpc.aio.AioRpcError as error:
                    failure = self._channel.failed(server, error)
                await self._pause_after(failure, None if self._answering else attempts.pause(failure))
        except (asyncio.CancelledError, GeneratorExit) as leaving:
            self.finish_reason = self.finish_reason or FinishReason.CANCELLED
            # grpc.aio tells of our own cancel() by a CancelledError too, though the task that reads is to go on.
            ours, task = self._cancelled.is_set(), asyncio.current_task()
            if not ours or isinstance(leaving, GeneratorExit) or (task is not None and task.cancelling()):
                raise
        finally:
            self._ended = True
            if self._call is not None:
                self._call.cancel()  # frees the server's slot; changes nothing if the call has ended
        if self.finish_reason is None:
            raise ServerError("the reply broke off without an end")

    async def _pause_after(self, failure: PlauditError, seconds: float | None) -> None:
        """Wait before the next attempt, or until the reply is cancelled. Raises `failure` if there is none."""
        if seconds is None:
            raise failure
        with suppress(TimeoutError):
            await asyncio.wait_for(self._cancelled.wait(), seconds)

    async def read(self) -> str:
        """The whole text, once the reply has ended. Raises as iterating does."""
        async for _ in self:
            pass
        return self.text

    def cancel(self) -> None:
        """End the reply now and free the server's slot. What came until now stays; an ended reply does not change."""
        if self._ended:
            return
        self._cancelled.set()
        self.finish_reason = self.finish_reason or FinishReason.CANCELLED
        if self._call is not None:
            self._call.cancel()

    async def aclose(self) -> None:
        """As `cancel`, for `contextlib.aclosing` and `async with`."""
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def thumbs_up(self, *, aspect: str = "", comment: str | None = None) -> Durability:
        """Say that this reply is good, and perhaps why.

        Raises as `AsyncClient.submit_feedback` does, RuntimeError before the reply has started.
        """
        return await self._say(aspect, comment, thumb="up")

    async def thumbs_down(self, *, aspect: str = "", comment: str | None = None) -> Durability:
        """Say that this reply is bad, and perhaps why. Raises as `thumbs_up` does."""
        return await self._say(aspect, comment, thumb="down")

    async def rate(self, rating: int, *, aspect: str = "", comment: str | None = None) -> Durability:
        """Rate this reply from 1 (worst) to 5 (best). Raises as `thumbs_up` does."""
        return await self._say(aspect, comment, rating=rating)

    async def prefer_over(self, other: Reply, *, aspect: str = "", comment: str | None = None) -> Durability:
        """Say that this reply is better than `other`. Raises as `thumbs_up` does."""
        return await self._say(aspect, comment, preferred_over=other._vote())

    async def comment(self, text: str, *, aspect: str = "") -> Durability:
        """Say something of this reply in words. Raises as `thumbs_up` does."""
        return await self._client.submit_feedback(
            self._vote(), comment=text, aspect=aspect, user_id=self._request.user_id
        )

    async def retract(self, *, aspect: str = "") -> Durability:
        """Take back what was said of this reply. Raises as `thumbs_up` does."""
        return await self._client.retract_feedback(self._vote(), aspect=aspect, user_id=self._request.user_id)

    async def _say(
        self,
        aspect: str,
        comment: str | None,
        *,
        thumb: Literal["up", "down"] | None = None,
        rating: int | None = None,
        preferred_over: str | None = None,
    ) -> Durability:
        # A vote and a comment are two statements. The comment first: if it is refused, nothing was said at all.
        if comment is not None:
            await self.comment(comment, aspect=aspect)
        return await self._client.submit_feedback(
            self._vote(),
            thumb=thumb,
            rating=rating,
            preferred_over=preferred_over,
            aspect=aspect,
            user_id=self._request.user_id,
        )

    def _vote(self) -> str:
        if not self.receipt:
            raise RuntimeError("the reply has not started, so it has no receipt yet: read it first")
        return self.receipt

    def _take(self, event: StreamChatResponse) -> None:
        match event.WhichOneof("event"):
            case "started":
                self.receipt = event.started.receipt
                self.policy_version = event.started.policy_version
                self.response_id = event.started.response_id
            case "delta":
                delta, self._answering = event.delta, True
                self.text += delta.text
                self.tokens += [Token(*pair) for pair in zip(delta.token_ids, delta.logprobs, strict=True)]
            case "finished":
                finished = event.finished
                self.finish_reason = FinishReason.from_proto(finished.finish_reason)
                self.usage = Usage(finished.prompt_tokens, finished.completion_tokens)
            case _:  # an event of a later contract
                pass
