"""What people read of a result, as text: the same on a terminal, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bnfold.benchmarking.attribution import FoldTime
from bnfold.benchmarking.profiles import GroupProfile, ProfileComparison
from bnfold.benchmarking.results import BenchmarkResult, CandidateResult, GroupResult, Spread, sentence
from bnfold.benchmarking.scenario import Kind
from bnfold.benchmarking.statistics import Interval, Verdict

#: Of a profile so many folds are listed where space is short; a report in a file has all of them.
_FOLDS_SHOWN = 12


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        title: what it shows; empty where its group's title says it.
        columns: the headings.
        rows: the cells.
        right: headings of the columns to align right.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[str, ...]


def tables(group: GroupResult, *, short: bool = False) -> Iterator[Table]:
    """The tables of a group.

    Args:
        group: what was found.
        short: leave out what is of little weight.
    """
    yield _latency_table(group, short)
    yield Table("", FIGURE_COLUMNS, tuple(figure_rows(group)), FIGURE_COLUMNS[1:])
    if group.profile is not None:
        yield from _profile_tables(group.profile, group.candidates[0].label, short)


def _profile_tables(profile: GroupProfile, first: str, short: bool) -> Iterator[Table]:
    columns: tuple[str, ...]
    if not profile.comparisons:
        columns = ("op", "nodes", "time")
        yield Table(f"Where {first} spends its time", columns, tuple(_single_rows(profile)), columns[1:])
    for comparison in profile.comparisons:
        columns = ("op", "nodes", "before", "after", "gained")
        title = f"Where the time goes, from {first} to {comparison.label}"
        yield Table(title, columns, tuple(_op_rows(comparison)), columns[1:])
        if comparison.folds:
            columns = ("folded", "into", "before", "after", "gained")
            rows = tuple(_fold_rows(comparison, _FOLDS_SHOWN if short else len(comparison.folds)))
            yield Table(f"Which fold paid, from {first} to {comparison.label}", columns, rows, columns[2:])


def _single_rows(profile: GroupProfile) -> Iterator[tuple[str, ...]]:
    (only,) = profile.profiles
    for row in only.ops():
        yield row.op, str(row.kernels_before), duration(row.before)
    yield "all", str(len(only.kernels)), duration(only.seconds)


def _op_rows(comparison: ProfileComparison) -> Iterator[tuple[str, ...]]:
    for row in comparison.ops:
        yield row.op, _change(row.kernels_before, row.kernels_after), *_gain(row.before, row.after)
    before, after = (sum(getattr(row, name) for row in comparison.ops) for name in ("kernels_before", "kernels_after"))
    yield "all", _change(before, after), *_gain(comparison.before, comparison.after)


def _change(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} → {after}"


def _gain(before: float, after: float) -> tuple[str, str, str]:
    return duration(before), duration(after), signed(before - after)


def _fold_rows(comparison: ProfileComparison, shown: int) -> Iterator[tuple[str, ...]]:
    # One row more than is shown would say as much as the row that stands for what is left out.
    shown = len(comparison.folds) if len(comparison.folds) <= shown + 1 else shown
    for row in comparison.folds[:shown]:
        yield _names(_what(row)), _names(row.into), *_gain(row.before, row.after)
    rest = comparison.folds[shown:]
    if rest:
        what = f"{len(rest)} more"
        yield what, "", *_gain(sum(row.before for row in rest), sum(row.after for row in rest))
    before, after = (sum(getattr(row, name) for row in comparison.folds) for name in ("before", "after"))
    yield "all folds", "", *_gain(before, after)
    yield "everything else", "", *_gain(comparison.before - before, comparison.after - after)


def _what(row: FoldTime) -> tuple[str, ...]:
    return row.folds or ("(merged ops)",)


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


#: The headings of :func:`figure_rows`.
FIGURE_COLUMNS = ("candidate", "session", "speed-up (95 %)", "first run", "peak memory", "file", "nodes")


def _latency_table(group: GroupResult, short: bool) -> Table:
    """The steady state of each candidate; with intervals and the 99.9th percentile where there is space."""
    percents = (50.0, 90.0, 99.0) if short else (50.0, 90.0, 99.0, 99.9)
    told = [p for p in percents if p == 50 or any(c.latency[p] is not None for c in group.candidates)]
    is_poisson = group.candidates[0].candidate.setting.scenario.kind is Kind.POISSON
    names = tuple("median" if percent == 50 else f"p{percent:g}" for percent in told)
    columns = ("candidate", *names, "busy" if is_poisson else "infer/s", "speed-up (95 %)", "verdict")
    rows = tuple(_latency_row(candidate, told, short) for candidate in group.candidates)
    return Table("", columns, rows, columns[1:-1])


_SHORT = {
    Verdict.FASTER: "faster",
    Verdict.SLOWER: "slower",
    Verdict.NO_DIFFERENCE: "no difference",
}


def _latency_row(candidate: CandidateResult, percents: Sequence[float], short: bool) -> tuple[str, ...]:
    comparison = candidate.comparison
    return (
        candidate.label,
        *(_percentile(candidate.latency[percent], bare=short and percent != 50) for percent in percents),
        _load(candidate),
        "–" if comparison is None else _speedup(comparison.speedup),
        "baseline" if comparison is None else _SHORT[comparison.verdict],
    )


def _percentile(interval: Interval | None, *, bare: bool) -> str:
    if interval is None:
        return "–"
    return duration(interval.estimate) if bare else _with_reach(interval)


def _load(candidate: CandidateResult) -> str:
    if candidate.throughput is not None:
        return _rate(candidate.throughput)
    return "–" if candidate.utilisation is None else f"{100 * candidate.utilisation:.0f} %"


def figure_rows(group: GroupResult) -> list[tuple[str, ...]]:
    """What else there is to know of each candidate, as text."""
    return [
        (
            candidate.label,
            _spread(candidate.creation),
            "–" if candidate.creation_comparison is None else _speedup(candidate.creation_comparison.speedup),
            _spread(candidate.first_run),
            size(candidate.peak_bytes),
            size(candidate.candidate.subject.size),
            str(candidate.candidate.subject.nodes),
        )
        for candidate in group.candidates
    ]


def _spread(spread: Spread) -> str:
    """The median of some starts, and how far its interval reaches."""
    if spread.interval is None:
        return duration(spread.median)
    return _with_reach(spread.interval)


def notes(group: GroupResult) -> Iterator[str]:
    """Sentences that belong below the tables of a group."""
    first = group.candidates[0]
    if group.control is not None:
        difference = 100 * abs(group.control.estimate - 1)
        yield (
            f"Control: two processes of {first.label} differed by {difference:.1f} % on average "
            f"over {group.launches} launches."
        )
    for candidate in group.candidates:
        started = candidate.creation_comparison
        if started is not None and started.verdict is not Verdict.NO_DIFFERENCE:
            yield f"Session creation: {sentence(candidate.label, first.label, started)}."
    if first.candidate.setting.scenario.kind is Kind.OFFLINE:
        yield "Offline: the median is the time to empty a queue, divided by its length; single runs take longer."
    elif first.candidate.setting.scenario.kind is Kind.POISSON:
        yield "Poisson arrivals: the latency counts from the scheduled arrival, the wait for earlier ones included."
    elif any(candidate.runs_per_sample > 1 for candidate in group.candidates):
        runs = max(candidate.runs_per_sample for candidate in group.candidates)
        yield f"Runs this short are timed {runs} at a time, of which only the median is told."


def _rate(value: float) -> str:
    return _three_digits(value) if value < 1000 else f"{value:,.0f}"


def _with_reach(interval: Interval) -> str:
    if interval.high > 10 * interval.low:
        return f"{duration(interval.estimate)} (too wide)"
    reach = max(interval.high / interval.estimate, interval.estimate / interval.low) - 1
    return f"{duration(interval.estimate)} ±{100 * reach:.{1 if reach < 0.095 else 0}f} %"


def _speedup(interval: Interval) -> str:
    if interval.high > 10 * interval.low:
        return f"{interval.estimate:.2f}x (too wide)"
    return f"{interval.estimate:.2f}x ({interval.low:.2f}–{interval.high:.2f})"


def context_sentence(result: BenchmarkResult) -> str:
    """Where and with what it was measured."""
    context = result.context
    return (
        f"{context.cpu}, {len(context.affinity)} of {context.cores} cores; onnxruntime "
        f"{context.onnxruntime}, bnfold {context.bnfold}, Python {context.python}; seed "
        f"{result.options.seed}."
    )


def signed(seconds: float) -> str:
    """A difference of times with its sign."""
    text = duration(abs(seconds))
    return text if text == "0" else f"{'+' if seconds > 0 else '−'}{text}"


def duration(seconds: float) -> str:
    """A time with three digits and its unit."""
    if seconds < 0.5e-12:  # what subtraction leaves of nothing
        return "0"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{_three_digits(seconds / scale)} {unit}"
    return f"{_three_digits(seconds * 1e9)} ns"


def size(count: int) -> str:
    """A number of bytes with three digits and its unit."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{_three_digits(value)} {unit}"
        value /= 1024
    return f"{_three_digits(value)} GiB"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
