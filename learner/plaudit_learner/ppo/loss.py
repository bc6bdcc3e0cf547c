"""PPO as pure functions of tensors.

The steps, in order: 1. rewards to advantages; 2. importance weights for who sampled the tokens; 3. the clipped
surrogate; 4. the exact KL to the reference; 5. their sum, to which PPO-ptx adds the instruction loss. Three policies
are kept apart: the behaviour policy mu that sampled the reply (its log-probabilities are logged), the proximal policy
pi_old that the clip is around, and pi, which learns. For rollouts fresh from the weights that are to be improved, mu
and pi_old are one.

Shapes: B replies, K samples of one prompt, T reply tokens (padded on the right), V vocabulary. Every mask is 1 at
the reply's real tokens, its EOS included, and 0 at pads. Log-probabilities and KL are in nats, at the temperature
that the replies were sampled with. All sums are per reply, not per token: the objective is reward minus
beta times the KL of a whole reply, and a mean over tokens would favour long or short ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit_learner.ppo.vocabulary import compare


@dataclass(frozen=True)
class PPOMetrics:
    """Of one batch, as plain numbers; means over replies unless said."""

    loss: float
    """What was minimised, in units of reward."""
    surrogate: float
    """The clipped objective (to be maximised), per reply."""
    kl: float
    """KL(pi || reference), nats per reply."""
    entropy: float
    """Of pi, nats per token."""
    clip_fraction: float
    """Share of tokens whose ratio the clip holds."""
    drift: float
    """KL(pi_old || pi) estimated on the sampled tokens, nats per reply: how far this update has gone."""
    behaviour_weight: float
    """Mean of the truncated importance weights, over tokens; 1 if the behaviour policy is the proximal one."""


def leave_one_out(rewards_BK: Tensor) -> Tensor:
    """Each reward minus the mean of the other K - 1 for the same prompt (Kool et al. 2019; Ahmadian et al. 2024).

    Returns advantages_BK. Unbiased, and free of what lies between prompts, which the policy cannot change.
    Raises ValueError if K < 2.
    """
    samples = rewards_BK.shape[1]
    if samples < 2:
        raise ValueError("leave-one-out needs at least 2 samples a prompt")
    return (rewards_BK - rewards_BK.mean(dim=1, keepdim=True)) * (samples / (samples - 1))


def within_prompt_sd(rewards_BK: Tensor) -> float:
    """Standard deviation of the reward among replies to one prompt: root of the mean unbiased variance."""
    return float(rewards_BK.var(dim=1).mean().sqrt())


def beta_from_budget(s_within: float, kl_budget: float) -> float:
    """The KL coefficient whose optimum spends `kl_budget` nats a reply: s / sqrt(2 * budget).

    The optimum of E[r] - beta KL is reference * exp(r / beta); for a Gaussian reward of deviation s its KL is
    s^2 / (2 beta^2). Raises ValueError if the budget is not positive.
    """
    if kl_budget <= 0:
        raise ValueError("the KL budget must be positive")
    return s_within / math.sqrt(2 * kl_budget)


_STEEPEST = 2.0  # past twice the target an improvement ends anyway


def beta_held(beta: float, kl: float, kl_target: float) -> float:
    """The KL coefficient while a policy stands at `kl` (nats): steeply higher past `kl_target`, else as derived.

    A function of where the policy stands, not a controller with a memory (Ziegler et al. 2019, §2.2): a round has a
    dozen updates, each of which answers to a coefficient only over the next few, and a factor for each of them piled up
    to ten times what was needed. Where the coefficient alone would let the KL rest at n times the target, it rests at
    n^(1/7) times, as the KL goes by 1 / beta^2. Never lower than derived: what a reward is not worth at the price that
    was derived for it is not to be bought.
    """
    return beta * float(min(max(1.0, kl / kl_target), _STEEPEST) ** 3)


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, trace: float) -> Tensor:
    """Generalised advantage estimation, undiscounted (Schulman et al. 2016, eq. 16, with gamma 1).

    delta_t = r_t + V_{t+1} - V_t, with V = 0 after a reply's last token; A_t = delta_t + trace * A_{t+1}. values_BT is
    what was expected before each token, `trace` is the paper's lambda. Returns advantages_BT, 0 at pads.
    Raises ValueError if `trace` is not within 0 to 1.
    """
    if not 0 <= trace <= 1:
        raise ValueError("the trace (lambda) must be between 0 and 1")
    mask_BT = mask_BT.to(values_BT.dtype)
    values_BT, rewards_BT = values_BT * mask_BT, rewards_BT * mask_BT
    following_BT = torch.cat([values_BT[:, 1:], torch.zeros_like(values_BT[:, :1])], dim=1)
    delta_BT = rewards_BT + following_BT - values_BT
    advantages_BT = torch.zeros_like(values_BT)
    ahead_B = torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(values_BT.shape[1])):
        # Pads lie behind the last token: what comes from there is 0, and so decays nothing.
        ahead_B = delta_BT[:, t] + trace * ahead_B
        advantages_BT[:, t] = ahead_B
    return advantages_BT * mask_BT


def at_the_end(rewards_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Each reply's reward at its last real token (BT), nothing elsewhere: pads lie behind it, whatever stands there."""
    rewards_BT = torch.zeros_like(mask_BT)
    rewards_BT[torch.arange(len(mask_BT)), mask_BT.sum(dim=1).long() - 1] = rewards_B
    return rewards_BT


