"""``benchmark()``: load the models, launch, and draw conclusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bnfold.benchmarking import schedule
from bnfold.benchmarking.conclusions import conclude, machine_warnings
from bnfold.benchmarking.context import disturbance, load_average, read_context, read_cpu_time
from bnfold.benchmarking.inputs import merge_specs, settle_shapes
from bnfold.benchmarking.launches import Job, LaunchRecord, launch
from bnfold.benchmarking.options import BenchmarkOptions
from bnfold.benchmarking.results import BenchmarkResult
from bnfold.benchmarking.subjects import Subject, load_subjects
from bnfold.errors import InputError
from bnfold.files import StrPath
from bnfold.progress import Progress, silent


@dataclass
class _Cell:
    """A setting while it is being measured."""

    job: Job
    launches: list[LaunchRecord] = field(default_factory=list)

    @property
    def spent(self) -> float:
        return sum(record.seconds for record in self.launches)

    @property
    def longest(self) -> float:
        return max((record.seconds for record in self.launches), default=0.0)


def benchmark(
    models: Sequence[StrPath], options: BenchmarkOptions | None = None, progress: Progress = silent
) -> BenchmarkResult:
    """Compare the latency of models, each with that of the first.

    Every model runs in processes of its own; all settings get their first launch before any gets its second,
    so that a setting that cannot run fails early and a slow change of the machine does not fall on one of
    them.

    Args:
        models: paths of ONNX files that take the same inputs; one alone is measured without comparison.
        options: see :class:`BenchmarkOptions`.
        progress: called after every launch.

    Raises:
        ModelError: a model cannot be loaded or run, or takes other inputs than the first.
        InputError: no models were given, or an input's shape is still open or does not fit.
        ProviderError: a provider is unknown, not there, or cannot run.
        MissingExtraError: onnxruntime is not installed.
        WorkerError: a process failed or was killed.
    """
    options = options or BenchmarkOptions()
    if not models:
        raise InputError("a benchmark needs at least one model")
    subjects = load_subjects(models)
    cells = _plan(subjects, options)
    load, before = load_average(), read_cpu_time()
    _measure(cells, options, len(subjects), progress)
    found = disturbance(before, read_cpu_time())
    context = read_context(load, found, cells[0].launches[0].onnxruntime)
    return BenchmarkResult(
        subjects=subjects,
        options=options,
        context=context,
        settings=tuple(conclude(cell.job, cell.launches, len(subjects), options) for cell in cells),
        warnings=machine_warnings(context, options),
    )


def _plan(subjects: tuple[Subject, ...], options: BenchmarkOptions) -> list[_Cell]:
    specs = merge_specs({subject.label: subject.inputs for subject in subjects})
    control = subjects[:1] if options.control and len(subjects) > 1 else ()
    return [
        _Cell(
            Job(
                setting=setting,
                candidates=subjects + control,
                feeds=settle_shapes(specs, setting.batch, options.input_shapes),
                input_seed=options.seed,
            )
        )
        for setting in options.settings()
    ]


def _measure(cells: Sequence[_Cell], options: BenchmarkOptions, models: int, progress: Progress) -> None:
    """Launch until every cell has its launches or has used up its time."""
    budget = options.seconds_for(models)
    total = len(cells) * options.launches
    progress("launches", 0, total)
    for number in range(options.launches):
        for index, cell in enumerate(cells):
            done = len(cell.launches)
            if schedule.another_launch(done, options.launches, cell.spent, cell.longest, budget):
                # What a launch took too long or left over is shared by those to come.
                seconds = max(0.0, budget - cell.spent) / (options.launches - done)
                cell.launches.append(launch(cell.job, seconds, (options.seed, index, number)))
            progress("launches", number * len(cells) + index + 1, total)
