"""Sampling with vLLM: each policy version is a LoRA adapter on the base model, pinned to a request by its number.

vLLM runs in child processes. What is known to kill or hang it is kept away from it here: a generation that names an
adapter it does not have, an adapter that does not fit, a call that waits for an engine that has died.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import multiprocessing
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import Metric

from plaudit.precision import cpu_wants_float32
from plaudit_server.adapters import check_adapter, linear_shapes
from plaudit_server.engine import Engine, EngineError, Generation, PolicyVersion, Sampling, Tokens
from plaudit_server.reply import ReplyMaker

T = TypeVar("T")

_CALL_SECONDS = 30.0  # measured: 0.04 to 0.3 s, and some calls to an engine that has died never return
_EXIT_SECONDS = 20.0  # measured: 5 s on a busy machine; then it is killed
_LOOK_SECONDS = 0.1
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM allows as max_lora_rank


class VllmEngine(Engine):
    """vLLM's AsyncLLM, on a GPU or on the CPU."""

    def __init__(
        self,
        model: Path,
        *,
        max_context: int,
        max_running: int,
        max_versions: int,
        max_lora_rank: int,
        kv_cache_bytes: int,
        dtype: str = "auto",
    ) -> None:
        """Samples at most `max_running` replies at once (the rest wait their turn), each of at most `max_context`
        tokens with its prompt, from the base model and at most `max_versions` adapters of at most `max_lora_rank`.
        `kv_cache_bytes` is reserved at the start; `dtype` is of weights and activations, "auto" as the model's config
        (on a CPU without bfloat16: float32).
        """
        self._path = model
        self._max_context = max_context
        self._max_running = max_running
        self._max_versions = max_versions
        self._max_lora_rank = max_lora_rank
        self._kv_cache_bytes = kv_cache_bytes
        self._dtype = dtype
        self._engine: Any = None
        self._adapters: dict[str, Any] = {}  # LoRARequest by version; None for v0
        self._launching: asyncio.Task[None] | None = None
        self._loading = asyncio.Lock()
        self._numbers = itertools.count()
        self._open: set[str] = set()

    async def start(self) -> None:
        """Start the child processes (20 to 60 s on a CPU) and sample two tokens; raises EngineError if that fails."""
        self._maker = ReplyMaker(self._path, self._max_context)
        self._linears = linear_shapes(self._path)
        self._stopping = False
        self._not_ours = set(multiprocessing.active_children())
        self._launching = asyncio.create_task(asyncio.to_thread(self._launch))
        try:
            await self._launching
        except Exception as error:
            raise EngineError(f"vLLM did not start: {error}") from error
        finally:
            self._launching = None
        self._adapters["v0"] = None
        warm_up = Generation("warm-up", (0,), Sampling(0.0, 1.0, 2, None, ()), PolicyVersion("v0", None))
        async for _ in self.generate(warm_up):
            pass

    def arguments(self) -> dict[str, Any]:
        """What vLLM is started with, by the names of its AsyncEngineArgs."""
        from vllm.platforms import current_platform

        arguments = {
            "model": str(self._path),
            "dtype": self._dtype,
            "max_model_len": self._max_context,
            "max_num_seqs": self._max_running,
            "kv_cache_memory_bytes": self._kv_cache_bytes,  # vLLM's default is nearly all the memory there is
            "enable_lora": True,
            "max_loras": self._max_versions,  # in one batch: as many as are loaded, so that none waits for another's
            "max_lora_rank": min(rank for rank in _RANKS if rank >= self._max_lora_rank),
            # What check_adapter lets pass. By itself vLLM prepares the vocabulary too, which costs time in every step.
            "lora_target_modules": sorted({name.rpartition(".")[2] for name in linear_shapes(self._path)}),
            "logprobs_mode": "processed_logprobs",
            "served_model_name": self._path.name,  # in its metrics
            "skip_tokenizer_init": True,  # tokens go in and come out; text is reply.py's
            "disable_log_stats": True,  # but for metrics: see _launch
            "seed": 0,
        }
        if current_platform.is_cpu():
            arguments |= {
                "enforce_eager": True,  # compiling takes a minute, and LoRA turns it off anyway
                # Prompts are read whole: on a CPU, vLLM dies of one that has a seed and is read in parts.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": self._max_context + self._max_running,
            }
            if self._dtype == "auto" and cpu_wants_float32():
                arguments["dtype"] = "float32"
        return arguments

    def _launch(self) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        from plaudit_server.vllm_metrics import DeferredStatLogger

        args = AsyncEngineArgs(**self.arguments())
        threads: Callable[[Any], AbstractContextManager[None]] = nullcontext
        if current_platform.is_cpu():
            from plaudit_server import cpu_executor

            args.distributed_executor_backend = cpu_executor.CpuExecutor
            threads = cpu_executor.omp_threads
        config = args.create_engine_config()
        if self._stopping:
            raise EngineError("stopped while it started")
        with threads(config):
            # Not returned: frames of this thread outlive the call in tracebacks that vLLM keeps, and would keep it.
            # Naming the logger turns on its metrics, and not the lines that vLLM would log beside them.
            loggers = [DeferredStatLogger]
            self._engine = AsyncLLM.from_vllm_config(config, stat_loggers=loggers, disable_log_stats=True)

    async def generate(self, generation: Generation) -> AsyncGenerator[Tokens, None]:
        """Sample with the adapter of the version, if it has one; closing aborts the request in vLLM."""
        if not self.healthy:
            raise EngineError("the engine is not running")
        if generation.version.name not in self._adapters:
            raise EngineError(f"{generation.version.name} is not loaded")
        from vllm.inputs import tokens_input

        reply = self._maker.reply(generation)
        request_id = f"{generation.request_id}-{next(self._numbers)}"
        stream = self._engine.generate(
            tokens_input(list(generation.prompt_token_ids)),
            sampling_params(generation.sampling, self._maker.eos_token_ids),
            request_id,
            lora_request=self._adapters[generation.version.name],
        )
        self._open.add(request_id)
        try:
            async for output in stream:
                completion = output.outputs[0]
                if completion.token_ids:
                    tokens = reply.add(completion.token_ids, _logprobs(completion, generation.sampling))
                    yield tokens
                    if tokens.finish_reason is not None:
                        return
                if output.finished:
                    raise EngineError(f"vLLM ended the reply early ({completion.finish_reason})")
        except EngineError:
            raise
        except Exception as error:  # vLLM's have no common base
            raise EngineError(f"vLLM failed: {error or type(error).__name__}") from error
        finally:
            self._open.discard(request_id)
            await _limited("closing a stream", stream.aclose())  # or the request goes on to its end

    async def load(self, version: PolicyVersion) -> None:
        """Check the adapter, then give it to vLLM; raises EngineError beyond `max_versions` too."""
        async with self._loading:
            if not self.healthy:
                raise EngineError("the engine is not running")
            if version.name in self._adapters:
                return
            if len(self._adapters) - 1 >= self._max_versions:
                loaded = ", ".join(name for name in self._adapters if name != "v0")
                raise EngineError(f"{version.name} cannot be loaded: unload one of {loaded} first")
            await asyncio.to_thread(check_adapter, version, self._linears, self._max_lora_rank)
            from vllm.lora.request import LoRARequest

            adapter = LoRARequest(version.name, version.number, str(version.adapter))
            if not await _limited(f"loading {version.name}", self._engine.add_lora(adapter)):
                raise EngineError(f"{version.name} cannot be loaded: vLLM refused the adapter")
            self._adapters[version.name] = adapter

    async def unload(self, version: PolicyVersion) -> None:
        """Take the adapter from vLLM, after which its directory may go."""
        async with self._loading:
            if version.number == 0 or self._adapters.pop(version.name, None) is None:
                return
            if self.healthy:
                await _limited(f"unloading {version.name}", self._engine.remove_lora(version.number))

    async def stop(self) -> None:
        """Abort what runs and end the child processes (seconds)."""
        self._stopping = True
        if self._launching is not None:
            await self._abandon(self._launching)
        engine, self._engine = self._engine, None
        if engine is None:
            return
        self._adapters.clear()
        try:
            if not engine.errored:
                await _limited("aborting", engine.abort(list(self._open)))  # or their consumers would wait for ever
        finally:
            if engine.output_handler is not None:
                engine.output_handler.cancel()  # or it reports the end of the child process as a crash
            await asyncio.to_thread(engine.shutdown, _EXIT_SECONDS)
            del engine
            gc.collect()  # it is part of a cycle, and complains if it is only collected when the interpreter exits

    async def _abandon(self, launching: asyncio.Task[None]) -> None:
        """End a launch: vLLM gives up when its child process dies. It would only note a gentler signal meanwhile."""
        while not launching.done():
            for child in set(multiprocessing.active_children()) - self._not_ours:
                child.kill()
            await asyncio.wait({launching}, timeout=_LOOK_SECONDS)

    @property
    def healthy(self) -> bool:
        """Whether vLLM is up and has not reported an error."""
        return self._engine is not None and self._engine.is_running and not self._engine.errored

    @property
    def running(self) -> int:
        """Requests that vLLM has and that have not ended."""
        return len(self._open)

    def metrics(self) -> Iterable[Metric]:
        """vLLM's own."""
        if self._engine is None:
            return ()
        from plaudit_server import vllm_metrics

        return vllm_metrics.collected(self._engine)


