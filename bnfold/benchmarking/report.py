"""A result as the text of a file: JSON with every sample, CSV, Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bnfold.benchmarking.results import BenchmarkResult, CandidateResult, GroupResult, Spread
from bnfold.benchmarking.scenario import Kind
from bnfold.benchmarking.statistics import Interval, Verdict
from bnfold.errors import OutputError
from bnfold.files import StrPath, write_text

Row = dict[str, object]


def as_json(result: BenchmarkResult) -> str:
    """The result with every raw sample, as compact JSON."""
    return json.dumps(result.to_json(samples=True), allow_nan=False, separators=(",", ":")) + "\n"


def as_csv(result: BenchmarkResult) -> str:
    """One line for each candidate of each group; times in seconds."""
    rows = list(_csv_rows(result))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _csv_rows(result: BenchmarkResult) -> Iterator[Row]:
    for group in result.groups:
        for candidate in group.candidates:
            setting, subject = candidate.candidate.setting, candidate.candidate.subject
            comparison = candidate.comparison
            yield {
                "model": subject.label,
                **setting.to_json(),
                "scenario": setting.scenario.kind.value,
                "streams": setting.scenario.streams,
                "rate_per_s": "" if setting.scenario.rate is None else setting.scenario.rate,
                **{
                    f"p{percent:g}_s{end}": value
                    for percent, interval in candidate.latency.items()
                    for end, value in _ends(interval).items()
                },
                "mean_s": candidate.mean_s,
                "throughput_per_s": "" if candidate.throughput is None else candidate.throughput,
                "utilisation": "" if candidate.utilisation is None else candidate.utilisation,
                "samples": candidate.samples,
                "baseline": "" if comparison is None else group.candidates[0].label,
                **{
                    f"speedup{end}": value
                    for end, value in _ends(None if comparison is None else comparison.speedup).items()
                },
                "verdict": "" if comparison is None else comparison.verdict.value,
                **{f"session_creation_s{end}": value for end, value in _spread_ends(candidate.creation).items()},
                **{f"first_run_s{end}": value for end, value in _spread_ends(candidate.first_run).items()},
                "peak_memory_bytes": candidate.peak_bytes,
                "idle_memory_bytes": candidate.idle_bytes,
                "size_bytes": subject.size,
                "nodes": subject.nodes,
                "sha256": subject.sha256,
            }


def _ends(interval: Interval | None) -> dict[str, float | str]:
    """The columns of an interval, by what is appended to its name."""
    if interval is None:
        return {"": "", "_low": "", "_high": ""}
    return {"": interval.estimate, "_low": interval.low, "_high": interval.high}


def _spread_ends(spread: Spread) -> dict[str, float | str]:
    return {**_ends(spread.interval), "": spread.median}


def as_markdown(result: BenchmarkResult) -> str:
    """The answers, a table for each setting, the warnings, and where it was measured."""
    return "\n".join(_markdown(result)) + "\n"


def _markdown(result: BenchmarkResult) -> Iterator[str]:
    yield "# Benchmark"
    yield ""
    for answer in result.sentences():
        yield f"- **{_escape(answer)}**"
    for group in result.groups:
        yield ""
        yield f"## {_escape(group.group.title)}"
        yield ""
        yield from _markdown_table(latency_columns(group), latency_rows(group))
        yield ""
        yield from _markdown_table(FIGURE_COLUMNS, figure_rows(group))
        for note in notes(group):
            yield ""
            yield _escape(note)
    if result.all_warnings:
        yield ""
        yield from (f"- Warning: {_escape(warning)}." for warning in result.all_warnings)
    yield ""
    yield _escape(context_sentence(result))


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|---|" + "---:|" * (len(columns) - 1)
    yield from ("| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


#: The headings of :func:`figure_rows`.
FIGURE_COLUMNS = ("candidate", "session", "speed-up (95 %)", "first run", "peak memory", "file", "nodes")


def latency_columns(group: GroupResult) -> tuple[str, ...]:
    """The headings of :func:`latency_rows`."""
    busy = group.candidates[0].candidate.setting.scenario.kind is Kind.POISSON
    return ("candidate", "median", "p90", "p99", "busy" if busy else "infer/s", "speed-up (95 %)", "verdict")


def latency_rows(group: GroupResult) -> list[tuple[str, ...]]:
    """The steady state of each candidate, as text."""
    return [_latency_row(candidate) for candidate in group.candidates]


_SHORT = {
    Verdict.FASTER: "faster",
    Verdict.SLOWER: "slower",
    Verdict.NO_DIFFERENCE: "no difference",
}


def _latency_row(candidate: CandidateResult) -> tuple[str, ...]:
    median, p90, p99 = (candidate.latency[percent] for percent in (50.0, 90.0, 99.0))
    comparison = candidate.comparison
    return (
        candidate.label,
        "–" if median is None else _with_reach(median),
        "–" if p90 is None else duration(p90.estimate),
        "–" if p99 is None else duration(p99.estimate),
        _load(candidate),
        "–" if comparison is None else _speedup(comparison.speedup),
        "baseline" if comparison is None else _SHORT[comparison.verdict],
    )


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


def duration(seconds: float) -> str:
    """A time with three digits and its unit."""
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


#: What each suffix of an output file stands for.
FORMATS: Mapping[str, Callable[[BenchmarkResult], str]] = {
    ".json": as_json,
    ".csv": as_csv,
    ".md": as_markdown,
}


def write_report(result: BenchmarkResult, path: StrPath) -> None:
    """Write the result in the format that the path's suffix names, a key of :data:`FORMATS`.

    Raises:
        OutputError: the suffix is unknown or the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise OutputError(f"{path}: unknown suffix {suffix!r}; use one of {', '.join(FORMATS)}")
    write_text(path, FORMATS[suffix](result))
