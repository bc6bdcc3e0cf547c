"""python -m plaudit_learner.instruct, which `plaudit instruct` starts: settings, data, run, publication, report."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from plaudit import base_model
from plaudit.lifecycle import Occupied, log_to_stderr, on_stop, only_one
from plaudit.settings import parse
from plaudit_learner.instruct.config import InstructSettings
from plaudit_learner.instruct.data import DataError
from plaudit_learner.reward.evaluate import newest

if TYPE_CHECKING:
    from plaudit.releases import Releases
    from plaudit_learner.instruct.annotate import Annotator
    from plaudit_learner.instruct.check import DataReport, Prepared
    from plaudit_learner.instruct.data import Source
    from plaudit_learner.instruct.run import Outcome
    from plaudit_learner.reward.model import RewardModel

PROGRAM = "plaudit instruct"
_SHOWN = 10


class Stopped(BaseException):
    """Raised where the main thread stands when asked to stop; the next start continues."""


class Refused(Exception):
    """The run cannot begin; the message says why, and what to do."""


def expected() -> tuple[type[Exception], ...]:
    """Failures of which a person is told in one line; some of them are known only after the settings are parsed."""
    from plaudit.artifacts import ArtifactError
    from plaudit.events import EventLogUnavailable

    of_the_run = (DataError, Refused, Occupied, base_model.ModelNotFound, ArtifactError, EventLogUnavailable)
    return *of_the_run, OSError, ValueError


def main() -> int:
    """The command; returns its exit status: 0, 1 (it failed, or the result was refused), 2 (wrong usage), 130."""
    settings = parse(InstructSettings, PROGRAM)
    log_to_stderr("plaudit-instruct")
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        on_stop(_stop, exit_with_parent=False)
        known = expected()
        return run(settings)
    except Stopped:
        print(f"{PROGRAM}: stopped; the same command continues from here", file=sys.stderr)
        return 130
    except known as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1


def _stop() -> None:
    raise Stopped


def run(settings: InstructSettings) -> int:
    """All of it; returns the exit status. Raises what main() lists."""
    from plaudit_learner.instruct import data
    from plaudit_learner.instruct.annotate import Annotator
    from plaudit_learner.instruct.check import prepare

    _hush()
    source = data.read(settings.files)
    model = base_model.resolve(settings.model, settings.model_cache.expanduser())
    annotator = Annotator(model, settings.annotate)
    prepared, report = prepare(
        source,
        annotator,
        held_out=settings.held_out,
        max_length=settings.max_length,
        max_examples=settings.max_examples,
        max_held_out=settings.max_held_out,
    )
    _say_data(report)
    _refuse_bad(source, settings)
    if settings.check_only:
        return 0
    if not prepared.train or len(prepared.held_out) < 2:
        raise Refused(
            f"{report.train} examples to train on and {report.held_out} held out are too few: at least 1 and 2 are "
            "needed, of different instructions"
        )
    with only_one(settings.home):
        return _work(settings, prepared, report, model, annotator)


def _work(settings: InstructSettings, prepared: Prepared, report: DataReport, model: Path, annotator: Annotator) -> int:
    from plaudit.artifacts import PolicyStore
    from plaudit.events import open_log
    from plaudit.releases import BASE
    from plaudit_learner.instruct.report import content, write
    from plaudit_learner.instruct.run import Run, fold

    fingerprint = base_model.fingerprint(model)
    policies = PolicyStore(settings.policy_store or str(settings.data / "versions"))
    with open_log(_event_log(settings)) as event_log:
        releases = fold(event_log)
        run = Run(
            settings,
            prepared,
            model=model,
            base_model_sha256=fingerprint,
            start=settings.start or BASE,
        )
        print(f"run        {run.name}, in {run.directory}")
        version = run.published(releases, policies) if settings.publish else None
        if version is not None:
            print(f"{_standing(version, releases)}; this run was done before")
            if not run.to_be_reported:
                return _status(version, releases)
        elif settings.start is None and releases.stable != BASE:
            raise Refused(
                f"{releases.stable} is what the servers serve: give --start {releases.stable} to go on from it, or "
                f"--start {BASE} to begin from the base model and leave what it learnt behind"
            )
        outcome = run.work(policies, _reward_model(settings, annotator))
        _say_scores(outcome)
        if version is None and settings.publish:
            version = run.publish(outcome, event_log, policies).version
            releases = fold(event_log)
    said = "not published, as asked" if version is None else _standing(version, releases)
    print(said)
    report_file = write(
        run.directory,
        content(
            run=run.name,
            outcome=said,
            model=model.name,
            base_model_sha256=fingerprint,
            settings=settings.model_dump(mode="json"),
            prepared=prepared,
            data=report,
            before=outcome.before,
            after=outcome.after,
            verdict=outcome.verdict,
            curves=outcome.curves,
        ),
    )
    print(f"report     {report_file}")
    return _status(version, releases) if version else int(not outcome.verdict.passed)


def _standing(version: str, releases: Releases) -> str:
    """Where a version stands, in words."""
    from plaudit.releases import word

    policy = releases.policy(version)
    assert policy is not None
    return f"{version} is {word(policy.state)}: {policy.reason}"


def _status(version: str, releases: Releases) -> int:
    """The exit status: 1 if it was refused."""
    from plaudit.v1.policy_pb2 import PolicyState

    policy = releases.policy(version)
    return int(policy is None or policy.state == PolicyState.POLICY_STATE_REJECTED)


def _event_log(settings: InstructSettings) -> str:
    if settings.event_log is not None:
        return settings.event_log
    file = settings.data / "events.sqlite"
    if not file.exists() and (settings.data / "learner").exists():
        raise Refused(
            f"{settings.data} has no events.sqlite: its programs use Kafka; give --event-log kafka://HOST:PORT "
            "(`plaudit up` prints which)"
        )
    settings.data.mkdir(parents=True, exist_ok=True)
    return f"sqlite:{file}"


def _reward_model(settings: InstructSettings, annotator: Annotator) -> RewardModel | None:
    """The one that was given, else the learner's newest; None if there is none, or if it cannot judge such replies."""
    from plaudit_learner.reward.model import RewardModel

    given = settings.reward_model
    if given is not None and not (given / "reward_model.json").exists():
        raise Refused(f"--reward-model {given}: holds no reward_model.json")
    found = given or newest(settings.data / "learner")
    if found is None:
        return None
    if not annotator.as_served:
        print("win rate   none: the reward model was fitted to prompts as servers make them, not to tagged ones")
        return None
    try:
        return RewardModel.load(found)
    except ValueError as error:
        if given is not None:
            raise
        print(f"win rate   none: {error}; the learner's next round fits one")
        return None


