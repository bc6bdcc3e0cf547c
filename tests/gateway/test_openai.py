"""The official `openai` package, as it is, against a gateway before a real server."""

from __future__ import annotations

from tests.gateway.conftest import Gateway

HELLO = [{"role": "user", "content": "hello"}]


def test_a_whole_reply(served: Gateway) -> None:
    answer = served.openai.chat.completions.create(model="plaudit", messages=HELLO, max_tokens=8)
    print(answer)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.model == "v1"


def test_stream(served: Gateway) -> None:
    n = 0
    for chunk in served.openai.chat.completions.create(
        model="plaudit",
        messages=HELLO,
        max_tokens=8,
        stream=True,
        logprobs=True,
        stream_options={"include_usage": True},
    ):
        print(chunk)
        n += 1
    assert n > 5
