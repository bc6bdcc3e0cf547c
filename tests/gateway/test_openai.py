"""The official `openai` package, as it is, against a gateway before a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, get_type_hints

import openai
import pytest
from openai import AsyncOpenAI, AsyncStream, OpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

from plaudit_gateway.chat_request import ChatCompletionRequest
from tests.gateway.conftest import Gateway

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
LONG = 1900


@pytest.fixture
async def patient(served: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=served.base, api_key="nobody-asks", max_retries=0) as made:
        yield made


async def endless(client: AsyncOpenAI) -> AsyncStream[ChatCompletionChunk]:
    return await client.chat.completions.create(model="plaudit", messages=HELLO, max_tokens=LONG, stream=True)


def test_a_whole_reply(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="plaudit", messages=HELLO, max_completion_tokens=8, seed=1)
    (choice,) = answer.choices
    assert (choice.message.role, choice.finish_reason, answer.model) == ("assistant", "length", "v1")
    assert choice.message.content
    assert answer.usage
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert answer._request_id
    again = client.chat.completions.create(model="v1", messages=HELLO, max_tokens=8, seed=1)
    assert again.choices[0].message.content == choice.message.content
    assert again.id != answer.id


def test_a_stream_is_the_same_reply_in_pieces(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "plaudit", "messages": HELLO, "max_tokens": 8, "seed": 1, "logprobs": True}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    first, *middle, ended, last = chunks
    assert first.choices[0].delta.role == "assistant"
    assert first.to_dict()["plaudit"] == {"receipt": first.to_dict()["plaudit"]["receipt"], "policy_version": "v1"}
    assert len(middle) > 1, "streamed, not sent in one piece"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in middle) == whole.choices[0].message.content
    assert ended.choices[0].finish_reason == "length"
    assert last.choices == []
    assert last.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1

    logprobs = whole.choices[0].logprobs
    assert logprobs
    assert logprobs.content
    assert len(logprobs.content) == 8
    assert "".join(token.token for token in logprobs.content) == whole.choices[0].message.content
    streamed = [
        token for chunk in chunks[:-1] if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content or []
    ]
    assert [token.logprob for token in streamed] == [token.logprob for token in logprobs.content]


def test_stop_parts_and_roles(client: OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    ]
    first = client.chat.completions.create(model="plaudit", messages=messages, max_tokens=8, seed=3)
    said = first.choices[0].message
    assert said.content
    stopped = client.chat.completions.create(
        model="plaudit", messages=messages, max_tokens=8, seed=3, stop=[said.content[4]]
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert said.content.startswith(stopped.choices[0].message.content or "")
    # The answer's message goes back as it came.
    more: list[Any] = [*messages, said.to_dict(), {"role": "user", "content": "go on"}]
    assert client.chat.completions.create(model="plaudit", messages=more, max_tokens=2).usage


def test_raw_response(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="plaudit", messages=HELLO, max_tokens=2)
    assert len(raw.headers["x-request-id"]) == 32
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().model == "v1"


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["plaudit", "v0", "v1"]
    assert client.models.retrieve("v1").owned_by == "plaudit"
    with pytest.raises(openai.NotFoundError, match="'v7' is not served here"):
        client.models.retrieve("v7")


@pytest.mark.parametrize(
    ("wrong", "param", "says"),
    [
        ({"temperature": 3.0}, "temperature", "less than or equal to 2"),
        ({"temperature": 0.005}, "temperature", "must be 0 (greedy), or 0.01 to 2"),
        ({"max_tokens": 5000}, "max_tokens", "it must be 1 to 1900"),
        ({"max_completion_tokens": 5000}, "max_completion_tokens", "it must be 1 to 1900"),
        ({"max_completion_tokens": 5, "max_tokens": 6}, "max_tokens", "give one of them"),
        ({"n": 2}, "n", "n is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "response_format is not supported"),
        ({"top_logprobs": 3, "logprobs": True}, "top_logprobs", "top_logprobs is not supported"),
        ({"logit_bias": {"7": 1}}, "logit_bias", "logit_bias is not supported"),
        ({"stop": "x" * 65}, "stop[0]", "it must have 1 to 64"),
        ({"user": "u" * 257}, "user", "the most is 256"),
        ({"extra_body": {"colour": "blue"}}, "colour", "colour is not known here"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role", "no tools here"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages[0].role", "user and assistant take turns"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content", "is empty"),
        ({"messages": []}, "messages", "at least 1 item"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "messages[0].content",
            "reads text only",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_honoured_is_refused_by_name(client: OpenAI, wrong: Any, param: str, says: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "plaudit", "messages": HELLO, **wrong})
    assert caught.value.param == param
    assert says in caught.value.message
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code


def test_what_does_no_harm_is_taken(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="plaudit",
        messages=HELLO,
        max_tokens=1,
        n=1,
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        metadata={"app": "test"},
        modalities=["text"],
        parallel_tool_calls=True,
        response_format={"type": "text"},
        service_tier="auto",
        store=False,
        tool_choice="none",
        top_logprobs=0,
        user="ann",
    )
    assert answer.choices


def test_every_field_of_openais_is_known() -> None:
    assert set(get_type_hints(CompletionCreateParamsStreaming)) <= set(ChatCompletionRequest.model_fields)


def test_unknown_models_are_not_found(client: OpenAI) -> None:
    for name in ("gpt-4o", "v9"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model=name, messages=HELLO)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_an_unrecorded_reply_cannot_be_voted_on(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="plaudit", messages=HELLO, max_tokens=1, extra_body={"unrecorded": True, "conversation_id": "c"}
    )
    assert answer.to_dict()["plaudit"] == {"receipt": None, "policy_version": "v1"}


async def test_closing_the_stream_frees_the_slot(served: Gateway, patient: AsyncOpenAI) -> None:
    cancelled = served.metric("plaudit_requests_total", finish_reason="cancelled")
    stream = await endless(patient)
    async for _ in stream:
        break
    assert served.metric("plaudit_requests_running") == 1
    await stream.close()
    await served.until("plaudit_requests_running", 0)
    assert served.metric("plaudit_requests_total", finish_reason="cancelled") == cancelled + 1, "not sampled to its end"


async def test_a_timeout_ends_a_reply_that_is_not_streamed(served: Gateway, patient: AsyncOpenAI) -> None:
    cancelled = served.metric("plaudit_requests_total", finish_reason="cancelled")
    answering = asyncio.create_task(
        patient.with_options(timeout=0.3).chat.completions.create(model="plaudit", messages=HELLO, max_tokens=LONG)
    )
    await served.until("plaudit_requests_running", 1)
    with pytest.raises(openai.APITimeoutError):
        await answering
    await served.until("plaudit_requests_running", 0)
    assert served.metric("plaudit_requests_total", finish_reason="cancelled") == cancelled + 1


async def test_a_full_queue_is_a_rate_limit_and_is_retried(served: Gateway, patient: AsyncOpenAI) -> None:
    async with AsyncExitStack() as streams:
        for _ in range(2):
            await streams.enter_async_context(await endless(patient))
        waiting = asyncio.create_task(patient.chat.completions.create(model="plaudit", messages=HELLO, max_tokens=1))
        await served.until("plaudit_requests_running", 3)  # one of them waits inside the engine
        with pytest.raises(openai.RateLimitError) as caught:
            await patient.chat.completions.create(model="plaudit", messages=HELLO, max_tokens=1)
        assert caught.value.code == "rate_limit_exceeded"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        persistent = patient.with_options(max_retries=20)
        retried = asyncio.create_task(persistent.chat.completions.create(model="plaudit", messages=HELLO, max_tokens=1))
    assert (await waiting).choices
    assert (await retried).choices
