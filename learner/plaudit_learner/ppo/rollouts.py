"""Fresh replies of a policy to logged prompts, with the log-probability of each sampled token.

Made by `sample`; read by the reward model, by PPO and by the gate. Sampling is plain temperature sampling (no
top-p, no top-k), so that the log-probabilities are those of the distribution really sampled from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.ranks import ALONE, Ranks, evenly

_BLOCK = 256
_CROWD = 7 / 8
"""Finished replies leave the batch when so few are left: the rest goes faster, but all that was read is copied."""


@dataclass(frozen=True)
class Rollout:
    """One sampled reply; immutable."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    """Token ids as sampled; ends with EOS if and only if `finished`."""
    logprobs: tuple[float, ...]
    """Natural logarithm of each reply token's probability under the behaviour policy, at its temperature."""
    finished: bool

    @property
    def item(self) -> PromptReply:
        """The prompt and the reply without the log-probabilities."""
        return PromptReply(self.prompt, self.reply, self.finished)


@dataclass
class _Draft:
    reply: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


def sample(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    *,
    samples_per_prompt: int = 1,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int = 48,
    ranks: Ranks = ALONE,
) -> list[Rollout]:
    """Sample replies; those of one prompt stand next to each other, in the order of `prompts`.

    batch_size: replies sampled at once at the most (at least one prompt's). Prompts of like length share a batch.
    The same arguments and weights give the same replies; no global random state is read or changed. What is drawn for
    a reply depends on its place only, not on who shares its batch: up to rounding, replies do not depend on batch_size
    or on how many ranks share the work. All ranks get all replies.
    Raises ValueError if the temperature or a count is not positive.
    """
    if temperature <= 0 or min(samples_per_prompt, max_new_tokens, batch_size) < 1:
        raise ValueError("temperature, samples_per_prompt, max_new_tokens and batch_size must be positive")
    generator = torch.Generator().manual_seed(seed)
    uniform_PKT = torch.rand(len(prompts), samples_per_prompt, max_new_tokens, generator=generator, dtype=torch.float64)
    found: dict[tuple[int, int], Rollout] = {}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for chunk in ranks.mine(evenly(by_length, max(1, batch_size // samples_per_prompt), ranks.size)):
        with torch.no_grad():
            drafts = _sample_batch(policy, [prompts[i] for i in chunk], temperature, uniform_PKT[chunk])
        for row, draft in enumerate(drafts):
            i, k = chunk[row // samples_per_prompt], row % samples_per_prompt
            found[i, k] = Rollout(prompts[i], tuple(draft.reply), tuple(draft.logprobs), draft.finished)
    return [rollout for _, rollout in sorted(ranks.union(found).items())]


def _sample_batch(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    temperature: float,
    uniform_PKT: Tensor,
) -> list[_Draft]:
    """K replies of at most T tokens to each prompt; uniform_PKT is drawn from 0 to 1, a number for each token."""
    context = policy.read(prompts)
    context.select(torch.arange(len(prompts)).repeat_interleave(uniform_PKT.shape[1]))
    uniform_BT = uniform_PKT.flatten(0, 1)
    drafts = [_Draft() for _ in uniform_BT]
    active = list(drafts)
    for t in range(uniform_BT.shape[1]):
        probabilities_BV = torch.softmax(context.logits_BV / temperature, dim=-1)
        tokens_B1 = _draw(probabilities_BV, uniform_BT[:, t : t + 1])
        _record(active, tokens_B1, probabilities_BV.gather(1, tokens_B1).log(), policy.eos_ids)
        going = [row for row, draft in enumerate(active) if not draft.finished]
        if not going or t + 1 == uniform_BT.shape[1]:
            break
        if len(going) <= _CROWD * len(active):
            context.select(torch.tensor(going))
            tokens_B1, uniform_BT = tokens_B1[going], uniform_BT[going]
            active = [active[row] for row in going]
        policy.extend(context, tokens_B1, torch.ones_like(tokens_B1))
    return drafts


def _draw(probabilities_BV: Tensor, uniform_B1: Tensor) -> Tensor:
    """A token a row (B1), from a number in [0, 1): first the block of tokens that it falls in, then the token within.

    Far faster than torch.multinomial, and than one cumulative sum, which would have to be float64 over all the row.
    """
    missing = -probabilities_BV.shape[1] % _BLOCK
    blocks_BNK = nn.functional.pad(probabilities_BV, (0, missing)).unflatten(1, (-1, _BLOCK))
    blocks_BN = blocks_BNK.sum(dim=2).double()
    block_B1 = _invert(blocks_BN, uniform_B1)
    cumulative_BN, mass_B1 = blocks_BN.cumsum(dim=1), blocks_BN.gather(1, block_B1)
    left_B1 = uniform_B1 * cumulative_BN[:, -1:] - (cumulative_BN.gather(1, block_B1) - mass_B1)
    within_BK = blocks_BNK[torch.arange(len(blocks_BNK)), block_B1[:, 0]]
    return block_B1 * _BLOCK + _invert(within_BK, (left_B1 / mass_B1).clamp(0, 1 - 2**-53))


def _invert(weights_BN: Tensor, uniform_B1: Tensor) -> Tensor:
    """The column (B1) that a number in [0, 1) falls in, if columns are as wide as their weights."""
    cumulative_BN = weights_BN.double().cumsum(dim=1)
    # Scaled by the total, so that rounding cannot put it past the last column, nor in one of weight 0.
    at_B1 = uniform_B1 * cumulative_BN[:, -1:]
    return torch.searchsorted(cumulative_BN, at_B1, right=True).clamp(max=weights_BN.shape[1] - 1)


def _record(drafts: Sequence[_Draft], tokens_B1: Tensor, logprobs_B1: Tensor, eos_ids: frozenset[int]) -> None:
    tokens, logprobs = tokens_B1[:, 0].tolist(), logprobs_B1[:, 0].tolist()
    for draft, token, logprob in zip(drafts, tokens, logprobs, strict=True):
        if not draft.finished:
            draft.reply.append(token)
            draft.logprobs.append(logprob)
            draft.finished = token in eos_ids
