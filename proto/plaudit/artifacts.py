"""The policy artefact: an immutable directory `<store>/<version>/` with a manifest that holds every file's hash.

    adapter_model.safetensors   the LoRA weights
    adapter_config.json         PEFT's, so that any PEFT tool opens it
    manifest.json               written last: a version without one does not exist

The store is any fsspec URL (`file:///…`, `s3://…`) or a plain path. Files first, fsync, manifest last, announce only
then; a server copies, verifies every hash of its copy, and only then loads it. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from plaudit.releases import BASE, number

MANIFEST = "manifest.json"
_ALLOWED = frozenset({"adapter_model.safetensors", "adapter_config.json"})


class ArtifactError(Exception):
    """The artefact is not what it says, or is not there; the message names the version and the file."""


class FileInfo(BaseModel):
    """What one file must be."""

    model_config = ConfigDict(frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Manifest(BaseModel):
    """What a version is: made by the learner, read by servers and people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str = Field(pattern=r"^v[1-9][0-9]*$")
    parent: str = Field(pattern=r"^v(0|[1-9][0-9]*)$")
    reference: str = Field(default=BASE, pattern=r"^v(0|[1-9][0-9]*)$")
    """What its KL was measured against, and what learning on it starts from."""
    base_model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    files: dict[str, FileInfo]
    window: dict[str, int]
    """What it was trained on: counts of interactions and votes, by name."""
    metrics: dict[str, float]
    created_at: datetime
    created_by: str


