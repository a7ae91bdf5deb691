"""The page of a benchmark: the answer, latency distributions, ratio intervals, profiles, and where it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnfold.benchmarking.results import BenchmarkResult, CandidateResult, GroupResult
from bnfold.benchmarking.statistics import Comparison, Verdict
from bnfold.benchmarking.tables import Table, notes, size, tables
from bnfold.reporting import plots
from bnfold.reporting.html import render

#: More distributions than this in one plot hide each other.
_MOST_HISTOGRAMS = 3

#: So many op types have a bar; the rest changes less.
_MOST_OPS = 12


class _Answer(NamedTuple):
    text: str
    kind: str


@dataclass(frozen=True)
class _Section:
    """One group on the page."""

    title: str
    plots: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def benchmark_page(result: BenchmarkResult) -> str:
    """The text of a self-contained HTML file.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    return render(
        "benchmark.html.jinja",
        title=_title(result),
        answers=list(_answers(result)),
        warnings=[_sentence(warning) for warning in result.warnings],
        overview=_overview(result),
        groups=[_section(group) for group in result.groups],
        facts=list(_facts(result)),
        models=_models(result),
    )


def _title(result: BenchmarkResult) -> str:
    first, *others = (subject.label for subject in result.subjects)
    return f"Benchmark: {', '.join(others)} against {first}" if others else f"Benchmark of {first}"


_KINDS = {Verdict.FASTER: "faster", Verdict.SLOWER: "slower", Verdict.NO_DIFFERENCE: "none"}


def _answers(result: BenchmarkResult) -> Iterator[_Answer]:
    for text, comparison in zip(result.sentences(), result.comparisons(), strict=True):
        yield _Answer(text, _KINDS[comparison.verdict])


def _overview(result: BenchmarkResult) -> str | None:
    """The speed-ups of all groups in one plot; None where there is one group, which has a plot of its own."""
    rows = [
        row
        for group in result.groups
        for row in _speedups({f"{group.group.title}: {c.label}": c.comparison for c in group.candidates})
    ]
    return plots.ratio_intervals(rows, "the first of each group") if len(result.groups) > 1 and rows else None


def _section(group: GroupResult) -> _Section:
    return _Section(
        title=group.group.title,
        plots=tuple(_plots(group)),
        tables=tuple(tables(group)),
        notes=tuple(notes(group)),
        warnings=tuple(_sentence(warning) for warning in group.warnings),
    )


def _sentence(text: str) -> str:
    """A clause as a sentence of its own; the name of a file stays as it is."""
    starts_with_name = "." in text.partition(" ")[0]
    return f"{text if starts_with_name else text[:1].upper() + text[1:]}."


def _plots(group: GroupResult) -> Iterator[tuple[str, str]]:
    samples = {candidate.label: _milliseconds(candidate) for candidate in group.candidates}
    draw = plots.latency_distributions if len(samples) <= _MOST_HISTOGRAMS else plots.latency_ranges
    yield "Latency", draw(samples)
    first = group.candidates[0].label
    for what, comparisons in (
        ("Speed-up", {c.label: c.comparison for c in group.candidates}),
        ("Speed-up of session creation", {c.label: c.creation_comparison for c in group.candidates}),
    ):
        rows = list(_speedups(comparisons))
        if rows:
            yield what, plots.ratio_intervals(rows, first)
    if group.profile is not None:
        for comparison in group.profile.comparisons:
            bars = [(row.op, row.before * 1e6, row.after * 1e6) for row in comparison.ops[:_MOST_OPS]]
            yield f"Time by op, {comparison.label}", plots.op_times(bars)


def _milliseconds(candidate: CandidateResult) -> NDArray[np.float64]:
    blocks = [np.asarray(block) for record in candidate.records for block in record.rounds]
    return np.concatenate(blocks).astype(np.float64) / 1e6


def _speedups(comparisons: Mapping[str, Comparison | None]) -> Iterator[tuple[str, float, float, float]]:
    for label, comparison in comparisons.items():
        if comparison is not None:
            speedup = comparison.speedup
            yield label, speedup.low, speedup.estimate, speedup.high


def _facts(result: BenchmarkResult) -> Iterator[tuple[str, str]]:
    context, options = result.context, result.options
    yield "processor", f"{context.cpu}; {len(context.affinity)} of {context.cores} cores"
    if context.memory_bytes is not None:
        yield "memory", size(context.memory_bytes)
    yield "frequency governor", context.governor or "not told"
    if context.load is not None:
        yield "load average before", ", ".join(f"{value:.2f}" for value in context.load)
    if context.disturbance is not None:
        yield "others kept busy meanwhile", f"{context.disturbance.others:.2f} cores"
    yield from (("GPU", gpu) for gpu in context.gpus)
    yield "when", context.time
    yield "system", f"{context.system}, Python {context.python}"
    yield "versions", f"onnxruntime {context.onnxruntime}, bnfold {context.bnfold}"
    launches = ", ".join(str(group.launches) for group in result.groups)
    yield "launches", launches
    yield "time", f"{sum(group.seconds for group in result.groups):.0f} s"
    yield "seed", str(options.seed)


def _models(result: BenchmarkResult) -> Table:
    columns = ("model", "file", "nodes", "SHA-256")
    rows = tuple((s.label, size(s.size), str(s.nodes), s.sha256) for s in result.subjects)
    return Table("", columns, rows, columns[1:3])
