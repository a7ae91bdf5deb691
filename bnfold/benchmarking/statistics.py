"""Intervals and verdicts: pure numpy.

All latencies are compared as logarithms. In launch *l* and round *r*, candidate *c*'s block has the median
``m_c[l, r]``; its paired difference from the baseline is ``log m_c[l, r] - log m_0[l, r]``, and the median of that
over the rounds of a launch is its effect ``e[l]``. Neither drift (the pairing) nor bursts of other work in less than
half of the rounds (the median) move it much. Where a control runs, ``e[l]`` is the mean of the effects against the
baseline's two processes; not the effect against their mean, which is not symmetric around zero for equal models
when noise only ever slows things down. The estimate is the mean over the ``L`` launches; the ratio is its
exponential.

The interval is ``estimate ± t(L-1) · s / √L``, where ``s`` is the standard deviation of the launches' effects: what
a bootstrap that resamples whole launches converges to, with Student's t at ``L-1`` degrees of freedom in place of
the percentiles, which for five launches would make a nominal 95 % interval cover about 83 %. Resampling the
rounds within each launch as well would count their noise twice, since ``s`` holds it already (Davison and
Hinkley, *Bootstrap Methods and their Application*, section 3.8, advise against it too).

The control sets a floor. Two processes of the same file differ by ``d[l]`` in launch *l*; with
``v = mean d[l]²`` (the true mean is zero, so ``L`` degrees of freedom), a candidate no different from the
baseline strays from the mean of two baselines by a standard error of ``√(3/4 · v / L)``. No interval is narrower
than ``t(L)`` times that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Resamples for the percentiles of one candidate, which only feed a standard error.
_PERCENTILE_RESAMPLES = 500

#: The bootstrap of a percentile looks at no more samples than this, evenly spread over their ranks.
_MOST_SAMPLES = 20_000

_CONFIDENCE = 0.95


class Verdict(StrEnum):
    """What a comparison shows."""

    FASTER = "faster"
    SLOWER = "slower"
    NO_DIFFERENCE = "no difference shown"


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval, all in the unit of what is estimated."""

    estimate: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """The interval as plain data."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Comparison:
    """A candidate against the baseline.

    Attributes:
        latency_ratio: the candidate's latency over the baseline's; below 1 is faster.
        noise_floor: the half-width that the control forces upon the interval, as a fraction; None without
            one.
    """

    latency_ratio: Interval
    noise_floor: float | None

    @property
    def verdict(self) -> Verdict:
        """Faster or slower only if the whole interval is on one side of 1."""
        if self.latency_ratio.high < 1:
            return Verdict.FASTER
        if self.latency_ratio.low > 1:
            return Verdict.SLOWER
        return Verdict.NO_DIFFERENCE

    @property
    def speedup(self) -> Interval:
        """The baseline's latency over the candidate's; above 1 is faster."""
        ratio = self.latency_ratio
        return Interval(1 / ratio.estimate, 1 / ratio.high, 1 / ratio.low)

    def to_json(self) -> dict[str, object]:
        """The comparison as plain data."""
        return {
            "verdict": self.verdict.value,
            "speedup": self.speedup.to_json(),
            "latency_ratio": self.latency_ratio.to_json(),
            "noise_floor": self.noise_floor,
        }


def compare(candidate: Sequence[Floats], baseline: Sequence[Floats], control: Sequence[Floats] | None) -> Comparison:
    """Compare paired block medians; see the top of this module.

    Args:
        candidate: for each of at least two launches, the median latency of each round, in any unit.
        baseline: the same for the baseline, round by round beside it.
        control: the same for a second process of the baseline, or None.
    """
    effects = paired_effects(candidate, baseline, control)
    floor = None if control is None else noise_floor(launch_effects(control, baseline))
    estimate, half = mean_effect(effects)
    half = max(half, floor or 0.0)
    ratio = Interval(*(float(np.exp(value)) for value in (estimate, estimate - half, estimate + half)))
    return Comparison(ratio, None if floor is None else float(np.expm1(floor)))


def round_medians(rounds: Sequence[Sequence[int]]) -> Floats:
    """The median of each round of a launch, at least 1."""
    return np.maximum([np.median(block) for block in rounds], 1.0).astype(np.float64)


def paired_effects(candidate: Sequence[Floats], baseline: Sequence[Floats], control: Sequence[Floats] | None) -> Floats:
    """The effect in each launch, against the baseline, or the mean of that and of the one against its control."""
    effects = launch_effects(candidate, baseline)
    return effects if control is None else (effects + launch_effects(candidate, control)) / 2


def launch_effects(candidate: Sequence[Floats], reference: Sequence[Floats]) -> Floats:
    """For each launch, the median over its rounds of the log latency of the candidate over the reference's."""
    pairs = zip(candidate, reference, strict=True)
    return np.array([float(np.median(np.log(ours) - np.log(theirs))) for ours, theirs in pairs])


