"""From votes to approval: our way, TRL's KTO, supervised tuning and best-of-4, on the same votes of several personas.

Each persona votes in rounds, with noise, on what then serves (`bench/ours.py`); every method is given all its votes.
Held-out prompts are asked in other forms (no instruction begins with a word that one which was voted on begins with),
and each is another task; what `followup` says last is one of the same three sentences in both.

KTO and supervised tuning may choose from one grid, on the first persona and seed, by the reward model's score of fresh
replies to the gate's prompts (on which they are trained, too, as they get all votes). Ours runs on the learner's
defaults, chosen by what another persona's rollouts got on training prompts, 40 of which are held out here
(docs/decisions/0009, 0014). Asked last, and not to choose by: what the settings passed over come to, and, with
--at-once, ours in one round on as many votes, all on base replies.

    make bench-votes-to-approval [ARGS="--personas NAME… --seeds 0 1 --table"] [SIZE=small]

Rows are kept in bench/results/votes_to_approval.jsonl; a run that was stopped goes on from there. --table: only make
votes_to_approval.md of the rows that there are. SIZE=small: the hand-made tiny model, a minute; its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import ours  # noqa: E402
from bench.baselines import GRID, Training, kto, supervised  # noqa: E402
from bench.offline import (  # noqa: E402
    SEED_TASKS,
    Clock,
    Lab,
    Sampling,
    best_of_kl,
    identity,
    model_directory,
    paired,
    within,
)
from bench.report import report  # noqa: E402
from bench.rows import RESULTS, Row, Rows, digest  # noqa: E402
from plaudit_cli import personas  # noqa: E402
from plaudit_cli.prompts import Prompt, read, user  # noqa: E402
from plaudit_learner.policy import Policy  # noqa: E402
from plaudit_learner.ppo.rollouts import Rollout  # noqa: E402
from plaudit_learner.reward.model import RewardModel, Vote  # noqa: E402
from plaudit_learner.whole_file import whole  # noqa: E402

NOISE, HELD_OUT, BEST_OF = 0.1, 0.3, 4
BASE, OURS, KTO, LIKED, BEST = "base", "ours", "KTO", "SFT on liked replies", f"best of {BEST_OF}"
METHODS = (BASE, OURS, KTO, LIKED, BEST)
AT_ONCE = "ours, all votes at once"
UNGATED = "ours, all votes at once, before the gate"
VALIDATION_SAMPLES = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--prompts", type=Path, default=SEED_TASKS, help="as `plaudit simulate` takes them")
    parser.add_argument("--personas", nargs="+", default=["warm", "torn", "followup"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--votes", type=int, nargs="+", default=[200, 200], help="in each round")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the rows and the table")
    parser.add_argument("--at-once", action="store_true", help="ours in one round on all votes, on base replies, too")
    parser.add_argument("--table", action="store_true", help="only make the table of the rows that there are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    small = arguments.size == "small"
    grid: Sequence[Training] = GRID
    if small:  # of another model: kept apart from the rows that mean something
        arguments.results = arguments.results / "small"
        arguments.seeds = arguments.seeds[:1]
        arguments.votes, grid = [60, 60], (Training(3e-4, 1), Training(1e-3, 1))
        prompts, how = _tiny_prompts(), Sampling(temperature=1.0, max_new_tokens=24, samples=4)
    else:
        prompts, how = read(arguments.prompts), Sampling()
    clock, rows = Clock(), Rows(arguments.results / "votes_to_approval.jsonl")
    with tempfile.TemporaryDirectory() as temporary:
        model = model_directory(arguments.size, Path(temporary))
        train, held_out = by_form(prompts)
        lab = Lab(model, train, held_out, how)
        trials = [  # seeds outside, so that a run that is stopped has seen every persona early
            Trial(lab, rows, name, arguments.votes, seed, arguments.results / "work")
            for seed in arguments.seeds
            for name in arguments.personas
        ]
        compute, chosen = not arguments.table, dict[str, Training]()
        found = [trial.found(grid, chosen, compute=compute) for trial in trials]
        # Of the first trial, whose policies the grid's are; of the others what there happens to be.
        passed_over = [trial.passed_over(grid, chosen, compute=compute and trial is trials[0]) for trial in trials]
        at_once = [trial.at_once(compute=compute and arguments.at_once) for trial in trials]
    beside = [first + second for first, second in zip(at_once, passed_over, strict=True)]
    table = _table(found, beside)
    (arguments.results / "votes_to_approval.md").write_text(table)
    print("\n" + table)
    return conclude(arguments.size, found, beside, clock.minutes)


class Trial:
    """One persona and seed: votes, and a row of each method."""

    def __init__(self, lab: Lab, rows: Rows, persona: str, votes: Sequence[int], seed: int, work: Path) -> None:
        self._lab, self._rows, self._persona = lab, rows, personas.load(persona)
        self._votes, self._seed = list(votes), seed
        self._key = {
            **identity(lab),
            "persona": persona,
            "votes": self._votes,
            "noise": NOISE,
            "seed": seed,
        }
        self._work = work / digest(self._key)

    def found(self, grid: Sequence[Training], chosen: dict[str, Training], *, compute: bool) -> list[Row]:
        """A row of each method, in their order; those that are missing are computed, or left out."""
        rows = [self._kept(BASE, self._base, compute), self._kept(OURS, self._ours, compute)]
        for method in (KTO, LIKED):
            if method not in chosen:
                tried = {
                    how: self._kept(method, partial(self._tried, method, how), compute, tried=True, **asdict(how))
                    for how in grid
                }
                there = {how: float(row["validation"]) for how, row in tried.items() if row}
                if not there:
                    continue
                chosen[method] = max(there, key=lambda how: there[how])
            # Held-out prompts are asked of the chosen one only.
            how = chosen[method]
            rows.append(self._kept(method, partial(self._trained, method, how), compute, **asdict(how)))
        rows.append(self._kept(BEST, self._best, compute))
        return [row for row in rows if row]

    def passed_over(self, grid: Sequence[Training], chosen: Mapping[str, Training], *, compute: bool) -> list[Row]:
        """What the baselines' other settings come to on held-out prompts; not to choose by."""
        rows = [
            self._kept(method, partial(self._trained, method, how), compute, **asdict(how))
            for method, best in chosen.items()
            for how in grid
            if how != best
        ]
        return [row for row in rows if row]

    def at_once(self, *, compute: bool) -> list[Row]:
        """What ours comes to in one round on all the votes, all of them on the base policy's replies."""
        rows = [self._kept(AT_ONCE, self._at_once, compute), self._kept(UNGATED, self._ungated, compute)]
        return [row for row in rows if row]

    def _kept(self, method: str, measure: Callable[[], dict[str, Any]], compute: bool, **more: Any) -> Row | None:
        key = {**self._key, "method": method, **more}
        row = self._rows.get(key)
        if row is None and compute:
            row = self._rows.add(key, measure())
            found = f"approval {statistics.fmean(row['approval']):.3f}, KL {row['kl']:.2f}" if "kl" in row else row
            print(f"{self._persona.name}, seed {self._seed}: {method} {more or ''}: {found}", flush=True)
        return row

    @cached_property
    def _train(self) -> list[tuple[int, ...]]:
        return self._lab.second_turns(self._persona, self._lab.train, 11)

    @cached_property
    def _held_out(self) -> list[tuple[int, ...]]:
        return self._lab.second_turns(self._persona, self._lab.held_out, 12)

    @cached_property
    def _deployment(self) -> ours.Deployment:
        # Held-out prompts are never given to it.
        return ours.run(self._lab, self._persona, self._train, self._votes, NOISE, self._seed, self._work)

    @cached_property
    def _model(self) -> RewardModel:
        """Of all votes."""
        return self._model_of(self._deployment.votes)

    def _model_of(self, votes: Sequence[Vote]) -> RewardModel:
        """Normalised on the base policy's replies to training prompts."""
        model = ours.fitted(self._lab, self._persona, votes)
        return self._lab.normalised(model, self._lab.replies(self._train, 13))

    def _base(self) -> dict[str, Any]:
        return {**self._measured(None), "minutes": 0.0}

    def _ours(self) -> dict[str, Any]:
        return self._deployed(self._deployment, self._model)

    @cached_property
    def _deployment_at_once(self) -> ours.Deployment:
        work = self._work / "at-once"
        return ours.run_at_once(self._lab, self._persona, self._train, self._votes, NOISE, self._seed, work)

    @cached_property
    def _model_at_once(self) -> RewardModel:
        return self._model_of(self._deployment_at_once.votes)

    def _at_once(self) -> dict[str, Any]:
        return self._deployed(self._deployment_at_once, self._model_at_once)

    def _ungated(self) -> dict[str, Any]:
        done = self._deployment_at_once
        return self._deployed(replace(done, serving=done.first), self._model_at_once)

    def _deployed(self, done: ours.Deployment, model: RewardModel) -> dict[str, Any]:
        policy = self._lab.policy(self._seed)
        if done.serving is not None:
            policy.restore(done.serving)
        found = self._lab.measured(policy, self._persona, model, self._held_out)
        return {**found, "minutes": done.minutes, "rounds": done.rounds}

    def _tried(self, method: str, how: Training) -> dict[str, Any]:
        policy, minutes = self._policy(method, how)
        _, kept = ours.parts(self._train)
        rewards = self._lab.rewards(self._model, self._lab.sampled(policy, kept, 14, samples=VALIDATION_SAMPLES))
        return {"minutes": minutes, "validation": round(float(rewards.mean()), 5)}

    def _trained(self, method: str, how: Training) -> dict[str, Any]:
        policy, minutes = self._policy(method, how)
        return {**self._measured(policy), "minutes": minutes}

    def _policy(self, method: str, how: Training) -> tuple[Policy, float]:
        """What a baseline makes of the votes, and in how many CPU minutes; trained once."""
        lab, votes = self._lab, self._deployment.votes
        policy = lab.policy(self._seed)

        def trained() -> list[Tensor]:
            if method == KTO:
                kto(policy, lab.model, votes, how, self._seed)
            else:
                supervised(policy, lab.model, [vote.item for vote in votes if vote.liked], how, self._seed)
            return policy.snapshot()

        weights, minutes = _once(self._work / f"{digest({'method': method, **asdict(how)})}.pt", trained)
        policy.restore(weights)
        return policy, minutes

    def _best(self) -> dict[str, Any]:
        """Of BEST_OF base replies the best by the reward model, as often as a policy is sampled."""
        replies, features_ND, minutes = self._base_replies()
        best_N = self._model.score_features(features_ND).view(-1, BEST_OF).argmax(dim=1)
        chosen = [replies[group * BEST_OF + int(k)] for group, k in enumerate(best_N)]
        return {**self._measured(None, chosen), "kl": best_of_kl(BEST_OF), "minutes": minutes}

    def _base_replies(self) -> tuple[list[Rollout], Tensor, float]:
        """What best-of-n chooses among, its features, and in how many CPU minutes; sampled once for the same prompts.

        Neither the persona nor the seed bears on them.
        """
        lab, prompts = self._lab, self._held_out

        def sampled() -> tuple[list[dict[str, Any]], Tensor]:
            replies = lab.replies(prompts, 15, samples=BEST_OF * lab.how.samples)
            return [vars(reply) for reply in replies], lab.features(replies)

        name = digest({**identity(lab), "prompts": prompts, "samples_of_each": BEST_OF})
        (replies, features_ND), minutes = _once(self._work.parent / f"base-{name}.pt", sampled)
        return [Rollout(**reply) for reply in replies], features_ND, minutes

    def _measured(self, policy: Policy | None, replies: Any = None) -> dict[str, Any]:
        return self._lab.measured(policy, self._persona, self._model, self._held_out, replies)


