"""Is this directory an adapter that fits the base model? Asked before an engine sees it: a bad one can kill vLLM."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from plaudit_server.engine import EngineError, PolicyVersion

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "lora_bias": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None,),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "target_parameters": (None, []),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),  # the others change the base weights too
}
"""Options of PEFT's LoraConfig that the engines ignore or treat differently, and their values that mean "not used"."""


def linear_shapes(model: Path) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each linear layer in the model's blocks, by module name; reads safetensors headers only."""
    from safetensors import safe_open

    shapes = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                shape = tensors.get_slice(name).get_shape()
                if name.endswith(".weight") and len(shape) == 2 and ".layers." in name:
                    shapes[name.removesuffix(".weight")] = (shape[0], shape[1])
    return shapes


def check_adapter(version: PolicyVersion, linears: dict[str, tuple[int, int]], max_rank: int) -> None:
    """Raise EngineError, saying what is wrong, unless `version.adapter` is a plain LoRA adapter on `linears`."""
    try:
        if version.adapter is None:
            raise _Unfit("it has no adapter directory")
        rank = _check_config(version.adapter / "adapter_config.json", max_rank)
        _check_tensors(version.adapter / "adapter_model.safetensors", linears, rank)
    except _Unfit as error:
        raise EngineError(f"{version.name} cannot be loaded: {error}") from error


class _Unfit(Exception):
    """Why an adapter cannot be served."""


def _check_config(file: Path, max_rank: int) -> int:
    """The rank that the configuration declares."""
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise _Unfit(f"{file.name} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise _Unfit(f"{file.name}: peft_type is not LORA")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not 1 <= rank <= max_rank:
        raise _Unfit(f"{file.name}: rank r is {rank!r}; this server takes 1 to {max_rank}")
    if not isinstance(alpha, int | float) or not config.get("target_modules"):
        raise _Unfit(f"{file.name}: lora_alpha and target_modules are needed")
    for option, neutral in _NEUTRAL.items():
        if option in config and config[option] not in neutral:
            raise _Unfit(f"{file.name}: {option}={config[option]!r} is not supported")
    return rank


def _check_tensors(file: Path, linears: dict[str, tuple[int, int]], rank: int) -> None:
    from safetensors import SafetensorError, safe_open

    sides: dict[str, set[str]] = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                match = _TENSOR.fullmatch(name)
                if match is None or match["module"] not in linears:
                    raise _Unfit(f"tensor {name} belongs to no linear layer of the base model")
                outputs, inputs = linears[match["module"]]
                shape, fitting = tuple(tensors.get_slice(name).get_shape()), (rank, inputs)
                if match["side"] == "B":
                    fitting = (outputs, rank)
                if shape != fitting:
                    raise _Unfit(f"tensor {name} has shape {shape}; the base model and rank {rank} want {fitting}")
                if not tensors.get_tensor(name).isfinite().all():
                    raise _Unfit(f"tensor {name} holds NaN or infinity")
                sides.setdefault(match["module"], set()).add(match["side"])
    except (OSError, SafetensorError) as error:
        raise _Unfit(f"{file.name} cannot be read: {error}") from error
    if not sides:
        raise _Unfit(f"{file.name} holds no tensors")
    for module, found in sides.items():
        if found != {"A", "B"}:
            raise _Unfit(f"{module} has lora_{found.pop()} only")
