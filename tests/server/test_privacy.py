"""EraseUser: durable when it is answered; and what another deployment signed is refused at the door."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status

from plaudit.events import ERASURES, FEEDBACK, INTERACTIONS, Record, from_beginning, open_log
from plaudit.v1 import privacy_pb2_grpc
from plaudit.v1.events_pb2 import Erasure
from plaudit.v1.privacy_pb2 import EraseUserRequest
from plaudit_client import AsyncClient, Durability, InvalidRequest
from plaudit_learner.experience.intake import Intake
from plaudit_learner.experience.store import Experience
from plaudit_server.receipts import Receipts
from tests.fixtures_server import Deployment
from tests.learner.test_experience import interaction


async def test_an_erasure_is_durable_and_names_nobody(client: AsyncClient, deployment: Deployment) -> None:
    erased = await client.erase_user("ann@example.org", "asked by letter")
    assert erased.durability is Durability.EVENT_LOG
    with open_log(deployment.event_log) as log:
        (entry,) = log.read(from_beginning(log, ERASURES))
    record = Erasure.FromString(entry.value)
    assert entry.key == f"{record.user}/{record.time.ToJsonString()}"
    assert record.user == deployment.pseudonym("ann@example.org")
    assert b"ann" not in entry.value
    assert (record.schema_version, record.actor, record.reason) == (1, "operator", "asked by letter")
    assert record.time.ToDatetime(tzinfo=erased.until.tzinfo) == erased.until


async def test_a_late_erasure_displaces_no_later_one(
    client: AsyncClient, deployment: Deployment, tmp_path: Path
) -> None:
    """The first one comes out of a server's outbox, behind the second; then the topic is compacted."""
    for _ in range(2):
        await client.erase_user("ann")
    with open_log(deployment.event_log) as log:
        first, second = log.read(from_beginning(log, ERASURES))
    told = {entry.key: Record(ERASURES, entry.key, entry.value) for entry in (second, first)}
    one, other = (Erasure.FromString(entry.value) for entry in (first, second))
    between = interaction("r1")
    between.user = deployment.pseudonym("ann")
    between.started_at.FromNanoseconds((one.time.ToNanoseconds() + other.time.ToNanoseconds()) // 2)
    with open_log(f"sqlite:{tmp_path / 'compacted.sqlite'}") as log:
        log.append([*told.values(), Record(INTERACTIONS, "r1", between.SerializeToString())])
        store = Experience(tmp_path / "experience.sqlite")
        intake = Intake(log, store)
        intake.start()
        intake.drain(0)
        assert not store.prompts(10)
        store.close()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (EraseUserRequest(), "user_id"),
        (EraseUserRequest(user_id="x" * 257), "user_id"),
        (EraseUserRequest(user_id="a\x00"), "user_id"),
        (EraseUserRequest(user_id="ann", reason="x" * 1025), "reason"),
    ],
)
async def test_bad_requests_are_refused_by_field(control: str, request_: EraseUserRequest, field: str) -> None:
    async with grpc.aio.insecure_channel(control) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await privacy_pb2_grpc.PrivacyServiceStub(channel).EraseUser(request_)
    details = BadRequest()
    assert rpc_status.from_call(refused.value).details[0].Unpack(details)
    assert [violation.field for violation in details.field_violations] == [field]


async def test_what_another_deployment_signed_never_reaches_the_log(address: str, deployment: Deployment) -> None:
    """A record carries no receipt: whose it is can be told at the door alone, and is."""
    ours = deployment.receipts().issue("r1", "v0", "")
    theirs = Receipts(lambda: [b"of another deployment, 32 bytes long"], 60).issue("r2", "v0", "")
    async with AsyncClient(address) as client:
        with pytest.raises(InvalidRequest, match="not a receipt of this deployment"):
            await client.submit_feedback(theirs, thumb="up")
        with pytest.raises(InvalidRequest, match="not a receipt of this deployment"):
            await client.retract_feedback(theirs)
        with pytest.raises(InvalidRequest, match="not a receipt of this deployment"):
            await client.submit_feedback(ours, preferred_over=theirs)
    with open_log(deployment.event_log) as log:
        assert not log.read(from_beginning(log, FEEDBACK))
