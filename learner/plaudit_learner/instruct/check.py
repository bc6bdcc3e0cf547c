"""Which examples are used and which are left out, how they are split, and what the data is like.

Near duplicates: prompts whose character trigrams (TF-IDF) have a cosine of at least `NEAR`. Diversity: the share of
different words, pairs of words and openings among the instructions (distinct-n: Li et al. 2016, section 5).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from plaudit_learner.instruct.annotate import Annotator
from plaudit_learner.instruct.data import Example, FieldError, Source
from plaudit_learner.instruct.text import words
from plaudit_learner.policy import PromptReply

NEAR = 0.8
_COMPARED = 2000
"""Near duplicates are looked for among so many examples, and leaks in blocks of so many."""
_OPENING_WORDS = 2
_QUANTILES = {"min": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "max": 1.0}
_LANGUAGES = [  # those told apart in short texts: with all that py3langid knows, Chinese is often taken for Wu
    *("ar", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hu", "id", "it", "ja", "ko", "nl", "no"),
    *("pl", "pt", "ro", "ru", "sv", "th", "tr", "uk", "vi", "zh"),
]


@dataclass(frozen=True)
class Annotated:
    """An example and its token ids."""

    example: Example
    item: PromptReply

    @property
    def tokens(self) -> int:
        """Of prompt and output together."""
        return len(self.item.prompt) + len(self.item.reply)


@dataclass(frozen=True)
class DataReport:
    """What was found."""

    records: int
    """In the files."""
    examples: int
    """Found in them."""
    left_out: dict[str, int]
    """Examples or records that are not used, by reason."""
    findings: list[str]
    """Each of them, but for those beyond a maximum: where, which field, why."""
    train: int
    held_out: int
    prompt_tokens: dict[str, float]
    output_tokens: dict[str, float]
    languages: dict[str, int]
    """Examples by their language (ISO 639-1, guessed), the most frequent first."""
    several_outputs: int
    """Examples whose prompt has another output elsewhere."""
    near_duplicates: int
    """Examples whose prompt is almost another's, of `compared`."""
    compared: int
    leaks: int
    """Held-out examples whose prompt is almost one of those trained on, of all that are held out."""
    diversity: dict[str, float]
    """Shares of different words, pairs of words and openings among all those of the instructions."""
    openings: dict[str, int]
    """How instructions begin, the most frequent first."""


@dataclass
class Prepared:
    """What is trained on and what is evaluated on."""

    train: list[Annotated] = field(default_factory=list)
    held_out: list[Annotated] = field(default_factory=list)


def prepare(
    source: Source,
    annotator: Annotator,
    *,
    held_out: float,
    max_length: int,
    max_examples: int | None = None,
    max_held_out: int | None = None,
) -> tuple[Prepared, DataReport]:
    """Annotate, leave out, split, report. What cannot be annotated is added to `source.bad`."""
    left_out: Counter[str] = Counter()
    notes = list(source.empty)
    usable: list[Annotated] = []
    seen: dict[tuple[Any, str], str] = {}
    for example in source.examples:
        key = (example.turns, example.output)
        try:
            annotated = Annotated(example, annotator.encode(example))
        except FieldError as error:
            source.bad.append(f"{example.where}: {error}")
            continue
        if key in seen:
            left_out["duplicate"] += 1
            notes.append(f"{example.where}: is the same as {seen[key]}")
        elif annotated.tokens > max_length:
            left_out["too long"] += 1
            notes.append(f"{example.where}: has {annotated.tokens} tokens, more than {max_length}")
        else:
            seen[key] = example.where
            usable.append(annotated)
    left_out.update({"bad": len(source.bad), "empty": len(source.empty)})
    prepared = split(usable, held_out)
    prepared.train, prepared.held_out = prepared.train[:max_examples], prepared.held_out[:max_held_out]
    kept = len(prepared.train) + len(prepared.held_out)
    left_out["beyond --max-examples or --max-held-out"] = len(usable) - kept
    return prepared, _report(source, prepared, +left_out, [*source.bad, *notes])