class PolicyStore:
    """Publishes and fetches versions. Every method raises ArtifactError when the store cannot be reached."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._filesystem, self._root = fsspec.core.url_to_fs(url)
        self._local = "file" in self._filesystem.protocol
        self._errors = _errors()
        if self._local:
            Path(self._root).mkdir(parents=True, exist_ok=True)

    def versions(self) -> list[str]:
        """Every name in use, in order, those without a manifest (a publication that was cut off) included."""
        try:
            names = [Path(entry).name for entry in self._filesystem.ls(self._root, detail=False, refresh=True)]
        except FileNotFoundError:
            return []
        except self._errors as error:
            raise ArtifactError(f"policy store {self._root}: {error}") from error
        return sorted(filter(_is_version, names), key=number)

    def publish(
        self,
        version: str,
        adapter: Path,
        *,
        parent: str,
        base_model_sha256: str,
        window: dict[str, int],
        metrics: dict[str, float],
        created_by: str,
        reference: str = BASE,
    ) -> tuple[Manifest, str]:
        """Store `adapter` (a PEFT directory) as `version`; returns its manifest and the manifest's sha256.

        Raises ArtifactError if the version's name was ever used, ValueError if a metric is not finite; nothing is
        written then.
        """
        for name, value in metrics.items():
            if not math.isfinite(value):  # JSON has no such number: nobody could read the manifest
                raise ValueError(f"version {version}: metric {name} is {value}: leave out what is not finite")
        used = ArtifactError(f"version {version}: the name was used before; versions are immutable")
        if version in self.versions():
            raise used
        files = {name: _describe(adapter / name) for name in sorted(_ALLOWED)}
        manifest = Manifest(
            version=version,
            parent=parent,
            reference=reference,
            base_model_sha256=base_model_sha256,
            files=files,
            window=window,
            metrics=metrics,
            created_at=datetime.now(UTC),
            created_by=created_by,
        )
        content = manifest.model_dump_json(indent=2).encode()
        try:
            if self._local:
                Path(self._path(version)).mkdir()  # of two that publish at the same moment one has the name
            else:
                self._filesystem.makedirs(self._path(version), exist_ok=True)
            for name in files:
                self._put((adapter / name).read_bytes(), self._path(version, name))
            self._put(content, self._path(version, MANIFEST))
        except FileExistsError:
            raise used from None
        except self._errors as error:
            raise ArtifactError(f"version {version}: cannot be stored: {error}") from error
        return manifest, hashlib.sha256(content).hexdigest()

    def manifest(self, version: str) -> tuple[Manifest, str]:
        """The manifest of `version` and its sha256. Raises ArtifactError if there is none, or it is not valid."""
        try:
            content: bytes = self._filesystem.cat_file(self._path(version, MANIFEST))
        except FileNotFoundError as error:
            raise ArtifactError(f"version {version}: no {MANIFEST} in {self._root}") from error
        except self._errors as error:
            raise ArtifactError(f"version {version}: {MANIFEST}: {error}") from error
        try:
            manifest = Manifest.model_validate_json(content)
        except ValueError as error:
            raise ArtifactError(f"version {version}: {MANIFEST} is not valid: {error}") from error
        if manifest.version != version:
            raise ArtifactError(f"version {version}: {MANIFEST} says that it is {manifest.version}")
        return manifest, hashlib.sha256(content).hexdigest()

    def fetch(
        self, version: str, into: Path, *, base_model_sha256: str, manifest_sha256: str | None = None
    ) -> tuple[Path, Manifest]:
        """Copy `version` to `into/version` and verify the copy; a copy that is there already is verified again.

        The directory appears only when it is whole and right. Raises ArtifactError if a file is missing or is not what
        the manifest says, if the manifest is not the one that was announced, or if it names another base model.
        """
        manifest, digest = self.manifest(version)
        if manifest_sha256 and digest != manifest_sha256:
            raise ArtifactError(f"version {version}: {MANIFEST} is not the one that was announced")
        if manifest.base_model_sha256 != base_model_sha256:
            raise ArtifactError(f"version {version}: made for another base model ({manifest.base_model_sha256[:12]}…)")
        if set(manifest.files) != _ALLOWED:
            raise ArtifactError(f"version {version}: files are {sorted(manifest.files)}, not {sorted(_ALLOWED)}")
        target = into / version
        try:
            if target.exists() and not _is_spoilt(version, target, manifest):
                return target, manifest
            shutil.rmtree(target, ignore_errors=True)  # ours, and spoilt: fetch it again
            into.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=into, prefix=f".{version}-") as temporary:
                staging = Path(temporary) / version
                staging.mkdir()
                for name in manifest.files:
                    self._filesystem.get_file(self._path(version, name), str(staging / name))
                _verify(version, staging, manifest)
                staging.rename(target)
        except self._errors as error:
            raise ArtifactError(f"version {version}: cannot be fetched: {error}") from error
        return target, manifest

    def forget_others(self, copies: Path, keep: Collection[str]) -> None:
        """Remove the copies of all versions but those in `keep`, and what a kill left of a copy.

        Not while one is being fetched. What cannot be removed stays, and where `copies` is the store itself, all does.
        """
        if self._local and copies.resolve() == Path(self._root).resolve():
            return
        with suppress(OSError):  # a directory that cannot be listed
            for copy in copies.glob("*"):
                if copy.name not in keep:
                    shutil.rmtree(copy, ignore_errors=True)

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _put(self, content: bytes, path: str) -> None:
        if not self._local:
            self._filesystem.pipe_file(path, content)  # object stores show an object only when it is whole
            return
        partial = Path(f"{path}.partial")
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(path)
        directory = os.open(Path(path).parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _errors() -> tuple[type[Exception], ...]:
    """What the filesystems raise when a store is away: OSError, or what the libraries beneath them let through.

    Asked once the filesystem is there, which has imported them.
    """
    others = (
        ("botocore.exceptions", "BotoCoreError"),
        ("aiohttp", "ClientError"),
        ("azure.core.exceptions", "AzureError"),
    )
    return (OSError, *(getattr(sys.modules[module], name) for module, name in others if module in sys.modules))


def _is_version(name: str) -> bool:
    try:
        number(name)
    except ValueError:
        return False
    return True


def _describe(path: Path) -> FileInfo:
    try:
        with path.open("rb") as stream:
            digest: Any = hashlib.file_digest(stream, "sha256")
        return FileInfo(sha256=digest.hexdigest(), size=path.stat().st_size)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path.name}: is missing") from error


def _is_spoilt(version: str, directory: Path, manifest: Manifest) -> bool:
    try:
        _verify(version, directory, manifest)
    except ArtifactError:
        return True
    return False


def _verify(version: str, directory: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        found = _describe(directory / name)
        if found != expected:
            raise ArtifactError(
                f"version {version}: {name} has {found.size} bytes, sha256 {found.sha256[:12]}…; "
                f"its manifest says {expected.size} bytes, sha256 {expected.sha256[:12]}…"
            )
