"""One pass of PPO over one iteration's rollouts.

Shapes: B prompts or replies, K replies to one prompt, T reply tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from plaudit_learner.policy import Policy
from plaudit_learner.ppo.loss import PPOMetrics, ppo_loss, within_prompt_sd
from plaudit_learner.ppo.rollouts import Rollout
from plaudit_learner.ppo.settings import ImproveSettings
from plaudit_learner.reward.features import Encoding, batches

MICROBATCH = 16


@dataclass(frozen=True)
class Scored:
    """Rollouts of one iteration, K to each prompt; read by the reference policy, scored by the reward model."""

    rollouts: list[Rollout]
    encodings: list[Encoding]
    """With the features of all prefixes."""
    rewards_BK: Tensor
    """In deviations of the reference's, for B prompts."""


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


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    scored: Scored,
    advantages_BT: Tensor,
    beta: float,
    s: ImproveSettings,
) -> tuple[list[PPOMetrics], list[float]]:
    """One pass over the rollouts, in minibatches of whole prompts; returns what was seen and the gradients' lengths.

    advantages_BT, beta: in one unit of the reward, whichever.
    """
    rollouts, encodings = scored.rollouts, scored.encodings
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
    trunks = [e.trunk for e in encodings if e.trunk is not None]
    logits_BTV, tokens_BT, mask_BT = policy.reply_logits([r.item for r in rollouts], trunks or None)
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


def learning_rate_share(step: int, s: ImproveSettings) -> float:
    """Up over the warm-up, and down in a straight line over all steps."""
    steps = s.iterations * math.ceil(s.prompts_per_iteration / s.minibatch_prompts)
    down = 1 - (1 - s.final_learning_rate_share) * step / max(1, steps - 1)
    return min((step + 1) / (s.warmup_steps + 1), down)


def summary(iteration: int, scored: Scored, parts: Sequence[PPOMetrics], norms: Sequence[float]) -> IterationMetrics:
    """Of one iteration, from what its update saw."""
    rollouts, rewards_BK = scored.rollouts, scored.rewards_BK
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
