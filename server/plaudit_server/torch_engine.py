"""Sampling with plain PyTorch on the CPU: for tests, and for machines without vLLM.

    generate() ──▶ waiting ──(one a step, while there is a slot)──▶ batch of its version ──▶ stream's queue ──▶ caller
                     FIFO                                            one worker thread

A step evicts the replies that ended or were closed, decodes one token for each of the others, and prefills one that
waits. Between steps nothing is shared: the event loop touches `waiting` and the queues, the worker touches the batches.
transformers' own continuous batching knows neither a seed nor a policy version for each request.
"""

# ruff: noqa: N803, N806  (names of tensors carry their shapes)

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from plaudit_server.adapters import check_adapter, linear_shapes
from plaudit_server.engine import Engine, EngineError, Generation, PolicyVersion, Sampling, Tokens
from plaudit_server.reply import ReplyMaker
from plaudit_server.torch_batch import Batch, Row

log = logging.getLogger(__name__)

_MAX_RANK = 512  # adapters are merged, so the rank costs nothing here; vLLM takes no higher one


class _Stream(Row):
    """One generation, from the waiting line to its last token."""

    def __init__(self, generation: Generation, model: Any, maker: ReplyMaker) -> None:
        super().__init__(generation.prompt_token_ids, generation.sampling)
        self.model = model  # held, so that not even unloading its version can touch a running reply
        self.reply = maker.reply(generation)
        self.queue: asyncio.Queue[Tokens | EngineError] = asyncio.Queue()


