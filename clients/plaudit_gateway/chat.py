"""POST /v1/chat/completions: one reply, whole or as it is sampled.

The answer's status is known once the first piece of the reply is there: until then a refusal is an HTTP error; after
it, the stream's last event.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from plaudit_client import AsyncClient, FinishReason, NotFound, PlauditError, Reply, RequestTooLarge, Token
from plaudit_gateway.chat_request import ChatCompletionRequest, no_model
from plaudit_gateway.errors import Wrong, from_client
from plaudit_gateway.metrics import GatewayMetrics
from plaudit_gateway.sse import DONE, EventStream, event, unless_gone


async def complete(
    request: Request, body: ChatCompletionRequest, client: AsyncClient, metrics: GatewayMetrics
) -> Response:
    """The answer. Raises Wrong."""
    version = body.policy_version()
    began = time.perf_counter()
    try:
        reply = client.chat(
            [message.message() for message in body.messages],
            temperature=body.temperature,
            top_p=body.top_p,
            max_tokens=body.length(),
            seed=body.seed,
            stop=body.stop or (),
            user_id=body.user or "",
            conversation_id=body.conversation_id or "",
            policy_version=version,
            logprobs=bool(body.logprobs),
            unrecorded=bool(body.unrecorded),
        )
        completion = _Completion(body, reply)
        if not body.stream:
            await unless_gone(request, reply.read())
            return JSONResponse(completion.whole())
        pieces = aiter(reply)
        assert isinstance(pieces, AsyncGenerator)
        first = await unless_gone(request, _first(pieces))
        metrics.first_piece.observe(time.perf_counter() - began)
    except NotFound as error:
        raise (no_model(version) if version else from_client(error, {})) from None
    except RequestTooLarge as error:
        message = f"the conversation is too large for the server; make it shorter ({error.message})"
        raise Wrong(400, message, code="context_length_exceeded", param="messages") from None
    except PlauditError as error:
        raise from_client(error, body.names()) from None
    return EventStream(_chunks(completion, first, pieces))


async def _first(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)


async def _chunks(completion: _Completion, first: str | None, pieces: AsyncGenerator[str]) -> AsyncGenerator[bytes]:
    """`first`: None: the reply ended without a word."""
    async with aclosing(pieces):
        yield event(completion.chunk({"role": "assistant", "content": ""}, first=True))
        try:
            if first is not None:
                yield event(completion.chunk({"content": first}))
                async for piece in pieces:
                    yield event(completion.chunk({"content": piece}))
            yield event(completion.chunk({}, ended=True))
        except PlauditError as error:
            yield event(from_client(error, completion.body.names()).body())
            return
        except Wrong as error:
            yield event(error.body())
            return
        if completion.body.stream_options and completion.body.stream_options.include_usage:
            yield event(completion.last())
        yield DONE


class _Completion:
    """A reply in OpenAI's words."""

    def __init__(self, body: ChatCompletionRequest, reply: Reply) -> None:
        self.body = body
        self._reply = reply
        self._created = int(time.time())
        self._told = 0  # of the reply's tokens

    def whole(self) -> dict[str, Any]:
        """Once the reply has ended. Raises Wrong if it was cut off."""
        reply = self._reply
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": reply.text, "refusal": None},
                    "logprobs": self._logprobs(reply.text) if self.body.logprobs else None,
                    "finish_reason": _finish(reply),
                }
            ],
            "usage": self._usage(),
            "plaudit": self._plaudit(),
        }

    def chunk(self, delta: dict[str, str], *, first: bool = False, ended: bool = False) -> dict[str, Any]:
        """A piece of it. Raises Wrong if it was cut off."""
        choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        if ended:
            choice["finish_reason"] = _finish(self._reply)
        if self.body.logprobs and not first:
            choice["logprobs"] = self._logprobs(delta.get("content", "")) if delta or self._untold() else None
        chunk: dict[str, Any] = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self.body.stream_options and self.body.stream_options.include_usage:
            chunk["usage"] = None
        if first:
            chunk["plaudit"] = self._plaudit()
        return chunk

    def last(self) -> dict[str, Any]:
        """The chunk behind the last one."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}

    def _head(self, kind: str) -> dict[str, Any]:
        reply = self._reply
        return {"id": reply.response_id, "object": kind, "created": self._created, "model": reply.policy_version}

    def _plaudit(self) -> dict[str, Any]:
        return {"receipt": self._reply.receipt or None, "policy_version": self._reply.policy_version}

    def _usage(self) -> dict[str, int]:
        usage = self._reply.usage
        assert usage is not None, "the reply has ended"
        total = usage.prompt_tokens + usage.completion_tokens
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": total,
        }

    def _untold(self) -> bool:
        return self._told < len(self._reply.tokens)

    def _logprobs(self, text: str) -> dict[str, Any]:
        """Of the tokens sampled since the last time, which brought `text`.

        Servers say the text of a piece, not of its tokens: where it has several, it stands with the last of them. The
        token that ends a reply has no text.
        """
        tokens = self._reply.tokens[self._told :]
        self._told += len(tokens)
        return {"content": _told(tokens, text), "refusal": None}


def _told(tokens: list[Token], text: str) -> list[dict[str, Any]]:
    texts = [""] * (len(tokens) - 1) + [text]
    return [
        {
            "token": said,
            "bytes": list(said.encode()),
            "logprob": token.logprob,
            "token_id": token.id,
            "top_logprobs": [],
        }
        for token, said in zip(tokens, texts, strict=False)
    ]


def _finish(reply: Reply) -> str:
    if reply.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
        return reply.finish_reason.value
    raise Wrong(503, "the server ended the reply in the middle of it; please try again", code="unavailable")


class _Out(BaseModel):
    """What answers look like; for the OpenAPI document, and the tests that hold answers to it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Usage(_Out):
    """Tokens of one reply."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Plaudit(_Out):
    """What OpenAI's API has no place for."""

    receipt: str | None
    """The right to vote on this reply; null if it was asked for unrecorded."""
    policy_version: str
    """The version that sampled it, from its first token to its last."""


class LogprobToken(_Out):
    """One sampled token."""

    token: str
    """Its text, if the server told the text of it alone; else empty, and the text stands with a later token."""
    bytes: list[int]
    logprob: float
    """Natural logarithm, under the distribution really sampled from."""
    token_id: int
    top_logprobs: Annotated[list[Any], Field(max_length=0)]


class Logprobs(_Out):
    """Of all sampled tokens."""

    content: list[LogprobToken]
    refusal: None


class CompletionMessage(_Out):
    """The reply."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(_Out):
    """The only one."""

    index: int
    message: CompletionMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(_Out):
    """A whole reply."""

    id: str
    """Names the reply in logs; no right to vote."""
    object: Literal["chat.completion"]
    created: int
    model: str
    """The version that sampled it."""
    choices: Annotated[list[Choice], Field(min_length=1, max_length=1)]
    usage: Usage
    plaudit: Plaudit
