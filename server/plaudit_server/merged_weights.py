"""Weights with an adapter merged in, for steps of vLLM on a CPU whose rows all have that adapter.

Nearly all steps are such: most requests are the stable version's. A layer with merged weights costs what the base
model's costs; the grouped products of cpu_adapters.py are for steps of several versions, and for as long as a layer is
not merged yet.

    step: v3 v3 v3 ─▶ merged layers of v3            after the step: one more layer of v3 is merged
    step: v3 v4 v3 ─▶ base layers + grouped products

Nothing waits for it and nothing that runs changes hands: a version's weights are made beside the base model's, one
layer after each step, from the model's files, because vLLM packs the weights for its kernels and drops what it read.

Memory: one more copy of the layers that the adapter has, in the model's dtype, for each of the `MOST_VERSIONS` versions
that last had a step to themselves (85 MB each for SmolLM2-135M with 12 of 30 layers); none once it is unloaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor, nn
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

log = logging.getLogger(__name__)

MOST_VERSIONS = 2  # the stable one and a canary
_COMPARED = 4  # columns of a weight

Linear: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""(x, bias) → x · weightᵀ + bias."""


class Layer(Protocol):
    """A linear layer that may have adapters."""

    parts: Sequence[str]
    """What the model's files call it; several that vLLM runs as one (query, key and value), in its order."""

    def base(self, x: Tensor, bias: Tensor | None, /) -> Tensor:
        """Without any adapter."""

    def matrices(self, slot: int) -> list[tuple[Tensor, Tensor]] | None:
        """(A, B) of each part, of the adapter that vLLM keeps in `slot`; None if it has nothing here."""


class MergedWeights:
    """Of several versions, by their numbers."""

    def __init__(self, model: Path, layers: Sequence[Layer]) -> None:
        self._files = _Files(model)
        self._layers = layers
        self._versions: dict[int, _Version] = {}  # the last one that was alone in a step is last

    def of(self, adapter: int) -> dict[Layer, Linear]:
        """The layers merged with `adapter` so far. It has a step to itself: others may be forgotten for it."""
        version = self._versions.pop(adapter, None) or _Version(self._layers)
        self._versions[adapter] = version
        for one in list(self._versions)[:-MOST_VERSIONS]:
            del self._versions[one]
        return version.merged

    def forget_others(self, loaded: Collection[int | None]) -> None:
        """Keep those of `loaded` only."""
        self._versions = {adapter: version for adapter, version in self._versions.items() if adapter in loaded}

    def merge_next(self, adapter: int, slot: int) -> None:
        """Merge one more layer, if one is left, with the adapter that vLLM keeps in `slot`."""
        version = self._versions[adapter]
        for layer in version.left:
            if (matrices := layer.matrices(slot)) is None:
                continue
            base = self._files.weight(layer, matrices[0][0].dtype)
            if base is None:
                log.warning("v%d is not merged: %s differs from the model's files", adapter, layer.parts)
                version.left = iter(())
                return
            version.merged[layer] = linear(_merge(base, matrices))
            return


class _Version:
    def __init__(self, layers: Sequence[Layer]) -> None:
        self.left: Iterator[Layer] = iter(layers)
        self.merged: dict[Layer, Linear] = {}


class _Files:
    """The model's weights as they are stored."""

    def __init__(self, model: Path) -> None:
        self._file_of: dict[str, Any] = {}  # files are mapped into memory: what is not asked for is not read
        for path in sorted(model.glob("*.safetensors")):
            file: Any = safe_open(path, framework="pt")
            self._file_of |= dict.fromkeys(file.keys(), file)

    def weight(self, layer: Layer, dtype: torch.dtype) -> list[Tensor] | None:
        """Of each of the layer's parts; None unless vLLM runs just that in `dtype`, as a few unit vectors tell."""
        names = [f"{part}.weight" for part in layer.parts]
        if not all(name in self._file_of for name in names):
            return None
        parts = [self._file_of[name].get_tensor(name) for name in names]
        columns = torch.linspace(0, parts[0].shape[1] - 1, _COMPARED).long()
        units = nn.functional.one_hot(columns, parts[0].shape[1]).to(dtype)
        stored = torch.cat([part[:, columns].to(dtype) for part in parts])
        return parts if torch.equal(layer.base(units, None), stored.T) else None


def _merge(base: Sequence[Tensor], matrices: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The weight base + B · A, parts below one another: added up in float32 and rounded once."""
    merged = [torch.addmm(part.float(), b.float(), a.float()) for part, (a, b) in zip(base, matrices, strict=True)]
    return torch.cat(merged).to(matrices[0][0].dtype)


def linear(weight: Tensor) -> Linear:
    """A layer with that weight, packed as vLLM packs one."""
    layer = nn.Module()
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    multiply, rest = layer.cpu_linear, layer.weight
    return lambda x, bias: multiply(x, rest, bias)
