"""What the engines' contract is checked against: transformers itself, and adapters on the tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plaudit_server.engine import Engine, Generation, PolicyVersion, Sampling, Tokens
from tests.tiny_model import IM_END, make_endless_adapter, make_tiny_adapter

V0 = PolicyVersion("v0", None)


class Reference:
    """The tiny model and its adapters, run by transformers and PEFT, one reply at a time."""

    def __init__(self, model: Path, adapters: Path) -> None:
        from transformers import AutoTokenizer

        self.model = model
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.v1 = PolicyVersion("v1", make_tiny_adapter(adapters / "v1", model, seed=1))
        self.v2 = PolicyVersion("v2", make_tiny_adapter(adapters / "v2", model, seed=2, rank=8))
        self.v3 = PolicyVersion("v3", make_tiny_adapter(adapters / "v3", model, seed=3, layers=[1]))
        self.endless = PolicyVersion("v4", make_endless_adapter(adapters / "v4", model))
        """Its replies end at max_tokens only."""
        self._models: dict[str, Any] = {}

    def prompt(self, text: str) -> tuple[int, ...]:
        """The ids of a chat with one message."""
        messages = [{"role": "user", "content": text}]
        return tuple(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])

    def text(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def greedy(self, version: PolicyVersion, text: str, max_tokens: int) -> list[int]:
        """What a greedy reply must be; fails if another token was so nearly as likely that rounding could choose it."""
        import torch

        prompt = torch.tensor([self.prompt(text)])
        with torch.inference_mode():
            whole = self._merged(version).generate(prompt, do_sample=False, max_new_tokens=max_tokens)
            best = self._merged(version)(whole).logits[0, prompt.shape[1] - 1 : -1].topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > 1e-3, f"{text!r} has a near tie: choose another prompt"
        return [int(token_id) for token_id in whole[0, prompt.shape[1] :]]

    def logprobs(
        self, version: PolicyVersion, text: str, token_ids: Sequence[int], temperature: float, top_p: float
    ) -> list[float]:
        """Of `token_ids` as the reply, under the distribution that was to be sampled from."""
        import torch
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        prompt = self.prompt(text)
        warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
        with torch.inference_mode():
            logits = self._merged(version)(torch.tensor([[*prompt, *token_ids]])).logits[0, len(prompt) - 1 : -1]
            logprobs = warpers(None, logits.double()).log_softmax(-1)
        return [float(logprobs[position, token_id]) for position, token_id in enumerate(token_ids)]

    def _merged(self, version: PolicyVersion) -> Any:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        if version.name not in self._models:
            model = AutoModelForCausalLM.from_pretrained(self.model)
            if version.adapter is not None:
                model = PeftModel.from_pretrained(model, version.adapter).merge_and_unload()
            self._models[version.name] = model.eval()
        return self._models[version.name]


class Asker:
    """Makes requests of one engine."""

    def __init__(self, engine: Engine, reference: Reference) -> None:
        self.engine = engine
        self._reference = reference

    def generation(
        self,
        text: str,
        version: PolicyVersion = V0,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_tokens: int = 40,
        seed: int | None = None,
        stop: tuple[str, ...] = (),
    ) -> Generation:
        sampling = Sampling(temperature, top_p, max_tokens, seed, stop)
        return Generation("test", self._reference.prompt(text), sampling, version)

    async def stream(self, text: str, version: PolicyVersion = V0, **sampling: Any) -> list[Tokens]:
        """Every piece of the reply."""
        return [tokens async for tokens in self.engine.generate(self.generation(text, version, **sampling))]

    async def ids(self, text: str, version: PolicyVersion = V0, **sampling: Any) -> list[int]:
        """The token ids of the reply."""
        return token_ids(await self.stream(text, version, **sampling))


def token_ids(stream: Sequence[Tokens]) -> list[int]:
    return [token_id for tokens in stream for token_id in tokens.token_ids]


def ends_with_eos(stream: Sequence[Tokens]) -> bool:
    return token_ids(stream)[-1] == IM_END
