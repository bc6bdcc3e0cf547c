"""`plaudit evaluate --version A --against B` against a real server."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from plaudit import html_report
from plaudit.events import INTERACTIONS, from_beginning, open_log
from plaudit_cli import comparison_report, evaluate
from plaudit_cli.common import CommandError
from plaudit_cli.comparison import Comparison, Pair, Said
from plaudit_cli.prompts import user
from tests.clients.conftest import Run
from tests.fixtures_server import Deployment

PROMPTS = ["Say <b>hello</b> & go.", "What is [red]?", "三个字"]


@pytest.fixture
async def server(deployment: Deployment) -> AsyncIterator[str]:
    deployment.publish("v1", seed=1)
    async with deployment.server() as address:
        yield address


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join([*PROMPTS, PROMPTS[0]]) + "\n")
    return str(path)


async def test_side_by_side(run: Run, server: str, prompts: str, deployment: Deployment, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    arguments = ("--against", "v0", "--prompts", prompts, "--samples", "2", "--max-tokens", "6", "--persona", "brief")
    outcome = await run("evaluate", "--version", "v1", *arguments, "--html", str(report), server=server)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["prompt", "v1", "v0"]
    assert [sum(line.startswith(prompt) for line in lines) for prompt in PROMPTS] == [2, 2, 2], "each once, two samples"
    names = ("length, tokens", "cut off, share", "distinct openings, share", "true approval")
    figures = {name: line for line in lines for name in names if line.startswith(name)}
    assert len(figures) == 4
    assert re.search(r"true approval +0\.\d{3} +0\.\d{3} +[+-]0\.\d{3} ± 0\.\d{3}", figures["true approval"])
    assert lines[-2].startswith("6 pairs of replies, ")
    assert lines[-2].endswith("0 prompts too long")

    page = report.read_text()
    assert "Say &lt;b&gt;hello&lt;/b&gt; &amp; go." in page
    assert "<b>" not in page
    assert page.count('<img alt="') == 2
    assert page.count('src="data:image/svg+xml;base64,') == 2, "no other file is needed"
    assert "color-scheme: light dark" in page
    assert "of at most 6 tokens, temperature 0.7, seed 0" in page
    assert "Of top_p and stop strings the server&#x27;s defaults applied" in page

    again = await run("evaluate", "policies", "--version", "v1", *arguments, server=server)
    assert again.out.splitlines() == lines[:-1], "the same seed says the same"
    with open_log(deployment.event_log) as log:
        entries = log.read(from_beginning(log, INTERACTIONS))
    assert not entries, "what is compared is not recorded"


async def test_a_version_beside_itself_is_identical(run: Run, server: str, prompts: str) -> None:
    outcome = await run("evaluate", "--version", "v1", "--against", "v1", "--prompts", prompts, server=server)
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith("3 pairs of replies, 100% identical; 0 prompts too long\n")
    assert "true approval" not in outcome.out


async def test_what_cannot_be_compared_is_said(run: Run, server: str, prompts: str, tmp_path: Path) -> None:
    unknown = await run("evaluate", "--version", "v9", "--prompts", prompts, server=server)
    assert unknown.code == 1
    assert "v9" in unknown.err
    assert "`plaudit policies promote` brings another one in" in unknown.err
    nowhere = str(tmp_path / "nowhere" / "report.html")
    unwritable = await run("evaluate", "--version", "v1", "--prompts", prompts, "--html", nowhere, server=server)
    assert unwritable.err == f"plaudit: {nowhere}: cannot be written: No such file or directory\n"
    (tmp_path / "long.txt").write_text("word " * 2000)
    too_long = await run("evaluate", "--version", "v1", "--prompts", str(tmp_path / "long.txt"), server=server)
    assert (too_long.code, too_long.err) == (
        1,
        "plaudit: the server took none of the 1 prompts: they are too long for it\n",
    )
    incomplete = await run("evaluate", "--version", "v1", server=server)
    assert incomplete.code == 2
    assert "--prompts" in incomplete.err


def said(text: str, approval: float) -> Said:
    return Said(text, len(text), finished=len(text) < 4, approval=approval)


def test_figures() -> None:
    """Golden: worked out by hand."""
    one, two = user("one"), user("two")
    pairs = [
        Pair(one, said("a", 0.9), said("a", 0.5)),
        Pair(one, said("abc", 0.7), said("b", 0.5)),
        Pair(two, said("abcd", 0.5), said("a", 0.7)),
        Pair(two, said("abcd", 0.5), said("a", 0.7)),
    ]
    found = Comparison("v2", "v1", pairs, skipped=0)
    length, cut, openings, approval = found.rows
    assert found.identical == 0.25
    assert (length.ours, length.theirs) == (3.0, 1.0)
    assert length.error == pytest.approx(1.0)  # differences 1 and 3: deviation √2, over √2 prompts
    assert (cut.ours, cut.theirs) == (0.5, 0.0)
    assert (openings.ours, openings.theirs) == (0.75, 0.5)
    assert approval.ours == pytest.approx(0.65)
    assert approval.theirs == pytest.approx(0.6)
    assert approval.error == pytest.approx(0.25)  # differences +0.3 and −0.2
    assert comparison_report.cells(approval) == ("true approval", "0.650", "0.600", "+0.050 ± 0.250")
    alone = Comparison("v2", "v1", pairs[:1], skipped=0)
    assert comparison_report.cells(alone.rows[0]) == ("length, tokens", "1.000", "1.000", "+0.000")


@pytest.mark.parametrize(
    "opening", ["Sure, I would love to help with", "好的，我很乐意帮助你。这是", "もちろん、", "ยินดีช่วย"]
)
def test_one_opening_is_one_in_any_writing(opening: str) -> None:
    """Where no spaces are written, the whole reply was one word, and each of these openings its own."""
    one = [Pair(user(str(i)), said(f"{opening}{i}", 0.5), said(f"{i} {opening}", 0.5)) for i in range(5)]
    row = next(row for row in Comparison("v2", "v1", one, skipped=0).rows if row.name == "distinct openings, share")
    assert (row.ours, row.theirs) == (0.2, 1.0)


def test_a_terminal_obeys_no_reply(capsys: pytest.CaptureFixture[str]) -> None:
    pair = Pair(user("\x1b[1m?"), said("\x1b[2Jours", 0.5), said("\x9b2Jtheirs", 0.5))
    evaluate._print(Comparison("v2", "v1", [pair], skipped=0))
    out = capsys.readouterr().out
    assert all(text in out for text in (" [1m?", " [2Jours", " 2Jtheirs"))
    assert all(line.isprintable() for line in out.split("\n"))


def test_plots_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_report, "find_spec", lambda name: None)
    with pytest.raises(CommandError, match=r"pip install 'plaudit\[instruct\]'"):
        comparison_report.require_plots()
