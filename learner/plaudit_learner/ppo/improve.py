"""Improve the policy: PPO on fresh rollouts, scored by the reward model.

    reference rollouts ──▶ scale of the reward, beta
          ┌─────────────────────────────────────────────────────────┐
          ▼                                                         │
    prompts ──▶ sample K replies each ──▶ score ──▶ critic, advantages ──▶ one pass of minibatches ──▶ checkpoint

The policy's adapter changes in place. If the KL to the reference passes its bound the last iteration is undone.
Killed at any point and begun again with the same arguments, it goes on from the checkpoint and ends with the same bits.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from plaudit import tracing
from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.ppo.critic import Critic
from plaudit_learner.ppo.loss import (
    at_the_end,
    beta_from_budget,
    beta_held,
    gae,
    leave_one_out,
    masked_whiten,
    penalised,
    token_logprobs,
    within_prompt_sd,
)
from plaudit_learner.ppo.rollouts import Rollout, sample
from plaudit_learner.ppo.settings import ImproveSettings
from plaudit_learner.ppo.update import (
    IterationMetrics,
    Scored,
    learning_rate_share,
    proximal_logprobs,
    summary,
    update,
)
from plaudit_learner.ranks import ALONE, Ranks
from plaudit_learner.reward.features import Encoding, encode
from plaudit_learner.reward.model import RewardModel
from plaudit_learner.whole_file import whole

T = TypeVar("T")

_SPENT = 0.25  # of the KL that the tilt would spend: where updates of a hundred replies come to rest (decision 14)

__all__ = ["ImproveResult", "ImproveSettings", "IterationMetrics", "NothingToImproveError", "improve"]


@dataclass(frozen=True)
class ImproveResult:
    """How it went. The policy itself was changed in place."""

    iterations: list[IterationMetrics]
    beta: float
    """The coefficient of the KL, in units of the score per nat, where the KL is not past its target."""
    s_within: float
    """Deviation of the reference's score among replies to one prompt."""
    reference_reward: float
    """Mean score of the reference policy on prompts of the training set."""
    stopped: str | None
    """Why it ended early, in words; None if it ran to its end."""
    reward_model: RewardModel
    """The one that it was given, normalised on the reference's replies: by this the policy was improved."""


class NothingToImproveError(ValueError):
    """There is nothing to learn on, or nothing to learn towards."""


def improve(
    policy: Policy,
    reward_model: RewardModel,
    prompts: Sequence[tuple[int, ...]],
    settings: ImproveSettings,
    *,
    seed: int,
    progress: Callable[[IterationMetrics], None] = lambda metrics: None,
    checkpoint: Path | None = None,
    examples: Sequence[PromptReply] = (),
    logged: Sequence[Rollout] = (),
    ranks: Ranks = ALONE,
) -> ImproveResult:
    """Improve `policy` in place on fresh replies to `prompts`, which may repeat over iterations.

    progress: told of each iteration as it ends; not again of those before a checkpoint.
    checkpoint: a file that is written after each iteration, and gone on from if it is there. It belongs to these very
    arguments (the policy as it was before): the caller sees to it, and removes it when it is done with.
    examples: instruction examples for `instruct_weight`, each once before any comes again.
    logged: replies that were served, for `logged_share`: to prompts that may be trained on, at the settings'
    temperature, with the log-probabilities of who sampled them. Each is used once, in their order, from the first
    iteration on; too long ones are left out.
    ranks: share the work. Each is called with the same arguments, but only rank 0 needs a checkpoint.
    Raises NothingToImproveError if no prompt is short enough, or if all replies to a prompt are scored alike;
    ValueError if there is an `instruct_weight`, but no example.
    """
    run = _Improvement(policy, reward_model, prompts, settings, seed, examples, logged, ranks)
    saved = checkpoint is not None and checkpoint.exists()
    state = ranks.told(torch.load(checkpoint, weights_only=True) if saved else None)
    if state is None:
        with tracing.span("reference rollouts"):
            run.begin()
    else:
        run.restore(state)
    while run.stopped is None and len(run.done) < settings.iterations:
        with tracing.span("PPO update") as span:
            run.iterate()
            seen = run.done[-1]
            span.set({"plaudit.update": seen.iteration, "plaudit.reward": seen.reward, "plaudit.kl": seen.kl})
        progress(run.done[-1])
        if checkpoint is not None and ranks.leads:
            with whole(checkpoint) as unfinished:
                torch.save(run.state(), unfinished)
    return run.result()


