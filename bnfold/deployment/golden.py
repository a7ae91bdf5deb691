"""What a deployed model computes on known inputs, so that any machine can tell whether it computes the same.

The file is a golden file of :mod:`bnfold.verification.golden`: the inputs, what float64 makes of them, and how far off
ONNX Runtime may be. ``bnfold verify --golden golden.npz model.onnx`` holds a machine against all of it;
:func:`golden_pairs` gives a server the ordinary inputs of it for a check of its own at start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.verification.golden import load_golden
from bnfold.verification.verdict import Rule, Run, bound_of, own_errors

Array = NDArray[Any]

_SHIPPED: Run = "candidate_shipped"


@dataclass(frozen=True)
class GoldenPair:
    """Inputs, and what they lead to.

    Attributes:
        feed: what the set of inputs is called.
        inputs: by name, in the model's own types; the first dimension is the batch where the model has one.
        outputs: by name, in float64 where they are numbers of floating point.
        bounds: by the output's name, the largest absolute difference that ONNX Runtime may show on the CPU. Another
            provider has an error of its own, which ``bnfold verify --golden`` takes into account.
    """

    feed: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    bounds: Mapping[str, float]

    def differences(self, got: Mapping[str, Array]) -> Iterator[str]:
        """What is wrong with outputs, each as a few words; nothing where they are as they should be."""
        for name, wanted in self.outputs.items():
            if name not in got:
                yield f"output {name} is missing"
                continue
            found = np.asarray(got[name])
            if found.shape != wanted.shape:
                yield f"output {name} has the shape {found.shape} in place of {wanted.shape}"
                continue
            with np.errstate(invalid="ignore", over="ignore"):
                difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
            same = (difference <= self.bounds[name]) | (found == wanted) | (np.isnan(found) & np.isnan(wanted))
            if not same.all():
                worst = float(np.nanmax(np.where(same, 0, difference), initial=0.0))
                yield f"output {name} is off by {worst:.3g}, and may be by {self.bounds[name]:.3g}"


def golden_pairs(path: Path) -> tuple[GoldenPair, ...]:
    """The ordinary random inputs of a golden file, with what the model makes of them.

    Raises:
        DataError: the file is missing, damaged, or no golden file.
    """
    measurement = load_golden(path).expectation.measurement
    rule = Rule()
    bounds: list[dict[str, float]] = [{} for _ in measurement.feeds]
    for name in measurement.types:
        observations = measurement.observations_of(name)
        for bound, observation, own in zip(bounds, observations, own_errors(observations, rule, _SHIPPED), strict=True):
            bound[name] = bound_of(observation, own, _SHIPPED, rule)
    return tuple(
        GoldenPair(feed.name, feed.values, expected, bound)
        for feed, expected, bound in zip(measurement.feeds, measurement.expected, bounds, strict=True)
        if feed.kind == "random"
    )
