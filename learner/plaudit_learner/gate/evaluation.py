"""What one policy says on the held-out prompts and to the probes, and everything that the gate measures of it.

prompts ──▶ sample ──▶ replies ──┬─ reward model ──▶ reward
                                 ├─ reference ─────▶ KL, surprise
                                 ├─ tokens ────────▶ length, entropy, diversity, loops
                                 └─ words ─────────▶ relevance, refusals
probes ───▶ sample ──▶ replies ───── words ────────▶ instructions, flattery
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from plaudit_learner.gate import measures
from plaudit_learner.gate.probes import FLATTERY, INSTRUCTIONS
from plaudit_learner.gate.relevance import Encoder, contrast
from plaudit_learner.gate.transcript import Transcript
from plaudit_learner.gate.wording import flatters, refuses
from plaudit_learner.policy import Policy, pad
from plaudit_learner.ppo.rollouts import Rollout, sample
from plaudit_learner.ppo.vocabulary import compare
from plaudit_learner.ranks import ALONE, Ranks
from plaudit_learner.reward.features import Encoding, batches, encode, features
from plaudit_learner.reward.model import RewardModel

MICROBATCH = 16
PROBE_SAMPLES = 2
PROBE_TOKENS = 32
"""A reply to a probe is short, or it has failed."""


@dataclass(frozen=True)
class Evaluated:
    """One policy's replies to the held-out prompts; those to one prompt stand next to each other, as many to each."""

    rollouts: list[Rollout]
    scores: list[float]
    """The reward model's score of each."""
    kl: float
    """KL to the reference, nats per reply; exact over the vocabulary at each sampled token."""
    values: Mapping[str, Tensor]
    """Of each measure one number a reply, a row a prompt or a probe; its mean is what the policy is said to have."""


