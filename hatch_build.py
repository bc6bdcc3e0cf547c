"""Compiles proto/ next to its sources, so that no generated code is committed. Also runs by itself: `make proto`."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent / "proto"


def compile_protos() -> None:
    """Write *_pb2.py, *_pb2_grpc.py and their type stubs beside each .proto; raises RuntimeError if protoc refuses."""
    from grpc_tools import protoc

    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    include = resources.files("grpc_tools") / "_proto"
    scripts = Path(sys.executable).parent
    plugins = [scripts / "protoc-gen-mypy", scripts / "protoc-gen-mypy_grpc"]
    # In an isolated build the plug-ins stand on PATH instead of beside the interpreter.
    named = [f"--plugin={plugin.name}={plugin}" for plugin in plugins if plugin.exists()]
    outputs = [f"--{kind}_out={ROOT}" for kind in ("python", "grpc_python")]
    stubs = [f"--{kind}_out=quiet:{ROOT}" for kind in ("mypy", "mypy_grpc")]
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{include}", *named, *outputs, *stubs, *sources]) != 0:
        raise RuntimeError("protoc refused proto/: see above")


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # run as a script, without hatchling
    pass
else:

    class ProtoBuildHook(BuildHookInterface):  # type: ignore[misc]
        """Runs before hatchling collects the files of a wheel or of an editable install."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Compile; both arguments are hatchling's and not used."""
            compile_protos()


if __name__ == "__main__":
    compile_protos()
