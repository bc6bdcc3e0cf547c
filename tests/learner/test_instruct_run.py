"""The command itself: killed and started again, published once, as servers take it; and what it refuses."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from safetensors.torch import load_file, save_file

from plaudit.artifacts import PolicyStore
from plaudit.events import POLICIES, Record, open_log
from plaudit.releases import Releases
from plaudit.settings import parse
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_learner.instruct.__main__ import PROGRAM, expected, run
from plaudit_learner.instruct.config import InstructSettings
from plaudit_learner.instruct.run import fold
from plaudit_learner.instruct.tune import Point, tune
from plaudit_learner.policy import Policy
from plaudit_learner.reward.model import RewardModel
from plaudit_server.adapters import check_adapter, linear_shapes
from plaudit_server.engine import PolicyVersion
from tests.learner.test_instruct_evaluate import reward_model

pytestmark = pytest.mark.timeout(600)  # seconds of work, but it starves on a busy machine

QUICK = ("--learning-rate=3e-3", "--batch-size=4", "--replies=3", "--max-new-tokens=8", "--checkpoint-steps=2")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


class Instruct(Protocol):
    def __call__(self, *arguments: str | Path) -> Outcome: ...


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """30 pairs in English and Chinese, one of them twice."""
    records = [{"instruction": f"Say {index} in capitals.", "output": f"NUMBER {index}"} for index in range(20)]
    records += [{"instruction": f"用中文说{index}", "input": "请", "output": f"好的，{index}"} for index in range(10)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in [*records, records[0]]))
    return path


async def start(tmp_path: Path, model: Path, *arguments: str | Path) -> Process:
    command = [f"--data={tmp_path / 'home'}", f"--model={model}", *map(str, arguments)]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-m", "plaudit_learner.instruct", *command, stdout=PIPE, stderr=PIPE
    )


@pytest.fixture
def instruct(
    tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Instruct:
    """The command, but in this process, which has imported everything already."""
    caplog.set_level(logging.INFO)

    def execute(*arguments: str | Path) -> Outcome:
        command = [f"--data={tmp_path / 'home'}", f"--model={tiny_model}", *map(str, arguments)]
        caplog.clear()
        told = ""
        try:
            code = run(parse(InstructSettings, PROGRAM, command))
        except SystemExit as ended:
            code = int(ended.code or 0)
        except expected() as error:
            code, told = 1, f"{error}\n"
        out, err = capfd.readouterr()
        return Outcome(code, out, caplog.text + err + told)

    return execute


def of_another_release(model: RewardModel, directory: Path) -> None:
    """A saved reward model whose tensors have other names."""
    model.save(directory)
    file = directory / "reward_model.safetensors"
    save_file({f"old_{name}": values for name, values in load_file(file).items()}, file)


def releases(tmp_path: Path) -> Releases:
    with open_log(f"sqlite:{tmp_path / 'home' / 'events.sqlite'}") as log:
        return fold(log)


async def test_killed_started_again_published_once(
    tmp_path: Path, data: Path, tiny_model: Path, tiny_model_sha256: str, instruct: Instruct
) -> None:
    process = await start(tmp_path, tiny_model, data, *QUICK, "--epochs=12")
    assert process.stderr is not None
    async with asyncio.timeout(400):
        while "tuning: " not in (line := (await process.stderr.readline()).decode()):
            assert line, "it ended before it tuned"
    process.kill()
    await process.communicate()
    assert releases(tmp_path).empty

    process = await start(tmp_path, tiny_model, data, *QUICK, "--epochs=12")
    out, err = await process.communicate()
    again = Outcome(process.returncode or 0, out.decode(), err.decode())
    assert again.code == 0, again.err
    assert "continued from update" in again.err
    assert "evaluating before" not in again.err, "what was done is not done again"
    assert "data       31 records, 31 examples" in again.out
    assert "1 duplicate" in again.out

    found = releases(tmp_path)
    event = found.event("v1")
    assert event is not None
    assert (found.stable, event.actor, event.parent, event.reference) == ("v1", "operator", "v0", "v1")
    assert event.reason.startswith("instruction tuning: held-out loss ")
    assert event.metrics["held_out_loss"] < event.metrics["held_out_loss_before"]

    # As a server takes it: fetched by its hashes, checked against the base model.
    store = PolicyStore(str(tmp_path / "home" / "versions"))
    adapter, manifest = store.fetch(
        "v1", tmp_path / "copy", base_model_sha256=tiny_model_sha256, manifest_sha256=event.manifest_sha256
    )
    check_adapter(PolicyVersion("v1", adapter), linear_shapes(tiny_model), max_rank=16)
    assert manifest.created_by.startswith("plaudit-instruct, run ")

    (kept,) = (path.parent for path in (tmp_path / "home" / "instruct").glob("*/report.html"))
    report = json.loads((kept / "report.json").read_text())
    assert report["verdict"]["passed"] is True
    assert report["data"]["languages"].keys() >= {"en", "zh"}
    assert len(report["samples"]) == 3
    page = (kept / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "v1 is stable: instruction tuning" in page
    assert not (kept / "checkpoints").exists()

    (kept / "report.html").unlink()  # as if killed between its publication and its report
    third = instruct(data, *QUICK, "--epochs=12")
    assert third.code == 0
    assert "this run was done before" in third.out
    assert "tuning" not in third.err
    assert (kept / "report.html").read_text() == page
    assert releases(tmp_path).versions() == ["v0", "v1"]

    other = instruct(data, *QUICK, "--epochs=2")
    assert other.code == 1
    assert "v1 is what the servers serve: give --start v1" in other.err
    of_another_release(reward_model(Policy.load(tiny_model)), tmp_path / "home" / "learner" / "reward-models" / "3")
    further = instruct(data, *QUICK, "--epochs=2", "--start=v1", "--learning-rate=1e-12")
    assert further.code == 1, "nothing was learnt"
    event = releases(tmp_path).event("v2")
    assert event is not None
    assert (event.state, event.parent) == (PolicyState.POLICY_STATE_REJECTED, "v1")
    assert event.reason.startswith("instruction tuning: the held-out loss did not surely fall")
    assert "v2 is rejected: instruction tuning: the held-out loss did not surely fall" in further.out
    assert re.search(r"^win rate   none: .* is not a reward model of this version", further.out, re.MULTILINE)
    assert store.versions() == ["v1"]


def test_one_reply_makes_a_version_that_servers_can_load(
    tmp_path: Path,
    data: Path,
    tiny_model: Path,
    tiny_model_sha256: str,
    instruct: Instruct,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One reply has no standard error: it is left out, not written as what no manifest may hold.

    What judges it is deleted meanwhile, as a learner that has finished its round does.
    """
    judge = reward_model(Policy.load(tiny_model))
    judge.save(tmp_path / "judge")

    def deleting(*arguments: Any) -> list[Point]:
        shutil.rmtree(tmp_path / "judge")
        return tune(*arguments)

    monkeypatch.setattr("plaudit_learner.instruct.run.tune", deleting)
    outcome = instruct(data, *QUICK, "--replies=1", "--epochs=6", f"--reward-model={tmp_path / 'judge'}")
    assert outcome.code == 0, outcome.err
    assert releases(tmp_path).stable == "v1"
    store = PolicyStore(str(tmp_path / "home" / "versions"))
    _, manifest = store.fetch("v1", tmp_path / "copy", base_model_sha256=tiny_model_sha256)
    assert {"rouge_l", "win_rate"} <= set(manifest.metrics)
    assert "win rate by the reward model" in outcome.out
    assert manifest.metrics["reward_model_discrimination"] == pytest.approx(judge.metrics.discrimination)
    told = f"tells good from bad at {judge.metrics.discrimination:.2f}"
    assert told in re.sub(" +", " ", outcome.out)
    assert "nan" not in outcome.out
    (kept,) = (path.parent for path in (tmp_path / "home" / "instruct").glob("*/report.html"))
    page = (kept / "report.html").read_text()
    assert "nan" not in page
    assert told in page
    assert "NaN" not in (kept / "report.json").read_text()


