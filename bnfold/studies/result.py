"""What an experiment found, as data: claims, intervals, and verdicts that follow from them alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from bnfold.benchmarking.statistics import Interval


class Verdict(StrEnum):
    """Whether what was seen is what was claimed."""

    AGREES = "agrees"
    IN_PART = "agrees in part"
    UNDECIDED = "not decided"
    DISAGREES = "disagrees"


@dataclass(frozen=True)
class Source:
    """A publication.

    Attributes:
        authors: as it is cited, with the year.
        title: of the publication.
        url: where it can be read.
    """

    authors: str
    title: str
    url: str

    def to_json(self) -> dict[str, str]:
        """As a plain document."""
        return {"authors": self.authors, "title": self.title, "url": self.url}


@dataclass(frozen=True)
class Region:
    """The values of a quantity that a claim allows: above ``low`` and below ``high``, in words too."""

    low: float
    high: float
    words: str

    def judge(self, seen: Interval) -> Verdict:
        """Agrees if the whole interval lies inside, disagrees if all of it lies outside; undecided between."""
        if any(math.isnan(value) for value in (seen.low, seen.estimate, seen.high)):
            return Verdict.UNDECIDED
        if self.low < seen.low and seen.high < self.high:
            return Verdict.AGREES
        if seen.high <= self.low or seen.low >= self.high:
            return Verdict.DISAGREES
        return Verdict.UNDECIDED


@dataclass(frozen=True)
class Finding:
    """One claim, held against one measured quantity.

    Attributes:
        claim: what is said, as a sentence.
        source: who says it.
        quantity: what was measured here, as a clause.
        seen: the estimate with its 95 % interval over seeds, or the range over seeds where that is what counts.
        region: the values that the claim allows.
        form: how to write a value, such as ``{:.2f}×``.
    """

    claim: str
    source: Source
    quantity: str
    seen: Interval
    region: Region
    form: str = "{:.2f}"

    @property
    def verdict(self) -> Verdict:
        """What follows from the interval and the region."""
        return self.region.judge(self.seen)

    @property
    def estimate(self) -> str:
        """The estimate in writing."""
        return self.form.format(self.seen.estimate)

    @property
    def interval(self) -> str:
        """The interval in writing."""
        return f"{self.form.format(self.seen.low)} to {self.form.format(self.seen.high)}"

    def to_json(self) -> dict[str, Any]:
        """As a plain document; what is not finite is null."""
        seen = {key: value if math.isfinite(value) else None for key, value in self.seen.to_json().items()}
        return {
            "claim": self.claim,
            "source": self.source.to_json(),
            "quantity": self.quantity,
            "seen": seen,
            "allowed": self.region.words,
            "verdict": self.verdict.value,
        }


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: for the legend.
        x: positions.
        y: values.
        low: lower end of the interval of each; empty for none.
        high: the upper end.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """A plot as data.

    Attributes:
        title: what it shows.
        x_label: quantity and unit.
        y_label: likewise.
        series: the lines.
        x_log: whether the horizontal axis is logarithmic.
        y_log: whether the vertical axis is.
        reference: a value to mark with a horizontal line, and what it is.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    x_log: bool = False
    y_log: bool = False
    reference: tuple[float, str] | None = None


@dataclass(frozen=True)
class Table:
    """Figures as text.

    Attributes:
        title: what they are.
        columns: headings; the first column is of text, the others are numbers.
        rows: the cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Outcome:
    """What one experiment came to.

    Attributes:
        name: of the experiment.
        title: its question.
        setup: what was done, in a paragraph.
        findings: each claim with its verdict.
        tables: the figures.
        charts: the plots.
        caveats: what the figures cannot show.
        seconds: processor time that it took.
    """

    name: str
    title: str
    setup: str
    findings: tuple[Finding, ...]
    tables: tuple[Table, ...]
    charts: tuple[Chart, ...]
    caveats: str
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """The findings' common verdict; in part where they differ."""
        verdicts = {finding.verdict for finding in self.findings}
        return verdicts.pop() if len(verdicts) == 1 else Verdict.IN_PART

    def to_json(self) -> dict[str, Any]:
        """As a plain document."""
        return {
            "name": self.name,
            "title": self.title,
            "verdict": self.verdict.value,
            "setup": self.setup,
            "findings": [finding.to_json() for finding in self.findings],
            "tables": [
                {"title": table.title, "columns": list(table.columns), "rows": [list(row) for row in table.rows]}
                for table in self.tables
            ],
            "caveats": self.caveats,
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True)
class StudyResult:
    """A finished study.

    Attributes:
        folder: where its pages lie.
        seeds: repetitions of each arm.
        quick: whether it was the short version.
        outcomes: one for each experiment.
    """

    folder: Path
    seeds: int
    quick: bool
    outcomes: tuple[Outcome, ...]

    def to_json(self) -> dict[str, Any]:
        """As a plain document."""
        return {
            "folder": str(self.folder),
            "seeds": self.seeds,
            "quick": self.quick,
            "experiments": [outcome.to_json() for outcome in self.outcomes],
        }
