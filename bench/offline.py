"""What the offline experiments share: simulated votes on base replies, policies measured on held-out prompts, rows.

    prompts ──▶ base replies ──▶ persona's noisy votes ──▶ reward model, and every method
    held-out prompts ──▶ a policy's replies ──▶ true approval, reward, KL, the gate's measures: one row

A row is a line of JSON with `key`, all that it follows from; what is there already is not computed again.

Shapes: P prompts, K replies to each.
"""

from __future__ import annotations

import hashlib
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from plaudit import base_model
from plaudit_cli.personas import Persona
from plaudit_cli.prompts import Prompt
from plaudit_learner import rounds
from plaudit_learner.config import LearnerSettings
from plaudit_learner.gate.evaluation import Reader, measure
from plaudit_learner.gate.measures import by_prompt
from plaudit_learner.policy import AdapterConfig, Policy
from plaudit_learner.ppo.rollouts import Rollout, sample
from plaudit_learner.ppo.settings import ImproveSettings
from plaudit_learner.reward.aspects import DEFAULT, Term
from plaudit_learner.reward.features import features
from plaudit_learner.reward.model import RewardModel, Vote, fit
from plaudit_learner.template import ChatTemplate, Message
from plaudit_learner.whole_file import whole

Tokens = tuple[int, ...]

SEED_TASKS = Path(__file__).parents[2] / "shared" / "data" / "self-instruct-seed" / "seed_tasks.jsonl"
MEASURED = ("relevance", "openings", "phrases", "entropy", "length", "cut_off", "loops")
_LEARNING = (
    *("iterations", "prompts_per_iteration", "learning_rate", "kl_budget", "votes_for_kl_budget"),
    *("pessimism", "lora_layers", "max_prompt_tokens", "max_new_tokens"),
)
"""Settings of the learner that bear on what comes of given votes and prompts."""
_HELD_OUT_SEED = 1_000_003
"""Every policy's held-out replies are drawn with the same numbers."""


@dataclass(frozen=True)
class Sampling:
    """How replies are sampled, and how many."""

    temperature: float = 0.7
    max_new_tokens: int = 48
    max_prompt_tokens: int = 128
    base_samples: int = 16
    """To each held-out prompt, by the base policy: best-of-n chooses among them."""
    samples: int = 8
    """To each held-out prompt, by every other policy."""


@dataclass(frozen=True)
class Ballot:
    """Votes of one persona on base replies, and what the reward model knows by them."""

    rollouts: list[Rollout]
    votes: list[Vote]


