"""The policy against the plain model: what is shared, cached and padded must not change a number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from plaudit_learner.policy import ADAPTER_WEIGHTS, AdapterConfig, Policy, PromptReply, pad
from plaudit_learner.trunk import Trunk
from tests.tiny_model import IM_END, make_tiny_adapter

PROMPTS = [(257, 97, 98, 99, 258, 10), (257, 100, 10), (257, 97, 98, 99, 258, 10, 101, 102, 103)]
ITEMS = [
    PromptReply(PROMPTS[0], (65, 66, 67, IM_END), True),
    PromptReply(PROMPTS[1], (68,), False),
    PromptReply(PROMPTS[0], (IM_END,), True),
    PromptReply(PROMPTS[2], (69, 70, 71, 72, 73), False),
]


@pytest.fixture
def policy(tiny_model: Path) -> Policy:
    return Policy.load(tiny_model)


def disturb(policy: Policy, seed: int = 0) -> None:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn(weight.shape, generator=random) * 0.1)


def test_logits_are_those_of_reading_each_sequence_alone(policy: Policy, tiny_model: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    logits, tokens, mask = policy.reply_logits(ITEMS)
    for row, item in enumerate(ITEMS):
        length = len(item.reply)
        with torch.no_grad():
            expected = plain(torch.tensor([[*item.prompt, *item.reply]])).logits[0, len(item.prompt) - 1 : -1]
        torch.testing.assert_close(logits[row, :length], expected, atol=1e-4, rtol=1e-4)
        assert tokens[row, :length].tolist() == list(item.reply)
        assert mask[row].tolist() == [1] * length + [0] * (5 - length)


def test_gradients_are_those_of_reading_each_sequence_alone(policy: Policy) -> None:
    disturb(policy)

    def gradients(groups: list[list[PromptReply]]) -> list[torch.Tensor]:
        policy.model.zero_grad()
        for group in groups:
            logits, tokens, mask = policy.reply_logits(group)
            picked = torch.log_softmax(logits, dim=-1).gather(-1, tokens[..., None])[..., 0]
            (picked * mask).sum().backward()
        return [weight.grad.clone() for weight in policy.parameters() if weight.grad is not None]

    together, alone = gradients([ITEMS]), gradients([[item] for item in ITEMS])
    assert len(together) == len(policy.parameters())
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_reference_is_the_model_without_its_adapter(policy: Policy) -> None:
    before = policy.reply_logits(ITEMS)[0].detach()
    assert policy.is_reference
    disturb(policy)
    assert not policy.is_reference
    changed = policy.reply_logits(ITEMS)[0]
    assert not torch.allclose(changed, before)
    with policy.reference():
        reference = policy.reply_logits(ITEMS)[0]
    assert not reference.requires_grad
    torch.testing.assert_close(reference, before)
    assert policy.reply_logits(ITEMS)[0].requires_grad


def test_one_reading_of_the_reference_gives_its_states_and_its_logits(policy: Policy, tiny_model: Path) -> None:
    disturb(policy)
    reading = policy.reference_states(ITEMS, [0, 1, 2])
    with policy.reference():
        logits, _, mask = policy.reply_logits(ITEMS)
    real = mask.bool()
    torch.testing.assert_close(policy.head(reading.predicting_BTH)[real], logits[real], atol=1e-4, rtol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    item = ITEMS[3]
    with torch.no_grad():
        hidden = plain(torch.tensor([[*item.prompt, *item.reply]]), output_hidden_states=True).hidden_states
    for layer in range(3):
        torch.testing.assert_close(
            reading.states_LBTH[layer, 3], hidden[layer][0, len(item.prompt) :], atol=1e-4, rtol=1e-4
        )


def test_what_the_trunk_made_need_not_be_read_again(tiny_model: Path) -> None:
    """Logits and gradients from the trunk's states, kept before the policy changed, are those of reading all layers."""
    policy = Policy.load(tiny_model, config=AdapterConfig(layers=1))
    assert policy.trunk == 1
    trunks = policy.reference_states(ITEMS, [0]).trunks
    disturb(policy)

    def outcome(given: list[Trunk] | None, order: list[int]) -> list[torch.Tensor]:
        policy.model.zero_grad()
        logits, tokens, mask = policy.reply_logits([ITEMS[i] for i in order], given and [given[i] for i in order])
        picked = torch.log_softmax(logits, dim=-1).gather(-1, tokens[..., None])[..., 0]
        (picked * mask).sum().backward()
        return [logits[mask.bool()].detach(), *(w.grad.clone() for w in policy.parameters() if w.grad is not None)]

    for order in ([0, 1, 2, 3], [2, 1], [2]):  # in other company, and as short as can be
        for ours, whole in zip(outcome(trunks, order), outcome(None, order), strict=True):
            torch.testing.assert_close(ours, whole, atol=1e-4, rtol=1e-3)
    with policy.reference():
        reference = policy.reply_logits(ITEMS)[0]
    assert not torch.allclose(policy.reply_logits(ITEMS, trunks)[0], reference)


