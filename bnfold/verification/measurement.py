"""Turn the outputs of runs into observations, keeping the numbers and dropping the arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.verification.inputs import Feed
from bnfold.verification.metrics import UNIT_ROUNDOFF, Metrics, compare, deviation, is_float, scale_of
from bnfold.verification.verdict import Observation, Run, Slices

Array = NDArray[Any]


@dataclass
class _Record:
    metrics: dict[Run, Metrics] = field(default_factory=dict)
    slices: dict[Run, Slices] = field(default_factory=dict)
    shapes: dict[Run, str] = field(default_factory=dict)
    excused: Array | None = None


class Measurement:
    """The observations of one verification as they grow.

    Args:
        feeds: the sets of inputs.
        types: each output's data type.
        expected: the true outputs, one mapping for each set of inputs.
    """

    def __init__(
        self, feeds: Sequence[Feed], types: Mapping[str, str], expected: Sequence[Mapping[str, Array]]
    ) -> None:
        self._feeds = feeds
        self.types = types
        self._expected = expected
        self._records = [{name: _Record() for name in types} for _ in feeds]

    def record(self, run: Run, outputs: Iterable[Mapping[str, Array]], *, excuse: bool = False) -> None:
        """Compare a run with what is expected.

        Args:
            run: its name.
            outputs: one mapping for each set of inputs, in order.
            excuse: where this run is not finite, later ones need not match what is expected: the reference itself
                overflows there.
        """
        for index, results in enumerate(outputs):
            for name in self.types:
                record, expected, actual = self._records[index][name], self._expected[index][name], results[name]
                if expected.shape != actual.shape:
                    record.shapes[run] = f"the shapes {expected.shape} and {actual.shape}"
                    continue
                dtype = self.types[name] if self.types[name] in UNIT_ROUNDOFF else "float32"
                if excuse and is_float(actual):
                    strange = ~np.isfinite(actual.astype(np.float64)) & np.isfinite(expected)
                    record.excused = strange if strange.any() else None
                record.metrics[run] = compare(expected, actual, dtype, record.excused)
                if is_float(expected):
                    record.slices[run] = _slices(deviation(expected, actual, record.excused)[0])

    def copy(self) -> Measurement:
        """The same so far; what is recorded from then on is its own."""
        twin = Measurement(self._feeds, self.types, self._expected)
        twin._records = [
            {
                name: replace(r, metrics=dict(r.metrics), slices=dict(r.slices), shapes=dict(r.shapes))
                for name, r in records.items()
            }
            for records in self._records
        ]
        return twin

    def observations(self) -> dict[str, list[Observation]]:
        """All observations so far, by output, in the order of the sets of inputs."""
        return {name: [self._observe(name, index) for index in range(len(self._feeds))] for name in self.types}

    def _observe(self, name: str, index: int) -> Observation:
        expected, record, feed = self._expected[index][name], self._records[index][name], self._feeds[index]
        floating = is_float(expected)
        magnitude = np.abs(np.where(np.isfinite(expected), expected, 0.0)) if floating else np.zeros(())
        return Observation(
            output=name,
            feed=feed.name,
            kind=feed.kind,
            roundoff=UNIT_ROUNDOFF.get(self.types[name], UNIT_ROUNDOFF["float32"]),
            scale=scale_of(expected),
            slice_scale=_slices(magnitude),
            slice_count=_slices((magnitude > 0).astype(np.float64), total=True),
            metrics=record.metrics,
            slices=record.slices,
            shapes=record.shapes,
        )

    def silent_outputs(self) -> dict[str, str]:
        """The outputs on which the inputs have no say, with the reason: agreement on them proves nothing."""
        reasons = {}
        for name in self.types:
            values = [outputs[name] for outputs in self._expected]
            if not any(np.isfinite(v).any() for v in values if is_float(v)) and is_float(values[0]):
                reasons[name] = f"output {name!r} holds no finite number for any of the inputs"
            elif len(values) > 1 and self._feeds[0].values and not _vary(values):
                reasons[name] = f"output {name!r} is the same for all of the inputs"
        return reasons


def _vary(values: Sequence[Array]) -> bool:
    """Whether any two samples differ: within a batch, or between arrays."""
    first = next((v[:1] for v in values if v.ndim and v.shape[0]), values[0])
    for value in values:
        sample = first if value.ndim == first.ndim and value.shape[1:] == first.shape[1:] else None
        if sample is None or not np.array_equal(value, np.broadcast_to(sample, value.shape), equal_nan=True):
            return True
    return False


def _slices(values: Array, *, total: bool = False) -> dict[int, NDArray[np.float64]]:
    """The largest value, or the sum, of each slice along each axis from 1 on."""
    if not values.size:
        return {}
    result = {}
    for axis in range(1, values.ndim):
        others = tuple(a for a in range(values.ndim) if a != axis)
        result[axis] = values.sum(axis=others) if total else values.max(axis=others)
    return result
