"""The policy: a causal language model with one LoRA adapter that learns.

The base model is frozen, in the dtype of its checkpoint, or in float32 on a CPU without bfloat16; the adapter is
float32. The reference policy is the same model with the adapter off, or with a second, frozen adapter in its place: the
two share every base weight.

A prompt is read once however many replies follow it: `Policy.read` fills a key-value cache, `Policy.extend`
continues it. Sampling and training go through the same two calls, and gradients flow through the cache, so the
result is that of reading each prompt and reply in one piece.

The layers below the lowest adapter, the trunk, make the same of a reply whatever is learnt: what the reference has
read of them need not be read again.

Shapes: B sequences, P distinct prompts, S tokens read so far (pads included), T reply tokens (padded on the
right), V vocabulary, L layers, H hidden size. Prompts are padded on the left. Pads are known by masks made from
lengths, never by token id: the pad of many models is their end-of-sequence token.
"""

from __future__ import annotations

import array
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from plaudit.precision import cpu_wants_float32
from plaudit_learner.attention import use_grouped_attention
from plaudit_learner.trunk import LAYER, Cache, Trunk, layers_from, lowest_adapter

LEARNING = "default"  # PEFT's name of the first adapter; it stands in no file
REFERENCE = "reference"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

Tokens = Sequence[int]


class PromptReply(NamedTuple):
    """A prompt and the reply to it, as token ids; `finished` tells whether the reply ends in EOS."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    finished: bool


def prompt_key(prompt: Sequence[int]) -> str:
    """A prompt's name: the sha256 of its token ids, in hex. Never to be changed: it tells what is held out for ever."""
    return hashlib.sha256(array.array("I", prompt).tobytes()).hexdigest()


@dataclass(frozen=True)
class AdapterConfig:
    """The shape of a new adapter. An adapter that continues a parent has the parent's shape."""

    rank: int = 16
    """Rank of each LoRA pair (Hu et al. 2021, section 4.1)."""
    alpha: int = 32
    """The update is scaled by alpha / rank."""
    layers: int = 12
    """Layers that carry LoRA, counted from the top; all of them if the model has fewer."""


@dataclass
class Context:
    """What the model has read so far, one row a sequence. `Policy.extend` uses it up."""

    cache: Cache
    mask_BS: Tensor
    """1 at real tokens, 0 at pads."""
    logits_BV: Tensor
    """Logits of the token that comes next."""
    last_LBH: Tensor | None = None
    """Hidden states at the last token, the embeddings' first; those logits come from the last. Only if asked for."""
    trunk_BSH: Tensor | None = None
    """The trunk's states at each token; only if asked for."""

    def select(self, rows_B: Tensor) -> None:
        """Keep these rows, in this order; a row may be named more than once."""
        self.cache.batch_select_indices(rows_B)
        self.mask_BS = self.mask_BS[rows_B]
        self.logits_BV = self.logits_BV[rows_B]
        if self.last_LBH is not None and self.trunk_BSH is not None:
            self.last_LBH, self.trunk_BSH = self.last_LBH[:, rows_B], self.trunk_BSH[rows_B]


class Reading(NamedTuple):
    """What the reference policy makes of replies: one pass serves the reward model, the KL and the update."""

    states_LBTH: Tensor
    """Hidden states at the reply tokens, of the layers asked for; float32."""
    prompt_LBH: Tensor
    """The same at the prompt's last token."""
    predicting_BTH: Tensor
    """Last hidden states one token earlier: `Policy.head` makes of them the logits that predict each reply token."""
    mask_BT: Tensor
    """1 at reply tokens, 0 at pads."""
    trunks: list[Trunk]
    """Of each item."""


