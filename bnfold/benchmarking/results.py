"""What a benchmark found, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bnfold.benchmarking.context import Context
from bnfold.benchmarking.inputs import Feed
from bnfold.benchmarking.launches import ProcessRecord
from bnfold.benchmarking.options import BenchmarkOptions, Setting
from bnfold.benchmarking.statistics import Comparison, Interval, Verdict
from bnfold.benchmarking.subjects import Subject

#: The version of the JSON document.
SCHEMA = 1


@dataclass(frozen=True)
class Spread:
    """A figure that each launch measures once: its median, least and greatest, in seconds."""

    median: float
    least: float
    greatest: float

    def to_json(self) -> dict[str, float]:
        """The spread as plain data."""
        return {"median": self.median, "min": self.least, "max": self.greatest}


@dataclass(frozen=True)
class CandidateResult:
    """One model in one setting.

    Attributes:
        label: the model's.
        latency: its percentiles in seconds, by percent (50, 90, 99, 99.9); None where there are too few
            samples.
        mean_s: mean latency in seconds.
        throughput: inferences (items of a batch) a second, one batch after the other.
        samples: how many.
        group: the most runs that one sample is an average over.
        creation: of the session, in seconds, in a process that has only imported onnxruntime.
        first_run: of the session's first run, in seconds.
        peak_bytes: the median over launches of the most memory that the process held, interpreter included.
        comparison: of the latency with the first model's; None for the first.
        creation_comparison: of the session's creation with the first model's; None for the first.
        records: of its process in each launch.
    """

    label: str
    latency: Mapping[float, Interval | None]
    mean_s: float
    throughput: float
    samples: int
    group: int
    creation: Spread
    first_run: Spread
    peak_bytes: int
    comparison: Comparison | None
    creation_comparison: Comparison | None
    records: tuple[ProcessRecord, ...]

    def to_json(self, *, samples: bool = False) -> dict[str, Any]:
        """The candidate as plain data, with every raw sample if asked."""
        document: dict[str, Any] = {
            "model": self.label,
            "latency_s": {
                f"p{percent:g}": None if value is None else value.to_json() for percent, value in self.latency.items()
            },
            "mean_s": self.mean_s,
            "throughput_per_s": self.throughput,
            "samples": self.samples,
            "runs_per_sample": self.group,
            "session_creation_s": self.creation.to_json(),
            "first_run_s": self.first_run.to_json(),
            "peak_memory_bytes": self.peak_bytes,
            "comparison": None if self.comparison is None else self.comparison.to_json(),
            "session_creation_comparison": (
                None if self.creation_comparison is None else self.creation_comparison.to_json()
            ),
        }
        if samples:
            document["launches"] = [record_to_json(record) for record in self.records]
        return document


def record_to_json(record: ProcessRecord) -> dict[str, Any]:
    """Everything that one process measured, as plain data."""
    return {
        "session_creation_s": record.creation_s,
        "first_run_s": record.first_run_s,
        "steady": record.steady,
        "runs_per_sample": record.group,
        "peak_memory_bytes": record.peak_bytes,
        "rounds_ns": [list(block) for block in record.blocks],
    }


@dataclass(frozen=True)
class SettingResult:
    """Every model in one setting.

    Attributes:
        setting: how they ran.
        feeds: the inputs that they took.
        candidates: one for each model, in the order given.
        control: the second process of the first model against its first, None if there was none; the true
            ratio is 1.
        control_records: of the control in each launch.
        launches: how many there were.
        seconds: how long they took.
        pause_s: how much of that went into waiting for threads to stop.
        warnings: what makes these figures less certain, and what to do.
    """

    setting: Setting
    feeds: tuple[Feed, ...]
    candidates: tuple[CandidateResult, ...]
    control: Interval | None
    control_records: tuple[ProcessRecord, ...]
    launches: int
    seconds: float
    pause_s: float
    warnings: tuple[str, ...]

    def to_json(self, *, samples: bool = False) -> dict[str, Any]:
        """The setting as plain data, with every raw sample if asked."""
        document: dict[str, Any] = {
            "setting": self.setting.to_json(),
            "inputs": [{"name": feed.name, "dtype": feed.dtype, "shape": list(feed.shape)} for feed in self.feeds],
            "candidates": [candidate.to_json(samples=samples) for candidate in self.candidates],
            "control_ratio": None if self.control is None else self.control.to_json(),
            "launches": self.launches,
            "seconds": self.seconds,
            "pause_s": self.pause_s,
            "warnings": list(self.warnings),
        }
        if samples:
            document["control_launches"] = [record_to_json(record) for record in self.control_records]
        return document


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark found.

    Attributes:
        subjects: the models, in the order given; the first is the baseline.
        options: how they were measured.
        context: where.
        settings: one for each cell of the matrix.
        warnings: what makes all figures less certain, and what to do; each setting has its own besides.
    """

    subjects: tuple[Subject, ...]
    options: BenchmarkOptions
    context: Context
    settings: tuple[SettingResult, ...]
    warnings: tuple[str, ...]

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """Every warning; that of a setting is led by the setting's label where there are several."""
        several = len(self.settings) > 1
        return self.warnings + tuple(
            f"{cell.setting.label()}: {warning}" if several else warning
            for cell in self.settings
            for warning in cell.warnings
        )

    def sentences(self) -> tuple[str, ...]:
        """The answer in words: one sentence for each comparison."""
        several = len(self.settings) > 1
        return tuple(
            (f"{cell.setting.label()}: " if several else "")
            + sentence(candidate.label, self.subjects[0].label, candidate.comparison)
            for cell in self.settings
            for candidate in cell.candidates
            if candidate.comparison is not None
        )

    def slower_than(self, percent: float) -> tuple[str, ...]:
        """A sentence for each comparison that shows a slowdown of more than ``percent``.

        Shown means that the whole interval lies beyond it, so that noise alone does not fail a build.
        """
        return self._slowdowns(percent, shown=True)

    def maybe_slower_than(self, percent: float) -> tuple[str, ...]:
        """A sentence for each comparison that neither shows nor excludes a slowdown of over ``percent``."""
        return self._slowdowns(percent, shown=False)

    def _slowdowns(self, percent: float, *, shown: bool) -> tuple[str, ...]:
        limit = 1 + percent / 100
        several = len(self.settings) > 1
        found = []
        for cell in self.settings:
            for candidate in cell.candidates:
                if candidate.comparison is None:
                    continue
                ratio = candidate.comparison.latency_ratio
                if ratio.high <= limit or (ratio.low > limit) != shown:
                    continue
                where = f"{cell.setting.label()}: " if several else ""
                verb = "is slower" if shown else "may be slower"
                found.append(
                    f"{where}{candidate.label} {verb} than {self.subjects[0].label} by more than "
                    f"{percent:g} % (95 % interval {_percent(ratio.low)} to {_percent(ratio.high)})"
                )
        return tuple(found)

    def to_json(self, *, samples: bool = False) -> dict[str, Any]:
        """The result as plain data; times in seconds, except raw samples, which are whole ns a run.

        Args:
            samples: include every raw sample, by launch and round.
        """
        return {
            "schema": SCHEMA,
            "models": [subject.to_json() for subject in self.subjects],
            "options": self.options.to_json(),
            "context": self.context.to_json(),
            "answers": list(self.sentences()),
            "settings": [cell.to_json(samples=samples) for cell in self.settings],
            "warnings": list(self.warnings),
        }


def sentence(label: str, baseline: str, comparison: Comparison) -> str:
    """A comparison in words."""
    match comparison.verdict:
        case Verdict.FASTER:
            low, ratio, high = _digits(comparison.speedup)
            return f"{label} is {ratio}x faster than {baseline} (95 % interval {low} to {high})"
        case Verdict.SLOWER:
            low, ratio, high = _digits(comparison.latency_ratio)
            return f"{label} is {ratio}x slower than {baseline} (95 % interval {low} to {high})"
        case _:
            low, _, high = _digits(comparison.speedup)
            return f"no difference shown between {label} and {baseline} (95 % interval of the speed-up {low} to {high})"


def _digits(interval: Interval) -> tuple[str, str, str]:
    """Low, estimate and high with two decimals, or three where two would hide the width or which side of 1."""
    values = (interval.low, interval.estimate, interval.high)
    hides = any(round(value, 2) == 1 and value != 1 for value in (interval.low, interval.high))
    decimals = 3 if hides or interval.high - interval.low < 0.02 else 2
    low, estimate, high = (f"{value:.{decimals}f}" for value in values)
    return low, estimate, high


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"