def test_tags_are_judged_as_served(tmp_path: Path, data: Path, tiny_model: Path, instruct: Instruct) -> None:
    reward_model(Policy.load(tiny_model)).save(tmp_path / "judge")
    outcome = instruct(data, *QUICK, "--annotate=tags", "--no-publish", f"--reward-model={tmp_path / 'judge'}")
    assert "held-out loss as served" in outcome.out, outcome.err
    assert "win rate   none: the reward model was fitted to prompts as servers make them" in outcome.out
    assert "not published, as asked" in outcome.out
    assert releases(tmp_path).empty
    (kept,) = (tmp_path / "home" / "instruct").glob("*/report.json")
    report = json.loads(kept.read_text())
    tagged, _, served, _ = report["comparison"]
    assert tagged["after"] < tagged["before"]
    assert served["before"] != tagged["before"]
    assert report["metrics"]["held_out_loss_change"] == pytest.approx(served["change"])


async def test_stopped_by_a_signal(tmp_path: Path, data: Path, tiny_model: Path) -> None:
    process = await start(tmp_path, tiny_model, data, *QUICK)
    assert process.stdout is not None
    async with asyncio.timeout(400):
        while not (await process.stdout.readline()).startswith(b"run "):
            pass
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert err.decode().splitlines()[-1] == "plaudit instruct: stopped; the same command continues from here"
    assert b"Traceback" not in err


