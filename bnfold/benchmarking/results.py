"""What a benchmark found, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bnfold.benchmarking.candidates import Candidate, Group
from bnfold.benchmarking.context import Context
from bnfold.benchmarking.launches import ProcessRecord
from bnfold.benchmarking.options import BenchmarkOptions, Compare
from bnfold.benchmarking.profiles import GroupProfile
from bnfold.benchmarking.statistics import Comparison, Interval, Verdict
from bnfold.benchmarking.subjects import Subject

#: The version of the JSON document.
SCHEMA = 2


@dataclass(frozen=True)
class Spread:
    """A figure that each start measures once, in seconds.

    Attributes:
        median: of all starts.
        least: of all starts.
        greatest: of all starts.
        count: how many starts there were.
        interval: of the median; None for fewer than six starts.
    """

    median: float
    least: float
    greatest: float
    count: int
    interval: Interval | None

    def to_json(self) -> dict[str, Any]:
        """The spread as plain data."""
        return {
            "median": self.median,
            "min": self.least,
            "max": self.greatest,
            "starts": self.count,
            "interval": None if self.interval is None else self.interval.to_json(),
        }


@dataclass(frozen=True)
class CandidateResult:
    """One candidate: a model in a setting.

    Attributes:
        candidate: the model and the setting.
        latency: its percentiles in seconds, by percent (50, 90, 99, 99.9); None where there are too few samples,
            or where samples are averages of which only the median is told. In the offline scenario it is the time
            to empty a queue divided by its length, in the Poisson scenario it counts from the scheduled arrival.
        mean_s: mean latency in seconds.
        throughput: inferences (items of a batch) a second; None in the Poisson scenario, where it is given.
        utilisation: in the Poisson scenario, the share of the time spent answering; else None.
        samples: how many.
        runs_per_sample: the most runs that one sample is an average over.
        creation: of the session, in a process that has only imported onnxruntime.
        first_run: of the session's first run.
        peak_bytes: the median over launches of the most memory that the process held, interpreter included.
        idle_bytes: the same before the session was created.
        comparison: of the latency with the first candidate's; None for the first.
        creation_comparison: of the session's creation with the first candidate's; None for the first.
        records: of its process in each launch.
        cold_records: of its process in each cold start beside them.
    """

    candidate: Candidate
    latency: Mapping[float, Interval | None]
    mean_s: float
    throughput: float | None
    utilisation: float | None
    samples: int
    runs_per_sample: int
    creation: Spread
    first_run: Spread
    peak_bytes: int
    idle_bytes: int
    comparison: Comparison | None
    creation_comparison: Comparison | None
    records: tuple[ProcessRecord, ...]
    cold_records: tuple[ProcessRecord, ...]

    @property
    def label(self) -> str:
        """What tells it from the others of its group."""
        return self.candidate.label

    def to_json(self, *, samples: bool = False) -> dict[str, Any]:
        """The candidate as plain data, with every raw sample if asked."""
        document: dict[str, Any] = {
            "label": self.label,
            "model": self.candidate.subject.label,
            "sha256": self.candidate.subject.sha256,
            "setting": self.candidate.setting.to_json(),
            "latency_s": {
                f"p{percent:g}": None if value is None else value.to_json() for percent, value in self.latency.items()
            },
            "mean_s": self.mean_s,
            "throughput_per_s": self.throughput,
            "utilisation": self.utilisation,
            "samples": self.samples,
            "runs_per_sample": self.runs_per_sample,
            "session_creation_s": self.creation.to_json(),
            "first_run_s": self.first_run.to_json(),
            "peak_memory_bytes": self.peak_bytes,
            "idle_memory_bytes": self.idle_bytes,
            "comparison": None if self.comparison is None else self.comparison.to_json(),
            "session_creation_comparison": (
                None if self.creation_comparison is None else self.creation_comparison.to_json()
            ),
        }
        if samples:
            document["launches"] = [record_to_json(record) for record in self.records]
            document["cold_starts"] = [record_to_json(record) for record in self.cold_records]
        return document


def record_to_json(record: ProcessRecord) -> dict[str, Any]:
    """Everything that one process measured, as plain data."""
    return {
        "session_creation_s": record.creation_s,
        "first_run_s": record.first_run_s,
        "steady": record.steady,
        "runs_per_sample": record.runs_per_sample,
        "idle_memory_bytes": record.idle_bytes,
        "peak_memory_bytes": record.peak_bytes,
        "busy_s": record.busy_s,
        "span_s": record.span_s,
        "rounds_ns": [list(block) for block in record.rounds],
    }


@dataclass(frozen=True)
class GroupResult:
    """Every candidate of a group.

    Attributes:
        group: who competed, with which inputs.
        candidates: one for each candidate, in the order given.
        control: the second process of the first candidate against its first, None if there was none; the true
            ratio is 1.
        control_records: of the control in each launch.
        control_cold_records: of the control in each cold start.
        launches: how many there were.
        seconds: how long they and the cold starts took.
        pause_s: how much of that went into waiting for threads to stop.
        profile: what each node took; None where it was not looked at.
        warnings: what makes these figures less certain, and what to do.
    """

    group: Group
    candidates: tuple[CandidateResult, ...]
    control: Interval | None
    control_records: tuple[ProcessRecord, ...]
    control_cold_records: tuple[ProcessRecord, ...]
    launches: int
    seconds: float
    pause_s: float
    profile: GroupProfile | None
    warnings: tuple[str, ...]

    def to_json(self, *, samples: bool = False) -> dict[str, Any]:
        """The group as plain data, with every raw sample if asked."""
        feeds = self.group.feeds
        document: dict[str, Any] = {
            "title": self.group.title,
            "compare": self.group.compare.value,
            "inputs": [{"name": feed.name, "dtype": feed.dtype, "shape": list(feed.shape)} for feed in feeds],
            "candidates": [candidate.to_json(samples=samples) for candidate in self.candidates],
            "control_ratio": None if self.control is None else self.control.to_json(),
            "launches": self.launches,
            "seconds": self.seconds,
            "pause_s": self.pause_s,
            "profile": None if self.profile is None else self.profile.to_json(),
            "warnings": list(self.warnings),
        }
        if samples:
            document["control_launches"] = [record_to_json(record) for record in self.control_records]
            document["control_cold_starts"] = [record_to_json(record) for record in self.control_cold_records]
        return document


@dataclass(frozen=True)
class EarlierComparison:
    """A candidate against itself in an earlier run.

    Attributes:
        label: the candidate, its setting included where that is what differs in its group.
        title: of its group.
        earlier: the file of the earlier run.
        yardstick: the model, the same in both runs, that it was measured against in both; None without one.
        same_file: whether the model's file is the same as then.
        comparison: below 1 is faster than then.
    """

    label: str
    title: str
    earlier: str
    yardstick: str | None
    same_file: bool
    comparison: Comparison

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain data."""
        return {
            "label": self.label,
            "title": self.title,
            "earlier": self.earlier,
            "yardstick": self.yardstick,
            "same_file": self.same_file,
            "comparison": self.comparison.to_json(),
        }