class _Improvement:
    """Iteration by iteration; `state` is all that its rest depends on."""

    def __init__(
        self,
        policy: Policy,
        reward_model: RewardModel,
        prompts: Sequence[tuple[int, ...]],
        settings: ImproveSettings,
        seed: int,
        examples: Sequence[PromptReply],
        logged: Sequence[Rollout],
        ranks: Ranks,
    ) -> None:
        s = settings
        prompts = [prompt for prompt in prompts if len(prompt) <= s.max_prompt_tokens]
        if not prompts:
            raise NothingToImproveError(f"there are no prompts of at most {s.max_prompt_tokens} tokens to improve on")
        self._policy = policy
        self._given = reward_model
        self._settings = s
        self._seed = seed
        self._ranks = ranks
        self._optimizer = torch.optim.Adam(policy.parameters(), lr=s.learning_rate, betas=(0.9, 0.99))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: learning_rate_share(step, s))
        self._queue = _cycle(prompts, seed)
        self._taken = 0
        if s.instruct_weight and not examples:
            raise ValueError("instruct_weight is set, but there are no instruction examples")
        self._examples = _cycle(examples, seed)
        self._logged = [r for r in logged if len(r.prompt) <= s.max_prompt_tokens and len(r.reply) <= s.max_new_tokens]
        self._waiting: Scored | None = None  # rollouts that exist already
        self.done: list[IterationMetrics] = []
        self.stopped: str | None = None

    def begin(self) -> None:
        """Look at the reference policy: what it gets is the unit of the reward, and gives beta."""
        with self._policy.reference():
            rollouts = self._sample(self._seed, self._settings.prompts_per_iteration)
        encodings = self._read(rollouts)
        self._scale(torch.stack([e.features_D for e in encodings]))
        scored = self._score(rollouts, encodings)
        self._reference_reward = float(scored.rewards_BK.mean())
        self._s_within = within_prompt_sd(scored.rewards_BK)
        if self._s_within < 1e-6:
            raise NothingToImproveError("the reward model scores all replies to a prompt alike")
        if self._policy.is_reference:  # untrained: these are its own first rollouts
            self._waiting = scored

    def iterate(self) -> None:
        """Sample, score, update; undo it if that went too far."""
        s, before, number = self._settings, self._policy.snapshot(), len(self.done)
        logged = self._logged_in(number)
        scored, self._waiting = self._waiting, None
        if scored is None or logged:
            asked = s.prompts_per_iteration - len(logged) // s.samples_per_prompt
            there = scored.rollouts[: asked * s.samples_per_prompt] if scored else None
            fresh = there or self._sample(self._seed + 1 + number, asked)
            rollouts = fresh + logged
            scored = self._score(rollouts, self._read(rollouts), fresh=len(fresh))
        advantages_BT = self._advantages(scored)
        # In units of s_within, too: the length of a gradient then does not depend on the reward's scale.
        beta = self._beta / self._s_within if s.kl == "loss" else 0.0
        seen = update(
            self._policy, self._optimizer, self._schedule, scored, advantages_BT, beta, s, self._examples, self._ranks
        )
        self.done.append(summary(number + 1, scored, seen))
        kl = self.done[-1].kl
        if not kl <= s.kl_stop:  # nor if it is not a number
            self.stopped = f"iteration {number + 1} undone: KL {kl:.2f} nats per reply, bound {s.kl_stop:g}"
        elif not self._speaks(scored.rollouts[0]):
            self.stopped = f"iteration {number + 1} undone: its last step leaves no probabilities"
        if self.stopped:
            self._policy.restore(before)

    def result(self) -> ImproveResult:
        """How it went."""
        return ImproveResult(
            self.done, self._derived_beta, self._s_within, self._reference_reward, self.stopped, self._reward_model
        )

    def state(self) -> dict[str, Any]:
        """After at least one iteration; tensors and plain values."""
        return {
            "done": [asdict(metrics) for metrics in self.done],
            "stopped": self.stopped,
            "taken": self._taken,
            "reference_ND": self._reference_ND,
            "reference_reward": self._reference_reward,
            "s_within": self._s_within,
            "weights": self._policy.snapshot(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "critic": self._critic.state() if self._critic else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` was taken of."""
        self.done = [IterationMetrics(**metrics) for metrics in state["done"]]
        self.stopped = state["stopped"]
        self._scale(state["reference_ND"])
        self._reference_reward, self._s_within = state["reference_reward"], state["s_within"]
        self._take(state["taken"])
        for _ in range(len(self.done) * self._settings.instruct_examples // self._settings.iterations):
            next(self._examples)
        self._policy.restore(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if self._critic:
            self._critic.restore(state["critic"])

    def _scale(self, reference_ND: Tensor) -> None:
        """In deviations of what the reference policy gets, whatever was voted on."""
        self._reference_ND = reference_ND
        self._reward_model = self._given.normalised(reference_ND)
        self._critic = (
            None if self._settings.trace is None else Critic(self._reward_model, self._settings.max_new_tokens)
        )

    @property
    def _derived_beta(self) -> float:
        return beta_from_budget(self._s_within, self._settings.kl_target / _SPENT)

    @property
    def _beta(self) -> float:
        """Of the next update."""
        return beta_held(self._derived_beta, self.done[-1].kl if self.done else 0.0, self._settings.kl_target)

    def _take(self, count: int) -> list[tuple[int, ...]]:
        self._taken += count
        return [next(self._queue) for _ in range(count)]

    def _logged_in(self, number: int) -> list[Rollout]:
        """The logged replies of one iteration: as many prompts' worth as there are."""
        s = self._settings
        size = s.logged_prompts * s.samples_per_prompt
        taken = self._logged[number * size : (number + 1) * size]
        return taken[: len(taken) // s.samples_per_prompt * s.samples_per_prompt]

    def _sample(self, seed: int, count: int) -> list[Rollout]:
        s = self._settings
        return sample(
            self._policy,
            self._take(count),
            samples_per_prompt=s.samples_per_prompt,
            max_new_tokens=s.max_new_tokens,
            temperature=s.temperature,
            seed=seed,
            batch_size=96,  # of 24 prompts, all at once: the weights are fetched from memory once for all
            ranks=self._ranks,
        )

    def _speaks(self, rollout: Rollout) -> bool:
        """Whether the policy gives numbers still: no KL has seen the last step."""
        (logprobs,) = proximal_logprobs(self._policy, [rollout.item], self._settings.temperature, self._ranks)
        return all(map(math.isfinite, logprobs))

    def _read(self, rollouts: list[Rollout]) -> list[Encoding]:
        return encode(self._policy, [r.item for r in rollouts], prefixes=True, trunks=True, ranks=self._ranks)

    def _score(self, rollouts: list[Rollout], encodings: list[Encoding], *, fresh: int | None = None) -> Scored:
        """fresh: how many of the rollouts are, the first ones; the others are logged. None: all."""
        s, fresh = self._settings, len(rollouts) if fresh is None else fresh
        scores_N = self._reward_model.score_features(torch.stack([e.features_D for e in encodings]))
        rewards_N = scores_N - s.unfinished_penalty * torch.tensor([0.0 if r.finished else 1.0 for r in rollouts])
        # Fresh rollouts: the policy that sampled them is the proximal policy. Logged ones: it is still to be asked.
        logged = proximal_logprobs(self._policy, [r.item for r in rollouts[fresh:]], s.temperature, self._ranks)
        return Scored(
            rollouts,
            encodings,
            rewards_N[:fresh].view(-1, s.samples_per_prompt),
            rewards_N[fresh:],
            [r.logprobs for r in rollouts[:fresh]] + logged,
        )

    def _advantages(self, scored: Scored) -> Tensor:
        """Of each token of each reply (B, longest reply), in units of s_within."""
        rollouts, trace = scored.rollouts, self._settings.trace
        mask_BT = torch.nn.utils.rnn.pad_sequence([torch.ones(len(r.reply)) for r in rollouts], batch_first=True)
        rewards_BT = at_the_end(scored.rewards_N, mask_BT)
        if self._settings.kl == "reward":
            rewards_BT = self._penalised(rewards_BT, scored) * mask_BT
        returns_B = rewards_BT.sum(dim=1)
        if self._critic is None or trace is None:
            advantages_BT = leave_one_out(returns_B.view_as(scored.rewards_BK)).flatten()[:, None] * mask_BT
        else:
            values = self._critic.values(rollouts, scored.encodings, returns_B)
            values_BT = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
            advantages_BT = gae(rewards_BT, values_BT, mask_BT, trace)
        # Whitened after masking, so that pads take no part, and in units of s_within, too: a deviation of 1.
        return masked_whiten(advantages_BT, mask_BT) if self._settings.whiten else advantages_BT / self._s_within

    def _penalised(self, rewards_BT: Tensor, scored: Scored) -> Tensor:
        theirs = reference_logprobs(self._policy, scored.rollouts, scored.encodings, self._settings.temperature)
        ours = [torch.tensor(rollout.logprobs) for rollout in scored.rollouts]
        ours_BT, theirs_BT = (torch.nn.utils.rnn.pad_sequence(each, batch_first=True) for each in (ours, theirs))
        return penalised(rewards_BT, ours_BT, theirs_BT, self._beta)


def reference_logprobs(
    policy: Policy, rollouts: Sequence[Rollout | PromptReply], encodings: Sequence[Encoding], temperature: float
) -> list[Tensor]:
    """Of each reply's tokens (T,), by the reference policy, which has read them already."""
    found = []
    for rollout, encoding in zip(rollouts, encodings, strict=True):
        with torch.no_grad():
            logits_1TV = policy.head(encoding.predicting_TH[None])
            found.append(token_logprobs(logits_1TV, torch.tensor([rollout.reply]), temperature)[1][0])
    return found


def _cycle(items: Sequence[T], seed: int) -> Iterator[T]:
    """Every item once before any comes again, each time in another order; nothing if there are none."""
    order, generator = list(dict.fromkeys(items)), random.Random(seed)  # noqa: S311
    while order:
        generator.shuffle(order)
        yield from order
