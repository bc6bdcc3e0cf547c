"""Improve the policy: PPO on fresh rollouts, scored by the reward model.

    reference rollouts ──▶ scale of the reward, beta
          ┌─────────────────────────────────────────────────────────┐
          ▼                                                         │
    prompts ──▶ sample K replies each ──▶ score ──▶ critic, advantages ──▶ one pass of minibatches

The policy's adapter changes in place. If the KL to the reference passes its bound the last iteration is undone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from plaudit_learner.policy import Policy
from plaudit_learner.ppo.critic import Critic
from plaudit_learner.ppo.loss import PPOMetrics, beta_from_budget, gae, leave_one_out, ppo_loss, within_prompt_sd
from plaudit_learner.ppo.rollouts import Rollout, sample
from plaudit_learner.reward.features import Encoding, batches, encode
from plaudit_learner.reward.model import RewardModel

MICROBATCH = 16


@dataclass(frozen=True)
class ImproveSettings:
    """How one version is improved from its parent."""

    iterations: int = 8
    """Rounds of sampling and updating."""
    prompts_per_iteration: int = 16
    """Distinct prompts sampled in a round."""
    samples_per_prompt: int = 4
    """Replies to each; at least 2, since each is judged against the others."""
    minibatch_prompts: int = 8
    """Prompts (with all their replies) in one optimiser step."""
    learning_rate: float = 5e-4
    """Of Adam, at the start; falls to `final_learning_rate_share` of it in a straight line."""
    final_learning_rate_share: float = 0.1
    """The learning rate of the last step, as a share of the first."""
    warmup_steps: int = 4
    """Steps over which the learning rate rises: Adam's first ones go full length in every direction, noise included."""
    max_gradient_norm: float = 1.0
    """Longer gradients are shortened to this."""
    kl_budget: float = 4.0
    """Nats a reply, to the reference: the coefficient of the KL is set so that the optimum spends this much.

    A few versions of noisy steps spend about a third of it: with 1.5 the policy came to rest at 0.6 nats, and the
    second version had nowhere to go.
    """
    kl_stop: float = 2.5
    """Nats a reply: past this an iteration is undone and the improvement ends. Keep it below the gate's bound."""
    trace: float | None = 0.9
    """Lambda of GAE with the critic. None: no critic, each reply against the others to its prompt (leave-one-out)."""
    clip: float = 0.2
    """The ratio's clip (Schulman et al. 2017, eq. 7)."""
    temperature: float = 0.7
    """As served."""
    max_prompt_tokens: int = 128
    """Longer prompts are left out: sampling reads the whole prompt again for every token, so they cost the most."""
    max_new_tokens: int = 48
    """As served, or less to go faster."""
    unfinished_penalty: float = 0.0
    """Taken from the score of a reply without EOS, in deviations of the score."""

    def __post_init__(self) -> None:
        for name in ("iterations", "prompts_per_iteration", "minibatch_prompts", "max_prompt_tokens", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.samples_per_prompt < 2:
            raise ValueError("samples_per_prompt must be at least 2: each reply is judged against the others")
        if min(self.kl_budget, self.kl_stop, self.temperature) <= 0:
            raise ValueError("kl_budget, kl_stop and temperature must be positive")


@dataclass(frozen=True)
class IterationMetrics:
    """What one iteration saw. Reward, length and finished are of the rollouts, the rest of the update."""

    iteration: int
    reward: float
    """Mean score of the fresh rollouts, in deviations of the reference's."""
    reward_within_sd: float
    """Its deviation among replies to one prompt."""
    length: float
    """Mean reply length, tokens."""
    finished: float
    """Share of replies that end in EOS."""
    kl: float
    """KL to the reference, nats per reply."""
    entropy: float
    """Nats per token."""
    clip_fraction: float
    """Share of tokens held by the clip."""
    drift: float
    """KL of this iteration's update, nats per reply."""
    gradient_norm: float
    """Before it is clipped."""


@dataclass(frozen=True)
class ImproveResult:
    """How it went. The policy itself was changed in place."""

    iterations: list[IterationMetrics]
    beta: float
    """The coefficient of the KL, in units of the score per nat."""
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
) -> ImproveResult:
    """Improve `policy` in place on fresh replies to `prompts`, which may repeat over iterations.

    Raises NothingToImproveError if no prompt is short enough, or if all replies to a prompt are scored alike.
    """
    s = settings
    prompts = [prompt for prompt in prompts if len(prompt) <= s.max_prompt_tokens]
    if not prompts:
        raise NothingToImproveError(f"there are no prompts of at most {s.max_prompt_tokens} tokens to improve on")
    optimizer = torch.optim.Adam(policy.parameters(), lr=s.learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_share(step, s))
    queue = _cycle(prompts, seed)
    done: list[IterationMetrics] = []
    stopped: str | None = None

    first = _take(queue, s.prompts_per_iteration)
    with policy.reference():
        rollouts = _sample(policy, first, s, seed)
    encodings = encode(policy, [r.item for r in rollouts], prefixes=True)
    # In deviations of what the reference policy gets, whatever was voted on.
    reward_model = reward_model.normalised(torch.stack([e.features_D for e in encodings]))
    rewards_BK = _rewards(reward_model, rollouts, encodings, s)
    reference_reward, s_within = float(rewards_BK.mean()), within_prompt_sd(rewards_BK)
    if s_within < 1e-6:
        raise NothingToImproveError("the reward model scores all replies to a prompt alike")
    beta = beta_from_budget(s_within, s.kl_budget)
    critic = None if s.trace is None else Critic(reward_model, s.max_new_tokens)
    fresh = policy.is_reference

    for i in range(s.iterations):
        before = policy.snapshot()
        # An untrained policy is the reference: its first rollouts exist already.
        if not (i == 0 and fresh):
            rollouts = _sample(policy, _take(queue, s.prompts_per_iteration), s, seed + 1 + i)
            encodings = encode(policy, [r.item for r in rollouts], prefixes=True)
            rewards_BK = _rewards(reward_model, rollouts, encodings, s)
        # Reward and beta in units of s_within: the length of a gradient then does not depend on the reward's scale.
        advantages_BT = _advantages(critic, rollouts, encodings, rewards_BK, s) / s_within
        metrics, norms = _update(policy, optimizer, schedule, rollouts, encodings, advantages_BT, beta / s_within, s)
        done.append(_summary(i + 1, rollouts, rewards_BK, metrics, norms))
        progress(done[-1])
        if done[-1].kl > s.kl_stop:
            policy.restore(before)
            stopped = f"iteration {i + 1} undone: KL {done[-1].kl:.2f} nats per reply, bound {s.kl_stop:g}"
            break
    return ImproveResult(done, beta, s_within, reference_reward, stopped, reward_model)


