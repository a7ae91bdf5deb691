"""How the library tells of its progress without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable

#: Called as ``progress(stage, done, total)``; ``total`` is 0 where it is not known.
Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Tell nobody: the default of every library function."""
