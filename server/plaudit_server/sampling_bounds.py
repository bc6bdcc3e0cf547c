"""What a sampling parameter may be: one rule for requests and for the served defaults, which fill in for them.

Each returns its value, or raises ValueError that says what would be right.
"""

from __future__ import annotations

import re

MAX_STOPS = 8
MAX_STOP_BYTES = 64
# Below it vLLM samples at this temperature whatever was asked for, and the record would be wrong.
_LEAST_TEMPERATURE = 0.01

# All control characters but tab, newline, vertical tab, form feed, carriage return and next line, which come with text
# that was pasted. Nobody types the others and no tokenizer was made for them; what reads the text after us (a terminal
# that shows an operator a conversation, a program that ends strings at NUL) may obey them. What writes right to left or
# joins emoji is not among them.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")


def temperature(value: float) -> float:
    """0, or what engines sample at exactly."""
    # Written so that NaN fails too. In a request 0.01 is in single precision, and a little less.
    if value != 0 and not _LEAST_TEMPERATURE - 1e-9 <= value <= 2:
        raise ValueError(f"is {value:g}; it must be 0 (greedy), or {_LEAST_TEMPERATURE:g} to 2")
    return value


def stop(text: str) -> str:
    """A stop string."""
    size = len(text.encode())
    if not 1 <= size <= MAX_STOP_BYTES:
        raise ValueError(f"has {size} bytes; it must have 1 to {MAX_STOP_BYTES}")
    return no_controls(text)


def no_controls(text: str) -> str:
    """Text without control characters, but for white space."""
    if found := _CONTROL.search(text):
        raise ValueError(
            f"holds the control character U+{ord(found[0]):04X} at character {found.start()};"
            " of those only white space is text"
        )
    return text
