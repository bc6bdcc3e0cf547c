"""Settings of `plaudit instruct`. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import CliPositionalArg

from plaudit.base_model import PACKAGED
from plaudit.releases import number
from plaudit.settings import Settings


class InstructSettings(Settings):
    """Tunes the policy on instruction–output pairs, and publishes the result if its held-out loss fell."""

    files: CliPositionalArg[list[Path]] = Field(min_length=1)
    """JSON Lines (.jsonl, .json), CSV (.csv, .tsv) or Parquet (.parquet) files; docs/instruct.md names the fields."""
    data: Path = Path(".plaudit")
    """The directory that `plaudit up` keeps everything in; the next three settings follow from it."""
    event_log: str | None = None
    """sqlite:PATH or kafka://HOST:PORT[,HOST:PORT…]; left out: the SQLite file in --data."""
    policy_store: str | None = None
    """Where versions are published: a directory or any fsspec URL (s3://…); left out: `versions` in --data."""
    state_dir: Path | None = None
    """Where runs are kept: checkpoints and reports; left out: `instruct` in --data."""
    model: str = PACKAGED
    """The base model: `smollm2` (packaged), or a directory in Hugging Face's format; the one that the servers serve."""
    model_cache: Path = Path("~/.cache/plaudit")
    """Where the packaged model is kept once converted."""
    start: str | None = None
    """The version to begin from; left out: v0, as long as that is what the servers serve."""
    annotate: Literal["chat", "tags"] = "chat"
    """chat: the model's chat template, as servers use it; tags: <指令>…</指令> <输出>…</输出>, without a template."""
    max_length: int = Field(default=1024, ge=16)
    """Examples of more tokens, prompt and output together, are left out; never cut, which would teach to break off."""
    max_examples: int | None = Field(default=None, ge=1)
    """Examples to train on at the most, drawn by hash."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Share of the instructions that is never trained on; which ones is told by their hash, for ever."""
    max_held_out: int = Field(default=200, ge=2)
    """Held-out examples that are evaluated on at the most."""
    skip_bad: bool = False
    """Leave out what cannot be read as an example, instead of ending with an error."""
    epochs: int = Field(default=2, ge=1)
    """How often each example is trained on."""
    batch_size: int = Field(default=8, ge=1)
    """Examples in an update."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """The highest one, of AdamW; it rises over the first 5 % of the updates and then falls to 0."""
    lora_rank: int = Field(default=16, ge=1, le=64)
    """Rank of a new adapter; a server takes 16 at the most unless its --max-lora-rank says more."""
    lora_layers: int = Field(default=12, ge=1)
    """Layers that carry LoRA in a new adapter, counted from the top."""
    checkpoint_steps: int = Field(default=20, ge=1)
    """Updates between checkpoints: what a kill may cost."""
    replies: int = Field(default=40, ge=0)
    """Held-out prompts that are replied to before and after, for ROUGE-L and the win rate; 0: none."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Length limit of those replies, in tokens."""
    temperature: float = Field(default=0.7, gt=0)
    """Of those replies."""
    reward_model: Path | None = None
    """A saved reward model that judges those replies; left out: the learner's newest in --data, if there is one."""
    check_only: bool = False
    """Report on the data, and stop."""
    publish: bool = True
    """Publish the result as a policy version, if its held-out loss fell."""
    seed: int = 0
    """Of all that is random."""

    @field_validator("start")
    @classmethod
    def _is_version(cls, start: str | None) -> str | None:
        if start is not None:
            number(start)
        return start

    @property
    def home(self) -> Path:
        """Where runs are kept."""
        return self.state_dir or self.data / "instruct"
