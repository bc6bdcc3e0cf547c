"""The contract of engine.py, held by both engines on the tiny model (fp32): one suite.

Log-probabilities are compared with those of one forward pass of transformers over the whole reply. Both engines compute
in fp32 too, but add up in another order: the torch engine because of its KV cache and batches, vLLM also because of its
own kernels and, in steps of several versions, adapters that are not merged.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from plaudit_server.engine import Engine, EngineError, FinishReason, PolicyVersion
from plaudit_server.torch_engine import TorchEngine
from plaudit_server.vllm_engine import VllmEngine
from tests.server.engine_fixtures import V0, Asker, Reference, ends_with_eos, token_ids

MAX_RUNNING = 4
CONTEXT = 1024
TORCH_TOLERANCE, VLLM_TOLERANCE = 1e-4, 1e-3  # absolute, of a log-probability
VLLM = [
    pytest.mark.vllm,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),  # vLLM's, when it is stopped
]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def reference(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tiny_model, tmp_path_factory.mktemp("adapters"))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["torch", pytest.param("vllm", marks=VLLM)])
async def engine(request: pytest.FixtureRequest, tiny_model: Path) -> AsyncIterator[Engine]:
    if request.param == "torch":
        engine: Engine = TorchEngine(tiny_model, max_context=CONTEXT, max_running=MAX_RUNNING)
    elif importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    else:
        engine = VllmEngine(
            tiny_model,
            max_context=CONTEXT,
            max_running=MAX_RUNNING,
            max_versions=4,
            max_lora_rank=8,
            kv_cache_bytes=1 << 27,
            dtype="float32",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing vLLM warns of many things, none of them ours
        await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ask(engine: Engine, reference: Reference) -> Asker:
    for version in (reference.v1, reference.v2, reference.endless):
        await engine.load(version)
    return Asker(engine, reference)


@pytest.fixture
def spare(reference: Reference) -> PolicyVersion:
    """A version that is not loaded when a test begins; the test unloads it."""
    return reference.v3


async def test_streams_token_by_token(ask: Asker, reference: Reference) -> None:
    stream = await ask.stream("Hello", reference.endless, max_tokens=40)
    assert len(stream) >= 10
    assert sum(tokens.text != "" for tokens in stream) >= 10
    assert all(len(tokens.token_ids) == len(tokens.logprobs) >= 1 for tokens in stream)
    assert [tokens.finish_reason for tokens in stream] == [None] * (len(stream) - 1) + [FinishReason.LENGTH]


@pytest.mark.parametrize("version", ["v0", "v1", "v2"])
async def test_greedy_replies_are_those_of_transformers(ask: Asker, reference: Reference, version: str) -> None:
    policy = {"v0": V0, "v1": reference.v1, "v2": reference.v2}[version]
    for text in ("Hello", "How are you?", "Tell me a joke, please"):
        stream = await ask.stream(text, policy, max_tokens=32)
        assert token_ids(stream) == reference.greedy(policy, text, 32)
        assert {logprob for tokens in stream for logprob in tokens.logprobs} == {0.0}


async def test_text_is_the_decoded_tokens(ask: Asker, reference: Reference) -> None:
    for seed in range(4):
        stream = await ask.stream("How are you?", temperature=1.5, seed=seed, max_tokens=24)
        assert "".join(tokens.text for tokens in stream) == reference.text(token_ids(stream))


async def test_the_seed_makes_the_reply(ask: Asker) -> None:
    first = await ask.ids("Hello", temperature=1.0, seed=5)
    assert await ask.ids("Hello", temperature=1.0, seed=5) == first
    others = [await ask.ids("Hello", temperature=1.0, seed=seed) for seed in (6, 7, 8)]
    assert any(other != first for other in others)
    unseeded = [tuple(await ask.ids("How are you?", temperature=1.0)) for _ in range(4)]
    assert len(set(unseeded)) > 1


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (1.4, 0.5)])
async def test_logprobs_are_of_the_distribution_sampled_from(
    ask: Asker, reference: Reference, temperature: float, top_p: float
) -> None:
    tolerance = TORCH_TOLERANCE if isinstance(ask.engine, TorchEngine) else VLLM_TOLERANCE
    for version in (V0, reference.v1):
        stream = await ask.stream("How are you?", version, temperature=temperature, top_p=top_p, seed=3)
        logprobs = [logprob for tokens in stream for logprob in tokens.logprobs]
        expected = reference.logprobs(version, "How are you?", token_ids(stream), temperature, top_p)
        assert logprobs == pytest.approx(expected, abs=tolerance)
        assert min(logprobs) < -0.5  # or nothing was compared


async def test_ends_at_the_end_of_sequence_token(ask: Asker, reference: Reference) -> None:
    stream = await ask.stream("Hello", max_tokens=64)
    assert stream[-1].finish_reason is FinishReason.STOP
    assert ends_with_eos(stream)
    assert "".join(tokens.text for tokens in stream) == reference.text(token_ids(stream)[:-1])


async def test_ends_at_max_tokens(ask: Asker) -> None:
    for max_tokens in (1, 7):
        stream = await ask.stream("Hello", max_tokens=max_tokens)
        assert stream[-1].finish_reason is FinishReason.LENGTH
        assert len(token_ids(stream)) == max_tokens


async def test_ends_at_a_stop_string(ask: Asker, reference: Reference) -> None:
    whole = reference.text(await ask.ids("Hello", reference.endless))
    stop = whole[9:12]
    end = whole.index(stop)
    stream = await ask.stream("Hello", reference.endless, stop=("not there", stop))
    assert "".join(tokens.text for tokens in stream) == whole[:end]
    assert stream[-1].finish_reason is FinishReason.STOP
    # All that was sampled, the stop string's tokens too: one token is one character here.
    assert reference.text(token_ids(stream)) == whole[: end + len(stop)]


async def test_text_held_back_for_a_stop_string_comes_at_the_end(ask: Asker, reference: Reference) -> None:
    whole = reference.text(await ask.ids("Hello"))
    stream = await ask.stream("Hello", stop=(whole[-2:] + "and more",))
    assert "".join(tokens.text for tokens in stream) == whole
    assert ends_with_eos(stream)


async def test_versions_run_side_by_side(ask: Asker, reference: Reference, spare: PolicyVersion) -> None:
    """With every place for a version taken, among them those with several replies and those with none."""
    await ask.engine.load(spare)
    v1, v2, v3 = reference.v1, reference.v2, spare
    texts = ("How are you?", "Tell me a joke, please")
    for versions in ((V0, v1, v2, V0), (v1, v3, V0, v1), (v3, v3, v3, v3)):
        pairs = [(texts[index % 2], version) for index, version in enumerate(versions)]
        replies = await asyncio.gather(*[ask.ids(text, version, max_tokens=32) for text, version in pairs])
        assert replies == [reference.greedy(version, text, 32) for text, version in pairs]
    await ask.engine.unload(spare)


async def test_its_own_metrics_are_passed_through(ask: Asker, reference: Reference) -> None:
    """vLLM's, with what was sampled counted in them; the torch engine has none."""

    def counted() -> dict[str, float]:
        return {
            sample.name: sample.value
            for metric in ask.engine.metrics()
            for sample in metric.samples
            if not sample.name.endswith("_bucket")
        }

    before = counted()
    sampled = await ask.ids("hello there", reference.v1, max_tokens=5)
    if type(ask.engine) is TorchEngine:
        assert not before
        return
    name = "vllm:generation_tokens_total"
    async with asyncio.timeout(10):  # vLLM counts a step after it has handed out its tokens
        while counted()[name] < before[name] + len(sampled):
            await asyncio.sleep(0.01)
    assert {"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"} <= counted().keys()
    labels = [sample.labels for metric in ask.engine.metrics() for sample in metric.samples]
    assert {label["model_name"] for label in labels if "model_name" in label} == {reference.model.name}
    assert not any("lora" in name for label in labels for name in label), "adapters come and go: they are no labels"


