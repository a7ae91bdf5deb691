"""The verdict, held against simulated machines: many trials with fixed seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from bnfold.benchmarking.statistics import (
    Comparison,
    Interval,
    Verdict,
    compare,
    median_interval,
    percentiles,
    student_t,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Machine:
    """What a simulated machine does to block medians; all in log units.

    Attributes:
        launches: how many.
        rounds: in each launch.
        noise: standard deviation of a block's median.
        bias: standard deviation of what a process' memory layout adds in all its rounds.
        drift: by how much everything slows down over a launch.
        walk: standard deviation of the step that the whole machine takes from round to round.
        outliers: share of blocks that are disturbed, each slowed down by 1.3 to 3 times.
    """

    launches: int = 5
    rounds: int = 12
    noise: float = 0.01
    bias: float = 0.0
    drift: float = 0.0
    walk: float = 0.0
    outliers: float = 0.0

    def run(self, generator: np.random.Generator, slowdown: float) -> tuple[list[Floats], ...]:
        """Block medians of candidate, baseline and control, by launch."""
        processes: tuple[list[Floats], ...] = ([], [], [])
        for _ in range(self.launches):
            common = np.linspace(0, self.drift, self.rounds)
            common = common + np.cumsum(generator.normal(0, self.walk, self.rounds))
            for process, effect in zip(processes, (np.log1p(slowdown), 0.0, 0.0), strict=True):
                log = common + effect + generator.normal(0, self.noise, self.rounds)
                log = log + generator.normal(0, self.bias)
                hit = generator.random(self.rounds) < self.outliers
                log = log + hit * np.log(generator.uniform(1.3, 3.0, self.rounds))
                process.append(1e-3 * np.exp(log))
        return processes


MACHINES = {
    "quiet": Machine(),
    "few rounds": Machine(rounds=2),
    "few launches": Machine(launches=3),
    "two launches": Machine(launches=2),
    "layout bias": Machine(bias=0.02, noise=0.005),
    "drift": Machine(drift=0.3, noise=0.01),
    "wandering": Machine(walk=0.05),
    "outliers": Machine(outliers=0.15),
    "all at once": Machine(noise=0.02, bias=0.01, drift=0.1, walk=0.02, outliers=0.1),
}


def verdicts(machine: Machine, slowdown: float, trials: int, *, control: bool = True) -> list[Comparison]:
    generator = np.random.default_rng(20_240)
    found = []
    for _ in range(trials):
        candidate, baseline, second = machine.run(generator, slowdown)
        found.append(compare(candidate, baseline, second if control else None))
    return found


def share(comparisons: list[Comparison], verdict: Verdict) -> float:
    return sum(comparison.verdict is verdict for comparison in comparisons) / len(comparisons)


@pytest.mark.parametrize("name", MACHINES)
def test_equal_models_are_told_apart_in_at_most_one_run_of_twenty(name: str) -> None:
    found = verdicts(MACHINES[name], 0.0, 200)
    assert share(found, Verdict.NO_DIFFERENCE) >= 0.95


@pytest.mark.parametrize("name", ["quiet", "layout bias", "outliers"])
def test_the_interval_alone_keeps_its_promise_without_a_control(name: str) -> None:
    # 95 % nominal; three standard errors of 300 trials are 4 %.
    found = verdicts(MACHINES[name], 0.0, 300, control=False)
    assert share(found, Verdict.NO_DIFFERENCE) >= 0.92


@pytest.mark.parametrize(
    ("name", "slowdown"),
    [("quiet", 0.03), ("drift", 0.03), ("outliers", 0.03), ("few launches", 0.05), ("layout bias", 0.08)],
)
def test_a_planted_slowdown_is_found(name: str, slowdown: float) -> None:
    found = verdicts(MACHINES[name], slowdown, 100)
    assert share(found, Verdict.SLOWER) >= 0.9
    assert share(found, Verdict.FASTER) == 0


def test_the_interval_covers_the_true_ratio() -> None:
    found = verdicts(MACHINES["all at once"], 0.05, 200)
    covered = sum(c.latency_ratio.low <= 1.05 <= c.latency_ratio.high for c in found)
    assert covered >= 0.94 * len(found)


def test_more_launches_narrow_the_interval_that_layout_bias_widens() -> None:
    def reach(launches: int) -> float:
        found = verdicts(Machine(bias=0.02, launches=launches), 0.0, 40)
        return float(np.median([c.latency_ratio.high for c in found])) - 1

    assert reach(20) < 0.5 * reach(5)


def test_a_faster_candidate_is_faster_and_its_speedup_is_the_inverse_of_its_ratio() -> None:
    candidate, baseline, control = MACHINES["quiet"].run(np.random.default_rng(3), -0.25)
    comparison = compare(candidate, baseline, control)
    assert comparison.verdict is Verdict.FASTER
    assert comparison.speedup.estimate == pytest.approx(1 / 0.75, rel=0.02)
    assert comparison.speedup.low == pytest.approx(1 / comparison.latency_ratio.high)
    assert comparison.speedup.low < comparison.speedup.estimate < comparison.speedup.high


def test_the_control_widens_an_interval_that_would_call_noise_a_difference() -> None:
    rounds = np.ones(8)
    candidate = [1.02 * rounds, 1.021 * rounds, 1.019 * rounds, 1.02 * rounds]
    baseline = [rounds] * 4
    control = [0.96 * rounds, 1.04 * rounds, 1.05 * rounds, 0.95 * rounds]
    assert compare(candidate, baseline, None).verdict is Verdict.SLOWER
    with_control = compare(candidate, baseline, control)
    assert with_control.verdict is Verdict.NO_DIFFERENCE
    assert with_control.noise_floor is not None
    assert with_control.noise_floor > 0.02


def test_noise_that_only_slows_down_makes_no_difference_of_equal_models() -> None:
    # Each block is disturbed half of the time: against the mean of two baselines, the median would be off by 20 %.
    found = verdicts(Machine(outliers=0.5, rounds=40, launches=10), 0.0, 60)
    assert abs(np.median([np.log(c.latency_ratio.estimate) for c in found])) < 0.03
    assert share(found, Verdict.NO_DIFFERENCE) >= 0.95


def test_identical_samples_are_no_difference() -> None:
    same = [np.array([1.0, 1.1, 0.9, 1.0])] * 5
    comparison = compare(same, same, same)
    assert comparison.verdict is Verdict.NO_DIFFERENCE
    assert comparison.latency_ratio.estimate == 1


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.8, 0.9, Verdict.FASTER),
        (1.1, 1.2, Verdict.SLOWER),
        (0.9, 1.1, Verdict.NO_DIFFERENCE),
        (1.0, 1.1, Verdict.NO_DIFFERENCE),
        (0.9, 1.0, Verdict.NO_DIFFERENCE),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(low: float, high: float, expected: Verdict) -> None:
    assert Comparison(Interval((low + high) / 2, low, high), None).verdict is expected


@pytest.mark.parametrize(
    ("samples", "refused"),
    [(9, {90, 99, 99.9}), (10, {99, 99.9}), (99, {99, 99.9}), (100, {99.9}), (999, {99.9}), (1000, set())],
)
def test_a_percentile_is_refused_where_the_samples_are_too_few(samples: int, refused: set[float]) -> None:
    values = np.random.default_rng(0).lognormal(size=samples)
    launches = [np.array_split(values[::2], 3), np.array_split(values[1::2], 3)]
    percents = (50.0, 90.0, 99.0, 99.9)
    found = percentiles(launches, percents, seed=0)
    assert {percent for percent, value in zip(percents, found, strict=True) if value is None} == refused


def test_percentiles_are_those_of_all_samples_and_lie_inside_their_intervals() -> None:
    values = np.random.default_rng(0).lognormal(size=5000)
    launches = [np.array_split(part, 7) for part in np.array_split(values, 5)]
    for percent, found in zip((50.0, 99.0), percentiles(launches, (50.0, 99.0), seed=0), strict=True):
        assert found is not None
        assert found.estimate == pytest.approx(np.percentile(values, percent))
        assert found.low < found.estimate < found.high
        assert found.high / found.low < 2


def test_a_median_s_interval_covers_the_true_median() -> None:
    generator = np.random.default_rng(7)
    covered = 0
    for trial in range(80):
        launches = [
            [np.exp(bias + generator.normal(0, 0.1, 30)) for _ in range(6)] for bias in generator.normal(0, 0.05, 5)
        ]
        (median,) = percentiles(launches, (50.0,), seed=trial)
        assert median is not None
        covered += median.low <= 1 <= median.high
    assert covered >= 0.9 * 80


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)],
)
def test_student_s_t_is_that_of_the_tables(freedom: int, expected: float) -> None:
    assert student_t(freedom) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("count", "ranks"), [(5, None), (6, (0, 5)), (9, (1, 7)), (10, (1, 8)), (20, (5, 14))])
def test_the_interval_of_a_median_lies_between_the_tabled_order_statistics(
    count: int, ranks: tuple[int, int] | None
) -> None:
    values = [float(value) for value in np.random.default_rng(count).permutation(count)]
    found = median_interval(values)
    assert (None if found is None else (found.low, found.high)) == ranks
    if found is not None:
        assert found.estimate == np.median(values)


def test_the_interval_of_a_median_covers_it_whatever_the_distribution() -> None:
    generator = np.random.default_rng(1)
    found = [median_interval(generator.exponential(1.0, 10).tolist()) for _ in range(1000)]
    assert sum(i is not None and i.low <= np.log(2) <= i.high for i in found) >= 950
