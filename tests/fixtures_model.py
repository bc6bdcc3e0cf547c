"""The hand-made tiny model, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from plaudit import base_model
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in Hugging Face's format: 2 layers, 259 tokens, replies of readable characters."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def tiny_model_sha256(tiny_model: Path) -> str:
    return base_model.fingerprint(tiny_model)
