"""Attention without copies of keys and values gives what transformers' own gives, to models that have that one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM
from transformers.models.llama.modeling_llama import eager_attention_forward

from plaudit_learner.attention import grouped_attention, use_grouped_attention

B, Q, G, S, D = 3, 6, 2, 7, 8


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("masked", [True, False])
def test_it_is_eager_attention(tokens: int, masked: bool) -> None:
    random = torch.Generator().manual_seed(tokens)
    shapes = ((B, Q, tokens, D), (B, G, S, D), (B, G, S, D))
    query, key, value = (torch.randn(shape, generator=random, requires_grad=True) for shape in shapes)
    mask = torch.where(torch.rand(B, 1, tokens, S, generator=random) < 0.3, -1e9, 0.0) if masked else None
    module = nn.Module().eval()
    module.num_key_value_groups = Q // G
    weights = torch.randn(B, tokens, Q, D, generator=random)

    def outcome(attention: object) -> list[torch.Tensor]:
        output, _ = attention(module, query, key, value, mask, scaling=0.3)  # type: ignore[operator]
        return [output, *torch.autograd.grad((output * weights).sum(), (query, key, value))]

    for ours, theirs in zip(outcome(grouped_attention), outcome(eager_attention_forward), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_models_with_llamas_attention_get_it(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager").eval()
    tokens = torch.tensor([[257, 97, 98, 99], [0, 0, 257, 97]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    with torch.no_grad():
        before = model(tokens, attention_mask=mask).logits[mask.bool()]
        use_grouped_attention(model)
        assert model.config._attn_implementation != "eager"
        torch.testing.assert_close(model(tokens, attention_mask=mask).logits[mask.bool()], before)


def test_a_model_with_another_attention_keeps_its_own() -> None:
    config = Gemma2Config(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        attn_implementation="eager",
    )
    model = Gemma2ForCausalLM(config)
    use_grouped_attention(model)
    assert model.config._attn_implementation == "eager"
