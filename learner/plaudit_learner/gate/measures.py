"""What the gate measures of replies, as pure functions: one number a reply, so that two policies can be compared
prompt by prompt, and it is known what the luck of sampling makes of them.

Shapes: N replies, K to each of P prompts, next to each other (N = P K).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import torch
from torch import Tensor

from plaudit_learner.ppo.rollouts import Rollout

OPENING_TOKENS = 4
PHRASE_TOKENS = 3
LOOP_TOKENS = 16
"""Shorter replies cannot loop."""


def by_prompt(values: Sequence[float] | Tensor, prompts: int) -> Tensor:
    """The values of N replies, a row a prompt (P, K), float64."""
    return torch.as_tensor(values, dtype=torch.float64).view(prompts, -1)


def replies(rollouts: Sequence[Rollout], prompts: int, eos_ids: frozenset[int]) -> dict[str, Tensor]:
    """What the tokens alone tell, each (P, K): length, cut_off, entropy, empty, loops, openings, phrases.

    The replies to one prompt stand next to each other, as many to each.
    """
    bodies = [[token for token in r.reply if token not in eos_ids] for r in rollouts]
    values = {
        "length": [len(r.reply) for r in rollouts],
        "cut_off": [not r.finished for r in rollouts],
        # Minus the mean log-probability of what was sampled has the entropy as its expectation.
        "entropy": [-sum(r.logprobs) / len(r.reply) for r in rollouts],
        "empty": [not body for body in bodies],
        "loops": [loops(body) for body in bodies],
        "openings": alike([{tuple(body[:OPENING_TOKENS])} for body in bodies], prompts),
        "phrases": alike([set(ngrams(body, PHRASE_TOKENS)) for body in bodies], prompts),
    }
    return {name: by_prompt(value, prompts) for name, value in values.items()}


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Every n tokens in a row."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def loops(body: Sequence[int]) -> bool:
    """Whether a reply says the same again and again: most of its phrases occurred in it before."""
    found = ngrams(body, PHRASE_TOKENS)
    return len(body) >= LOOP_TOKENS and len(set(found)) < len(found) / 2


def alike(traits: Sequence[Collection[Hashable]], prompts: int) -> Tensor:
    """How much replies to different prompts share: one number a reply (N,), whose mean is the mean over all pairs.

    traits: of each reply, each once, in the order of the rollouts. Two replies share |A & B| / sqrt(|A| |B|) of their
    traits: 0 is nothing, 1 is all. With r the mean of the pairs that a reply takes part in and U the mean of all pairs,
    its number is 2 r - U: the first-order projection, whose deviation is what sampling that reply again would change
    in U (Hoeffding 1948, A class of statistics with asymptotically normal distribution, section 7). Unlike a count of
    different ones, U does not depend on how many replies there are.
    """
    samples = len(traits) // prompts
    totals: dict[Hashable, float] = {}
    of_prompts: list[dict[Hashable, float]] = [{} for _ in range(prompts)]
    for row, of_reply in enumerate(traits):
        weight, of_prompt = len(of_reply) ** -0.5 if of_reply else 0.0, of_prompts[row // samples]
        for trait in of_reply:
            totals[trait] = totals.get(trait, 0.0) + weight
            of_prompt[trait] = of_prompt.get(trait, 0.0) + weight
    shared = [
        sum(totals[trait] - of_prompts[row // samples][trait] for trait in of_reply) / max(1, len(of_reply)) ** 0.5
        for row, of_reply in enumerate(traits)
    ]
    mean_N = torch.tensor(shared, dtype=torch.float64) / (samples * (prompts - 1))
    return 2 * mean_N - mean_N.mean()
