"""How the store keeps what a statement says: a slot, in which a later one replaces it, a number, and its words."""

from __future__ import annotations

from plaudit.v1.events_pb2 import Feedback
from plaudit.v1.feedback_pb2 import Thumb

RATED = 10
"""A rating's number is this much above its points, so that it is no thumb."""


def slot(record: Feedback) -> tuple[str, int, str]:
    """Where a statement stands (a later one in the same slot replaces it), its value, and its words."""
    verdict = record.WhichOneof("verdict")
    if verdict == "thumb":
        return "vote", 1 if record.thumb == Thumb.THUMB_UP else -1, ""
    if verdict == "rating":
        return "vote", RATED + record.rating, ""
    if verdict == "preferred_over":
        return f"over {record.preferred_over}", 1, ""
    if verdict == "comment":
        return "comment", 0, record.comment
    return "retraction", 0, ""


def score(value: int) -> float:
    """A thumb's number as 0 or 1, a rating's of 1 to 5 as 0, 1/4, … 1."""
    return (value - RATED - 1) / 4 if value > RATED else float(value == 1)
