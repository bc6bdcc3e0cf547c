"""`plaudit instruct` hands over to the learner's packages, and says so if they are not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.clients.conftest import Run


async def test_options_and_status_are_those_of_the_program(run: Run, tmp_path: Path) -> None:
    helped = await run("instruct", "--help")
    assert helped.code == 0
    assert "--held-out" in helped.out
    assert (await run("instruct")).code == 2
    missing = await run("instruct", str(tmp_path / "pairs.jsonl"), "--epochs", "1")
    assert missing.code == 1
    assert missing.err.endswith(f"plaudit instruct: {tmp_path / 'pairs.jsonl'}: there is no such file\n")


def test_missing_packages_are_named() -> None:
    program = (
        "import sys; sys.modules['trl'] = sys.modules['datasets'] = None\n"
        "from plaudit_cli.main import main\n"
        "sys.argv = ['plaudit', 'instruct', 'pairs.jsonl']; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "this needs packages that are not installed: datasets, trl; `make up` installs them" in done.stderr
    assert done.stderr.count("\n") == 1
