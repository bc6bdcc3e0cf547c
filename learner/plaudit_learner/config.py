"""Settings of plaudit-learner. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from plaudit.base_model import PACKAGED
from plaudit.settings import ProgramSettings
from plaudit_learner.reward.aspects import DEFAULT_ASPECT, Term, parse

EXPERIENCE = "experience.sqlite"
"""The experience store, within the state directory."""


class LearnerSettings(ProgramSettings):
    """Takes in votes, trains a reward model on them, improves the policy with PPO, publishes what passes the gate."""

    model: str = PACKAGED
    """The base model: `smollm2` (packaged), or a directory in Hugging Face's format; the one that the servers serve."""
    model_cache: Path = Path("~/.cache/plaudit")
    """Where the packaged model is kept once converted."""
    event_log: str
    """sqlite:PATH or kafka://HOST:PORT[,HOST:PORT…], by TLS and with a password if it says so (docs/security.md); all
    programs of a deployment share it."""
    policy_store: str
    """Where versions are published: a directory or any fsspec URL (s3://…)."""
    state_dir: Path
    """This learner's own directory: the experience store. Only one learner may use it at a time."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of Prometheus metrics; 0: none."""
    metrics_host: str = "127.0.0.1"
    """Address that metrics are served at, open to whoever reaches it; they name no user and hold no text."""
    reward: str = DEFAULT_ASPECT
    """Aspects that make it up, NAME[=WEIGHT][<=CAP],…: quality=1.0,tone=0.5<=1.0; a cap is the most it may add."""
    pessimism: float = Field(default=1.0, ge=0)
    """How far a reward is lowered for what the reward model does not know, in its own standard deviations; 0: not."""
    influence_cap: float = Field(default=0.005, gt=0, le=1)
    """The most that one voter may weigh, as a share of all that was said, and of the prompts learnt on; where there are
    few voters, twice the average one's share. 1: no cap (docs/influence.md)."""
    votes_per_round: int = Field(default=40, ge=4)
    """New votes that start a round, each as much as it weighs: reward model, PPO, gate, publication."""
    canary_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of conversations that get a version that passed the gate, until votes decide; 0: it is stable at once."""
    canary_least_votes: int = Field(default=16, ge=2)
    """Votes on each side, canary and stable, before votes decide anything."""
    canary_most_votes: int = Field(default=100, ge=2)
    """Votes on each side after which the trial ends, and the canary is promoted unless there is a sign of harm."""
    canary_most_replies: int = Field(default=1000, ge=2)
    """Replies that its share gives the canary after which the trial ends, however few votes there are; it ends after
    100,000 of both versions, or a `window`, too."""
    window: int = Field(default=4000, ge=16)
    """Replies that are learnt from and kept, the most recent ones: those sampled here, and as many imported ones.
    What a canary is judged by is kept beyond it until its trial is over."""
    max_new_tokens: int = Field(default=64, ge=4)
    """Length limit of fresh rollouts; the requests' own usual limit where that is lower. In tokens."""
    max_prompt_tokens: int = Field(default=256, ge=1)
    """Longer prompts (with the chat template and what was said before) are not used for rollouts. In tokens."""
    iterations: int = Field(default=12, ge=1)
    """PPO updates in a round, each on fresh rollouts, with the whole KL budget; fewer with less, as its root."""
    prompts_per_iteration: int = Field(default=24, ge=2)
    """Distinct prompts in an update, with 4 replies each."""
    kl_budget: float = Field(default=3.0, gt=0)
    """How far the policy may go from the reference policy, once votes_for_kl_budget votes stand: KL per reply, in nats,
    0.6 of which the KL coefficient aims at. With fewer votes it is less, in proportion (docs/decisions/0009, 0014)."""
    votes_for_kl_budget: int = Field(default=300, ge=1)
    """Votes from which on the whole KL budget may be spent."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Of PPO's optimiser (Adam)."""
    instruct_data: Path | None = None
    """Instruction–output pairs (docs/instruct.md) whose loss PPO lowers beside, so that it does not unlearn them."""
    instruct_weight: float = Field(default=0.0, ge=0)
    """What a nat a token of that loss is worth, in deviations of the reward within a prompt; 0: it is not mixed in."""
    unfinished_penalty: float = Field(default=0.0, ge=0)
    """Taken from the reward of a rollout without an end, in deviations of the reward (docs/decisions/0020)."""
    logged_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of an update's replies that were served, not sampled for it, as long as there are any in the window."""
    lora_layers: int = Field(default=12, ge=1)
    """Layers that carry LoRA, counted from the top."""
    seed: int = 0
    """Of all that is random; a round's own seed follows from it and the round's number."""
    exit_with_parent: bool = False
    """Also stop when standard input ends (for supervisors)."""

    @model_validator(mode="after")
    def _trial_can_be_decided(self) -> LearnerSettings:
        if self.canary_most_votes < self.canary_least_votes:
            raise ValueError(
                f"canary-most-votes ({self.canary_most_votes}) must not be below canary-least-votes "
                f"({self.canary_least_votes})"
            )
        return self

    @field_validator("reward")
    @classmethod
    def _reward_is_readable(cls, reward: str) -> str:
        parse(reward)
        return reward

    @model_validator(mode="after")
    def _has_examples_if_it_needs_them(self) -> LearnerSettings:
        if self.instruct_weight and self.instruct_data is None:
            raise ValueError("instruct_weight is set, but not instruct_data: give a file of instruction–output pairs")
        return self

    @property
    def terms(self) -> tuple[Term, ...]:
        """The parts of the reward."""
        return parse(self.reward)

    @property
    def aspects(self) -> tuple[str, ...]:
        """The aspects whose judgements are counted."""
        return tuple(term.aspect for term in self.terms)

    @property
    def aspect(self) -> str:
        """The aspect that is named first: its thumbs are the approval that metrics show."""
        return self.aspects[0]
