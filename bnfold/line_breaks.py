"""Where a long word may go on in the next line: names of nodes are paths, and mostly longer than a table's column."""

from __future__ import annotations

import re

#: Behind a separator inside of a word, and, a less good place, before a capital.
_SEPARATOR = re.compile(r"(?<=[^/._:\s-][/._:-])(?=[^/._:\s-])")
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

#: What is shorter stays whole, numbers such as 0.25 among it.
_SHORT = 12


def parts_of(word: str) -> list[str]:
    """A word in the parts that its separators make; joined they are the word."""
    return _SEPARATOR.split(word) if len(word) > _SHORT else [word]


def pieces_of(part: str) -> list[str]:
    """A part of a word in smaller ones, which begin with capitals."""
    return _CAPITAL.split(part) if len(part) > _SHORT else [part]


def pieces(text: str) -> list[str]:
    """``text`` in pieces between which a line may end although there is no space; joined they are ``text``."""
    words = re.split(r"(\s+)", text)
    return [piece for word in words for part in parts_of(word) for piece in pieces_of(part)]
