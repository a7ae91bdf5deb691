"""The rule by itself: numbers in, judgement out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bnfold.verification.metrics import compare
from bnfold.verification.verdict import Observation, Rule, judge

U = 2.0**-24
RNG = np.random.default_rng(0)
TRUTH = RNG.standard_normal((16, 4))


def _observation(expected=TRUTH, kind="random", roundoff=U, problems=None, **runs):
    slices = {
        run: {1: np.abs(expected - actual).max(axis=0)}
        for run, actual in runs.items()
        if expected.shape == np.shape(actual)
    }
    return Observation(
        output="y",
        feed=kind,
        kind=kind,
        roundoff=roundoff,
        scale=float(np.abs(expected).max()),
        slice_scale={1: np.abs(expected).max(axis=0)},
        slice_count={1: (expected != 0).sum(axis=0).astype(float)},
        metrics={run: compare(expected, actual) for run, actual in runs.items()},
        slices=slices,
        problems=problems or {},
    )


def _noise(size, seed=1):
    return TRUTH + size * np.random.default_rng(seed).uniform(-1, 1, TRUTH.shape)


@pytest.mark.parametrize(("error", "equivalent"), [(2 * U, True), (1000 * U, False)])
def test_the_bound_in_float64_follows_the_rounding_of_weights(error, equivalent):
    observation = _observation(nudged=_noise(2 * U), candidate_float64=_noise(error, 2))
    assert judge([observation], Rule()).equivalent is equivalent


def test_the_error_of_a_runtime_does_not_widen_the_bound_in_float64():
    observation = _observation(nudged=_noise(U), original=_noise(1e-3), candidate_float64=_noise(1e-4, 2))
    assert not judge([observation], Rule()).equivalent


def test_the_runtime_may_be_as_wrong_as_the_reference_is():
    runs = {"nudged": _noise(U), "candidate_float64": _noise(U, 2), "candidate_plain": _noise(1e-4, 3)}
    assert judge([_observation(**runs, original=_noise(1e-4))], Rule()).equivalent
    assert not judge([_observation(**runs, original=_noise(2 * U))], Rule()).equivalent


def test_a_small_channel_does_not_hide_behind_a_large_one():
    truth = TRUTH * np.array([1.0, 1.0, 1.0, 1e-6])
    nudged = truth * (1 + U)
    wrong = truth * np.array([1, 1, 1, 1.01])  # 1e-8 of the output's scale, far below its own bound
    judgement = judge([_observation(truth, nudged=nudged, candidate_float64=wrong)], Rule())
    assert not judgement.equivalent
    assert judgement.worst.place == "index 3 of axis 1"


def test_one_lucky_set_of_inputs_does_not_raise_an_alarm():
    usual = [_observation(nudged=_noise(50 * U, s), candidate_float64=_noise(50 * U, s + 9)) for s in range(4)]
    lucky = _observation(kind="constant", nudged=TRUTH, candidate_float64=_noise(50 * U, 20))
    assert judge([*usual, lucky], Rule()).equivalent


def test_an_error_where_zero_is_expected_is_a_mismatch():
    zero = np.zeros_like(TRUTH)
    judgement = judge([_observation(zero, candidate_float64=zero + 1e-3)], Rule())
    assert not judgement.equivalent


def test_nan_is_a_mismatch_whatever_the_tolerance():
    actual = TRUTH.copy()
    actual[0, 0] = np.nan
    judgement = judge([_observation(candidate_plain=actual)], Rule(rtol=1e9))
    assert math.isinf(judgement.worst.ratio)
    assert "NaN" in judgement.worst.problem


def test_another_shape_is_a_mismatch():
    observation = _observation(problems={"candidate_shipped": "the shapes (1,) and (2,)"})
    judgement = judge([observation], Rule())
    assert not judgement.equivalent
    assert judgement.worst.problem == "the shapes (1,) and (2,)"


@pytest.mark.parametrize(
    ("rule", "equivalent"),
    [(Rule(rtol=1e-3), True), (Rule(atol=1e-2), True), (Rule(rtol=1e-9), False), (Rule(atol=1e-9), False)],
)
def test_tolerances_of_the_user_replace_the_rule(rule, equivalent):
    observation = _observation(nudged=_noise(U), candidate_float64=_noise(1e-4))
    assert judge([observation], rule).equivalent is equivalent
    assert "as asked for" in rule.text()


def test_the_rule_says_its_own_factors():
    text = Rule(float64_factor=5, runtime_factor=7, slice_factor=3).text()
    assert all(f"{factor} times" in text for factor in (5, 7, 3))


def _choices(count, turned, roundoff=U, own=0):
    expected, actual, nudged = (np.zeros(count, dtype=np.int64) for _ in range(3))
    actual[:turned], nudged[:own] = 1, 1
    metrics = {"candidate_plain": compare(expected, actual), "nudged": compare(expected, nudged)}
    return Observation("y", "random 1", "random", roundoff, 1.0, {}, {}, metrics, {}, {}, choices=count)


@pytest.mark.parametrize(
    ("count", "allowed", "roundoff"),
    [(1, 0, U), (1000, 0, U), (65536, 1, U), (10**7, 10, U), (1, 0, 2.0**-11), (9216, 51, 2.0**-11), (10**6, 4157, 2.0**-11)],
)  # fmt: skip
def test_choices_may_turn_as_often_as_rounding_turns_them(count, allowed, roundoff):
    assert judge([_choices(count, allowed, roundoff)], Rule()).equivalent
    assert not judge([_choices(count, allowed + 1, roundoff)], Rule()).equivalent


def test_choices_may_turn_more_where_those_of_the_reference_do():
    assert judge([_choices(1000, 8, own=1)], Rule()).equivalent
    assert not judge([_choices(1000, 9, own=1)], Rule()).equivalent
