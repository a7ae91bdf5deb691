"""What a recalibration found: how far each moving average was off, and what it did to the accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.recalibration.moments import Moments


@dataclass(frozen=True)
class Drift:
    """How far the running statistics of one batch norm were from those of the training set.

    Differences are as the batch norm feels them: the mean's in units of ``√(σ² + ε)`` of the training set, the
    variance's as a ratio of ``σ² + ε``.

    Attributes:
        name: of the batch norm.
        channels: number of channels.
        elements: elements of one channel that were seen.
        mean_rms: root mean square, over channels, of the running mean's error in standard deviations.
        mean_worst: the largest of these errors.
        var_lowest: the smallest ratio of running variance to that of the training set.
        var_highest: the largest.
    """

    name: str
    channels: int
    elements: int
    mean_rms: float
    mean_worst: float
    var_lowest: float
    var_highest: float

    @classmethod
    def between(
        cls, name: str, running_mean: NDArray[Any], running_var: NDArray[Any], population: Moments, eps: float
    ) -> Drift:
        """The drift of running statistics (C,) from those of a population."""
        floor = max(eps, float(np.finfo(np.float64).tiny))  # a constant channel without ε has no scale of its own
        scale = population.var + floor
        off = np.abs(running_mean.astype(np.float64) - population.mean) / np.sqrt(scale)
        ratio = (running_var.astype(np.float64) + floor) / scale
        return cls(
            name=name,
            channels=len(off),
            elements=population.count,
            mean_rms=float(np.sqrt(np.mean(off**2))),
            mean_worst=float(off.max()),
            var_lowest=float(ratio.min()),
            var_highest=float(ratio.max()),
        )


@dataclass(frozen=True)
class Left:
    """A batch norm that keeps its statistics.

    Attributes:
        name: of the batch norm.
        reason: why, as a clause.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Accuracy:
    """How good the network was and is on held-out samples, or on those that there are.

    Attributes:
        samples: number of labelled samples.
        before: share classified right with the moving averages, from 0 to 1.
        after: with the population statistics.
        loss_before: mean cross-entropy in nats likewise.
        loss_after: likewise.
        held_out: whether the samples are others than those of the statistics.
    """

    samples: int
    before: float
    after: float
    loss_before: float
    loss_after: float
    held_out: bool


@dataclass(frozen=True)
class RecalibrateResult:
    """A finished recalibration.

    Attributes:
        path: what was written: a run's folder, or an ONNX file.
        data: the data set.
        samples: training samples that were seen.
        skipped: training samples that did not fill a batch of a model with a fixed batch size.
        passes: passes over the samples.
        drifts: one for each batch norm that was recalibrated, in the order of the sweep.
        left: those that were not.
        accuracy: None where there are no labels that the network could be held against.
        notes: what the user should know of what was written, in sentences.
    """

    path: Path
    data: str
    samples: int
    skipped: int
    passes: int
    drifts: tuple[Drift, ...]
    left: tuple[Left, ...]
    accuracy: Accuracy | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result as a plain document."""
        return {
            "path": str(self.path),
            "data": self.data,
            "samples": self.samples,
            "skipped": self.skipped,
            "passes": self.passes,
            "batch_norms": [asdict(drift) for drift in self.drifts],
            "left": [asdict(left) for left in self.left],
            "accuracy": None if self.accuracy is None else asdict(self.accuracy),
            "notes": list(self.notes),
        }


def recalibration_record(data: str, samples: int, batch_norms: int) -> Mapping[str, Any]:
    """What a recalibrated file says of itself."""
    return {"data": data.partition(":")[0], "samples": samples, "batch_norms": batch_norms}
