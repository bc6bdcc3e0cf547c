"""`plaudit evaluate reward-model`: the learner's newest reward model on judgements that it was not trained on.

Left out are judgements on prompts that the model was fitted on, also if their replies have left the experience store
since, and on those that the store knows: on them the next one will be.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from plaudit import html_report
from plaudit.base_model import PACKAGED
from plaudit.releases import BASE
from plaudit.settings import Settings, parse
from plaudit_learner import strict_json
from plaudit_learner.config import EXPERIENCE
from plaudit_learner.experience.feedback_file import FeedbackFileError, read, standing, written
from plaudit_learner.reward import reliability_report

if TYPE_CHECKING:
    from plaudit_learner.reward.calibration import Bin
    from plaudit_learner.reward.report import Figure

PROGRAM = "plaudit evaluate reward-model"


class EvaluateSettings(Settings):
    """Judges the learner's newest reward model by feedback that it was not trained on, with 95 % intervals."""

    data: Path
    """JSON Lines as `plaudit import` takes them (docs/reward-model.md)."""
    state_dir: Path
    """The learner's directory."""
    model: str = PACKAGED
    """The base model that the learner learns with."""
    model_cache: Path = Path("~/.cache/plaudit")
    """Where the packaged model is kept once converted."""
    html: Path | None = None
    """Write a report with the reliability plot."""
    as_json: bool = False
    """Print one JSON object."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    settings = parse(EvaluateSettings, PROGRAM, arguments)
    from plaudit.base_model import ModelNotFound

    try:
        print(run(settings))
    except (FeedbackFileError, ModelNotFound, OSError, ValueError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except sqlite3.Error as error:
        print(f"{PROGRAM}: {settings.state_dir / EXPERIENCE}: {error}", file=sys.stderr)
        return 1
    return 0


def run(settings: EvaluateSettings) -> str:
    """The report.

    Raises FeedbackFileError, ModelNotFound, OSError, ValueError if there is nothing to evaluate, and sqlite3.Error if
    the experience store cannot be used.
    """
    if settings.html is not None:
        html_report.require_plots()
    said = read(settings.data)
    lines = standing(said, written(settings.data))
    directory = newest(settings.state_dir)
    if directory is None:
        raise ValueError(f"{settings.state_dir}: the learner has not fitted a reward model here yet")

    from plaudit import base_model
    from plaudit_learner.experience.store import Experience
    from plaudit_learner.policy import Policy, PromptReply, prompt_key
    from plaudit_learner.reward.features import features
    from plaudit_learner.reward.judgements import Preference, Rating, Vote
    from plaudit_learner.reward.model import RewardModel
    from plaudit_learner.reward.report import measure, reliability_tables
    from plaudit_learner.template import ChatTemplate, Message

    reward_model = RewardModel.load(directory)
    reference = None
    if reward_model.reference != BASE:
        reference = settings.state_dir / "versions" / reward_model.reference  # the learner's copy
        if not reference.is_dir():
            raise ValueError(f"{reference}: is missing; the reward model reads with {reward_model.reference}")
    model = base_model.resolve(settings.model, settings.model_cache.expanduser())
    template = ChatTemplate(model)
    store = Experience(settings.state_dir / EXPERIENCE)
    votes: list[Vote] = []
    preferences: list[Preference] = []
    ratings: list[Rating] = []
    try:
        store.belongs_to(base_model.fingerprint(model))
        for number, line in lines:
            try:
                prompt = template.prompt([Message(turn.role, turn.content) for turn in line.messages])
                item = PromptReply(prompt, template.reply(line.reply), True)
                seen = prompt_key(prompt) in reward_model.prompts or store.knows(prompt)
                if line.aspect not in reward_model.heads or seen:
                    continue
                if line.preferred_over is not None:
                    other = PromptReply(prompt, template.reply(line.preferred_over, "preferred_over"), True)
                    preferences.append(Preference(item, other, aspect=line.aspect))
                elif line.rating is not None:
                    ratings.append(Rating(item, line.rating, aspect=line.aspect))
                else:
                    votes.append(Vote(item, line.thumb == "up", aspect=line.aspect))
            except ValueError as error:
                raise FeedbackFileError(f"{settings.data}:{number}: {error}") from None
    finally:
        store.close()
    left_out = len(lines) - len(votes) - len(preferences) - len(ratings)
    if left_out == len(lines):
        raise ValueError(
            f"{settings.data}: all {len(lines)} judgements are on prompts that the learner has seen, or on aspects "
            f"that the reward model does not know (it knows {', '.join(reward_model.heads)}): give others"
        )
    replies = [vote.item for vote in votes] + [rating.item for rating in ratings]
    replies = list(dict.fromkeys(replies + [item for pair in preferences for item in (pair.chosen, pair.rejected)]))
    features_ND = features(Policy.load(model, reference_adapter=reference), replies)
    features_of = dict(zip(replies, features_ND, strict=True))
    figures = measure(reward_model, features_of, votes, preferences, ratings)
    tables = reliability_tables(reward_model, features_of, votes)
    counts = {
        "round": int(directory.name),
        "judgements": len(lines) - left_out,
        "left_out": left_out,
        "replaced": len(said) - len(lines),
    }
    return _told(settings, counts, figures, tables)


def _told(
    settings: EvaluateSettings,
    counts: Mapping[str, int],
    figures: Sequence[Figure],
    tables: Mapping[str, Sequence[Bin]],
) -> str:
    """What is printed. Writes the page too, if there should be one."""
    title = (
        f"reward model of round {counts['round']}, by {counts['judgements']} judgements; "
        f"{counts['left_out']} left out: the model or the experience store knows their prompts, or there is no head "
        "for their aspect"
    )
    if counts["replaced"]:
        title += f"; {counts['replaced']} replaced by a later one of the same user"
    if settings.html is not None:
        reliability_report.write(settings.html, title, figures, tables)
    if settings.as_json:
        told = {aspect: [asdict(row) for row in table] for aspect, table in tables.items()}
        return strict_json.dumps({**counts, "figures": [asdict(figure) for figure in figures], "reliability": told})
    header = f"{'aspect':12} {'what':24} {'value':>6}  (95 %)         judgements"
    text = [title, header, *(figure.text() for figure in figures)]
    if tables:
        text += ["", f"{'reliability':12} {'predicted':>9}  {'share up':>8}  {'thumbs':>6}"]
    for aspect, table in tables.items():
        text += [f"{aspect:12} {row.predicted:9.3f}  {row.observed:8.3f}  {row.count:6g}" for row in table]
    if settings.html is not None:
        text += ["", f"report: {settings.html}"]
    return "\n".join(text)


def newest(state_dir: Path) -> Path | None:
    """The directory of the learner's newest reward model; None if it has not fitted one yet."""
    whole = (state_dir / "reward-models").glob("[0-9]*/reward_model.json")
    return max((file.parent for file in whole), key=lambda directory: int(directory.name), default=None)


if __name__ == "__main__":
    sys.exit(main())
