"""Each caller's key goes to the server, which decides; the gateway shows none of its own for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from plaudit import callers
from plaudit.callers import ApiKey, Callers
from plaudit.permission import Permission
from tests.fixtures_server import Deployment
from tests.gateway.conftest import gateway, in_a_thread
from tests.gateway.test_openai import HELLO

KEYS = {
    "shop": (Permission.CHAT,),
    "voter": (Permission.FEEDBACK,),
    "ops": (Permission.ADMIN,),
    "board": (Permission.OBSERVE,),
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_model_sha256: str) -> Iterator[str]:
    """The URL of a gateway before a server that asks for callers. Each key is its caller's name, eight times."""
    root = tmp_path_factory.mktemp("guarded")
    (root / "receipt.key").write_bytes(b"k" * 32)
    (root / "user.key").write_bytes(b"u" * 32)
    keys = [
        ApiKey(name=name, sha256=callers.digest(name * 8), permissions=frozenset(permissions))
        for name, permissions in KEYS.items()
    ]
    callers.write(root / "callers.json", Callers(keys=tuple(keys)))
    (root / "board.key").write_text("board" * 8 + "\n")
    deployment = Deployment(root, tiny_model, tiny_model_sha256, f"sqlite:{root / 'events.sqlite'}")
    deployment.publish("v1", 1)

    async def serve(stop: asyncio.Event, started: Callable[[str], None]) -> None:
        async with AsyncExitStack() as stack:
            running = deployment.running(callers_file=root / "callers.json")
            addresses = await stack.enter_async_context(running)
            started(await stack.enter_async_context(gateway(addresses, observe_key_file=root / "board.key")))
            await stop.wait()

    with in_a_thread(serve) as url:
        yield url


@pytest.fixture
def http(guarded: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded, timeout=30) as client:
        yield client


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name * 8}"}


def test_callers_are_known_by_their_own_key(guarded: str) -> None:
    def asking(api_key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{guarded}/v1", api_key=api_key, max_retries=0)

    with asking("shop" * 8) as shop:
        assert shop.chat.completions.create(model="plaudit", messages=HELLO, max_tokens=1).choices
    with asking("guessed") as stranger, pytest.raises(openai.AuthenticationError) as unknown:
        stranger.chat.completions.create(model="plaudit", messages=HELLO, max_tokens=1)
    assert unknown.value.code == "invalid_api_key"
    with asking("voter" * 8) as voter, pytest.raises(openai.PermissionDeniedError, match="this call needs chat"):
        voter.chat.completions.create(model="plaudit", messages=HELLO, max_tokens=1)


@pytest.mark.parametrize("said", [None, "Basic c2hvcA==", "Bearer", "Bearer a b", "Bearer caf\xe9"])
def test_without_a_key_nobody_is_let_in(http: httpx.Client, said: str | None) -> None:
    headers = [] if said is None else [(b"authorization", said.encode("latin-1"))]
    answer = http.post("/v1/feedback", json={"receipt": "r", "thumb": "up"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert "Bearer KEY" in answer.json()["error"]["message"] or "API key" in answer.json()["error"]["message"]


def test_operators_calls_need_their_permission(http: httpx.Client) -> None:
    for name, status in (("shop", 403), ("board", 403), ("ops", 200)):
        answer = http.post("/v1/policies/v1/rollback", json={"reason": "a test"}, headers=key(name))
        assert answer.status_code == status, answer.text
    assert (answer.json()["version"], answer.json()["state"]) == ("v1", "rolled back")
    promoted = http.post("/v1/policies/v1/promote", json={"reason": "a test"}, headers=key("ops")).json()
    assert (promoted["state"], promoted["reason"]) == ("stable", "a test")
    wrong = http.post("/v1/policies/v0/share", json={"share": 0.5}, headers=key("ops"))
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "failed_precondition")
    assert http.post("/v1/policies/v9/promote", json={}, headers=key("ops")).status_code == 404


def test_models_are_told_to_those_who_may_know(http: httpx.Client) -> None:
    def told(headers: dict[str, str]) -> Any:
        return [model["id"] for model in http.get("/v1/models", headers=headers).json()["data"]]

    assert told(key("shop")) == ["plaudit"]
    assert told(key("ops")) == ["plaudit", "v0", "v1"]
    assert http.get("/v1/models", headers=key("stranger")).status_code == 401