def test_a_cpu_without_bfloat16_computes_in_float32(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plaudit_learner.policy.cpu_wants_float32", lambda: True)
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert Policy.load(tmp_path).reply_logits(ITEMS)[0].dtype == torch.float32


def test_in_bfloat16_the_adapter_still_learns_in_float32(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plaudit_learner.policy.cpu_wants_float32", lambda: False)
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(tmp_path)
    policy = Policy.load(tmp_path, config=AdapterConfig(layers=1))
    assert policy.trunk == 1
    trunks = policy.reference_states(ITEMS, [0]).trunks
    disturb(policy)
    logits, _, mask = policy.reply_logits(ITEMS, trunks)
    whole = policy.reply_logits(ITEMS)[0]
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits[mask.bool()], whole[mask.bool()], atol=0.1, rtol=0.05)
    logits.float().square().sum().backward()
    for weight in policy.parameters():
        assert weight.dtype == torch.float32
        assert weight.grad is not None
        assert weight.grad.any()


def test_no_trunk_where_an_adapter_is_on_the_lowest_layer_or_the_model_cannot_begin_above(
    tiny_model: Path, tmp_path: Path
) -> None:
    tuned = make_tiny_adapter(tmp_path / "tuned", tiny_model, seed=1, layers=[0])
    learning = make_tiny_adapter(tmp_path / "learning", tiny_model, seed=2, layers=[1])
    assert Policy.load(tiny_model, parent_adapter=learning, reference_adapter=tuned).trunk == 0
    assert Policy.load(tiny_model).trunk == 0
    config = OPTConfig(
        vocab_size=259,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=IM_END,
    )
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")  # adds positions to what it is given to begin with
    policy = Policy.load(tmp_path / "opt", config=AdapterConfig(layers=1))
    assert policy.trunk == 0
    trunks = policy.reference_states(ITEMS, [0]).trunks
    disturb(policy)
    assert torch.equal(policy.reply_logits(ITEMS, trunks)[0], policy.reply_logits(ITEMS)[0])


def test_saved_adapter_opens_with_peft_and_as_parent(policy: Policy, tiny_model: Path, tmp_path: Path) -> None:
    disturb(policy)
    policy.save_adapter(tmp_path / "adapter")
    expected = policy.reply_logits(ITEMS)[0].detach()

    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == ["adapter_config.json", ADAPTER_WEIGHTS]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny_model.name
    assert str(tiny_model.parent) not in (tmp_path / "adapter" / "adapter_config.json").read_text()

    child = Policy.load(tiny_model, parent_adapter=tmp_path / "adapter", config=AdapterConfig(rank=4))
    torch.testing.assert_close(child.reply_logits(ITEMS)[0], expected)
    assert all(weight.requires_grad for weight in child.parameters())

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    plain = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    item = ITEMS[3]
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor([[*item.prompt, *item.reply]])).logits[0, len(item.prompt) - 1 : -1]
    torch.testing.assert_close(logits, expected[3], atol=1e-4, rtol=1e-4)


def test_parent_of_another_model_is_refused(policy: Policy, tiny_model: Path, tmp_path: Path) -> None:
    one_layer = Policy.load(tiny_model, config=AdapterConfig(layers=1))
    assert len(one_layer.parameters()) == len(policy.parameters()) / 2
    one_layer.save_adapter(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers_to_transform": [0, 1]}))
    with pytest.raises(ValueError, match="does not fit"):
        Policy.load(tiny_model, parent_adapter=tmp_path)


def test_only_the_adapter_learns_and_dropout_is_off(policy: Policy) -> None:
    learning = {name for name, weight in policy.model.named_parameters() if weight.requires_grad}
    assert learning
    assert all("lora_" in name for name in learning)
    assert not any(module.training for module in policy.model.modules())


def test_loading_is_seeded_and_leaves_the_global_generator_alone(tiny_model: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    a, b, c = (Policy.load(tiny_model, seed=seed) for seed in (0, 0, 1))
    assert torch.rand(1) == expected
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


def test_snapshot_and_restore(policy: Policy) -> None:
    before = policy.snapshot()
    disturb(policy)
    policy.restore(before)
    assert all(torch.equal(x, y) for x, y in zip(policy.parameters(), before, strict=True))


def test_pads_are_known_by_length() -> None:
    tokens, mask = pad([(5, 0, 7), (0,)], left=True)
    assert tokens.tolist() == [[5, 0, 7], [0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_empty_prompt_or_reply_is_refused(policy: Policy) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        policy.read([()])
    with pytest.raises(ValueError, match="no tokens"):
        policy.reply_logits([PromptReply((1,), (), False)])