def _once(file: Path, compute: Callable[[], Any]) -> tuple[Any, float]:
    """What it computes, tensors and plain values, and in how many CPU minutes; from the file if it is there."""
    if not file.exists():
        clock, found = Clock(), compute()
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as unfinished:
            torch.save((found, clock.minutes), unfinished)
    found, minutes = torch.load(file, weights_only=True)
    return found, minutes


def by_form(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held-out): whole forms, told by the first word, are on one side, for ever and on any machine."""
    train: list[Prompt] = []
    held_out: list[Prompt] = []
    for prompt in prompts:
        form = prompt.text.split(maxsplit=1)[0].strip(".,:;!?").lower()
        share = int(hashlib.sha256(form.encode()).hexdigest()[:8], 16) / 16**8
        (held_out if share < HELD_OUT else train).append(prompt)
    return train, held_out


def figures_of(row: Row, base: Row) -> dict[str, float]:
    """What the table says of a row; gains are paired by prompt with the base."""
    gain, error = paired(row["approval"], base["approval"])
    mean = {name: statistics.fmean(row[name]) for name in ("approval", "relevance", "openings", "phrases")}
    return {
        "approval": mean["approval"],
        "gain": gain,
        "within": within(error, len(base["approval"])),
        "kl": row["kl"],
        "relevance": mean["relevance"],
        "relevance_share": mean["relevance"] / statistics.fmean(base["relevance"]),
        "diversity": 1 - mean["openings"],
        "diversity_share": (1 - mean["openings"]) / (1 - statistics.fmean(base["openings"])),
        "phrases": mean["phrases"],
        "minutes": row["minutes"],
    }


def _table(found: Sequence[Sequence[Row]], beside: Sequence[Sequence[Row]]) -> str:
    lines = [
        "| persona | seed | method | true approval | gain (95 %) | KL, nats | relevance | diversity | CPU min |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for rows, others in zip(found, beside, strict=True):
        lines += [_line(row, rows[0], row["key"]["method"]) for row in rows]
        for row in others:
            method, rate = row["key"]["method"], row["key"].get("learning_rate")
            lines.append(_line(row, rows[0], method if rate is None else f"{method} at {rate:g}, passed over"))
    return "\n".join(lines) + "\n"


def _line(row: Row, base: Row, method: str) -> str:
    key, f = row["key"], figures_of(row, base)
    return (
        f"| {key['persona']} | {key['seed']} | {method} | {f['approval']:.3f} "
        f"| {f['gain']:+.3f} ± {f['within']:.3f} | {f['kl']:.2f} "
        f"| {f['relevance']:.3f} ({f['relevance_share']:.0%}) "
        f"| {f['diversity']:.3f} ({f['diversity_share']:.0%}) "
        f"| {f['minutes']:.1f} |"
    )


def conclude(size: str, trials: Sequence[Sequence[Row]], beside: Sequence[Sequence[Row]], minutes: float) -> int:
    """The object; the goals are not about what stands beside the methods."""

    def told(row: Row, base: Row) -> dict[str, Any]:
        key = {name: row["key"][name] for name in ("persona", "seed", "method", "learning_rate") if name in row["key"]}
        return {**key, **{name: round(value, 4) for name, value in figures_of(row, base).items()}}

    rows = [told(row, trial[0]) for trial in trials for row in trial]
    # Means over the trials that every method was measured in: one more persona would be another question.
    whole = [trial for trial in trials if len(trial) == len(METHODS)]
    gains = {
        method: round(statistics.fmean(figures_of(trial[number], trial[0])["gain"] for trial in whole), 4)
        for number, method in enumerate(METHODS if whole else ())
    }
    ours = [figures_of(trial[METHODS.index(OURS)], trial[0]) for trial in whole]
    complete = 0 < len(whole) == len(trials)
    goals = {
        # Twice a loss would be reached by losing less.
        "more than twice KTO's gain in true approval": complete and gains[OURS] > max(0.0, 2 * gains[KTO]),
        "relevance within 5 % of the base's, each time": complete
        and all(abs(each["relevance_share"] - 1) <= 0.05 for each in ours),
        "diversity within 5 % of the base's, each time": complete
        and all(abs(each["diversity_share"] - 1) <= 0.05 for each in ours),
    }
    if size == "small":  # random weights reach nothing: it only asks whether everything was measured
        goals = {"ran": complete and bool(beside[0])}
    others = [told(row, trial[0]) for trial, rows in zip(trials, beside, strict=True) for row in rows]
    for method in (AT_ONCE, UNGATED):
        if len(once := [row["gain"] for row in others if row["method"] == method]) == len(trials):
            gains[method] = round(statistics.fmean(once), 4)
    return report(
        "votes_to_approval",
        size,
        figures={"gains": gains, "rows": rows, "beside": others, "minutes": round(minutes, 1)},
        goals=goals,
    )


def _tiny_prompts() -> list[Prompt]:
    """Words of which some are held out by their hash, as no two of `bench/tiny.py` are."""
    words = [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "river",
        "stone",
        "fire",
        "sand",
        "snow",
        "water",
        "rain",
        "gold",
        "iron",
    ]
    return [user(f"{first} {second}") for first in words for second in words if first != second]


if __name__ == "__main__":
    sys.exit(main())