async def test_a_reply_goes_on_alone_and_in_company(ask: Asker, reference: Reference, spare: PolicyVersion) -> None:
    """vLLM on a CPU has weights of its own for a step of one version: it changes between those and others here."""
    await ask.engine.load(spare)
    versions = (V0, reference.v2, spare, reference.endless)
    for version in (reference.v1, *versions, reference.v1):  # alone long enough for weights, and for theirs to be lost
        assert await ask.ids("Hello", version, max_tokens=16) == reference.greedy(version, "Hello", 16)
    stream = ask.engine.generate(ask.generation("How are you?", reference.v1, max_tokens=200))
    pieces = []
    for version in versions:
        pieces += [await anext(stream) for _ in range(16)]
        assert await ask.ids("Hello", version, max_tokens=8) == reference.greedy(version, "Hello", 8)
    pieces += [tokens async for tokens in stream]
    assert token_ids(pieces) == reference.greedy(reference.v1, "How are you?", 200)
    await ask.engine.unload(spare)


async def test_more_requests_than_slots_all_complete(ask: Asker, reference: Reference) -> None:
    versions = [V0, reference.v1, reference.v2] * MAX_RUNNING
    replies = await asyncio.gather(*[ask.ids("How are you?", version, max_tokens=20) for version in versions])
    assert replies == [reference.greedy(version, "How are you?", 20) for version in versions]
    assert ask.engine.running == 0


