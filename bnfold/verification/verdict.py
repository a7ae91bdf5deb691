"""Decide from measured errors whether two models compute the same function. Pure: numbers in, judgement out.

The rule, for each output and each set of inputs, where ``y`` is the reference model in float64:

* *own error*: the largest of
  the error of the reference model itself in ONNX Runtime with every optimization off;
  how far ``y`` moves when each weight is moved by one unit roundoff ``u`` of its type;
  the median of these two over all sets of inputs, relative to the output's scale;
  ``floor·u`` of the output's scale (its largest magnitude), ``u`` that of the output's type;
  one ``u`` of the output's median scale over all sets of inputs.
* the candidate in float64 may be off by ``float64_factor`` times the own error,
* the candidate in ONNX Runtime by ``runtime_factor`` times it.

The same is asked of each slice of an output (a channel, a row, a column) pooled over the random inputs, against the
slice's own scale and error, so that a small channel cannot hide behind a large one. A NaN or an infinity must be
matched by the same, except where the reference itself overflows in its own type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bnfold.verification.inputs import FeedKind
from bnfold.verification.metrics import Metrics

Run = Literal["original", "nudged", "original_shipped", "candidate_float64", "candidate_plain", "candidate_shipped"]

#: What the candidate is judged by, and how each is called in sentences.
JUDGED: Mapping[Run, str] = {
    "candidate_float64": "in float64",
    "candidate_plain": "in ONNX Runtime with optimizations off",
    "candidate_shipped": "in ONNX Runtime as shipped",
}

#: Feeds whose slices may be pooled: they are drawn alike.
_POOLED: frozenset[FeedKind] = frozenset({"random", "user"})

#: A slice of fewer elements than this has no error of its own to speak of: one lucky element decides.
_FEWEST_ELEMENTS = 8

Slices = Mapping[int, NDArray[np.float64]]


@dataclass(frozen=True)
class Rule:
    """How much error is allowed; see the module's own description.

    Attributes:
        float64_factor: allowed multiple of the own error for the candidate in float64.
        runtime_factor: the same for the candidate in ONNX Runtime.
        slice_factor: a slice may exceed its bound by this much more, since there are many of them.
        floor: unit roundoffs of the output's scale that are always allowed for as own error.
        rtol: relative to the output's scale; with ``atol`` it replaces the rule.
        atol: absolute.
    """

    float64_factor: float = 8.0
    runtime_factor: float = 8.0
    slice_factor: float = 2.0
    floor: float = 2.0
    rtol: float | None = None
    atol: float | None = None

    @property
    def overridden(self) -> bool:
        """Whether the user's tolerances take the place of the rule."""
        return self.rtol is not None or self.atol is not None

    def text(self, reference: str = "float64") -> str:
        """The rule in words."""
        if self.overridden:
            return (
                f"The largest difference of an output may be {self.atol or 0:g} + {self.rtol or 0:g} × its scale "
                "(its largest magnitude), as asked for."
            )
        if reference == "float64":
            own = (
                "An output's own error is the largest of: the reference's error in ONNX Runtime with optimizations "
                "off, the shift when every weight moves by one unit roundoff u, the median of these over all inputs, "
                f"and {self.floor:g} u of the output's scale."
            )
            allowed = (
                f" The candidate may be off by {self.float64_factor:g} times that in float64, and by "
                f"{self.runtime_factor:g} times in ONNX Runtime; each channel, row and column is held to "
                f"{self.slice_factor:g} times the same, by its own scale and error."
            )
            return own + allowed
        return (
            "The reference is ONNX Runtime in the model's own precision, optimizations off. Its own error is taken "
            "as the largest of: the shift between its optimization levels, the shift when every weight moves by one "
            f"unit roundoff u, and {self.floor:g} u of the output's scale. The candidate may differ by "
            f"{self.runtime_factor:g} times that, each channel, row and column by {self.slice_factor:g} times the same."
        )


@dataclass(frozen=True)
class Observation:
    """What was measured on one output for one set of inputs.

    Attributes:
        output: the output's name.
        feed: the name of the set of inputs.
        kind: its kind.
        roundoff: unit roundoff of the output's type.
        scale: the largest magnitude expected.
        slice_scale: for each axis from 1 on, the largest magnitude in each slice.
        slice_count: for each axis, how many elements other than 0 are expected in each slice.
        metrics: by run.
        slices: by run, for each axis, the largest difference in each slice.
        shapes: by run, how the shape came out where it is not as expected.
    """

    output: str
    feed: str
    kind: FeedKind
    roundoff: float
    scale: float
    slice_scale: Slices
    slice_count: Slices
    metrics: Mapping[Run, Metrics]
    slices: Mapping[Run, Slices]
    shapes: Mapping[Run, str]


