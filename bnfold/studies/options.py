"""What a study is asked to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from bnfold.errors import OptionError

#: Each experiment in the order of the report, with the module that runs it.
EXPERIMENTS: Mapping[str, str] = {
    "speed": "bnfold.studies.experiments.speed",
    "learning_rates": "bnfold.studies.experiments.learning_rates",
    "initialization": "bnfold.studies.experiments.initialization",
    "covariate_shift": "bnfold.studies.experiments.covariate_shift",
    "smoothness": "bnfold.studies.experiments.smoothness",
    "explosion": "bnfold.studies.experiments.explosion",
    "generalization": "bnfold.studies.experiments.generalization",
    "scale_invariance": "bnfold.studies.experiments.scale_invariance",
    "small_batches": "bnfold.studies.experiments.small_batches",
}

#: Fewer seeds make no interval worth its name.
LEAST_SEEDS = 5


@dataclass(frozen=True)
class StudyOptions:
    """How a study runs.

    Attributes:
        names: experiments to run, of :data:`EXPERIMENTS`; all of them by default.
        seeds: repetitions of each arm; by default 10, and 5 with ``quick``.
        quick: shorter training and coarser grids.

    Raises:
        OptionError: an experiment is unknown, or the seeds are too few.
    """

    names: tuple[str, ...] = ()
    seeds: int | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in EXPERIMENTS:
                close = difflib.get_close_matches(name, EXPERIMENTS, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(EXPERIMENTS)}"
                raise OptionError(f"there is no experiment named {name!r}; {hint}")
        if self.seeds is not None and self.seeds < LEAST_SEEDS:
            raise OptionError(f"seeds is {self.seeds}; it must be at least {LEAST_SEEDS}, for an interval to mean much")

    @property
    def repetitions(self) -> int:
        """The seeds of each arm, the default filled in."""
        return self.seeds or (5 if self.quick else 10)

    @property
    def chosen(self) -> tuple[str, ...]:
        """The experiments to run, in the order of the report."""
        return tuple(name for name in EXPERIMENTS if not self.names or name in self.names)
