"""A candidate's trial: it, its parent and the reference policy answer the same prompts, and are judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from plaudit_learner.gate.evaluation import Evaluated, Reader, evaluate
from plaudit_learner.gate.judge import GateSettings, Verdict, judge
from plaudit_learner.policy import Policy
from plaudit_learner.ppo.settings import ImproveSettings
from plaudit_learner.ranks import ALONE, Ranks
from plaudit_learner.reward.model import RewardModel

_REPLIES = 288  # with fewer prompts, more samples of each: with 100 replies a gain of 0.15 deviations is missed
_SAMPLES = 4, 12  # the fewest and the most of one prompt


def trial(
    candidate: Policy,
    parent: Callable[[], Policy] | None,
    reward_model: RewardModel,
    reader: Reader,
    prompts: Sequence[tuple[int, ...]],
    how: ImproveSettings,
    *,
    seed: int,
    ranks: Ranks = ALONE,
) -> Verdict:
    """Judge `candidate`, which was improved in the way of `how`, on prompts that it was not trained on.

    parent: gives the version that it has to beat, once its turn has come; None: that is the candidate's reference.
    ranks: share the work, and come to the same verdict.
    Raises ValueError if there are fewer than 2 prompts.
    """
    least, most = _SAMPLES
    samples = min(max(least, math.ceil(_REPLIES / len(prompts))), most)

    def evaluated(policy: Policy, *, reward_only: bool = False) -> Evaluated:
        return evaluate(
            policy,
            reward_model,
            prompts,
            reader,
            samples_per_prompt=samples,
            max_new_tokens=how.max_new_tokens,
            temperature=how.temperature,
            seed=seed,
            reward_only=reward_only,
            ranks=ranks,
        )

    ours = evaluated(candidate)
    with candidate.reference():
        reference = evaluated(candidate)
    # The parent is asked for its reward only.
    before = reference if parent is None else evaluated(parent(), reward_only=True)
    return judge(ours, before, reference, settings=GateSettings(max_kl=how.kl_budget))