@dataclass(frozen=True)
class Finding:
    """One run of the candidate held against its bound.

    Attributes:
        run: which run.
        error: the largest absolute difference.
        bound: the largest that is allowed.
        ratio: ``error / bound``; over 1 is a mismatch, infinite where NaN or the shape differ.
        scale: what the error is to be seen against.
        feed: the set of inputs, or ``pooled``.
        place: the slice that it holds for, or nothing.
        problem: what is wrong where it is not the size of an error.
    """

    run: Run
    error: float
    bound: float
    ratio: float
    scale: float
    feed: str
    place: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Judgement:
    """The verdict on one output.

    Attributes:
        output: its name.
        findings: the worst finding of each run of the candidate.
    """

    output: str
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Finding:
        """The finding furthest beyond, or nearest to, its bound."""
        return max(self.findings, key=lambda finding: finding.ratio)

    @property
    def equivalent(self) -> bool:
        """Whether every finding is within its bound."""
        return all(finding.ratio <= 1 for finding in self.findings)


def own_errors(observations: Sequence[Observation], rule: Rule, sources: Sequence[Run]) -> list[float]:
    """The own error of one output for each of its observations, absolute; see the rule."""
    direct = [max(_errors(o, sources), default=0.0) for o in observations]
    relative = [e / o.scale for e, o in zip(direct, observations, strict=True) if o.scale > 0]
    typical = float(np.median(relative)) if relative else 0.0
    usual = float(np.median([o.scale for o in observations]))
    return [
        max(e, typical * o.scale, rule.floor * o.roundoff * o.scale, o.roundoff * usual)
        for e, o in zip(direct, observations, strict=True)
    ]


def _errors(observation: Observation, runs: Sequence[Run]) -> list[float]:
    return [observation.metrics[run].max_abs for run in runs if run in observation.metrics]


def judge(observations: Sequence[Observation], rule: Rule, sources: Sequence[Run]) -> Judgement:
    """Judge one output.

    Args:
        observations: all of one output.
        rule: how much is allowed.
        sources: the runs whose error is the reference's own.
    """
    own = own_errors(observations, rule, sources)
    findings: list[Finding] = []
    for run in JUDGED:
        found = [_whole(o, error, run, rule) for o, error in zip(observations, own, strict=True) if _has(o, run)]
        if not rule.overridden and all(f.ratio < np.inf for f in found):
            found += _slice_findings(observations, run, rule, sources)
        if found:
            findings.append(max(found, key=lambda finding: finding.ratio))
    return Judgement(observations[0].output, tuple(findings))


def _has(observation: Observation, run: Run) -> bool:
    return run in observation.metrics or run in observation.shapes


def _whole(observation: Observation, own: float, run: Run, rule: Rule) -> Finding:
    bound = bound_of(observation, own, run, rule)
    if run in observation.shapes:
        return Finding(run, 0.0, bound, np.inf, observation.scale, observation.feed, problem=observation.shapes[run])
    metrics = observation.metrics[run]
    if metrics.non_finite:
        problem = f"{metrics.non_finite} of {metrics.size} elements are NaN or infinite in one and not the other"
        return Finding(run, metrics.max_abs, bound, np.inf, observation.scale, observation.feed, problem=problem)
    return Finding(
        run,
        metrics.max_abs,
        bound,
        _ratio(metrics.max_abs, bound),
        observation.scale,
        observation.feed,
    )


def bound_of(observation: Observation, own: float, run: Run, rule: Rule) -> float:
    """The largest absolute difference that a run may show."""
    if rule.overridden:
        return (rule.atol or 0.0) + (rule.rtol or 0.0) * observation.scale
    return own * (rule.float64_factor if run == "candidate_float64" else rule.runtime_factor)


def _ratio(error: float, bound: float) -> float:
    if error == 0:
        return 0.0
    return error / bound if bound > 0 else np.inf


def _slice_findings(
    observations: Sequence[Observation], run: Run, rule: Rule, sources: Sequence[Run]
) -> Iterable[Finding]:
    """The worst slice of each axis. Errors are relative to each observation's scale, so that they can be pooled."""
    pool = [o for o in observations if o.kind in _POOLED and o.scale > 0 and run in o.slices]
    axes = {axis for o in pool for axis in o.slice_scale}
    factor = rule.slice_factor * (rule.float64_factor if run == "candidate_float64" else rule.runtime_factor)
    for axis in axes:
        if len({o.slice_scale[axis].size for o in pool if axis in o.slice_scale}) != 1:
            continue
        scale = np.max([o.slice_scale[axis] / o.scale for o in pool], axis=0)
        count = np.sum([o.slice_count[axis] for o in pool], axis=0)
        judged = (count >= _FEWEST_ELEMENTS) & (scale > 0)
        if not judged.any():
            continue
        error = np.max([o.slices[run][axis] / o.scale for o in pool], axis=0)
        direct = np.max(
            [np.zeros_like(scale)]
            + [o.slices[source][axis] / o.scale for o in pool for source in sources if source in o.slices],
            axis=0,
        )
        typical = np.median(direct[judged] / scale[judged])
        roundoff = pool[0].roundoff
        bound = factor * np.maximum(direct, np.maximum(typical, rule.floor * roundoff) * scale)
        ratio = np.where(judged, error / np.where(bound > 0, bound, 1.0), 0.0)
        index = int(ratio.argmax())
        yield Finding(
            run,
            error=float(error[index]),
            bound=float(bound[index]),
            ratio=float(ratio[index]),
            scale=float(scale[index]),
            feed="all random inputs together, relative to the output's scale",
            place=f"index {index} of axis {axis}",
        )
