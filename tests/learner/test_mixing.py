"""PPO-ptx: the instruction loss beside PPO's, against numbers worked by hand and transformers' own loss."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plaudit_learner.config import LearnerSettings
from plaudit_learner.instruct.evaluate import losses
from plaudit_learner.instruct.mixture import instruction_examples
from plaudit_learner.policy import Policy, PromptReply, prompt_key
from plaudit_learner.ppo.improve import improve
from plaudit_learner.ppo.loss import instruction_loss, ppo_loss
from plaudit_learner.ppo.rollouts import sample
from plaudit_learner.ppo.settings import ImproveSettings
from plaudit_learner.ppo.update import Scored, update
from plaudit_learner.reward.features import encode
from plaudit_learner.rounds import told_apart
from tests.learner.improve_in_ranks import SETTINGS, prompts, reward_model

SHARES = (0.5, 0.25, 0.25)


def examples(first: int, last: int) -> list[PromptReply]:
    """Everything is answered by "ok!"."""
    return [
        PromptReply((257, 97 + i % 26, 97 + i // 26, 258, 10), (111, 107, 33, 258), True) for i in range(first, last)
    ]


def test_only_the_outputs_tokens_count() -> None:
    logits = torch.tensor([SHARES, SHARES, SHARES]).log().view(1, 3, 3)
    tokens, mask = torch.tensor([[0, 2, 1]]), torch.tensor([[1, 1, 0]])
    assert float(instruction_loss(logits, tokens, mask)) == pytest.approx(math.log(2) + math.log(4))


def test_the_joint_gradient_by_hand() -> None:
    """One distribution p = SHARES says both a reply's token and the two tokens of an example."""
    logits_V = torch.tensor(SHARES).log().requires_grad_()
    logits_11V = logits_V.view(1, 1, 3)
    token, one = torch.tensor([[0]]), torch.ones(1, 1)
    as_sampled = torch.tensor([[math.log(SHARES[0])]])
    ppo, _ = ppo_loss(
        logits_11V, logits_11V.detach(), token, one, 2 * one, as_sampled, as_sampled, beta=0.0, temperature=1
    )
    outputs = instruction_loss(logits_11V.expand(1, 2, 3), torch.tensor([[1, 2]]), torch.ones(1, 2)) / 2
    (ppo + 0.4 * outputs).backward()
    # -2 (e_0 - p) = (-1, 0.5, 0.5), and 0.4 (p - (e_1 + e_2) / 2) = (0.2, -0.1, -0.1)
    assert logits_V.grad is not None
    torch.testing.assert_close(logits_V.grad, torch.tensor([-0.8, 0.4, 0.4]))


