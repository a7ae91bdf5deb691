"""From what the launches measured to what it shows: pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from bnfold.benchmarking.context import Context
from bnfold.benchmarking.launches import Job, LaunchRecord, ProcessRecord
from bnfold.benchmarking.options import BenchmarkOptions
from bnfold.benchmarking.results import CandidateResult, SettingResult, Spread
from bnfold.benchmarking.statistics import Comparison, Floats, compare, percentiles

#: Which percentiles of the latency are told.
PERCENTS = (50.0, 90.0, 99.0, 99.9)

#: An interval that reaches further than this from its estimate is called wide.
_WIDE = 0.05

#: Others may keep so many cores busy before the machine is called busy.
_BUSY_CORES = 0.15


def conclude(job: Job, launches: Sequence[LaunchRecord], models: int, options: BenchmarkOptions) -> SettingResult:
    """Draw the conclusions of one setting.

    Args:
        job: what was launched; its candidates are the models, then the control if there was one.
        launches: at least two.
        models: how many of the candidates are models.
        options: of the benchmark.
    """
    processes = [tuple(record.processes[index] for record in launches) for index in range(len(job.candidates))]
    control = processes[models] if len(processes) > models else ()
    candidates = tuple(
        _candidate(job, processes[index], processes[0] if index else None, control or None, index, options)
        for index in range(models)
    )
    against_itself = None
    if control:
        against_itself = compare(round_medians(control), round_medians(processes[0]), None).latency_ratio
    return SettingResult(
        setting=job.setting,
        feeds=job.feeds,
        candidates=candidates,
        control=against_itself,
        control_records=control,
        launches=len(launches),
        seconds=sum(record.seconds for record in launches),
        pause_s=sum(record.pause_s for record in launches),
        warnings=tuple(_warnings(candidates, len(launches), options, models)),
    )


def _candidate(
    job: Job,
    records: tuple[ProcessRecord, ...],
    baseline: tuple[ProcessRecord, ...] | None,
    control: tuple[ProcessRecord, ...] | None,
    index: int,
    options: BenchmarkOptions,
) -> CandidateResult:
    blocks = [[np.asarray(block, dtype=np.float64) / 1e9 for block in record.blocks] for record in records]
    samples = np.concatenate([block for launch in blocks for block in launch])
    batch = _batch(job)
    comparison = creation = None
    if baseline is not None:
        comparison = compare(
            round_medians(records), round_medians(baseline), None if control is None else round_medians(control)
        )
        creation = compare(_creations(records), _creations(baseline), None if control is None else _creations(control))
    return CandidateResult(
        label=job.candidates[index].label,
        latency=dict(zip(PERCENTS, percentiles(blocks, PERCENTS, options.seed), strict=True)),
        mean_s=float(samples.mean()),
        throughput=batch / float(samples.mean()),
        samples=len(samples),
        group=max(record.group for record in records),
        creation=_spread([record.creation_s for record in records]),
        first_run=_spread([record.first_run_s for record in records]),
        peak_bytes=int(np.median([record.peak_bytes for record in records])),
        comparison=comparison,
        creation_comparison=creation,
        records=records,
    )


def _batch(job: Job) -> int:
    """How many items one run infers: the first dimension, where all inputs agree on it, else 1."""
    sizes = {feed.shape[0] for feed in job.feeds if feed.shape}
    return sizes.pop() if len(sizes) == 1 else 1


def round_medians(records: Sequence[ProcessRecord]) -> list[Floats]:
    """The median of each round's block, by launch."""
    return [np.maximum([np.median(block) for block in record.blocks], 1.0).astype(np.float64) for record in records]


def _creations(records: Sequence[ProcessRecord]) -> list[Floats]:
    """The creation time of each launch, as if it were a launch of one round."""
    return [np.array([record.creation_s]) for record in records]


def _spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.median(values)), min(values), max(values))


def _warnings(
    candidates: Sequence[CandidateResult], launches: int, options: BenchmarkOptions, models: int
) -> Iterator[str]:
    budget = options.seconds_for(models)
    if launches < options.launches:
        yield (
            f"only {launches} of {options.launches} launches fit into {budget:g} s, so the intervals are "
            f"wider than they need be; give --time {math.ceil(budget * options.launches / launches)} or more"
        )
    for candidate in candidates:
        judged = [record.steady for record in candidate.records if record.steady is not None]
        if judged and 2 * judged.count(False) > len(judged):
            yield (
                f"{candidate.label} had not reached a steady latency after its warm-up in "
                f"{judged.count(False)} of {len(judged)} launches; give more --time, which also "
                "lengthens the warm-up"
            )
        if candidate.comparison is not None:
            reach = _reach(candidate.comparison)
            if reach > _WIDE:
                yield (
                    f"the interval of {candidate.label} is wide (±{100 * reach:.0f} %); "
                    f"close other programs, or give more --time (this was {budget:g} s) or --launches"
                )


def _reach(comparison: Comparison) -> float:
    return comparison.latency_ratio.high / comparison.latency_ratio.estimate - 1


def machine_warnings(context: Context, options: BenchmarkOptions) -> tuple[str, ...]:
    """What about the machine makes the figures less certain, and what to do about it."""
    return tuple(_machine_warnings(context, options))


def _machine_warnings(context: Context, options: BenchmarkOptions) -> Iterator[str]:
    disturbance = context.disturbance
    if disturbance is not None and disturbance.others > _BUSY_CORES:
        yield (
            f"the machine was busy: other processes kept {disturbance.others:.1f} of {context.cores} cores "
            "at work while this ran; close them and measure again, or read the intervals with care"
        )
    if disturbance is not None and disturbance.stolen > _BUSY_CORES:
        yield (
            f"this virtual machine was denied {disturbance.stolen:.1f} cores by its host while this ran; "
            "measure at another time or on a machine of your own"
        )
    available = len(context.affinity)
    if max(options.threads) > available:
        yield (
            f"{max(options.threads)} threads were asked for and {available} cores are available, so the "
            f"threads wait for each other; give --threads {available} or fewer"
        )
    if context.governor in ("powersave", "schedutil", "ondemand", "conservative"):
        yield (
            f"the frequency governor is {context.governor}, which changes the clock while measuring; "
            "set it to performance if you may (cpupower frequency-set -g performance)"
        )
