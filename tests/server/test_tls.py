"""TLS and mutual TLS, with real handshakes; certificates are renewed under a running server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from plaudit import callers
from plaudit.callers import Callers, ClientCertificate
from plaudit.permission import Permission
from plaudit_client import AsyncClient, FinishReason, PermissionDenied, PlauditError, tls
from tests.fixtures_server import Deployment
from tests.fixtures_tls import Certificate, Issue


async def answer(address: str, credentials: grpc.ChannelCredentials | None) -> str:
    """`served`, or why not."""
    async with AsyncClient(address, credentials=credentials, api_key="") as client:
        try:
            await client.chat("hello", max_tokens=1).read()
        except PlauditError as error:
            return f"{type(error).__name__}: {error}"
        return "served"


def shown_by(certificate: Certificate) -> dict[str, Path]:
    return {"certificate": certificate.chain, "key": certificate.key}


async def test_a_stranger_does_not_get_through_the_handshake(deployment: Deployment, issue: Issue) -> None:
    server, other = issue("127.0.0.1"), issue("127.0.0.1", ca="other", file="other")
    async with deployment.running(tls_certificate=server.chain, tls_key=server.key) as (public, control):
        assert await answer(public, tls(server.ca)) == "served"
        async with AsyncClient(control, credentials=tls(server.ca)) as operator:
            assert (await operator.list_policies()).serving_version == "v0"
        assert "its certificate is not signed by a CA" in await answer(public, tls(other.ca))
        for address in (public, control):
            assert "it may ask for TLS" in await answer(address, None)
    async with deployment.server("server-1") as plain:
        assert "it does not speak TLS" in await answer(plain, tls(server.ca))


async def test_client_certificates_have_permissions(deployment: Deployment, issue: Issue, tmp_path: Path) -> None:
    server = issue("127.0.0.1")
    ours = {name: issue(name, ca="clients", file=name) for name in ("app@example.org", "ops.example.org", "who")}
    forged = issue("ops.example.org", ca="forgers", file="forged")
    file = tmp_path / "callers.json"
    known = (
        ClientCertificate(name="app@example.org", permissions=frozenset({Permission.CHAT})),
        ClientCertificate(name="ops.example.org", permissions=frozenset({Permission.ADMIN})),
    )
    callers.write(file, Callers(certificates=known))
    options: dict[str, Any] = {"tls_certificate": server.chain, "tls_key": server.key, "tls_client_ca": ours["who"].ca}
    async with deployment.running(**options, callers_file=file) as (public, control):
        for stranger in (tls(server.ca), tls(server.ca, **shown_by(forged))):
            assert (await answer(public, stranger)).startswith("Unavailable: ")
            assert (await answer(control, stranger)).startswith("Unavailable: ")
        app, ops, who = (tls(server.ca, **shown_by(certificate)) for certificate in ours.values())
        assert await answer(public, app) == "served"
        assert await answer(public, ops) == (
            "PermissionDenied: ops.example.org has permission for admin; this call needs chat"
        )
        assert (await answer(public, who)).startswith("Unauthenticated: the client certificate's name is not known")
        async with AsyncClient(control, credentials=app) as client:
            with pytest.raises(PermissionDenied):
                await client.erase_user("ann")
        async with AsyncClient(control, credentials=ops) as client:
            assert (await client.promote_policy("v0")).reason == "by ops.example.org"
        # The command, as an operator uses it.
        arguments = [f"--ca={server.ca}", f"--certificate={ours['ops.example.org'].chain}"]
        arguments += [f"--certificate-key={ours['ops.example.org'].key}", "policies", "list", f"--control={control}"]
        command = [sys.executable, "-m", "plaudit_cli.main", *arguments]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        assert (process.returncode, b"v0" in out) == (0, True)
    # Without a callers file the CA's word is enough, for everything.
    async with deployment.running("server-1", **options) as (public, control):
        assert (await answer(public, tls(server.ca, **shown_by(forged)))).startswith("Unavailable: ")
        assert await answer(public, who) == "served"
        async with AsyncClient(control, credentials=who) as client:
            await client.erase_user("ann")


async def test_a_renewed_certificate_is_shown_without_a_restart(
    deployment: Deployment, issue: Issue, caplog: pytest.LogCaptureFixture
) -> None:
    old = issue("127.0.0.1")
    deployment.publish_endless("v1")
    options: dict[str, Any] = {"tls_certificate": old.chain, "tls_key": old.key, "max_tokens": 400}
    async with deployment.running(**options) as (public, _):
        async with AsyncClient(public, credentials=tls(old.ca)) as client:
            reply = client.chat("hello", max_tokens=400)
            stream = aiter(reply)
            await anext(stream)
            renewed = issue("127.0.0.1", ca="renewed")  # in the same files
            async with asyncio.timeout(20):
                while await answer(public, tls(renewed.ca)) != "served":
                    await asyncio.sleep(0.05)
            assert "not signed by a CA" in await answer(public, tls(old.ca))

            await asyncio.to_thread(renewed.key.write_text, "not a key")  # half written: the last good pair stays
            async with asyncio.timeout(20):
                while "TLS certificates cannot be read" not in caplog.text:
                    assert await answer(public, tls(renewed.ca)) == "served"
                    await asyncio.sleep(0.05)
            assert await answer(public, tls(renewed.ca)) == "served"
            async for _ in stream:
                pass
            assert reply.finish_reason is FinishReason.LENGTH, "a running stream knows nothing of it"


async def test_files_that_are_no_certificates_are_named(deployment: Deployment, issue: Issue, tmp_path: Path) -> None:
    one, two = issue("127.0.0.1", file="one"), issue("127.0.0.1", file="two")
    for key, ca, words in (
        (two.key, None, "one.pem and .*two.key must be a certificate chain and its unencrypted key"),
        (one.key, one.key, "one.key must hold the clients' CA certificates"),
    ):
        with pytest.raises(ValueError, match=words):
            async with deployment.running(tls_certificate=one.chain, tls_key=key, tls_client_ca=ca):
                pass
    with pytest.raises(PlauditError, match="belong together"):
        tls(one.ca, certificate=one.chain)