def test_what_cannot_be_used_is_named(tmp_path: Path, data: Path, instruct: Instruct) -> None:
    with data.open("a") as stream:
        stream.write('{"instruction": "a"}\n{"instruction": "b", "output": "c<|im_end|>"}\n')
    outcome = instruct(data, *QUICK, "--check-only")
    assert outcome.code == 1
    assert f"{data}, line 32: no output is there" in outcome.err
    assert f"{data}, line 33: the text holds <|im_end|>, which only the annotation may use" in outcome.err
    outcome = instruct(data, *QUICK, "--check-only", "--skip-bad")
    assert outcome.code == 0, outcome.err
    assert "2 bad" in outcome.out
    data.write_text(data.read_text() + '{"instruction": "d", "output": ""}\n' * 13)
    outcome = instruct(data, *QUICK, "--check-only", "--skip-bad")
    assert outcome.out.splitlines()[-2:] == [f"           {data}, line 41: output is empty", "           and 6 more"]
    assert re.search(r"^openings   .*say \d+ 1", outcome.out, re.MULTILINE)
    assert re.search(r"^prompts    min \d+, 5 % \d+, median \d+, 95 % \d+, max \d+ tokens$", outcome.out, re.MULTILINE)
    assert "tokens; to prompts with several: 0" in outcome.out
    assert re.search(r"held out and like one trained on: \d+ of \d+$", outcome.out, re.MULTILINE)
    assert not (tmp_path / "home").exists(), "looking at data leaves nothing behind"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--epochs=0",), 2, "--epochs: Input should be greater than or equal to 1"),
        (("--start=latest",), 2, "--start: Value error, 'latest' is no name of a version"),
        (("--max-length=16",), 1, "are too few: at least 1 and 2 are needed"),
        (("--reward-model=nowhere",), 1, "--reward-model nowhere: holds no reward_model.json"),
        (("--start=v7",), 1, "version v7: no manifest.json"),
        (("--event-log=nonsense",), 1, "event log 'nonsense': give sqlite:PATH or kafka:"),
        (("--model=nowhere",), 1, "model 'nowhere': give 'smollm2', or a directory"),
    ],
)
def test_it_says_what_is_wrong(
    data: Path, instruct: Instruct, arguments: tuple[str, ...], code: int, message: str
) -> None:
    outcome = instruct(data, *QUICK, *arguments)
    assert outcome.code == code
    assert message in outcome.err


def test_a_deployment_on_kafka_gets_no_log_of_its_own(tmp_path: Path, data: Path, instruct: Instruct) -> None:
    (tmp_path / "home" / "learner").mkdir(parents=True)
    outcome = instruct(data, *QUICK)
    assert outcome.code == 1
    assert "its programs use Kafka; give --event-log" in outcome.err


def test_the_fold_passes_over_what_is_no_policy_event(tmp_path: Path) -> None:
    with open_log(f"sqlite:{tmp_path / 'events.sqlite'}") as log:
        event = PolicyEvent(schema_version=1, version="v3", state=PolicyState.POLICY_STATE_STABLE)
        log.append([Record(POLICIES, "x", b"\xff"), Record(POLICIES, "v3", event.SerializeToString())])
        assert fold(log).stable == "v3"
