from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from bnfold.benchmarking.scenario import Kind, Scenario
from bnfold.benchmarking.schedule import (
    BLOCK_NS,
    MINIMUM_SAMPLE_NS,
    another_launch,
    plan_blocks,
    rounds,
    waiting_s,
)
from bnfold.benchmarking.steadiness import trend


@pytest.mark.parametrize("candidates", [1, 2, 3, 7])
def test_every_round_runs_every_candidate_once(candidates: int) -> None:
    for order in islice(rounds(candidates, [1, 2]), 20):
        assert sorted(order) == list(range(candidates))


@pytest.mark.parametrize("candidates", [2, 3, 4])
def test_a_linear_drift_cancels_over_each_pair_of_rounds(candidates: int) -> None:
    orders = list(islice(rounds(candidates, [5]), 40))
    for pair in range(0, 40, 2):
        time = 0.0
        total = np.zeros(candidates)
        for order in orders[pair : pair + 2]:
            for index in order:
                total[index] += time
                time += 1
        assert np.ptp(total) == 0


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another() -> None:
    one, same, other = (list(islice(rounds(4, seed), 30)) for seed in ([1, 2], [1, 2], [1, 3]))
    assert one == same
    assert one != other


def test_every_candidate_goes_first_about_equally_often() -> None:
    first = [order[0] for order in islice(rounds(3, [0]), 3000)]
    assert np.bincount(first).min() > 900


SINGLE = Scenario()


def test_short_runs_are_timed_together_until_a_sample_is_long_enough() -> None:
    fast, slow = plan_blocks([2_000, 50_000], [SINGLE, SINGLE], tick_ns=40)
    assert fast.runs == slow.runs
    assert fast.runs * 2_000 >= MINIMUM_SAMPLE_NS
    assert fast.samples * fast.runs * 2_000 == pytest.approx(BLOCK_NS, rel=0.05)
    assert slow.samples * slow.runs * 50_000 == pytest.approx(BLOCK_NS, rel=0.2)


def test_a_coarse_clock_makes_longer_samples() -> None:
    (plan,) = plan_blocks([100_000], [SINGLE], tick_ns=10_000)
    assert plan.runs * 100_000 >= 200 * 10_000


@pytest.mark.parametrize("latency", [1e5, 1e6, 1e9, 1e11])
def test_long_runs_are_timed_one_by_one_and_every_block_has_a_sample(latency: float) -> None:
    (plan,) = plan_blocks([latency], [SINGLE], tick_ns=40)
    assert plan.runs == 1
    assert plan.samples >= 1


@pytest.mark.parametrize(("latency", "streams", "runs"), [(1e4, 2, 5000), (1e6, 1, 50), (1e9, 4, 32)])
def test_an_offline_queue_is_long_enough_for_its_streams(latency: float, streams: int, runs: int) -> None:
    (plan,) = plan_blocks([latency], [Scenario(Kind.OFFLINE, streams=streams)], tick_ns=40)
    assert (plan.runs, plan.samples) == (runs, 1)


@pytest.mark.parametrize(("rate", "arrivals", "lead_in"), [(1000, 250, 63), (100, 25, 7), (0.5, 10, 3)])
def test_poisson_arrivals_are_many_enough_and_the_first_do_not_count(rate: float, arrivals: int, lead_in: int) -> None:
    (plan,) = plan_blocks([1e6], [Scenario(Kind.POISSON, rate=rate)], tick_ns=40)
    assert (plan.runs, plan.samples, plan.lead_in) == (1, arrivals, lead_in)


@pytest.mark.parametrize(
    ("done", "wanted", "spent", "longest", "budget", "expected"),
    [
        (0, 5, 0, 0, 10, True),
        (4, 5, 8, 2, 10, True),
        (5, 5, 8, 2, 10, False),
        (4, 5, 9.5, 2, 10, False),
        (2, 5, 60, 30, 10, True),  # too slow for its time, and still not below three launches
        (3, 5, 90, 30, 10, False),
        (2, 2, 1, 1, 10, False),
    ],
)
def test_launches_go_on_while_the_next_one_fits(
    done: int, wanted: int, spent: float, longest: float, budget: float, expected: bool
) -> None:
    assert another_launch(done, wanted, spent, longest, budget) is expected


def test_a_falling_latency_is_not_steady() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 100)
    falling = 1e5 * np.exp(0.2 * np.linspace(1, 0, 100) + noise)
    line = trend(falling)
    assert line is not None
    assert not line.steady
    assert line.change == pytest.approx(-0.2, abs=0.03)


@pytest.mark.parametrize("outlier", [1.0, 50.0])
def test_a_noisy_flat_latency_is_steady_with_or_without_outliers(outlier: float) -> None:
    generator = np.random.default_rng(1)
    steady = 0
    for _ in range(100):
        latencies = 1e5 * np.exp(generator.normal(0, 0.05, 200))
        latencies[generator.integers(200, size=5)] *= outlier
        line = trend(latencies)
        assert line is not None
        steady += line.steady
    assert steady >= 95


def test_a_handful_of_runs_says_nothing_about_a_trend() -> None:
    assert trend([9e6, 5e6, 3e6]) is None


@pytest.mark.parametrize(
    ("scenario", "seconds"),
    [(SINGLE, 0.0), (Scenario(Kind.OFFLINE, streams=4), 0.0), (Scenario(Kind.POISSON, rate=0.1), 2 * 130.0)],
)
def test_only_arrivals_take_time_in_which_nothing_runs(scenario: Scenario, seconds: float) -> None:
    (plan,) = plan_blocks([1e9], [scenario], tick_ns=40)
    assert waiting_s(plan, scenario) == seconds
