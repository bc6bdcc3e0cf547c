"""Which inputs a head should have: how well its score tells what a persona likes, among replies to one prompt.

    base replies ──▶ persona's noisy thumbs on 70 % of the prompts ──▶ heads of the same thumbs with other inputs
    on the rest: correlation of a head's score with the persona's true liking, each less its mean over a prompt's

(What lies between prompts is left out: no policy can change it.) Prompts are those that `bench/votes_to_approval.py`
trains on; `followup` is asked after a first reply, in the second turn. Each split has its own thumbs.

    make bench-reward_tastes [ARGS="--personas NAME… --splits 5"] [SIZE=small]

SIZE=small: the hand-made tiny model, two personas; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import tiny  # noqa: E402
from bench.offline import SEED_TASKS, Lab, Sampling, model_directory  # noqa: E402
from bench.report import report, spread  # noqa: E402
from bench.votes_to_approval import NOISE, by_form  # noqa: E402
from plaudit_cli import personas  # noqa: E402
from plaudit_cli.personas import Persona  # noqa: E402
from plaudit_cli.prompts import read  # noqa: E402
from plaudit_learner.ppo.rollouts import Rollout  # noqa: E402
from plaudit_learner.reward import inputs, validation  # noqa: E402
from plaudit_learner.reward.model import Vote, fit_features  # noqa: E402

EVERYBODY = ("warm", "structured", "curious", "language", "torn", "followup", "brief")
HELD_OUT, SAMPLES = 0.3, 4
OURS, PLAIN, ALWAYS, BEFORE = (
    "the learner's own",
    "no interactions",
    "always interactions",
    "no interactions, shape at 1",
)
WAYS = (OURS, PLAIN, ALWAYS, BEFORE)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--prompts", type=Path, default=SEED_TASKS, help="as `plaudit simulate` takes them")
    parser.add_argument("--personas", nargs="+", default=list(EVERYBODY))
    parser.add_argument("--splits", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    small = arguments.size == "small"
    if small:
        arguments.personas, arguments.splits = ["brief", "followup"], 1
    prompts = tiny.pairs(9) if small else read(arguments.prompts)
    how = Sampling(temperature=1.0, max_new_tokens=24) if small else Sampling()
    with tempfile.TemporaryDirectory() as temporary:
        lab = Lab(model_directory(arguments.size, Path(temporary)), *by_form(prompts), how)
        replies = {turns: Replies(lab, turns) for turns in sorted({_second(name) for name in arguments.personas})}
        rows = {
            name: [replies[_second(name)].told(personas.load(name), split) for split in range(arguments.splits)]
            for name in arguments.personas
        }
    return conclude(arguments.size, rows)


class Replies:
    """Base replies to the training prompts, and what the reward model sees of them."""

    def __init__(self, lab: Lab, followed_up: str) -> None:
        """followed_up: the persona whose second turns are the prompts, if any."""
        asked = lab.second_turns(personas.load(followed_up), lab.train, 0) if followed_up else lab.train
        self._lab = lab
        self._replies: list[Rollout] = lab.replies(asked, 1, samples=SAMPLES)
        self._features_ND = lab.features(self._replies)

    def told(self, persona: Persona, split: int) -> dict[str, float]:
        """How well each way's score goes with what the persona likes, on prompts that it did not vote on."""
        draw = random.Random(split)
        prompts = sorted({reply.prompt for reply in self._replies})
        held_out = set(draw.sample(prompts, round(HELD_OUT * len(prompts))))
        liking = [self._lab.tastes(persona, reply)[persona.aspects[0]] for reply in self._replies]
        train = [n for n, reply in enumerate(self._replies) if reply.prompt not in held_out]
        votes = [
            Vote(self._replies[n].item, persona.thumb(liking[n], draw, NOISE), user=f"sim-{n % 20}") for n in train
        ]
        test = [n for n, reply in enumerate(self._replies) if reply.prompt in held_out]
        places = [prompts.index(self._replies[n].prompt) for n in test]
        true_N = torch.tensor([liking[n] for n in test])
        return {
            way: within_prompts(self._scores(way, train, votes, test), true_N, torch.tensor(places)) for way in WAYS
        }

    def _scores(self, way: str, train: Sequence[int], votes: Sequence[Vote], test: Sequence[int]) -> Tensor:
        features_ND, prompt_features = self._features_ND, self._lab.prompt_features
        with ExitStack() as changed:
            if way in (PLAIN, BEFORE):
                features_ND, prompt_features = features_ND[:, :-prompt_features], 0
            if way == BEFORE:
                changed.enter_context(patch.object(inputs, "SHAPE_WEIGHT", 1.0))
            if way == ALWAYS:
                changed.enter_context(patch.object(validation, "_surely_better", lambda *_: True))
            model = fit_features(features_ND[train], votes, prompt_features=prompt_features)
        return model.margin(features_ND[test])


def within_prompts(score_N: Tensor, liking_N: Tensor, prompt_N: Tensor) -> float:
    """Correlation of the two, each less its mean over the replies to the same prompt; 0 if one of them is constant."""
    parts = [[values_N[prompt_N == p] for p in prompt_N.unique()] for values_N in (score_N, liking_N)]
    score, liking = (torch.cat([part - part.mean() for part in each]).double() for each in parts)
    size = float(score.norm() * liking.norm())
    return float(score @ liking) / size if size else 0.0


def conclude(size: str, rows: dict[str, list[dict[str, float]]]) -> int:
    def mean(way: str, names: Sequence[str]) -> float:
        return statistics.fmean(row[way] for name in names for row in rows[name])

    print("| | " + " | ".join(WAYS) + " |\n" + "|---" * (len(WAYS) + 1) + "|")
    everybody = list(rows)
    for head, names in [*((name, [name]) for name in everybody), ("mean", everybody)]:
        print(f"| {head} | " + " | ".join(f"{mean(way, names):.3f}" for way in WAYS) + " |")
    figures = {
        way: {name: spread([row[way] for row in found]) for name, found in rows.items()}
        | {"mean": round(mean(way, everybody), 3)}
        for way in WAYS
    }
    goals = {f"tells more than: {way}": mean(OURS, everybody) > mean(way, everybody) for way in WAYS if way != OURS}
    return report("reward_tastes", size, figures=figures, goals=goals if size == "full" else {"ran": True})


def _second(name: str) -> str:
    return name if personas.load(name).followups else ""


if __name__ == "__main__":
    sys.exit(main())
