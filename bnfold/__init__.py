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
    from bnfold.demonstration import DemoOptions as DemoOptions
    from bnfold.demonstration import DemoResult as DemoResult
    from bnfold.demonstration import demo as demo
    from bnfold.deployment.options import DeployOptions as DeployOptions
    from bnfold.deployment.publishing import roll_back as roll_back
    from bnfold.deployment.repository import DeployedModel as DeployedModel
    from bnfold.deployment.repository import read_repository as read_repository
    from bnfold.deployment.run import DeployResult as DeployResult
    from bnfold.deployment.run import deploy as deploy
    from bnfold.environment import Diagnosis as Diagnosis
    from bnfold.environment import doctor as doctor
    from bnfold.errors import BnfoldError as BnfoldError
    from bnfold.exporting import ExportOptions as ExportOptions
    from bnfold.exporting import ExportResult as ExportResult
    from bnfold.exporting import export as export
    from bnfold.fold.report import FoldReport as FoldReport
    from bnfold.optimizer import OptimizeOptions as OptimizeOptions
    from bnfold.optimizer import OptimizeResult as OptimizeResult
    from bnfold.optimizer import inspect as inspect
    from bnfold.optimizer import optimize as optimize
    from bnfold.prediction import PredictOptions as PredictOptions
    from bnfold.prediction import PredictResult as PredictResult
    from bnfold.prediction import predict as predict
    from bnfold.recalibration import RecalibrateOptions as RecalibrateOptions
    from bnfold.recalibration import RecalibrateResult as RecalibrateResult
    from bnfold.recalibration import recalibrate as recalibrate
    from bnfold.serving import ServeOptions as ServeOptions
    from bnfold.serving import serve as serve
    from bnfold.studies import StudyOptions as StudyOptions
    from bnfold.studies import StudyResult as StudyResult
    from bnfold.studies import study as study
    from bnfold.training import TrainOptions as TrainOptions
    from bnfold.training import TrainResult as TrainResult
    from bnfold.training import train as train
    from bnfold.verification import VerifyOptions as VerifyOptions
    from bnfold.verification import VerifyResult as VerifyResult
    from bnfold.verification import verify as verify

#: Each public name with the module that defines it.
_HOME = {
    "BenchmarkOptions": "bnfold.benchmarking",
    "BenchmarkResult": "bnfold.benchmarking",
    "BnfoldError": "bnfold.errors",
    "DeployOptions": "bnfold.deployment.options",
    "DeployResult": "bnfold.deployment.run",
    "DeployedModel": "bnfold.deployment.repository",
    "DemoOptions": "bnfold.demonstration",
    "DemoResult": "bnfold.demonstration",
    "Diagnosis": "bnfold.environment",
    "ExportOptions": "bnfold.exporting",
    "ExportResult": "bnfold.exporting",
    "FoldReport": "bnfold.fold.report",
    "OptimizeOptions": "bnfold.optimizer",
    "OptimizeResult": "bnfold.optimizer",
    "PredictOptions": "bnfold.prediction",
    "PredictResult": "bnfold.prediction",
    "RecalibrateOptions": "bnfold.recalibration",
    "RecalibrateResult": "bnfold.recalibration",
    "ServeOptions": "bnfold.serving",
    "StudyOptions": "bnfold.studies",
    "StudyResult": "bnfold.studies",
    "TrainOptions": "bnfold.training",
    "TrainResult": "bnfold.training",
    "VerifyOptions": "bnfold.verification",
    "VerifyResult": "bnfold.verification",
    "benchmark": "bnfold.benchmarking",
    "demo": "bnfold.demonstration",
    "deploy": "bnfold.deployment.run",
    "doctor": "bnfold.environment",
    "export": "bnfold.exporting",
    "inspect": "bnfold.optimizer",
    "optimize": "bnfold.optimizer",
    "predict": "bnfold.prediction",
    "read_repository": "bnfold.deployment.repository",
    "recalibrate": "bnfold.recalibration",
    "roll_back": "bnfold.deployment.publishing",
    "serve": "bnfold.serving",
    "study": "bnfold.studies",
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
