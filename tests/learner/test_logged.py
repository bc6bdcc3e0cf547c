"""Served replies in an update: who sampled them is corrected for, and only those that fit are taken."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.releases import IMPORTED
from plaudit.v1.sampling_pb2 import FinishReason
from plaudit_learner.experience.store import Experience
from plaudit_learner.policy import Policy
from plaudit_learner.ppo.improve import ImproveResult, improve, reference_logprobs
from plaudit_learner.ppo.loss import ppo_loss
from plaudit_learner.ppo.rollouts import Rollout, sample
from plaudit_learner.ppo.settings import ImproveSettings
from plaudit_learner.ppo.update import minibatches, proximal_logprobs
from plaudit_learner.reward.features import encode
from tests.learner import test_improve
from tests.learner.improve_in_ranks import SETTINGS, prompts, reward_model
from tests.learner.test_experience import interaction
from tests.learner.test_mixing import trained
from tests.learner.test_reward_rounds import Rounds
from tests.learner.test_rounds import MIXED, OPTIONS, instructions, vote


@pytest.mark.parametrize(
    ("behaviour", "weight"), [(0.25, 2.0), (0.5, 1.0), (1.0, 0.5), (0.1, 2.0)], ids=["rarer", "same", "surer", "cut"]
)
def test_the_gradient_is_weighted_by_who_sampled(behaviour: float, weight: float) -> None:
    """pi_old gives the token 0.5: the policy gradient -A (e_0 - p) is scaled by min(0.5 / mu, 2)."""
    logits_V = torch.tensor([0.5, 0.25, 0.25]).log().requires_grad_()
    logits_11V, one = logits_V.view(1, 1, 3), torch.ones(1, 1)
    loss, metrics = ppo_loss(
        logits_11V,
        logits_11V.detach(),
        torch.tensor([[0]]),
        one,
        2 * one,
        torch.tensor([[math.log(0.5)]]),
        torch.tensor([[math.log(behaviour)]]),
        beta=0.0,
        temperature=1.0,
    )
    loss.backward()
    assert logits_V.grad is not None
    torch.testing.assert_close(logits_V.grad, weight * torch.tensor([-1.0, 0.5, 0.5]))
    assert metrics.behaviour_weight == pytest.approx(weight)


def test_the_proximal_policy_is_asked_as_it_is(tiny_model: Path) -> None:
    """Against a plain forward pass over each prompt and reply in one piece."""
    policy = trained(tiny_model)
    items = [r.item for r in served(tiny_model, 5)]
    found = proximal_logprobs(policy, items, 0.7)
    for item, logprobs in zip(items, found, strict=True):
        with torch.no_grad():
            logits_TV = policy.model(input_ids=torch.tensor([[*item.prompt, *item.reply]])).logits[0]
        predicting_TV = torch.log_softmax(logits_TV[len(item.prompt) - 1 : -1] / 0.7, dim=-1)
        expected_T = predicting_TV[torch.arange(len(item.reply)), torch.tensor(item.reply)]
        torch.testing.assert_close(torch.tensor(logprobs), expected_T, rtol=1e-4, atol=1e-4)


def test_the_reference_is_asked_by_what_it_read(tiny_model: Path) -> None:
    """Its log-probabilities from the states that it kept are those of asking it, at the rollouts' temperature."""
    policy = trained(tiny_model)
    rollouts = served(tiny_model, 5)
    items = [r.item for r in rollouts]
    found = reference_logprobs(policy, rollouts, encode(policy, items, prefixes=True, trunks=True), 0.7)
    with policy.reference():
        asked = proximal_logprobs(policy, items, 0.7)
    for mine, theirs in zip(found, asked, strict=True):
        torch.testing.assert_close(mine, torch.tensor(theirs), rtol=1e-4, atol=1e-4)
    assert asked[0] != pytest.approx(proximal_logprobs(policy, items[:1], 0.7)[0]), "the policy is not the reference"


def served(model: Path, count: int) -> list[Rollout]:
    """By the base model."""
    policy = Policy.load(model)
    asked = [prompt for _ in range(math.ceil(count / 20)) for prompt in prompts(20)][:count]
    return sample(policy, asked, max_new_tokens=24, temperature=1.0, seed=7)


def improved(model: Path, logged: list[Rollout], *, start: Policy | None = None, **changes: Any) -> ImproveResult:
    policy = start or Policy.load(model)
    return improve(policy, reward_model(policy), prompts(20), replace(SETTINGS, **changes), seed=0, logged=logged)


