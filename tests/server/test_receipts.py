"""Receipts: signed, bound to a deployment, with an end; their keys are rotated."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.events import FEEDBACK, from_beginning, open_log
from plaudit.v1.events_pb2 import Feedback
from plaudit_client import InvalidRequest, Reply
from plaudit_server.receipts import Receipts, signing_keys
from plaudit_server.refusal import Refusal
from tests.fixtures_server import Deployment

KEY = b"k" * 32


def test_says_what_was_issued() -> None:
    receipts = Receipts(lambda: [KEY], lifetime=10, clock=lambda: 1000.0)
    read = receipts.read(receipts.issue("r1", "v3", "someone"), "receipt")
    assert (read.response_id, read.policy_version, read.user, read.expires_at) == ("r1", "v3", "someone", 1010)


def test_expires() -> None:
    now = 1000.0
    receipts = Receipts(lambda: [KEY], lifetime=10, clock=lambda: now)
    receipt = receipts.issue("r1", "v3", "")
    now = 1010.0
    receipts.read(receipt, "receipt")
    now = 1011.0
    with pytest.raises(Refusal, match="has expired") as refused:
        receipts.read(receipt, "receipt")
    assert refused.value.code == grpc.StatusCode.FAILED_PRECONDITION
    assert refused.value.field == "receipt"


def test_another_deployments_receipt_is_refused() -> None:
    with pytest.raises(Refusal, match="not a receipt of this deployment"):
        Receipts(lambda: [b"x" * 32], 10).read(Receipts(lambda: [KEY], 10).issue("r1", "v1", ""), "receipt")


@given(st.data())
def test_any_change_is_refused(data: st.DataObject) -> None:
    receipts = Receipts(lambda: [KEY], lifetime=10)
    receipt = receipts.issue("0123456789abcdef", "v1", "u" * 32)
    position = data.draw(st.integers(0, len(receipt) - 1))
    other = data.draw(st.characters().filter(lambda character: character != receipt[position]))
    with pytest.raises(Refusal) as refused:
        receipts.read(receipt[:position] + other + receipt[position + 1 :], "receipt")
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT


@given(st.text())
def test_anything_else_is_refused_in_words(text: str) -> None:
    with pytest.raises(Refusal) as refused:
        Receipts(lambda: [KEY], 10).read(text, "receipt")
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT


def test_the_last_key_signs_and_the_others_are_accepted_while_they_stand(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "2026-11").write_bytes(KEY)
    (keys / ".hidden").write_bytes(b"short")
    receipts = Receipts(lambda: signing_keys(keys), 60)
    old = receipts.issue("r1", "v1", "")
    assert Receipts(lambda: signing_keys(keys / "2026-11"), 60).read(old, "receipt"), "one file is a directory of one"
    (keys / "2026-12").write_bytes(b"n" * 32)
    new = receipts.issue("r2", "v1", "")
    assert [receipts.read(receipt, "receipt").response_id for receipt in (old, new)] == ["r1", "r2"]
    (keys / "2026-11").unlink()
    assert receipts.read(new, "receipt").response_id == "r2"
    with pytest.raises(Refusal, match="not a receipt of this deployment"):
        receipts.read(old, "receipt")


def test_keys_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no key file"):
        signing_keys(tmp_path)
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(ValueError, match="has 5 bytes; it needs at least 32"):
        signing_keys(tmp_path)


async def test_keys_rotate_under_a_running_server_and_users_stay_who_they_are(deployment: Deployment) -> None:
    keys = deployment.root / "keys"
    keys.mkdir()
    (deployment.root / "receipt.key").rename(keys / "1")
    async with deployment.client(receipt_keys=keys) as client:

        async def chat() -> Reply:
            reply = client.chat("hello", max_tokens=2, user_id="ann")
            await reply.read()
            return reply

        before = await chat()
        await before.thumbs_up()
        (keys / "2").write_bytes(b"n" * 32)
        newest = Receipts(lambda: signing_keys(keys / "2"), 60)
        async with asyncio.timeout(20):
            while not is_signed_by(newest, (after := await chat()).receipt):
                await asyncio.sleep(0.05)
        await before.thumbs_down()
        await after.thumbs_up()
        (keys / "1").unlink()

        async def vote_until_refused() -> None:
            async with asyncio.timeout(20):
                while True:
                    await before.thumbs_up()
                    await asyncio.sleep(0.05)

        with pytest.raises(InvalidRequest, match="not a receipt of this deployment"):
            await vote_until_refused()
        await after.thumbs_down()
    with open_log(deployment.event_log) as log:
        votes = [Feedback.FromString(entry.value) for entry in log.read(from_beginning(log, FEEDBACK))]
    assert {vote.response_id for vote in votes} == {before.response_id, after.response_id}
    assert {vote.user for vote in votes} == {deployment.pseudonym("ann")}


def is_signed_by(receipts: Receipts, receipt: str) -> bool:
    try:
        return bool(receipts.read(receipt, "receipt"))
    except Refusal:
        return False
