"""The policy store in an object store: a real one, on this machine."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plaudit.artifacts import ArtifactError, PolicyStore
from plaudit.broker import free_port

_BASE = "0" * 64
_START_SECONDS = 20.0


@contextmanager
def object_store(directory: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """localbucket on a free port: its URL and its process."""
    port = free_port()
    program = Path(sysconfig.get_path("scripts")) / "localbucket"
    process = subprocess.Popen(
        [sys.executable, program, directory, "--host=127.0.0.1", f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(url):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield url, process
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=1).close()  # noqa: S310 (ours)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def test_versions_go_to_an_object_store_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store" / "bucket").mkdir(parents=True)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 1000)
    (adapter / "adapter_config.json").write_text("{}")
    about = {"parent": "v0", "base_model_sha256": _BASE, "created_by": "a test"}
    with object_store(tmp_path / "store") as (url, process):
        for name, value in (("ENDPOINT_URL", url), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        store = PolicyStore("s3://bucket/plaudit")
        assert store.versions() == []
        manifest, digest = store.publish("v1", adapter, window={}, metrics={}, **about)
        assert store.versions() == ["v1"]
        with pytest.raises(ArtifactError, match="the name was used before"):
            store.publish("v1", adapter, window={}, metrics={}, **about)

        other = PolicyStore("s3://bucket/plaudit")
        copy, fetched = other.fetch("v1", tmp_path / "copies", base_model_sha256=_BASE, manifest_sha256=digest)
        assert fetched == manifest
        assert (copy / "adapter_model.safetensors").read_bytes() == bytes(range(256)) * 1000
        with pytest.raises(ArtifactError, match=r"v9: no manifest\.json"):
            other.manifest("v9")

        process.kill()
        process.wait()
        for call in (store.versions, lambda: store.manifest("v1")):
            with pytest.raises(ArtifactError, match="Could not connect"):
                call()
        with pytest.raises(ArtifactError, match="Could not connect"):
            store.fetch("v1", tmp_path / "more", base_model_sha256=_BASE)
