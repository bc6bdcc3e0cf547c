"""Cheap adapters for vLLM on a CPU.

vLLM's own arithmetic for the CPU copies the matrices of a token's adapter out for each token, multiplies in float32,
and does so in layers that no loaded adapter touches. Here the rows of a step are grouped by adapter, and each group
goes through two plain products in the kernels that vLLM picks for any small linear layer of this CPU:

    step ──▶ groups: (v3, rows 0–4), (v4, rows 5–6); rows without an adapter are in none
    layer ─▶ for each group whose adapter has this layer:  y[rows] += (x[rows] · Aᵀ) · Bᵀ

What it saves is in docs/decisions/0013-adapters-on-a-cpu.md. vLLM's version also takes the slot of a token without an
adapter, -1, for an index: such a token gets whatever the last slot holds. GPUs keep vLLM's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

Rows: TypeAlias = slice | Tensor  # those of one adapter: a view where they lie together


class _Group(NamedTuple):
    """The rows of a step that one adapter has."""

    adapter: int
    """vLLM's id of it, which is the version's number: never used for other weights."""
    slot: int
    """Where vLLM keeps its matrices, within the tensors that each layer stacks."""
    rows: Rows


class GroupedAdapters(PunicaWrapperBase):  # type: ignore[misc]  # vLLM is not type-checked
    """What vLLM asks, in every layer that may have an adapter, to add what the adapters make of the layer's input."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups: list[_Group] = []
        self._products: dict[tuple[int, int], Callable[[Tensor], Tensor] | None] = {}  # by adapter and layer

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        """Whose the rows are from now on: vLLM calls this before a step that differs from the last, in that or in the
        slots. Adapters that are no longer loaded are forgotten.
        """
        self._products = {key: product for key, product in self._products.items() if key[0] in lora_index_to_id}
        rows: dict[int, list[int]] = {}
        for row, adapter in enumerate(mapping.index_mapping):
            if adapter > 0:  # 0: none
                rows.setdefault(adapter, []).append(row)
        self._groups = [_Group(adapter, lora_index_to_id.index(adapter), _together(rows[adapter])) for adapter in rows]

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add to `y`, a row a token, what their adapters make of `x` in this layer."""
        for adapter, slot, rows in self._groups:
            key = (adapter, id(lora_a_stacked))  # a layer keeps its tuple for as long as it lives
            if key not in self._products:
                self._products[key] = _product(lora_a_stacked, lora_b_stacked, slot, scale)
            product = self._products[key]
            if product is None:
                continue
            if isinstance(rows, slice):
                y[rows].add_(product(x[rows]))
            else:
                y.index_add_(0, rows, product(x[rows]))

    def _nothing_else(self, *args: Any, **kwargs: Any) -> None:
        """For parts of a model that have no adapter: adapters.py refuses one, and vllm_engine.py names the layers."""
        raise NotImplementedError

    add_shrink = add_expand = add_lora_embedding = add_lora_logits = apply_lora_full_linear = _nothing_else


def _together(rows: list[int]) -> Rows:
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(rows[0], rows[-1] + 1)
    scattered: Tensor = torch.tensor(rows)
    return scattered


def _product(
    a_stacked: Sequence[Tensor], b_stacked: Sequence[Tensor], slot: int, scale: float
) -> Callable[[Tensor], Tensor] | None:
    """x → (x · Aᵀ) · Bᵀ of the adapter in `slot`; None if it has nothing in this layer.

    vLLM merges layers (query, key and value; gate and up), and stacks the parts' matrices apart, padded to the largest
    rank: here A has the parts' rows below one another without the padding, and B is block-diagonal.
    """
    a_parts, b_parts = [], []
    for a, b in zip(a_stacked, b_stacked, strict=True):
        used = (a[slot, 0].any(1) & b[slot, 0].any(0)).nonzero()[:, 0]
        a_parts.append(a[slot, 0, used])
        b_parts.append(b[slot, 0][:, used] * scale)
    if not any(part.numel() for part in a_parts):
        return None
    shrink, expand = _linear(torch.cat(a_parts)), _linear(torch.block_diag(*b_parts))
    return lambda x: expand(shrink(x))


def _linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """x → x · weightᵀ, packed as vLLM packs the weights of a linear layer."""
    layer = nn.Module()
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    multiply, rest = layer.cpu_linear, layer.weight
    return lambda x: multiply(x, rest, None)
