"""Who competes with whom: a candidate is a model in a setting, a group holds those that are compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bnfold.benchmarking.inputs import Feed, merge_specs, settle_shapes
from bnfold.benchmarking.options import BenchmarkOptions, Compare, Setting, common_words, own_words
from bnfold.benchmarking.subjects import Subject


@dataclass(frozen=True)
class Candidate:
    """A model in a setting.

    Attributes:
        subject: the model.
        setting: how it runs.
        label: what tells it from the others of its group, in a few words.
    """

    subject: Subject
    setting: Setting
    label: str

    @property
    def name(self) -> str:
        """What to call it outside of its group: the model, and the setting where that is what differs."""
        return self.label if self.label == self.subject.label else f"{self.subject.label} ({self.label})"


@dataclass(frozen=True)
class Group:
    """Candidates that take turns and are compared with the first of them.

    Attributes:
        title: what all of them have in common, in a few words.
        compare: whether they differ in their models or in their settings.
        candidates: at least one; the first is the baseline.
        feeds: the inputs that all of them take.
        input_seed: what the inputs' numbers are drawn from.
        has_control: whether the first one runs in a second process too.
        timeout: the longest to wait for an answer of a process, in seconds.
    """

    title: str
    compare: Compare
    candidates: tuple[Candidate, ...]
    feeds: tuple[Feed, ...]
    input_seed: int
    has_control: bool
    timeout: float = math.inf

    @property
    def processes(self) -> tuple[Candidate, ...]:
        """The candidate of each process: all of them, then the control if there is one."""
        return self.candidates + self.candidates[:1] if self.has_control else self.candidates

    @property
    def batch(self) -> int:
        """How many items one run infers: the first dimension, where all inputs agree on it, else 1."""
        sizes = {feed.shape[0] for feed in self.feeds if feed.shape}
        return sizes.pop() if len(sizes) == 1 else 1


def plan_groups(subjects: Sequence[Subject], options: BenchmarkOptions) -> tuple[Group, ...]:
    """The groups of a benchmark.

    Raises:
        ModelError: two models take different inputs.
        InputError: an input's shape is still open or does not fit.
    """
    specs = merge_specs({subject.label: subject.inputs for subject in subjects})
    return tuple(
        Group(
            title=title,
            compare=compare,
            candidates=candidates,
            feeds=settle_shapes(specs, candidates[0].setting.batch, options.input_shapes),
            input_seed=options.seed,
            has_control=options.control and len(candidates) > 1,
            timeout=options.timeout_for(len(candidates)),
        )
        for title, compare, candidates in _compositions(subjects, options)
    )


def compares(models: int, options: BenchmarkOptions) -> bool:
    """Whether there is anything to compare, for so many models."""
    if _kind(models, options) is Compare.MODELS:
        return models > 1
    return any(len(group) > 1 for group in _alike(options.settings()))


def _kind(models: int, options: BenchmarkOptions) -> Compare:
    if options.compare is not None:
        return options.compare
    several = any(len(group) > 1 for group in _alike(options.settings()))
    return Compare.SETTINGS if models == 1 and several else Compare.MODELS


def _compositions(
    subjects: Sequence[Subject], options: BenchmarkOptions
) -> Iterator[tuple[str, Compare, tuple[Candidate, ...]]]:
    compare = _kind(len(subjects), options)
    if compare is Compare.MODELS:
        for setting in options.settings():
            yield setting.label(), compare, tuple(Candidate(subject, setting, subject.label) for subject in subjects)
        return
    for subject in subjects:
        for group in _alike(options.settings()):
            pairs = zip(group, own_words(group), strict=True)
            title = f"{subject.label}, {common_words(group)}".removesuffix(", ")
            yield title, compare, tuple(Candidate(subject, setting, words) for setting, words in pairs)


def _alike(settings: Sequence[Setting]) -> list[tuple[Setting, ...]]:
    """Settings whose latencies mean the same: of one batch, under the same arrivals."""
    groups: dict[tuple[int | None, object], list[Setting]] = {}
    for setting in settings:
        arrivals = replace(setting.scenario, streams=1)
        groups.setdefault((setting.batch, arrivals), []).append(setting)
    return [tuple(group) for group in groups.values()]
