"""The trunk: the layers below the lowest adapter. Whatever is learnt, they make the same of the same tokens.

An update therefore need not run them: it begins with what they made when the reference read the replies, on a decoder
that for the time being has no lower layers, and with a cache that counts from the first one that is left.

Shapes: S prompt tokens, T reply tokens, H hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache

LAYER = re.compile(r"\.layers\.(\d+)\..*?([^.]+)$")


class Trunk(NamedTuple):
    """What the trunk makes of one prompt and the reply to it: a hidden state at each token."""

    prompt_SH: Tensor
    reply_TH: Tensor


class Cache(DynamicCache):  # type: ignore[misc]
    """Keys and values of the layers from `first` on. Layers go by their number in the whole model."""

    def __init__(self, config: Any, first: int = 0) -> None:
        super().__init__(config=config)
        self.first = first
        del self.layers[:first]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Add those of one layer's new tokens; gives those of all tokens."""
        both: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx - self.first, *args, **options)
        return both


def lowest_adapter(model: PeftModel) -> int:
    """The number of the lowest layer that any adapter changes; 0 if one changes what belongs to no layer."""
    found = [LAYER.search(name) for name, _ in model.named_parameters() if ".lora_" in name]
    return min(int(match[1]) if match else 0 for match in found)


@contextmanager
def layers_from(model: PeftModel, first: int) -> Iterator[None]:
    """Within this block the model's lowest layers are not there. Raises AttributeError if its decoder is another."""
    if not first:
        yield
        return
    decoder: Any = model.get_base_model().get_decoder()
    whole = decoder.layers
    decoder.layers = whole[first:]
    try:
        yield
    finally:
        decoder.layers = whole
