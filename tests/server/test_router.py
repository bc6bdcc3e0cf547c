"""Which version a request gets: its own wish, or the draw, which sticks."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_server.engine import PolicyVersion
from plaudit_server.refusal import Refusal
from plaudit_server.router import Router, draw

CONVERSATIONS = [f"conversation {number}" for number in range(4000)]


def router(share: float, canary: str = "v2") -> Router:
    router = Router(PolicyVersion("v0", None))
    for name in ("v1", canary):
        router.loaded[name] = PolicyVersion(name, Path(name))
    router.serving, router.canary, router.share = router.loaded["v1"], router.loaded[canary], share
    return router


def chosen(router: Router, conversation: str, requested: str = "") -> str:
    with router.pin(requested, conversation) as version:
        return version.name


def on_canary(router: Router) -> set[str]:
    return {conversation for conversation in CONVERSATIONS if chosen(router, conversation) != "v1"}


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_the_canary_gets_its_share(share: float) -> None:
    found = len(on_canary(router(share))) / len(CONVERSATIONS)
    assert abs(found - share) < 4 * (share * (1 - share) / len(CONVERSATIONS)) ** 0.5


def test_a_larger_share_only_adds_conversations() -> None:
    shares = [on_canary(router(share)) for share in (0.0, 0.05, 0.1, 0.5, 1.0)]
    assert shares[0] == set()
    assert shares[-1] == set(CONVERSATIONS)
    assert all(smaller < larger for smaller, larger in pairwise(shares))


@given(st.text(max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_whoever_has_the_canary_keeps_it_at_any_larger_share(conversation: str, one: float, other: float) -> None:
    smaller, larger = sorted((one, other))
    assert chosen(router(smaller), conversation) == "v1" or chosen(router(larger), conversation) == "v2"


def test_the_next_canary_is_tried_by_others() -> None:
    first, second = on_canary(router(0.2)), on_canary(router(0.2, canary="v3"))
    assert abs(len(first & second) / len(first) - 0.2) < 0.06, "independent draws"


def test_the_draw_is_the_same_in_every_process() -> None:
    # Golden: the first 8 bytes of sha256("v2\0ann") over 2^64.
    assert draw("v2", "ann") == pytest.approx(0.7069767627915, abs=1e-12)
    code = "from plaudit_server.router import draw; print(repr(draw('v2', 'ann')))"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(other.stdout) == draw("v2", "ann")


def test_who_asks_for_a_version_gets_it() -> None:
    both = router(1.0)
    assert chosen(both, "ann", "v1") == "v1"
    assert chosen(both, "ann", "v0") == "v0"
    with pytest.raises(Refusal) as refused:
        chosen(both, "ann", "v9")
    assert refused.value.code == grpc.StatusCode.NOT_FOUND


def test_the_canary_is_in_use_until_it_is_withdrawn_and_its_last_stream_has_ended() -> None:
    both = router(1.0)
    with both.pin("", "ann"):
        assert both.unused(keep=set()) == []
        both.canary = None
        assert both.unused(keep=set()) == []
        assert chosen(both, "ann") == "v1"
    assert [version.name for version in both.unused(keep=set())] == ["v2"]
    assert both.unused(keep={"v2"}) == []


def test_what_is_not_offered_ends_its_streams_and_takes_no_new_ones() -> None:
    both = router(1.0)
    both.kept = frozenset({"v2"})
    with both.pin("v2", "ann") as running:
        both.canary, both.kept = None, frozenset()  # rolled back
        with pytest.raises(
            Refusal, match=r"'v2' is not served here; leave it empty, or give one of v0, v1$"
        ) as refused:
            chosen(both, "ann", "v2")
        assert refused.value.code == grpc.StatusCode.NOT_FOUND
        assert running.name == "v2"
        assert both.unused(keep=set()) == []
    assert [version.name for version in both.unused(keep=set())] == ["v2"]
    both.kept = frozenset({"v2"})  # what a roll-back would return to is offered, though it is not in service
    assert chosen(both, "ann", "v2") == "v2"
