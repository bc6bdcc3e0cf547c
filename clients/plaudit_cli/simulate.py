"""`plaudit simulate`: declared simulated users who chat and vote, and what they think of each version, live."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit_cli.common import DEFAULT_CONTROL, DEFAULT_SERVER, CommandError, Control, Server, connect, failures

if TYPE_CHECKING:
    from plaudit_cli.simulation import Vote
    from plaudit_cli.tally import Summary


def simulate(
    *,
    persona: Annotated[
        str,
        typer.Option(help="brief, structured, warm, curious, language or torn; or path/to/file.py:Class, your own."),
    ],
    prompts: Annotated[Path, typer.Option(help="What they say: .jsonl, or .txt with one prompt on each line.")],
    conversations: Annotated[int, typer.Option(min=1, help="How many, of one prompt, one reply and one vote each.")],
    concurrency: Annotated[int, typer.Option(min=1, help="How many at once.")] = 4,
    noise: Annotated[float, typer.Option(min=0, max=1, help="Share of votes that are flipped.")] = 0.1,
    seed: Annotated[int, typer.Option(help="The same conversations, which count once on trial.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest reply.")] = 48,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.7,
    users: Annotated[int, typer.Option(min=1, help="How many user ids vote.")] = 20,
    votes_per_version: Annotated[
        int, typer.Option(min=0, help="After so many on one version, wait for a newer one; 0: never wait.")
    ] = 0,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for it at most, before going on.")] = 600.0,
    policy_version: Annotated[str, typer.Option(help="Ask for this version only, e.g. v3.")] = "",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Append a JSON line for each vote.")
    ] = None,
    server: Server = DEFAULT_SERVER,
    control: Control = DEFAULT_CONTROL,
) -> None:
    """Let simulated users chat and vote."""
    from plaudit_cli import personas
    from plaudit_cli import prompts as prompt_files
    from plaudit_cli.scoreboard import Scoreboard
    from plaudit_cli.simulation import Simulation, run

    simulation = Simulation(
        conversations=conversations,
        concurrency=concurrency,
        noise=noise,
        seed=seed,
        max_tokens=max_tokens,
        temperature=temperature,
        users=users,
        policy_version=policy_version,
        votes_per_version=votes_per_version,
        wait=wait,
    )

    with failures():
        who = personas.load(persona)
        said = prompt_files.read(prompts)

        with _record(json_file) as record, Scoreboard(f"{who.name}: {who.description}", conversations) as board:

            def watch(vote: Vote, summary: Summary) -> None:
                record(vote)
                board.show(summary)

            async def go() -> None:
                # It has its own patience (pace.py), and counts what it cost.
                async with connect(server, control=control, max_retries=0) as client:
                    board.show(await run(client, who, said, simulation, watch=watch, note=board.note), last=True)

            asyncio.run(go())


@contextmanager
def _record(path: Path | None) -> Iterator[Callable[[Vote], None]]:
    if path is None:
        yield lambda vote: None
        return
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror}") from error
    with file:

        def record(vote: Vote) -> None:
            file.write(json.dumps(dataclasses.asdict(vote), ensure_ascii=False) + "\n")
            file.flush()  # whoever follows the file sees each vote as it is cast

        yield record
