"""API keys: every rpc asks for the right permission, and what the callers file says is what counts now."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc

import plaudit.v1
from plaudit import callers
from plaudit.broker import free_port
from plaudit.callers import ApiKey, Callers
from plaudit.permission import Permission
from plaudit_client import AsyncClient, NotFound, PermissionDenied, PlauditError, Statement, Unauthenticated
from plaudit_server import caller
from plaudit_server.authentication import NEEDED
from plaudit_server.privacy import PrivacyService
from tests.fixtures_server import Deployment

CONTROL = {"LoopService", "PolicyService", "PrivacyService"}
SECRETS = {permission: callers.new_secret() for permission in Permission}


def api_key(name: str, secret: str, *permissions: Permission, expires: datetime | None = None) -> ApiKey:
    return ApiKey(name=name, sha256=callers.digest(secret), permissions=frozenset(permissions), expires=expires)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One key for each permission."""
    path = tmp_path / "callers.json"
    keys = [api_key(permission.value, secret, permission) for permission, secret in SECRETS.items()]
    callers.write(path, Callers(keys=tuple(keys)))
    return path


def methods() -> list[MethodDescriptor]:
    """Every rpc of the contract."""
    names = sorted(path.stem for path in Path(plaudit.v1.__path__[0]).glob("*_pb2.py"))
    files = [import_module(f"plaudit.v1.{name}").DESCRIPTOR for name in names]
    return [m for file in files for service in file.services_by_name.values() for m in service.methods]


async def code(address: str, method: MethodDescriptor, secret: str | None = None) -> grpc.StatusCode:
    """How a call with an empty request ends; of an endless answer, how it begins."""
    metadata = [("authorization", f"Bearer {secret}")] if secret else []
    path = f"/{method.containing_service.full_name}/{method.name}"
    async with grpc.aio.insecure_channel(address) as channel:
        # All kinds of rpc look alike on the wire, but for who speaks first.
        if method.client_streaming:
            answers: Any = channel.stream_stream(path)(metadata=metadata, timeout=60)
            await answers.initial_metadata()  # what is sent while the call is refused hides why (grpc/grpc#36066)
            if not answers.done():
                await answers.write(b"")
        else:
            one: Any = channel.unary_stream(path)
            answers = one(b"", metadata=metadata, timeout=60)
        try:
            await answers.read()
        except grpc.aio.AioRpcError as error:
            return error.code()
        answers.cancel()
        return grpc.StatusCode.OK


async def test_every_rpc_has_its_permission_and_its_port(deployment: Deployment, file: Path) -> None:
    code_of = grpc.StatusCode
    let_in = (code_of.OK, code_of.INVALID_ARGUMENT, code_of.FAILED_PRECONDITION)
    async with deployment.running(callers_file=file) as (public, control):
        assert len(methods()) >= 11
        for method in methods():
            service = method.containing_service
            here, elsewhere = (control, public) if service.name in CONTROL else (public, control)
            assert await code(elsewhere, method, SECRETS[Permission.ADMIN]) == code_of.UNIMPLEMENTED, method.full_name
            assert await code(here, method) == code_of.UNAUTHENTICATED, method.full_name
            needed = NEEDED[service.full_name]
            assert (needed in (Permission.ADMIN, Permission.OBSERVE)) == (service.name in CONTROL)
            for permission, secret in SECRETS.items():
                ended = await code(here, method, secret)
                # A service without a permission fails here.
                if permission is needed or (permission, needed) == (Permission.ADMIN, Permission.OBSERVE):
                    assert ended in let_in, method.full_name
                else:
                    assert ended == code_of.PERMISSION_DENIED, method.full_name


async def test_a_stream_of_feedback_is_refused_with_the_reason(deployment: Deployment, file: Path) -> None:
    async with deployment.running(callers_file=file) as (public, _):
        for secret, refusal in ((callers.new_secret(), Unauthenticated), (SECRETS[Permission.CHAT], PermissionDenied)):
            async with AsyncClient(public, api_key=secret, max_retries=0) as client:
                for _ in range(20):  # it is a race between the refusal and what is sent
                    with pytest.raises(refusal):
                        await anext(client.stream_feedback(Statement("r", rating=1) for _ in range(50)))


