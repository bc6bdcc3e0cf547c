"""Each formula against numbers worked by hand, or against a plain-Python version of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from plaudit_learner.ppo.loss import (
    at_the_end,
    beta_from_budget,
    beta_held,
    clipped_surrogate,
    gae,
    leave_one_out,
    masked_whiten,
    penalised,
    ppo_loss,
    token_logprobs,
    truncated_weights,
    within_prompt_sd,
)
from plaudit_learner.ppo.settings import ImproveSettings
from plaudit_learner.ppo.update import learning_rate_share
from plaudit_learner.ppo.vocabulary import compare

B, T, V = 3, 4, 5
LENGTHS = (4, 2, 1)


def example(seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, T, V, generator=random)
    tokens = torch.randint(V, (B, T), generator=random)
    proximal = token_logprobs(logits + 0.3 * torch.randn(B, T, V, generator=random), tokens, 0.7)[1]
    return {
        "logits_BTV": logits,
        "ref_logits_BTV": torch.randn(B, T, V, generator=random),
        "tokens_BT": tokens,
        "mask_BT": torch.tensor([[float(t < n) for t in range(T)] for n in LENGTHS]),
        "advantages_BT": torch.tensor([[1.5, 0.5, -1.0, 2.0], [-0.5, -1.5, 0.0, 0.0], [0.25, 0.0, 0.0, 0.0]]),
        "proximal_logprobs_BT": proximal,
        "behaviour_logprobs_BT": proximal + 0.5 * torch.randn(B, T, generator=random),
    }


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(x / temperature) for x in row]
    return [power / sum(powers) for power in powers]


def test_leave_one_out_by_hand() -> None:
    # 1 - mean(2, 6) = -3; 2 - mean(1, 6) = -1.5; 6 - mean(1, 2) = 4.5
    torch.testing.assert_close(
        leave_one_out(torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])),
        torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]),
    )


def test_leave_one_out_of_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out(torch.ones(3, 1))


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[0.0, 0.0, 2.0], [0.0, 1.0, 99.0]])
    values = torch.tensor([[0.5, 1.0, 1.5], [0.25, 0.5, -99.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    # Deltas 0.5, 0.5, 0.5 and 0.25, 0.5 (V after the last token is 0). With lambda 0.5, backwards:
    # 0.5, 0.5 + 0.25, 0.5 + 0.375; and 0.5, 0.25 + 0.25. The pad's reward and value count for nothing.
    expected = torch.tensor([[0.875, 0.75, 0.5], [0.5, 0.5, 0.0]])
    torch.testing.assert_close(gae(rewards, values, mask, 0.5), expected)


def test_gae_at_its_ends() -> None:
    """Lambda 1 is the whole return minus the value; lambda 0 is one step of temporal difference."""
    rewards, values, mask = torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([[1.0, 2.0, 0.5]]), torch.ones(1, 3)
    torch.testing.assert_close(gae(rewards, values, mask, 1.0), torch.tensor([[2.0, 1.0, 2.5]]))
    torch.testing.assert_close(gae(rewards, values, mask, 0.0), torch.tensor([[1.0, -1.5, 2.5]]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        gae(rewards, values, mask, 1.5)


def test_pads_do_not_decay_the_sum() -> None:
    """A reply's advantages do not depend on how long the longest reply of its batch is."""
    rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.2, 0.7]])
    alone = gae(rewards, values, torch.ones(1, 2), 0.9)
    longer_r, longer_v, mask = (torch.cat([x, torch.zeros(1, 5)], dim=1) for x in (rewards, values, torch.ones(1, 2)))
    padded = gae(longer_r, longer_v, mask, 0.9)
    torch.testing.assert_close(padded[:, :2], alone)
    assert not padded[:, 2:].any()


def test_within_prompt_deviation_ignores_what_lies_between_prompts() -> None:
    # variances 2 and 8 (unbiased), root of their mean 5
    assert within_prompt_sd(torch.tensor([[0.0, 2.0], [100.0, 104.0]])) == pytest.approx(math.sqrt(5))


def test_beta_from_budget_by_hand() -> None:
    assert beta_from_budget(0.54, 1.5) == pytest.approx(0.54 / math.sqrt(3))
    with pytest.raises(ValueError, match="budget"):
        beta_from_budget(1.0, 0.0)


def test_beta_spends_its_budget_on_a_gaussian_reward() -> None:
    # Tilting a standard normal by exp(s x / beta) moves its mean to m = s / beta, at a KL of m^2 / 2.
    s, budget = 0.7, 1.2
    assert (s / beta_from_budget(s, budget)) ** 2 / 2 == pytest.approx(budget)


