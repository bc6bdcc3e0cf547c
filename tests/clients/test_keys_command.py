"""`plaudit keys`: a key is made, shown once, listed, revoked."""

from __future__ import annotations

import json
from pathlib import Path

from plaudit import callers
from plaudit.permission import Permission
from plaudit_cli.up import make_keys
from tests.clients.conftest import Run


async def test_the_life_of_a_key(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "callers.json"
    made = await run("keys", "create", "shop", f"--file={file}")
    assert made.code == 0, made.err
    secret = made.out.strip()
    assert secret.startswith("plaudit_"), "alone on standard output, for a shell to take"
    assert "shop: chat, feedback, until it is revoked. The key is not shown again" in made.err
    assert secret not in made.err + file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    (key,) = callers.read(file).keys
    assert key.sha256 == callers.digest(secret)
    assert key.permissions == frozenset({Permission.CHAT, Permission.FEEDBACK})

    again = await run("keys", "create", "shop", f"--file={file}")
    assert (again.code, again.out, "the name shop stands twice" in again.err) == (1, "", True)
    operator = await run("keys", "create", "ops", "--permission", "admin", "--days", "30", f"--file={file}")
    assert operator.code == 0
    content = json.loads(file.read_text())
    content["certificates"].append({"name": "ops.example.org", "permissions": ["admin"]})
    file.write_text(json.dumps(content))

    listed = await run("keys", "list", f"--file={file}")
    rows = [line.split("  ")[0] for line in listed.out.splitlines()]
    assert [row.strip() for row in rows] == ["name", "shop", "ops", "ops.example.org"]
    assert secret not in listed.out
    revoked = await run("keys", "revoke", "shop", f"--file={file}")
    assert (revoked.code, revoked.out) == (0, "shop is revoked\n")
    known = callers.read(file)
    assert ([key.name for key in known.keys], len(known.certificates)) == (["ops"], 1)


def test_a_deployment_of_one_key_keeps_its_users(tmp_path: Path) -> None:
    (tmp_path / "receipt.key").write_bytes(b"k" * 32)
    make_keys(tmp_path)
    assert (tmp_path / "user.key").read_bytes() == b"k" * 32
    (tmp_path / "new").mkdir()
    for _ in range(2):
        make_keys(tmp_path / "new")
        keys = [(tmp_path / "new" / name).read_bytes() for name in ("receipt.key", "user.key")]
        assert [len(key) for key in keys] == [32, 32]
        assert keys[0] != keys[1]
    assert (tmp_path / "new" / "user.key").stat().st_mode & 0o777 == 0o600


async def test_what_is_wrong_is_said_in_one_line(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "callers.json"
    missing = await run("keys", "revoke", "shop", f"--file={file}")
    assert (missing.code, missing.err.count("\n")) == (1, 1)
    assert "`plaudit keys create` makes it" in missing.err
    spaced = await run("keys", "create", "the shop", f"--file={file}")
    assert (spaced.code, "name: String should match pattern" in spaced.err) == (1, True)
    assert not file.exists()
    assert (await run("keys", "create", "shop", "--permission", "root", f"--file={file}")).code == 2
