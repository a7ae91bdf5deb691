"""How long a server takes to have a model ready: measured in fresh processes, as ``bnfold benchmark`` does."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.benchmarking.candidates import Candidate, Group
from bnfold.benchmarking.inputs import settle_shapes
from bnfold.benchmarking.launches import LaunchRecord, cold_start
from bnfold.benchmarking.options import Compare, Setting
from bnfold.benchmarking.statistics import Floats, Interval, compare
from bnfold.benchmarking.subjects import load_subjects
from bnfold.progress import Progress, silent

#: Processes for each file.
STARTS = 7

#: The same where two files are compared, and a second process of the first tells what chance does.
COMPARED_STARTS = 15


@dataclass(frozen=True)
class ColdStart:
    """What sessions of one file took, each in a fresh process that had only imported onnxruntime.

    Attributes:
        creation_s: the median time to create the session, in seconds.
        least_s: the shortest.
        greatest_s: the longest.
        first_run_s: the median time of the first run, in seconds.
        starts: how many processes.
        peak_bytes: the median of the most memory that a process held.
        ratio: its creation time over that of the model's own file, with its 95 % interval; None for that file itself.
    """

    creation_s: float
    least_s: float
    greatest_s: float
    first_run_s: float
    starts: int
    peak_bytes: int
    ratio: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {**vars(self), "ratio": None if self.ratio is None else self.ratio.to_json()}


def measure_cold_starts(
    model: Path,
    others: Sequence[Path],
    shapes: Mapping[str, tuple[int, ...]],
    threads: int,
    progress: Progress = silent,
) -> tuple[ColdStart, ...]:
    """Create sessions of a model, and of the same in other formats, on the CPU; they take turns.

    Args:
        model: an ONNX file.
        others: files with the same inputs.
        shapes: of the inputs of the first run.
        threads: intra-op threads; 0 leaves the choice to ONNX Runtime.
        progress: told of each start.

    Raises:
        BnfoldError: a file cannot be run, or a process was killed.
    """
    (subject,) = load_subjects([model])
    subjects = [subject, *(replace(subject, path=other, label=other.name) for other in others)]
    setting = Setting(threads=threads)
    group = Group(
        title="cold starts",
        compare=Compare.MODELS,
        candidates=tuple(Candidate(each, setting, each.label) for each in subjects),
        feeds=settle_shapes(subject.inputs, None, shapes),
        input_seed=0,
        has_control=bool(others),
    )
    starts = COMPARED_STARTS if others else STARTS
    records: list[LaunchRecord] = []
    for number in range(starts):
        progress("cold starts", number, starts)
        records.append(cold_start(group, (0, number)))
    progress("cold starts", starts, starts)
    return tuple(_summary(records, index) for index in range(len(subjects)))


def _summary(records: Sequence[LaunchRecord], index: int) -> ColdStart:
    processes = [record.processes[index] for record in records]
    creations = [process.creation_s for process in processes]
    return ColdStart(
        creation_s=statistics.median(creations),
        least_s=min(creations),
        greatest_s=max(creations),
        first_run_s=statistics.median(process.first_run_s for process in processes),
        starts=len(processes),
        peak_bytes=int(statistics.median(process.peak_bytes for process in processes)),
        ratio=_ratio(records, index) if index > 0 and len(records) > 1 else None,
    )


def _ratio(records: Sequence[LaunchRecord], index: int) -> Interval:
    """See :mod:`bnfold.benchmarking.statistics`; each start counts as a launch of one round."""

    def creations(process: int) -> list[Floats]:
        return [np.array([record.processes[process].creation_s]) for record in records]

    return compare(creations(index), creations(0), creations(-1)).latency_ratio
