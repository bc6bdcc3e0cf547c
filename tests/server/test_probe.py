"""`plaudit.probe` asks real servers for their health, with TLS and without."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from plaudit import probe
from tests.fixtures_server import Deployment
from tests.fixtures_tls import Issue


async def test_it_asks_by_mutual_tls_as_the_chart_has_it(
    deployment: Deployment, issue: Issue, capsys: pytest.CaptureFixture[str]
) -> None:
    server = issue("plaudit-server.chat.svc")  # one CA for both sides, and the probe shows the server's own certificate
    tls = [f"--ca={server.ca}", "--name=plaudit-server.chat.svc"]
    ours = [f"--certificate={server.chain}", f"--key={server.key}"]
    options: dict[str, Any] = {"tls_certificate": server.chain, "tls_key": server.key, "tls_client_ca": server.ca}
    async with deployment.running(**options) as (public, control):
        assert await asyncio.to_thread(probe.main, [public, *tls, *ours]) == 0
        assert await asyncio.to_thread(probe.main, [public, *tls, *ours, "--service=plaudit.v1.FeedbackService"]) == 0
        assert await asyncio.to_thread(probe.main, [control, *tls, *ours, "--service=plaudit.v1.PolicyService"]) == 0
        assert await asyncio.to_thread(probe.main, [public, *tls, *ours, "--service=plaudit.v1.PolicyService"]) == 1
        assert "plaudit.v1.PolicyService: NOT_FOUND" in capsys.readouterr().err
        assert await asyncio.to_thread(probe.main, [public, *tls]) == 1
        assert await asyncio.to_thread(probe.main, [public]) == 1
    assert await asyncio.to_thread(probe.main, [public, *tls, *ours]) == 1  # it is gone


def test_wrong_arguments_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(["127.0.0.1:1", "--ca=/no/such/ca.pem"]) == 1
    assert "/no/such/ca.pem: No such file" in capsys.readouterr().err
    for arguments, says in ((["--key=k"], "belong together"), (["--name=n"], "need --ca")):
        with pytest.raises(SystemExit):
            probe.main(["127.0.0.1:1", *arguments])
        assert says in capsys.readouterr().err
