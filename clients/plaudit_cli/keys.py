"""`plaudit keys`: for operators, the API keys in a callers file, which running servers take up by themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.permission import Permission
from plaudit_cli.common import CommandError, fail, failures

if TYPE_CHECKING:
    from plaudit.callers import Callers

app = typer.Typer(
    name="keys",
    help="Create, list and revoke the API keys of callers; running servers take it up within a second.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

File = Annotated[
    Path, typer.Option("--file", metavar="FILE", envvar="PLAUDIT_CALLERS_FILE", help="The servers' callers file.")
]
DEFAULT_FILE = Path("callers.json")


@app.callback()
def _keys() -> None:
    if find_spec("pydantic") is None:  # the client alone does not need it
        fail("this needs pydantic, which is not installed: pip install 'plaudit[server]'")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is: letters, digits, '.', '_' and '-'.")],
    *,
    permission: Annotated[
        list[Permission] | None,
        typer.Option(
            help="May be repeated; left out: chat and feedback. observe: to see how learning goes, as admin may.",
            show_default=False,
        ),
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="It expires after so many days; left out: never.")
    ] = None,
    file: File = DEFAULT_FILE,
) -> None:
    """Make a key, and print it, this once: the file keeps only its hash."""
    from pydantic import ValidationError

    from plaudit import callers

    may = frozenset(permission or [Permission.CHAT, Permission.FEEDBACK])
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days) if days else None
    secret = callers.new_secret()
    with failures():
        known = _read(file) if file.exists() else callers.Callers()
        try:
            key = callers.ApiKey(name=name, sha256=callers.digest(secret), permissions=may, expires=expires)
            known = callers.Callers(keys=(*known.keys, key), certificates=known.certificates)
        except ValidationError as error:
            raise CommandError(callers.in_one_line(error)) from None
        _write(file, known)
    print(secret)
    until = f"until {expires:%Y-%m-%d %H:%M} UTC" if expires else "until it is revoked"
    print(
        f"{name}: {_words(may)}, {until}. The key is not shown again; callers set PLAUDIT_API_KEY to it, or send it as "
        "metadata `authorization: Bearer KEY`.",
        file=sys.stderr,
    )


@app.command("list")
def list_(file: File = DEFAULT_FILE) -> None:
    """Who has a key or a client certificate, and what each may do."""
    with failures():
        known = _read(file)
    rows = [("name", "shows", "permissions", "expires")]
    for key in known.keys:
        expires = f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "never"
        if key.expires and key.expires <= datetime.now(UTC):
            expires += " (it has)"
        rows.append((key.name, "API key", _words(key.permissions), expires))
    rows += [
        (certificate.name, "certificate", _words(certificate.permissions), "as the certificate says")
        for certificate in known.certificates
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="Whose key.")], file: File = DEFAULT_FILE) -> None:
    """Take a key back: servers refuse it from the next second on."""
    from plaudit.callers import Callers

    with failures():
        known = _read(file)
        kept = tuple(key for key in known.keys if key.name != name)
        if kept == known.keys:
            raise CommandError(f"there is no key {name} in {file}; `plaudit keys list` shows which there are")
        _write(file, Callers(keys=kept, certificates=known.certificates))
    print(f"{name} is revoked")


def _words(permissions: Iterable[Permission]) -> str:
    return ", ".join(sorted(permission.value for permission in permissions))


def _read(file: Path) -> Callers:
    from plaudit import callers

    try:
        return callers.read(file)
    except FileNotFoundError:
        raise CommandError(f"there is no {file}; `plaudit keys create` makes it, --file names another") from None
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from None


def _write(file: Path, known: Callers) -> None:
    from plaudit import callers

    try:
        callers.write(file, known)
    except OSError as error:
        raise CommandError(f"{file}: cannot be written: {error.strerror}") from None
