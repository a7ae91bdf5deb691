"""A result as the text of a file: JSON with every sample, CSV, Markdown, HTML."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bnfold.benchmarking.results import BenchmarkResult, Spread
from bnfold.benchmarking.statistics import Interval
from bnfold.benchmarking.tables import Table, context_sentence, notes, tables
from bnfold.errors import OutputError
from bnfold.extras import require
from bnfold.files import StrPath, check_output_file, write_text

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
        for table in tables(group):
            yield ""
            yield from _markdown_table(table)
        for note in notes(group):
            yield ""
            yield _escape(note)
    if result.all_warnings:
        yield ""
        yield from (f"- Warning: {_escape(warning)}." for warning in result.all_warnings)
    yield ""
    yield _escape(context_sentence(result))


def _markdown_table(table: Table) -> Iterator[str]:
    if table.title:
        yield f"### {_escape(table.title)}"
        yield ""
    yield "| " + " | ".join(table.columns) + " |"
    yield "|" + "|".join("---:" if column in table.right else "---" for column in table.columns) + "|"
    yield from ("| " + " | ".join(_escape(cell) for cell in row) + " |" for row in table.rows)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


def as_html(result: BenchmarkResult) -> str:
    """A page that a person opens in a browser: plots inline, nothing loaded from elsewhere.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    from bnfold.reporting.benchmark_page import benchmark_page  # only who wants a page needs what makes it

    return benchmark_page(result)


#: What each suffix of an output file stands for.
FORMATS: Mapping[str, Callable[[BenchmarkResult], str]] = {
    ".json": as_json,
    ".csv": as_csv,
    ".md": as_markdown,
    ".html": as_html,
}


def check_report(path: StrPath) -> None:
    """Find out before a long measurement whether its report can be written.

    Raises:
        OutputError: the suffix is unknown or no file can be created there.
        MissingExtraError: a package that the format needs is not installed.
    """
    _format_of(path)
    check_output_file(path)
    if Path(path).suffix.lower() == ".html":
        require("jinja2", "plot")
        require("matplotlib", "plot")


def write_report(result: BenchmarkResult, path: StrPath) -> None:
    """Write the result in the format that the path's suffix names, a key of :data:`FORMATS`.

    Raises:
        OutputError: the suffix is unknown or the file cannot be written.
    """
    write_text(path, _format_of(path)(result))


def _format_of(path: StrPath) -> Callable[[BenchmarkResult], str]:
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise OutputError(f"{path}: unknown suffix {suffix!r}; use one of {', '.join(FORMATS)}")
    return FORMATS[suffix]
