"""The reward model on real human preferences, beside TF-IDF and logistic regression on the same pairs.

Pairs of Anthropic's hh-rlhf (harmless-base); 30 % of the dialogues, told by their first question's hash, are held out.
Ours is what the learner runs: the frozen features of the reference policy and a Bradley-Terry head, pessimistic as by
default (`--size full`: SmolLM2-135M, half an hour to read all pairs on one core; features are kept in --cache, so it
can be stopped). The other rows are ablations, of the plain margin. Nothing is chosen by looking at held-out pairs: the
row that the goal is about is the learner's own setting; "best by cross-validation" is the ablation that predicts the
training pairs best, prompts held out.

    make bench-reward_model [ARGS="--cache DIR --data FILE"] [SIZE=small]

SIZE=small: 300 pairs on a hand-made tiny model, a minute; its figures say only that everything runs.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.hh import Pair, encode_pairs, read_layers, read_pairs  # noqa: E402
from bench.report import report  # noqa: E402
from plaudit import base_model  # noqa: E402
from plaudit_learner.config import LearnerSettings  # noqa: E402
from plaudit_learner.policy import Policy, PromptReply  # noqa: E402
from plaudit_learner.reward.calibration import right  # noqa: E402
from plaudit_learner.reward.features import pooled_layers  # noqa: E402
from plaudit_learner.reward.judgements import Preference, prompt_folds  # noqa: E402
from plaudit_learner.reward.model import fit_features  # noqa: E402
from plaudit_learner.template import ChatTemplate  # noqa: E402

HARMLESS = ROOT.parent / "shared" / "data" / "hh-harmless" / "test.jsonl.gz"
OURS, TFIDF, BEST = "ours, as the learner runs it", "TF-IDF + logistic regression", "best by cross-validation"
PLAIN = "ours, plain margin"
PESSIMISM: float = LearnerSettings.model_fields["pessimism"].default
LENGTH, ADDED = "length alone", "ours and TF-IDF, margins added"
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Row:
    """One way to predict."""

    name: str
    validated: float | None
    """Share right of the training pairs, in five folds by first question."""
    right_P: Tensor
    """Which held-out pairs it has right, as 0 and 1; a tie is half."""
    note: str = ""

    @property
    def accuracy(self) -> float:
        """Share right of the held-out pairs."""
        return float(self.right_P.mean())

    @property
    def error(self) -> float:
        """Standard error."""
        return float(self.right_P.std() / len(self.right_P) ** 0.5)

    def minus(self, other: Row) -> tuple[float, float]:
        """The difference, paired, and its standard error."""
        difference_P = self.right_P - other.right_P
        return float(difference_P.mean()), float(difference_P.std()) / len(difference_P) ** 0.5


class Data:
    """Pairs with their features: rows 2p and 2p + 1 are the chosen and the rejected reply of pair p."""

    def __init__(self, pairs: Sequence[Pair], read: dict[str, Tensor], layers: Sequence[int]) -> None:
        self.pairs = pairs
        self.train = [i for i, pair in enumerate(pairs) if not pair.test]
        self.test = [i for i, pair in enumerate(pairs) if pair.test]
        self.states = {"mean": read["mean"], "last": read["last"]}
        self.layers = list(layers)
        self.prompts = read["prompt"].float()
        length, finished = read["shape"].T
        self.shape = torch.stack([length.log(), length.log() ** 2, finished], dim=1)
        self.judgements = [_judgement(pair, number) for number, pair in enumerate(pairs)]

    def features(self, pooled: Sequence[tuple[str, int]], *, shape: bool = True) -> Tensor:
        """One row a reply: the states of (pooling, layer), then shape and prompt, as `features.encode` orders them."""
        blocks = [self.states[pooling][:, self.layers.index(layer)].float() for pooling, layer in pooled]
        return torch.cat([*blocks, self.shape if shape else torch.zeros_like(self.shape), self.prompts], dim=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--data", type=Path, default=HARMLESS)
    parser.add_argument("--model", default=base_model.PACKAGED)
    parser.add_argument("--pairs", type=int, help="only the first so many pairs of the file")
    parser.add_argument("--cache", type=Path, help="keep the features here, and go on from those that are there")
    arguments = parser.parse_args()
    if not arguments.data.exists():
        parser.error(f"--data: {arguments.data} is not there: give hh-rlhf's harmless-base/test.jsonl.gz")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        return measure(arguments, Path(temporary))


def measure(arguments: argparse.Namespace, temporary: Path) -> int:
    began = time.monotonic()
    pairs = read_pairs(arguments.data)[: arguments.pairs]
    if arguments.size == "small":
        from tests.tiny_model import make_tiny_model

        pairs, model = pairs[:300], make_tiny_model(temporary / "model")
    else:
        model = base_model.resolve(arguments.model, Path("~/.cache/plaudit").expanduser())
    policy = Policy.load(model)
    read = encode_pairs(policy, ChatTemplate(model), pairs, arguments.cache or temporary / "features")
    data = Data(pairs, read, read_layers(policy.layers))
    print(f"{len(data.train)} pairs to train on, {len(data.test)} held out")

    rows: list[Row] = []
    for predict in _ways(data, policy.layers):
        rows.append(predict())
        _print(rows[-1], rows[0])
    ablations = [row for row in rows if row.name not in (TFIDF, LENGTH, ADDED)]
    best = max(ablations, key=lambda row: row.validated or 0.0)
    rows.append(Row(BEST, best.validated, best.right_P, f"is: {best.name}"))
    _print(rows[-1], rows[0])
    return conclude(arguments.size, rows, len(data.train), (time.monotonic() - began) / 60)


def conclude(size: str, rows: Sequence[Row], train: int, minutes: float) -> int:
    by_name = {row.name: row for row in rows}
    gap, error = by_name[OURS].minus(by_name[TFIDF])
    figures = {
        "train_pairs": train,
        "held_out_pairs": len(rows[0].right_P),
        "ours_minus_tfidf": round(gap, 4),
        "standard_error": round(error, 4),
        "rows": [
            {
                "name": row.name,
                "accuracy": round(row.accuracy, 4),
                "standard_error": round(row.error, 4),
                "cross_validated": None if row.validated is None else round(row.validated, 4),
                "note": row.note,
            }
            for row in rows
        ],
        "minutes": round(minutes, 1),
    }
    # A tiny model of random weights reaches nothing: the small size only asks whether everything was measured.
    goals = {"reaches TF-IDF's accuracy within a standard error": gap > -error} if size == "full" else {"ran": True}
    return report("reward_model", size, figures=figures, goals=goals)


def _ways(data: Data, depth: int) -> list[Callable[[], Row]]:
    default, layers = pooled_layers(depth), data.layers
    mean = [("mean", layer) for layer in default]
    two_thirds = default[-1]

    def head(
        name: str,
        pooled: Sequence[tuple[str, int]],
        *,
        shape: bool = True,
        pessimism: float = 0.0,
        interactions: bool = True,
    ) -> Row:
        features_RD = data.features(pooled, shape=shape)
        return ours(data, name, features_RD, pessimism=pessimism, interactions=interactions)

    ways: list[Callable[[], Row]] = [
        lambda: tfidf(data),
        lambda: length_alone(data),
        lambda: head(OURS, mean, pessimism=PESSIMISM),
        lambda: head(PLAIN, mean),
        lambda: head("ours, without interactions", mean, interactions=False),
        lambda: head("ours, without the shape of the reply", mean, shape=False),
        lambda: head("ours, last token instead of mean", [("last", layer) for layer in default]),
        lambda: head("ours, mean and last token", [*mean, *(("last", layer) for layer in default)]),
        lambda: head("all layers, mean", [("mean", layer) for layer in layers]),
        lambda: head("all layers, last token", [("last", layer) for layer in layers]),
    ]
    ways += [lambda layer=layer: head(f"layer {layer} alone, mean", [("mean", layer)]) for layer in layers]  # type: ignore[misc]
    ways += [lambda: head(f"layer {two_thirds} alone, last token", [("last", two_thirds)])]
    ways += [lambda rank=rank: pca(data, mean, rank) for rank in (16, 64, 256)]  # type: ignore[misc]
    ways += [lambda: both(data, mean)]
    return ways


def ours(data: Data, name: str, features_RD: Tensor, *, pessimism: float = 0.0, interactions: bool = True) -> Row:
    """The learner's own fit, its inputs and penalty chosen on the training pairs; without interactions if told so."""
    began = time.monotonic()
    prompt_features = data.prompts.shape[1]
    if not interactions:
        features_RD, prompt_features = features_RD[:, :-prompt_features], 0
    model = fit_features(
        features_RD[_rows(data.train)],
        [],
        [data.judgements[i] for i in data.train],
        prompt_features=prompt_features,
        pessimism=pessimism,
    )
    # Not clipped as rewards are: here, order is all.
    score_R = model.lowered(features_RD[_rows(data.test)], "quality")
    seen = ", interactions" if model.metrics.interactions else ""
    note = f"penalty {model.metrics.penalty:g}{seen}, {time.monotonic() - began:.0f} s"
    # Cross-validation is of the plain margin.
    return Row(name, None if pessimism else model.metrics.accuracy, right(score_R[::2] - score_R[1::2]), note)