def test_beta_is_held_by_hand() -> None:
    assert beta_held(0.2, 3.0, 2.0) == pytest.approx(0.2 * 27 / 8)  # half as much again as was to be spent
    assert beta_held(0.2, 9.0, 2.0) == pytest.approx(0.2 * 8)
    assert beta_held(0.2, 0.1, 2.0) == 0.2  # on the way there: as derived

    # The tilt of a reward of deviation 0.7 would rest at 4 times the target, for its coefficient is half as large.
    at, beta = 8.0, beta_from_budget(0.7, 8.0)
    for _ in range(200):
        at += 0.1 * (0.7**2 / (2 * beta_held(beta, at, 2.0) ** 2) - at)
    assert at == pytest.approx(2.0 * 4 ** (1 / 7))


def test_the_reward_stands_at_the_last_real_token() -> None:
    mask_BT = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    expected_BT = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, -1.0], [0.5, 0.0, 0.0]])
    assert torch.equal(at_the_end(torch.tensor([2.0, -1.0, 0.5]), mask_BT), expected_BT)


def test_the_learning_rate_by_hand() -> None:
    """10 iterations of 2 steps, warmed up in 4, down to a tenth at the last one."""
    settings = ImproveSettings(iterations=10, prompts_per_iteration=16, minibatch_prompts=8)
    shares = [learning_rate_share(step, settings) for step in (0, 1, 3, 4, 19)]
    assert shares == pytest.approx([0.2, 0.4, 0.8, 1 - 0.9 * 4 / 19, 0.1])


def test_the_kl_in_the_reward_by_hand() -> None:
    rewards, ours, theirs = torch.tensor([[0.0, 2.0]]), torch.tensor([[-1.0, -0.5]]), torch.tensor([[-1.5, -0.25]])
    torch.testing.assert_close(penalised(rewards, ours, theirs, 0.4), torch.tensor([[-0.2, 2.1]]))


def test_whitening_takes_no_notice_of_pads() -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    values = torch.tensor([[1.0, 2.0, 1e6], [6.0, -1e6, 1e6]])
    # mean 3, variance (4 + 1 + 9) / 3
    expected = torch.tensor([[-2.0, -1.0, 0.0], [3.0, 0.0, 0.0]]) / math.sqrt(14 / 3)
    torch.testing.assert_close(masked_whiten(values, mask), expected)


def test_kl_and_entropy_by_hand() -> None:
    ours, theirs = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
    # Logits are log-probabilities but for a constant, and at half the temperature half as large.
    logits, ref = (torch.tensor([[row, row]]).log() / 2 + shift for row, shift in ((ours, 3.0), (theirs, -1.0)))
    found = compare(logits, ref, torch.tensor([[0, 0]]), torch.tensor([[1.0, 0.0]]), 0.5)
    # 0.5 ln 2 + 0 + 0.25 ln 0.5 = 0.25 ln 2; entropy 0.5 ln 2 + 0.5 ln 4 = 1.5 ln 2
    torch.testing.assert_close(found.kl_BT, torch.tensor([[0.25 * math.log(2), 0.0]]))
    torch.testing.assert_close(found.entropy_BT, torch.tensor([[1.5 * math.log(2), 0.0]]))
    torch.testing.assert_close(found.logprobs_BT, torch.tensor([[-math.log(2), 0.0]]))
    torch.testing.assert_close(found.ref_logprobs_BT, torch.tensor([[-math.log(4), 0.0]]))


def test_gradients_of_log_probabilities_and_kl_are_those_of_plain_operations() -> None:
    x = example()
    logits, mask = x["logits_BTV"].requires_grad_(), x["mask_BT"]
    random = torch.Generator().manual_seed(1)
    one, other = torch.randn(B, T, generator=random), torch.randn(B, T, generator=random)

    def gradient(logprobs: Tensor, kl: Tensor) -> Tensor:
        return torch.autograd.grad((one * logprobs * mask + other * kl * mask).sum(), logits)[0]

    found = compare(logits, x["ref_logits_BTV"], x["tokens_BT"], mask, 0.7)
    ours, logprobs = token_logprobs(logits, x["tokens_BT"], 0.7)
    theirs, _ = token_logprobs(x["ref_logits_BTV"], x["tokens_BT"], 0.7)
    expected = gradient(logprobs, (ours.exp() * (ours - theirs)).sum(dim=-1))
    torch.testing.assert_close(gradient(found.logprobs_BT, found.kl_BT), expected)


def test_importance_weights_are_truncated_above_only() -> None:
    weights = truncated_weights(torch.tensor([[0.0, math.log(8), -math.log(4)]]), torch.zeros(1, 3), cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 2.0, 0.25]]))


