"""From what the launches measured to what it shows: pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bnfold.benchmarking.candidates import Candidate, Group
from bnfold.benchmarking.context import Context
from bnfold.benchmarking.launches import LaunchRecord, ProcessRecord
from bnfold.benchmarking.options import BenchmarkOptions
from bnfold.benchmarking.profiles import GroupProfile, misplaced, timing_caveat
from bnfold.benchmarking.results import CandidateResult, GroupResult, Spread
from bnfold.benchmarking.scenario import Kind
from bnfold.benchmarking.statistics import Comparison, Floats, compare, median_interval, percentiles, round_medians

#: Which percentiles of the latency are told.
PERCENTS = (50.0, 90.0, 99.0, 99.9)

#: An interval that reaches further than this from its estimate is called wide.
_WIDE = 0.05

#: Others may keep so many cores busy before the machine is called busy.
_BUSY_CORES = 0.15

#: A server that answers for so large a share of the time falls behind.
_OVERLOAD = 0.95

#: The machine is short of memory where the processes of a launch need more than this share of what was free.
_SHORT_OF_MEMORY = 0.9

Records = tuple[ProcessRecord, ...]


def conclude(
    group: Group,
    launches: Sequence[LaunchRecord],
    colds: Sequence[LaunchRecord],
    profile: GroupProfile | None,
    options: BenchmarkOptions,
) -> GroupResult:
    """Draw the conclusions of one group.

    Args:
        group: what was measured.
        launches: at least two.
        colds: cold starts beside them.
        profile: what each node took, where it was looked at.
        options: of the benchmark.
    """
    warm = [tuple(record.processes[index] for record in launches) for index in range(len(group.processes))]
    cold = [tuple(record.processes[index] for record in colds) for index in range(len(group.processes))]
    has_control = group.has_control
    candidates = tuple(
        CandidateResult(
            candidate=candidate,
            comparison=_compared(warm, index, has_control, _steady),
            creation_comparison=_compared(
                [w + c for w, c in zip(warm, cold, strict=True)], index, has_control, _creations
            ),
            records=warm[index],
            cold_records=cold[index],
            **_figures(group, candidate, warm[index], cold[index], options.seed),
        )
        for index, candidate in enumerate(group.candidates)
    )
    against_itself = None
    if has_control:
        against_itself = compare(_steady(warm[-1]), _steady(warm[0]), None).latency_ratio
    return GroupResult(
        group=group,
        candidates=candidates,
        control=against_itself,
        control_records=warm[-1] if has_control else (),
        control_cold_records=cold[-1] if has_control else (),
        launches=len(launches),
        seconds=sum(record.seconds for record in (*launches, *colds)),
        pause_s=sum(record.pause_s for record in (*launches, *colds)),
        profile=profile,
        warnings=(*_warnings(candidates, len(launches), options), *_profile_warnings(group, profile)),
    )


def _compared(
    processes: Sequence[Records], index: int, has_control: bool, values: Callable[[Records], list[Floats]]
) -> Comparison | None:
    """One candidate against the first and its control; None for the first itself."""
    if index == 0:
        return None
    control = values(processes[-1]) if has_control else None
    return compare(values(processes[index]), values(processes[0]), control)


def _figures(group: Group, candidate: Candidate, warm: Records, cold: Records, seed: int) -> dict[str, Any]:
    rounds = [[np.asarray(block, dtype=np.float64) / 1e9 for block in record.rounds] for record in warm]
    samples = np.concatenate([block for launch in rounds for block in launch])
    runs = max(record.runs_per_sample for record in warm)
    # Of averages only the median says something about single runs.
    percents = PERCENTS if runs == 1 else PERCENTS[:1]
    told = dict(zip(percents, percentiles(rounds, percents, seed), strict=True))
    mean = float(samples.mean())
    busy, span = sum(record.busy_s for record in warm), sum(record.span_s for record in warm)
    is_poisson = candidate.setting.scenario.kind is Kind.POISSON
    return {
        "latency": {percent: told.get(percent) for percent in PERCENTS},
        "mean_s": mean,
        "throughput": None if is_poisson else group.batch / mean,
        "utilisation": busy / span if is_poisson else None,
        "samples": len(samples),
        "runs_per_sample": runs,
        "creation": _spread([record.creation_s for record in warm + cold]),
        "first_run": _spread([record.first_run_s for record in warm + cold]),
        "peak_bytes": int(np.median([record.peak_bytes for record in warm])),
        "idle_bytes": int(np.median([record.idle_bytes for record in warm])),
    }


def _steady(records: Sequence[ProcessRecord]) -> list[Floats]:
    """The median of each round's block, by launch."""
    return [round_medians(record.rounds) for record in records]


