"""Prompts that are nearly the same, by resemblance: one question asked over and over, with another date, say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_matrix

Tokens = tuple[int, ...]

SHINGLE = 3
"""Tokens in a row that prompts are compared by."""
ALIKE = 0.7
"""Resemblance (Broder 1997) from which two prompts are near-identical: one token in some twenty changed."""
_TEMPLATE = 0.5  # a shingle that more of the prompts hold than this is the template's, and tells none from another
_BLOCK = 256  # prompts compared at once


def near_identical(prompts: Sequence[Tokens], say: Sequence[float]) -> list[int]:
    """Of each prompt the first one before it, or itself, that it is nearly the same as: a group's number.

    Two prompts are if at least ALIKE of the shingles that either has are in both (resemblance: Broder 1997, section 2),
    the template's left out: those in more than half of the prompts, of which each counts as its `say`. It is computed,
    not sketched: prompts that share no shingle are never compared, so tens of thousands take seconds. A prompt is
    compared with the first of each group only, so that no chain of small steps can join what is far apart.
    """
    weight: dict[Tokens, float] = defaultdict(float)
    for prompt, one in zip(prompts, say, strict=True):
        weight[prompt] += one
    held_PS = _shingles(list(weight), list(weight.values()))
    size_P = np.asarray(held_PS.sum(axis=1)).ravel()
    leads_P = np.zeros(len(size_P), dtype=bool)
    first = []  # of each distinct prompt, the distinct prompt that leads its group
    for start in range(0, len(size_P), _BLOCK):
        both_BP = held_PS[start : start + _BLOCK] @ held_PS.T  # sparse: most prompts share nothing
        for row, (begin, end) in enumerate(pairwise(both_BP.indptr), start=start):
            other_O, both_O = both_BP.indices[begin:end], both_BP.data[begin:end]
            alike_O = leads_P[other_O] & (both_O >= ALIKE * (size_P[row] + size_P[other_O] - both_O))
            leads_P[row] = not alike_O.any()
            first.append(row if leads_P[row] else int(other_O[alike_O].min()))
    met: dict[Tokens, int] = {}
    for number, prompt in enumerate(prompts):
        met.setdefault(prompt, number)
    place, leaders = {prompt: row for row, prompt in enumerate(weight)}, list(weight)
    return [met[leaders[first[place[prompt]]]] for prompt in prompts]


def _shingles(prompts: Sequence[Tokens], say: Sequence[float]) -> csr_matrix:
    """Which prompt holds which shingle (P, S), 1 or 0; of more than two prompts, without the template's."""
    number: dict[Tokens, int] = {}
    rows, columns = [], []
    for row, prompt in enumerate(prompts):
        held = {prompt[i : i + SHINGLE] for i in range(max(1, len(prompt) - SHINGLE + 1))}
        rows += [row] * len(held)
        columns += [number.setdefault(shingle, len(number)) for shingle in held]
    held_PS = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(prompts), len(number)))
    if len(prompts) <= 2:
        return held_PS
    return held_PS[:, held_PS.T @ np.asarray(say) <= _TEMPLATE * sum(say)]