def test_replies_of_the_same_policy_weigh_1_of_another_less(tiny_model: Path) -> None:
    logged = served(tiny_model, 16)
    same = improved(tiny_model, logged, iterations=1, logged_share=0.5)
    assert same.iterations[0].behaviour_weight == pytest.approx(1.0, abs=1e-3)
    other = improved(tiny_model, logged, start=trained(tiny_model), iterations=1, logged_share=0.5)
    assert other.iterations[0].behaviour_weight < 0.95, "what the policy would hardly say counts for less"


@pytest.mark.timeout(300)
def test_learning_happens_on_them_too(tiny_model: Path) -> None:
    """Half of the replies are served ones, throughout."""
    policy = Policy.load(tiny_model)
    settings = replace(test_improve.SETTINGS, iterations=10, logged_share=0.5)
    asked = test_improve.prompts(80, 0)
    logged = sample(
        policy, asked, samples_per_prompt=settings.logged_replies // 80, max_new_tokens=24, temperature=1.0, seed=9
    )
    random.Random(0).shuffle(logged)

    def approval() -> float:
        held_out = test_improve.prompts(40, 1)
        return test_improve.approval(
            sample(policy, held_out, samples_per_prompt=4, max_new_tokens=24, temperature=1.0, seed=5)
        )

    before = approval()
    improve(policy, test_improve.reward_model(policy), asked, settings, seed=0, logged=logged)
    assert approval() > before + 0.05, "approval on held-out prompts did not go up"


def test_used_up_or_too_long_ones_are_made_up_for_by_fresh_ones(tiny_model: Path) -> None:
    """Then all is as if there had been none."""
    none = improved(tiny_model, [], iterations=2)
    long = replace_reply(served(tiny_model, 1)[0], 25)
    assert improved(tiny_model, [long] * 40, iterations=2, logged_share=0.5).iterations == none.iterations
    some = improved(tiny_model, served(tiny_model, 16), iterations=2, logged_share=0.5).iterations
    assert some[0] != none.iterations[0]


def replace_reply(rollout: Rollout, tokens: int) -> Rollout:
    return replace(rollout, reply=(97,) * tokens, logprobs=(-1.0,) * tokens, finished=False)


def test_every_minibatch_has_its_share() -> None:
    settings = ImproveSettings(prompts_per_iteration=6, minibatch_prompts=2, samples_per_prompt=2, logged_share=0.5)
    assert (settings.logged_prompts, settings.logged_replies) == (3, 3 * 2 * settings.iterations)
    rows = minibatches(12, settings)  # fresh ones up to row 5
    assert sorted(row for minibatch in rows for row in minibatch) == list(range(12))
    assert [[row < 6 for row in minibatch] for minibatch in rows] == [[True, True, False, False]] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logged_share": 1.0}, "logged_share must be at least 0 and below 1"),
        ({"logged_share": 0.5, "trace": None}, "logged_share needs the critic"),
        ({"logged_share": 0.5, "kl": "reward"}, "logged_share needs kl to be loss"),
    ],
)
def test_nonsense_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)


def test_the_store_gives_what_was_sampled_and_nothing_else(tmp_path: Path) -> None:
    store = Experience(tmp_path / "experience.sqlite")
    for time, name in enumerate(["first", "hotter", "broken off", "full", "imported"]):
        record = interaction(name, version=IMPORTED if name == "imported" else "v2", time=time, prompt=(1, time))
        if name == "hotter":
            record.sampling.temperature = 1.0
        if name == "broken off":
            record.finish_reason = FinishReason.FINISH_REASON_CANCELLED
        if name == "full":
            record.finish_reason = FinishReason.FINISH_REASON_LENGTH
        store.add_interaction(record)
    first, full = (Rollout((1, time), (3, 4), (-0.5, -0.25), time == 0) for time in (0, 3))
    assert store.served(100, interaction("").sampling.temperature) == [first, full]
    assert store.served(1, interaction("").sampling.temperature) == [full]
    store.close()


def test_a_round_takes_none_from_held_out_prompts(tmp_path: Path, tiny_model: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    instructions(pairs, "Say")
    home = Rounds(tmp_path, tiny_model, **OPTIONS, **MIXED, instruct_data=str(pairs))
    home.learner._intake.start()
    vote(home.store, home.policy, 0, 60)
    this, _ = home.learner._begin(home.policy, 1, "v0", "v0")
    home.close()
    assert this.how.logged_share == 0.5
    assert len(this.logged) == min(this.how.logged_replies, 60 - len(this.held_out))
    assert {reply.prompt for reply in this.logged} <= set(this.train)
    assert len(this.examples) == min(this.how.instruct_examples, 24)
