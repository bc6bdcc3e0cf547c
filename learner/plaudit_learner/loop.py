"""The learner's loop: take in → review the canary → reward model → improve the policy → gate → publish, and again.

A round begins when enough new votes stand. What a round has done is told by its policy event, in the event log: a
learner that is killed anywhere in a round goes on with it when it comes back (`rounds.py`), and one that was killed
after the event knows that the round is over. While a canary is on trial no round begins: its parent would be the
version that the canary is about to replace, and its candidate the second one on trial.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from plaudit import base_model, tracing
from plaudit.artifacts import ArtifactError, PolicyStore
from plaudit.events import EventLog, EventLogUnavailable
from plaudit.releases import BASE
from plaudit.tracing import Span
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit_learner import rounds
from plaudit_learner.canary.review import Reviewer
from plaudit_learner.config import LearnerSettings
from plaudit_learner.experience import influence
from plaudit_learner.experience.intake import Intake
from plaudit_learner.experience.on_trial import on_trial
from plaudit_learner.experience.store import Experience
from plaudit_learner.follow import Task
from plaudit_learner.gate.judge import Reader, Verdict, strayed
from plaudit_learner.gate.trial import trial
from plaudit_learner.instruct.mixture import instruction_examples
from plaudit_learner.metrics import LearnerMetrics
from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.ppo.improve import ImproveSettings, IterationMetrics, NothingToImproveError, improve
from plaudit_learner.ppo.rollouts import Rollout
from plaudit_learner.progress import ProgressSender
from plaudit_learner.ranks import ALONE, Ranks
from plaudit_learner.release import Publisher
from plaudit_learner.reports import Reports
from plaudit_learner.reward.model import FeatureCache, NotEnoughVotesError, Preference, Rating, RewardModel, Vote, fit
from plaudit_learner.rounds import Round
from plaudit_learner.versions import Versions
from plaudit_learner.whole_file import remove

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_GATHER_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_REWARD_MODELS = "reward-models"  # within the state directory, by round


class _BegunAnew(Exception):
    """What the round was made from was erased: it is dropped."""


class Learner:
    """One active learner; the event log, the policy store and the experience store are its only surroundings.

    Of several ranks this is rank 0; the others share the work of improving the policy (`follow.py`).
    """

    def __init__(
        self,
        settings: LearnerSettings,
        *,
        model: Path,
        base_model_sha256: str,
        event_log: EventLog,
        store: Experience,
        metrics: LearnerMetrics,
        progress: ProgressSender,
        ranks: Ranks = ALONE,
    ) -> None:
        self._settings = settings
        self._log = event_log
        self._store = store
        policies, copies = PolicyStore(settings.policy_store), settings.state_dir / "versions"
        self._versions = Versions(policies, copies, model, base_model_sha256, settings.lora_layers)
        self._publisher = Publisher(policies, self._announce, base_model_sha256)
        self._metrics = metrics
        self._reports = Reports(settings, store, metrics, progress)
        self._ranks = ranks
        self._vocabulary = base_model.vocabulary(model)
        self._reader = Reader(model)  # here, so that what it lacks is said before a round, not after it
        self._examples = _instruction_examples(settings, model)  # likewise
        self._features: FeatureCache = {}
        self._features_of = BASE  # the reference that read them
        self._canaries = Reviewer(settings, store, metrics)
        metrics.built(model.name, settings.votes_per_round)
        metrics.checkpoint_at.set_function(partial(rounds.checkpointed_at, self._kept))
        self._in_vain = 0  # votes at which the last attempt found nothing to learn
        self._too_light = 0  # votes at which those that are new did not weigh enough
        self._gone = 0  # votes of those then that were erased, or taken back
        self._used = 0  # votes that the running round learns from

    def run(self) -> None:
        """Until killed, or stopped by an exception from a signal handler."""
        while True:
            try:
                self._intake = Intake(self._log, self._store, self._metrics.count_letter, vocabulary=self._vocabulary)
                self._intake.start()
                self._reports.opened(self._intake.releases)
                while True:
                    self._used = 0
                    self._reports.stage("waiting")
                    if self._take_in(_POLL_SECONDS):
                        # Not each record as it comes: with every read the log, the disk and a core are busy, which on
                        # a small machine is felt in serving.
                        time.sleep(_GATHER_SECONDS)
                    self._canaries.review(self._intake)
                    if self._due():
                        try:
                            self._round()
                        except _BegunAnew:
                            self._reports.round_ends(self._last_round()[0] + 1, "is begun anew without what was erased")
                    else:
                        self._reports.no_round()
            except (EventLogUnavailable, ArtifactError) as error:
                self._metrics.event_log_failures.inc(isinstance(error, EventLogUnavailable))
                log.warning("%s; trying again", error)
                time.sleep(_RETRY_SECONDS)

    def _take_in(self, timeout: float) -> int:
        taken = self._intake.drain(timeout)
        votes, new, _ = self._new_votes()
        new = max(0, votes - self._used) if self._used else new
        self._reports.taken_in(taken, lag=self._intake.lag(), new_votes=new)
        if self._store.unsettled:
            self._forget()
        self._store.forget()
        return taken

    def _forget(self) -> None:
        """Drop what was derived from what was erased, on disk and in memory; what is published stays (invariant 10).

        Raises OSError if any of it cannot be removed: it would be learnt from.
        """
        log.info("somebody's data was erased: what was derived from it is dropped")
        rounds.drop(self._kept)
        remove(self._settings.state_dir / _REWARD_MODELS)
        self._features = {}
        self._store.settle()  # last: killed before it, all this is done again

    def _announce(self, event: PolicyEvent) -> None:
        self._intake.announce(event)  # of that day: there is another one after each failure of the log

    def _due(self) -> bool:
        if on_trial(self._intake.releases):
            return False
        votes, new, self._gone = self._new_votes()
        if new < self._settings.votes_per_round or votes == self._too_light:
            return False
        _, weight = self._standing(new)
        if weight < self._settings.votes_per_round:
            log.info("%d new votes weigh as %.1f: too little for a round", new, weight)
            self._too_light = votes
            return False
        return True

    def _new_votes(self) -> tuple[int, int, int]:
        """(votes that stand, those that no round has used, votes that a round used and that are gone)."""
        votes, used = self._store.count_votes(*self._settings.aspects), max(self._last_round()[1], self._in_vain)
        # Votes that are gone do not have to come again before those that are new count.
        gone = max(self._gone, used - votes)
        return votes, votes - used + gone, gone

    def _standing(self, newest: int) -> tuple[float, float]:
        """What the votes that are learnt from weigh, and the newest of them."""
        judged = [judgement for kind in self._judged(self._settings.aspects) for judgement in kind]
        return influence.standing(judged, cap=self._settings.influence_cap, newest=newest)

    def _judged(self, aspects: Iterable[str]) -> tuple[list[Vote], list[Preference], list[Rating]]:
        """What was said of these aspects, in the window."""
        store, window, aspects = self._store, self._settings.window, list(aspects)
        return (
            [vote for aspect in aspects for vote in store.votes(aspect, window)],
            [pair for aspect in aspects for pair in store.preferences(aspect, window)],
            [rating for aspect in aspects for rating in store.ratings(aspect, window)],
        )

    def _last_round(self) -> tuple[int, int]:
        """(number, votes that stood) of the last round that came to an end, by the policy events; (0, 0) before it."""
        ended = [event.metrics for event in self._events()]
        return max(((int(metrics.get("round", 0)), int(metrics.get("votes", 0))) for metrics in ended), default=(0, 0))

    def _events(self) -> list[PolicyEvent]:
        """The last one of each version."""
        releases = self._intake.releases
        return [event for event in map(releases.event, releases.versions()) if event is not None]

    def _allowance(self, reference: str) -> float:
        """The largest KL budget that the gate's verdicts on rounds from that reference allow."""
        ended = [
            event for event in self._events() if "kl_budget" in event.metrics and (event.reference or BASE) == reference
        ]
        most = math.inf
        for event in sorted(ended, key=lambda event: event.metrics["round"]):
            most = rounds.allowance(most, event.metrics["kl_budget"], strayed=strayed(event.checks))
        return most

    def _round(self) -> None:
        """A span of its own, the root of a trace: its links lead to those of what it was made from."""
        with tracing.span("round", parent={}) as span:
            self._go_through_round(span)

    def _go_through_round(self, span: Span) -> None:
        began = time.monotonic()
        number, parent = self._last_round()[0] + 1, self._intake.releases.stable
        span.set({"plaudit.round": number, "plaudit.parent": parent})
        settings = self._settings.model_dump(mode="json")
        # From the reference anew, and not from the parent, which had spent its KL on a reward model that knew less
        # (docs/decisions/0007, 0010).
        reference = self._intake.releases.reference(parent)
        policy = self._versions.load(reference, self._settings.seed + 1000 * number, reference)
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
            span.link(*reversed(this.traces))  # if there is room for fewer, the last ones stay
            span.set({"plaudit.votes": this.votes, "plaudit.spans_learnt_from": this.traced})
            self._used = this.votes
            self._reports.improving(this, reward_model)
            self._ranks.told(Task(this, reward_model, reference))
            result = improve(
                policy,
                reward_model,
                this.train,
                this.how,
                seed=this.seed,
                progress=partial(self._progress, this.how.iterations),
                checkpoint=self._kept / rounds.CHECKPOINT,
                examples=this.examples,
                logged=this.logged,
                ranks=self._ranks,
            )
            if result.stopped:
                log.info("improved no further: %s", result.stopped)
        except (NotEnoughVotesError, NothingToImproveError) as error:
            span.set({"plaudit.outcome": "waits for more votes"})
            self._reports.round_ends(number, f"waits for more votes: {error}")
            self._in_vain, self._gone = self._store.count_votes(*self._settings.aspects), 0
            rounds.drop(self._kept)
            return

        self._reports.stage("gating")
        with self._ranks.together(), tracing.span("gate") as gate:
            verdict = self._gate(policy, result.reward_model, this, reference)
            gate.set({"plaudit.passed": verdict.passed, "plaudit.reasons": list(verdict.reasons)})

        self._take_in(0.0)
        self._check_kept()
        if self._intake.releases.stable != parent:
            stable = self._intake.releases.stable
            self._reports.round_ends(number, f"is begun again: {stable} became stable meanwhile")
            return
        if on_trial(self._intake.releases):  # by hand: it goes first
            self._reports.round_ends(number, f"waits: {self._intake.releases.canary} is on trial meanwhile")
            return
        self._reports.stage("publishing")
        event = self._publisher.publish(
            policy,
            verdict,
            self._intake.releases,
            parent=parent,
            reference=reference,
            share=self._settings.canary_share,
            traceparent=span.traceparent,
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
        self._versions.forget_others(reference, parent)
        self._gone = 0
        self._reports.round_published(event)

    def _begin(self, policy: Policy, number: int, parent: str, reference: str) -> tuple[Round, RewardModel]:
        """Settle what the round works from. Raises NotEnoughVotesError."""
        # Whatever stops it from here on: no checkpoint of another round beside this one's reward model, and nothing
        # that was learnt from somebody who is not known.
        rounds.drop(self._kept)
        self._store.learning(number)
        votes = self._store.count_votes(*self._settings.aspects)
        weight, _ = self._standing(0)
        told = "round %d: %d votes, weighing %.0f, from %s, to be better than %s"
        log.info(told, number, votes, weight, reference, parent)
        self._reports.round_begins(number, parent, reference, votes)
        with tracing.span("reward model"):
            reward_model = self._fit(policy, reference)
        train, held_out = self._prompts()
        seed = self._settings.seed + 1000 * number
        how = self._how(weight, reference)
        examples = rounds.drawn(self._examples, how.instruct_examples, seed)
        allowed = {prompt for prompt in train if len(prompt) <= how.max_prompt_tokens}
        logged: list[Rollout] = []
        if how.logged_replies:  # else the window is not read for nothing
            served = (r for r in self._store.served(self._settings.window, how.temperature) if r.prompt in allowed)
            logged = rounds.drawn([r for r in served if len(r.reply) <= how.max_new_tokens], how.logged_replies, seed)
        window = self._settings.window
        traces, traced = self._store.traces(self._store.aspects(window), window, tracing.MOST_LINKS)
        this = Round(number, parent, votes, seed, train, held_out, how, examples, logged, traces, traced)
        return this, reward_model

    @property
    def _kept(self) -> Path:
        return self._settings.state_dir / "round"

    def _fit(self, policy: Policy, reference: str) -> RewardModel:
        """Raises NotEnoughVotesError."""
        settings, store = self._settings, self._store
        votes, preferences, ratings = influence.weighed(
            *self._judged(store.aspects(settings.window)), cap=settings.influence_cap
        )
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
        self._reports.fitted(reward_model)
        for term in settings.terms:
            quality = reward_model.heads[term.aspect]
            if not quality.discrimination > rounds.LEAST_AUC:
                raise NotEnoughVotesError(
                    f"it cannot tell good from bad {term.aspect} yet "
                    f"({quality.told_by}; more than {rounds.LEAST_AUC} is needed)"
                )
        return reward_model

    def _reward_model(self, number: int) -> RewardModel | None:
        """That of a round, if it is kept."""
        try:
            return RewardModel.load(self._settings.state_dir / _REWARD_MODELS / str(number))
        except OSError:
            return None
        except ValueError as error:
            log.warning("%s; a new one is fitted from nothing", error)
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
        longest, window, store = self._settings.max_prompt_tokens, self._settings.window, self._store
        short = {key: prompt for key, prompt in store.prompts(window).items() if len(prompt) <= longest}
        spread = influence.spread(short, store.askers(window), cap=self._settings.influence_cap)
        train, held_out = rounds.told_apart(spread.items())
        if len(held_out) < 2 or not train:
            raise NotEnoughVotesError(f"{len(train) + len(held_out)} different prompts are too few to hold some out")
        return train, held_out

    def _how(self, votes: float, reference: str) -> ImproveSettings:
        """votes: what they weigh."""
        settings = self._settings
        temperature, max_tokens = self._store.usual_sampling(settings.window) or (0.7, settings.max_new_tokens)
        most = self._allowance(reference)
        return rounds.aim(settings, votes, temperature=temperature, max_new_tokens=max_tokens, most=most)

    def _check_kept(self) -> None:
        """Raises _BegunAnew if the round was dropped meanwhile."""
        if not self._kept.exists():
            raise _BegunAnew

    def _progress(self, iterations: int, metrics: IterationMetrics) -> None:
        # An erasure does not wait for the round's end, and no work is put into what it will undo; but ranks that keep
        # in step cannot leave a round before its end.
        if self._ranks.size == 1:
            with suppress(EventLogUnavailable):
                self._take_in(0.0)
            self._check_kept()
        self._reports.updated(iterations, metrics)

    def _gate(self, policy: Policy, reward_model: RewardModel, this: Round, reference: str) -> Verdict:
        def parent() -> Policy:
            return self._versions.load(this.parent, this.seed, reference)

        verdict = trial(
            policy,
            None if this.parent == reference else parent,
            reward_model,
            self._reader,
            this.held_out,
            this.how,
            seed=this.seed,
            ranks=self._ranks,
        )
        self._reports.gated(verdict.checks)
        return verdict


def _instruction_examples(settings: LearnerSettings, model: Path) -> list[PromptReply]:
    """Raises ValueError if there should be some and are none."""
    if settings.instruct_data is None or not settings.instruct_weight:
        return []
    return instruction_examples(settings.instruct_data, model, settings.max_prompt_tokens)