class Policy:
    """A base model with its learning adapter. Dropout is off everywhere, always."""

    def __init__(self, model: PeftModel, base_name: str, eos_ids: frozenset[int]) -> None:
        self.model = model.eval()
        self.base_name = base_name
        self.eos_ids = eos_ids
        self.as_reference = False
        """Whether the model is the reference policy just now: within `reference`."""

    @classmethod
    def load(
        cls,
        model_dir: Path,
        *,
        base_name: str | None = None,
        parent_adapter: Path | None = None,
        reference_adapter: Path | None = None,
        config: AdapterConfig | None = None,
        seed: int = 0,
    ) -> Policy:
        """Load the base model and an adapter to learn: a new one, or a copy, whose shape then wins over `config`.

        parent_adapter: what the learning adapter starts as; None: it changes nothing yet.
        reference_adapter: with it the model is the reference policy; None: that is the base model.
        base_name: what the adapter says it belongs to; by default the name of the directory, never its path.
        Raises OSError if the model or an adapter cannot be read, ValueError if an adapter does not fit the base.
        """
        # Not the fused kernel: on CPU, for a batch of short sequences, it takes several times as long.
        base = AutoModelForCausalLM.from_pretrained(
            model_dir,
            dtype="float32" if cpu_wants_float32() else "auto",
            local_files_only=True,
            attn_implementation="eager",
        )
        base.config.use_cache = True
        use_grouped_attention(base)
        lora = (
            _lora_config(base, config or AdapterConfig()) if parent_adapter is None else _saved_config(parent_adapter)
        )
        # peft draws A from the global generator: seed a copy of it, so that the caller's stream is untouched.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = get_peft_model(base, lora, adapter_name=LEARNING, autocast_adapter_dtype=True)
            if reference_adapter is not None:
                model.add_adapter(REFERENCE, _saved_config(reference_adapter), autocast_adapter_dtype=True)
        for name, adapter in ((LEARNING, parent_adapter), (REFERENCE, reference_adapter)):
            if adapter is not None:
                _fill(model, name, adapter, model_dir)
        model.set_adapter(LEARNING)  # and all others are frozen
        if base.dtype == torch.bfloat16:
            # Autocast rounds the adapter to the dtype of its inputs: PEFT need not widen these first.
            for module in model.modules():
                if isinstance(module, BaseTunerLayer):
                    module.cast_input_dtype_enabled = False
        return cls(model, base_name or Path(model_dir).name, _eos_ids(base))

    def save_adapter(self, directory: Path) -> None:
        """Write the adapter in PEFT's format: adapter_config.json and adapter_model.safetensors, float32."""
        directory.mkdir(parents=True, exist_ok=True)
        lora = self.model.peft_config[LEARNING]
        saved, lora.base_model_name_or_path, lora.inference_mode = lora.base_model_name_or_path, self.base_name, True
        try:
            lora.save_pretrained(str(directory))
        finally:
            lora.base_model_name_or_path, lora.inference_mode = saved, False
        weights = self._adapter(LEARNING)
        save_file({k: v.detach().contiguous() for k, v in weights.items()}, directory / ADAPTER_WEIGHTS)
        (directory / ADAPTER_WEIGHTS).chmod(0o644)  # safetensors makes it private; servers run as other users

    def parameters(self) -> list[nn.Parameter]:
        """The weights that learn: those of the learning adapter."""
        learning = re.compile(rf"\.lora_[AB]\.{LEARNING}\.")
        return [weight for name, weight in self.model.named_parameters() if learning.search(name)]

    @property
    def is_reference(self) -> bool:
        """Whether the policy is the reference still: with its very weights, or with a new adapter, whose B = 0."""
        ours = self._adapter(LEARNING)
        if REFERENCE not in self.model.peft_config:
            return not any(weight.any() for name, weight in ours.items() if "lora_B" in name)
        theirs = self._adapter(REFERENCE)
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    def snapshot(self) -> list[Tensor]:
        """A copy of the learning weights, for `restore`."""
        return [weight.detach().clone() for weight in self.parameters()]

    def restore(self, snapshot: Sequence[Tensor]) -> None:
        """Go back to a snapshot."""
        with torch.no_grad():
            for weight, saved in zip(self.parameters(), snapshot, strict=True):
                weight.copy_(saved)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within this block the model is the reference policy, and no gradient is kept. Blocks may be nested."""
        if self.as_reference:
            with torch.no_grad():
                yield
            return
        self.as_reference = True
        try:
            with self._reference_adapter(), torch.no_grad():
                yield
        finally:
            self.as_reference = False

    @contextmanager
    def _reference_adapter(self) -> Iterator[None]:
        if REFERENCE not in self.model.peft_config:
            with self.model.disable_adapter():
                yield
            return
        self.model.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            self.model.set_adapter(LEARNING)  # which also makes it trainable again

    @cached_property
    def trunk(self) -> int:
        """How many layers lie below the lowest adapter; 0 as well if the model cannot be run from above them."""
        lowest = lowest_adapter(self.model)
        return lowest if lowest and self._begins_at(lowest) else 0

    def read(self, prompts: Sequence[Tokens], *, states: bool = False) -> Context:
        """Read prompts, a row each. Raises ValueError if a prompt is empty."""
        if not all(prompts):
            raise ValueError("a prompt is empty: a reply needs at least one token before it")
        return self._begin(*pad(prompts, left=True), Cache(self.model.config), states=states)

    def extend(self, context: Context, inputs: Tensor, mask_BT: Tensor, **options: Any) -> Any:
        """Read T more tokens a row (BT), or go on from the trunk's states at them (BTH) as the context did.

        Gives transformers' output, with logits at each of them.
        """
        context.mask_BS = torch.cat([context.mask_BS, mask_BT], dim=1)
        output = self._forward(inputs, mask_BT, context.mask_BS, context.cache, **options)
        context.logits_BV = output.logits[:, -1].float()
        return output

    def reply_logits(
        self, items: Sequence[PromptReply], trunks: Sequence[Trunk] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits that predict each reply token (logits_BTV), the tokens (tokens_BT), and their mask.

        trunks: what `reference_states` gave for these items: only the layers above are run then.
        """
        context = self._read_shared(items, trunks=trunks)
        tokens_BT, mask_BT = pad([item.reply for item in items])
        first_B1V = context.logits_BV[:, None]
        if tokens_BT.shape[1] == 1:
            return first_B1V, tokens_BT, mask_BT
        inputs = tokens_BT if trunks is None or not self.trunk else _padded([trunk.reply_TH for trunk in trunks])
        output = self.extend(context, inputs[:, :-1], mask_BT[:, :-1])
        return torch.cat([first_B1V.to(output.logits.dtype), output.logits], dim=1), tokens_BT, mask_BT

    def reference_states(self, items: Sequence[PromptReply], layers: Sequence[int]) -> Reading:
        """Read the items with the reference policy, once, for everything that is asked of it.

        layers: whose hidden states to give; 0 is the embeddings, `self.layers` the last.
        Raises ValueError if the model's head is more than a product with a matrix (soft caps, logit scales):
        `head` would then not give the reference's logits.
        """
        trunk = self.trunk
        with self.reference():
            context = self._read_shared(items, states=True)
            last_LBH, trunk_BSH = context.last_LBH, context.trunk_BSH
            assert last_LBH is not None
            assert trunk_BSH is not None
            tokens_BT, mask_BT = pad([item.reply for item in items])
            output = self.extend(
                context, tokens_BT, mask_BT, output_hidden_states=True, logits_to_keep=_last(tokens_BT)
            )
            hidden = output.hidden_states
            if not torch.allclose(self.head(hidden[-1][:, -1]), output.logits[:, 0], rtol=0.02, atol=0.02):
                raise ValueError("the model's logits are not a plain product of its last state: it is not supported")
            predicting_BTH = torch.cat([last_LBH[-1][:, None], hidden[-1][:, :-1]], dim=1)
            trunks = [
                Trunk(prompt_SH[-len(item.prompt) :].clone(), reply_TH[: len(item.reply)].clone())
                for item, prompt_SH, reply_TH in zip(items, trunk_BSH, hidden[trunk], strict=True)
            ]
            states_LBTH = torch.stack([hidden[layer].float() for layer in layers])
            return Reading(states_LBTH, last_LBH[list(layers)].float(), predicting_BTH, mask_BT, trunks)

    def head(self, states_BTH: Tensor) -> Tensor:
        """The logits that last hidden states give."""
        with self._precision():
            logits: Tensor = self.model.get_output_embeddings()(states_BTH)
        return logits

    @property
    def layers(self) -> int:
        """How many layers the base model has."""
        return int(self.model.config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        """H, the width of the base model's hidden states."""
        return int(self.model.config.hidden_size)

    def _adapter(self, name: str) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = get_peft_model_state_dict(
            self.model, adapter_name=name, save_embedding_layers=False
        )
        return weights

    def _read_shared(
        self, items: Sequence[PromptReply], *, states: bool = False, trunks: Sequence[Trunk] | None = None
    ) -> Context:
        """Read each prompt once; a row an item."""
        if not all(item.reply for item in items):
            raise ValueError("a reply has no tokens: even an empty reply has its end-of-sequence token")
        first: dict[tuple[int, ...], int] = {}  # the first item of each prompt
        for b, item in enumerate(items):
            first.setdefault(item.prompt, b)
        if trunks is None or not self.trunk:
            context = self.read(list(first), states=states)
        else:
            inputs_PSH = _padded([trunks[b].prompt_SH for b in first.values()], left=True)
            context = self._begin(inputs_PSH, pad(list(first), left=True)[1], Cache(self.model.config, self.trunk))
        rows = {prompt: row for row, prompt in enumerate(first)}
        context.select(torch.tensor([rows[item.prompt] for item in items]))
        return context

    def _begin(self, inputs: Tensor, mask_BS: Tensor, cache: Cache, *, states: bool = False) -> Context:
        output = self._forward(
            inputs, mask_BS, mask_BS, cache, logits_to_keep=_last(mask_BS), output_hidden_states=states
        )
        context = Context(cache, mask_BS, output.logits[:, -1].float())
        if states:
            hidden = output.hidden_states
            context.last_LBH, context.trunk_BSH = torch.stack([states[:, -1] for states in hidden]), hidden[self.trunk]
        return context

    def _begins_at(self, layer: int) -> bool:
        """Whether the model, begun at this layer with what the layers below made, gives what it gives as a whole."""
        tokens_BT = torch.arange(8)[None]
        mask_BT, config = torch.ones_like(tokens_BT), self.model.config
        if len(set(getattr(config, "layer_types", None) or [])) > 1:
            return False  # a layer's kind goes by its number, and the numbers would be others
        with self.reference():
            whole = self._forward(tokens_BT, mask_BT, mask_BT, Cache(config), output_hidden_states=True)
            try:
                above = self._forward(whole.hidden_states[layer], mask_BT, mask_BT, Cache(config, layer))
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                return False  # its decoder is made in another way
            return bool(torch.allclose(above.logits, whole.logits, rtol=1e-3, atol=1e-3))

    def _forward(self, inputs: Tensor, mask: Tensor, seen_mask: Tensor, cache: Cache, **options: Any) -> Any:
        # A token's position is the number of real tokens before it; that of a pad does not matter.
        positions = (seen_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
        name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
        with self._precision(), layers_from(self.model, cache.first):
            return self.model(
                attention_mask=seen_mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                **{name: inputs},
                **options,
            )

    def _precision(self) -> AbstractContextManager[Any]:
        # The adapter is float32 on a bfloat16 base: autocast multiplies both in bfloat16.
        half = self.model.get_output_embeddings().weight.dtype == torch.bfloat16
        return torch.autocast("cpu", torch.bfloat16) if half else nullcontext()


def pad(sequences: Sequence[Tokens], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids in one tensor (B, longest) and their mask: 1 at real tokens, 0 at pads. The pad id is 0."""
    longest = max(map(len, sequences))
    tokens, mask = (torch.zeros(len(sequences), longest, dtype=torch.long) for _ in range(2))
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        tokens[row, place] = torch.tensor(sequence, dtype=torch.long)
        mask[row, place] = 1
    return tokens, mask


def _padded(states: Sequence[Tensor], *, left: bool = False) -> Tensor:
    """Hidden states (each TH) in one tensor (B, longest, H), as `pad` does with tokens."""
    side = "left" if left else "right"
    return nn.utils.rnn.pad_sequence(list(states), batch_first=True, padding_side=side)


def _lora_config(base: nn.Module, config: AdapterConfig) -> LoraConfig:
    found = [LAYER.search(name) for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    linears = [(int(match[1]), match[2]) for match in found if match]
    if not linears:
        raise ValueError("the base model has no linear modules in numbered layers: LoRA has no place")
    depth = 1 + max(layer for layer, _ in linears)
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=sorted({suffix for _, suffix in linears}),
        layers_to_transform=list(range(max(0, depth - config.layers), depth)),
    )


def _saved_config(adapter: Path) -> LoraConfig:
    lora = LoraConfig.from_pretrained(str(adapter))
    lora.inference_mode = False
    lora.lora_dropout = 0.0
    lora.base_model_name_or_path = None  # peft warns if it is not where the base was loaded from
    return lora


def _fill(model: PeftModel, name: str, adapter: Path, model_dir: Path) -> None:
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    known = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    if known != set(weights):
        example = sorted(known ^ set(weights))[0]
        raise ValueError(f"the adapter in {adapter} does not fit {model_dir}: see {example}")
    set_peft_model_state_dict(model, weights, adapter_name=name)


def _last(tokens_BT: Tensor) -> Tensor:
    """The index of the last token, for `logits_to_keep`: as a tensor, not as the number 1.

    A number makes transformers view the last states instead of copying them, and of the product with the head
    torch then makes a batch of products, with a copy of the head for each row: half the time of a short forward.
    """
    return torch.tensor([tokens_BT.shape[1] - 1])


def _eos_ids(base: Any) -> frozenset[int]:
    eos = base.generation_config.eos_token_id
    if eos is None:
        eos = base.config.eos_token_id
    if eos is None:
        raise ValueError("the base model names no end-of-sequence token")
    return frozenset([eos] if isinstance(eos, int) else eos)
