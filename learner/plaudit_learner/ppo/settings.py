"""Settings of one improvement of a policy."""

from __future__ import annotations

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
    kl_budget: float = 4.0
    """Nats a reply, to the reference: the coefficient of the KL is set so that the optimum spends this much.

    A few versions of noisy steps spend about a third of it: with 1.5 the policy came to rest at 0.6 nats, and the
    second version had nowhere to go.
    """
    kl_stop: float = 2.5
    """Nats a reply: past this an iteration is undone and the improvement ends. Keep it below the gate's bound."""
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

    def __post_init__(self) -> None:
        for name in ("iterations", "prompts_per_iteration", "minibatch_prompts", "max_prompt_tokens", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.samples_per_prompt < 2:
            raise ValueError("samples_per_prompt must be at least 2: each reply is judged against the others")
        if self.kl not in ("loss", "reward"):
            raise ValueError(f"kl is {self.kl!r}: it must be loss or reward")
        if min(self.kl_budget, self.kl_stop, self.temperature) <= 0:
            raise ValueError("kl_budget, kl_stop and temperature must be positive")
