"""The frontier: true approval and reward against KL, of PPO after each update and of what it has to be as good as.

At the same votes and one reward model for all: best-of-2, 4, 8, 16 (expected over 16 base replies to each held-out
prompt), PPO with the learner's defaults, supervised tuning on liked replies and on the best of n, TRL's KTO. No setting
is chosen by looking at held-out prompts.

    make bench-frontier [ARGS="--persona NAME --seeds 0 1 --votes 300 --logged-share 0.5 --table"] [SIZE=small]

Rows are kept in bench/results/frontier.jsonl, two plots of them beside it; a run that was stopped goes on from there.
SIZE=small: the hand-made tiny model, a minute; its figures say only that everything runs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import tiny  # noqa: E402
from bench.baselines import Training, kto, supervised  # noqa: E402
from bench.offline import (  # noqa: E402
    SEED_TASKS,
    Ballot,
    Clock,
    Lab,
    Sampling,
    best_of,
    best_of_kl,
    identity,
    model_directory,
    paired,
    rounded,
    turns,
    within,
)
from bench.report import report  # noqa: E402
from bench.rows import RESULTS, Row, Rows, digest  # noqa: E402
from plaudit_cli import personas  # noqa: E402
from plaudit_cli.personas import Persona  # noqa: E402
from plaudit_cli.prompts import read, split  # noqa: E402
from plaudit_learner.policy import Policy, PromptReply  # noqa: E402
from plaudit_learner.ppo.improve import IterationMetrics, improve  # noqa: E402
from plaudit_learner.reward.model import RewardModel  # noqa: E402

NOISE, HELD_OUT = 0.1, 0.3
BEST_OF = (2, 4, 8, 16)
DISTIL_OF, DISTIL_PROMPTS = 8, 120
BASELINE = Training(3e-4)
LOGGED = ", {:.0%} of it logged"
BASE, PPO, LIKED, DISTILLED, KTO = "base", "PPO", "SFT on liked replies", f"SFT on best of {DISTIL_OF}", "KTO"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--prompts", type=Path, default=SEED_TASKS, help="as `plaudit simulate` takes them")
    parser.add_argument("--persona", default="brief")
    parser.add_argument("--votes", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--logged-share",
        type=float,
        default=0.0,
        help="PPO also with this share of each update's replies from the votes'",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the rows and the plot")
    parser.add_argument("--table", action="store_true", help="only make table and plots of the rows that there are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as temporary:
        small = arguments.size == "small"
        if small:
            # Of another model: kept apart from the rows that mean something.
            arguments.results, arguments.seeds = arguments.results / "small", arguments.seeds[:1]
            prompts = tiny.pairs(11)
            how = Sampling(temperature=1.0, max_new_tokens=24)
        else:
            prompts, how = read(arguments.prompts), Sampling()
        lab = Lab(model_directory(arguments.size, Path(temporary)), *split(prompts, HELD_OUT), how)
        rows = Rows(arguments.results / "frontier.jsonl")
        persona = personas.load(arguments.persona)
        found = [
            row
            for seed in arguments.seeds
            for row in Frontier(lab, rows, persona, arguments.votes, seed).rows(arguments)
        ]
    title = f"{persona.name}: {persona.description}; {arguments.votes} votes"
    plot(found, arguments.results / "frontier.svg", title)
    plot_updates(found, arguments.results / "updates.svg", title)
    return conclude(arguments.size, found, clock.minutes)


class Frontier:
    """All rows of one seed."""

    def __init__(self, lab: Lab, rows: Rows, persona: Persona, votes: int, seed: int) -> None:
        self._lab, self._rows, self._persona, self._votes, self._seed = lab, rows, persona, votes, seed

    @cached_property
    def _ballot(self) -> Ballot:
        return self._lab.vote(self._persona, self._lab.train, self._votes, NOISE, self._seed)

    @cached_property
    def _model(self) -> RewardModel:
        """One for all methods; normalised on the base replies that were voted on."""
        model = self._lab.reward_model(self._ballot.votes)
        print(f"seed {self._seed}: reward model of {self._votes} votes: {model.metrics.summary()}", flush=True)
        return self._lab.normalised(model, self._ballot.rollouts)

    def rows(self, arguments: argparse.Namespace) -> list[Row]:
        """Computed, or as they were kept."""
        if arguments.table:
            common = self._key(BASE)
            del common["method"]
            return self._rows.matching(common)
        found = self._chosen() + self._ppo(arguments.results / "work")
        if arguments.logged_share:
            found += self._ppo(arguments.results / "work", arguments.logged_share)
        ways: dict[str, Callable[[Policy], None]] = {
            LIKED: lambda policy: supervised(policy, self._lab.model, self._liked(), BASELINE, self._seed),
            DISTILLED: lambda policy: supervised(policy, self._lab.model, self._best(), BASELINE, self._seed),
            KTO: lambda policy: kto(policy, self._lab.model, self._ballot.votes, BASELINE, self._seed),
        }
        return found + [self._trained(method, train) for method, train in ways.items()]

    def _key(self, method: str, **more: Any) -> dict[str, Any]:
        return {
            **identity(self._lab),
            "method": method,
            "persona": self._persona.name,
            "votes": self._votes,
            "noise": NOISE,
            "seed": self._seed,
            **more,
        }

    def _chosen(self) -> list[Row]:
        """The base, and the best of n of its replies."""
        methods = [BASE, *(f"best of {n}" for n in BEST_OF)]
        there = [self._rows.get(self._key(method)) for method in methods]
        if all(there):
            return [row for row in there if row]
        lab, clock = self._lab, Clock()
        replies = lab.base_replies(lab.held_out)
        rewards_PK = lab.rewards(self._model, replies).view(len(lab.held_out), -1)
        approvals_PK = torch.tensor(lab.approval(self._persona, replies)).view_as(rewards_PK)
        found = []
        for n, method in zip((1, *BEST_OF), methods, strict=True):
            values = {"approval": approvals_PK, "reward": rewards_PK}
            figures = {name: rounded(best_of(n, rewards_PK, value_PK)) for name, value_PK in values.items()}
            found.append(self._rows.add(self._key(method), {"kl": best_of_kl(n), **figures, "minutes": clock.minutes}))
        return found

    def _ppo(self, work: Path, logged_share: float = 0.0) -> list[Row]:
        """A row after each update, and one of the last. Goes on from a checkpoint if it was stopped.

        logged_share: of an update's replies, taken from those that were voted on, until they are used up.
        """
        how = replace(self._lab.improve_settings(self._votes), logged_share=logged_share)
        method = f"{PPO}{LOGGED.format(logged_share)}" if logged_share else PPO
        keys = [self._key(method, update=update) for update in range(1, how.iterations + 1)]
        last = self._key(method, update="last")

        def updates() -> list[Row]:
            return [row for row in map(self._rows.get, keys) if row]

        if self._rows.get(last) is None:
            work.mkdir(parents=True, exist_ok=True)
            checkpoint = work / f"{digest(last)}.pt"
            policy, clock = self._lab.policy(self._seed), Clock(checkpoint.with_suffix(".minutes"))

            def watch(metrics: IterationMetrics) -> None:
                key = keys[metrics.iteration - 1]
                # An update that went too far is undone.
                if self._rows.get(key) is None and metrics.kl <= how.kl_stop:
                    minutes, measured = clock.minutes, Clock()
                    self._show(self._rows.add(key, {**self._measured(policy), "minutes": minutes}))
                    clock.leave_out(measured.minutes)
                clock.keep()

            result = improve(
                policy,
                self._model,
                self._lab.train,
                how,
                seed=self._seed,
                progress=watch,
                checkpoint=checkpoint,
                logged=self._ballot.rollouts,
            )
            # What is left of an undone update is the one before it.
            kept = updates()[-1] if updates() else {**self._measured(policy), "minutes": clock.minutes}
            self._rows.add(last, {**kept, "key": last, "stopped": result.stopped})
            checkpoint.unlink(missing_ok=True)
        end = self._rows.get(last)
        assert end is not None
        return [*updates(), end]

    def _trained(self, method: str, train: Callable[[Policy], None]) -> Row:
        key = self._key(method, learning_rate=BASELINE.learning_rate, epochs=BASELINE.epochs)
        if (row := self._rows.get(key)) is not None:
            return row
        policy, clock = self._lab.policy(self._seed), Clock()
        train(policy)
        minutes = clock.minutes
        row = self._rows.add(key, {**self._measured(policy), "minutes": minutes})
        self._show(row)
        return row

    def _liked(self) -> list[PromptReply]:
        return [vote.item for vote in self._ballot.votes if vote.liked]

    def _best(self) -> list[PromptReply]:
        """The best of DISTIL_OF fresh base replies, by the reward model, to training prompts."""
        lab = self._lab
        prompts = turns(lab.train, min(self._votes, DISTIL_PROMPTS), random.Random(self._seed))
        replies = lab.replies(prompts, 7 + self._seed, samples=DISTIL_OF)
        rewards_PK = lab.rewards(self._model, replies).view(len(prompts), -1)
        return [replies[p * DISTIL_OF + int(k)].item for p, k in enumerate(rewards_PK.argmax(dim=1))]

    def _measured(self, policy: Policy) -> dict[str, Any]:
        return self._lab.measured(policy, self._persona, self._model, self._lab.held_out)

    def _show(self, row: Row) -> None:
        key = row["key"]
        name = f"{key['method']} {key.get('update', '')}".strip()
        print(
            f"seed {key['seed']}: {name}: approval {statistics.fmean(row['approval']):.3f}, reward "
            f"{statistics.fmean(row['reward']):+.2f}, KL {row['kl']:.2f}, {row['minutes']:.1f} CPU minutes",
            flush=True,
        )


def conclude(size: str, rows: list[Row], minutes: float) -> int:
    """The table, and the object."""
    print("\n| method | seed | true approval | gain, paired (95 %) | reward | KL, nats a reply | CPU min |")
    print("|---|---|---|---|---|---|---|")
    bases = {row["key"]["seed"]: row for row in rows if row["key"]["method"] == BASE}
    figures = []
    for row in rows:
        base = bases[row["key"]["seed"]]
        gain, error = paired(row["approval"], base["approval"])
        reward, reward_error = paired(row["reward"], base["reward"])
        mean, prompts = statistics.fmean(row["approval"]), len(row["approval"])
        print(
            f"| {label(row)} | {row['key']['seed']} | {mean:.3f} | {gain:+.3f} ± {within(error, prompts):.3f} "
            f"| {reward:+.2f} ± {within(reward_error, prompts):.2f} | {row['kl']:.2f} | {row['minutes']:.1f} |"
        )
        figures.append(
            {
                "method": label(row),
                "seed": row["key"]["seed"],
                "approval": round(mean, 4),
                "gain": round(gain, 4),
                "standard_error": round(error, 4),
                "reward_gain": round(reward, 4),
                "kl": round(row["kl"], 4),
            }
        )

    def mean_of(method: str, figure: str) -> float:
        values = [float(str(row[figure])) for row in figures if row["method"] == method]
        return statistics.fmean(values) if values else float("nan")

    goals = {
        "PPO's last version at or above best-of-8's approval": mean_of(f"{PPO} last", "approval")
        >= mean_of("best of 8", "approval"),
        "at no more than twice its KL": mean_of(f"{PPO} last", "kl") <= 2 * mean_of("best of 8", "kl"),
    }
    if size == "small":  # random weights reach nothing: it only asks whether everything was measured
        goals = {"ran": True}
    return report("frontier", size, figures={"rows": figures, "minutes": round(minutes, 1)}, goals=goals)


def label(row: Row) -> str:
    """The method, and after which update."""
    return f"{row['key']['method']} {row['key'].get('update', '')}".strip()


def plot(rows: list[Row], file: Path, title: str) -> None:
    """True approval and reward against KL; means over seeds, their gains' standard errors over prompts as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bases = {row["key"]["seed"]: row for row in rows if row["key"]["method"] == BASE}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(label(row), []).append(row)
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for axis, name in zip(axes, ("approval", "reward"), strict=True):

        def point(group: list[Row], name: str = name) -> tuple[float, float, float]:
            errors = [paired(row[name], bases[row["key"]["seed"]][name])[1] for row in group]
            value = statistics.fmean(statistics.fmean(row[name]) for row in group)
            return statistics.fmean(row["kl"] for row in group), value, statistics.fmean(errors) / len(group) ** 0.5

        lines = {"best of n (KL: at most)": [BASE, *(f"best of {n}" for n in BEST_OF)]}
        for method in dict.fromkeys(name.rpartition(" ")[0] for name in groups if name.startswith(PPO)):
            updates = (name for name in groups if name.rpartition(" ")[0] == method and not name.endswith("last"))
            lines[method] = [BASE, *updates]
        lines |= {method: [method] for method in (LIKED, DISTILLED, KTO)}
        for title_, names in lines.items():
            there = [groups[each] for each in names if each in groups]
            if not there:
                continue
            kl, values, errors = zip(*map(point, there), strict=True)
            axis.errorbar(kl, values, yerr=errors, marker="o", capsize=2, label=title_)
        axis.set_xlabel("KL to the reference, nats a reply")
        axis.set_ylabel("true approval" if name == "approval" else "reward, deviations")
        axis.grid(alpha=0.3)
    axes[0].legend(loc="lower right")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)


def plot_updates(rows: list[Row], file: Path, title: str) -> None:
    """What PPO does to held-out replies, update by update: a line for each seed, from the base policy on."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {
        "reward": "reward, deviations",
        "approval": "true approval",
        "kl": "KL, nats a reply",
        "entropy": "entropy, nats a token",
        "length": "length, tokens",
    }
    figure, axes = pyplot.subplots(1, len(shown), figsize=(15, 3))
    for seed in sorted({row["key"]["seed"] for row in rows}):
        line = [row for row in rows if row["key"]["seed"] == seed and row["key"]["method"] in (BASE, PPO)]
        line = [row for row in line if row["key"].get("update") != "last"]
        for axis, name in zip(axes, shown, strict=True):
            there = [(row["key"].get("update", 0), row[name]) for row in line if name in row]
            values = [value if name == "kl" else statistics.fmean(value) for _, value in there]
            axis.plot([update for update, _ in there], values, marker="o", markersize=3, label=f"seed {seed}")
    for axis, label_ in zip(axes, shown.values(), strict=True):
        axis.set_xlabel("update")
        axis.set_title(label_, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].legend(loc="lower right")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
