"""Fill the report templates. Everything that comes from a model or a user is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.errors import InputError
from bnfold.extras import require
from bnfold.files import write_json, write_text
from bnfold.line_breaks import pieces
from bnfold.model_file import load_model
from bnfold.reporting import fold_page, glossary, plots
from bnfold.reporting.changes import compare
from bnfold.reporting.structure import inlined_like, size_of, structure_of

if TYPE_CHECKING:
    from bnfold.benchmarking import BenchmarkResult
    from bnfold.demonstration import DemoResult
    from bnfold.optimizer import OptimizeResult
    from bnfold.verification import VerifyResult
    from bnfold.verification.verdict import Run


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "plot")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sentence"] = _sentence
    environment.filters["breakable"] = _breakable
    environment.filters["zip"] = zip
    text: str = environment.get_template(template).render(**values)
    return text


def _sentence(text: str) -> str:
    """A clause as a sentence of its own."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _breakable(text: str) -> str:
    """Text whose long names may go on in the next line where their parts end, escaped."""
    markupsafe = require("markupsafe", "plot")
    markup: str = markupsafe.Markup("<wbr>").join(pieces(text))
    return markup


def write_fold_report(result: OptimizeResult, source: Path, path: Path, *, before: ir.Model | None = None) -> None:
    """Write the fate of each batch norm, with the graph before and after.

    Args:
        result: what :func:`bnfold.optimize` returned.
        source: the model that it was made from.
        path: ``.json`` for the plain report; anything else is HTML.
        before: the model that was in ``source``, needed where the result has taken its place.

    Raises:
        InputError: the result has taken the place of ``source``, and ``before`` is not given.
        ModelError: ``source`` cannot be loaded.
        OutputError: the file cannot be written.
        MissingExtraError: HTML was asked for, and jinja2 is not installed.
    """
    if path.suffix == ".json":
        write_json(path, result.to_json())
        return
    if before is None and result.path is not None and source.exists() and result.path.samefile(source):
        raise InputError(f"{source} holds the result by now; give the model that was in it as `before`")
    old = before if before is not None else load_model(source)
    old_size = None if before is not None else size_of(source, old)
    then = replace(structure_of(inlined_like(result.model, old)), size=old_size)
    now = replace(structure_of(result.model), size=size_of(result.path, ir.load(result.path)) if result.path else None)
    report = result.report
    graphs = fold_page.graphs(compare(then, now, report), report)
    rows = fold_page.op_rows(then, now)
    page = render(
        "folds.html.jinja",
        title=f"What bnfold did to {source.name}",
        source=source.name,
        output=result.path.name if result.path else None,
        report=report,
        verification=result.verification,
        page=fold_page,
        glossary=glossary,
        figures=list(fold_page.figures(report, then, now)),
        op_rows=rows,
        most_nodes=max((max(old, new) for _, old, new in rows), default=1),
        graphs=graphs,
        anchors={number: anchor for graph in graphs for number, anchor in graph.anchors.items()},
        errors=_error_rows(result.verification) if result.verification else [],
    )
    write_text(path, page)


def write_demo_report(result: DemoResult, path: Path) -> None:
    """Write the report of :func:`bnfold.demo`.

    Raises:
        OutputError: the file cannot be written.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    before, after = _op_counts(ir.load(result.original)), _op_counts(ir.load(result.optimized))
    page = render(
        "demo.html.jinja",
        title="bnfold demo",
        rows=fold_page.told(result.report),
        result=result,
        training_plot=plots.training_curve(result.training.history),
        op_plot=plots.op_counts(before, after),
        error_plot=_error_plot(result.verification),
        latency_plot=plots.latency_distributions(_latencies(result.benchmark)),
        ratio_plot=plots.ratio_intervals(_speedups(result.benchmark)),
    )
    write_text(path, page)


def _op_counts(model: ir.Model) -> Mapping[str, int]:
    return Counter(node.op_type for graph in model.graphs() for node in graph if node.op_type != "Constant")


#: The runs of a verification in the order of a reader's questions, and what to call them.
_RUNS: Mapping[Run, str] = {
    "original": "original in ONNX Runtime, optimizations off",
    "original_shipped": "original in ONNX Runtime, as shipped",
    "candidate_float64": "optimized in float64",
    "candidate_plain": "optimized in ONNX Runtime, optimizations off",
    "candidate_shipped": "optimized in ONNX Runtime, as shipped",
}


def _error_rows(verification: VerifyResult) -> list[tuple[str, float | None, float | None]]:
    """What was run, its largest error relative to the output's scale, and the bound that it was held to."""
    rows: list[tuple[str, float | None, float | None]] = []
    for output in verification.outputs:
        prefix = f"{output.name}: " if len(verification.outputs) > 1 else ""
        findings = {finding.run: finding for finding in output.judgement.findings}
        for run, name in _RUNS.items():
            finding = findings.get(run)
            bound = finding.bound / finding.scale if finding and finding.scale > 0 else None
            rows.append((prefix + name, output.relative(run), bound))
    return rows


def _error_plot(verification: VerifyResult) -> str | None:
    rows = _error_rows(verification)
    return plots.errors(rows) if any(error is not None for _, error, _ in rows) else None


def _latencies(benchmark: BenchmarkResult) -> Mapping[str, NDArray[np.float64]]:
    """Latencies of the first group in milliseconds."""
    return {
        candidate.label: np.concatenate([np.concatenate([np.asarray(b) for b in r.rounds]) for r in candidate.records])
        / 1e6
        for candidate in benchmark.groups[0].candidates
    }


def _speedups(benchmark: BenchmarkResult) -> list[tuple[str, float, float, float]]:
    rows = []
    for candidate in benchmark.groups[0].candidates:
        for what, comparison in (
            ("latency", candidate.comparison),
            ("session creation", candidate.creation_comparison),
        ):
            if comparison is not None:
                speedup = comparison.speedup
                rows.append((f"{candidate.label}: {what}", speedup.low, speedup.estimate, speedup.high))
    return rows