class Lab:
    """The base model, the prompts, and what is done with them."""

    def __init__(self, model: Path, train: Sequence[Prompt], held_out: Sequence[Prompt], how: Sampling) -> None:
        self.model = model
        self.how = how
        self.settings = learner_settings()
        self.reader = Reader(model)
        self._transcript = self.reader.transcript
        self._template = ChatTemplate(model)
        self.train, self.held_out = self._short(train), self._short(held_out)
        self._base = self.policy(0)

    def policy(self, seed: int) -> Policy:
        """The base model with a new adapter, as a round of the learner begins."""
        return Policy.load(self.model, config=AdapterConfig(layers=self.settings.lora_layers), seed=seed)

    def ids(self, turns: Sequence[tuple[str, str]]) -> Tokens:
        """A conversation's token ids."""
        return self._template.prompt([Message(*turn) for turn in turns])

    def second_turns(self, persona: Persona, prompts: Sequence[Tokens], seed: int) -> list[Tokens]:
        """What the persona says after the base policy's first reply to each; the prompts themselves if nothing."""
        if not persona.followups:
            return list(prompts)
        found = []
        for number, first in enumerate(self.replies(prompts, seed)):
            question, reply = self._transcript.question(first.prompt), self._transcript.words(first.reply)
            asked = persona.followups[number % len(persona.followups)]
            found.append(self.ids([("user", question), ("assistant", reply), ("user", asked)]))
        return found

    def replies(self, prompts: Sequence[Tokens], seed: int, *, samples: int = 1) -> list[Rollout]:
        """The base policy's."""
        return self.sampled(self._base, prompts, seed, samples=samples)

    def sampled(self, policy: Policy, prompts: Sequence[Tokens], seed: int, *, samples: int = 1) -> list[Rollout]:
        """Any policy's."""
        how = self.how
        return sample(
            policy,
            prompts,
            samples_per_prompt=samples,
            max_new_tokens=how.max_new_tokens,
            temperature=how.temperature,
            seed=seed,
        )

    def tastes(self, persona: Persona, rollout: Rollout) -> dict[str, float]:
        """The persona's true liking of a reply, by aspect."""
        transcript = self._transcript
        words = transcript.words(rollout.reply)
        return persona.tastes(transcript.question(rollout.prompt), words, rollout.finished)

    def approval(self, persona: Persona, rollouts: Sequence[Rollout]) -> list[float]:
        """The persona's own probability of liking each reply."""
        transcript = self._transcript
        return [
            persona.approval(transcript.question(r.prompt), transcript.words(r.reply), r.finished) for r in rollouts
        ]

    def vote(
        self,
        persona: Persona,
        prompts: Sequence[Tokens],
        votes: int,
        noise: float,
        seed: int,
        *,
        policy: Policy | None = None,
    ) -> Ballot:
        """`votes` noisy thumbs on fresh replies (None: the base's), every prompt in turn; one on each aspect."""
        draw = random.Random(seed)
        replies = math.ceil(votes / len(persona.aspects))
        rollouts = self.sampled(policy or self._base, turns(prompts, replies, draw), seed)
        cast = [
            Vote(rollout.item, persona.thumb(liking, draw, noise), user=f"sim-{number % 20}", aspect=aspect)
            for number, rollout in enumerate(rollouts)
            for aspect, liking in self.tastes(persona, rollout).items()
        ]
        return Ballot(rollouts, cast[:votes])

    def reward_model(self, votes: Sequence[Vote], terms: tuple[Term, ...] = DEFAULT) -> RewardModel:
        """As the learner fits it."""
        return fit(self._base, votes, terms=terms, pessimism=self.settings.pessimism)

    def improve_settings(self, votes: float, most: float = math.inf) -> ImproveSettings:
        """What the learner would strive for with votes of that weight, and with a KL budget of `most` at the most."""
        t, length = self.how.temperature, self.how.max_new_tokens
        return rounds.aim(self.settings, votes, temperature=t, max_new_tokens=length, most=most)

    def normalised(self, model: RewardModel, rollouts: Sequence[Rollout]) -> RewardModel:
        """Rewards in deviations of these replies of the base policy."""
        return model.normalised(self.features(rollouts))

    def features(self, rollouts: Sequence[Rollout]) -> Tensor:
        """What the reward model sees of each reply (N, D)."""
        return features(self._base, [r.item for r in rollouts])

    @property
    def prompt_features(self) -> int:
        """How many of those are the prompt's; they are the last."""
        return self._base.hidden_size

    def rewards(self, model: RewardModel, rollouts: Sequence[Rollout]) -> Tensor:
        """The reward model's score of each reply (N,)."""
        return model.score(self._base, [r.item for r in rollouts])

    def base_replies(self, prompts: Sequence[Tokens]) -> list[Rollout]:
        """The base policy's held-out replies, among which best-of-n chooses."""
        return self.replies(prompts, _HELD_OUT_SEED, samples=self.how.base_samples)

    def measured(
        self,
        policy: Policy | None,
        persona: Persona,
        reward_model: RewardModel,
        prompts: Sequence[Tokens],
        rollouts: Sequence[Rollout] | None = None,
    ) -> dict[str, Any]:
        """Of one policy (None: the base), or of these replies of its: each measure by prompt, the KL as one number."""
        judged = policy or self._base
        replies = rollouts or self.sampled(judged, prompts, _HELD_OUT_SEED, samples=self.how.samples)
        found = measure(judged, reward_model, replies, self.reader, temperature=self.how.temperature, probes={})
        values = {name: found.values[name] for name in ("reward", *MEASURED)}
        values["approval"] = by_prompt(self.approval(persona, replies), len(prompts))
        return {"kl": found.kl, **{name: rounded(value_PK.mean(dim=1)) for name, value_PK in values.items()}}

    def _short(self, prompts: Sequence[Prompt]) -> list[Tokens]:
        ids = dict.fromkeys(self.ids(prompt.turns) for prompt in prompts)
        return [prompt for prompt in ids if len(prompt) <= self.how.max_prompt_tokens]


