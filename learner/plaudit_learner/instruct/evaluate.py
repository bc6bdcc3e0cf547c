"""How good a policy is on held-out examples, and whether another one is better.

Loss is the mean negative log-likelihood of an output token, given the prompt and the output so far (the
objective of tune.py with the sign turned), in nats; perplexity is its exponential. ROUGE-L (Lin 2004, section 3) is
the F-measure of the longest common subsequence of words, by torchmetrics.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from plaudit_learner.gate.judge import Check, Verdict
from plaudit_learner.instruct.text import words
from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.ppo.loss import token_logprobs
from plaudit_learner.ppo.rollouts import sample
from plaudit_learner.reward.features import bounded
from plaudit_learner.reward.model import RewardModel
from plaudit_learner.whole_file import whole

MIN_FALL_Z = 1.64
"""The paired fall in loss must exceed this many standard errors, as at the learner's gate."""
_LOSS_TOKENS = 256
_SAMPLE_BATCH = 16

Advance = Callable[[int], None]
"""Told how many more were done."""


@dataclass(frozen=True)
class Scores:
    """One policy on the held-out examples; made by `evaluate`, kept in the run's directory."""

    nats: list[float]
    """Negative log-likelihood of each output, its end included."""
    tokens: list[int]
    """Length of each output."""
    replies: list[str]
    """What the policy itself says to the first prompts."""
    rouge: list[float]
    """ROUGE-L of each of those with the example's output, 0 to 1."""
    rewards: list[float]
    """The reward model's score of each; empty if there is none."""
    served_nats: list[float]
    """`nats` of the same outputs after prompts as servers make them; the same list if they were annotated so."""
    served_tokens: list[int]
    discrimination: float | None = None
    """How well the reward model tells good from bad on judgements held out from it (0.5: a guess); None without one."""

    @property
    def loss(self) -> float:
        """Nats an output token."""
        return sum(self.nats) / sum(self.tokens)

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)

    def save(self, file: Path) -> None:
        """Write it; the file appears only when it is whole."""
        with whole(file) as unfinished:
            unfinished.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, file: Path) -> Scores:
        """Read what `save` wrote."""
        return cls(**json.loads(file.read_text()))


@dataclass(frozen=True)
class Difference:
    """Of two policies on the same examples, paired by example."""

    mean: float
    error: float
    """Standard error over examples; nan of a single one."""


def evaluate(
    policy: Policy,
    items: Sequence[PromptReply],
    outputs: Sequence[str],
    *,
    served: Sequence[PromptReply] | None,
    decode: Callable[[tuple[int, ...]], str],
    reward_model: RewardModel | None,
    replies: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    advance: Advance,
) -> Scores:
    """Evaluate on `items`, whose texts are `outputs`; `served`: the same as servers would ask, if that is different.

    Raises ValueError if the reward model does not fit the base model.
    """
    nats = losses(policy, items, advance)
    served_nats = nats if served is None else losses(policy, served, advance)
    prompts = [item.prompt for item in items[:replies]]
    said: list[str] = []
    rewards: list[float] = []
    for start in range(0, len(prompts), _SAMPLE_BATCH):
        rollouts = sample(
            policy,
            prompts[start : start + _SAMPLE_BATCH],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed + start,
        )
        said += [decode(rollout.reply) for rollout in rollouts]
        if reward_model is not None:
            rewards += _judge(reward_model, policy, [rollout.item for rollout in rollouts])
        advance(len(rollouts))
    return Scores(
        nats=nats,
        tokens=[len(item.reply) for item in items],
        replies=said,
        rouge=[rouge_l(reply, output) for reply, output in zip(said, outputs, strict=False)],
        rewards=rewards,
        served_nats=served_nats,
        served_tokens=[len(item.reply) for item in (items if served is None else served)],
        discrimination=None if reward_model is None else _discrimination(reward_model),
    )


def losses(policy: Policy, items: Sequence[PromptReply], advance: Advance) -> list[float]:
    """Negative log-likelihood of each reply after its prompt, in nats; in the order of `items`."""
    nats = [0.0] * len(items)
    for rows in _batches(items):
        with torch.no_grad():
            logits_BTV, tokens_BT, mask_BT = policy.reply_logits([items[row] for row in rows])
            _, logprobs_BT = token_logprobs(logits_BTV, tokens_BT, 1.0)
        for row, total in zip(rows, (-(logprobs_BT * mask_BT).sum(dim=1)).tolist(), strict=True):
            nats[row] = total
        advance(len(rows))
    return nats


