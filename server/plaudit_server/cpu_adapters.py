"""Cheap adapters for vLLM on a CPU.

vLLM's own arithmetic for the CPU copies the matrices of a token's adapter out for each token, multiplies in float32,
and does so in layers that no loaded adapter touches. Here the rows of a step are grouped by adapter, and each group
goes through two plain products in the kernels that vLLM picks for any small linear layer of this CPU:

    step ──▶ groups: (v3, rows 0–4), (v4, rows 5–6); rows without an adapter are in none
    layer ─▶ for each group whose adapter has this layer:  y[rows] += (x[rows] · Aᵀ) · Bᵀ

A step whose rows are all of one version runs on weights with the adapter merged in (merged_weights.py).

What it saves is in docs/decisions/0013-adapters-on-a-cpu.md. vLLM's version also takes the slot of a token without an
adapter, -1, for an index: such a token gets whatever the last slot holds. GPUs keep vLLM's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)

from plaudit_server.merged_weights import Layer, Linear, MergedWeights, linear

Rows: TypeAlias = slice | Tensor  # those of one adapter: a view where they lie together
_PLAIN = (ColumnParallelLinear, MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear)


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
        self.groups: list[_Group] = []
        self.merged: dict[Layer, Linear] = {}
        """The layers to use in this step instead of the base model's and its adapters."""
        self._alone: _Group | None = None  # it has all rows of this step
        self._weights: MergedWeights | None = None
        self._products: dict[tuple[int, int], Callable[[Tensor], Tensor] | None] = {}  # by adapter and layer

    def take_over(self, model: Path, modules: dict[str, Any], packed: dict[str, list[str]]) -> None:
        """Run `modules`, vLLM's wrapped layers by name, on merged weights where that is possible; to be called once,
        when `model` is loaded. `packed` has the stored names of each layer that is several in the model's files.
        """
        layers = []
        for name, wrapper in modules.items():
            base = wrapper.base_layer
            if type(base) in _PLAIN and isinstance(base.quant_method, UnquantizedLinearMethod):
                wrapper.apply = layer = _AdaptedLayer(packed.get(name, [name]), wrapper, self)
                layers.append(layer)
        self._weights = MergedWeights(model, layers)

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
        self.groups = [_Group(adapter, lora_index_to_id.index(adapter), _together(rows[adapter])) for adapter in rows]
        self._alone, self.merged = None, {}
        if self._weights is None:
            return
        self._weights.forget_others(lora_index_to_id)
        if [len(found) for found in rows.values()] == [len(mapping.index_mapping)]:
            [self._alone] = self.groups
            self.merged = self._weights.of(self._alone.adapter)

    def after_step(self) -> None:
        """Merge one more layer for the version that had the step to itself."""
        if self._weights is not None and self._alone is not None:
            self._weights.merge_next(self._alone.adapter, self._alone.slot)

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
        for adapter, slot, rows in self.groups:
            key = (adapter, id(lora_a_stacked))  # a layer keeps its tuple for as long as it lives
            if key not in self._products:
                self._products[key] = _product(_matrices(lora_a_stacked, lora_b_stacked, slot), scale)
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


class _AdaptedLayer:
    """What is called as `apply` of vLLM's wrapper: in a step without adapters it costs what the bare layer does."""

    def __init__(self, parts: Sequence[str], wrapper: Any, adapters: GroupedAdapters) -> None:
        self.parts = parts
        self._multiply, self._weight = wrapper.base_layer.cpu_linear, wrapper.base_layer.weight
        self._a, self._b = wrapper.lora_a_stacked, wrapper.lora_b_stacked
        self._adapters = adapters

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        merged = self._adapters.merged.get(self)
        if merged is not None:
            return merged(x, bias)
        y = self.base(x, bias)
        if self._adapters.groups:
            # Some models have one more dimension, of size 1.
            self._adapters.add_lora_linear(y.flatten(0, -2), x.flatten(0, -2), self._a, self._b, 1.0, ())
        return y

    def base(self, x: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = self._multiply(x, self._weight, bias)
        return y

    def matrices(self, slot: int) -> list[tuple[Tensor, Tensor]] | None:
        return _matrices(self._a, self._b, slot)


def _together(rows: list[int]) -> Rows:
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(rows[0], rows[-1] + 1)
    scattered: Tensor = torch.tensor(rows)
    return scattered


def _matrices(
    a_stacked: Sequence[Tensor], b_stacked: Sequence[Tensor], slot: int
) -> list[tuple[Tensor, Tensor]] | None:
    """(A, B) of each part of a layer, of the adapter in `slot`; None if it has nothing in this layer.

    vLLM merges layers (query, key and value; gate and up), and stacks the parts' matrices apart, padded to the largest
    rank: here they are without the padding.
    """
    matrices = []
    for a, b in zip(a_stacked, b_stacked, strict=True):
        used = (a[slot, 0].any(1) & b[slot, 0].any(0)).nonzero()[:, 0]
        matrices.append((a[slot, 0, used], b[slot, 0][:, used]))
    return matrices if any(a.numel() for a, _ in matrices) else None


def _product(matrices: list[tuple[Tensor, Tensor]] | None, scale: float) -> Callable[[Tensor], Tensor] | None:
    """x → (x · Aᵀ) · Bᵀ: A has the parts' rows below one another, and B is block-diagonal."""
    if matrices is None:
        return None
    shrink = linear(torch.cat([a for a, _ in matrices]))
    expand = linear(torch.block_diag(*[b * scale for _, b in matrices]))
    return lambda x: expand(shrink(x, None), None)
