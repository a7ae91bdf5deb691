"""``benchmark()``: load the models, launch, and draw conclusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bnfold.benchmarking import schedule
from bnfold.benchmarking.candidates import Group, plan_groups
from bnfold.benchmarking.conclusions import conclude, machine_warnings
from bnfold.benchmarking.context import disturbance, load_average, read_context, read_cpu_time
from bnfold.benchmarking.earlier import load_earlier
from bnfold.benchmarking.launches import LaunchRecord, cold_start, launch
from bnfold.benchmarking.options import BenchmarkOptions, Compare
from bnfold.benchmarking.profiles import GroupProfile, compare_profiles
from bnfold.benchmarking.profiling import profile
from bnfold.benchmarking.results import BenchmarkResult, GroupResult
from bnfold.benchmarking.subjects import load_subjects
from bnfold.errors import InputError
from bnfold.files import StrPath
from bnfold.fold.report import FoldReport
from bnfold.optimizer import inspect
from bnfold.progress import Progress, silent
from bnfold.session import provider_name

#: Cold starts beside those of the launches take at most so large a share of a group's time, on top of it.
_COLD_SHARE = 0.5


@dataclass
class _Course:
    """A group while it is being measured."""

    group: Group
    budget: float
    launches: list[LaunchRecord] = field(default_factory=list)
    colds: list[LaunchRecord] = field(default_factory=list)
    profile: GroupProfile | None = None


def benchmark(
    models: Sequence[StrPath],
    options: BenchmarkOptions | None = None,
    progress: Progress = silent,
    *,
    earlier: StrPath | None = None,
) -> BenchmarkResult:
    """Compare the latency of candidates, each with that of the first in its group.

    Every candidate runs in processes of its own; all groups get their first launch before any gets its second,
    so that a setting that cannot run fails early and a slow change of the machine does not fall on one of
    them.

    Args:
        models: paths of ONNX files that take the same inputs; one alone in one setting is measured without
            comparison.
        options: see :class:`BenchmarkOptions`.
        progress: called after every launch.
        earlier: the JSON file of an earlier run, to compare with what was measured then.

    Raises:
        ModelError: a model cannot be loaded or run, or takes other inputs than the first.
        InputError: no models were given, an input's shape is still open or does not fit, or the earlier run cannot be
            read or has nothing in common with this one.
        ProviderError: a provider is unknown, not there, or cannot run.
        MissingExtraError: onnxruntime is not installed.
        WorkerError: a process failed, was killed, or did not answer in time.
    """
    options = options or BenchmarkOptions()
    if not models:
        raise InputError("a benchmark needs at least one model")
    before = None if earlier is None else load_earlier(earlier)
    subjects = load_subjects(models)
    courses = [_Course(group, options.seconds_for(len(group.candidates))) for group in plan_groups(subjects, options)]
    if before is not None:
        before.check([course.group for course in courses])
    load, started = load_average(), read_cpu_time()
    _profile(courses, options, progress)  # first, since what cannot be profiled should not cost a measurement
    _measure(courses, options, progress)
    _start_cold(courses, options, progress)
    found = disturbance(started, read_cpu_time())
    context = read_context(load, found, courses[0].launches[0].onnxruntime)
    groups = tuple(_conclude(course, options) for course in courses)
    doubts = () if before is None else tuple(before.warnings(groups, context))
    return BenchmarkResult(
        subjects=subjects,
        options=options,
        context=context,
        groups=groups,
        earlier=None if before is None else before.compare(groups),
        warnings=(*machine_warnings(context, options, groups), *doubts),
    )


def _conclude(course: _Course, options: BenchmarkOptions) -> GroupResult:
    return conclude(course.group, course.launches, course.colds, course.profile, options)


def _measure(courses: Sequence[_Course], options: BenchmarkOptions, progress: Progress) -> None:
    """Launch until every group has its launches or has used up its time."""
    total = len(courses) * options.launches
    progress("launches", 0, total)
    for number in range(options.launches):
        before = _count(courses)
        for index, course in enumerate(courses):
            done, spent, longest = len(course.launches), _spent(course.launches), _longest(course.launches)
            if schedule.another_launch(done, options.launches, spent, longest, course.budget):
                # What a launch took too long or left over is shared by those to come.
                seconds = max(0.0, course.budget - spent) / (options.launches - done)
                course.launches.append(launch(course.group, seconds, (options.seed, index, number)))
            progress("launches", number * len(courses) + index + 1, total)
        if _count(courses) == before:  # time is up for all
            break


def _start_cold(courses: Sequence[_Course], options: BenchmarkOptions, progress: Progress) -> None:
    """Start processes that only create their session and run it once, until there are enough or time is up."""
    extra = max(0, options.cold_starts - options.launches)
    total = len(courses) * extra
    for number in range(extra):
        before = _count(courses)
        for index, course in enumerate(courses):
            spent = _spent(course.colds)
            wanted = len(course.launches) + len(course.colds) < options.cold_starts
            if wanted and spent + _longest(course.colds) <= _COLD_SHARE * course.budget:
                seed = (options.seed, index, options.launches + number)
                course.colds.append(cold_start(course.group, seed))
            progress("cold starts", number * len(courses) + index + 1, total)
        if _count(courses) == before:
            break


def _profile(courses: Sequence[_Course], options: BenchmarkOptions, progress: Progress) -> None:
    """Look at each node's time where that was asked for, and at its placement where a provider may decline it."""
    wanted = [(index, course) for index, course in enumerate(courses) if options.profile or _may_decline(course.group)]
    reports: dict[Path, FoldReport] = {}
    for done, (index, course) in enumerate(wanted):
        group = course.group
        first = group.candidates[0].subject.path
        if group.compare is Compare.MODELS and len(group.candidates) > 1 and first not in reports:
            reports[first] = inspect(first)
        profiles = profile(group, (options.seed, index, options.launches + options.cold_starts))
        course.profile = compare_profiles(profiles, reports.get(first))
        progress("profiles", done + 1, len(wanted))


def _may_decline(group: Group) -> bool:
    """Whether a provider may leave nodes to the CPU."""
    cpu = provider_name("cpu")
    return any(provider_name(candidate.setting.provider) != cpu for candidate in group.candidates)


def _count(courses: Sequence[_Course]) -> int:
    """How many launches and cold starts there have been."""
    return sum(len(course.launches) + len(course.colds) for course in courses)


def _spent(records: Sequence[LaunchRecord]) -> float:
    return sum(record.seconds for record in records)


def _longest(records: Sequence[LaunchRecord]) -> float:
    return max((record.seconds for record in records), default=0.0)
