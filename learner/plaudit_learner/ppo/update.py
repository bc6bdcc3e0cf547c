"""One pass of PPO over one iteration's rollouts.

Shapes: B prompts or replies, K replies to one prompt, T reply tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.ppo.loss import PPOMetrics, instruction_loss, ppo_loss, token_logprobs, within_prompt_sd
from plaudit_learner.ppo.rollouts import Rollout
from plaudit_learner.ppo.settings import ImproveSettings
from plaudit_learner.ranks import ALONE, Ranks
from plaudit_learner.reward.features import Encoding, batches

MICROBATCH = 16


@dataclass(frozen=True)
class Scored:
    """Rollouts of one iteration, K to each prompt; read by the reference policy, scored by the reward model.

    After the fresh ones there may be logged ones.
    """

    rollouts: list[Rollout]
    encodings: list[Encoding]
    """With the features of all prefixes."""
    rewards_BK: Tensor
    """Of the fresh ones, in deviations of the reference's, for B prompts."""
    logged_rewards_N: Tensor
    """Of the logged ones."""
    proximal: list[tuple[float, ...]]
    """Log-probabilities of each reply's tokens under the policy that is to be updated; of fresh ones, as sampled."""

    @property
    def fresh(self) -> list[Rollout]:
        """Those that the policy itself sampled."""
        return self.rollouts[: self.rewards_BK.numel()]

    @property
    def rewards_N(self) -> Tensor:
        """Of all rollouts."""
        return torch.cat([self.rewards_BK.flatten(), self.logged_rewards_N])


@dataclass(frozen=True)
class Seen:
    """By one update; read by `summary`."""

    parts: list[PPOMetrics]
    """Of each part of a minibatch."""
    norms: list[float]
    """The gradients' lengths, of each step."""
    instruct_losses: list[float]
    """Of the instruction examples of each step, nats a token; empty if none were mixed in."""


@dataclass(frozen=True)
class IterationMetrics:
    """What one iteration saw. Reward, length and finished are of the fresh rollouts, the rest of the update."""

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
    behaviour_weight: float = 1.0
    """Mean of the truncated importance weights of logged replies' tokens, and of the fresh ones', which are 1."""
    instruct_loss: float = 0.0
    """Of the instruction examples that were mixed in, nats a token; 0 if none were."""


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    scored: Scored,
    advantages_BT: Tensor,
    beta: float,
    s: ImproveSettings,
    examples: Iterator[PromptReply],
    ranks: Ranks = ALONE,
) -> Seen:
    """One pass over the rollouts, in minibatches of whole prompts.

    advantages_BT, beta: in one unit of the reward, whichever. examples: `minibatch_prompts` of them are taken for each
    step if `instruct_weight` is set. ranks: share each minibatch, and take the same step.
    """
    rollouts, encodings = scored.rollouts, scored.encodings
    metrics: dict[tuple[int, int], PPOMetrics] = {}
    norms, instruct_losses = [], []
    weights = policy.parameters()
    for number, minibatch in enumerate(minibatches(len(rollouts), s)):
        optimizer.zero_grad()
        for rows in ranks.mine(batches([rollouts[row].item for row in minibatch], MICROBATCH, ranks.size)):
            rows_B = [minibatch[row] for row in rows]
            loss, part = _loss(
                policy,
                [rollouts[r] for r in rows_B],
                [encodings[r] for r in rows_B],
                [scored.proximal[r] for r in rows_B],
                advantages_BT[rows_B],
                beta,
                s,
            )
            (loss * (len(rows_B) / len(minibatch))).backward()
            metrics[number, rows[0]] = part
        if s.instruct_weight:
            taken = [next(examples) for _ in range(s.minibatch_prompts)]
            instruct_losses.append(_add_instruction_gradient(policy, taken, s.instruct_weight, ranks))
        ranks.add_gradients(weights)
        norms.append(float(torch.nn.utils.clip_grad_norm_(weights, s.max_gradient_norm)))
        optimizer.step()
        schedule.step()
    return Seen([part for _, part in sorted(ranks.union(metrics).items())], norms, instruct_losses)


