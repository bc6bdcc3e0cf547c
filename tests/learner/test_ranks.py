"""Several processes: the same curve as one, and the same weights though one of them is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plaudit.artifacts import PolicyStore
from plaudit.events import open_log
from plaudit_learner.experience.store import Experience
from plaudit_learner.instruct.run import fold
from plaudit_learner.policy import Policy
from plaudit_learner.ranks import ALONE, evenly
from tests.learner import improve_in_ranks
from tests.learner.test_rounds import OPTIONS, vote

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


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


@pytest.mark.slow
@pytest.mark.timeout(600)  # seconds of work, but every process starts anew, and starves on a busy machine
def test_two_processes_have_the_curve_of_one(tmp_path: Path, tiny_model: Path, two: dict[str, Any]) -> None:
    """Float32: up to the order in which gradients are summed."""
    one = improved(tiny_model, tmp_path / "result.pt", 1)
    assert len(one["iterations"]) == len(two["iterations"]) == improve_in_ranks.SETTINGS.iterations
    for ours, theirs in zip(two["iterations"], one["iterations"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    for ours_W, theirs_W in zip(two["weights"][0], one["weights"][0], strict=True):
        torch.testing.assert_close(ours_W, theirs_W, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_ranks_have_the_same_weights(two: dict[str, Any]) -> None:
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*two["weights"].values(), strict=True))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_rank_that_is_killed_changes_no_bit_of_the_end(tmp_path: Path, tiny_model: Path, two: dict[str, Any]) -> None:
    found = improved(tiny_model, tmp_path / "result.pt", 2, "--die-in=2", restarts=1)
    assert found["iterations"] == two["iterations"]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found["weights"][0], two["weights"][0], strict=True))


class Learner:
    """plaudit-learner itself, as two ranks, with votes enough for a round; its output is followed."""

    def __init__(self, home: Path, model: Path) -> None:
        store = Experience(home / "learner" / "experience.sqlite")
        vote(store, Policy.load(model), 0, 60)
        store.close()
        options = {
            "model": model,
            "event-log": f"sqlite:{home / 'events.sqlite'}",
            "policy-store": home / "versions",
            "state-dir": home / "learner",
            **{name.replace("_", "-"): value for name, value in OPTIONS.items()},
        }
        self._process = subprocess.Popen(
            [*TORCHRUN, "--nproc-per-node=2", "--max-restarts=1", "-m", "plaudit_learner.app"]
            + [f"--{name}={value}" for name, value in options.items()],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""

    def until(self, words: str) -> re.Match[str]:
        """Reads on, up to a line in which the pattern is found."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said += line
            if found := re.search(words, line):
                return found
        raise AssertionError(f"it ended before it said {words!r}: {self.said}")

    def stop(self) -> None:
        """As Ctrl-C or a service manager stops it: torchrun passes it on."""
        self._process.terminate()
        rest, _ = self._process.communicate(timeout=120)
        self.said += rest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_learner_that_loses_a_rank_publishes_the_same_version(tmp_path: Path, tiny_model: Path) -> None:
    published = []
    for name in ("whole", "cut"):
        learner = Learner(tmp_path / name, tiny_model)
        try:
            rank_1 = int(learner.until(r"\[1\]: rank 1 of 2, process (\d+): takes part")[1])
            learner.until(r"\[0\]: update 1 of 2")
            if name == "cut":
                os.kill(rank_1, signal.SIGKILL)
                learner.until(r"\[0\]: round 1 goes on where it was cut off")
            learner.until(r"\[0\]: round 1: v1 is")
        finally:
            learner.stop()
        # Whatever the gate says of it, the weights were trained to the end.
        store = PolicyStore(str(tmp_path / name / "versions"))
        with closing(open_log(f"sqlite:{tmp_path / name / 'events.sqlite'}")) as log:
            event = fold(log).event("v1")
        assert event is not None
        files = store.manifest("v1")[0].files if "v1" in store.versions() else None
        published.append((event.state, event.reason, {**event.metrics, "minutes": 0}, files))
    assert published[0] == published[1]


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
