"""Real human preferences (Anthropic's hh-rlhf, harmless-base): read, split by the dialogue's first question, encode.

A file of features is kept for every CHUNK pairs, so that reading 2,300 dialogues can be stopped and taken up again.

Shapes: P pairs, L layers, H hidden size.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.reward.features import batches, pooled_layers
from plaudit_learner.template import ChatTemplate, Message

PROMPT_TOKENS = 256
"""Longer dialogues lose their beginning."""
REPLY_TOKENS = 128
"""Longer replies lose their end; one in thirty is longer."""
CHUNK = 64
TEST_SHARE = 0.3
_TURN = re.compile(r"\n\n(Human|Assistant): ?")


@dataclass(frozen=True)
class Pair:
    """Two replies that end the same dialogue; people preferred `chosen`."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str

    @property
    def test(self) -> bool:
        """Dialogues that begin with the same question are on the same side, for ever and on any machine."""
        digest = hashlib.sha256(self.messages[0].content.encode()).hexdigest()
        return int(digest[:8], 16) < TEST_SHARE * 16**8


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file as Anthropic publishes it, but for those that differ in more than the last reply."""
    pairs = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            before, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
            other, _, rejected = row["rejected"].rpartition("\n\nAssistant:")
            chosen, rejected = chosen.strip(), rejected.strip()
            if before == other and chosen and rejected and chosen != rejected:
                pairs.append(Pair(_messages(before), chosen, rejected))
    return pairs


def encode_pairs(policy: Policy, template: ChatTemplate, pairs: Sequence[Pair], cache: Path) -> dict[str, Tensor]:
    """What the reference policy makes of each reply, the chosen one's row before the rejected one's.

    mean_PLH and last_PLH: hidden states of every fifth layer, their mean over the reply and the one of its last token;
    float16. prompt_PH: the dialogue's last state, of the layer that the reward model sees it at. shape_P2: length in
    tokens, and whether the reply is whole.
    """
    layers = read_layers(policy.layers)
    cache.mkdir(parents=True, exist_ok=True)
    chunks, began = [], time.monotonic()
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        named = hashlib.sha256(repr((chunk, layers, "prompt", PROMPT_TOKENS, REPLY_TOKENS)).encode()).hexdigest()[:16]
        file = cache / f"{named}.safetensors"
        if not file.exists():
            tensors = _encode([item for pair in chunk for item in _items(template, pair)], policy, layers)
            save_file(tensors, file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
            minutes = (time.monotonic() - began) / 60
            print(f"features of {start + len(chunk)} of {len(pairs)} pairs after {minutes:.1f} minutes", flush=True)
        chunks.append(load_file(file))
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def read_layers(depth: int) -> list[int]:
    """The layers whose states are kept: seven, from the embeddings to the last."""
    return list(range(0, depth + 1, max(1, depth // 6)))


def _encode(items: Sequence[PromptReply], policy: Policy, layers: Sequence[int]) -> dict[str, Tensor]:
    mean: list[Tensor] = [torch.empty(0)] * len(items)
    last: list[Tensor] = [torch.empty(0)] * len(items)
    prompt: list[Tensor] = [torch.empty(0)] * len(items)
    seen = layers.index(pooled_layers(policy.layers)[-1])
    for rows in batches(items, 16):
        reading = policy.reference_states([items[row] for row in rows], layers)
        for b, row in enumerate(rows):
            states_LTH = reading.states_LBTH[:, b, : len(items[row].reply)]
            mean[row], last[row] = states_LTH.mean(dim=1).half(), states_LTH[:, -1].half()
            prompt[row] = reading.prompt_LBH[seen, b].half()
    shape = torch.tensor([[len(item.reply), float(item.finished)] for item in items])
    return {"mean": torch.stack(mean), "last": torch.stack(last), "prompt": torch.stack(prompt), "shape": shape}


def _items(template: ChatTemplate, pair: Pair) -> list[PromptReply]:
    prompt = template.prompt(pair.messages)[-PROMPT_TOKENS:]
    replies = [template.reply(text) for text in (pair.chosen, pair.rejected)]
    return [PromptReply(prompt, reply[:REPLY_TOKENS], len(reply) <= REPLY_TOKENS) for reply in replies]


def _messages(text: str) -> tuple[Message, ...]:
    _, *parts = _TURN.split(text)
    roles = ["user" if name == "Human" else "assistant" for name in parts[::2]]
    return tuple(Message(role, content.strip()) for role, content in zip(roles, parts[1::2], strict=True))
