"""Compare the latency of models, and say how sure the answer is.

::

    options.py      what to measure: BenchmarkOptions, and Setting, one cell of the matrix
    scenario.py     how requests arrive
    subjects.py     a model file's size, hash, nodes and inputs
    candidates.py   a model in a setting; who competes with whom
    inputs.py       one set of inputs that every candidate takes
    schedule.py     who runs when, and how much (pure)
    steadiness.py   has the warm-up settled? (pure)
    worker.py       the process of one candidate
      runner.py       its session, plain or bound
      blocks.py       what it does in a block
      kernels.py      what ONNX Runtime's profile says of it
    process.py      that process as its parent sees it
    launches.py     one launch: fresh processes, cold sessions, warm-up, interleaved rounds
    profiling.py    the same for ONNX Runtime's profile
    placement.py    which node each of its kernels stands for (pure)
    attribution.py  which op takes what, and which fold paid (pure)
    profiles.py     that, for a group (pure)
    statistics.py   intervals and verdicts (pure)
    conclusions.py  from samples to figures and warnings (pure)
    context.py      the machine, and who else used it
    earlier.py      comparison with an earlier run
    results.py      what came out, as plain data
    tables.py       the same as people read it
    report.py       the same as CSV, Markdown and JSON files
    run.py          benchmark(): the above, put together

The names below are imported on first use: the worker lives in this package and has to start light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.benchmarking.options import BenchmarkOptions as BenchmarkOptions
    from bnfold.benchmarking.options import Compare as Compare
    from bnfold.benchmarking.options import Setting as Setting
    from bnfold.benchmarking.results import BenchmarkResult as BenchmarkResult
    from bnfold.benchmarking.run import benchmark as benchmark
    from bnfold.benchmarking.scenario import Kind as Kind
    from bnfold.benchmarking.scenario import Scenario as Scenario

_HOME = {
    "BenchmarkOptions": "bnfold.benchmarking.options",
    "BenchmarkResult": "bnfold.benchmarking.results",
    "Compare": "bnfold.benchmarking.options",
    "Kind": "bnfold.benchmarking.scenario",
    "Scenario": "bnfold.benchmarking.scenario",
    "Setting": "bnfold.benchmarking.options",
    "benchmark": "bnfold.benchmarking.run",
}

__all__ = ["BenchmarkOptions", "BenchmarkResult", "Compare", "Kind", "Scenario", "Setting", "benchmark"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