async def test_many_long_prompts_with_seeds_at_once(ask: Asker) -> None:
    """More than any engine reads in one step."""
    streams = [ask.stream("word " * 180, temperature=1.0, seed=seed, max_tokens=4) for seed in range(MAX_RUNNING)]
    replies = await asyncio.gather(*streams)
    assert all(stream[-1].finish_reason is not None for stream in replies)
    assert ask.engine.healthy


async def test_loading_leaves_running_streams_alone(ask: Asker, reference: Reference, spare: PolicyVersion) -> None:
    request = ask.generation("How are you?", reference.endless, max_tokens=200)
    alone = token_ids([tokens async for tokens in ask.engine.generate(request)])
    stream = ask.engine.generate(request)
    pieces = [await anext(stream), await anext(stream)]
    await ask.engine.load(spare)
    newer = asyncio.create_task(ask.ids("How are you?", spare, max_tokens=32))
    pieces += [tokens async for tokens in stream]
    assert token_ids(pieces) == alone  # pinned: none of it is the newer version's
    assert await newer == reference.greedy(spare, "How are you?", 32)
    await ask.engine.load(spare)  # twice changes nothing
    await ask.engine.unload(spare)


async def test_an_unloaded_version_is_refused(ask: Asker, reference: Reference, spare: PolicyVersion) -> None:
    with pytest.raises(EngineError, match="v3 is not loaded"):
        await ask.ids("Hello", spare)
    await ask.engine.load(spare)
    loaded = await ask.ids("Hello", spare, max_tokens=8)
    await ask.engine.unload(spare)
    await ask.engine.unload(spare)
    with pytest.raises(EngineError, match="v3 is not loaded"):
        await ask.ids("Hello", spare)
    assert loaded == reference.greedy(spare, "Hello", 8)
    await ask.engine.unload(V0)  # stays
    assert await ask.ids("Hello", max_tokens=8) == reference.greedy(V0, "Hello", 8)


