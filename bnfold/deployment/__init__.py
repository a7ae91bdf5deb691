"""Put a model to work: run it over data."""

from __future__ import annotations

from bnfold.deployment.prediction import PredictOptions, PredictResult, predict

__all__ = ["PredictOptions", "PredictResult", "predict"]
