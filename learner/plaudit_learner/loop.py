"""The learner's loop: take in → review the canary → reward model → improve the policy → gate → publish, and again.

A round begins when enough new votes stand. What a round has done is told by its policy event, in the event log: a
learner that is killed anywhere in a round goes on with it when it comes back (`rounds.py`), and one that was killed
after the event knows that the round is over. While a canary is on trial no round begins: its parent would be the
version that the canary is about to replace, and its candidate the second one on trial.
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from plaudit.artifacts import ArtifactError, PolicyStore
from plaudit.events import EventLog, EventLogUnavailable
from plaudit.releases import BASE
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_learner import rounds
from plaudit_learner.canary.review import Reviewer, on_trial
from plaudit_learner.config import LearnerSettings
from plaudit_learner.experience.intake import Intake
from plaudit_learner.experience.store import Experience
from plaudit_learner.gate.judge import Reader, Verdict
from plaudit_learner.gate.trial import trial
from plaudit_learner.metrics import LearnerMetrics
from plaudit_learner.policy import AdapterConfig, Policy
from plaudit_learner.ppo.improve import ImproveSettings, IterationMetrics, NothingToImproveError, improve
from plaudit_learner.release import Publisher
from plaudit_learner.reward.model import FeatureCache, NotEnoughVotesError, RewardModel, fit
from plaudit_learner.rounds import Round

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_RETRY_SECONDS = 2.0
_REWARD_MODELS = "reward-models"  # within the state directory, by round


class Learner:
    """One active learner; the event log, the policy store and the experience store are its only surroundings."""

    def __init__(
        self,
        settings: LearnerSettings,
        *,
        model: Path,
        base_model_sha256: str,
        event_log: EventLog,
        store: Experience,
        metrics: LearnerMetrics,
    ) -> None:
        self._settings = settings
        self._model = model
        self._base_model_sha256 = base_model_sha256
        self._log = event_log
        self._store = store
        self._policies = PolicyStore(settings.policy_store)
        self._publisher = Publisher(self._policies, event_log, base_model_sha256)
        self._metrics = metrics
        self._reader = Reader(model)  # here, so that what it lacks is said before a round, not after it
        self._features: FeatureCache = {}
        self._features_of = BASE  # the reference that read them
        self._canaries = Reviewer(settings, event_log, store, metrics)
        self._in_vain = 0  # votes at which the last attempt found nothing to learn

    def run(self) -> None:
        """Until killed, or stopped by an exception from a signal handler."""
        while True:
            try:
                self._intake = Intake(self._log, self._store)
                self._intake.start()
                self._metrics.tally(self._store.tallies(self._settings.aspect))
                while True:
                    self._metrics.stage.state("waiting")
                    self._take_in(_POLL_SECONDS)
                    self._canaries.review(self._intake)
                    if self._due():
                        self._round()
            except (EventLogUnavailable, ArtifactError) as error:
                log.warning("%s; trying again", error)
                time.sleep(_RETRY_SECONDS)

    def _take_in(self, timeout: float) -> None:
        taken = self._intake.drain(timeout)
        self._metrics.lag.set(self._intake.lag())
        if taken:
            self._metrics.records.inc(taken)
            self._metrics.tally(self._store.tallies(self._settings.aspect))

    def _due(self) -> bool:
        if on_trial(self._intake.releases):
            return False
        _, votes_then = self._last_round()
        new = self._store.count_votes(*self._settings.aspects) - max(votes_then, self._in_vain)
        return new >= self._settings.votes_per_round

    def _last_round(self) -> tuple[int, int]:
        """(number, votes that stood) of the last round that came to an end, by the policy events; (0, 0) before it."""
        releases = self._intake.releases
        ended = [event.metrics for event in map(releases.event, releases.versions()) if event is not None]
        return max(((int(metrics["round"]), int(metrics["votes"])) for metrics in ended), default=(0, 0))

    def _round(self) -> None:
        began = time.monotonic()
        number, parent = self._last_round()[0] + 1, self._intake.releases.stable
        settings = self._settings.model_dump(mode="json")
        # From the reference anew, and not from the parent, which had spent its KL on a reward model that knew less
        # (docs/decisions/0007, 0010).
        reference = self._intake.releases.reference(parent)
        policy = self._load(reference, self._settings.seed + 1000 * number, reference)
        this, reward_model = rounds.kept(self._kept, settings), self._reward_model(number)
        try:
            if (
                this is not None
                and reward_model is not None
                and (this.number, this.parent, reward_model.reference) == (number, parent, reference)
            ):
                log.info("round %d goes on where it was cut off", number)
            else:
                this, reward_model = self._begin(policy, number, parent, reference)
                this.keep(self._kept, settings)
            self._metrics.stage.state("improving")
            result = improve(
                policy,
                reward_model,
                this.train,
                this.how,
                seed=this.seed,
                progress=partial(self._progress, this.how.iterations),
                checkpoint=self._kept / rounds.CHECKPOINT,
            )
            if result.stopped:
                log.info("improved no further: %s", result.stopped)
        except (NotEnoughVotesError, NothingToImproveError) as error:
            log.info("round %d waits for more votes: %s", number, error)
            self._in_vain = self._store.count_votes(*self._settings.aspects)
            rounds.drop(self._kept)
            return

        self._metrics.stage.state("gating")
        verdict = self._gate(policy, result.reward_model, this, reference)

        self._take_in(0.0)
        if self._intake.releases.stable != parent:
            log.info("round %d is begun again: %s became stable meanwhile", number, self._intake.releases.stable)
            return
        if on_trial(self._intake.releases):  # by hand: it goes first
            log.info("round %d waits: %s is on trial meanwhile", number, self._intake.releases.canary)
            return
        self._metrics.stage.state("publishing")
        event = self._publisher.publish(
            policy,
            verdict,
            self._intake.releases,
            parent=parent,
            reference=reference,
            share=self._settings.canary_share,
            window={"votes": this.votes, "prompts": len(this.train) + len(this.held_out)},
            metrics={
                **verdict.metrics,
                "round": number,
                "votes": this.votes,
                "iterations": len(result.iterations),
                "kl_budget": this.how.kl_budget,
                "beta": result.beta,
                "reward_model_auc": reward_model.metrics.discrimination,
                "minutes": (time.monotonic() - began) / 60,
            },
        )
        rounds.drop(self._kept)
        outcome = PolicyState.Name(event.state).removeprefix("POLICY_STATE_").lower()
        self._metrics.rounds.labels(outcome).inc()
        log.info("round %d: %s is %s: %s", number, event.version, outcome, event.reason)

    def _begin(self, policy: Policy, number: int, parent: str, reference: str) -> tuple[Round, RewardModel]:
        """Settle what the round works from. Raises NotEnoughVotesError."""
        votes = self._store.count_votes(*self._settings.aspects)
        log.info("round %d: %d votes, from %s, to be better than %s", number, votes, reference, parent)
        self._metrics.stage.state("rewarding")
        reward_model = self._fit(policy, reference)
        train, held_out = self._prompts()
        seed = self._settings.seed + 1000 * number
        return Round(number, parent, votes, seed, train, held_out, self._how(votes)), reward_model

    @property
    def _kept(self) -> Path:
        return self._settings.state_dir / "round"

    def _load(self, version: str, seed: int, reference: str) -> Policy:
        """A version beside the reference policy; of the base model: a new adapter."""
        return Policy.load(
            self._model,
            parent_adapter=self._adapter(version),
            reference_adapter=self._adapter(reference),
            config=AdapterConfig(layers=self._settings.lora_layers),
            seed=seed,
        )

    def _adapter(self, version: str) -> Path | None:
        """A version's weights, verified as servers verify them; None for the base model."""
        if version == BASE:
            return None
        copies = self._settings.state_dir / "versions"
        return self._policies.fetch(version, copies, base_model_sha256=self._base_model_sha256)[0]

    def _fit(self, policy: Policy, reference: str) -> RewardModel:
        """Raises NotEnoughVotesError."""
        settings, store = self._settings, self._store
        aspects = store.aspects(settings.window)
        votes = [vote for aspect in aspects for vote in store.votes(aspect, settings.window)]
        ratings = [rating for aspect in aspects for rating in store.ratings(aspect, settings.window)]
        preferences = [pair for aspect in aspects for pair in store.preferences(aspect, settings.window)]
        judged = {vote.item for vote in votes} | {rating.item for rating in ratings}
        judged |= {item for pair in preferences for item in (pair.chosen, pair.rejected)}
        if reference != self._features_of:
            self._features, self._features_of = {}, reference
        self._features = {item: features for item, features in self._features.items() if item in judged}
        # Never of a round that was begun only: begun again, it would end in other digits.
        before = self._reward_model(self._last_round()[0])
        reward_model = fit(
            policy,
            votes,
            preferences,
            ratings,
            terms=settings.terms,
            pessimism=settings.pessimism,
            cache=self._features,
            before=before if before is not None and before.reference == reference else None,
        )
        reward_model = replace(reward_model, reference=reference)
        self._keep(reward_model)
        self._metrics.reward_model_auc.set(reward_model.metrics.auc)
        self._metrics.reward_model_accuracy.set(reward_model.metrics.accuracy)
        for aspect, quality in reward_model.heads.items():
            log.info("reward model of %s: %s", aspect, quality.summary())
        for term in settings.terms:
            quality = reward_model.heads[term.aspect]
            if not quality.discrimination > rounds.LEAST_AUC:
                raise NotEnoughVotesError(
                    f"it cannot tell good from bad {term.aspect} yet "
                    f"(AUC {quality.discrimination:.2f}, at least {rounds.LEAST_AUC} is needed)"
                )
        return reward_model

    def _reward_model(self, number: int) -> RewardModel | None:
        """That of a round, if it is kept."""
        try:
            return RewardModel.load(self._settings.state_dir / _REWARD_MODELS / str(number))
        except (OSError, ValueError):
            return None

    def _keep(self, reward_model: RewardModel) -> None:
        directory, last = self._settings.state_dir / _REWARD_MODELS, self._last_round()[0]
        reward_model.save(directory / str(last + 1))
        for other in directory.iterdir():
            if other.name not in (str(last), str(last + 1)):
                shutil.rmtree(other)

    def _prompts(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Prompts to train on, and prompts that only the gate sees, told apart by their hash for ever.

        Raises NotEnoughVotesError if there are too few to judge by.
        """
        longest = self._settings.max_prompt_tokens
        prompts = self._store.prompts(self._settings.window).items()
        train, held_out = rounds.told_apart((key, prompt) for key, prompt in prompts if len(prompt) <= longest)
        if len(held_out) < 2 or not train:
            raise NotEnoughVotesError(f"{len(train) + len(held_out)} different prompts are too few to hold some out")
        return train, held_out

    def _how(self, votes: int) -> ImproveSettings:
        settings = self._settings
        temperature, max_tokens = self._store.usual_sampling(settings.window) or (0.7, settings.max_new_tokens)
        return rounds.aim(settings, votes, temperature=temperature, max_new_tokens=max_tokens)

    def _progress(self, iterations: int, metrics: IterationMetrics) -> None:
        self._metrics.ppo_reward.set(metrics.reward)
        self._metrics.ppo_kl.set(metrics.kl)
        self._metrics.ppo_entropy.set(metrics.entropy)
        self._metrics.ppo_reply_length.set(metrics.length)
        log.info(
            "update %d of %d: reward %+.2f, KL %.2f nats a reply, entropy %.2f, %.0f tokens",
            metrics.iteration,
            iterations,
            metrics.reward,
            metrics.kl,
            metrics.entropy,
            metrics.length,
        )

    def _gate(self, policy: Policy, reward_model: RewardModel, this: Round, reference: str) -> Verdict:
        def parent() -> Policy:
            return self._load(this.parent, this.seed, reference)

        verdict = trial(
            policy,
            None if this.parent == reference else parent,
            reward_model,
            self._reader,
            this.held_out,
            this.how,
            seed=this.seed,
        )
        self._metrics.gated(verdict.checks)
        for check in verdict.checks:
            log.info(
                "gate: %s %.3f, compared with %.3f, %s %.3f: %s",
                check.measure,
                check.candidate,
                check.reference,
                "at most" if check.upper else "at least",
                check.bound,
                "kept" if check.kept else "broken",
            )
        return verdict
