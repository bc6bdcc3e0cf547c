"""A server with the chart's own arguments, secrets laid out as the kubelet does, Kafka by TLS and a password, and the
chart's own probe: what the chart says is what a server can be started with.

Only what a test on one machine cannot have is put in place of it: the pod's paths, its ports, and who makes secrets.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from plaudit import callers, probe
from plaudit.callers import ApiKey, Callers
from plaudit.permission import Permission
from plaudit.settings import parse
from plaudit_client import AsyncClient, tls
from plaudit_server import app
from plaudit_server.config import ServerSettings
from plaudit_server.rpc import Addresses
from tests.events.guarded_broker import GuardedBroker
from tests.helm.conftest import Document, Render, container, workloads

pytestmark = pytest.mark.kafka

_KEY = "plaudit_of_the_shop"
_HOST = "plaudit-server.chat.svc"


def _secret(directory: Path, content: dict[str, bytes]) -> None:
    """As the kubelet mounts one: names that lead through `..data` to a directory of that moment."""
    moment = directory / "..2026_11_26"
    moment.mkdir(parents=True)
    (directory / "..data").symlink_to(moment.name)
    for name, value in content.items():
        (moment / name).write_bytes(value)
        (directory / name).symlink_to(f"..data/{name}")


def _mount(root: Path, workload: Document, secrets: dict[str, dict[str, bytes]]) -> None:
    """Lay out the pod's volumes under `root`."""
    volumes = {volume["name"]: volume for volume in workload["spec"]["template"]["spec"]["volumes"]}
    for mount in container(workload)["volumeMounts"]:
        place, volume = root / mount["mountPath"].removeprefix("/"), volumes.get(mount["name"], {})
        if "secret" in volume:
            _secret(place, secrets[volume["secret"]["secretName"]])
        elif "projected" in volume:
            content: dict[str, bytes] = {}
            for source in volume["projected"]["sources"]:
                held = secrets[source["secret"]["name"]]
                content |= {item["path"]: held[item["key"]] for item in source["secret"]["items"]}
            _secret(place, content)
        elif not place.exists():
            place.mkdir(parents=True)


async def test_a_server_starts_as_the_chart_says_and_its_probe_finds_it(
    render: Render, tmp_path: Path, tiny_model: Path
) -> None:
    ca = trustme.CA()
    server = ca.issue_cert(_HOST, "127.0.0.1")
    file = tmp_path / "callers.json"
    permissions = frozenset({Permission.CHAT, Permission.FEEDBACK, Permission.ADMIN})
    key = ApiKey(name="shop", sha256=hashlib.sha256(_KEY.encode()).hexdigest(), permissions=permissions)
    callers.write(file, Callers(keys=(key,)))
    secrets: dict[str, dict[str, bytes]] = {
        "server-tls": {
            "tls.crt": b"".join(pem.bytes() for pem in server.cert_chain_pems),
            "tls.key": server.private_key_pem.bytes(),
            "ca.crt": ca.cert_pem.bytes(),
        },
        "clients": {"ca.crt": ca.cert_pem.bytes()},
        "callers": {"callers.json": file.read_bytes()},
        "plaudit-receipt-keys": {"2026-11.key": b"r" * 32},
        "plaudit-user-key": {"user.key": b"u" * 32},
        "kafka-ca": {"ca.crt": ca.cert_pem.bytes()},
        "kafka-password": {"password": b"right\n"},
    }
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    with GuardedBroker(context, {"plaudit": "right"}) as broker:
        workload = workloads(
            render(
                {
                    "tls.mode": "secret",
                    "tls.secretName": "server-tls",
                    "tls.clientCa.secretName": "clients",
                    "callers.secretName": "callers",
                    "kafka.bootstrapServers": [broker.address],
                    "kafka.security": "SASL_SSL",
                    "kafka.ca.secretName": "kafka-ca",
                    "kafka.sasl.secretName": "kafka-password",
                    "kafka.sasl.mechanism": "PLAIN",
                    "policyStore.url": "",
                    "policyStore.persistence.enabled": True,
                    "model.path": "tiny",
                    "model.existingClaim": "models",
                    "server.settings": {
                        "engine": "torch",
                        "max-context": 512,
                        "max-tokens": 64,
                        "default-max-tokens": 8,
                    },
                }
            )
        )["server"]
        root = tmp_path / "pod"
        (root / "models").mkdir(parents=True)
        (root / "models" / "tiny").symlink_to(tiny_model)
        _mount(root, workload, secrets)

        def here(argument: str) -> str:
            for path in ("/etc/plaudit/", "/var/lib/plaudit/", "/models/"):
                argument = argument.replace(path, f"{root}{path}")
            return argument.replace("0.0.0.0:50051", "127.0.0.1:0").replace("0.0.0.0:51051", "127.0.0.1:0")

        arguments = [here(argument) for argument in container(workload)["args"]]
        arguments = [a for a in arguments if not a.startswith(("--metrics-port", "--metrics-host"))]
        settings = parse(ServerSettings, "plaudit-server", arguments)
        started: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        running = asyncio.create_task(app.run(settings, stop, started))
        waited: set[asyncio.Future[Any]] = {running, started}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        public = started.result().public
        try:
            for name in ("startupProbe", "readinessProbe", "livenessProbe"):
                command = container(workload)[name]["exec"]["command"]
                words = [here(word).replace("127.0.0.1:50051", public) for word in command[3:]]
                assert await asyncio.to_thread(probe.main, words) == 0, name
            ours = root / "etc" / "plaudit" / "tls"
            credentials = tls(ours / "ca.crt", ours / "tls.crt", ours / "tls.key")
            async with AsyncClient(public, credentials=credentials, api_key=_KEY) as client:
                reply = client.chat("hello", user_id="ann")
                await reply.read()
                assert (await reply.thumbs_up()).name == "EVENT_LOG"
        finally:
            stop.set()
            await running
        assert "plaudit" in broker.logins