class Reader:
    """What reads words: the base model's tokenizer, and the sentence encoder."""

    def __init__(self, model: Path) -> None:
        """Raises OSError if the encoder or the tokenizer is missing, ValueError if there is no chat template."""
        self.transcript = Transcript(model)
        self.encoder = Encoder()

    def read(self, rollouts: Sequence[Rollout], prompts: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
        """relevance and refusals (P, K) of replies to `prompts`, as many to each, in their order."""
        words = [self.transcript.words(r.reply) for r in rollouts]
        own_N = torch.arange(len(prompts)).repeat_interleave(len(rollouts) // len(prompts))
        topics = [self.transcript.topic(prompt) for prompt in prompts]
        relevance_N = contrast(self.encoder(words), self.encoder(topics), own_N)
        return {
            "relevance": measures.by_prompt(relevance_N, len(prompts)),
            "refusals": measures.by_prompt([refuses(text) for text in words], len(prompts)),
        }


def evaluate(
    policy: Policy,
    reward_model: RewardModel,
    prompts: Sequence[tuple[int, ...]],
    reader: Reader,
    *,
    samples_per_prompt: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    reward_only: bool = False,
    ranks: Ranks = ALONE,
) -> Evaluated:
    """Sample replies to held-out prompts, and to the probes, and measure them.

    Inside `policy.reference()` it evaluates the reference. `reward_only`: in half the time, what serves as the parent
    that a candidate is compared with; its KL is nan. `ranks`: share the work, and get all of it.
    """
    # A prompt that comes twice would be compared with itself.
    prompts = list(dict.fromkeys(prompts))
    rollouts = sample(
        policy,
        prompts,
        samples_per_prompt=samples_per_prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        ranks=ranks,
    )

    if reward_only:
        scores_N = reward_model.score_features(features(policy, [r.item for r in rollouts], ranks=ranks))
        values = {"reward": measures.by_prompt(scores_N, len(prompts))}
        return Evaluated(rollouts, scores_N.tolist(), math.nan, values)

    def asked(questions: Sequence[str]) -> list[Rollout]:
        return sample(
            policy,
            [reader.transcript.ask(question) for question in questions],
            samples_per_prompt=PROBE_SAMPLES,
            max_new_tokens=PROBE_TOKENS,
            temperature=temperature,
            seed=seed,
            ranks=ranks,
        )

    probes = judge_probes(reader, asked([probe.question for probe in INSTRUCTIONS]), asked(FLATTERY))
    return measure(policy, reward_model, rollouts, reader, temperature=temperature, probes=probes, ranks=ranks)


def judge_probes(reader: Reader, instructions: Sequence[Rollout], flattery: Sequence[Rollout]) -> dict[str, Tensor]:
    """Whether replies follow each instruction, and flatter at each flattery probe; a row a probe.

    The replies stand in the order of INSTRUCTIONS and of FLATTERY, as many to each.
    """
    samples = len(instructions) // len(INSTRUCTIONS)
    followed = [
        INSTRUCTIONS[row // samples].followed(reader.transcript.words(r.reply)) for row, r in enumerate(instructions)
    ]
    flattered = [flatters(reader.transcript.words(r.reply)) for r in flattery]
    return {
        "instructions": measures.by_prompt(followed, len(INSTRUCTIONS)),
        "flattery": measures.by_prompt(flattered, len(FLATTERY)),
    }


def measure(
    policy: Policy,
    reward_model: RewardModel,
    rollouts: Sequence[Rollout],
    reader: Reader,
    *,
    temperature: float,
    probes: Mapping[str, Tensor],
    ranks: Ranks = ALONE,
) -> Evaluated:
    """Everything that the gate looks at, of replies wherever they come from; `policy` gives the KL and the reference.

    rollouts: as `sample` gives them. Raises ValueError if there are fewer than 2 prompts.
    """
    prompts = list(dict.fromkeys(r.prompt for r in rollouts))
    if len(prompts) < 2:
        raise ValueError("the gate needs at least 2 held-out prompts")
    encodings = encode(policy, [r.item for r in rollouts], trunks=True, ranks=ranks)
    scores_N = reward_model.score_features(torch.stack([e.features_D for e in encodings]))
    kl_N, surprise_N = _beside_the_reference(policy, rollouts, encodings, temperature, ranks)
    values = {
        "reward": measures.by_prompt(scores_N, len(prompts)),
        "surprise": measures.by_prompt(surprise_N, len(prompts)),
        **measures.replies(rollouts, len(prompts), policy.eos_ids),
        **reader.read(rollouts, prompts),
        **probes,
    }
    return Evaluated(list(rollouts), scores_N.tolist(), float(kl_N.mean()), values)


def _beside_the_reference(
    policy: Policy, rollouts: Sequence[Rollout], encodings: Sequence[Encoding], temperature: float, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Of each reply: KL to the reference (nats), and minus the reference's log-probability per token (nats)."""
    found: dict[int, tuple[float, float]] = {}
    items = [r.item for r in rollouts]
    with torch.no_grad():
        for rows in ranks.mine(batches(items, MICROBATCH, ranks.size)):
            states = [encodings[row].predicting_TH for row in rows]
            ref_logits_BTV = policy.head(torch.nn.utils.rnn.pad_sequence(states, batch_first=True))
            if policy.as_reference:
                logits_BTV, (tokens_BT, mask_BT) = ref_logits_BTV, pad([items[row].reply for row in rows])
            else:
                trunks = [trunk for row in rows if (trunk := encodings[row].trunk) is not None]
                logits_BTV, tokens_BT, mask_BT = policy.reply_logits([items[row] for row in rows], trunks)
            beside = compare(logits_BTV, ref_logits_BTV, tokens_BT, mask_BT, temperature)
            kl_B, surprise_B = beside.kl_BT.sum(dim=1), -beside.ref_logprobs_BT.sum(dim=1) / mask_BT.sum(dim=1)
            found |= zip(rows, zip(kl_B.tolist(), surprise_B.tolist(), strict=True), strict=True)
    kl_N, surprise_N = torch.tensor([both for _, both in sorted(ranks.union(found).items())]).unbind(dim=1)
    return kl_N, surprise_N
