from __future__ import annotations

import numpy as np
import pytest

from bnfold.benchmarking.inputs import Feed, InputSpec, merge_specs, random_inputs, settle_shapes
from bnfold.benchmarking.subjects import labels
from bnfold.errors import InputError, ModelError

X = InputSpec("x", "float32", (None, 3, None))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (InputSpec("z", "float32", (None, 3, None)), "takes the inputs z and a.onnx takes x"),
        (InputSpec("x", "float16", (None, 3, None)), r"b.onnx takes the input x float16\[\?, 3, \?\]"),
        (InputSpec("x", "float32", (None, 4, None)), r"x float32\[\?, 4, \?\] and a.onnx takes x float32"),
        (InputSpec("x", "float32", (None, 3)), "b.onnx takes the input"),
    ],
)
def test_models_with_different_inputs_are_refused_by_name(other: InputSpec, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        merge_specs({"a.onnx": [X], "b.onnx": [other]})


def test_an_input_too_many_is_refused() -> None:
    with pytest.raises(ModelError, match=r"b\.onnx takes the inputs mask, x"):
        merge_specs({"a.onnx": [X], "b.onnx": [X, InputSpec("mask", "bool", ())]})


def test_a_size_that_one_model_fixes_is_fixed() -> None:
    fixed = InputSpec("x", "float32", (2, 3, None))
    assert merge_specs({"a": [X], "b": [fixed]}) == (fixed,)


@pytest.mark.parametrize(
    ("shape", "batch", "given", "expected"),
    [
        ((None, 3), None, None, (1, 3)),
        ((None, 3), 8, None, (8, 3)),
        ((4, 3), None, None, (4, 3)),
        ((4, 3), 4, None, (4, 3)),
        ((None, None), None, (2, 5), (2, 5)),
        ((None, None), 8, (2, 5), (8, 5)),
        ((), None, None, ()),
    ],
)
def test_open_sizes_come_from_the_batch_and_the_shapes_given(
    shape: tuple[int | None, ...], batch: int | None, given: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    spec = InputSpec("x", "float32", shape)
    (feed,) = settle_shapes([spec], batch, {} if given is None else {"x": given})
    assert feed.shape == expected


@pytest.mark.parametrize(
    ("spec", "batch", "given", "said"),
    [
        (X, None, {}, r"--input-shape x=1,3,SIZE"),
        (X, None, {"y": (1,)}, "given for y, which is not an input; the inputs are x"),
        (X, None, {"x": (1, 4, 5)}, "1,4,5 does not fit"),
        (X, None, {"x": (1, 3)}, "1,3 does not fit"),
        (InputSpec("x", "float32", (1, 3)), 8, {}, "no input takes a batch of 8"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    spec: InputSpec, batch: int | None, given: dict[str, tuple[int, ...]], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        settle_shapes([spec], batch, given)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "bool", "uint8", "int8", "int32", "int64", "uint64"]
)
def test_inputs_are_the_same_for_a_seed_whatever_the_order_and_vary(dtype: str) -> None:
    feeds = [Feed("a", dtype, (5, 40)), Feed("b", dtype, (200,))]
    one, same = random_inputs(feeds, 3), random_inputs(feeds[::-1], 3)
    other = random_inputs(feeds, 4)
    for name in ("a", "b"):
        assert one[name].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(one[name], same[name])
        assert not np.array_equal(one[name], other[name])
        assert len(np.unique(one[name])) > 1
    assert not np.array_equal(one["a"].ravel(), one["b"])


def test_wide_integers_are_indices_that_exist_in_any_table() -> None:
    values = random_inputs([Feed("tokens", "int64", (1000,))], 0)["tokens"]
    assert set(np.unique(values)) == {0, 1}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a/x.onnx", "b/y.onnx"], ("x.onnx", "y.onnx")),
        (["a/x.onnx", "b/x.onnx"], ("a/x.onnx", "b/x.onnx")),
        (["x.onnx", "x.onnx"], ("x.onnx #1", "x.onnx #2")),
    ],
)
def test_labels_are_short_and_differ(paths: list[str], expected: tuple[str, ...]) -> None:
    assert labels(paths) == expected