def sampling_params(sampling: Sampling, eos_token_ids: frozenset[int]) -> Any:
    """vLLM's SamplingParams for one reply."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        logprobs=0,  # of the sampled token only
        output_kind=RequestOutputKind.DELTA,
        # Text and stop strings are reply.py's, as with every engine; so are the tokens that end a reply.
        detokenize=False,
        ignore_eos=True,
        stop_token_ids=sorted(eos_token_ids),
    )


def _logprobs(completion: Any, sampling: Sampling) -> list[float]:
    if sampling.temperature == 0:  # vLLM reports those of the softmax, which is not what was sampled from
        return [0.0] * len(completion.token_ids)
    pairs = zip(completion.logprobs, completion.token_ids, strict=True)
    return [logprobs[token_id].logprob for logprobs, token_id in pairs]


async def _limited(what: str, call: Awaitable[T]) -> T:
    """Await `call`, for a bounded time; raises EngineError if it fails or takes longer."""
    try:
        return await asyncio.wait_for(call, _CALL_SECONDS)
    except TimeoutError as error:
        raise EngineError(f"{what}: vLLM did not answer within {_CALL_SECONDS:.0f} s") from error
    except Exception as error:
        raise EngineError(f"{what}: vLLM failed: {error or type(error).__name__}") from error
