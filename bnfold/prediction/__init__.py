"""Put a model to work: run it over data."""

from __future__ import annotations

from bnfold.prediction.options import PredictOptions
from bnfold.prediction.run import PredictResult, predict

__all__ = ["PredictOptions", "PredictResult", "predict"]
