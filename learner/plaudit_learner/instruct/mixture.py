"""Instruction examples for PPO to mix in (PPO-ptx): read, annotated and held out as `plaudit instruct` does it."""

from __future__ import annotations

from pathlib import Path

from plaudit_learner.instruct.annotate import Annotator
from plaudit_learner.instruct.check import Annotated, split
from plaudit_learner.instruct.config import InstructSettings
from plaudit_learner.instruct.data import DataError, FieldError, read
from plaudit_learner.policy import PromptReply, prompt_key
from plaudit_learner.rounds import told_apart


def instruction_examples(file: Path, model: Path, max_tokens: int) -> list[PromptReply]:
    """The examples of a file that may be trained on, in an order that depends on their contents only.

    Left out are those that `plaudit instruct` holds out by its defaults, those whose prompt is one that only the gate
    may see, and those of which the prompt or the output has more than `max_tokens`: they are never cut, which would
    teach to break off.
    Raises ValueError if the file cannot be read, if a record is wrong, or if no example is left.
    """
    try:
        source = read([file])
    except DataError as error:
        raise ValueError(f"instruct_data: {error}") from error
    except ImportError as error:
        raise ValueError(f"instruct_data needs pip install 'plaudit[instruct]': {error}") from error
    if source.bad:
        raise ValueError(f"instruct_data: {source.bad[0]}")
    annotator = Annotator(model, "chat")
    annotated = []
    for example in source.examples:
        try:
            annotated.append(Annotated(example, annotator.encode(example)))
        except FieldError as error:
            raise ValueError(f"instruct_data: {example.where}: {error}") from error
    train = split(annotated, float(InstructSettings.model_fields["held_out"].default)).train
    prompts = {each.item.prompt for each in train}
    prompts = set(told_apart((prompt_key(prompt), prompt) for prompt in prompts)[0])
    items = dict.fromkeys(each.item for each in train if each.item.prompt in prompts)
    usable = [item for item in items if max(len(item.prompt), len(item.reply)) <= max_tokens]
    if not usable:
        raise ValueError(
            f"instruct_data: {file} has no example to train on whose prompt and output are of at most {max_tokens} "
            f"tokens each ({len(source.examples)} examples, {len(items)} of them not held out)"
        )
    return usable
