"""Put a model to work: run it over data."""

from __future__ import annotations

from bnfold.deployment.options import PredictOptions
from bnfold.deployment.prediction import PredictResult, predict

__all__ = ["PredictOptions", "PredictResult", "predict"]
