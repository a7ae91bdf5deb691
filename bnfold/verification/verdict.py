"""Decide from measured errors whether two models compute the same function. Pure: numbers in, judgement out.

``y`` is the reference model in float64, an error the largest absolute difference from it, an output's scale its
largest magnitude, ``u`` the unit roundoff of a type. The rule, for each output and each set of inputs:

1. *Rounding of weights*: how far ``y`` moves when each weight of the reference is moved by one ``u`` of its type, up
   or down at random; but at least the median of that over all sets of inputs relative to scale, and one ``u`` of the
   output's scale.
2. The candidate in float64 may be off by 6 times that. A fold rounds each weight once, and float64 adds nothing of
   its own, so that this sees errors far below what a float32 run could show.
3. *The reference's own error*: as 1, or the error of the reference itself in ONNX Runtime with every optimization
   off where that is larger.
4. The candidate in ONNX Runtime, with optimizations off and as shipped, may be off by 8 times that; on another
   provider the reference's error on that provider counts too, and with TensorFloat-32 its unit roundoff, ``2^−11``.

The same is asked, with twice the allowance, of each slice of an output (a channel, a row, a column) pooled over the
random inputs, against the slice's own scale and error, so that a small channel cannot hide behind a large one. A NaN
or an infinity must be matched by the same, except where the reference itself overflows in its own type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bnfold.verification.inputs import FeedKind
from bnfold.verification.metrics import Metrics

Run = Literal[
    "original",
    "nudged",
    "original_shipped",
    "original_provider",
    "original_tf32",
    "candidate_float64",
    "candidate_plain",
    "candidate_shipped",
    "candidate_provider",
    "candidate_tf32",
]

ReferenceKind = Literal["float64", "onnxruntime", "none"]

#: What the candidate is judged by, and how each is called in sentences.
JUDGED: Mapping[Run, str] = {
    "candidate_float64": "in float64",
    "candidate_plain": "in ONNX Runtime with optimizations off",
    "candidate_shipped": "in ONNX Runtime as shipped",
    "candidate_provider": "in ONNX Runtime on the provider asked for",
    "candidate_tf32": "in ONNX Runtime on CUDA with TensorFloat-32",
}

#: The runs of the reference whose errors make the own error that a run of the candidate may show a multiple of.
_SOURCES: Mapping[Run, tuple[Run, ...]] = {
    "candidate_provider": ("original_provider",),
    "candidate_tf32": ("original_provider", "original_tf32"),
}

#: TensorFloat-32 keeps 10 bits of the fraction, as float16 does.
_TF32_ROUNDOFF = 2.0**-11

#: Feeds whose slices may be pooled: they are drawn alike.
POOLED_KINDS: frozenset[FeedKind] = frozenset({"random", "user"})

#: What stands for the name of a set of inputs in a finding on a slice; its numbers are relative to the output's scale.
POOLED = "the random ones together"

#: An element of integers or booleans turns by rounding with a probability of so many unit roundoffs.
_TURNS = 8
_RISK = 1e-2

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

    float64_factor: float = 6.0
    runtime_factor: float = 8.0
    slice_factor: float = 2.0
    floor: float = 1.0
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
        slices = f"each channel, row and column is allowed {self.slice_factor:g} times its share of that"
        if reference == "float64":
            return (
                f"In float64 the candidate may be off by {self.float64_factor:g} times what rounding the weights once "
                "does to the reference (each moved by one unit roundoff u of its type; at least u of the output's "
                f"scale). In ONNX Runtime it may be off by {self.runtime_factor:g} times the larger of that and the "
                f"reference's own error there with optimizations off; {slices}."
            )
        return (
            "The reference is ONNX Runtime in the model's own precision, optimizations off. Its own error is taken "
            "as the largest of: the shift between its optimization levels, the shift when every weight moves by one "
            f"unit roundoff u, and {self.floor:g} u of the output's scale. The candidate may differ by "
            f"{self.runtime_factor:g} times that; {slices}."
        )


@dataclass(frozen=True)
class Observation:
    """What was measured on one output for one set of inputs.

    Attributes:
        output: the output's name.
        feed: the name of the set of inputs.
        kind: its kind.
        roundoff: unit roundoff of the output's type; for integers and booleans, of the model's floating-point numbers.
        smallest: the smallest number of that type above 0.
        scale: the largest magnitude expected.
        slice_scale: for each axis from 1 on, the largest magnitude in each slice.
        slice_count: for each axis, how many elements other than 0 are expected in each slice.
        metrics: by run.
        slices: by run, for each axis, the largest difference in each slice.
        problems: by run, why there is nothing to compare.
        margins: by how much the largest element of each row leads the next, for scores of classes.
        choices: how many elements there are of a type that is the same or not, such as the indices of an ArgMax; 0 for
            floating point.
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
    problems: Mapping[Run, str]
    smallest: float = 0.0
    margins: NDArray[np.float64] | None = None
    choices: int = 0


