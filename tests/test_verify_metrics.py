"""Metrics: known answers, NaN and infinity as such, and properties that hold for every array."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bnfold.verification.metrics import compare, margins, spacing

NAN, INF = np.nan, np.inf


def test_known_values():
    expected = np.array([[1.0, -2.0], [4.0, 0.0]])
    metrics = compare(expected, expected + np.array([[0.0, 0.5], [0.0, 1.0]]))
    assert metrics.scale == 4
    assert metrics.max_abs == 1
    assert metrics.mean_abs == 0.375
    assert metrics.relative == 0.25
    assert metrics.snr_db == pytest.approx(10 * np.log10(21 / 1.25))
    assert metrics.top1 == 1
    assert metrics.non_finite == 0


@given(hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(-1e300, 1e300)))
def test_an_array_does_not_differ_from_itself(array):
    metrics = compare(array, array)
    assert (metrics.max_abs, metrics.mean_abs, metrics.ulp_max, metrics.non_finite) == (0, 0, 0, 0)
    assert metrics.snr_db is None
    assert metrics.cosine is None or metrics.cosine == pytest.approx(1)


@pytest.mark.parametrize(
    ("expected", "actual", "count"),
    [
        ([NAN, 1], [NAN, 1], 0),
        ([INF, 1], [INF, 1], 0),
        ([INF, 1], [-INF, 1], 1),
        ([NAN, 1], [INF, 1], 1),
        ([1, 1], [NAN, 1], 1),
        ([NAN, INF], [1, 1], 2),
    ],
)
def test_nan_and_infinity_must_correspond(expected, actual, count):
    metrics = compare(np.array(expected, dtype=float), np.array(actual, dtype=float))
    assert metrics.non_finite == count
    assert metrics.max_abs == 0


def test_an_excused_element_may_be_infinite():
    expected, actual = np.array([1e9, 1.0]), np.array([INF, NAN])
    assert compare(expected, actual, excused=np.array([True, False])).non_finite == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_spacing_is_the_distance_to_the_next_number(dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    values = np.array([1.0, -1.5, 3.0, 1000.0, 0.0]).astype(kind)
    expected = np.abs(np.spacing(values).astype(np.float64))
    np.testing.assert_array_equal(spacing(values.astype(np.float64), dtype), expected)


def test_one_ulp_is_one():
    value = np.float32(3.7)
    next_one = np.nextafter(value, np.float32(9))
    assert compare(np.array([value], np.float64), np.array([next_one])).ulp_max == 1


def test_integers_and_booleans_are_the_same_or_not():
    metrics = compare(np.array([1, 2, 3, 4]), np.array([1, 2, 9, 4]))
    assert (metrics.max_abs, metrics.scale) == (0.25, 1)
    assert compare(np.array([True]), np.array([True])).max_abs == 0


def test_top1_counts_rows():
    expected = np.array([[1.0, 2.0, 0.0], [5.0, 1.0, 1.0]])
    assert compare(expected, expected[:, ::-1]).top1 == 0.5


def test_large_values_do_not_overflow():
    array = np.array([1e200, -1e200])
    metrics = compare(array, array * 1.01)
    assert metrics.cosine == pytest.approx(1)
    assert metrics.snr_db == pytest.approx(40, abs=1e-6)


def test_an_empty_output_has_no_difference():
    assert compare(np.zeros((0, 3)), np.zeros((0, 3))).max_abs == 0


def test_a_difference_too_large_for_a_number_is_json_all_the_same():
    metrics = compare(np.array([0.0, -1.5e308]), np.array([1e300, 1.5e308]), "float64")
    assert metrics.ulp_max is None
    assert metrics.max_abs == np.inf
    assert json.loads(json.dumps(metrics.to_json(), allow_nan=False))["max_abs"] is None


def test_classes_that_are_left_out_do_not_lead():
    """A mask of −∞ is lower than all other scores, whatever their sign."""
    expected = np.array([[-INF, -3.0, -2.0]])
    assert compare(expected, np.array([[-INF, -2.0, -3.0]])).top1 == 0
    assert margins(expected).tolist() == [1]


def test_rows_without_a_leader_are_no_ties():
    leads = margins(np.array([[NAN, 1.0, 2.0], [INF, INF, 1.0], [1.0, 1.0, 0.0]]))
    assert np.isnan(leads).tolist() == [True, True, False]
    assert leads[2] == 0