@dataclass(frozen=True)
class _Verdict:
    """A comparison, and what its sides are called in a sentence."""

    where: str
    label: str
    baseline: str
    comparison: Comparison


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark found.

    Attributes:
        subjects: the models, in the order given.
        options: how they were measured.
        context: where.
        groups: candidates that were compared with each other.
        earlier: what was compared with an earlier run; None where that was not asked for.
        warnings: what makes all figures less certain, and what to do; each group has its own besides.
    """

    subjects: tuple[Subject, ...]
    options: BenchmarkOptions
    context: Context
    groups: tuple[GroupResult, ...]
    earlier: tuple[EarlierComparison, ...] | None
    warnings: tuple[str, ...]

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """Every warning; that of a group is led by the group's title where there are several."""
        return self.warnings + tuple(
            self._where(group) + warning for group in self.groups for warning in group.warnings
        )

    def sentences(self) -> tuple[str, ...]:
        """The answer in words: one sentence for each comparison."""
        return tuple(
            verdict.where + sentence(verdict.label, verdict.baseline, verdict.comparison)
            for verdict in (*self._among_themselves(), *self._with_earlier())
        )

    def comparisons(self) -> tuple[Comparison, ...]:
        """The comparison of each of :meth:`sentences`."""
        return tuple(verdict.comparison for verdict in (*self._among_themselves(), *self._with_earlier()))

    def slower_than(self, percent: float) -> tuple[str, ...]:
        """A sentence for each comparison that shows a slowdown of more than ``percent``.

        Shown means that the whole interval lies beyond it, so that noise alone does not fail a build. Where an earlier
        run was given, only the comparisons with it count.
        """
        return self._slowdowns(percent, shown=True)

    def maybe_slower_than(self, percent: float) -> tuple[str, ...]:
        """A sentence for each comparison that neither shows nor excludes a slowdown of over ``percent``."""
        return self._slowdowns(percent, shown=False)

    def _slowdowns(self, percent: float, *, shown: bool) -> tuple[str, ...]:
        return tuple(
            verdict.where + slowdown(verdict.label, verdict.baseline, verdict.comparison.latency_ratio, percent)
            for verdict in (self._among_themselves() if self.earlier is None else self._with_earlier())
            if beyond(verdict.comparison.latency_ratio, percent) is shown
        )

    def _among_themselves(self) -> Iterator[_Verdict]:
        for group in self.groups:
            first = group.candidates[0].label
            for candidate in group.candidates:
                if candidate.comparison is None:
                    continue
                if group.group.compare is Compare.SETTINGS:
                    label, baseline = f"with {candidate.label} it", f"with {first}"
                else:
                    label, baseline = candidate.label, first
                yield _Verdict(self._where(group), label, baseline, candidate.comparison)

    def _with_earlier(self) -> Iterator[_Verdict]:
        for found in self.earlier or ():
            where = f"{found.title}: " if len(self.groups) > 1 else ""
            relative = f", relative to {found.yardstick}," if found.yardstick else ""
            yield _Verdict(where, found.label, f"in {found.earlier}{relative}", found.comparison)

    def _where(self, group: GroupResult) -> str:
        told = len(self.groups) > 1 or group.group.compare is Compare.SETTINGS
        return f"{group.group.title}: " if told else ""

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
            "groups": [group.to_json(samples=samples) for group in self.groups],
            "earlier": None if self.earlier is None else [found.to_json() for found in self.earlier],
            "warnings": list(self.warnings),
        }


def beyond(ratio: Interval, percent: float) -> bool | None:
    """Whether a latency ratio shows a slowdown of more than ``percent``; None if it excludes one."""
    limit = 1 + percent / 100
    return None if ratio.high <= limit else ratio.low > limit


def slowdown(label: str, baseline: str, ratio: Interval, percent: float) -> str:
    """A slowdown beyond a limit, or one that cannot be excluded, in words."""
    verb = "is slower" if beyond(ratio, percent) else "may be slower"
    interval = f"95 % interval {_percent(ratio.low)} to {_percent(ratio.high)}"
    return f"{label} {verb} than {baseline} by more than {percent:g} % ({interval})"


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
            return f"no difference shown: {label} ran {low} to {high} times as fast as {baseline} (95 % interval)"


def _digits(interval: Interval) -> tuple[str, str, str]:
    """Low, estimate and high with two decimals, or three where two would hide the width or which side of 1."""
    values = (interval.low, interval.estimate, interval.high)
    hides = any(round(value, 2) == 1 and value != 1 for value in (interval.low, interval.high))
    decimals = 3 if hides or interval.high - interval.low < 0.02 else 2
    low, estimate, high = (f"{value:.{decimals}f}" for value in values)
    return low, estimate, high


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"
