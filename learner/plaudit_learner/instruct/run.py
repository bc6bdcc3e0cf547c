"""One run, from prepared examples to a published version; what each step made is kept in the run's directory.

    <state>/<run>/before-….json          scores of the version that is begun from
                  checkpoints/           the trainer's
                  adapter/, curves.json  the tuned weights: there once they are whole
                  after-….json           their scores
                  report.html, report.json

A run is named by a hash of all that decides its outcome. Policy event and manifest name the run, and a version without
an event is none: whatever is killed when, a run is published once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save as safetensors

from plaudit.artifacts import PolicyStore
from plaudit.events import POLICIES, EventLog, Record, from_beginning
from plaudit.releases import BASE, Releases
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit_learner.gate.judge import Verdict
from plaudit_learner.instruct.annotate import Annotator
from plaudit_learner.instruct.check import Prepared
from plaudit_learner.instruct.config import InstructSettings
from plaudit_learner.instruct.evaluate import Scores, evaluate, judge
from plaudit_learner.instruct.progress import stage
from plaudit_learner.instruct.tune import Point, TuneSettings, steps, tune
from plaudit_learner.policy import AdapterConfig, Policy
from plaudit_learner.release import Publisher
from plaudit_learner.reward.model import RewardModel

log = logging.getLogger(__name__)

_REVISION = 1  # of what a run does; another one makes other runs of the same settings
_DECIDE = ("annotate", "epochs", "batch_size", "learning_rate", "lora_rank", "lora_layers", "seed")
_JUDGE = ("replies", "max_new_tokens", "temperature")


@dataclass(frozen=True)
class Outcome:
    """What a run found."""

    before: Scores
    after: Scores
    verdict: Verdict
    curves: list[Point]


class Run:
    """One set of examples, settings and version to begin from."""

    def __init__(
        self,
        settings: InstructSettings,
        prepared: Prepared,
        *,
        model: Path,
        base_model_sha256: str,
        start: str,
    ) -> None:
        self._settings = settings
        self._prepared = prepared
        self._model = model
        self._base_model_sha256 = base_model_sha256
        self._start = start
        self.name = self._named()
        self.directory = settings.home / self.name

    def published(self, releases: Releases, policies: PolicyStore) -> str | None:
        """The version as which this run was published, or refused, before. Raises ArtifactError.

        Refusals are told by the event; of what was published an operator may have changed the reason, but not the
        manifest.
        """
        stored = policies.versions()
        for version in releases.versions():
            event = releases.event(version)
            if event is not None and (
                self._mark in event.reason
                or (version in stored and self._mark in policies.manifest(version)[0].created_by)
            ):
                return version
        return None

    @property
    def to_be_reported(self) -> bool:
        """Whether it was killed between its publication and its report."""
        return (self.directory / "adapter").exists() and not (self.directory / "report.html").exists()

    def work(self, policies: PolicyStore, reward_model: RewardModel | None) -> Outcome:
        """Evaluate, tune, evaluate, judge; what was done before is not done again.

        reward_model: judges the replies; in memory, since the learner overwrites and deletes its own meanwhile.

        Raises ArtifactError if the version to begin from cannot be had, ValueError if the reward model does not fit.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        adapter = self._adapter(self._start, policies)
        before = self._scores("before", adapter, policies, reward_model)
        curves = self._tuned(adapter)
        after = self._scores("after", self.directory / "adapter", policies, reward_model)
        return Outcome(before, after, judge(before, after), curves)

    def publish(self, outcome: Outcome, event_log: EventLog, policies: PolicyStore) -> PolicyEvent:
        """Announce the version: stable, or rejected with the reason. Raises ArtifactError or EventLogUnavailable."""
        verdict = outcome.verdict
        change = f"held-out loss {outcome.before.loss:.3f} → {outcome.after.loss:.3f}"
        checks = [
            replace(check, reason=f"instruction tuning: {check.reason} ({self._mark})") for check in verdict.checks
        ]

        def announce(event: PolicyEvent) -> None:
            event_log.append([Record(POLICIES, event.version, event.SerializeToString())])

        return Publisher(policies, announce, self._base_model_sha256).publish(
            self._load(self.directory / "adapter"),
            Verdict(checks, verdict.metrics),
            fold(event_log),
            parent=self._start,
            reference=None,
            window={"examples": len(self._prepared.train), "held_out_examples": len(self._prepared.held_out)},
            metrics=verdict.metrics,
            actor="operator",
            created_by=f"plaudit-instruct, {self._mark}",
            reason=f"instruction tuning: {change} on {len(outcome.before.nats)} examples ({self._mark})",
        )

    @property
    def _mark(self) -> str:
        return f"run {self.name}"

    def _named(self) -> str:
        settings = self._settings.model_dump(mode="json", include=set(_DECIDE))
        items = [[each.item for each in part] for part in (self._prepared.train, self._prepared.held_out)]
        decided = [_REVISION, self._base_model_sha256, self._start, sorted(settings.items()), items]
        return hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:12]

    def _adapter(self, version: str, policies: PolicyStore) -> Path | None:
        if version == BASE:
            return None
        copies = self._settings.home / "versions"
        return policies.fetch(version, copies, base_model_sha256=self._base_model_sha256)[0]

    def _load(self, adapter: Path | None, reference: Path | None = None) -> Policy:
        shape = AdapterConfig(
            rank=self._settings.lora_rank, alpha=2 * self._settings.lora_rank, layers=self._settings.lora_layers
        )
        return Policy.load(
            self._model,
            parent_adapter=adapter,
            reference_adapter=reference,
            config=shape,
            seed=self._settings.seed,
        )

    def _scores(
        self, name: str, adapter: Path | None, policies: PolicyStore, reward_model: RewardModel | None
    ) -> Scores:
        file = self.directory / f"{name}-{self._judged(reward_model)}.json"
        if file.exists():
            return Scores.load(file)
        settings, held_out = self._settings, self._prepared.held_out
        annotator = Annotator(self._model, settings.annotate)
        served = None
        if not annotator.as_served:
            as_served = Annotator(self._model, "chat")
            served = [as_served.encode(each.example) for each in held_out]
        reads_with = self._adapter(reward_model.reference, policies) if reward_model else None
        total = len(held_out) * (1 if served is None else 2) + len(held_out[: settings.replies])
        with stage(f"evaluating {name}", total) as tell:
            scores = evaluate(
                self._load(adapter, reads_with),
                [each.item for each in held_out],
                [each.example.output for each in held_out],
                served=served,
                decode=annotator.decode,
                reward_model=reward_model,
                replies=settings.replies,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                seed=settings.seed,
                advance=lambda count: tell(count, ""),
            )
        scores.save(file)
        return scores

    def _judged(self, reward_model: RewardModel | None) -> str:
        """Names how replies were made and judged: another way, other scores."""
        settings = self._settings.model_dump(mode="json", include=set(_JUDGE))
        weights = safetensors(reward_model.weights) if reward_model else b""
        return hashlib.sha256(json.dumps(sorted(settings.items())).encode() + weights).hexdigest()[:8]

    def _tuned(self, start: Path | None) -> list[Point]:
        """The curves; the weights are in `adapter` then."""
        curves, adapter = self.directory / "curves.json", self.directory / "adapter"
        if adapter.exists():
            points: list[Point] = json.loads(curves.read_text())
            return points
        how = TuneSettings(
            epochs=self._settings.epochs,
            batch_size=self._settings.batch_size,
            learning_rate=self._settings.learning_rate,
            checkpoint_steps=self._settings.checkpoint_steps,
            seed=self._settings.seed,
        )
        policy = self._load(start)
        train, held_out = ([each.item for each in part] for part in (self._prepared.train, self._prepared.held_out))
        with stage("tuning", steps(len(train), how)) as tell:
            tokenizer = Annotator(self._model, self._settings.annotate).tokenizer
            points = tune(policy, tokenizer, train, held_out, how, self.directory / "checkpoints", tell)
        curves.write_text(json.dumps(points))
        partial = self.directory / "adapter.partial"
        policy.save_adapter(partial)
        partial.rename(adapter)  # there, and whole
        shutil.rmtree(self.directory / "checkpoints")
        return points


def fold(event_log: EventLog) -> Releases:
    """Where each version stands now. Raises EventLogUnavailable."""
    releases, positions = Releases(), from_beginning(event_log, POLICIES)
    while entries := event_log.read(positions):
        for entry in entries:
            positions[entry.topic, entry.partition] = entry.offset + 1
            try:
                releases.read(entry.value, entry.offset)
            except ValueError as error:
                log.error("policy event at offset %d passed over: %s", entry.offset, error)
    return releases
