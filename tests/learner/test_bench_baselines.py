"""KTO in the benches: TRL's trainer comes to the same weights whether it reads replies in its way or in ours."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from bench.baselines import Training, kto
from plaudit_learner.policy import AdapterConfig, Policy, PromptReply
from plaudit_learner.reward.model import Vote


def test_kto_comes_to_the_same_weights_in_both_ways_of_reading(tiny_model: Path) -> None:
    draw = random.Random(1)
    prompts = [tuple(draw.choices(range(97, 123), k=length)) for length in (3, 9, 5)]
    votes = [
        Vote(PromptReply(prompts[number % 3], tuple(draw.choices(range(97, 123), k=1 + number % 7)), False), liked)
        for number, liked in enumerate(draw.choices([True, False], weights=[1, 2], k=21))
    ]
    learnt = []
    for read_by_trl in (True, False):
        policy = Policy.load(tiny_model, config=AdapterConfig(rank=4, layers=1), seed=3)
        assert policy.trunk == 1
        before = policy.snapshot()
        kto(policy, tiny_model, votes, Training(3e-3, epochs=2, batch_size=4), 5, read_by_trl=read_by_trl)
        learnt.append(torch.cat([(now - then).flatten() for now, then in zip(policy.snapshot(), before, strict=True)]))
    theirs, ours = learnt
    assert theirs.abs().max() > 0.01
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4), (ours - theirs).abs().max()
