"""Turn the outputs of runs into observations, keeping the numbers and dropping the arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.verification.inputs import Feed
from bnfold.verification.metrics import (
    SMALLEST,
    UNIT_ROUNDOFF,
    Metrics,
    compare,
    deviation,
    is_float,
    margins,
    scale_of,
)
from bnfold.verification.verdict import POOLED_KINDS, Observation, Run, Slices

Array = NDArray[Any]


@dataclass(frozen=True)
class Failure:
    """A model did not run on a set of inputs.

    Attributes:
        message: why not.
    """

    message: str


#: What a model makes of a set of inputs.
Outcome = Mapping[str, Array] | Failure


@dataclass
class Record:
    """What was measured on one output for one set of inputs.

    Attributes:
        metrics: by run.
        slices: by run, for each axis, the largest difference in each slice.
        problems: by run, why there is nothing to compare.
        excused: elements where a run need not match what is expected.
    """

    metrics: dict[Run, Metrics] = field(default_factory=dict)
    slices: dict[Run, Slices] = field(default_factory=dict)
    problems: dict[Run, str] = field(default_factory=dict)
    excused: Array | None = None


class Measurement:
    """The observations of one verification as they grow.

    Args:
        feeds: the sets of inputs.
        types: each output's data type.
        expected: the true outputs, one mapping for each set of inputs.
        roundoff: unit roundoff of the model's floating-point numbers.

    Attributes:
        records: what was measured, for each set of inputs by output.
    """

    def __init__(
        self,
        feeds: Sequence[Feed],
        types: Mapping[str, str],
        expected: Sequence[Mapping[str, Array]],
        roundoff: float = UNIT_ROUNDOFF["float32"],
    ) -> None:
        self.feeds = feeds
        self.types = types
        self.expected = expected
        self.roundoff = roundoff
        self.records: Sequence[Mapping[str, Record]] = [{name: Record() for name in types} for _ in feeds]

    def copy(self) -> Measurement:
        """One that can grow without changing this one."""
        other = Measurement(self.feeds, self.types, self.expected, self.roundoff)
        other.records = [
            {
                name: Record(dict(record.metrics), dict(record.slices), dict(record.problems), record.excused)
                for name, record in records.items()
            }
            for records in self.records
        ]
        return other

    def record(self, run: Run, outcomes: Iterable[Outcome], *, excuse: bool = False) -> None:
        """Compare a run with what is expected.

        Args:
            run: its name.
            outcomes: one for each set of inputs, in order.
            excuse: where this run is not finite, later ones need not match what is expected: the reference itself
                overflows there.
        """
        for index, outcome in enumerate(outcomes):
            for name in self.types:
                self._record(run, self.records[index][name], self.expected[index][name], outcome, name, excuse=excuse)

    def record_again(self, run: Run, index: int, outcome: Outcome) -> None:
        """Compare a run on one set of inputs a further time; the worse of both counts."""
        for name in self.types:
            record, further = self.records[index][name], Record(excused=self.records[index][name].excused)
            self._record(run, further, self.expected[index][name], outcome, name)
            if run in further.metrics and further.metrics[run].max_abs > record.metrics[run].max_abs:
                record.metrics[run] = further.metrics[run]
            for axis, values in further.slices.get(run, {}).items():
                known = record.slices[run]
                record.slices[run] = {**known, axis: np.maximum(values, known[axis])}

    def _record(
        self, run: Run, record: Record, expected: Array, outcome: Outcome, name: str, *, excuse: bool = False
    ) -> None:
        if isinstance(outcome, Failure):
            record.problems[run] = outcome.message
            return
        actual = outcome[name]
        if expected.shape != actual.shape:
            record.problems[run] = f"the shape is {actual.shape} where {expected.shape} is expected"
            return
        dtype = self.types[name] if self.types[name] in UNIT_ROUNDOFF else "float32"
        if excuse and is_float(actual):
            strange = ~np.isfinite(actual.astype(np.float64)) & np.isfinite(expected)
            record.excused = strange if strange.any() else None
        record.metrics[run] = compare(expected, actual, dtype, record.excused)
        if is_float(expected):
            record.slices[run] = _slices(deviation(expected, actual, record.excused)[0])

    def observations(self) -> dict[str, list[Observation]]:
        """All observations so far, by output, in the order of the sets of inputs."""
        return {name: self.observations_of(name) for name in self.types}

    def observations_of(self, name: str) -> list[Observation]:
        """The observations of one output, in the order of the sets of inputs."""
        return [self._observe(name, index) for index in range(len(self.feeds))]

    def _observe(self, name: str, index: int) -> Observation:
        expected, record, feed = self.expected[index][name], self.records[index][name], self.feeds[index]
        floating = is_float(expected)
        magnitude = np.abs(np.where(np.isfinite(expected), expected, 0.0)) if floating else np.zeros(())
        return Observation(
            output=name,
            feed=feed.name,
            kind=feed.kind,
            roundoff=UNIT_ROUNDOFF.get(self.types[name], self.roundoff),
            scale=scale_of(expected),
            slice_scale=_slices(magnitude),
            slice_count=_slices((magnitude > 0).astype(np.float64), total=True),
            metrics=record.metrics,
            slices=record.slices,
            problems=record.problems,
            smallest=SMALLEST.get(self.types[name], SMALLEST["float32"]),
            margins=margins(expected),
            choices=0 if floating else expected.size,
        )

    def silent_outputs(self) -> dict[str, str]:
        """The outputs on which the inputs have no say, with the reason: agreement on them proves nothing."""
        reasons = {}
        for name in self.types:
            values = [outputs[name] for outputs in self.expected]
            if not any(value.size for value in values):
                reasons[name] = f"output {name!r} is empty for all of the inputs"
            elif is_float(values[0]) and not any(np.isfinite(value).any() for value in values):
                reasons[name] = f"output {name!r} holds no finite number for any of the inputs"
            elif len(values) > 1 and self.feeds[0].values and not _vary(values):
                reasons[name] = f"output {name!r} is the same for all of the inputs"
        return reasons

    def strange_outputs(self) -> list[str]:
        """What should be known of outputs that are mostly not finite, or the same, on the random inputs."""
        notes = []
        for name in self.types:
            values = [e[name] for e, feed in zip(self.expected, self.feeds, strict=True) if feed.kind in POOLED_KINDS]
            size = sum(value.size for value in values)
            finite = sum(int(np.isfinite(value).sum()) if is_float(value) else value.size for value in values)
            if 0 < finite < size / 2:
                notes.append(
                    f"{100 - 100 * finite / size:.0f} % of output {name!r} is NaN or infinite on the random inputs, "
                    "which proves little; give others with --inputs"
                )
            elif len(values) > 1 and self.feeds[0].values and not _vary(values):
                notes.append(f"output {name!r} is the same for all of the random inputs; give others with --inputs")
        return notes


def _vary(values: Sequence[Array]) -> bool:
    """Whether any two samples of one shape differ: within a batch, or between arrays; True where no two are alike."""
    first: dict[tuple[int, ...], Array] = {}
    seen: Counter[tuple[int, ...]] = Counter()
    for value in values:
        if not value.size:
            continue
        samples = np.atleast_1d(value.astype(np.float64) if is_float(value) else value)
        shape = samples.shape[1:]
        sample = first.setdefault(shape, samples[:1])
        seen[shape] += len(samples)
        if not np.array_equal(samples, np.broadcast_to(sample, samples.shape), equal_nan=samples.dtype.kind == "f"):
            return True
    return max(seen.values(), default=0) < 2


def _slices(values: Array, *, total: bool = False) -> dict[int, NDArray[np.float64]]:
    """The largest value, or the sum, of each slice along each axis from 1 on."""
    if not values.size:
        return {}
    result = {}
    for axis in range(1, values.ndim):
        others = tuple(a for a in range(values.ndim) if a != axis)
        result[axis] = values.sum(axis=others) if total else values.max(axis=others)
    return result
