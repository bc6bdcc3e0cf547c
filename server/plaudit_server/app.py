"""plaudit-server: puts the rooms together, runs them, and takes them down in order.

start:  event log → engine (warm; the model is hashed meanwhile) → follower (stable version) → gRPC, health SERVING
stop:   health NOT_SERVING → no new requests → running streams end → outbox flushed → engine
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit import base_model, logs, metrics_port, tracing
from plaudit.lifecycle import Occupied, log_to_stderr, on_stop, only_one
from plaudit.settings import parse
from plaudit_server.config import ServerSettings

if TYPE_CHECKING:
    from plaudit_server.engine import Engine
    from plaudit_server.rpc import Addresses

log = logging.getLogger(__name__)

PROGRAM = "plaudit-server"


def main() -> int:
    """The command; returns its exit status."""
    settings = parse(ServerSettings, PROGRAM)
    # gRPC writes a line for each malformed frame, and anybody could fill the log. What matters is raised.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    log_to_stderr(PROGRAM, settings.log_format, settings.log_level)
    logging.getLogger(logs.ACCESS).disabled = not settings.access_log
    from plaudit.artifacts import ArtifactError
    from plaudit.events import EventLogUnavailable
    from plaudit_server.engine import EngineError

    try:
        import uvloop

        with logs.calls_apart():
            uvloop.run(_until_asked(settings))
    except (
        ArtifactError,
        EngineError,
        EventLogUnavailable,
        Occupied,
        base_model.ModelNotFound,
        OSError,
        ValueError,
    ) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0


async def _until_asked(settings: ServerSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    on_stop(partial(loop.call_soon_threadsafe, stop.set), exit_with_parent=settings.exit_with_parent)
    await run(settings, stop)


async def run(settings: ServerSettings, stop: asyncio.Event, started: asyncio.Future[Addresses] | None = None) -> None:
    """Serve until `stop` is set. `started` gets the addresses once requests are served.

    Raises what main() lists when it cannot start, and what any of its tasks fails with.
    """
    from prometheus_client import CollectorRegistry

    from plaudit import secret_file
    from plaudit.artifacts import PolicyStore
    from plaudit.events import open_log
    from plaudit.pseudonym import pseudonym
    from plaudit_server import tls
    from plaudit_server.authentication import Authentication
    from plaudit_server.chat import ChatService
    from plaudit_server.engine import PolicyVersion
    from plaudit_server.engine_keeper import KeptEngine
    from plaudit_server.feedback import FeedbackService
    from plaudit_server.follower import Follower
    from plaudit_server.interceptors import Guard
    from plaudit_server.loop import LoopService
    from plaudit_server.metrics import ServerMetrics
    from plaudit_server.outbox import Outbox
    from plaudit_server.picture import Picture
    from plaudit_server.policies import PolicyService
    from plaudit_server.privacy import PrivacyService
    from plaudit_server.prompts import ChatTemplate
    from plaudit_server.receipts import Receipts
    from plaudit_server.router import Router
    from plaudit_server.rpc import Addresses, Rpc

    metrics = ServerMetrics(CollectorRegistry())
    receipts = Receipts.from_path(settings.receipt_keys, settings.receipt_lifetime, metrics)
    hashed = partial(pseudonym, secret_file.read_key(settings.user_key_file))
    authentication = Authentication.from_settings(settings, metrics)
    credentials = [tls.credentials(settings, metrics) for _ in Addresses._fields]
    model = base_model.resolve(settings.model, settings.model_cache.expanduser())
    template = ChatTemplate(model)

    async with AsyncExitStack() as down:
        down.enter_context(only_one(settings.state_dir))
        down.enter_context(metrics_port.serving(metrics.registry, settings.metrics_host, settings.metrics_port))
        event_log = await asyncio.to_thread(open_log, settings.event_log)
        down.callback(event_log.close)
        watched = await asyncio.to_thread(open_log, settings.event_log)
        down.callback(watched.close)
        kept = make_engine(settings, model)
        engine = KeptEngine(kept, attempts=settings.engine_restarts, metrics=metrics)
        down.push_async_callback(engine.stop)
        metrics.built(type(kept).__name__.removesuffix("Engine").lower(), model.name, engine.metrics)
        log.info("starting %s on %s", type(kept).__name__, model.name)
        stopping = asyncio.create_task(stop.wait(), name="stop")
        down.callback(stopping.cancel)
        starting = asyncio.create_task(engine.start(), name="start")
        down.callback(starting.cancel)
        hashing = asyncio.create_task(asyncio.to_thread(base_model.fingerprint, model), name="fingerprint")
        down.callback(hashing.cancel)
        await _first(starting, stopping)
        if not starting.done():
            log.info("asked to stop before anything was served")
            return
        fingerprint = await hashing
        if settings.traces:  # not before: the engine may be a fork of this process
            down.enter_context(tracing.on(PROGRAM))
        router = Router(PolicyVersion(name="v0", adapter=None))
        outbox = Outbox(event_log, settings.state_dir / "outbox.sqlite", limit=settings.outbox_limit, metrics=metrics)
        follower = Follower(
            event_log,
            PolicyStore(settings.policy_store),
            engine,
            router,
            metrics,
            copies=settings.state_dir / "versions",
            base_model_sha256=fingerprint,
            max_versions=settings.max_versions,
        )
        following = asyncio.create_task(follower.run(), name="follower")
        writing = asyncio.create_task(outbox.run(), name="outbox")
        picture = Picture(watched)
        drawing = asyncio.create_task(picture.run(), name="picture")
        rpc = Rpc(
            settings,
            ChatService(
                settings=settings,
                engine=engine,
                template=template,
                router=router,
                receipts=receipts,
                pseudonym=hashed,
                outbox=outbox,
                metrics=metrics,
            ),
            FeedbackService(receipts, hashed, outbox, settings, metrics),
            PolicyService(event_log, follower, router, settings.max_watchers),
            LoopService(picture, settings.max_watchers),
            PrivacyService(hashed, outbox),
            guards=[Guard(authentication, metrics, settings.max_calls) for _ in Addresses._fields],
            credentials=credentials,
        )
        keeping = asyncio.create_task(engine.run(rpc.serve_chats), name="engine")
        try:
            await _first(asyncio.create_task(follower.caught_up.wait()), stopping, following, writing, keeping)
            if not stop.is_set():
                addresses = await rpc.start()
                log.info("serving %s at %s, operators at %s", router.serving.name, *addresses)
                if started is not None:
                    started.set_result(addresses)
                await _first(stopping, following, writing, keeping)
            log.info("draining: %d streams running", rpc.running)
        finally:
            await rpc.stop(settings.drain_seconds)
            for task in (following, keeping, drawing):
                task.cancel()
            await asyncio.gather(following, keeping, drawing, return_exceptions=True)
            outbox.close()
            await writing
        log.info("stopped")


def make_engine(settings: ServerSettings, model: Path) -> Engine:
    """The engine that the settings ask for."""
    if settings.engine == "vllm" or (settings.engine == "auto" and importlib.util.find_spec("vllm") is not None):
        from plaudit_server.vllm_engine import VllmEngine

        return VllmEngine(
            model,
            max_context=settings.max_context,
            max_running=settings.max_running,
            max_versions=settings.max_versions,
            max_lora_rank=settings.max_lora_rank,
            kv_cache_bytes=settings.kv_cache_bytes,
            dtype=settings.dtype,
        )
    from plaudit_server.torch_engine import TorchEngine

    # In float32 unless told otherwise: the CPUs that have no vLLM seldom have bfloat16.
    dtype = "float32" if settings.dtype == "auto" else settings.dtype
    return TorchEngine(model, max_context=settings.max_context, max_running=settings.max_running, dtype=dtype)


async def _first(*tasks: asyncio.Task[Any]) -> None:
    """Wait for the first of them to end; raises what it failed with."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


if __name__ == "__main__":
    sys.exit(main())
