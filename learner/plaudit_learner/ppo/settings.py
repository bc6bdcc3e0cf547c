"""Settings of one improvement of a policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ImproveSettings:
    """How one version is improved from its parent."""

    iterations: int = 8
    """Rounds of sampling and updating."""
    prompts_per_iteration: int = 16
    """Distinct prompts sampled in a round."""
    samples_per_prompt: int = 4
    """Replies to each; at least 2, since each is judged against the others."""
    minibatch_prompts: int = 8
    """Prompts (with all their replies) in one optimiser step."""
    learning_rate: float = 5e-4
    """Of Adam, at the start; falls to `final_learning_rate_share` of it in a straight line."""
    final_learning_rate_share: float = 0.1
    """The learning rate of the last step, as a share of the first."""
    warmup_steps: int = 4
    """Steps over which the learning rate rises: Adam's first ones go full length in every direction, noise included."""
    max_gradient_norm: float = 1.0
    """Longer gradients are shortened to this."""
    kl_target: float = 1.8
    """Nats a reply, to the reference, that are to be spent: past it the coefficient of the KL rises."""
    kl_stop: float = 2.5
    """Nats a reply: past this an iteration is undone and the improvement ends."""
    kl_budget: float = 3.0
    """Nats a reply: the gate lets nothing pass beyond. What an update's replies say of the KL is off by a tenth and
    more, so the two above stand well below."""
    trace: float | None = 0.9
    """Lambda of GAE with the critic. None: no critic, each reply against the others to its prompt (leave-one-out)."""
    kl: Literal["loss", "reward"] = "loss"
    """Where the KL to the reference is held against the policy: exactly, over the vocabulary, in the loss; or as
    sampled, token by token, in the reward, from where it passes through the critic like all reward."""
    whiten: bool = False
    """Advantages to mean 0 and variance 1 over the real tokens of an iteration: forgets how much there is to gain."""
    clip: float = 0.2
    """The ratio's clip (Schulman et al. 2017, eq. 7)."""
    temperature: float = 0.7
    """As served."""
    max_prompt_tokens: int = 128
    """Longer prompts are left out: sampling reads the whole prompt again for every token, so they cost the most."""
    max_new_tokens: int = 48
    """As served, or less to go faster."""
    unfinished_penalty: float = 0.0
    """Taken from the score of a reply without EOS, in deviations of the score."""
    instruct_weight: float = 0.0
    """Of the instruction loss that is added to each step's (PPO-ptx: Ouyang et al. 2022, eq. 2): what a nat a token is
    worth, in deviations of the reward within a prompt. 0: none."""
    logged_share: float = 0.0
    """Share of an update's replies that were served and logged, as long as there are any; the rest are fresh."""

    def __post_init__(self) -> None:
        for name in ("iterations", "prompts_per_iteration", "minibatch_prompts", "max_prompt_tokens", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.samples_per_prompt < 2:
            raise ValueError("samples_per_prompt must be at least 2: each reply is judged against the others")
        if self.kl not in ("loss", "reward"):
            raise ValueError(f"kl is {self.kl!r}: it must be loss or reward")
        for name in ("instruct_weight", "unfinished_penalty"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if not 0 <= self.logged_share < 1:
            raise ValueError("logged_share must be at least 0 and below 1: some replies of an update are fresh")
        if self.logged_share and self.trace is None:
            raise ValueError("logged_share needs the critic (trace): a logged reply has no others to be judged against")
        if self.logged_share and self.kl == "reward":
            raise ValueError("logged_share needs kl to be loss: in the reward, it is of the policy that sampled")
        if min(self.kl_target, self.temperature) <= 0:
            raise ValueError("kl_target and temperature must be positive")
        if not self.kl_target < self.kl_stop < self.kl_budget:
            raise ValueError("kl_target must be below kl_stop, and that below kl_budget")

    @property
    def steps(self) -> int:
        """Of the optimiser, in an iteration."""
        return math.ceil(self.prompts_per_iteration / self.minibatch_prompts)

    @property
    def instruct_examples(self) -> int:
        """Instruction examples that all iterations take together: as many to a step as there are prompts."""
        return self.iterations * self.steps * self.minibatch_prompts if self.instruct_weight else 0

    @property
    def logged_prompts(self) -> int:
        """Prompts' worth of replies that are logged ones in an iteration, while there are any."""
        return min(round(self.logged_share * self.prompts_per_iteration), self.prompts_per_iteration - 1)

    @property
    def logged_replies(self) -> int:
        """Logged replies that all iterations take together."""
        return self.iterations * self.logged_prompts * self.samples_per_prompt
