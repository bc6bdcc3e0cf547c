"""A client that knows only reflection lists, describes and calls everything that is served at an address."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from plaudit.v1 import chat_pb2, feedback_pb2, policy_pb2, privacy_pb2

CLIENT = Path(__file__).with_name("generic_client.py")


async def looked_at(address: str) -> dict[str, Any]:
    """What such a client, in a process of its own, finds at an address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, CLIENT, address, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    found: dict[str, Any] = json.loads(output)
    return found


def check_described(found: dict[str, Any]) -> None:
    """Every method of ours that is served there is described as the contract has it."""
    for module in (chat_pb2, feedback_pb2, policy_pb2, privacy_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            if service.full_name not in found["services"]:
                continue
            assert found["services"][service.full_name] == sorted(method.name for method in service.methods)
            for method in service.methods:
                assert found["requests"][method.full_name] == [field.name for field in method.input_type.fields]


CONTROL = {"plaudit.v1.LoopService", "plaudit.v1.PolicyService", "plaudit.v1.PrivacyService"}
EVERYWHERE = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_a_client_that_knows_only_reflection_can_use_it_all(address: str, control: str) -> None:
    found = await looked_at(address)
    assert set(found["services"]) == EVERYWHERE | {"plaudit.v1.ChatService", "plaudit.v1.FeedbackService"}
    check_described(found)
    kinds = [next(iter(event)) for event in found["chat"]]
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    assert found["vote"] == [{"durability": "DURABILITY_EVENT_LOG"}]
    assert found["health"] == [{"status": "SERVING"}]
    found = await looked_at(control)
    assert set(found["services"]) == EVERYWHERE | CONTROL
    check_described(found)
    assert found["policies"][0]["serving_version"] == "v0"
    assert found["health"] == [{"status": "SERVING"}]
