"""What a gateway lets in, what it shows, and what it says to the rest."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from plaudit_client import AsyncClient
from plaudit_gateway import page
from plaudit_gateway.api import build
from plaudit_gateway.config import GatewaySettings
from plaudit_gateway.metrics import GatewayMetrics
from tests.gateway.conftest import Gateway

CHAT: dict[str, Any] = {"model": "plaudit", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


def problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def test_a_foreign_name_is_refused(http: httpx.Client) -> None:
    """DNS rebinding: a page of evil.example whose name now leads here is not our own page."""
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "[::1].evil.example"):
        answer = http.get("/v1/models", headers={"Host": host})
        assert (answer.status_code, problem(answer)["code"]) == (403, "wrong_host"), host
    for host in ("localhost:1", "127.0.0.1", "[::1]:8080", "LOCALHOST"):
        assert http.get("/v1/models", headers={"Host": host}).status_code == 200, host


def test_another_page_cannot_chat_vote_or_promote(served: Gateway, http: httpx.Client) -> None:
    for origin in ("https://evil.example", "null", "http://localhost:1", served.url + ".evil.example"):
        for path in ("/v1/chat/completions", "/v1/feedback", "/v1/policies/v1/promote"):
            answer = http.post(path, json=CHAT, headers={"Origin": origin})
            assert (answer.status_code, problem(answer)["code"]) == (403, "wrong_origin")
    assert http.post("/v1/chat/completions", json=CHAT, headers={"Origin": served.url}).status_code == 200


def test_without_a_json_content_type_nothing_is_read(http: httpx.Client) -> None:
    """A form, or text, is what a page may send anywhere without being asked."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = http.post("/v1/chat/completions", content=json.dumps(CHAT), headers={"Content-Type": kind})
        assert (answer.status_code, problem(answer)["code"]) == (415, "unsupported_media_type")