def _batches(items: Sequence[PromptReply]) -> Iterator[list[int]]:
    """Rows in batches of like replies, with pads at most `_LOSS_TOKENS` each: logits are a vocabulary wide a token.

    Of long prompts fewer: attention is as wide as they are long.
    """
    batch: list[int] = []
    for row in sorted(range(len(items)), key=lambda row: len(items[row].reply)):
        if batch and len(items[row].reply) * (len(batch) + 1) > _LOSS_TOKENS:
            yield from bounded(batch, items)
            batch = []
        batch.append(row)
    if batch:
        yield from bounded(batch, items)


def rouge_l(reply: str, output: str) -> float:
    """F-measure, 0 to 1, over the words of `text.words`: torchmetrics' own would drop whatever is not ASCII.

    In a text without words, of signs only, what spaces part are words.
    """
    from torchmetrics.functional.text.rouge import rouge_score

    def spoken(text: str) -> list[str]:
        return words(text) or text.split()

    scores = rouge_score(reply, output, normalizer=str, tokenizer=spoken, rouge_keys="rougeL")
    return float(scores["rougeL_fmeasure"])


def difference(before: Sequence[float], after: Sequence[float]) -> Difference:
    """Mean of after − before. Raises ValueError if they differ in length or are empty."""
    changes = torch.tensor([b - a for a, b in zip(before, after, strict=True)], dtype=torch.float64)
    if not len(changes):
        raise ValueError("there is nothing to compare")
    error = float(changes.std() / math.sqrt(len(changes))) if len(changes) > 1 else math.nan
    return Difference(float(changes.mean()), error)


def loss_difference(before: Sequence[float], after: Sequence[float], tokens: Sequence[int]) -> Difference:
    """Change in nats a token, and its standard error: examples are what was drawn, tokens come in their clusters.

    Σ(after − before) ÷ Σtokens is a ratio of means; its error is the ratio estimator's (Cochran 1977, section 6.4).
    """
    change_N = torch.tensor(after, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64)
    tokens_N = torch.tensor(tokens, dtype=torch.float64)
    ratio = change_N.sum() / tokens_N.sum()
    n = len(change_N)
    spread = (change_N - ratio * tokens_N).square().sum() / max(1, n - 1)
    error = math.sqrt(float(spread) / n) / float(tokens_N.mean()) if n > 1 else math.nan
    return Difference(float(ratio), error)


def win_rate(before: Sequence[float], after: Sequence[float]) -> Difference:
    """How often the reply afterwards has the higher score, equal ones half, and the standard error."""
    wins = [1.0 if b > a else 0.5 if b == a else 0.0 for a, b in zip(before, after, strict=True)]
    return difference([0.0] * len(wins), wins)


def judge(before: Scores, after: Scores) -> Verdict:
    """Published if the loss, on outputs after prompts as servers make them, surely fell.

    Figures that are not finite are none (the standard error of a single reply, say): they are left out of the metrics.
    """
    served = loss_difference(before.served_nats, after.served_nats, before.served_tokens)
    metrics = {
        "held_out_loss_before": before.loss,
        "held_out_loss": after.loss,
        "held_out_perplexity_before": before.perplexity,
        "held_out_perplexity": after.perplexity,
        "held_out_loss_change": served.mean,
        "held_out_loss_change_error": served.error,
        "held_out_examples": float(len(before.nats)),
    }
    if before.rouge:
        rouge = difference(before.rouge, after.rouge)
        mean = sum(before.rouge) / len(before.rouge)
        metrics |= {"rouge_l_before": mean, "rouge_l": mean + rouge.mean, "rouge_l_change_error": rouge.error}
    if before.rewards:
        wins = win_rate(before.rewards, after.rewards)
        metrics |= {"win_rate": wins.mean, "win_rate_error": wins.error}
        if after.discrimination is not None:
            metrics["reward_model_discrimination"] = after.discrimination
    bound = served.mean + MIN_FALL_Z * served.error
    reason = (
        f"the held-out loss did not surely fall: {served.mean:+.3f} nats a token, upper bound {bound:+.3f}, "
        f"on {len(before.nats)} examples"
    )
    allowed = -MIN_FALL_Z * served.error
    # Written so that a nan is refused.
    check = Check(
        "held_out_loss_change", served.mean, 0.0, allowed, upper=True, kept=served.mean < allowed, reason=reason
    )
    return Verdict([check], {name: value for name, value in metrics.items() if math.isfinite(value)})


def _discrimination(reward_model: RewardModel) -> float:
    """Of the aspect that it tells worst, of those that it rewards: the learner learns from none below its bound."""
    return min(reward_model.heads[term.aspect].discrimination for term in reward_model.terms)


def _judge(reward_model: RewardModel, policy: Policy, items: list[PromptReply]) -> list[float]:
    try:
        return [float(score) for score in reward_model.score(policy, items)]
    except RuntimeError as error:
        raise ValueError(f"the reward model does not fit the base model: {error}") from error