def minibatches(replies: int, s: ImproveSettings) -> list[list[int]]:
    """Rows in minibatches of whole prompts, with as large a share of what comes last, the logged ones, in each."""
    prompts = list(range(0, replies, s.samples_per_prompt))
    count = -(-len(prompts) // s.minibatch_prompts)
    return [
        [row for prompt in prompts[first::count] for row in range(prompt, min(prompt + s.samples_per_prompt, replies))]
        for first in range(count)
    ]


def _add_instruction_gradient(policy: Policy, items: Sequence[PromptReply], weight: float, ranks: Ranks) -> float:
    """Of `weight` times the mean loss, nats a token, which is returned; as `plaudit instruct` minimises it."""
    tokens = sum(len(item.reply) for item in items)
    losses: dict[int, float] = {}
    for rows in ranks.mine(batches(items, MICROBATCH, ranks.size)):
        loss = instruction_loss(*policy.reply_logits([items[row] for row in rows])) / tokens
        (weight * loss).backward()
        losses[rows[0]] = float(loss.detach())
    return sum(loss for _, loss in sorted(ranks.union(losses).items()))


def proximal_logprobs(
    policy: Policy, items: Sequence[PromptReply], temperature: float, ranks: Ranks = ALONE
) -> list[tuple[float, ...]]:
    """Of each reply's tokens, under the policy as it is before an update; for replies that another one sampled."""
    found: dict[int, tuple[float, ...]] = {}
    for rows in ranks.mine(batches(items, MICROBATCH, ranks.size)):
        with torch.no_grad():
            logits_BTV, tokens_BT, _ = policy.reply_logits([items[row] for row in rows])
            logprobs_BT = token_logprobs(logits_BTV, tokens_BT, temperature)[1]
        for row, logprobs_T in zip(rows, logprobs_BT.tolist(), strict=True):
            found[row] = tuple(logprobs_T[: len(items[row].reply)])
    return [logprobs for _, logprobs in sorted(ranks.union(found).items())]


def _loss(
    policy: Policy,
    rollouts: Sequence[Rollout],
    encodings: Sequence[Encoding],
    proximal: Sequence[tuple[float, ...]],
    advantages_BT: Tensor,
    beta: float,
    s: ImproveSettings,
) -> tuple[Tensor, PPOMetrics]:
    trunks = [e.trunk for e in encodings if e.trunk is not None]
    logits_BTV, tokens_BT, mask_BT = policy.reply_logits([r.item for r in rollouts], trunks or None)
    with torch.no_grad():
        states = [e.predicting_TH for e in encodings]
        ref_logits_BTV = policy.head(torch.nn.utils.rnn.pad_sequence(states, batch_first=True))
    proximal_BT, behaviour_BT = (
        torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in each], batch_first=True)
        for each in (proximal, [r.logprobs for r in rollouts])
    )
    return ppo_loss(
        logits_BTV,
        ref_logits_BTV,
        tokens_BT,
        mask_BT,
        advantages_BT[:, : tokens_BT.shape[1]],
        proximal_BT,
        behaviour_BT,
        beta=beta,
        temperature=s.temperature,
        clip=s.clip,
    )


def learning_rate_share(step: int, s: ImproveSettings) -> float:
    """Up over the warm-up, and down in a straight line over all steps."""
    steps = s.iterations * s.steps
    down = 1 - (1 - s.final_learning_rate_share) * step / max(1, steps - 1)
    return min((step + 1) / (s.warmup_steps + 1), down)


def summary(iteration: int, scored: Scored, seen: Seen) -> IterationMetrics:
    """Of one iteration, from what its update saw."""
    rollouts, rewards_BK, parts = scored.fresh, scored.rewards_BK, seen.parts
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
        gradient_norm=sum(seen.norms) / len(seen.norms),
        behaviour_weight=update["behaviour_weight"],
        instruct_loss=sum(seen.instruct_losses) / max(1, len(seen.instruct_losses)),
    )