async def test_who_is_not_known_is_told_what_would_be_right(
    deployment: Deployment, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, port = callers.new_secret(), free_port()
    expired = api_key("late", late, Permission.CHAT, expires=datetime.now(UTC) - timedelta(seconds=1))
    callers.write(file, Callers(keys=(*callers.read(file).keys, expired)))
    admin, chat = SECRETS[Permission.ADMIN], SECRETS[Permission.CHAT]
    async with deployment.running(callers_file=file, metrics_port=port) as (public, control):

        async def refusal(key: str | None) -> str:
            async with AsyncClient(public, api_key=key) as client:
                with pytest.raises(Unauthenticated) as refused:
                    await client.chat("hello").read()
            return refused.value.message

        assert "give an API key" in await refusal("")
        assert "not known here" in await refusal(callers.new_secret())
        assert "not known here" in await refusal(callers.digest(chat)), "what the file holds opens nothing"
        assert "late expired on" in await refusal(late)
        async with grpc.aio.insecure_channel(public) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest())).status, "probes need no key"
            wrong: Any = channel.unary_unary("/plaudit.v1.FeedbackService/SubmitFeedback")
            with pytest.raises(grpc.aio.AioRpcError, match="must be `Bearer KEY`"):
                await wrong(b"", metadata=[("authorization", f"Basic {chat}")])
        async with AsyncClient(public, control=control, api_key=chat) as client:
            reply = client.chat("hello", max_tokens=2)
            await reply.read()
            with pytest.raises(PermissionDenied, match="chat has permission for chat; this call needs feedback"):
                await reply.thumbs_up()
            with pytest.raises(PermissionDenied, match="this call needs admin"):
                await client.list_policies()
        monkeypatch.setenv("PLAUDIT_API_KEY", admin)
        async with AsyncClient(control) as client:
            assert (await client.list_policies()).serving_version == "v0"
        async with AsyncClient(public) as client:
            with pytest.raises(NotFound, match="operators' calls at its control address"):
                await client.list_policies()

        def scrape() -> str:
            with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                text: str = answer.read().decode()
                return text

        text = await asyncio.to_thread(scrape)
    assert 'plaudit_calls_refused_total{reason="unauthenticated"} 5.0' in text
    assert 'plaudit_calls_refused_total{reason="permission_denied"} 2.0' in text


async def test_keys_come_and_go_under_a_running_server(
    deployment: Deployment, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = SECRETS[Permission.ADMIN], callers.new_secret()

    async def may(control: str, secret: str) -> bool:
        async with AsyncClient(control, api_key=secret) as client:
            try:
                await client.list_policies()
            except Unauthenticated:
                return False
            return True

    async def until(control: str, secret: str, wanted: bool) -> None:
        async with asyncio.timeout(20):
            while await may(control, secret) is not wanted:
                await asyncio.sleep(0.05)

    async with deployment.running(callers_file=file) as (_, control):
        assert [await may(control, old), await may(control, new)] == [True, False]
        callers.write(file, Callers(keys=(*callers.read(file).keys, api_key("new", new, Permission.ADMIN))))
        await until(control, new, wanted=True)
        callers.write(file, Callers(keys=tuple(key for key in callers.read(file).keys if key.name != "admin")))
        await until(control, old, wanted=False)
        assert await may(control, new)

        await asyncio.to_thread(file.write_text, '{"keys": [{"name": "half a li')
        async with asyncio.timeout(20):
            while "what they said before stands" not in caplog.text:
                assert await may(control, new), "a broken file shuts nobody out"
                await asyncio.sleep(0.05)
        assert [await may(control, old), await may(control, new)] == [False, True]


async def test_the_caller_is_known_to_whoever_serves_the_call(
    deployment: Deployment, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[caller.Caller] = []
    erase = PrivacyService.EraseUser

    async def look(self: PrivacyService, request: Any, context: Any) -> Any:
        seen.append(caller.current.get())
        return await erase(self, request, context)

    monkeypatch.setattr(PrivacyService, "EraseUser", look)
    async with (
        deployment.running(callers_file=file) as (_, control),
        AsyncClient(control, api_key=SECRETS[Permission.ADMIN]) as client,
    ):
        await client.erase_user("ann")
    assert seen == [caller.Caller("admin", frozenset({Permission.ADMIN}))]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "Input should be an object"),
        ('{"keys": [{"name": "a b", "sha256": "", "permissions": ["chat"]}]}', "keys.0.name: String should match"),
        ('{"keys": [{"name": "a", "sha256": "%s", "permissions": []}]}' % ("0" * 64), "keys.0.permissions"),
        ('{"keys": [{"name": "a", "sha256": "%s", "permissions": ["chief"]}]}' % ("0" * 64), "'chat', 'feedback'"),
        ('{"certificates": [{"name": "a", "permissions": ["chat"]}], "secrets": 1}', "secrets: Extra inputs"),
        ('{"certificates": [%s, %s]}' % (('{"name": "a", "permissions": ["chat"]}',) * 2), "the name a stands twice"),
    ],
)
def test_a_wrong_callers_file_is_named_and_not_quoted(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "callers.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"callers\.json: ") as wrong:
        callers.read(path)
    assert words in str(wrong.value)
    assert "\n" not in str(wrong.value)
    assert "chief" not in str(wrong.value)


def test_the_file_is_its_owners_alone_and_holds_no_key(file: Path) -> None:
    assert os.stat(file).st_mode & 0o777 == 0o600
    assert not any(secret in file.read_text() for secret in SECRETS.values())
    assert len(set(SECRETS.values())) == 4
    assert all(len(secret) == len("plaudit_") + 43 for secret in SECRETS.values()), "256 bits"


async def test_a_key_that_cannot_be_sent_is_refused_at_once() -> None:
    with pytest.raises(PlauditError, match="api_key: holds characters that no key has"):
        AsyncClient("127.0.0.1:1", api_key="plaudit_x\nevil: header")
