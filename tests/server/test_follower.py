"""The follower alone: a log, a store and a router, and an engine that only says what it has."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from plaudit.artifacts import ArtifactError, PolicyStore
from plaudit.events import POLICIES, Record, open_log
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_server import follower
from plaudit_server.engine import Engine, Generation, PolicyVersion, Tokens
from plaudit_server.follower import Follower
from plaudit_server.metrics import ServerMetrics
from plaudit_server.refusal import Refusal
from plaudit_server.router import Router

MODEL = "0" * 64
WEIGHTS = "adapter_model.safetensors"
STABLE, ROLLED_BACK = PolicyState.POLICY_STATE_STABLE, PolicyState.POLICY_STATE_ROLLED_BACK


class Loads(Engine):
    """Takes whatever has its files."""

    def __init__(self) -> None:
        self.loaded: dict[str, PolicyVersion] = {}

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def generate(self, generation: Generation) -> AsyncGenerator[Tokens, None]:
        raise NotImplementedError

    async def load(self, version: PolicyVersion) -> None:
        assert version.adapter is not None
        assert (version.adapter / WEIGHTS).read_bytes() == version.name.encode()
        self.loaded[version.name] = version

    async def unload(self, version: PolicyVersion) -> None:
        del self.loaded[version.name]

    @property
    def healthy(self) -> bool:
        return True

    @property
    def running(self) -> int:
        return 0


class Scene:
    """What one server's follower sees, in a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = PolicyStore(str(root / "store"))
        self.copies = root / "server" / "versions"
        self.log = open_log(f"sqlite:{root / 'events.sqlite'}")
        self.engine = Loads()
        self.router = Router(PolicyVersion("v0", None))
        self.follower: Follower

    def publish(self, *versions: str, spoilt: bool = False) -> None:
        """Stored, and announced as stable one after the other."""
        for version in versions:
            adapter = self.root / f"made-{version}"
            adapter.mkdir()
            (adapter / WEIGHTS).write_text(version)
            (adapter / "adapter_config.json").write_text("{}")
            self.store.publish(
                version, adapter, parent="v0", base_model_sha256=MODEL, window={}, metrics={}, created_by="test"
            )
            if spoilt:
                (self.root / "store" / version / WEIGHTS).write_text("not what was published")
            self.say(version, STABLE)

    def say(self, version: str, state: PolicyState.ValueType) -> None:
        event = PolicyEvent(schema_version=1, version=version, state=state, actor="test")
        self.log.append([Record(POLICIES, version, event.SerializeToString())])

    def copied(self) -> set[str]:
        return {copy.name for copy in self.copies.iterdir()}

    @asynccontextmanager
    async def following(self, max_versions: int = 4) -> AsyncIterator[None]:
        """A follower that has caught up, as a server has that begins to take requests."""
        self.follower = Follower(
            self.log,
            self.store,
            self.engine,
            self.router,
            ServerMetrics(CollectorRegistry()),
            copies=self.copies,
            base_model_sha256=MODEL,
            max_versions=max_versions,
        )
        running = asyncio.create_task(self.follower.run())
        try:
            await asyncio.wait_for(self.follower.caught_up.wait(), 20)
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def turns(self) -> None:
        """The follower has read what is in the log, acted upon it and tidied up."""
        for _ in range(3):  # one that may be under way, one that reads it, one that begins when that has tidied up
            await asyncio.wait_for(self.follower.moved(), 20)


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(follower, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(follower, "_RETRY_SECONDS", 0.02)
    scene = Scene(tmp_path)
    yield scene
    scene.log.close()


async def test_a_version_that_was_rolled_back_cannot_be_kept_by_asking_for_it(scene: Scene) -> None:
    scene.publish("v1", "v2")
    async with scene.following(max_versions=2):
        await scene.turns()
        with scene.router.pin("v1", ""), scene.router.pin("v2", "") as running:
            scene.say("v2", ROLLED_BACK)
            await scene.turns()
            with pytest.raises(Refusal, match="'v2' is not served here"), scene.router.pin("v2", ""):
                pass
            assert running.name in scene.engine.loaded, "its streams run on"
            scene.publish("v3")
            await scene.turns()
            assert "v3" in scene.follower.failures, "no room yet"
        await scene.turns()
        assert scene.router.serving.name == "v3"
        assert set(scene.engine.loaded) == {"v1", "v3"}


async def test_what_a_roll_back_returns_to_can_be_asked_for(scene: Scene) -> None:
    scene.publish("v1", "v2", "v3")
    async with scene.following():
        await scene.turns()
        with scene.router.pin("v2", "") as version:
            assert version.name == "v2"
        with pytest.raises(Refusal, match=r"give one of v0, v3, v2$"), scene.router.pin("v1", ""):
            pass


async def test_who_starts_while_the_stable_version_is_spoilt_serves_the_newest_that_can_be_loaded(scene: Scene) -> None:
    scene.publish("v1", "v2")
    scene.publish("v3", "v4", spoilt=True)
    async with scene.following():
        assert scene.router.serving.name == "v2", "by the time that it takes its first request"
        assert set(scene.follower.failures) == {"v3", "v4"}
        (scene.root / "store" / "v4" / WEIGHTS).write_text("v4")  # the upload is repeated
        async with asyncio.timeout(20):
            while scene.router.serving.name != "v4":
                await scene.follower.moved()


async def test_a_base_model_that_was_promoted_later_is_not_passed_over_for_an_older_version(scene: Scene) -> None:
    scene.publish("v1")
    scene.say("v0", STABLE)
    scene.publish("v2", spoilt=True)
    async with scene.following():
        assert scene.router.serving.name == "v0"


async def test_who_starts_while_the_store_is_away_serves_the_base_model_and_asks_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.publish("v1", "v2", "v3")
    asked = []

    def away(_: PolicyStore, version: str = "versions") -> None:
        asked.append(version)
        raise ArtifactError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(PolicyStore, "manifest", away)
        patch.setattr(PolicyStore, "versions", away)
        async with scene.following():
            assert scene.router.serving.name == "v0"
            assert asked[:2] == ["v3", "versions"]
            assert "v1" not in asked
            patch.undo()
            async with asyncio.timeout(20):
                while scene.router.serving.name != "v3":
                    await scene.follower.moved()


async def test_copies_go_with_their_versions(scene: Scene) -> None:
    scene.publish("v1", "v2")
    for name in (".v9-left-by-a-kill", "v8", "v2"):  # the last one is there, and spoilt: it is fetched again
        (scene.copies / name).mkdir(parents=True)
        (scene.copies / name / WEIGHTS).write_text("half of it")
    async with scene.following():
        await scene.turns()
        assert scene.copied() == {"v1", "v2"}
        with scene.router.pin("v1", ""):
            scene.publish("v3", "v4")
            await scene.turns()
            assert scene.copied() == {"v1", "v3", "v4"}, "a stream of v1 still runs"
        await scene.turns()
        assert scene.copied() == {"v3", "v4"}
        scene.say("v4", ROLLED_BACK)
        await scene.turns()
        assert scene.copied() == set(scene.engine.loaded) == {"v2", "v3"}, "what was removed is fetched again"


async def test_a_copy_that_cannot_be_removed_takes_nobody_down(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    rmdir = os.rmdir

    def refuse(path: str | Path, **options: Any) -> None:
        if Path(path).name == "v8":
            raise PermissionError
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", refuse)
    (scene.copies / "v8").mkdir(parents=True)
    async with scene.following():
        scene.publish("v1")
        await scene.turns()
        scene.publish("v2")
        await scene.turns()
        assert scene.router.serving.name == "v2"
        assert "v8" in scene.copied()


async def test_a_store_that_hangs_holds_up_no_roll_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "_FETCH_SECONDS", 0.02)
    scene.publish("v1", "v2")
    hangs, fetch = threading.Event(), scene.store.fetch

    def slow(version: str, *arguments: Any, **options: Any) -> Any:
        if version == "v3":
            hangs.wait(60)
        return fetch(version, *arguments, **options)

    monkeypatch.setattr(scene.store, "fetch", slow)
    async with scene.following():
        await scene.turns()
        try:
            scene.publish("v3")
            await scene.turns()
            assert scene.router.serving.name == "v2"
            assert "has not sent it yet" in scene.follower.failures["v3"]
            scene.say("v3", ROLLED_BACK)
            scene.say("v2", ROLLED_BACK)
            await scene.turns()
            assert scene.router.serving.name == "v1"
            scene.say("v3", STABLE)
        finally:
            hangs.set()
        async with asyncio.timeout(20):
            while scene.router.serving.name != "v3":
                await scene.turns()
        assert "v3" not in scene.follower.failures
