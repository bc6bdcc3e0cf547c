"""The `plaudit` command: a table of commands, each imported only when it is run, so that `--help` answers at once."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from plaudit_cli.common import Credentials, credentials

EMBEDDED_BROKER = "embedded"
COMMANDS = {
    "up": ("plaudit_cli.up:up", "Start server, learner and event log on this machine."),
    "chat": ("plaudit_cli.chat:chat", "Chat with the policy, and vote on its replies."),
    "vote": ("plaudit_cli.vote:vote", "Vote on a reply by its receipt."),
    "top": ("plaudit_cli.top:top", "Watch how serving and learning go, live."),
    "policies": ("plaudit_cli.policies:app", "List, watch, share, promote, roll back versions."),
    "instruct": ("plaudit_cli.instruct:app", "Tune the policy on instruction–output pairs."),
    "simulate": ("plaudit_cli.simulate:simulate", "Let simulated users chat and vote."),
    "import": ("plaudit_cli.import_:import_", "Import feedback that people already have."),
    "evaluate": ("plaudit_cli.evaluate:app", "Judge what was learnt by data that it was not learnt from."),
    "dead-letters": ("plaudit_cli.dead_letters:app", "List, show and replay records that the learner could not use."),
    "erase": ("plaudit_cli.erase:erase", "Forget everything that a user said, or was told."),
    "keys": ("plaudit_cli.keys:app", "Create, list and revoke the API keys of callers."),
    "doctor": ("plaudit_cli.doctor:doctor", "Say what is installed, what answers, and what is wrong."),
}


class _LazyGroup(TyperGroup):
    """Lists commands from the table; imports the one that is run."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        # For help and completion, which need no more than the name and the line.
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(name) if name else None, rest


def load(name: str) -> Any:
    """The real command of that name, which must be in COMMANDS."""
    module, attribute = COMMANDS[name][0].split(":")
    target = getattr(import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(name)(target)
        target = single
    return typer.main.get_command(target)


app = typer.Typer(cls=_LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        from plaudit import __version__

        print(f"plaudit {__version__}")
        raise typer.Exit


@app.callback()
def _plaudit(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_version, is_eager=True)
    ] = False,
    api_key: Annotated[
        str, typer.Option(envvar="PLAUDIT_API_KEY", help="For servers that ask for one; better in the environment.")
    ] = "",
    ca: Annotated[
        Path | None, typer.Option(envvar="PLAUDIT_CA", help="Talk TLS; who signs servers' certificates, PEM.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(envvar="PLAUDIT_CERTIFICATE", help="For servers that ask for one, PEM.")
    ] = None,
    certificate_key: Annotated[
        Path | None, typer.Option(envvar="PLAUDIT_CERTIFICATE_KEY", help="Its private key, PEM.")
    ] = None,
) -> None:
    """Plaudit: a chat model that learns from votes while it serves."""
    credentials.set(Credentials(api_key, ca, certificate, certificate_key))


def main() -> None:
    """The entry point. Exits with 0, 1 (it failed; one line on stderr says why), 2 (wrong usage) or 130 (Ctrl-C)."""
    app(_spell_out(sys.argv[1:]), prog_name="plaudit")


def _spell_out(arguments: list[str]) -> list[str]:
    """`--kafka` without a value means the embedded broker; typer knows no options whose value may be left out."""
    following = [*arguments[1:], "-"]
    return [
        f"--kafka={EMBEDDED_BROKER}" if argument == "--kafka" and after.startswith("-") else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


if __name__ == "__main__":
    main()
