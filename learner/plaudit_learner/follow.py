"""What the ranks other than rank 0 do: their share of every round's improvement, and of its trial by the gate.

Rank 0 runs the loop, and tells them what a round works from; they have no experience store, no checkpoint and no
metrics, and publish nothing.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from plaudit_learner.gate.evaluation import Reader
from plaudit_learner.gate.trial import trial
from plaudit_learner.ppo.improve import NothingToImproveError, improve
from plaudit_learner.ranks import Ranks
from plaudit_learner.reward.model import RewardModel
from plaudit_learner.rounds import Round
from plaudit_learner.versions import Versions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """Made by the loop, on rank 0; read here."""

    round: Round
    reward_model: RewardModel
    reference: str
    """The version that the round starts from."""


def follow(versions: Versions, ranks: Ranks) -> NoReturn:
    """Until killed. Raises Lost if another rank is lost, ArtifactError if a version cannot be fetched."""
    reader = Reader(versions.model)
    log.info("rank %d of %d, process %d: takes part in what rank 0 does", ranks.index, ranks.size, os.getpid())
    while True:
        _take_part(ranks.told(None), versions, reader, ranks)  # type: ignore[arg-type]  # it is rank 0 that tells


def _take_part(task: Task, versions: Versions, reader: Reader, ranks: Ranks) -> None:
    this, reference = task.round, task.reference
    policy = versions.load(reference, this.seed, reference)
    try:
        result = improve(
            policy,
            task.reward_model,
            this.train,
            this.how,
            seed=this.seed,
            examples=this.examples,
            logged=this.logged,
            ranks=ranks,
        )
    except NothingToImproveError:
        return  # which rank 0 finds as well, and reports
    parent = None if this.parent == reference else partial(versions.load, this.parent, this.seed, reference)
    trial(policy, parent, result.reward_model, reader, this.held_out, this.how, seed=this.seed, ranks=ranks)
    versions.forget_others(reference, this.parent)