def _update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    rollouts: Sequence[Rollout],
    encodings: Sequence[Encoding],
    advantages_BT: Tensor,
    beta: float,
    s: ImproveSettings,
) -> tuple[list[PPOMetrics], list[float]]:
    """One pass over the rollouts, in minibatches of whole prompts."""
    metrics, norms = [], []
    size = s.minibatch_prompts * s.samples_per_prompt
    for start in range(0, len(rollouts), size):
        minibatch = range(start, min(start + size, len(rollouts)))
        optimizer.zero_grad()
        for rows in batches([rollouts[row].item for row in minibatch], MICROBATCH):
            rows_B = [minibatch[row] for row in rows]
            loss, part = _loss(
                policy, [rollouts[r] for r in rows_B], [encodings[r] for r in rows_B], advantages_BT[rows_B], beta, s
            )
            (loss * (len(rows_B) / len(minibatch))).backward()
            metrics.append(part)
        norms.append(float(torch.nn.utils.clip_grad_norm_(policy.parameters(), s.max_gradient_norm)))
        optimizer.step()
        schedule.step()
    return metrics, norms


def _loss(
    policy: Policy,
    rollouts: Sequence[Rollout],
    encodings: Sequence[Encoding],
    advantages_BT: Tensor,
    beta: float,
    s: ImproveSettings,
) -> tuple[Tensor, PPOMetrics]:
    logits_BTV, tokens_BT, mask_BT = policy.reply_logits([r.item for r in rollouts])
    with torch.no_grad():
        states = [e.predicting_TH for e in encodings]
        ref_logits_BTV = policy.head(torch.nn.utils.rnn.pad_sequence(states, batch_first=True))
    logprobs = [torch.tensor(r.logprobs) for r in rollouts]
    logprobs_BT = torch.nn.utils.rnn.pad_sequence(logprobs, batch_first=True)
    # Fresh rollouts: the policy that sampled them is the proximal policy.
    return ppo_loss(
        logits_BTV,
        ref_logits_BTV,
        tokens_BT,
        mask_BT,
        advantages_BT[:, : tokens_BT.shape[1]],
        logprobs_BT,
        logprobs_BT,
        beta=beta,
        temperature=s.temperature,
        clip=s.clip,
    )


