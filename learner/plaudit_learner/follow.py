"""What the ranks other than rank 0 do: their share of every round's improvement.

Rank 0 runs the loop, and tells them what it improves; they have no experience store, no checkpoint and no metrics, and
publish nothing.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import NoReturn

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
    log.info("rank %d of %d, process %d: takes part in what rank 0 improves", ranks.index, ranks.size, os.getpid())
    while True:
        task: Task = ranks.told(None)  # type: ignore[assignment]  # what this rank gives is not looked at
        this = task.round
        policy = versions.load(task.reference, this.seed, task.reference)
        try:
            improve(
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
            continue  # which rank 0 finds as well, and reports
