"""A canary on real servers: its share, its conversations, roll-back while streams run, and what cannot be loaded."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest

from plaudit.events import INTERACTIONS, from_beginning, open_log
from plaudit.v1.events_pb2 import Interaction
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_client import AsyncClient, FailedPrecondition, InvalidRequest, NotFound, Policy, Unavailable
from tests.fixtures_server import Deployment, until_serving

CANARY, ROLLED_BACK = PolicyState.POLICY_STATE_CANARY, PolicyState.POLICY_STATE_ROLLED_BACK


def announce(deployment: Deployment, version: str, share: float, sha256: str) -> None:
    deployment.announce(version, CANARY, parent="v1", manifest_sha256=sha256, share=share)


async def answers(client: AsyncClient, conversations: int = 60, **options: Any) -> dict[str, str]:
    """The version that answers each conversation."""
    found = {}
    for number in range(conversations):
        reply = client.chat("hello", max_tokens=2, conversation_id=f"c{number}", **options)
        await reply.read()
        found[f"c{number}"] = reply.policy_version
    return found


async def until(client: AsyncClient, version: str, state: str) -> Policy:
    async with asyncio.timeout(30):
        async for policy in client.watch_policies():
            if (policy.version, policy.state) == (version, state):
                return policy
    raise AssertionError("a watch has no end")


async def until_loaded(client: AsyncClient, *versions: str) -> None:
    async with asyncio.timeout(30):
        while set((await client.list_policies()).loaded_versions) != {"v0", *versions}:
            await asyncio.sleep(0.02)


async def test_the_life_of_a_canary(deployment: Deployment) -> None:
    async with deployment.client() as client, deployment.client("server-1") as other:
        deployment.publish("v1", seed=1)
        await until_serving(client, "v1")
        announce(deployment, "v2", 0.3, deployment.publish("v2", seed=2, announce=False))
        policy = await until(client, "v2", "canary")
        assert policy.share == 0.3
        await until_loaded(client, "v1", "v2")
        await until_loaded(other, "v1", "v2")
        await until_serving(other, "v1")
        at_first = await answers(client)
        assert set(at_first.values()) == {"v1", "v2"}
        assert await answers(other) == at_first, "the same choice on every server"

        wider = await client.set_canary_share("v2", 0.6, "looks good")
        assert (wider.state, wider.share, wider.reason) == ("canary", 0.6, "looks good")
        later = await answers(client)
        assert Counter(later.values())["v2"] > Counter(at_first.values())["v2"]
        assert all(later[name] == "v2" for name, version in at_first.items() if version == "v2")

        assert (await client.promote_policy("v2")).state == "stable"
        assert set((await answers(client, 8)).values()) == {"v2"}
        assert (await client.get_policy("v1")).state == "retired"

    log = open_log(deployment.event_log)
    entries = log.read(from_beginning(log, INTERACTIONS))
    log.close()
    records = [Interaction.FromString(entry.value) for entry in entries]
    # By their names: what the log was slow to take is there twice.
    assert len({record.response_id for record in records}) == 188
    assert not any(record.pinned for record in records)


async def test_what_was_asked_for_by_name_is_recorded_as_such(client: AsyncClient, deployment: Deployment) -> None:
    deployment.publish("v1", seed=1)
    await until_serving(client, "v1")
    await answers(client, 1, policy_version="v1")
    await answers(client, 1)
    with open_log(deployment.event_log) as log:
        async with asyncio.timeout(20):
            while len(entries := log.read(from_beginning(log, INTERACTIONS))) < 2:
                await asyncio.sleep(0.02)
    assert [Interaction.FromString(entry.value).pinned for entry in entries] == [True, False]


async def test_a_canary_is_rolled_back_while_its_streams_run(deployment: Deployment) -> None:
    async with deployment.client(max_versions=2, max_running=8) as client:
        deployment.publish("v1", seed=1)
        await until_serving(client, "v1")
        sha256 = deployment.publish_endless("v2", announce=False)
        announce(deployment, "v2", 0.99, sha256)
        await until_loaded(client, "v1", "v2")
        reply = client.chat("hello", max_tokens=256, conversation_id="c0")
        reader = aiter(reply)
        await anext(reader)
        assert reply.policy_version == "v2"
        policy, serving = await client.rollback_policy("v2", "people dislike it")
        assert (policy.state, policy.share, serving) == ("rolled back", 0.0, "v1")
        assert set((await answers(client, 6)).values()) == {"v1"}
        async for _ in reader:
            pass
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 256, "the stream that ran went on to its end"
        await until_loaded(client, "v1")

        # A place for the canary is made by letting the version before go, and the other way round once it has ended.
        deployment.publish("v3", seed=3, parent="v1")
        await until_serving(client, "v3")
        await until_loaded(client, "v1", "v3")
        announce(deployment, "v4", 0.5, deployment.publish("v4", seed=4, announce=False))
        await until_loaded(client, "v3", "v4")
        await client.rollback_policy("v4")
        await until_loaded(client, "v1", "v3")


async def test_a_canary_that_cannot_be_loaded_is_said_and_the_stable_version_serves(
    client: AsyncClient, deployment: Deployment
) -> None:
    deployment.publish("v1", seed=1)
    await until_serving(client, "v1")
    sha256 = deployment.publish("v2", seed=2, announce=False)
    weights = deployment.root / "versions" / "v2" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    announce(deployment, "v2", 0.9, sha256)
    await until(client, "v2", "canary")
    assert set((await answers(client, 8)).values()) == {"v1"}
    with pytest.raises(FailedPrecondition, match=r"refuses it: version v2: adapter_model.safetensors has"):
        await client.set_canary_share("v2", 0.8)
    weights.write_bytes(whole)  # the upload is repeated, and the next attempt finds it
    await until_loaded(client, "v1", "v2")
    assert "v2" in (await answers(client, 8)).values()


async def test_what_cannot_be_a_canary_is_refused(client: AsyncClient, deployment: Deployment) -> None:
    deployment.publish("v1", seed=1)
    deployment.announce("v2", PolicyState.POLICY_STATE_REJECTED, reason="KL too large")
    await until_serving(client, "v1")
    await until(client, "v2", "rejected")
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(InvalidRequest, match="give 0 to below 1") as wrong:
            await client.set_canary_share("v1", share)
        assert wrong.value.field == "share"
    with pytest.raises(NotFound, match="there is no 'v9'"):
        await client.set_canary_share("v9", 0.1)
    with pytest.raises(FailedPrecondition, match="v1 is stable, and what is stable cannot become canary"):
        await client.set_canary_share("v1", 0.1)
    with pytest.raises(FailedPrecondition, match="v2 is rejected"):
        await client.set_canary_share("v2", 0.1)


async def test_a_share_by_hand_begins_a_comparison_of_its_own(client: AsyncClient, deployment: Deployment) -> None:
    sha256 = deployment.publish("v1", seed=1, announce=False)
    metrics = {"kl": 0.5, "canary_votes": 40.0}
    deployment.announce("v1", ROLLED_BACK, manifest_sha256=sha256, metrics=metrics)
    await until(client, "v1", "rolled back")
    policy = await client.set_canary_share("v1", 0.1)
    assert policy.metrics == {"kl": 0.5}


async def test_a_watch_tells_what_is_then_what_changes_and_ends_with_the_server(deployment: Deployment) -> None:
    seen: list[Policy] = []
    async with AsyncExitStack() as server:
        addresses = await server.enter_async_context(deployment.running())
        async with AsyncClient(addresses.control) as client:
            deployment.publish("v1", seed=1)
            await until_serving(client, "v1")

            async def watch() -> None:
                async for policy in client.watch_policies():
                    seen.append(policy)  # noqa: PERF401 - a comprehension would show them at the end only

            watching = asyncio.create_task(watch())
            async with asyncio.timeout(20):
                while len(seen) < 2:
                    await asyncio.sleep(0.02)
                await client.rollback_policy("v1")
                while len(seen) < 4:
                    await asyncio.sleep(0.02)
            await server.aclose()
            with pytest.raises(Unavailable, match="stopping"):
                await watching
    assert [(policy.version, policy.state) for policy in seen[:2]] == [("v0", "retired"), ("v1", "stable")]
    assert [(policy.version, policy.state) for policy in seen[2:]] == [("v0", "stable"), ("v1", "rolled back")]