def split(annotated: Iterable[Annotated], held_out: float) -> Prepared:
    """Told apart by the hash of the instruction, whatever else is in the files; each part in the order of a hash.

    Examples of one instruction, and the turns of one conversation, are on one side.
    """
    prepared = Prepared()
    for each in sorted(annotated, key=lambda each: _digest(repr((each.example.turns, each.example.output)))):
        share = int(instruction_hash(each.example.instruction)[:16], 16) / 2**64
        (prepared.held_out if share < held_out else prepared.train).append(each)
    return prepared


def instruction_hash(instruction: str) -> str:
    """sha256, in hex, of the instruction with each run of white space as one space. Never to be changed."""
    return _digest(" ".join(instruction.split()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _report(source: Source, prepared: Prepared, left_out: Counter[str], notes: list[str]) -> DataReport:
    kept = [*prepared.train, *prepared.held_out]
    prompts = Counter(each.example.turns for each in kept)
    near, leaks = _near([each.example.prompt for each in kept], len(prepared.train))
    instructions = [words(text) for text in dict.fromkeys(each.example.instruction for each in kept)]
    openings = [" ".join(spoken[:_OPENING_WORDS]) for spoken in instructions]
    return DataReport(
        records=source.records,
        examples=len(source.examples),
        left_out=dict(left_out),
        findings=notes,
        train=len(prepared.train),
        held_out=len(prepared.held_out),
        prompt_tokens=_quantiles([len(each.item.prompt) for each in kept]),
        output_tokens=_quantiles([len(each.item.reply) for each in kept]),
        languages=_languages([f"{each.example.prompt}\n{each.example.output}" for each in kept]),
        several_outputs=sum(count for count in prompts.values() if count > 1),
        near_duplicates=near,
        compared=min(len(kept), _COMPARED),
        leaks=leaks,
        diversity={
            "words": _distinct(instructions, lambda spoken: spoken),
            "pairs of words": _distinct(instructions, lambda spoken: list(pairwise(spoken))),
            "openings": len(set(openings)) / max(1, len(openings)),
        },
        openings=dict(Counter(openings).most_common(10)),
    )


def _near(prompts: Sequence[str], first_held_out: int) -> tuple[int, int]:
    """(how many of the last `_COMPARED` are almost another of them, how many from `first_held_out` on one before it).

    A prompt that is exactly another's counts in the second, not in the first.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not prompts:
        return 0, 0
    # A prompt of less than three characters has no trigram of its own: spaces give it some.
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(3, 3)).fit_transform(f" {text}  " for text in prompts)
    last, compared = prompts[-_COMPARED:], vectors[-_COMPARED:]
    near = {row for row, column in _alike(compared, compared) if last[row] != last[column]}
    leaks = {row for row, _ in _alike(vectors[first_held_out:], vectors[:first_held_out])}
    return len(near), len(leaks)


def _alike(rows: Any, columns: Any) -> Iterator[tuple[int, int]]:
    """(row, column) of vectors whose cosine is at least `NEAR`; by blocks, since all products may fill the memory."""
    for top in range(0, rows.shape[0], _COMPARED):
        for left in range(0, columns.shape[0], _COMPARED):
            cosines = rows[top : top + _COMPARED] @ columns[left : left + _COMPARED].T
            found = (cosines >= NEAR).tocoo()
            yield from zip((top + found.row).tolist(), (left + found.col).tolist(), strict=True)


def _languages(texts: Sequence[str]) -> dict[str, int]:
    import py3langid

    py3langid.set_languages(_LANGUAGES)
    return dict(Counter(str(py3langid.classify(text)[0]) for text in texts).most_common())


def _distinct(texts: Sequence[list[str]], grams: Callable[[list[str]], Sequence[Any]]) -> float:
    all_of_them = [gram for text in texts for gram in grams(text)]
    return len(set(all_of_them)) / max(1, len(all_of_them))


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    ordered = sorted(values) or [0]
    return {name: float(ordered[round(share * (len(ordered) - 1))]) for name, share in _QUANTILES.items()}