def _edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def _edit_tensors(edit: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit_file(adapter: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(adapter / "adapter_model.safetensors")
        edit(tensors)
        save_file(tensors, adapter / "adapter_model.safetensors")

    return edit_file


def _narrow_one(tensors: dict[str, Any]) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name][:, :-1].contiguous()


def _drop_one(tensors: dict[str, Any]) -> None:
    tensors.pop(next(iter(tensors)))


def _rename_one(tensors: dict[str, Any]) -> None:
    name = next(iter(tensors))
    tensors[name.replace("layers.0", "layers.7")] = tensors.pop(name)


def _spoil_one(tensors: dict[str, Any]) -> None:
    next(iter(tensors.values()))[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(shutil.rmtree, "adapter_config.json cannot be read", id="no directory"),
        pytest.param(lambda a: (a / "adapter_model.safetensors").unlink(), "cannot be read", id="no tensors file"),
        pytest.param(lambda a: (a / "adapter_config.json").write_text("{"), "cannot be read", id="broken config"),
        pytest.param(
            lambda a: (a / "adapter_model.safetensors").write_bytes(b"x" * 99), "cannot be read", id="garbage"
        ),
        pytest.param(lambda a: os.truncate(a / "adapter_model.safetensors", 5000), "cannot be read", id="truncated"),
        pytest.param(_edit_config(peft_type="IA3"), "peft_type is not LORA", id="not LoRA"),
        pytest.param(_edit_config(use_dora=True), "use_dora=True is not supported", id="DoRA"),
        pytest.param(_edit_config(r=1000), "rank r is 1000", id="rank too high"),
        pytest.param(_edit_config(r=2), "has shape", id="another rank than declared"),
        pytest.param(_edit_tensors(_narrow_one), "has shape", id="wrong shape"),
        pytest.param(_edit_tensors(_rename_one), "belongs to no linear layer", id="unknown layer"),
        pytest.param(_edit_tensors(_drop_one), "only", id="half a pair"),
        pytest.param(_edit_tensors(_spoil_one), "NaN", id="NaN"),
    ],
)
async def test_a_bad_adapter_is_refused(
    ask: Asker, reference: Reference, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    assert reference.v1.adapter is not None
    adapter = shutil.copytree(reference.v1.adapter, tmp_path / "bad")
    spoil(adapter)
    bad = PolicyVersion("v9", adapter)
    with pytest.raises(EngineError, match=message):
        await ask.engine.load(bad)
    with pytest.raises(EngineError, match="v9 is not loaded"):
        await ask.ids("Hello", bad)
    assert await ask.ids("Hello", max_tokens=4) == reference.greedy(V0, "Hello", 4)


async def test_a_closed_stream_frees_its_slot(ask: Asker, reference: Reference) -> None:
    request = ask.generation("How are you?", reference.endless, max_tokens=900)
    streams = [ask.engine.generate(request) for _ in range(MAX_RUNNING)]
    for stream in streams:
        await anext(stream)
    waiting = asyncio.create_task(ask.ids("Hello", max_tokens=2))
    for _ in range(20):  # all slots are taken, so it waits while the others go on
        await anext(streams[0])
    assert not waiting.done()
    assert ask.engine.running == MAX_RUNNING + 1
    await streams[-1].aclose()
    assert await waiting == reference.greedy(V0, "Hello", 2)
    for stream in streams[:-1]:  # it was the closed stream's slot: the others have not ended
        assert (await anext(stream)).finish_reason is None
        await stream.aclose()
    assert ask.engine.running == 0


async def test_a_cancelled_consumer_frees_its_slot(ask: Asker, reference: Reference) -> None:
    begun = asyncio.Semaphore(0)

    async def consume() -> None:
        async for _ in ask.engine.generate(ask.generation("Hello", reference.endless, max_tokens=900)):
            begun.release()

    consumers = [asyncio.create_task(consume()) for _ in range(MAX_RUNNING)]
    queued = asyncio.create_task(consume())
    for _ in range(3 * MAX_RUNNING):
        await begun.acquire()
    for consumer in (*consumers, queued):
        consumer.cancel()
    results = await asyncio.gather(*consumers, queued, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert ask.engine.running == 0
    assert await ask.ids("Hello", max_tokens=4) == reference.greedy(V0, "Hello", 4)


async def test_a_deadline_frees_a_slot_within_a_token(ask: Asker, reference: Reference) -> None:
    """Of one that runs, and of one that waits; counted in the tokens that another stream gets meanwhile."""
    count = 0

    async def consume(first: asyncio.Event, seconds: float | None = None) -> None:
        nonlocal count
        request = ask.generation("Hello", reference.endless, max_tokens=900)
        async with asyncio.timeout(seconds), aclosing(ask.engine.generate(request)) as stream:
            async for _ in stream:
                first.set()
                count += first is begun[0]

    begun = [asyncio.Event() for _ in range(MAX_RUNNING)]
    running = [asyncio.create_task(consume(event)) for event in begun[:-1]]
    for event in begun[:-1]:
        await event.wait()
    timely = asyncio.create_task(consume(begun[-1], 0.3))
    await begun[-1].wait()
    impatient = asyncio.create_task(consume(asyncio.Event(), 0.1))
    patient_begins = asyncio.Event()
    patient = asyncio.create_task(consume(patient_begins))
    await asyncio.wait({impatient})
    assert isinstance(impatient.exception(), TimeoutError)
    assert not patient_begins.is_set(), "all slots are taken"
    assert ask.engine.running == MAX_RUNNING + 1
    await asyncio.wait({timely})
    assert isinstance(timely.exception(), TimeoutError)
    before = count
    await patient_begins.wait()
    assert count - before <= 8, "a token, and what is on its way through queues and processes"
    assert not any(task.done() for task in running), "it was the one whose deadline passed"
    for task in (*running, patient):
        task.cancel()
    await asyncio.gather(*running, patient, return_exceptions=True)
    assert ask.engine.running == 0


async def test_a_request_that_could_outgrow_the_context_is_refused(ask: Asker) -> None:
    with pytest.raises(EngineError, match="at most 1024"):
        await ask.ids("Hello", max_tokens=CONTEXT)
    empty = replace(ask.generation("Hello"), prompt_token_ids=())
    with pytest.raises(EngineError, match="at least 1"):
        await anext(ask.engine.generate(empty))


async def test_stops_right_after_a_reply_and_starts_again(tiny_model: Path, reference: Reference) -> None:
    engine = TorchEngine(tiny_model, max_context=CONTEXT, max_running=MAX_RUNNING)
    for _ in range(3):
        await engine.start()
        assert await Asker(engine, reference).ids("Hello", max_tokens=4) == reference.greedy(V0, "Hello", 4)
        async with asyncio.timeout(20):
            await engine.stop()  # while the loop clears up after the reply


@pytest.mark.slow
async def test_a_dead_engine_says_so_and_can_be_started_again(
    ask: Asker, reference: Reference, request: pytest.FixtureRequest
) -> None:
    """The last two tests stop the engine that the others share."""
    if not isinstance(ask.engine, VllmEngine):
        pytest.skip("only vLLM has a process of its own that can die")
    stream = ask.engine.generate(ask.generation("Hello", reference.endless, max_tokens=900))
    await anext(stream)
    [process] = ask.engine._engine.engine_core.resources.engine_manager.processes
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="vLLM failed"):
        async for _ in stream:
            pass
    assert not ask.engine.healthy
    with pytest.raises(EngineError, match="not running"):
        await ask.ids("Hello")
    with pytest.raises(EngineError, match="not running"):
        await ask.engine.load(reference.v3)
    await ask.engine.stop()
    await ask.engine.start()
    assert await ask.ids("Hello", max_tokens=4) == reference.greedy(V0, "Hello", 4)
    await ask.engine.load(reference.endless)


async def test_stopping_ends_what_runs(ask: Asker, reference: Reference) -> None:
    assert ask.engine.healthy
    stream = ask.engine.generate(ask.generation("Hello", reference.endless, max_tokens=900))
    await anext(stream)
    await ask.engine.stop()
    with pytest.raises(EngineError):
        async for _ in stream:
            pass
    assert not ask.engine.healthy
    assert ask.engine.running == 0
    with pytest.raises(EngineError, match="not running"):
        await ask.ids("Hello")
    await ask.engine.stop()  # twice changes nothing