def pca(data: Data, pooled: Sequence[tuple[str, int]], rank: int) -> Row:
    """The features reduced to their first principal components over the training replies."""
    features_RD = data.features(pooled)
    states_RD, rest_RD = features_RD.tensor_split([-data.shape.shape[1] - data.prompts.shape[1]], dim=1)
    train_RD = states_RD[_rows(data.train)]
    mean_D, sd_D = train_RD.mean(dim=0), train_RD.std(dim=0).clamp(min=1e-4)
    _, _, directions_KD = torch.linalg.svd((train_RD - mean_D) / sd_D, full_matrices=False)
    first_KD = directions_KD[:rank]
    reduced_RD = ((states_RD - mean_D) / sd_D) @ first_KD.T @ first_KD
    return ours(data, f"ours, {rank} principal components", torch.cat([reduced_RD, rest_RD], dim=1))


def length_alone(data: Data) -> Row:
    """The longer reply, or the shorter one, whichever is preferred more often."""
    longer = data.shape[::2, 0] - data.shape[1::2, 0]
    sign = 1.0 if float(right(longer[data.train]).mean()) >= 0.5 else -1.0
    validated = float(right(sign * longer[data.train]).mean())
    return Row(LENGTH, validated, right(sign * longer[data.test]), "longer" if sign > 0 else "shorter")


