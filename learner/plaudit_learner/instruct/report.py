"""What came of a run, for people: report.html, one file that needs no other; and for programs: report.json."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plaudit.releases import BASE
from plaudit_learner import strict_json
from plaudit_learner.gate.judge import Verdict
from plaudit_learner.instruct.check import DataReport, Prepared
from plaudit_learner.instruct.evaluate import Scores, difference, loss_difference
from plaudit_learner.instruct.tune import Point
from plaudit_learner.rounds import LEAST_AUC
from plaudit_learner.whole_file import whole

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_SIZE = (7.0, 3.2)  # inches
_SAMPLES = 12


def write(directory: Path, told: Mapping[str, Any]) -> Path:
    """Write both; returns the path of report.html. `told` is what `content` gives."""
    import jinja2

    directory.mkdir(parents=True, exist_ok=True)
    with whole(directory / "report.json") as unfinished:
        unfinished.write_text(strict_json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = _number
    page = environment.from_string(_TEMPLATE.read_text()).render(told, plots=_plots(told), least_auc=LEAST_AUC)
    target = directory / "report.html"
    with whole(target) as unfinished:
        unfinished.write_text(page)
    return target


def content(
    *,
    run: str,
    outcome: str,
    model: str,
    base_model_sha256: str,
    settings: Mapping[str, Any],
    prepared: Prepared,
    data: DataReport,
    before: Scores,
    after: Scores,
    verdict: Verdict,
    curves: Sequence[Point],
) -> dict[str, Any]:
    """What the report tells, all of it JSON."""
    kept = [*prepared.train, *prepared.held_out]
    replies = zip(prepared.held_out, before.replies, after.replies, strict=False)
    return {
        "run": run,
        "outcome": outcome,
        "verdict": {**asdict(verdict), "passed": verdict.passed},
        "model": model,
        "base_model_sha256": base_model_sha256,
        "start": settings["start"] or BASE,
        "settings": settings,
        "metrics": verdict.metrics,
        "comparison": comparison(before, after),
        "curves": curves,
        "data": asdict(data),
        "lengths": {
            "prompt": [len(each.item.prompt) for each in kept],
            "output": [len(each.item.reply) for each in kept],
        },
        "samples": [
            {"prompt": each.example.prompt, "output": each.example.output, "before": first, "after": second}
            for each, first, second in list(replies)[:_SAMPLES]
        ],
    }


def comparison(before: Scores, after: Scores) -> list[dict[str, Any]]:
    """Rows of name, before, after, change, and the change's standard error (None: it has none)."""
    loss = loss_difference(before.nats, after.nats, before.tokens)
    rows = [
        _row("held-out loss, nats a token", before.loss, after.loss, loss.error),
        _row("held-out perplexity", before.perplexity, after.perplexity, None),
    ]
    if before.served_nats != before.nats:
        served = loss_difference(before.served_nats, after.served_nats, before.served_tokens)
        first, second = (sum(scores.served_nats) / sum(scores.served_tokens) for scores in (before, after))
        rows.append(_row("held-out loss as served", first, second, served.error))
    if before.rouge:
        first, second = (sum(scores.rouge) / len(scores.rouge) for scores in (before, after))
        rows.append(_row("ROUGE-L of replies", first, second, difference(before.rouge, after.rouge).error))
    return rows


def _row(name: str, before: float, after: float, error: float | None) -> dict[str, Any]:
    if error is not None and not math.isfinite(error):
        error = None  # of a single reply
    return {"name": name, "before": before, "after": after, "change": after - before, "error": error}


def _plots(told: Mapping[str, Any]) -> list[str]:
    """SVG of each plot that there is data for."""
    plots = []
    curves: Sequence[Point] = told["curves"]
    if curves:
        figure, axes = _axes("Loss while tuning", "update", "nats a token")
        for name, label, style in (("loss", "trained on", "-"), ("held_out_loss", "held out", "o-")):
            points = [(point["step"], point[name]) for point in curves if name in point]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
        before = told["metrics"].get("held_out_loss_before")
        if before is not None:
            axes.axhline(before, linestyle=":", color="grey", label="held out, before")
        axes.legend(loc="upper right")
        plots.append(_svg(figure))
        figure, axes = _axes("Learning rate", "update", "")
        axes.plot(*zip(*[(p["step"], p["learning_rate"]) for p in curves if "learning_rate" in p], strict=True))
        plots.append(_svg(figure))
    lengths = told["lengths"]
    if lengths["prompt"]:
        figure, axes = _axes("Length of the examples", "tokens", "examples")
        axes.hist([lengths["prompt"], lengths["output"]], bins=30, label=["prompt", "output"])
        axes.legend(loc="upper right")
        plots.append(_svg(figure))
    return plots


def _axes(title: str, across: str, up: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "plaudit"}):  # the same report of the same run, byte for byte
        figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    return svg[svg.index("<svg") :]


def _number(value: float) -> str:
    return f"{value:.4g}"
