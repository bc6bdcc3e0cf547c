"""The policy artefact: whole, as announced, for this base model, or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from plaudit.artifacts import MANIFEST, ArtifactError, Manifest, PolicyStore

BASE = "0" * 64


@pytest.fixture(params=["directory", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> PolicyStore:
    """A directory, and an fsspec filesystem that is not the local one (as S3 is not)."""
    return PolicyStore(str(tmp_path / "store") if request.param == "directory" else f"memory://{tmp_path.name}")


@pytest.fixture
def local(tmp_path: Path) -> PolicyStore:
    return PolicyStore(str(tmp_path / "store"))


def publish(
    store: PolicyStore, tmp_path: Path, version: str = "v1", metrics: dict[str, float] | None = None
) -> tuple[Manifest, str]:
    adapter = tmp_path / f"adapter-{version}"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"weights of " + version.encode())
    (adapter / "adapter_config.json").write_text("{}")
    return store.publish(
        version,
        adapter,
        parent="v0",
        base_model_sha256=BASE,
        window={"votes": 3},
        metrics=metrics or {"kl": 0.5},
        created_by="me",
    )


def test_what_is_published_can_be_fetched(store: PolicyStore, tmp_path: Path) -> None:
    manifest, sha256 = publish(store, tmp_path)
    copy, fetched = store.fetch("v1", tmp_path / "copies", base_model_sha256=BASE, manifest_sha256=sha256)
    assert fetched == manifest == store.manifest("v1")[0]
    assert (copy / "adapter_model.safetensors").read_bytes() == b"weights of v1"
    assert store.versions() == ["v1"]
    again, _ = store.fetch("v1", tmp_path / "copies", base_model_sha256=BASE)
    assert again == copy


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_json_cannot_say_is_refused_before_anything_is_written(
    local: PolicyStore, tmp_path: Path, value: float
) -> None:
    with pytest.raises(ValueError, match=f"v1: metric win_rate_error is {value}"):
        publish(local, tmp_path, metrics={"kl": 0.5, "win_rate_error": value})
    assert local.versions() == []


def test_versions_are_in_order_of_their_numbers(store: PolicyStore, tmp_path: Path) -> None:
    assert store.versions() == []
    for version in ("v10", "v9", "v1"):
        publish(store, tmp_path, version)
    assert store.versions() == ["v1", "v9", "v10"]


def test_a_name_is_used_once(store: PolicyStore, tmp_path: Path) -> None:
    publish(store, tmp_path)
    with pytest.raises(ArtifactError, match="v1: the name was used before"):
        publish(store, tmp_path)


def test_of_two_at_the_same_moment_one_has_the_name(
    local: PolicyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked before either wrote."""
    published = publish(local, tmp_path)
    monkeypatch.setattr(local, "versions", list)
    with pytest.raises(ArtifactError, match="v1: the name was used before"):
        publish(local, tmp_path)
    assert local.manifest("v1") == published


def test_a_publication_that_was_cut_off_does_not_exist_and_keeps_its_name(local: PolicyStore, tmp_path: Path) -> None:
    publish(local, tmp_path)
    (tmp_path / "store" / "v1" / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"v1: no manifest.json"):
        local.fetch("v1", tmp_path / "copies", base_model_sha256=BASE)
    with pytest.raises(ArtifactError, match="used before"):
        publish(local, tmp_path)


def test_wrong_hash_missing_and_truncated_files_are_refused(local: PolicyStore, tmp_path: Path) -> None:
    publish(local, tmp_path)
    weights = tmp_path / "store" / "v1" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for spoilt in (whole[:-1], b"X" + whole[1:], whole + b"X"):
        weights.write_bytes(spoilt)
        with pytest.raises(ArtifactError, match=r"v1: adapter_model.safetensors has"):
            local.fetch("v1", tmp_path / "copies", base_model_sha256=BASE)
    weights.unlink()
    with pytest.raises(ArtifactError, match="v1: cannot be fetched"):
        local.fetch("v1", tmp_path / "copies", base_model_sha256=BASE)
    assert not (tmp_path / "copies" / "v1").exists()
    assert list((tmp_path / "copies").iterdir()) == []


def test_another_base_model_and_another_manifest_are_refused(local: PolicyStore, tmp_path: Path) -> None:
    publish(local, tmp_path)
    with pytest.raises(ArtifactError, match="made for another base model"):
        local.fetch("v1", tmp_path / "copies", base_model_sha256="1" * 64)
    with pytest.raises(ArtifactError, match="not the one that was announced"):
        local.fetch("v1", tmp_path / "copies", base_model_sha256=BASE, manifest_sha256="1" * 64)


def test_a_manifest_cannot_name_other_files(local: PolicyStore, tmp_path: Path) -> None:
    publish(local, tmp_path)
    path = tmp_path / "store" / "v1" / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"]["../../evil"] = manifest["files"]["adapter_config.json"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="files are"):
        local.fetch("v1", tmp_path / "copies", base_model_sha256=BASE)
    path.write_text("{")
    with pytest.raises(ArtifactError, match="not valid"):
        local.manifest("v1")


def test_a_spoilt_copy_is_fetched_again(local: PolicyStore, tmp_path: Path) -> None:
    publish(local, tmp_path)
    copy, _ = local.fetch("v1", tmp_path / "copies", base_model_sha256=BASE)
    (copy / "adapter_model.safetensors").write_bytes(b"spoilt")
    copy, _ = local.fetch("v1", tmp_path / "copies", base_model_sha256=BASE)
    assert (copy / "adapter_model.safetensors").read_bytes() == b"weights of v1"


def test_copies_are_removed_and_a_store_never_is(local: PolicyStore, tmp_path: Path) -> None:
    publish(local, tmp_path, "v1")
    publish(local, tmp_path, "v2")
    copies = tmp_path / "copies"
    local.forget_others(copies, {"v1"})  # nothing was fetched yet
    for version in local.versions():
        local.fetch(version, copies, base_model_sha256=BASE)
    (copies / ".v3-left-by-a-kill").mkdir()
    local.forget_others(copies, {"v1"})
    assert [copy.name for copy in copies.iterdir()] == ["v1"]
    (tmp_path / "link").symlink_to(tmp_path / "store")
    local.forget_others(tmp_path / "link", {"v1"})
    assert local.versions() == ["v1", "v2"]