@dataclass(frozen=True)
class Finding:
    """One run of the candidate held against its bound.

    Attributes:
        run: which run.
        error: the largest absolute difference.
        bound: the largest that is allowed.
        ratio: ``error / bound``; over 1 is a mismatch, infinite where NaN or the shape differ.
        scale: what the error is to be seen against.
        feed: the set of inputs, or :data:`POOLED`.
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


def sources_of(run: Run, observations: Sequence[Observation]) -> tuple[Run, ...]:
    """The runs whose errors make the own error that a run of the candidate is held to."""
    nudged = any(o.metrics["nudged"].max_abs > 0 for o in observations if "nudged" in o.metrics)
    if run == "candidate_float64" and nudged:
        return ("nudged",)
    own: Run = "original" if any(_has(o, "original") for o in observations) else "original_shipped"
    return ("nudged", own, *_SOURCES.get(run, ()))


def own_errors(observations: Sequence[Observation], rule: Rule, run: Run) -> list[float]:
    """The own error of one output for each of its observations, absolute; see the rule."""
    sources = sources_of(run, observations)
    direct = [max(_errors(o, sources, run), default=0.0) for o in observations]
    relative = [e / o.scale for e, o in zip(direct, observations, strict=True) if o.scale > 0]
    typical = float(np.median(relative)) if relative else 0.0
    usual = float(np.median([o.scale for o in observations]))
    return [
        max(e, typical * o.scale, _floor(rule, o, run) * o.scale, o.roundoff * usual, o.smallest)
        for e, o in zip(direct, observations, strict=True)
    ]


def _floor(rule: Rule, observation: Observation, run: Run) -> float:
    if run == "candidate_tf32":
        return max(observation.roundoff, _TF32_ROUNDOFF) * rule.floor
    # The float64 evaluation of a float64 model rounds as much as the model does: sums may take their part.
    return observation.roundoff * (rule.floor if observation.roundoff > 1e-15 else 1024 * rule.floor)


def _errors(observation: Observation, sources: Sequence[Run], run: Run) -> list[float]:
    errors = [observation.metrics[source].max_abs for source in sources if source in observation.metrics]
    if run == "candidate_tf32" and "nudged" in observation.metrics and "original_tf32" not in observation.metrics:
        # Rounding acts in proportion: that of TensorFloat-32 moves the outputs by so much more than that of the type.
        errors.append(observation.metrics["nudged"].max_abs * _TF32_ROUNDOFF / observation.roundoff)
    return errors


def judge(observations: Sequence[Observation], rule: Rule) -> Judgement:
    """Judge one output.

    Args:
        observations: all of one output.
        rule: how much is allowed.
    """
    findings: list[Finding] = []
    for run in JUDGED:
        own = own_errors(observations, rule, run)
        found = [_whole(o, error, run, rule) for o, error in zip(observations, own, strict=True) if _has(o, run)]
        if not rule.overridden and all(f.ratio < np.inf for f in found):
            found += _slice_findings(observations, run, rule)
        if found:
            findings.append(max(found, key=lambda finding: finding.ratio))
    return Judgement(observations[0].output, tuple(findings))


def _has(observation: Observation, run: Run) -> bool:
    return run in observation.metrics or run in observation.problems


def _whole(observation: Observation, own: float, run: Run, rule: Rule) -> Finding:
    bound = bound_of(observation, own, run, rule)
    if run in observation.problems:
        return Finding(run, 0.0, bound, np.inf, observation.scale, observation.feed, problem=observation.problems[run])
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
    bound = own * (rule.float64_factor if run == "candidate_float64" else rule.runtime_factor)
    # Half of one more: fractions are not exact.
    return max(bound, (_by_chance(observation) + 0.5) / observation.choices) if observation.choices else bound


def _by_chance(observation: Observation) -> int:
    """How many of the choices may turn by rounding alone.

    An element turns where the lead of what it chooses is within rounding: the number of such elements follows Poisson's
    law, and exceeds this with a probability of no more than :data:`_RISK`.
    """
    expected = _TURNS * observation.roundoff * observation.choices
    if expected > 100:  # where the law is almost normal, and its first terms are too small for a number
        return math.ceil(expected + 4 * math.sqrt(expected))
    chance = below = math.exp(-expected)
    count = 0
    while below < 1 - _RISK:
        count += 1
        chance *= expected / count
        below += chance
    return count


def _ratio(error: float, bound: float) -> float:
    if error == 0:
        return 0.0
    return error / bound if bound > 0 else np.inf


def _slice_findings(observations: Sequence[Observation], run: Run, rule: Rule) -> Iterable[Finding]:
    """The worst slice of each axis. Errors are relative to each observation's scale, so that they can be pooled."""
    if run == "candidate_tf32":
        return
    pool = [o for o in observations if o.kind in POOLED_KINDS and o.scale > 0 and run in o.slices]
    axes = {axis for o in pool for axis in o.slice_scale}
    sources = sources_of(run, observations)
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
        bound = factor * np.maximum(direct, np.maximum(typical, _floor(rule, pool[0], run)) * scale)
        ratio = np.where(judged, error / np.where(bound > 0, bound, 1.0), 0.0)
        index = int(ratio.argmax())
        yield Finding(
            run,
            error=float(error[index]),
            bound=float(bound[index]),
            ratio=float(ratio[index]),
            scale=float(scale[index]),
            feed=POOLED,
            place=f"index {index} of axis {axis}",
        )
