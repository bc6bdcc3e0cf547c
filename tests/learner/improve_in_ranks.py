"""The program that test_ranks.py starts under torchrun: improve the tiny model, and write down what came of it.

python -m torch.distributed.run … -m tests.learner.improve_in_ranks MODEL RESULT [--die-in ITERATION]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
from dataclasses import asdict
from pathlib import Path

import torch

from plaudit_learner.policy import Policy
from plaudit_learner.ppo.improve import ImproveSettings, IterationMetrics, improve
from plaudit_learner.ppo.rollouts import sample
from plaudit_learner.ranks import joined
from plaudit_learner.reward.model import RewardModel, Vote, fit

SETTINGS = ImproveSettings(
    iterations=3,
    prompts_per_iteration=8,
    minibatch_prompts=4,
    learning_rate=2e-3,
    kl_target=0.9,
    temperature=1.0,
    max_new_tokens=24,
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--die-in", type=int, help="the iteration in which the last rank kills itself, the first time")
    given = parser.parse_args()
    with joined() as ranks:
        first_time = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        print(f"rank {ranks.index} of {ranks.size} begins", flush=True)

        def progress(metrics: IterationMetrics) -> None:
            if metrics.iteration == given.die_in and first_time and ranks.index == ranks.size - 1:
                os.kill(os.getpid(), signal.SIGKILL)

        policy = Policy.load(given.model)
        result = improve(
            policy,
            reward_model(policy),
            prompts(20),
            SETTINGS,
            seed=0,
            progress=progress,
            checkpoint=given.result.with_suffix(".checkpoint"),
            ranks=ranks,
        )
        weights = ranks.union({ranks.index: policy.snapshot()})
        if ranks.leads:
            found = {"iterations": [asdict(metrics) for metrics in result.iterations], "weights": weights}
            torch.save(found, given.result)


def prompts(count: int) -> list[tuple[int, ...]]:
    draw = random.Random(0)
    return [(257, *draw.choices(range(97, 123), k=draw.randint(5, 20)), 258, 10) for _ in range(count)]


def reward_model(policy: Policy) -> RewardModel:
    """Of one who likes odd numbers. Every rank fits it, to the same replies."""
    with policy.reference():
        replies = sample(policy, prompts(40), max_new_tokens=24, temperature=1.0, seed=0)
    return fit(policy, [Vote(r.item, sum(token % 2 for token in r.reply) > len(r.reply) / 2) for r in replies])


if __name__ == "__main__":
    main()
