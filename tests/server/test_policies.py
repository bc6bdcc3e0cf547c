"""Versions: announced, followed, pinned, promoted, rolled back, refused. Real servers, many pushes."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status

from plaudit.events import POLICIES, Record, open_log
from plaudit.releases import Releases
from plaudit.v1 import policy_pb2_grpc
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import (
    GetPolicyRequest,
    PolicyState,
    PromotePolicyRequest,
    RollbackPolicyRequest,
    WatchPoliciesResponse,
)
from plaudit_client import AsyncClient, FailedPrecondition, FinishReason, InvalidRequest, NotFound
from plaudit_server.policies import PolicyService
from tests.fixtures_server import Deployment, until_known, until_serving

GREEDY = {"temperature": 0.0, "max_tokens": 24}


async def test_a_new_version_is_served_to_new_requests(client: AsyncClient, deployment: Deployment) -> None:
    before = await client.chat("hello", **GREEDY).read()  # type: ignore[arg-type]
    deployment.publish("v1", seed=1)
    await until_serving(client, "v1")
    reply = client.chat("hello", **GREEDY)  # type: ignore[arg-type]
    assert await reply.read() != before
    assert reply.policy_version == "v1"
    pinned = client.chat("hello", policy_version="v0", **GREEDY)  # type: ignore[arg-type]
    assert await pinned.read() == before
    assert pinned.policy_version == "v0"


async def test_a_server_that_starts_later_finds_the_current_version(deployment: Deployment) -> None:
    deployment.publish("v1", seed=1)
    deployment.publish("v2", seed=2, parent="v1")
    async with deployment.client() as client:
        policies = await client.list_policies()
        assert policies.serving_version == "v2"  # by the time it takes its first request
        assert [policy.version for policy in policies.policies] == ["v0", "v1", "v2"]
        assert [policy.state for policy in policies.policies] == ["retired", "retired", "stable"]


async def test_a_candidate_is_not_served_until_it_is_promoted(client: AsyncClient, deployment: Deployment) -> None:
    sha256 = deployment.publish("v1", seed=1, announce=False)
    deployment.announce("v1", PolicyState.POLICY_STATE_CANDIDATE, manifest_sha256=sha256, parent="v0")
    async with asyncio.timeout(20):
        while len((await client.list_policies()).policies) < 2:
            await asyncio.sleep(0.02)
    assert (await client.list_policies()).serving_version == "v0"
    policy = await client.promote_policy("v1", "it is good")
    assert policy.state == "stable"
    assert policy.reason == "it is good"
    assert (await client.list_policies()).serving_version == "v1"


async def test_promote_and_roll_back(client: AsyncClient, deployment: Deployment) -> None:
    deployment.publish("v1", seed=1)
    deployment.publish("v2", seed=2)
    await until_serving(client, "v2")
    policy, serving = await client.rollback_policy(reason="people dislike it")
    assert (policy.version, policy.state, policy.reason, serving) == ("v2", "rolled back", "people dislike it", "v1")
    reply = client.chat("hello", max_tokens=2)
    await reply.read()
    assert reply.policy_version == "v1"
    assert (await client.promote_policy("v0")).state == "stable"
    assert (await client.list_policies()).serving_version == "v0"
    assert (await client.promote_policy("v2")).state == "stable"
    assert (await client.list_policies()).serving_version == "v2"


async def test_what_cannot_be_promoted_or_rolled_back_is_refused(client: AsyncClient, deployment: Deployment) -> None:
    deployment.announce("v1", PolicyState.POLICY_STATE_REJECTED, parent="v0", reason="KL too large")
    deployment.publish("v2", seed=2)
    await until_serving(client, "v2")
    with pytest.raises(NotFound, match="there is no 'v9'; there are v0, v1, v2"):
        await client.promote_policy("v9")
    with pytest.raises(NotFound, match="there is no 'v9'"):
        await client.rollback_policy("v9")
    with pytest.raises(NotFound, match="there is no 'v9'"):
        await client.get_policy("v9")
    with pytest.raises(FailedPrecondition, match="v1 is rejected"):
        await client.promote_policy("v1")
    with pytest.raises(FailedPrecondition, match="v1 is rejected"):
        await client.rollback_policy("v1")
    with pytest.raises(FailedPrecondition, match="v0 is the base model"):
        await client.rollback_policy("v0")
    with pytest.raises(InvalidRequest, match="the most is 1,024"):
        await client.promote_policy("v2", "x" * 2000)
    with pytest.raises(NotFound, match="'v1' is not served here"):
        await client.chat("hello", policy_version="v1").read()


async def test_empty_versions_are_refused_by_field(control: str) -> None:
    async with grpc.aio.insecure_channel(control) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        calls: list[Any] = [stub.GetPolicy(GetPolicyRequest()), stub.PromotePolicy(PromotePolicyRequest())]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            details = BadRequest()
            assert rpc_status.from_call(refused.value).details[0].Unpack(details)
            assert details.field_violations[0].field == "version"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.RollbackPolicy(RollbackPolicyRequest())  # empty: the stable one, which is the base model
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_a_faulty_artefact_is_refused_and_the_old_version_goes_on(
    client: AsyncClient, deployment: Deployment
) -> None:
    deployment.publish("v1", seed=1)
    await until_serving(client, "v1")
    sha256 = deployment.publish("v2", seed=2, announce=False)
    weights = deployment.root / "versions" / "v2" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])  # an upload cut short
    deployment.announce("v2", PolicyState.POLICY_STATE_CANDIDATE, manifest_sha256=sha256, parent="v1")
    async with asyncio.timeout(20):
        while len((await client.list_policies()).policies) < 3:
            await asyncio.sleep(0.02)
    with pytest.raises(FailedPrecondition, match=r"refuses it: version v2: adapter_model.safetensors has"):
        await client.promote_policy("v2")
    reply = client.chat("hello", max_tokens=2)
    await reply.read()
    assert reply.policy_version == "v1"
    await client.rollback_policy("v2")
    deployment.publish("v3", seed=3)  # and what is right is served again
    await until_serving(client, "v3")


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning")  # vLLM leaves its own open when it stops
@pytest.mark.parametrize("engine", ["torch", pytest.param("vllm", marks=pytest.mark.vllm)])
async def test_ten_pushes_under_load_cut_no_stream_and_change_no_version(deployment: Deployment, engine: str) -> None:
    """Every stream ends whole, on the version that it began with, token for token as if it had been alone."""
    if engine == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed: see requirements/run.txt")
    options: dict[str, Any] = {
        "engine": engine,
        "dtype": "float32",
        "max_running": 8,
        "max_versions": 3,
        "kv_cache_bytes": 1 << 28,
    }
    async with deployment.client(**options) as client:
        pushed = asyncio.Event()
        streams: list[tuple[str, str, str]] = []
        newest, spanned = ["v0"], set[str]()

        async def keep_chatting(index: int) -> None:
            while not pushed.is_set():
                prompt = f"prompt {index}"
                reply = client.chat(prompt, temperature=0.0, max_tokens=60)
                text = await reply.read()
                spanned.update({reply.policy_version} - {newest[-1]})
                assert reply.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
                streams.append((reply.policy_version, prompt, text))

        chatting = [asyncio.create_task(keep_chatting(index)) for index in range(6)]
        for number in range(1, 11):
            deployment.publish(f"v{number}", seed=number, parent=f"v{number - 1}")
            await until_serving(client, f"v{number}", seconds=60)
            newest.append(f"v{number}")
            reply = client.chat("prompt 0", temperature=0.0, max_tokens=60)
            streams.append((f"v{number}", "prompt 0", await reply.read()))
            assert reply.policy_version == f"v{number}"
        pushed.set()
        await asyncio.gather(*chatting)
        async with asyncio.timeout(10):  # old versions are unloaded after their last stream
            while set((await client.list_policies()).loaded_versions) != {"v0", "v9", "v10"}:
                await asyncio.sleep(0.05)
    assert spanned, "some streams began before a push and ended after it"
    by_version: dict[tuple[str, str], set[str]] = {}
    for version, prompt, text in streams:
        by_version.setdefault((version, prompt), set()).add(text)
    assert all(len(texts) == 1 for texts in by_version.values()), "one version says one thing, pushes or not"


async def test_roll_back_works_while_every_place_is_taken(deployment: Deployment) -> None:
    async with deployment.client(max_versions=2, max_running=8) as client:
        deployment.publish_endless("v1")
        await until_serving(client, "v1")
        first = client.chat("hello", max_tokens=256)
        readers = [aiter(first)]
        await anext(readers[0])
        deployment.publish_endless("v2", parent="v1")
        await until_serving(client, "v2")
        second = client.chat("hello", max_tokens=256)
        readers.append(aiter(second))
        await anext(readers[1])
        deployment.publish("v3", seed=3, parent="v2")  # no place for it while the two streams run
        await until_known(client, "v3")
        await client.rollback_policy("v3")
        policy, serving = await client.rollback_policy("v2")
        assert (policy.state, serving) == ("rolled back", "v1")
        for reader in readers:
            async for _ in reader:
                pass
        assert (first.policy_version, second.policy_version) == ("v1", "v2")


async def test_roll_back_after_a_restart_needs_no_store(deployment: Deployment) -> None:
    deployment.publish("v1", seed=1)
    deployment.publish("v2", seed=2, parent="v1")
    async with deployment.client() as client:
        async with asyncio.timeout(10):
            while "v1" not in (await client.list_policies()).loaded_versions:
                await asyncio.sleep(0.02)
        (deployment.root / "versions").rename(deployment.root / "away")
        _, serving = await client.rollback_policy("v2")
        assert serving == "v1"


async def test_a_roll_back_is_answered_before_the_next_one_is_made_ready(deployment: Deployment) -> None:
    for number in (1, 2, 3):
        deployment.publish(f"v{number}", seed=number, parent=f"v{number - 1}")
    async with deployment.client(max_versions=2) as client:
        async with asyncio.timeout(30):
            while set((await client.list_policies()).loaded_versions) < {"v2", "v3"}:
                await asyncio.sleep(0.02)
        store = deployment.root / "versions" / "v1"
        (store / "manifest.json").rename(store / "kept")
        os.mkfifo(store / "manifest.json")  # whoever reads it waits
        try:
            policy, serving = await client.rollback_policy("v3")
            assert (policy.state, serving) == ("rolled back", "v2")
        finally:
            (store / "manifest.json").open("w").close()


async def test_a_full_disk_refuses_a_version_and_takes_nobody_down(client: AsyncClient, deployment: Deployment) -> None:
    (deployment.root / "server-0" / "versions").write_text("a file where the copies should go")
    deployment.publish("v1", seed=1)
    await until_known(client, "v1")
    with pytest.raises(FailedPrecondition, match="cannot be fetched"):
        await client.promote_policy("v1")
    reply = client.chat("hello", max_tokens=2)
    await reply.read()
    assert reply.policy_version == "v0"


async def test_a_refusal_reaches_its_caller_however_many_versions_there_are(deployment: Deployment) -> None:
    rejected = PolicyState.POLICY_STATE_REJECTED
    events = [PolicyEvent(schema_version=1, version=f"v{number}", state=rejected) for number in range(1, 1001)]
    with open_log(deployment.event_log) as log:
        log.append([Record(POLICIES, event.version, event.SerializeToString()) for event in events])
    async with deployment.client() as client:
        with pytest.raises(NotFound, match=r"there is no 'v5000'; there are v991, v992, .*, v1000 … and 991 older$"):
            await client.get_policy("v5000")


async def test_who_rolls_back_where_nothing_else_can_be_loaded_is_told_of_the_newest(
    client: AsyncClient, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.publish("v1", seed=1)
    await until_serving(client, "v1")

    async def announced(service: PolicyService, *_: object, **__: object) -> None:
        """But v1 is still served, as when somebody has promoted it again by now."""
        service._follower.failures.update({f"v{number}": "said at length, " * 100 for number in range(2, 1001)})

    monkeypatch.setattr(PolicyService, "_step", announced)
    with pytest.raises(FailedPrecondition, match=r"nothing else: v991: said .*, v1000: said .* … and 989 older$"):
        await client.rollback_policy("v1")


async def test_a_watch_shows_what_another_log_says_after_as_many_events() -> None:
    def told(version: str) -> Releases:
        releases = Releases()
        releases.apply(PolicyEvent(version=version, state=PolicyState.POLICY_STATE_STABLE), 0)
        return releases

    moved: asyncio.Queue[None] = asyncio.Queue()
    follower = SimpleNamespace(releases=told("v1"), moved=moved.get)
    service = PolicyService(None, follower, None, 1)  # type: ignore[arg-type]
    shown: asyncio.Queue[str] = asyncio.Queue()

    async def write(response: WatchPoliciesResponse) -> None:
        await shown.put(response.policy.version)

    watching = asyncio.create_task(service._watch(SimpleNamespace(write=write)))  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(20):
            assert [await shown.get(), await shown.get()] == ["v0", "v1"]
            follower.releases = told("v2")
            moved.put_nowait(None)
            assert await shown.get() == "v2"
    finally:
        watching.cancel()
