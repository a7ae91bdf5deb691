"""bnfold: fold batch norms out of ONNX models, prove the result, measure what it gained, deploy it.

Importing this package is light: each name below is imported from its module when it is first used, so that
neither torch nor onnxruntime is loaded before it is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.benchmarking import BenchmarkOptions as BenchmarkOptions
    from bnfold.benchmarking import BenchmarkResult as BenchmarkResult
    from bnfold.benchmarking import benchmark as benchmark
    from bnfold.errors import BnfoldError as BnfoldError
    from bnfold.exporter import ExportOptions as ExportOptions
    from bnfold.exporter import ExportResult as ExportResult
    from bnfold.exporter import export as export
    from bnfold.training import TrainOptions as TrainOptions
    from bnfold.training import TrainResult as TrainResult
    from bnfold.training import train as train
    from bnfold.verification import VerifyOptions as VerifyOptions
    from bnfold.verification import VerifyResult as VerifyResult
    from bnfold.verification import verify as verify

_HOME = {
    "BenchmarkOptions": "bnfold.benchmarking",
    "BenchmarkResult": "bnfold.benchmarking",
    "BnfoldError": "bnfold.errors",
    "ExportOptions": "bnfold.exporter",
    "ExportResult": "bnfold.exporter",
    "TrainOptions": "bnfold.training",
    "TrainResult": "bnfold.training",
    "VerifyOptions": "bnfold.verification",
    "VerifyResult": "bnfold.verification",
    "benchmark": "bnfold.benchmarking",
    "export": "bnfold.exporter",
    "train": "bnfold.training",
    "verify": "bnfold.verification",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
