"""A result as the text of a file: JSON with every sample, CSV, Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bnfold.benchmarking.results import BenchmarkResult, CandidateResult, SettingResult
from bnfold.benchmarking.statistics import Interval, Verdict
from bnfold.errors import OutputError
from bnfold.files import StrPath, write_text

Row = dict[str, object]


def as_json(result: BenchmarkResult) -> str:
    """The result with every raw sample, as compact JSON."""
    return json.dumps(result.to_json(samples=True), allow_nan=False, separators=(",", ":")) + "\n"


def as_csv(result: BenchmarkResult) -> str:
    """One line for each model in each setting; times in seconds."""
    rows = list(_csv_rows(result))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _csv_rows(result: BenchmarkResult) -> Iterator[Row]:
    for cell in result.settings:
        for subject, candidate in zip(result.subjects, cell.candidates, strict=True):
            comparison = candidate.comparison
            speedup = None if comparison is None else comparison.speedup
            yield {
                "model": candidate.label,
                **cell.setting.to_json(),
                **{f"p{percent:g}_s": _estimate(value) for percent, value in candidate.latency.items()},
                "mean_s": candidate.mean_s,
                "throughput_per_s": candidate.throughput,
                "samples": candidate.samples,
                "speedup": _estimate(speedup),
                "speedup_low": "" if speedup is None else speedup.low,
                "speedup_high": "" if speedup is None else speedup.high,
                "verdict": "" if comparison is None else comparison.verdict.value,
                "session_creation_s": candidate.creation.median,
                "first_run_s": candidate.first_run.median,
                "peak_memory_bytes": candidate.peak_bytes,
                "size_bytes": subject.size,
                "nodes": subject.nodes,
                "sha256": subject.sha256,
            }


def _estimate(interval: Interval | None) -> float | str:
    return "" if interval is None else interval.estimate


def as_markdown(result: BenchmarkResult) -> str:
    """The answers, a table for each setting, the warnings, and where it was measured."""
    return "\n".join(_markdown(result)) + "\n"


def _markdown(result: BenchmarkResult) -> Iterator[str]:
    yield "# Benchmark"
    yield ""
    for answer in result.sentences():
        yield f"- **{_escape(answer)}**"
    for cell in result.settings:
        yield ""
        yield f"## {cell.setting.label()}"
        yield ""
        yield from _markdown_table(LATENCY_COLUMNS, latency_rows(cell))
        yield ""
        yield from _markdown_table(FIGURE_COLUMNS, figure_rows(result, cell))
        if cell.control is not None:
            yield ""
            yield control_sentence(result, cell)
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


#: The headings of :func:`latency_rows`.
LATENCY_COLUMNS = ("model", "median", "p90", "p99", "speed-up (95 %)", "verdict")

#: The headings of :func:`figure_rows`.
FIGURE_COLUMNS = ("model", "infer/s", "session", "speed-up (95 %)", "first run", "peak memory", "file", "nodes")


def latency_rows(cell: SettingResult) -> list[tuple[str, ...]]:
    """The steady state of each candidate, as text."""
    return [_latency_row(candidate) for candidate in cell.candidates]


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
        "–" if comparison is None else _speedup(comparison.speedup),
        "baseline" if comparison is None else _SHORT[comparison.verdict],
    )


def figure_rows(result: BenchmarkResult, cell: SettingResult) -> list[tuple[str, ...]]:
    """What else there is to know of each candidate, as text."""
    return [
        (
            candidate.label,
            _rate(candidate.throughput),
            duration(candidate.creation.median),
            "–" if candidate.creation_comparison is None else _speedup(candidate.creation_comparison.speedup),
            duration(candidate.first_run.median),
            size(candidate.peak_bytes),
            size(subject.size),
            str(subject.nodes),
        )
        for subject, candidate in zip(result.subjects, cell.candidates, strict=True)
    ]


def _rate(value: float) -> str:
    return _three_digits(value) if value < 1000 else f"{value:,.0f}"


def _with_reach(interval: Interval) -> str:
    return f"{duration(interval.estimate)} ±{100 * (interval.high / interval.estimate - 1):.1f} %"


def _speedup(interval: Interval) -> str:
    if interval.high > 10 * interval.low:
        return f"{interval.estimate:.2f}x (too wide)"
    return f"{interval.estimate:.2f}x ({interval.low:.2f}–{interval.high:.2f})"


def control_sentence(result: BenchmarkResult, cell: SettingResult) -> str:
    """How far two processes of the first model differed, or an empty text if there was one only."""
    if cell.control is None:
        return ""
    difference = 100 * abs(cell.control.estimate - 1)
    return (
        f"Control: two processes of {result.subjects[0].label} differed by {difference:.1f} % on average "
        f"over {cell.launches} launches."
    )


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
