"""What cannot be seen from outside the engine: that layers are merged, which, and when they are let go."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from plaudit_server.merged_weights import MergedWeights

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),  # importing vLLM warns of many things
]

ATTENTION = ("q_proj", "k_proj", "v_proj")


@dataclass(eq=False)
class Layer:
    """One of the tiny model's attention layers, as vLLM merges it; adapters of rank 2 have it in slots 0 and 1."""

    parts: Sequence[str]
    weights: list[Tensor]
    adapters: list[list[tuple[Tensor, Tensor]] | None]

    def base(self, x: Tensor, bias: Tensor | None, /) -> Tensor:
        return torch.nn.functional.linear(x, torch.cat(self.weights), bias)

    def matrices(self, slot: int) -> list[tuple[Tensor, Tensor]] | None:
        return self.adapters[slot]

    def expected(self, x: Tensor, slot: int) -> Tensor:
        adapted = zip(self.weights, self.adapters[slot] or [], strict=True)
        return torch.cat([x @ weight.T + x @ a.T @ b.T for weight, (a, b) in adapted], -1)


@pytest.fixture
def layers(tiny_model: Path) -> list[Layer]:
    stored = load_file(tiny_model / "model.safetensors")
    random = torch.Generator().manual_seed(0)
    layers = []
    for block in range(2):
        parts = [f"model.layers.{block}.self_attn.{name}" for name in ATTENTION]
        weights = [stored[f"{part}.weight"] for part in parts]
        adapters: list[list[tuple[Tensor, Tensor]] | None] = [
            [
                (torch.randn(2, weight.shape[1], generator=random), torch.randn(weight.shape[0], 2, generator=random))
                for weight in weights
            ]
            for _ in range(2)
        ]
        layers.append(Layer(parts, weights, adapters))
    return layers


@pytest.fixture
def merged(tiny_model: Path, layers: list[Layer]) -> MergedWeights:
    from plaudit_server.merged_weights import MergedWeights

    return MergedWeights(tiny_model, layers)


def test_one_layer_at_a_time_is_merged(merged: MergedWeights, layers: list[Layer]) -> None:
    x = torch.randn(3, 64)
    found = merged.of(1)
    assert not found
    for count in (1, 2, 2):
        merged.merge_next(1, slot=0)
        assert [*found] == [*layers[:count]]
    merged.of(2)
    merged.merge_next(2, slot=1)
    for layer in layers:
        torch.testing.assert_close(found[layer](x, None), layer.expected(x, 0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(merged.of(2)[layers[0]](x, None), layers[0].expected(x, 1), atol=1e-4, rtol=1e-4)


def test_a_layer_that_the_adapter_leaves_alone_is_not_copied(merged: MergedWeights, layers: list[Layer]) -> None:
    layers[0].adapters[0] = None
    found = merged.of(1)
    merged.merge_next(1, slot=0)
    assert [*found] == [*layers[1:]]


def test_weights_that_are_not_the_files_are_not_merged(merged: MergedWeights, layers: list[Layer]) -> None:
    layers[0].weights = layers[0].weights[::-1]
    found = merged.of(1)
    merged.merge_next(1, slot=0)
    merged.merge_next(1, slot=0)
    assert not found


def test_the_last_two_versions_are_kept_and_no_unloaded_one(merged: MergedWeights) -> None:
    for adapter in (1, 2, 1, 3):
        merged.of(adapter)
        merged.merge_next(adapter, slot=0)
    assert len(merged.of(1)) == 2
    assert not merged.of(2), "forgotten for 3"
    merged.forget_others([None, 2])
    assert not merged.of(1)