def test_a_step_is_ppos_and_that_of_instruction_tuning(tiny_model: Path) -> None:
    """The gradient that the weight adds is transformers' own loss's, of examples of different lengths."""
    items = [PromptReply((257, 97, 10), (98, 99, 258), True), PromptReply((257, 100, 101, 10), (102, 258), True)]
    settings = ImproveSettings(minibatch_prompts=2, samples_per_prompt=2, max_gradient_norm=1e9, temperature=1.0)

    def moved(weight: float) -> list[torch.Tensor]:
        policy = trained(tiny_model)
        before = policy.snapshot()
        rollouts = sample(
            policy, [(257, 97, 10), (257, 98, 10)], samples_per_prompt=2, max_new_tokens=4, temperature=1.0, seed=0
        )
        rewards_BK = torch.tensor([[1.0, -1.0], [0.5, -0.5]])
        encodings = encode(policy, [r.item for r in rollouts])
        scored = Scored(rollouts, encodings, rewards_BK, torch.zeros(0), [r.logprobs for r in rollouts])
        optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        advantages_BT = rewards_BK.flatten()[:, None].expand(-1, 4)
        how = replace(settings, instruct_weight=weight)
        update(policy, optimizer, schedule, scored, advantages_BT, 0.3, how, iter(items))
        return [was - now for was, now in zip(before, policy.snapshot(), strict=True)]

    policy = trained(tiny_model)
    total = sum(len(item.reply) for item in items)
    for item in items:
        ids = torch.tensor([[*item.prompt, *item.reply]])
        labels = ids.clone()
        labels[0, : len(item.prompt)] = -100
        (policy.model(input_ids=ids, labels=labels).loss * len(item.reply) / total).backward()
    for weight, joint, alone in zip(policy.parameters(), moved(0.5), moved(0.0), strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(joint - alone, 0.5 * weight.grad, rtol=5e-3, atol=1e-4)


def trained(model: Path) -> Policy:
    """With an adapter that does something: B is 0 in a new one, and A has no gradient."""
    policy = Policy.load(model)
    random = torch.Generator().manual_seed(0)
    policy.restore([torch.randn(weight.shape, generator=random) * 0.05 for weight in policy.parameters()])
    return policy


@pytest.mark.timeout(300)
def test_what_was_instructed_is_kept_while_ppo_learns(tiny_model: Path) -> None:
    """The loss on instructions that were not mixed in falls; without the mixture PPO does not care."""
    held_out, total = examples(60, 80), 20 * 4

    def after(weight: float) -> tuple[float, float]:
        policy = Policy.load(tiny_model)
        settings = replace(SETTINGS, iterations=5, instruct_weight=weight)
        result = improve(policy, reward_model(policy), prompts(20), settings, seed=0, examples=examples(0, 60))
        seen = [metrics.instruct_loss for metrics in result.iterations]
        assert (seen[-1] < seen[0]) if weight else (seen == [0.0] * len(seen))
        return sum(losses(policy, held_out, lambda _: None)) / total, result.iterations[-1].reward

    before = sum(losses(Policy.load(tiny_model), held_out, lambda _: None)) / total
    (mixed, _), (alone, _) = after(0.5), after(0.0)
    assert mixed < before - 0.3
    assert mixed < alone - 0.3


def test_examples_are_those_that_may_be_trained_on(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    records = [{"instruction": f"Say {i}.", "output": f"{i}!"} for i in range(200)]
    records += [{"instruction": "Be long.", "output": "x" * 300}, records[0]]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = instruction_examples(file, tiny_model, 100)
    assert len(found) == len(set(found))
    assert 100 < len(found) < 150, "one in five is held out by `plaudit instruct`, and one in five by the gate"
    _, held_out = told_apart((prompt_key(item.prompt), item.prompt) for item in found)
    assert held_out == [], "the gate's prompts are never trained on"
    assert all(len(item.reply) <= 100 and item.reply[-1] == 258 for item in found)
    with pytest.raises(ValueError, match="no example to train on whose prompt and output are of at most 3 tokens"):
        instruction_examples(file, tiny_model, 3)
    file.write_text('{"instruction": "Say 1."}\n')
    with pytest.raises(ValueError, match=r"instruct_data: .*pairs\.jsonl, line 1: no output is there"):
        instruction_examples(file, tiny_model, 100)
    with pytest.raises(ValueError, match=r"instruct_data: .*missing\.jsonl: there is no such file"):
        instruction_examples(tmp_path / "missing.jsonl", tiny_model, 100)


def test_a_weight_without_examples_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="instruct_weight is set, but not instruct_data"):
        LearnerSettings(event_log="sqlite:x", policy_store="x", state_dir=Path("x"), instruct_weight=0.1)
    with pytest.raises(ValueError, match="instruct_weight must not be negative"):
        replace(SETTINGS, instruct_weight=-0.1)
    policy = Policy.load(tiny_model)
    with pytest.raises(ValueError, match="instruct_weight is set, but there are no instruction examples"):
        improve(policy, reward_model(policy), prompts(4), replace(SETTINGS, instruct_weight=0.1), seed=0)
