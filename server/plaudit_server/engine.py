"""The seam between the server and whatever samples tokens.

Two engines stand behind it, `vllm_engine.py` and `torch_engine.py`; `tests/server/test_engines.py` is the contract that
both are held to. An engine serves several policy versions at once: each generation is pinned to one of them, from its
first token to its last (invariant 4).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from prometheus_client import Metric

from plaudit.releases import number as number_of


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """Weights that an engine can serve: made by follower.py, which has verified every file; read by engines."""

    name: str
    """`v0` is the base model; `v1`, `v2`, … are adapters on it. Never used for two sets of weights."""
    adapter: Path | None
    """PEFT directory of the LoRA adapter; None for the base model. Must stay on disk until the version is unloaded."""

    @property
    def number(self) -> int:
        """The version as an integer, 0 for the base model: unique, as engines want it for an adapter's id."""
        return number_of(self.name)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one reply; every field is already within its range (chat.py checks)."""

    temperature: float
    """0 is greedy; otherwise logits are divided by it."""
    top_p: float
    """In (0, 1]; nucleus sampling."""
    max_tokens: int
    """At least 1; the prompt and this many tokens fit into the context."""
    seed: int | None
    """The same seed, prompt, version and parameters sample the same reply, up to the engine's batching noise."""
    stop: tuple[str, ...]
    """Strings that end the reply; they are not part of its text."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One reply to be sampled: made by chat.py, read by engines."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    version: PolicyVersion


class FinishReason(Enum):
    """Why a reply ended."""

    STOP = "stop"
    """The model ended it (end-of-sequence token), or a stop string was met."""
    LENGTH = "length"
    """max_tokens were sampled."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What was sampled since the last one: made by engines, read by chat.py. A reply is one or more of these.

    token_ids and logprobs have the same length, and over a whole reply they are exactly what was sampled: an
    end-of-sequence token is among token_ids though it has no text. text may lag behind the tokens (a character may
    need several, and what may become a stop string is held back); the last one flushes it.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each token under the distribution really sampled from, after temperature and top-p; 0.0 when greedy."""
    finish_reason: FinishReason | None
    """Set on the last one, and only there."""


class EngineError(Exception):
    """The engine failed: this request ends, and the message says what happened."""


class Engine(ABC):
    """Samples replies with one base model and any number of policy versions on it."""

    @abstractmethod
    async def start(self) -> None:
        """Load the base model and warm up, so that the first real request is as fast as the next."""

    @abstractmethod
    def generate(self, generation: Generation) -> AsyncGenerator[Tokens, None]:
        """Sample a reply with `generation.version`, which must be loaded.

        An async generator: closing it (`aclose`) or cancelling its consumer frees the slot within a token. Raises
        EngineError if the version is not loaded or the engine dies.
        """

    @abstractmethod
    async def load(self, version: PolicyVersion) -> None:
        """Make `version` ready beside the others; running streams do not notice. Loading it twice changes nothing.

        Raises EngineError if it cannot be loaded; everything already loaded goes on being served.
        """

    @abstractmethod
    async def unload(self, version: PolicyVersion) -> None:
        """Free what `version` holds. The caller sees to it that no generation uses it any more; v0 stays."""

    @abstractmethod
    async def stop(self) -> None:
        """Free everything. Generations still running, and a start that is under way, end with EngineError."""

    @property
    @abstractmethod
    def healthy(self) -> bool:
        """False before start, after stop, and when the engine has died."""

    @property
    @abstractmethod
    def running(self) -> int:
        """Generations begun and neither ended nor closed; those that wait for a slot count too."""

    def metrics(self) -> Iterable[Metric]:
        """What it measures of itself, in its own words; none unless it says so. Called in any thread."""
        return ()
