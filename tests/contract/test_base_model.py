"""The base model: where it is, and by which hash it is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from plaudit import base_model


def test_the_fingerprint_is_of_configuration_and_weights(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert base_model.fingerprint(copy) == base_model.fingerprint(tiny_model)
    (copy / "README.md").write_text("not part of it")
    assert base_model.fingerprint(copy) == base_model.fingerprint(tiny_model)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert base_model.fingerprint(copy) != base_model.fingerprint(tiny_model)


def test_what_is_no_model_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(base_model.ModelNotFound, match=r"give 'smollm2', or a directory that holds a config.json"):
        base_model.resolve(str(tmp_path), tmp_path)


def test_the_vocabulary_is_what_the_configuration_says(tiny_model: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    assert base_model.vocabulary(tiny_model) == config["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 9}}))
    assert base_model.vocabulary(tmp_path) == 9
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="vocab_size is missing"):
        base_model.vocabulary(tmp_path)
