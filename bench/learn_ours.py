"""Our side of bench/learn.py: `improve` as the learner calls it, an update for each line that comes in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from bench.phases import Phases
from plaudit_learner.policy import AdapterConfig, Policy
from plaudit_learner.ppo import improve as improvement
from plaudit_learner.ppo.critic import Critic
from plaudit_learner.ppo.improve import ImproveSettings, IterationMetrics, improve
from plaudit_learner.ppo.rollouts import sample
from plaudit_learner.reward.model import Vote, fit


def main() -> None:
    torch.set_num_threads(1)
    task = json.loads(sys.stdin.readline())
    prompts = [tuple(prompt) for prompt in task["prompts"]]
    settings = ImproveSettings(
        iterations=task["updates"],
        prompts_per_iteration=len(prompts),
        samples_per_prompt=task["samples_per_prompt"],
        minibatch_prompts=task["minibatch_prompts"],
        max_new_tokens=task["max_new_tokens"],
        temperature=task["temperature"],
        kl_stop=1e6,
        kl_budget=1e7,
    )
    config = AdapterConfig(rank=task["rank"], alpha=task["alpha"], layers=task["layers"])
    policy = Policy.load(Path(task["model"]), config=config)
    how = {"max_new_tokens": task["max_new_tokens"], "temperature": task["temperature"], "seed": 0}
    replies = [r.item for r in sample(policy, prompts, samples_per_prompt=2, **how)]
    shorter = sorted(len(item.reply) for item in replies)[len(replies) // 2]
    votes = [Vote(item, len(item.reply) < shorter or hash(item) % 2 == 0) for item in replies]
    reward_model = fit(policy, votes)

    phases = Phases()
    for phase, name in (("sampling", "sample"), ("reference and reward", "encode"), ("steps", "update")):
        setattr(improvement, name, phases.timed(phase, getattr(improvement, name)))
    Critic.values = phases.timed("critic", Critic.values)  # type: ignore[method-assign]

    def answer(metrics: IterationMetrics) -> None:
        phases.say(round(metrics.length * len(prompts) * task["samples_per_prompt"]))
        phases.wait()

    # The first update's replies are those that set the scale of the reward: no work is done twice, none is left out.
    phases.wait()
    improve(policy, reward_model, prompts, settings, seed=0, progress=answer)


if __name__ == "__main__":
    main()