def _creations(records: Sequence[ProcessRecord]) -> list[Floats]:
    """The creation time of each start, as if it were a launch of one round."""
    return [np.array([record.creation_s]) for record in records]


def _spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.median(values)), min(values), max(values), len(values), median_interval(values))


def _warnings(candidates: Sequence[CandidateResult], launches: int, options: BenchmarkOptions) -> Iterator[str]:
    budget = options.seconds_for(len(candidates))
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
        if candidate.utilisation is not None and candidate.utilisation > _OVERLOAD:
            yield (
                f"{candidate.label} was busy for {100 * candidate.utilisation:.0f} % of the time and its queue grew, "
                f"so that its latency depends on how long one measures; give a lower --rate"
            )
        if candidate.comparison is not None:
            reach = _reach(candidate.comparison)
            if reach > _WIDE:
                yield (
                    f"the interval of {candidate.label} is wide (±{100 * reach:.0f} %); "
                    f"close other programs, or give more --time (this was {budget:g} s) or --launches"
                )


def _profile_warnings(group: Group, profile: GroupProfile | None) -> Iterator[str]:
    if profile is None:
        return
    for candidate, found in zip(group.candidates, profile.profiles, strict=True):
        sentence = misplaced(found, candidate.setting.provider)
        if sentence is not None:
            yield sentence
    for provider in dict.fromkeys(candidate.setting.provider for candidate in group.candidates):
        yield from timing_caveat(provider)


def _reach(comparison: Comparison) -> float:
    return comparison.latency_ratio.high / comparison.latency_ratio.estimate - 1


def machine_warnings(context: Context, options: BenchmarkOptions, groups: Sequence[GroupResult]) -> tuple[str, ...]:
    """What about the machine makes the figures less certain, and what to do about it."""
    return (*_machine_warnings(context, options), *_memory_warnings(context, groups))


def _memory_warnings(context: Context, groups: Sequence[GroupResult]) -> Iterator[str]:
    if context.available_bytes is None:
        return
    for group in groups:
        first = group.control_records[:1] and group.candidates[0].peak_bytes
        needed = sum(candidate.peak_bytes for candidate in group.candidates) + (first or 0)
        if needed > _SHORT_OF_MEMORY * context.available_bytes:
            yield (
                f"{group.group.title}: the processes held {needed / 2**30:.1f} GiB together and "
                f"{context.available_bytes / 2**30:.1f} GiB were free, so that they may have been swapped; "
                "compare fewer candidates at a time, or free memory"
            )


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
    if disturbance is not None and disturbance.throttled > 0:
        granted = "" if context.quota is None else f" of {context.quota:g} cores"
        yield (
            f"a quota{granted} on processor time stopped the processes for {disturbance.throttled:.1f} s; measure "
            "without it, or give no more --threads than it grants"
        )
    available = len(context.affinity)
    if max(options.threads) > available:
        cores = "1 core is" if available == 1 else f"{available} cores are"
        yield (
            f"{max(options.threads)} threads were asked for and {cores} available, so the threads wait for each other; "
            f"give --threads {available} or fewer"
        )
    if context.governor in ("powersave", "schedutil", "ondemand", "conservative"):
        yield (
            f"the frequency governor is {context.governor}, which changes the clock while measuring; "
            "set it to performance if you may (cpupower frequency-set -g performance)"
        )