def penalised(rewards_BT: Tensor, logprobs_BT: Tensor, ref_logprobs_BT: Tensor, beta: float) -> Tensor:
    """The reward at each token less beta (log pi - log reference) of what was sampled (Ziegler et al. 2019, eq. 2).

    The sum over a reply has beta times its KL as its expectation. Log-probabilities of the policy that sampled.
    """
    return rewards_BT - beta * (logprobs_BT - ref_logprobs_BT)


def masked_whiten(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the real tokens, 0 at pads: the pads take no part in the mean and the variance."""
    count = mask_BT.sum()
    mean = (values_BT * mask_BT).sum() / count
    variance = ((values_BT - mean) ** 2 * mask_BT).sum() / count
    return (values_BT - mean) * torch.rsqrt(variance + 1e-8) * mask_BT


def token_logprobs(logits_BTV: Tensor, tokens_BT: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities over the vocabulary (BTV, float32), and those of the tokens (BT)."""
    logprobs_BTV = torch.log_softmax(logits_BTV.float() / temperature, dim=-1)
    return logprobs_BTV, logprobs_BTV.gather(-1, tokens_BT[..., None])[..., 0]


def truncated_weights(proximal_logprobs_BT: Tensor, behaviour_logprobs_BT: Tensor, cap: float) -> Tensor:
    """min(pi_old / mu, cap) for each token (BT): corrects for who sampled it (Espeholt et al. 2018, section 4.1)."""
    return (proximal_logprobs_BT - behaviour_logprobs_BT).exp().clamp(max=cap)


def clipped_surrogate(ratio_BT: Tensor, advantages_BT: Tensor, clip: float) -> Tensor:
    """min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) for each token (BT) (Schulman et al. 2017, eq. 7)."""
    return torch.minimum(ratio_BT * advantages_BT, ratio_BT.clamp(1 - clip, 1 + clip) * advantages_BT)


def instruction_loss(logits_BTV: Tensor, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """-log P(output | prompt), nats, summed over the outputs' tokens: the last term of Ouyang et al. 2022, eq. 2.

    At temperature 1, as instruction tuning has it; the prompts' tokens take no part.
    """
    return -(token_logprobs(logits_BTV, tokens_BT, 1.0)[1] * mask_BT).sum()


def ppo_loss(
    logits_BTV: Tensor,
    ref_logits_BTV: Tensor,
    tokens_BT: Tensor,
    mask_BT: Tensor,
    advantages_BT: Tensor,
    proximal_logprobs_BT: Tensor,
    behaviour_logprobs_BT: Tensor,
    *,
    beta: float,
    temperature: float,
    clip: float = 0.2,
    weight_cap: float = 2.0,
) -> tuple[Tensor, PPOMetrics]:
    """The loss to minimise, a mean over replies, and what to report. Gradients flow through `logits_BTV` only.

    advantages_BT: of `gae`, or of `leave_one_out`, whose one number for a reply stands at each of its tokens.
    proximal_logprobs_BT, behaviour_logprobs_BT: of `tokens_BT` under pi_old and under mu, at `temperature`.
    """
    mask_BT = mask_BT.float()
    replies, tokens = mask_BT.shape[0], mask_BT.sum()
    logprobs_BT, kl_BT, entropy_BT, _ = compare(logits_BTV, ref_logits_BTV, tokens_BT, mask_BT, temperature)

    # 1. An advantage for every real token; none at pads.
    advantages_BT = advantages_BT * mask_BT
    # 2. Correct for replies that an older or differently rounded policy sampled.
    weight_BT = truncated_weights(proximal_logprobs_BT, behaviour_logprobs_BT, weight_cap) * mask_BT
    # 3. The clipped surrogate. The mask comes before exp: what stands at pads is arbitrary and may overflow.
    log_ratio_BT = (logprobs_BT - proximal_logprobs_BT) * mask_BT
    ratio_BT = log_ratio_BT.exp()
    surrogate = (weight_BT * clipped_surrogate(ratio_BT, advantages_BT, clip)).sum() / replies
    # 4. The KL itself, not an estimate: the gradient of the usual estimators is not that of the KL.
    kl = kl_BT.sum() / replies
    # 5. Maximise surrogate - beta KL.
    loss = beta * kl - surrogate

    with torch.no_grad():
        held_BT = ((ratio_BT - 1) * advantages_BT.sign() > clip).float() * mask_BT
        metrics = PPOMetrics(
            loss=float(loss),
            surrogate=float(surrogate),
            kl=float(kl),
            entropy=float(entropy_BT.sum() / tokens),
            clip_fraction=float(held_BT.sum() / tokens),
            drift=float(((ratio_BT - 1 - log_ratio_BT) * mask_BT).sum() / replies),
            behaviour_weight=float(weight_BT.sum() / tokens),
        )
    return loss, metrics
