"""Several processes: the same curve as one, and the same weights though one of them is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plaudit_learner.ranks import ALONE, evenly
from tests.learner import improve_in_ranks

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
SLOW = pytest.mark.timeout(600)  # seconds of work, but each process starts anew, and starves on a busy machine


def torchrun(processes: int, *command: str, restarts: int = 0) -> str:
    """Runs to its end, and says what was printed."""
    done = subprocess.run(
        [*TORCHRUN, f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "-m", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def improved(model: Path, result: Path, processes: int, *options: str, restarts: int = 0) -> dict[str, Any]:
    torchrun(processes, improve_in_ranks.__name__, str(model), str(result), *options, restarts=restarts)
    found: dict[str, Any] = torch.load(result, weights_only=True)
    return found


@pytest.fixture(scope="module")
def two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes make of it, undisturbed."""
    return improved(tiny_model, tmp_path_factory.mktemp("two") / "result.pt", 2)


@SLOW
def test_two_processes_have_the_curve_of_one(tmp_path: Path, tiny_model: Path, two: dict[str, Any]) -> None:
    """Float32: up to the order in which gradients are summed."""
    one = improved(tiny_model, tmp_path / "result.pt", 1)
    assert len(one["iterations"]) == len(two["iterations"]) == improve_in_ranks.SETTINGS.iterations
    for ours, theirs in zip(two["iterations"], one["iterations"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    for ours_W, theirs_W in zip(two["weights"][0], one["weights"][0], strict=True):
        torch.testing.assert_close(ours_W, theirs_W, rtol=1e-3, atol=1e-4)


@SLOW
def test_all_ranks_have_the_same_weights(two: dict[str, Any]) -> None:
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*two["weights"].values(), strict=True))


@SLOW
def test_a_rank_that_is_killed_changes_no_bit_of_the_end(tmp_path: Path, tiny_model: Path, two: dict[str, Any]) -> None:
    found = improved(tiny_model, tmp_path / "result.pt", 2, "--die-in=2", restarts=1)
    assert found["iterations"] == two["iterations"]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found["weights"][0], two["weights"][0], strict=True))


def test_alone_it_has_everything() -> None:
    assert ALONE.mine([1, 2, 3]) == [1, 2, 3]
    assert ALONE.union({2: "b", 1: "a"}) == {1: "a", 2: "b"}
    assert ALONE.told(7) == 7


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 9))
def test_batches_are_even_and_leave_nothing_out(count: int, at_most: int, of: int) -> None:
    batches = evenly(range(count), at_most, of)
    assert [row for batch in batches for row in batch] == list(range(count))
    assert all(0 < len(batch) <= at_most for batch in batches)
    if batches:
        assert max(map(len, batches)) - min(map(len, batches)) <= 1
    assert len(batches) % of == 0 or all(len(batch) == 1 for batch in batches), "more ranks than rows to give them"