def _refuse_bad(source: Source, settings: InstructSettings) -> None:
    if not source.bad or settings.skip_bad:
        return
    shown = "\n".join(f"  {line}" for line in _some(source.bad))
    raise Refused(f"these cannot be used; correct them, or leave them out with --skip-bad:\n{shown}")


def _say_data(report: DataReport) -> None:
    left_out = ", ".join(f"{count} {reason}" for reason, count in report.left_out.items())
    print(f"data       {report.records} records, {report.examples} examples: {report.train} to train on, ", end="")
    print(f"{report.held_out} held out" + (f"; left out: {left_out}" if left_out else ""))
    print(f"languages  {_counts(report.languages)}")
    print(f"prompts    {_counts(report.prompt_tokens)} tokens")
    print(f"outputs    {_counts(report.output_tokens)} tokens; to prompts with several: {report.several_outputs}")
    print(f"openings   {_counts(report.openings)}")
    print(
        f"diversity  different words {report.diversity['words']:.0%}, pairs of words "
        f"{report.diversity['pairs of words']:.0%}, openings {report.diversity['openings']:.0%}; near duplicates "
        f"{report.near_duplicates} of {report.compared}; held out and like one trained on: "
        f"{report.leaks} of {report.held_out}"
    )
    for line in _some(report.findings):
        print(f"           {line}")


def _counts(named: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.0f}" for name, value in named.items())


def _some(findings: list[str]) -> list[str]:
    """The first of them, and how many more there are."""
    more = len(findings) - _SHOWN
    return findings if more <= 0 else [*findings[:_SHOWN], f"and {more} more"]


def _say_scores(outcome: Outcome) -> None:
    from plaudit_learner.instruct.report import comparison
    from plaudit_learner.rounds import LEAST_AUC

    for row in comparison(outcome.before, outcome.after):
        error = "" if row["error"] is None else f" ± {row['error']:.3f}"
        print(f"{row['name']:32} {row['before']:.3f} → {row['after']:.3f}  ({row['change']:+.3f}{error})")
    metrics = outcome.verdict.metrics
    if "win_rate" in metrics:
        error = f" ± {metrics['win_rate_error']:.2f}" if "win_rate_error" in metrics else ""
        print(f"{'win rate by the reward model':32} {metrics['win_rate']:.2f}{error}")
        if "reward_model_discrimination" in metrics:
            known = f"{metrics['reward_model_discrimination']:.2f} (a guess: 0.50; the learner asks for {LEAST_AUC})"
            print(f"{'  which tells good from bad at':32} {known}")


def _hush() -> None:
    """Libraries' own bars and advice; errors are raised."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
