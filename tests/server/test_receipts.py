"""Receipts: signed, bound to a deployment, with an end."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_server.receipts import Receipts
from plaudit_server.refusal import Refusal

KEY = b"k" * 32


def test_says_what_was_issued() -> None:
    receipts = Receipts(KEY, lifetime=10, clock=lambda: 1000.0)
    read = receipts.read(receipts.issue("r1", "v3", "someone"), "receipt")
    assert (read.response_id, read.policy_version, read.user, read.expires_at) == ("r1", "v3", "someone", 1010)


def test_expires() -> None:
    now = 1000.0
    receipts = Receipts(KEY, lifetime=10, clock=lambda: now)
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
        Receipts(b"x" * 32, 10).read(Receipts(KEY, 10).issue("r1", "v1", ""), "receipt")


@given(st.data())
def test_any_change_is_refused(data: st.DataObject) -> None:
    receipts = Receipts(KEY, lifetime=10)
    receipt = receipts.issue("0123456789abcdef", "v1", "u" * 32)
    position = data.draw(st.integers(0, len(receipt) - 1))
    other = data.draw(st.characters().filter(lambda character: character != receipt[position]))
    with pytest.raises(Refusal) as refused:
        receipts.read(receipt[:position] + other + receipt[position + 1 :], "receipt")
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT


@given(st.text())
def test_anything_else_is_refused_in_words(text: str) -> None:
    with pytest.raises(Refusal) as refused:
        Receipts(KEY, 10).read(text, "receipt")
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT


def test_pseudonyms_are_stable_and_keyed() -> None:
    receipts = Receipts(KEY, 10)
    assert receipts.pseudonym("ann") == receipts.pseudonym("ann") != receipts.pseudonym("bob")
    assert receipts.pseudonym("ann") != Receipts(b"x" * 32, 10).pseudonym("ann")
    assert receipts.pseudonym("") == ""


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least 32"):
        Receipts(b"short", 10)
