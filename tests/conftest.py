"""What every test shares: output as wide as for a user who pipes it, and the same random cases in every run."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Workers beside each other share the cores: numpy's products in two threads each wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# What decides whether a change lands must say the same twice; new graphs are looked for by the deep profile.
# No deadline in either: how long a case takes says how busy the machine is.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.register_profile("deep", deadline=None)
settings.load_profile("deep" if "BNFOLD_GRAPHS" in os.environ else "repeatable")


@pytest.fixture(autouse=True)
def _no_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
