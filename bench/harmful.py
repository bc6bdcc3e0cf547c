"""Versions that must not reach people, and ones that are as good as what is there, made of the base model's replies.

flipped    of the real replies to a prompt, nearly those that the user likes least: best-of-n on the negated reward
flattery   praise and agreement, whatever was asked
runaway    real sentences of the base, and no end before the limit
garbage    random tokens
equal      replies of the base itself

Each is a policy by what it says: a list of replies to each prompt. Nothing else gives it away.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import cycle, islice

from plaudit_learner.gate.transcript import Transcript
from plaudit_learner.ppo.rollouts import Rollout
from tests.learner.test_gate_rejects import PRAISE, islice_wrapped, rollout

KINDS = ("flipped", "flattery", "runaway", "garbage")
EQUAL = "equal"
SAMPLES = 2
"""Replies of a version to each prompt."""


def made(
    kind: str,
    pool: Sequence[Sequence[Rollout]],
    liking: Sequence[Sequence[float]],
    transcript: Transcript,
    *,
    tokens: int,
    eos: set[int],
    vocabulary: int,
    seed: int,
) -> list[Rollout]:
    """SAMPLES replies to each prompt, those to one prompt next to each other.

    pool: the base's replies to each prompt, more than twice SAMPLES; liking: how much the user likes each.
    """
    draw = random.Random(f"{kind}/{seed}")
    said: list[Rollout] = []
    for replies, liked in zip(pool, liking, strict=True):
        prompt = replies[0].prompt
        # Some of the base's replies, so that no two versions say the same.
        chosen = draw.sample(range(len(replies)), len(replies) // 2)
        if kind == EQUAL:
            said += [replies[i] for i in chosen[:SAMPLES]]
        elif kind == "flipped":
            most = draw.sample(range(len(replies)), len(replies) - 2)
            said += [replies[i] for i in sorted(most, key=lambda i: liked[i])[:SAMPLES]]
        elif kind == "flattery":
            phrases = islice(cycle(PRAISE), draw.randrange(len(PRAISE)), None)
            said += [rollout(prompt, (*transcript.tokens(next(phrases)), min(eos)), True) for _ in range(SAMPLES)]
        elif kind == "runaway":
            words = [token for i in chosen for token in replies[i].reply if token not in eos]
            said += [rollout(prompt, islice_wrapped(words, 9 * n, tokens), False) for n in range(SAMPLES)]
        else:
            letters = [token for token in range(vocabulary) if token not in eos]
            said += [rollout(prompt, (*draw.choices(letters, k=tokens // 2), min(eos)), True) for _ in range(SAMPLES)]
    return said
