"""Our way, offline: the learner's rounds with its own settings, fit, PPO and gate, but no servers between.

    votes on what serves ──▶ all votes so far ──▶ reward model ──▶ PPO from the base model ──▶ gate ──▶ serves, or not

What a round made is kept; a run that was stopped goes on within the round that it was in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.offline import Clock, Lab, Tokens
from plaudit_cli.personas import Persona
from plaudit_learner import rounds
from plaudit_learner.gate.judge import strayed
from plaudit_learner.gate.trial import trial
from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.ppo.improve import NothingToImproveError, improve
from plaudit_learner.reward.aspects import parse
from plaudit_learner.reward.model import NotEnoughVotesError, RewardModel, Vote
from plaudit_learner.whole_file import whole


@dataclass
class Deployment:
    """What has come of the rounds so far."""

    votes: list[Vote] = field(default_factory=list)
    serving: list[Tensor] | None = None
    """The adapter's weights; None: the base model."""
    first: list[Tensor] | None = None
    """What the first round made, whatever the gate said of it; None: the base model."""
    rounds: list[str] = field(default_factory=list)
    """What became of each, in words."""
    minutes: float = 0.0
    """CPU minutes of reward model, PPO and gate."""
    allowance: float = math.inf
    """The largest KL budget that the next round may have."""

    def save(self, file: Path) -> None:
        """Wholly or not at all."""
        votes = [(*vote.item, vote.liked, vote.user, vote.aspect) for vote in self.votes]
        with whole(file) as unfinished:
            torch.save({**vars(self), "votes": votes}, unfinished)

    @classmethod
    def load(cls, file: Path) -> Deployment:
        """What `save` wrote, or a new one."""
        if not file.exists():
            return cls()
        found: dict[str, Any] = torch.load(file, weights_only=True)
        votes = [
            Vote(PromptReply(prompt, reply, finished), liked, user=user, aspect=aspect)
            for prompt, reply, finished, liked, user, aspect in found["votes"]
        ]
        return cls(**{**found, "votes": votes})


def parts(prompts: Sequence[Tokens]) -> tuple[list[Tokens], list[Tokens]]:
    """(to learn on, for the gate), told apart by their hash, with the learner's share."""
    return rounds.told_apart((hashlib.sha256(repr(prompt).encode()).hexdigest(), prompt) for prompt in prompts)


def run(
    lab: Lab, persona: Persona, prompts: Sequence[Tokens], sizes: Sequence[int], noise: float, seed: int, work: Path
) -> Deployment:
    """As many rounds as there are `sizes`, each with that many new votes on what then serves."""
    work.mkdir(parents=True, exist_ok=True)
    state = Deployment.load(work / "deployment.pt")
    for number in range(len(state.rounds) + 1, len(sizes) + 1):
        server = lab.policy(seed)
        if state.serving is not None:
            server.restore(state.serving)
        cast = lab.vote(persona, prompts, sizes[number - 1], noise, 1000 * seed + number, policy=server)
        state.votes += cast.votes
        _learn(lab, persona, prompts, state, seed, number, work)
    return state


def run_at_once(
    lab: Lab, persona: Persona, prompts: Sequence[Tokens], sizes: Sequence[int], noise: float, seed: int, work: Path
) -> Deployment:
    """One round on all votes, all cast on the base policy's replies; if it strayed, another with what it then may.

    Where no round of `run` but the last came to serve, they are its very votes.
    """
    work.mkdir(parents=True, exist_ok=True)
    state = Deployment.load(work / "deployment.pt")
    if not state.rounds:
        for number, size in enumerate(sizes, 1):
            state.votes += lab.vote(persona, prompts, size, noise, 1000 * seed + number).votes
    while not state.rounds or (len(state.rounds) < 2 and math.isfinite(state.allowance)):
        _learn(lab, persona, prompts, state, seed, len(sizes) + len(state.rounds), work)
    return state


def _learn(
    lab: Lab, persona: Persona, prompts: Sequence[Tokens], state: Deployment, seed: int, number: int, work: Path
) -> None:
    """A round on the votes that there are, and what came of it kept."""
    clock = Clock(work / f"{number}.minutes")
    outcome = _round(lab, persona, prompts, state, 1000 * number + seed, work / f"{number}.pt", clock)
    state.minutes += clock.minutes
    state.rounds.append(outcome)
    state.save(work / "deployment.pt")
    print(f"{persona.name}, seed {seed}, round {number}: {outcome}", flush=True)


def fitted(lab: Lab, persona: Persona, votes: Sequence[Vote]) -> RewardModel:
    """The reward model of these votes, for the reward that the persona declares."""
    return lab.reward_model(votes, parse(persona.reward))


def _round(
    lab: Lab, persona: Persona, prompts: Sequence[Tokens], state: Deployment, seed: int, checkpoint: Path, clock: Clock
) -> str:
    learnt, gate = parts(prompts)
    how = lab.improve_settings(len(state.votes), state.allowance)
    policy = lab.policy(seed)
    try:
        reward_model = fitted(lab, persona, state.votes)
        auc = min(reward_model.heads[aspect].discrimination for aspect in persona.aspects)
        if not auc > rounds.LEAST_AUC:
            return f"waits for more votes: AUC {auc:.2f}"
        result = improve(
            policy, reward_model, learnt, how, seed=seed, checkpoint=checkpoint, progress=lambda _: clock.keep()
        )
    except (NotEnoughVotesError, NothingToImproveError) as error:
        return f"waits for more votes: {error}"

    serving = state.serving

    def parent() -> Policy:
        assert serving is not None
        before = lab.policy(seed)
        before.restore(serving)
        return before

    verdict = trial(policy, None if serving is None else parent, result.reward_model, lab.reader, gate, how, seed=seed)
    state.first = state.first or policy.snapshot()
    state.allowance = rounds.allowance(state.allowance, how.kl_budget, strayed=strayed(verdict.checks))
    if verdict.passed:
        state.serving = policy.snapshot()
    gain = f"reward gain {verdict.metrics['reward_gain']:+.2f}, KL {verdict.metrics['kl']:.2f}, AUC {auc:.2f}"
    return f"serves: {gain}" if verdict.passed else f"rejected ({gain}): {'; '.join(verdict.reasons)}"
