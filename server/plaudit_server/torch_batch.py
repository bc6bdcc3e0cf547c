"""Decoding several replies of one set of weights together, with replies coming and going between steps.

Rows are padded on the left, so that the newest token of each is in the last column:

    mask_BT   0 0 1 1 1 1   row 0, prompt of 3, one token sampled
              1 1 1 1 1 1   row 1, joined earlier

Shapes: B rows, H key-value heads, T columns, D head size, V vocabulary.
"""

# ruff: noqa: N803, N806  (names of tensors carry their shapes)

from __future__ import annotations

from typing import Any, Generic, TypeVar

import torch
from torch.nn.functional import log_softmax, pad
from transformers import DynamicCache

from plaudit_server.engine import Sampling


class Row:
    """One reply in a batch: what to feed next, and how to sample."""

    def __init__(self, prompt_token_ids: tuple[int, ...], sampling: Sampling) -> None:
        self.prompt_token_ids = prompt_token_ids
        self.sampling = sampling
        self.random = torch.Generator()
        if sampling.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(sampling.seed)
        self.token_id = -1  # the one sampled last
        self.leaving = False

    def sample(self, logits_V: torch.Tensor) -> float:
        """Sample `token_id`; returns its log-probability."""
        self.token_id, logprob = sample(logits_V, self.sampling, self.random)
        return logprob


R = TypeVar("R", bound=Row)


class Batch(Generic[R]):
    """The rows that one model decodes together, and their keys and values."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache = DynamicCache()
        self._mask_BT = torch.ones(0, 0, dtype=torch.long)
        self.rows: list[R] = []

    def prefill(self, row: R) -> torch.Tensor:
        """Add `row`; returns logits_V for its first token."""
        cache = DynamicCache()
        ids_1T = torch.tensor([row.prompt_token_ids])
        logits = self._model(input_ids=ids_1T, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        mask_1T = torch.ones_like(ids_1T)
        if self.rows:
            columns = max(self._mask_BT.shape[1], mask_1T.shape[1])
            self._mask_BT = torch.cat([_widen(self._mask_BT, columns), _widen(mask_1T, columns)])
            for mine, new in zip(self._cache.layers, cache.layers, strict=True):
                mine.keys = torch.cat([_deepen(mine.keys, columns), _deepen(new.keys, columns)])
                mine.values = torch.cat([_deepen(mine.values, columns), _deepen(new.values, columns)])
        else:
            self._cache, self._mask_BT = cache, mask_1T
        self.rows.append(row)
        return logits[0, -1]

    def decode(self) -> torch.Tensor:
        """Feed each row's last token; returns logits_BV for the next ones."""
        positions_B1 = self._mask_BT.sum(dim=1, keepdim=True)
        self._mask_BT = pad(self._mask_BT, (0, 1), value=1)
        logits = self._model(
            input_ids=torch.tensor([[row.token_id] for row in self.rows]),
            attention_mask=self._mask_BT,
            position_ids=positions_B1,
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        return logits[:, -1]

    def evict(self) -> None:
        """Drop the rows that are leaving, and the columns that only they used."""
        staying = [index for index, row in enumerate(self.rows) if not row.leaving]
        if len(staying) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in staying]
        if not staying:
            self._cache, self._mask_BT = DynamicCache(), self._mask_BT[:0]
            return
        mask_BT = self._mask_BT[staying]
        first = int(mask_BT.any(dim=0).int().argmax())
        self._mask_BT = mask_BT[:, first:]
        for layer in self._cache.layers:
            layer.keys = layer.keys[staying, :, first:]
            layer.values = layer.values[staying, :, first:]


def sample(logits_V: torch.Tensor, sampling: Sampling, random: torch.Generator) -> tuple[int, float]:
    """A token, and its log-probability after temperature and top-p (0.0 when greedy)."""
    if sampling.temperature == 0:
        return int(logits_V.argmax()), 0.0
    # The greatest logit is subtracted first, or a tiny temperature would make it infinite.
    logprobs_V = log_softmax((logits_V.float() - logits_V.max().float()) / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        descending_V, order_V = logprobs_V.exp().sort(descending=True)
        mass_before_V = descending_V.cumsum(0) - descending_V
        outside_V = mass_before_V >= sampling.top_p
        outside_V[0] = False
        logprobs_V[order_V[outside_V]] = -torch.inf
        logprobs_V = log_softmax(logprobs_V, dim=-1)
    token_id = int(torch.multinomial(logprobs_V.exp(), 1, generator=random))
    return token_id, float(logprobs_V[token_id])


def _widen(mask_BT: torch.Tensor, columns: int) -> torch.Tensor:
    return pad(mask_BT, (columns - mask_BT.shape[1], 0))


def _deepen(states_BHTD: torch.Tensor, columns: int) -> torch.Tensor:
    return pad(states_BHTD, (0, 0, columns - states_BHTD.shape[2], 0))