def _advantages(
    critic: Critic | None,
    rollouts: Sequence[Rollout],
    encodings: Sequence[Encoding],
    rewards_BK: Tensor,
    s: ImproveSettings,
) -> Tensor:
    """Of each token of each reply (B, longest reply), in units of the score."""
    mask_BT = torch.nn.utils.rnn.pad_sequence([torch.ones(len(r.reply)) for r in rollouts], batch_first=True)
    if critic is None or s.trace is None:
        return leave_one_out(rewards_BK).flatten()[:, None] * mask_BT
    rewards_B = rewards_BK.flatten()
    values = critic.values(rollouts, encodings, rewards_B)
    rewards_BT = torch.zeros_like(mask_BT)
    rewards_BT[torch.arange(len(rollouts)), mask_BT.sum(dim=1).long() - 1] = rewards_B  # at the last real token
    return gae(rewards_BT, torch.nn.utils.rnn.pad_sequence(values, batch_first=True), mask_BT, s.trace)


def _learning_rate_share(step: int, s: ImproveSettings) -> float:
    """Up over the warm-up, and down in a straight line over all steps."""
    steps = s.iterations * math.ceil(s.prompts_per_iteration / s.minibatch_prompts)
    down = 1 - (1 - s.final_learning_rate_share) * step / max(1, steps - 1)
    return min((step + 1) / (s.warmup_steps + 1), down)


def _sample(policy: Policy, prompts: Sequence[tuple[int, ...]], s: ImproveSettings, seed: int) -> list[Rollout]:
    return sample(
        policy,
        prompts,
        samples_per_prompt=s.samples_per_prompt,
        max_new_tokens=s.max_new_tokens,
        temperature=s.temperature,
        seed=seed,
    )


def _rewards(
    model: RewardModel, rollouts: Sequence[Rollout], encodings: Sequence[Encoding], s: ImproveSettings
) -> Tensor:
    scores_B = model.score_features(torch.stack([e.features_D for e in encodings]))
    unfinished_B = torch.tensor([0.0 if r.finished else 1.0 for r in rollouts])
    return (scores_B - s.unfinished_penalty * unfinished_B).view(-1, s.samples_per_prompt)


def _cycle(prompts: Sequence[tuple[int, ...]], seed: int) -> Iterator[tuple[int, ...]]:
    """Every prompt once before any comes again, each time in another order."""
    order, generator = list(dict.fromkeys(prompts)), random.Random(seed)  # noqa: S311
    while True:
        generator.shuffle(order)
        yield from order


def _take(queue: Iterator[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    return [next(queue) for _ in range(count)]


def _summary(
    iteration: int, rollouts: Sequence[Rollout], rewards_BK: Tensor, parts: Sequence[PPOMetrics], norms: Sequence[float]
) -> IterationMetrics:
    update = {f.name: sum(asdict(p)[f.name] for p in parts) / len(parts) for f in fields(PPOMetrics)}
    return IterationMetrics(
        iteration=iteration,
        reward=float(rewards_BK.mean()),
        reward_within_sd=within_prompt_sd(rewards_BK),
        length=sum(len(r.reply) for r in rollouts) / len(rollouts),
        finished=sum(r.finished for r in rollouts) / len(rollouts),
        kl=update["kl"],
        entropy=update["entropy"],
        clip_fraction=update["clip_fraction"],
        drift=update["drift"],
        gradient_norm=sum(norms) / len(norms),
    )