class TorchEngine(Engine):
    """Continuous batching with a KV cache; each version is a copy of the model with its adapter merged in."""

    def __init__(self, model: Path, *, max_context: int, max_running: int, dtype: str = "float32") -> None:
        """Samples at most `max_running` replies at once (the rest wait their turn), each of at most `max_context`
        tokens with its prompt. Every loaded version takes as much memory as the model does in `dtype`.
        """
        self._path = model
        self._max_context = max_context
        self._max_running = max_running
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._models: dict[str, Any] = {}
        self._waiting: deque[_Stream] = deque()
        self._running: set[_Stream] = set()
        self._batches: dict[int, Batch[_Stream]] = {}  # by id of the model; worker thread only
        self._work = asyncio.Event()
        self._stopping = False
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the model in a thread, start the loop, sample two tokens."""
        self._worker = ThreadPoolExecutor(1, "torch-step", initializer=_limit_threads)
        self._loader = ThreadPoolExecutor(1, "torch-load", initializer=_limit_threads)
        self._stopping = False
        await asyncio.get_running_loop().run_in_executor(self._loader, self._load_base)
        if self._stopping:
            raise EngineError("the engine was stopped while it started")
        self._loop = asyncio.create_task(self._run())
        warm_up = Generation("warm-up", (0,), Sampling(0.0, 1.0, 2, None, ()), PolicyVersion("v0", None))
        async for _ in self.generate(warm_up):
            pass

    async def generate(self, generation: Generation) -> AsyncGenerator[Tokens, None]:
        """Join the waiting line; then a token a step."""
        if not self.healthy:
            raise EngineError("the engine is not running")
        model = self._models.get(generation.version.name)
        if model is None:
            raise EngineError(f"{generation.version.name} is not loaded")
        stream = _Stream(generation, model, self._maker)
        self._waiting.append(stream)
        self._work.set()
        try:
            while True:
                tokens = await stream.queue.get()
                if isinstance(tokens, EngineError):
                    raise tokens
                yield tokens
                if tokens.finish_reason is not None:
                    return
        finally:
            stream.leaving = True
            self._running.discard(stream)
            if stream in self._waiting:
                self._waiting.remove(stream)

    async def load(self, version: PolicyVersion) -> None:
        """Copy the base model and merge the adapter in."""
        if not self.healthy:
            raise EngineError("the engine is not running")
        # A thread of its own: running streams go on. One thread: two calls for one version cannot both load it.
        await asyncio.get_running_loop().run_in_executor(self._loader, self._load, version)

    async def unload(self, version: PolicyVersion) -> None:
        """Drop the copy; generations that still run on it keep it until they end."""
        if version.number != 0:
            self._models.pop(version.name, None)

    async def stop(self) -> None:
        """Wait for the step that runs, then end what is left."""
        self._stopping = True
        if self._loop is None:
            return
        self._work.set()
        await asyncio.wait([self._loop])
        self._loop = None
        self._worker.shutdown()
        await asyncio.to_thread(self._loader.shutdown)
        self._models.clear()
        self._batches.clear()

    @property
    def healthy(self) -> bool:
        """Whether the loop runs."""
        return self._loop is not None and not self._loop.done() and not self._stopping

    @property
    def running(self) -> int:
        """Those in batches and those waiting."""
        return len(self._running) + len(self._waiting)

    async def _run(self) -> None:
        """admit → step → deliver, for as long as there is work."""
        reason = "the engine was stopped"
        try:
            while not self._stopping:
                arrival = self._admit()
                step = asyncio.get_running_loop().run_in_executor(self._worker, self._step, arrival)
                for stream, tokens in await step:
                    if tokens.finish_reason is not None:
                        self._running.discard(stream)
                    stream.queue.put_nowait(tokens)
                if not self._batches and not self._waiting and not self._stopping:
                    self._work.clear()
                    await self._work.wait()
        except Exception as error:
            log.exception("the torch engine died")
            reason = f"the engine died: {error}"
        finally:
            for stream in (*self._running, *self._waiting):
                stream.queue.put_nowait(EngineError(reason))
            self._running.clear()
            self._waiting.clear()

    def _admit(self) -> _Stream | None:
        if not self._waiting or len(self._running) >= self._max_running:
            return None
        stream = self._waiting.popleft()
        self._running.add(stream)
        return stream

    def _step(self, arrival: _Stream | None) -> list[tuple[_Stream, Tokens]]:
        """evict → decode → prefill one; returns what was sampled. Runs in the worker thread."""
        sampled: list[tuple[_Stream, Tokens]] = []
        with torch.inference_mode():
            for key, batch in list(self._batches.items()):
                batch.evict()
                if batch.rows:
                    logits_BV = batch.decode()
                    sampled += [
                        (row, _sample(row, logits_V)) for row, logits_V in zip(batch.rows, logits_BV, strict=True)
                    ]
                else:
                    del self._batches[key]
            if arrival is not None:
                batch = self._batches.setdefault(id(arrival.model), Batch(arrival.model))
                sampled.append((arrival, _sample(arrival, batch.prefill(arrival))))
        return sampled

    def _load_base(self) -> None:
        import transformers

        self._maker = ReplyMaker(self._path, self._max_context)
        self._linears = linear_shapes(self._path)
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            self._path, dtype=self._dtype, local_files_only=True, attn_implementation="sdpa"
        )
        self._models["v0"] = model.eval().requires_grad_(False)

    def _load(self, version: PolicyVersion) -> None:
        if version.name in self._models:
            return
        check_adapter(version, self._linears, _MAX_RANK)
        assert version.adapter is not None  # check_adapter has seen to it
        model = copy.deepcopy(self._models["v0"])
        _merge(model, version.adapter)
        self._models[version.name] = model


def _sample(stream: _Stream, logits_V: torch.Tensor) -> Tokens:
    logprob = stream.sample(logits_V)
    tokens = stream.reply.add([stream.token_id], [logprob])
    if tokens.finish_reason is not None:
        stream.leaving = True
    return tokens


def _merge(model: Any, adapter: Path) -> None:
    """W ← W + s·B·A for every linear layer that the adapter (checked, so plain LoRA) has."""
    from safetensors.torch import load_file

    config = json.loads((adapter / "adapter_config.json").read_text())
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            weight = model.get_submodule(module).weight
            weight += (scale * (b.float() @ a.float())).to(weight.dtype)


def _limit_threads() -> None:
    """One thread unless told otherwise: on shared cores, OpenMP's spinning threads slow each other down twentyfold."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
