"""What a round works from, settled when it begins and kept on disk until it ends.

A learner that is killed within a round goes on with the same round: the same prompts, reward model and settings,
whatever votes came in meanwhile. So it ends with the very weights that it would have ended with.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import plaudit
from plaudit_learner.config import LearnerSettings
from plaudit_learner.policy import PromptReply
from plaudit_learner.ppo.rollouts import Rollout
from plaudit_learner.ppo.settings import ImproveSettings
from plaudit_learner.whole_file import remove, whole

_INPUTS = "inputs.json"
CHECKPOINT = "checkpoint.pt"

T = TypeVar("T")
Prompts = list[tuple[int, ...]]

LEAST_AUC = 0.55
"""A reward model that tells good from bad no better than this is not learnt from."""
_HELD_OUT = 0.2
_MOST_HELD_OUT = 48
_KL_TARGET, _KL_STOP = 0.6, 0.85  # of the budget, which is the gate's bound
_LESS, _MORE = 0.5, 1.25  # of a budget that was too large, and of what may be asked for after one that was not


def told_apart(prompts: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[Prompts, Prompts]:
    """Prompts to train on, and those that only the gate sees, by their keys (hexadecimal hashes), for ever."""
    train: Prompts = []
    held_out: Prompts = []
    for key, prompt in prompts:
        (held_out if int(key[:8], 16) < _HELD_OUT * 16**8 else train).append(prompt)
    return train, held_out[:_MOST_HELD_OUT]


def allowance(before: float, budget: float, *, strayed: bool) -> float:
    """The largest KL budget (nats a reply) that the next round may have, after a round that had `budget`.

    before: what that round might have had; infinite if no round has strayed yet. strayed: whether the gate vetoed it.
    Halved where it strayed, and allowed to grow slowly where not, as a sender finds what a network bears (Chiu and Jain
    1989): the same budget again, on nearly the same votes, would stray again (docs/decisions/0023).
    """
    return budget * _LESS if strayed else before * _MORE


def aim(
    settings: LearnerSettings, votes: float, *, temperature: float, max_new_tokens: int, most: float = math.inf
) -> ImproveSettings:
    """What to strive for with votes of that weight: the fewer there are, the closer to the reference policy.

    The reward model errs by about 1 / sqrt(votes), and a policy at KL k can seek out sqrt(2 k) deviations of that
    error: a budget in proportion to the votes holds the reward that is only imagined at one level. Updates that pull
    one way move the weights in proportion to their number, and the KL by its square: as many as reach the same share of
    any budget.
    temperature, max_new_tokens: as served. most: the largest budget that is allowed (`allowance`).
    """
    share = min(1.0, votes / settings.votes_for_kl_budget, most / settings.kl_budget)
    kl_budget = settings.kl_budget * share
    return ImproveSettings(
        iterations=math.ceil(settings.iterations * math.sqrt(share)),
        prompts_per_iteration=settings.prompts_per_iteration,
        learning_rate=settings.learning_rate,
        kl_target=_KL_TARGET * kl_budget,
        kl_stop=_KL_STOP * kl_budget,
        kl_budget=kl_budget,
        temperature=temperature,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_new_tokens=min(max_new_tokens, settings.max_new_tokens),
        unfinished_penalty=settings.unfinished_penalty,
        instruct_weight=settings.instruct_weight,
        logged_share=settings.logged_share,
    )


def drawn(items: Sequence[T], count: int, seed: int) -> list[T]:
    """So many of them, or all if there are fewer, in random order."""
    return random.Random(seed).sample(items, min(count, len(items)))  # noqa: S311


@dataclass(frozen=True)
class Round:
    """Made by the loop; read by all stages of one round."""

    number: int
    parent: str
    """The version that the candidate has to beat."""
    votes: int
    """Votes that stood when it began."""
    seed: int
    train: Prompts
    held_out: Prompts
    """Prompts that only the gate sees."""
    how: ImproveSettings
    examples: list[PromptReply] = field(default_factory=list)
    """Instruction examples that are mixed in."""
    logged: list[Rollout] = field(default_factory=list)
    """Served replies to `train` prompts that are learnt from again."""
    traces: list[str] = field(default_factory=list)
    """Spans (traceparents) of the newest of what was said, and of the replies that it was said of."""
    traced: int = 0
    """How many there are of them in all."""

    def keep(self, directory: Path, settings: Mapping[str, Any]) -> None:
        """Write it into an empty directory, in which the checkpoint will be. `settings`: the learner's, as JSON."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        drop(directory)
        directory.mkdir()
        with whole(directory / _INPUTS) as unfinished:
            unfinished.write_text(json.dumps({**_made_by(settings), "round": asdict(self)}))


def _made_by(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a round can be gone on with: of another release its checkpoint may be something else."""
    return {"release": plaudit.__version__, "settings": dict(settings)}


def checkpointed_at(directory: Path) -> float:
    """When the round that is kept there was last written down (unix time); 0 if none is, or not yet."""
    try:
        return (directory / CHECKPOINT).stat().st_mtime
    except OSError:
        return 0.0


def kept(directory: Path, settings: Mapping[str, Any]) -> Round | None:
    """The round that this release began with these settings and did not end; None if there is none."""
    try:
        found = json.loads((directory / _INPUTS).read_text())
        fields = found.pop("round")
        if found != _made_by(settings):
            return None
        for name in ("train", "held_out"):
            fields[name] = [tuple(prompt) for prompt in fields[name]]
        fields["how"] = ImproveSettings(**fields["how"])
        fields["examples"] = [
            PromptReply(tuple(prompt), tuple(reply), finished) for prompt, reply, finished in fields["examples"]
        ]
        fields["logged"] = [
            Rollout(tuple(row["prompt"]), tuple(row["reply"]), tuple(row["logprobs"]), row["finished"])
            for row in fields["logged"]
        ]
        return Round(**fields)
    except (OSError, ValueError, KeyError, TypeError):  # torn, or not ours: begun anew
        return None


def drop(directory: Path) -> None:
    """Remove what is kept of a round, for good. Raises OSError."""
    remove(directory)
