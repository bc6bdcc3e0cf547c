"""What the commands share: how they reach a server, and how a failure becomes one line and an exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from plaudit_client import AsyncClient


def _address(value: str) -> str:
    if not re.fullmatch(r"(unix:|dns:)\S+|\S+:\d{1,5}", value):
        raise typer.BadParameter(f"{value!r} is not HOST:PORT, for instance 127.0.0.1:50051")
    return value


Server = Annotated[
    str,
    typer.Option("--server", metavar="HOST:PORT", envvar="PLAUDIT_SERVER", callback=_address, help="Which server."),
]
DEFAULT_SERVER = "127.0.0.1:50051"
EVENT_LOG = "PLAUDIT_EVENT_LOG"
EventLogUrl = Annotated[
    str | None,
    typer.Option(
        "--event-log",
        envvar=EVENT_LOG,
        help="sqlite:PATH or kafka://HOST:PORT; default: the SQLite file in --data.",
    ),
]
Control = Annotated[
    str,
    typer.Option(
        "--control",
        metavar="HOST:PORT",
        envvar="PLAUDIT_CONTROL",
        callback=_address,
        help="Which server: the address of its control plane.",
    ),
]
DEFAULT_CONTROL = "127.0.0.1:51051"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What `plaudit` shows to servers, whichever command follows."""

    api_key: str = ""
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


credentials: ContextVar[Credentials] = ContextVar("credentials", default=Credentials())  # noqa: B039 - it is frozen


def connect(
    address: str, *, control: str | None = None, timeout: float = 30.0, max_retries: int | None = None
) -> AsyncClient:
    """A client with the credentials that stand before the command. Raises PlauditError, CommandError.

    It keeps no feedback: who votes by a command is told what became of it, and the command ends.
    """
    from plaudit_client import AsyncClient, tls
    from plaudit_client.retry import MAX_RETRIES

    ours = credentials.get()
    channel = None
    if ours.ca or ours.certificate or ours.key:
        try:
            channel = tls(ours.ca, ours.certificate, ours.key)
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}") from None
    return AsyncClient(
        address,
        control=control,
        credentials=channel,
        api_key=ours.api_key,
        timeout=timeout,
        max_retries=MAX_RETRIES if max_retries is None else max_retries,
        keep_feedback=0,
    )


def printable(words: str, keep: str = "") -> str:
    """With a space for each character that a terminal would obey, line feeds among them; `keep` stays as it is."""
    return "".join(c if c.isprintable() or c in keep else " " for c in words)


class CommandError(Exception):
    """The command cannot go on; the message is the one line that the person sees."""


def typed() -> bool:
    """Whether somebody types: standard input is there, and a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def event_log_url(data: Path, given: str | None, otherwise: str) -> str:
    """The event log that was given, or else the deployment's own file.

    Exits if there is none, for nobody would read one that is made now; `otherwise`: what to do about it, in words.
    """
    embedded = data / "events.sqlite"
    if given is None and not embedded.exists():
        fail(f"there is no {embedded}: {otherwise}")
    return given or f"sqlite:{embedded}"


def fail(message: str) -> NoReturn:
    """Say why on stderr, in one line, and exit with 1."""
    print("plaudit: " + " ".join(message.split()), file=sys.stderr)
    raise typer.Exit(1)


@contextmanager
def failures() -> Iterator[None]:
    """Around what a command does: an expected failure becomes one line and exit code 1, Ctrl-C exits with 130."""
    from plaudit_client import PlauditError, Unauthenticated, Unavailable

    try:
        yield
    except Unavailable as error:
        hint = "; start one with `plaudit up`, or name another with --server or --control"
        fail(error.message + (hint if error.message.startswith("nothing answers") else ""))
    except Unauthenticated as error:
        fail(f"{error} (`plaudit --api-key KEY …`, or PLAUDIT_API_KEY)")
    except PlauditError as error:
        fail(str(error))
    except CommandError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print(file=sys.stderr)  # past the ^C
        raise typer.Exit(130) from None
