"""What the commands share: the --server option, and how a failure becomes one line and an exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer


def _address(value: str) -> str:
    if not re.fullmatch(r"(unix:|dns:)\S+|\S+:\d{1,5}", value):
        raise typer.BadParameter(f"{value!r} is not HOST:PORT, for instance 127.0.0.1:50051")
    return value


Server = Annotated[
    str,
    typer.Option("--server", metavar="HOST:PORT", envvar="PLAUDIT_SERVER", callback=_address, help="Which server."),
]
DEFAULT_SERVER = "127.0.0.1:50051"


class CommandError(Exception):
    """The command cannot go on; the message is the one line that the person sees."""


def fail(message: str) -> NoReturn:
    """Say why on stderr, in one line, and exit with 1."""
    print("plaudit: " + " ".join(message.split()), file=sys.stderr)
    raise typer.Exit(1)


@contextmanager
def failures() -> Iterator[None]:
    """Around what a command does: an expected failure becomes one line and exit code 1, Ctrl-C exits with 130."""
    from plaudit_client import PlauditError, Unavailable

    try:
        yield
    except Unavailable as error:
        hint = "; start one with `plaudit up`, or name another with --server"
        fail(error.message + (hint if error.message.startswith("nothing answers") else ""))
    except PlauditError as error:
        fail(str(error))
    except CommandError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print(file=sys.stderr)  # past the ^C
        raise typer.Exit(130) from None