def test_cors_is_off(http: httpx.Client) -> None:
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    answer = http.options("/v1/chat/completions", headers=asked)
    assert answer.status_code == 405
    told = http.get("/v1/models", headers={"Origin": "https://app.example"})
    assert not [name for name in (*answer.headers, *told.headers) if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body is missing"),
        (b"{", "not JSON"),
        (b"[]", "should be"),
        (b"null", "body"),
        (b'{"model": "\xff"}', "not JSON in UTF-8"),
        (b"[" * 30_000, "not JSON"),
        (b'{"model": "plaudit", "messages": [{"role": "user", "content": "\\ud800"}]}', "messages[0].content"),
        (b'{"model": "plaudit", "messages": [{"role": "user", "content": "x"}], "top_p": NaN}', "top_p"),
        (b'{"model": "plaudit", "messages": [{"role": "user", "content": "x"}], "seed": 1e400}', "seed"),
        (b'{"model": "plaudit", "seed": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_what_is_no_request_is_refused_in_words(http: httpx.Client, body: bytes, says: str) -> None:
    answer = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert says in problem(answer)["message"] or says in str(problem(answer)["param"])


def test_too_large_a_body(http: httpx.Client) -> None:
    for content in (b"x" * 70_000, iter([b"x" * 40_000, b"x" * 40_000])):
        answer = http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, problem(answer)["code"]) == (413, "too_large")
        assert answer.headers["connection"] == "close"


def test_a_body_that_does_not_arrive(served: Gateway) -> None:
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        head = f"POST /v1/feedback HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 9"
        slow.sendall(head.encode() + b"\r\n\r\n{")
        answer = b""
        while piece := slow.recv(4096):  # the connection is closed, too
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 0.5 s" in answer


def test_what_is_not_there(http: httpx.Client) -> None:
    for path in ("/nowhere", "/v1", "/v1/", "/docs", "/assets/", "/assets/none.js"):
        answer = http.get(path)
        assert (answer.status_code, problem(answer)["code"]) == (404, "not_found"), path
    answer = http.delete("/v1/models")
    assert (answer.status_code, problem(answer)["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


def test_every_answer_has_a_number_and_its_headers(http: httpx.Client) -> None:
    answers = [http.get("/"), http.get("/healthz"), http.get("/nowhere"), http.get("/", headers={"Host": "evil"})]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 4
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers


def test_health(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "serving"}


# In this process, without servers: what does not depend on them.


def made(**settings: Any) -> tuple[FastAPI, GatewayMetrics]:
    metrics = GatewayMetrics(CollectorRegistry())
    return build(GatewaySettings(**settings), AsyncClient("127.0.0.1:1", api_key=""), metrics, asyncio.Event()), metrics


def calling(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


async def test_cors_for_those_who_are_named() -> None:
    app, _ = made(allow_origin=["https://app.example"])
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    async with calling(app) as http:
        stainless = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
        answer = await http.options("/v1/feedback", headers={**asked, "Access-Control-Request-Headers": stainless})
        assert answer.status_code == 200, "OpenAI's client sends all of these"
        assert answer.headers["access-control-allow-headers"] == stainless
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in answer.headers
        refused = await http.options("/v1/feedback", headers={**asked, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in refused.headers
        said = await http.post("/v1/feedback", json={}, headers={"Origin": "https://app.example"})
        assert said.status_code == 400, "refused for what it says, not for where it comes from"
        assert {"X-Request-Id", "Retry-After-Ms"} <= set(said.headers["access-control-expose-headers"].split(", "))


async def test_no_server_no_answer_but_in_words(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where the servers would be is not a stranger's to know."""
    monkeypatch.setattr("plaudit_gateway.errors._logged", float("-inf"))
    app, metrics = made()
    async with calling(app) as http:
        answer = await http.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, problem(answer)["code"]) == (503, "unavailable")
        assert problem(answer)["message"] == "no server answers"
        answer = await http.get("/healthz")
        assert (answer.status_code, problem(answer)["message"]) == (503, "no server answers")
        answer = await http.post("/v1/policies/v1/promote", json={})
        assert (answer.status_code, problem(answer)["code"]) == (404, "no_control")
        assert (await http.get("/v1/models")).json()["data"][0]["id"] == "plaudit"
    count = metrics.registry.get_sample_value(
        "plaudit_gateway_requests_total", {"route": "/v1/chat/completions", "status": "503"}
    )
    assert count == 1
    logged = [record.message for record in caplog.records if record.name == "plaudit_gateway.errors"]
    assert logged == ["nothing answers at 127.0.0.1:1 (connection refused)"], "and not for each who asks"


async def test_the_unforeseen_shows_a_number_and_quotes_nobody(caplog: pytest.LogCaptureFixture) -> None:
    app, _ = made()

    said = "what Ann said"

    async def broken() -> None:
        raise RuntimeError(said)

    app.add_api_route("/broken", broken)
    async with calling(app) as http:
        answer = await http.get("/broken")
    assert answer.status_code == 500
    number = answer.headers["x-request-id"]
    assert number in problem(answer)["message"]
    assert number in caplog.text
    assert "RuntimeError" in caplog.text
    assert "Ann" not in caplog.text + answer.text


async def test_the_page(tmp_path: Path) -> None:
    (tmp_path / "page" / "assets").mkdir(parents=True)
    (tmp_path / "page" / "index.html").write_text("<!doctype html>")
    (tmp_path / "page" / "icon.svg").write_text("<svg/>")
    (tmp_path / "page" / "assets" / "index-1a2b.js").write_text("1")
    (tmp_path / "secret").write_text("s")
    app = FastAPI()
    page.serve(app, tmp_path / "page")
    async with calling(app) as http:
        index = await http.get("/")
        assert index.text == "<!doctype html>"
        assert "default-src 'none'" in index.headers["content-security-policy"]
        assert "script-src 'self';" in index.headers["content-security-policy"]
        assert index.headers["cache-control"] == "no-cache"
        head = await http.head("/")
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "15")
        asset = await http.get("/assets/index-1a2b.js")
        assert asset.headers["content-type"].startswith("text/javascript")
        assert "immutable" in asset.headers["cache-control"]
        again = await http.get("/assets/index-1a2b.js", headers={"If-None-Match": asset.headers["etag"]})
        assert again.status_code == 304
        assert (await http.get("/icon.svg")).headers["content-type"] == "image/svg+xml"
        for path in ("/assets/../../secret", "/assets/%2e%2e/%2e%2e/secret", "/../secret", "/assets//etc/passwd"):
            assert (await http.get(path)).status_code == 404, path


async def test_without_a_page_it_says_how_to_build_one(tmp_path: Path) -> None:
    app = FastAPI()
    page.serve(app, tmp_path)
    async with calling(app) as http:
        answer = await http.get("/")
    assert answer.status_code == 404
    assert "make page" in answer.text


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"listen": "0.0.0.0:8080"}, "can be reached from other machines"),
        ({"listen": "8080"}, "must be HOST:PORT"),
        ({"server": "a:1,b"}, "server (b) must be HOST:PORT"),
        ({"tls_certificate": "x.pem"}, "tls-certificate and tls-key belong together"),
        ({"allow_origin": ["*"]}, "must be one origin"),
        ({"allow_origin": ["https://a.example/path"]}, "must be one origin"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        GatewaySettings(**settings)
    assert says in str(caught.value)


def test_names_are_checked_on_loopback_or_when_given() -> None:
    assert sorted(GatewaySettings().hosts or ()) == ["127.0.0.1", "[::1]", "localhost"]
    assert GatewaySettings(listen="0.0.0.0:1", allow_insecure=True).hosts is None
    hosts = GatewaySettings(listen="0.0.0.0:1", allow_insecure=True, allow_host=["Chat.Example"]).hosts
    assert hosts is not None
    assert "chat.example" in hosts


async def test_the_loop_needs_a_control_plane() -> None:
    app, _ = made()
    async with calling(app) as http:
        for path in ("/v1/loop", "/v1/loop/events"):
            answer = await http.get(path)
            assert (answer.status_code, problem(answer)["code"]) == (404, "no_control")


async def test_however_many_ask_for_health_servers_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take few such calls on one connection, and who asks often must not hide them from probes."""
    asked, answer = 0, asyncio.Event()

    async def healthy(self: AsyncClient) -> bool:
        nonlocal asked
        asked += 1
        await answer.wait()
        return True

    monkeypatch.setattr(AsyncClient, "healthy", healthy)
    app, _ = made()
    async with calling(app) as http:
        asking = [asyncio.create_task(http.get("/healthz")) for _ in range(20)]
        for _ in range(1000):  # nothing here is outside of this loop: by then all have come to where they wait
            await asyncio.sleep(0)
        asking.pop(0).cancel()  # who asked first leaves
        answer.set()
        assert {each.status_code for each in await asyncio.gather(*asking)} == {200}
        assert asked == 1
        assert (await http.get("/healthz")).status_code == 200
        assert asked == 2, "anew, not from memory"