def launch_levels(candidate: Sequence[Floats]) -> Floats:
    """For each launch, the median over its rounds of the log latency."""
    return np.array([float(np.median(np.log(rounds))) for rounds in candidate])


def welch(ours: Floats, theirs: Floats) -> tuple[float, float]:
    """The difference of two means whose samples are not paired, and the half-width of Welch's interval.

    Args:
        ours: at least two values.
        theirs: the same; their variance may differ.
    """
    parts = [float(values.var(ddof=1)) / len(values) for values in (ours, theirs)]
    difference = float(ours.mean() - theirs.mean())
    if sum(parts) == 0:
        return difference, 0.0
    spread = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (ours, theirs), strict=True))
    return difference, student_t(sum(parts) ** 2 / spread) * math.sqrt(sum(parts))


def mean_effect(effects: Floats) -> tuple[float, float]:
    """The mean over launches of their effects, and the half-width of its interval."""
    launches = len(effects)
    error = float(effects.std(ddof=1)) / math.sqrt(launches)
    return float(effects.mean()), student_t(launches - 1) * error


def noise_floor(differences: Floats) -> float:
    """The half-width below which a difference is no news, from control minus baseline in each launch."""
    launches = len(differences)
    return student_t(launches) * math.sqrt(0.75 * float(np.mean(differences**2)) / launches)


def percentiles(
    launches: Sequence[Sequence[Floats]], percents: Sequence[float], seed: int
) -> tuple[Interval | None, ...]:
    """Percentiles of all samples with their intervals; None for one that the samples are too few to speak of.

    A percentile *p* needs ``1 / (1 - p/100)`` samples: 100 for the 99th, 1,000 for the 99.9th. The interval
    is that of Student's t in the logarithm, its standard error from a bootstrap over launches, then blocks.

    Args:
        launches: for each of at least two launches, for each block, its samples; all positive.
        percents: each between 0 and 100, for example 99.
        seed: of the bootstrap.
    """
    samples = np.concatenate([block for blocks in launches for block in blocks])
    resamples = np.log(_resampled_percentiles(launches, percents, np.random.default_rng(seed)))
    count = len(launches)
    halves = student_t(count - 1) * resamples.std(axis=0) * np.sqrt(count / (count - 1))
    results: list[Interval | None] = []
    for percent, half in zip(percents, halves, strict=True):
        if len(samples) < round(1 / (1 - percent / 100), 6):
            results.append(None)
            continue
        estimate = float(np.percentile(samples, percent))
        results.append(Interval(estimate, estimate * float(np.exp(-half)), estimate * float(np.exp(half))))
    return tuple(results)


def _resampled_percentiles(
    launches: Sequence[Sequence[Floats]], percents: Sequence[float], generator: np.random.Generator
) -> Floats:
    """The percentiles in each of some resamples: sorted samples weighed with their block's multiplicity."""
    every_block = [block for blocks in launches for block in blocks]
    samples = np.concatenate(every_block)
    owner = np.repeat(np.arange(len(every_block)), [len(block) for block in every_block])
    order = np.argsort(samples, kind="stable")
    order = order[:: max(1, len(order) // _MOST_SAMPLES)]
    samples, owner = samples[order], owner[order]
    starts = np.cumsum([0, *(len(blocks) for blocks in launches)])
    shares = np.asarray(percents) / 100
    results = np.empty((_PERCENTILE_RESAMPLES, len(percents)))
    for row in results:
        picks = [
            generator.integers(starts[pick], starts[pick + 1], size=starts[pick + 1] - starts[pick])
            for pick in generator.integers(len(launches), size=len(launches))
        ]
        mass = np.cumsum(np.bincount(np.concatenate(picks), minlength=len(every_block))[owner])
        row[:] = samples[np.searchsorted(mass, mass[-1] * shares).clip(max=len(samples) - 1)]
    return results


def student_t(freedom: float, probability: float = (1 + _CONFIDENCE) / 2) -> float:
    """The quantile of Student's t distribution.

    Args:
        freedom: degrees of freedom, at least 1.
        probability: the share of the distribution below the quantile.
    """
    # Imported here: it takes longer than the rest of bnfold together.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def median_interval(values: Sequence[float]) -> Interval | None:
    """The median with its 95 % interval between two order statistics; None for fewer than six values.

    With ``n`` values, fewer than ``k`` lie below the true median with probability ``P(Bin(n, 1/2) < k)``, whatever
    they are distributed like; the interval runs from the ``k``-th smallest to the ``k``-th greatest for the
    greatest ``k`` that leaves at most 2.5 % on each side. Five values are too few for any.
    """
    ordered = sorted(values)
    count = len(ordered)
    outside, rank = 0.5**count, 0
    while outside <= (1 - _CONFIDENCE) / 2:
        rank += 1
        outside += math.comb(count, rank) * 0.5**count
    if rank == 0:
        return None
    return Interval(float(np.median(ordered)), ordered[rank - 1], ordered[-rank])