def test_clipped_surrogate_is_the_pessimist_of_equation_7() -> None:
    ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5, 1.1]])
    advantages = torch.tensor([[2.0, 2.0, -2.0, -2.0, 3.0]])
    torch.testing.assert_close(clipped_surrogate(ratio, advantages, 0.2), torch.tensor([[2.4, 1.0, -3.0, -1.6, 3.3]]))


def test_loss_against_plain_python() -> None:
    x, temperature, beta, clip, cap = example(), 0.7, 0.4, 0.2, 1.3
    surrogate = kl = total_entropy = 0.0
    for b in range(B):
        for t in range(LENGTHS[b]):
            ours = softmax(x["logits_BTV"][b, t].tolist(), temperature)
            theirs = softmax(x["ref_logits_BTV"][b, t].tolist(), temperature)
            token = int(x["tokens_BT"][b, t])
            proximal, behaviour = (float(x[f"{name}_logprobs_BT"][b, t]) for name in ("proximal", "behaviour"))
            ratio = ours[token] / math.exp(proximal)
            weight = min(math.exp(proximal - behaviour), cap)
            advantage = float(x["advantages_BT"][b, t])
            clipped = min(max(ratio, 1 - clip), 1 + clip)
            surrogate += weight * min(ratio * advantage, clipped * advantage) / B
            kl += sum(p * math.log(p / q) for p, q in zip(ours, theirs, strict=True)) / B
            total_entropy -= sum(p * math.log(p) for p in ours) / sum(LENGTHS)
    loss, metrics = ppo_loss(**x, beta=beta, temperature=temperature, clip=clip, weight_cap=cap)
    assert float(loss) == pytest.approx(beta * kl - surrogate, rel=1e-4)
    assert metrics.kl == pytest.approx(kl, rel=1e-4)
    assert metrics.surrogate == pytest.approx(surrogate, rel=1e-4)
    assert metrics.entropy == pytest.approx(total_entropy, rel=1e-4)


def test_what_stands_at_pads_changes_nothing_and_gets_no_gradient() -> None:
    x = example()
    x["logits_BTV"].requires_grad_()
    loss, _ = ppo_loss(**x, beta=0.4, temperature=0.7)
    loss.backward()
    gradient = x["logits_BTV"].grad
    assert gradient is not None
    pads = x["mask_BT"] == 0
    assert not gradient[pads].any()
    assert gradient[~pads].abs().sum(dim=-1).all()

    y = example()
    y["logits_BTV"][pads] = 50.0
    y["proximal_logprobs_BT"][pads] = -1000.0
    y["behaviour_logprobs_BT"][pads] = 0.0
    y["tokens_BT"][pads] = 0
    y["advantages_BT"][pads] = 7.0
    torch.testing.assert_close(ppo_loss(**y, beta=0.4, temperature=0.7)[0], loss)


def test_reward_reaches_the_last_real_token() -> None:
    """The end of a reply is learned from its reward: an EOS is a real token though pads may share its id."""
    x = example()
    x["logits_BTV"].requires_grad_()
    x["proximal_logprobs_BT"] = x["behaviour_logprobs_BT"] = token_logprobs(
        x["logits_BTV"].detach(), x["tokens_BT"], 0.7
    )[1]
    loss, metrics = ppo_loss(**x, beta=0.0, temperature=0.7)
    loss.backward()
    gradient = x["logits_BTV"].grad
    assert gradient is not None
    for b, length in enumerate(LENGTHS):
        token = int(x["tokens_BT"][b, length - 1])
        # A positive advantage raises the logit of what was sampled: the loss falls with it.
        assert -gradient[b, length - 1, token].sign() == x["advantages_BT"][b, length - 1].sign()
    assert metrics.behaviour_weight == pytest.approx(1.0)
    assert metrics.clip_fraction == 0.0
    assert metrics.drift == pytest.approx(0.0, abs=1e-6)


def test_on_policy_gradient_is_that_of_reinforce_with_kl() -> None:
    """On fresh rollouts and with beta 0 PPO's gradient is the policy gradient (Schulman et al. 2017, eq. 1)."""
    x = example()
    logits = x["logits_BTV"].requires_grad_()
    x["proximal_logprobs_BT"] = x["behaviour_logprobs_BT"] = token_logprobs(logits.detach(), x["tokens_BT"], 1.0)[1]
    ppo_loss(**x, beta=0.0, temperature=1.0)[0].backward()
    ppo_gradient = logits.grad
    logits.grad = None
    logprobs = token_logprobs(logits, x["tokens_BT"], 1.0)[1]
    (-(x["advantages_BT"] * logprobs * x["mask_BT"]).sum() / B).backward()
    assert ppo_gradient is not None
    assert logits.grad is not None
    torch.testing.assert_close(ppo_gradient, logits.grad)