class Clock:
    """CPU minutes of this process, all its threads; with a file, of those before it as well, that were stopped."""

    def __init__(self, file: Path | None = None) -> None:
        """file: where `keep` writes, and what was kept is read."""
        self._file = file
        self._before = float(file.read_text()) if file and file.exists() else 0.0
        self._began = time.process_time()

    @property
    def minutes(self) -> float:
        """Since it was made, and before."""
        return round(self._before + (time.process_time() - self._began) / 60, 3)

    def leave_out(self, minutes: float) -> None:
        """Do not count these, which went into something else."""
        self._before -= minutes

    def keep(self) -> None:
        """Write it down, for who goes on after a stop; call it when what they were spent on is kept."""
        if self._file:
            with whole(self._file) as unfinished:
                unfinished.write_text(f"{self.minutes}")


def learner_settings() -> LearnerSettings:
    """The learner's defaults; what a deployment must name names nothing here."""
    return LearnerSettings(event_log="sqlite:unused", policy_store="unused", state_dir=Path("unused"))


def identity(lab: Lab) -> dict[str, Any]:
    """What every row follows from, whatever its method: model, prompts, sampling, the learner's defaults."""
    ours = lab.settings.model_dump(mode="json", include=set(_LEARNING))
    ours |= asdict(lab.improve_settings(lab.settings.votes_for_kl_budget))
    digest = hashlib.sha256(repr((sorted(ours.items()), lab.train, lab.held_out)).encode()).hexdigest()[:12]
    return {"model": lab.model.name, "learner_and_prompts": digest, **asdict(lab.how)}


def model_directory(size: str, temporary: Path, model: str = base_model.PACKAGED) -> Path:
    """The tiny model for the small size, else the packaged one."""
    if size == "small":
        from tests.tiny_model import make_tiny_model

        return make_tiny_model(temporary / "tiny")
    return base_model.resolve(model, Path("~/.cache/plaudit").expanduser())


def turns(prompts: Sequence[Tokens], count: int, draw: random.Random) -> list[Tokens]:
    """So many prompts: each once before any comes again, each time in another order."""
    taken: list[Tokens] = []
    while len(taken) < count:
        taken += draw.sample(prompts, len(prompts))
    return taken[:count]


def best_of(n: int, rewards_PK: Tensor, values_PK: Tensor) -> Tensor:
    """Expected value (P,) of the reply with the highest reward among n of the K, over all such n: unbiased.

    The i-th smallest reward (from 0) is the highest of n in C(i, n - 1) of the C(K, n) choices. Ties are broken by the
    replies' order, which does not depend on the values.
    """
    samples = rewards_PK.shape[1]
    weights_K = torch.tensor([math.comb(i, n - 1) / math.comb(samples, n) for i in range(samples)], dtype=torch.float64)
    return values_PK.double().gather(1, rewards_PK.argsort(dim=1, stable=True)) @ weights_K


def best_of_kl(n: int) -> float:
    """The most that best-of-n can have, in nats: log n - (n - 1) / n (Beirami et al. 2024, theorem 3.1)."""
    return math.log(n) - (n - 1) / n


def paired(values_P: Sequence[float], base_P: Sequence[float]) -> tuple[float, float]:
    """Mean difference over prompts, and its standard error."""
    difference_P = [value - base for value, base in zip(values_P, base_P, strict=True)]
    return statistics.fmean(difference_P), statistics.stdev(difference_P) / math.sqrt(len(difference_P))


def within(standard_error: float, prompts: int) -> float:
    """Half of the 95 % interval of a mean over so many prompts, by Student's t, as the gate has it."""
    return float(student.ppf(0.975, prompts - 1)) * standard_error


def rounded(values: Tensor) -> list[float]:
    """As a row keeps them."""
    return [round(value, 5) for value in values.tolist()]
