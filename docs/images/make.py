"""Makes the README's pictures: `python docs/images/make.py [chat] [terminal] [loop]`; without a name, all of them.

Everything on them happened: `plaudit up` runs in a directory of its own, a browser (Debian's Chromium) is driven as by
a person, and `plaudit chat` runs in a pseudo-terminal. `chat` and `terminal` are of the packaged model, SmolLM2-135M;
on `loop` the tests' tiny model learns from a simulated user, since that takes minutes instead of hours.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import pty
import re
import select
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import Popen

from playwright.async_api import Page, async_playwright
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.deployment import Deployment, running  # noqa: E402
from plaudit_cli import personas  # noqa: E402
from plaudit_cli.prompts import user  # noqa: E402
from plaudit_cli.simulation import Simulation, run  # noqa: E402
from tests.tiny_model import make_tiny_model  # noqa: E402

HERE = Path(__file__).resolve().parent
SIZE = {"width": 1200, "height": 760}
REPLY_SECONDS = 300.0
LEARN_SECONDS = 1500.0
WORDS = ["alpha", "beta", "gamma", "delta", "river", "stone", "cloud", "tree", "bird", "fish", "moon", "star", "wind"]
PROMPTS = [user(f"{first} {second}") for first in WORDS for second in WORDS if first < second]
TINY = (
    "--engine=torch",
    "--server-option=max-context=512",
    "--server-option=max-tokens=256",
    "--learner-option=votes-per-round=100",
    "--learner-option=iterations=7",
    "--learner-option=kl-budget=1.5",
    "--learner-option=canary-most-votes=40",
)
THEME = TerminalTheme(
    (27, 27, 26), (236, 234, 228), [(0, 0, 0)] + [(236, 234, 228)] * 7, [(120, 120, 115)] + [(255, 255, 255)] * 7
)
# As Rich's own, without its fonts, which would be fetched from another host.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
 font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


async def main() -> None:
    """Whatever was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", metavar="picture", help="chat, terminal or loop")
    asked = set(parser.parse_args().pictures) or {"chat", "terminal", "loop"}
    if asked - {"chat", "terminal", "loop"}:
        parser.error("the pictures are chat, terminal and loop")
    with tempfile.TemporaryDirectory() as work:
        if asked & {"chat", "terminal"}:
            # What is shown is chatting: a round of learning beside it would only make it slow.
            options = ("--learner-option=votes-per-round=1000", "--server-option=default-max-tokens=160")
            async with running(Path(work) / "chat", *options) as deployment:
                if "chat" in asked:
                    await picture_chat(deployment)
                if "terminal" in asked:
                    await picture_terminal(deployment)
        if "loop" in asked:
            model = make_tiny_model(Path(work) / "tiny")
            async with running(Path(work) / "loop", f"--model={model}", *TINY) as deployment:
                await picture_loop(deployment)


@asynccontextmanager
async def page_of(url: str) -> AsyncIterator[Page]:
    """The page in a browser."""
    program = shutil.which("chromium")
    if program is None:
        raise SystemExit("chromium is not installed (requirements/debian.txt)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = await browser.new_page(viewport=SIZE, locale="en-GB", reduced_motion="reduce")  # type: ignore[arg-type]
        page.set_default_timeout(REPLY_SECONDS * 1000)
        await page.goto(url)
        yield page
        await browser.close()


async def shoot(page: Page, name: str) -> None:
    """Both themes: NAME.png and NAME-dark.png."""
    for theme, suffix in (("dark", "-dark"), ("light", "")):
        await page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        await page.mouse.move(2, 2)
        await page.wait_for_timeout(300)
        await page.screenshot(path=HERE / f"{name}{suffix}.png")


async def picture_chat(deployment: Deployment) -> None:
    """A vote, and a comparison."""
    async with page_of(deployment.gateway) as page:

        async def say(text: str, count: int) -> None:
            await page.get_by_label("Message", exact=True).fill(text)
            await page.keyboard.press("Enter")
            await page.wait_for_function("n => document.querySelectorAll('.thumbs').length === n", arg=count)

        await say("What is the capital of France?", 1)
        await page.get_by_role("button", name="Good reply").click()
        await page.get_by_role("button", name="Close").click()
        await say("What should I see there? Answer in one sentence.", 2)
        await page.get_by_role("button", name="Bad reply").nth(1).click()
        await shoot(page, "chat")
        await page.get_by_role("link", name="New chat").click()
        await say("Why is the sky blue? Answer in two sentences.", 1)
        await page.get_by_role("button", name="Another reply").click()
        await page.locator(".better").first.wait_for()
        await shoot(page, "compare")


async def picture_loop(deployment: Deployment) -> None:
    """After some votes and a version or two."""
    client = deployment.clients[0]
    async with asyncio.timeout(LEARN_SECONDS), page_of(f"{deployment.gateway}/#/loop") as page:
        for seed in range(5):
            await run(
                client, personas.load("brief"), PROMPTS, Simulation(110, seed=seed, max_tokens=24, temperature=1.0)
            )
            async for policy in client.watch_policies():
                if policy.version == f"v{seed + 1}" and policy.state in ("canary", "rejected", "stable"):
                    break
        await page.locator(".cards canvas").nth(4).wait_for()
        await page.set_viewport_size({"width": 1200, "height": 1260})
        await shoot(page, "loop")


async def picture_terminal(deployment: Deployment) -> None:
    """`plaudit chat`, typed into a pseudo-terminal: a cast that asciinema plays, and its last screen."""
    server = deployment.clients[0].address
    lines = ["What is the capital of France?", "+", "Why is the sky blue? Answer in one sentence.", "r", "2", "/quit"]
    events = await asyncio.to_thread(
        record, [sys.executable, "-m", "plaudit_cli.main", "chat", "--server", server], lines
    )
    header = '{"version": 2, "width": 92, "height": 30, "title": "plaudit chat"}'
    cast = [header, *(json.dumps([round(at, 3), "o", text]) for at, text in events)]
    (HERE / "chat.cast").write_text("\n".join(cast) + "\n")
    shown = re.sub(r"\x1b\[\?2004[hl]|\r|\x07", "", "".join(text for _, text in events))
    console = Console(record=True, width=92, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ plaudit chat"))
    console.print(Text.from_ansi(shown.replace(server, "127.0.0.1:50051").rstrip()))
    console.save_svg(str(HERE / "terminal.svg"), title="plaudit chat", theme=THEME, code_format=SVG)


def record(command: list[str], lines: list[str]) -> list[tuple[float, str]]:
    """What the program writes, and when, in seconds, while `lines` are typed at its prompts."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "92"}
    program = Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    began, events, seen = time.monotonic(), [], ""
    waiting = list(lines)
    try:
        while time.monotonic() < began + REPLY_SECONDS * 2:
            if not select.select([ours], [], [], 0.5)[0]:
                continue
            try:
                text = os.read(ours, 65536).decode(errors="replace")
            except OSError:  # the program ended
                break
            if not text:
                break
            events.append((time.monotonic() - began, text))
            seen += text
            if waiting and re.search(r"(> |\? )$", seen):
                for character in waiting.pop(0) + "\n":
                    os.write(ours, character.encode())
                    time.sleep(0.03)
                seen = ""
    finally:
        os.close(ours)
        program.wait(30)
    return events


if __name__ == "__main__":
    asyncio.run(main())