def tfidf(data: Data) -> Row:
    """Bag of words and word pairs of the reply; its strength chosen as our penalty is."""
    margin, validated, note = _tfidf(data)
    return Row(TFIDF, validated, right(margin), note)


def both(data: Data, pooled: Sequence[tuple[str, int]]) -> Row:
    """Do they know different things? Each margin over its own deviation, added."""
    features_RD = data.features(pooled)
    judged = [data.judgements[i] for i in data.train]
    model = fit_features(features_RD[_rows(data.train)], [], judged, prompt_features=data.prompts.shape[1])
    score_R = model.margin(features_RD[_rows(data.test)])
    margin_P, words_P = score_R[::2] - score_R[1::2], _tfidf(data)[0]
    added_P = margin_P / margin_P.std() + words_P / words_P.std()
    return Row(ADDED, None, right(added_P))


def _tfidf(data: Data) -> tuple[Tensor, float, str]:
    def difference(vectorizer: TfidfVectorizer, rows: Sequence[int]) -> object:
        chosen, rejected = ([getattr(data.pairs[i], name) for i in rows] for name in ("chosen", "rejected"))
        return vectorizer.transform(chosen) - vectorizer.transform(rejected)

    def margins(train: Sequence[int], test: Sequence[int], strength: float) -> np.ndarray:
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        vectorizer.fit([text for i in train for text in (data.pairs[i].chosen, data.pairs[i].rejected)])
        x = difference(vectorizer, train)
        sign = np.where(np.arange(len(train)) % 2 == 0, 1, -1)  # half of them turned round: two classes are wanted
        model = LogisticRegression(C=strength, fit_intercept=False, max_iter=1000)
        model.fit(x.multiply(sign[:, None]).tocsr(), sign)  # type: ignore[attr-defined]
        return np.asarray(model.decision_function(difference(vectorizer, test)))

    fold = prompt_folds([data.judgements[i] for i in data.train]).tolist()
    folds = [
        ([i for i, f in zip(data.train, fold, strict=True) if f != k],
         [i for i, f in zip(data.train, fold, strict=True) if f == k])
        for k in sorted(set(fold))
    ]  # fmt: skip

    def validated(strength: float) -> float:
        return float(right(torch.tensor(np.concatenate([margins(*parts, strength) for parts in folds]))).mean())

    results = {strength: validated(strength) for strength in STRENGTHS}
    best = max(STRENGTHS, key=results.__getitem__)
    return torch.tensor(margins(data.train, data.test, best)), results[best], f"C {best:g}"


def _judgement(pair: Pair, number: int) -> Preference:
    """Dialogues that begin with the same question share a fold."""
    question = tuple(hashlib.sha256(pair.messages[0].content.encode()).digest()[:8])
    return Preference(PromptReply(question, (2 * number,), True), PromptReply(question, (2 * number + 1,), True))


def _rows(pairs: Sequence[int]) -> Tensor:
    first_P = torch.tensor(pairs)
    return torch.stack([2 * first_P, 2 * first_P + 1], dim=1).flatten()


def _print(row: Row, baseline: Row) -> None:
    gap, error = row.minus(baseline)
    beside = "" if row is baseline else f" | {gap:+.3f} ± {error:.3f}"
    validated = "–" if row.validated is None else f"{row.validated:.3f}"
    print(f"| {row.name} | {row.accuracy:.3f} ± {row.error:.3f}{beside} | {validated} | {row.note} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
