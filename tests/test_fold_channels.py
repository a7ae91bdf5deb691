"""Where the channels go: axes found by proof through a reshape, and ops that pick, pad or resample them."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from folding import Array, constants, folded, model_of, norm, ops
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.affine import ChannelAffine
from bnfold.fold import fold
from bnfold.fold.commute import RULES, OpView
from bnfold.fold.commute.layout import matching_axis

RELAYOUT = [
    # name, before, after, axis before, axis after (None: no proof)
    ("same", ("N", 4, 5), ("N", 4, 5), 1, 1),
    ("pixels flattened", ("N", 4, 5, 6), ("N", 4, 30), 1, 1),
    ("batch and tokens flattened", ("N", 7, 4), (None, 4), 2, 1),
    ("channels last, batch unknown", (None, 7, 4), (None, 4), 2, 1),
    ("squeezed", ("N", 4, 1, 1), ("N", 4), 1, 1),
    ("unsqueezed in front", ("N", 4), (1, "N", 4), 1, 2),
    ("another axis of the same length", ("N", 4, 5), ("N", 5, 4), 1, None),
    ("grouped", ("N", 4, 5), ("N", 2, 2, 5), 1, None),
    ("unknown on both sides", (None, 4, None), (None, 4, None), 1, None),
    ("symbols of other names", ("N", 4, "H"), ("M", 4, "W"), 1, None),
]


@pytest.mark.parametrize(
    ("before", "after", "source", "target"), [c[1:] for c in RELAYOUT], ids=[c[0] for c in RELAYOUT]
)
def test_axis_is_found_only_by_proof(before: tuple, after: tuple, source: int, target: int | None) -> None:
    assert matching_axis(before, source, after) == target
    if target is not None:
        assert matching_axis(after, target, before) == source


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.booleans(), st.data())
def test_relayout_agrees_with_numpy(shape: list[int], is_open: bool, data: st.DataObject) -> None:
    """Any reshape: where a rule moves an affine, the arrays agree; it does wherever an affine can be moved at all."""
    flat = data.draw(st.permutations(_splits(math.prod(shape), data)))
    for source, target in ((shape, flat), (flat, shape)):
        axis = data.draw(st.integers(0, len(source) - 1))
        kinds = np.arange(source[axis]) // data.draw(st.integers(1, 3)) % data.draw(st.integers(1, 4))
        affine = ChannelAffine(axis, kinds + 2.0, kinds - 5.0)
        known = [tuple(dims) if not is_open else (None, *dims) for dims in (source, target)]
        moved = ChannelAffine(axis + is_open, affine.scale, affine.shift)
        view = partial(OpView, "Reshape", 17, {}, present=frozenset({0, 1}), constants={})
        forward = RULES["Reshape"].forward(view((known[0], None), (known[1],)), 0, moved)
        backward = RULES["Reshape"].backward(view((known[1], None), (known[0],)), 0, moved)
        for found in (forward, backward):
            possible = _can_move(source, axis, kinds, target, samples=2 if is_open else 1)
            assert isinstance(found, dict) == possible
            if isinstance(found, dict):
                lead = (2,) if is_open else ()
                x = np.arange(math.prod(source) * (2 if is_open else 1), dtype=np.float64)
                wanted = moved.apply(x.reshape(*lead, *source)).reshape(*lead, *target)
                assert np.array_equal(found[0].apply(x.reshape(*lead, *target)), wanted)


def _can_move(source: list[int], axis: int, kinds: Array, target: list[int], samples: int) -> bool:
    """Whether all elements at each place along some axis of ``target`` are of one kind."""
    shape = [1] * len(source)
    shape[axis] = source[axis]
    laid = np.broadcast_to(kinds.reshape(shape), source).reshape(1, -1).repeat(samples, 0).reshape(samples, *target)
    axes = range(1, laid.ndim)
    return any(all(np.unique(part).size <= 1 for part in np.moveaxis(laid, a, 0)) for a in axes)


def _splits(size: int, data: st.DataObject) -> list[int]:
    factors: list[int] = []
    while size > 1:
        factor = data.draw(st.sampled_from([d for d in range(2, size + 1) if size % d == 0]))
        factors.append(factor)
        size //= factor
    return [*factors, *([1] * data.draw(st.integers(0, 2)))] or [1]


@given(st.permutations(range(4)), st.integers(0, 3))
def test_transpose_agrees_with_numpy(permutation: list[int], axis: int) -> None:
    shape = (2, 3, 4, 5)
    x = np.arange(120, dtype=np.float64).reshape(shape)
    op = OpView("Transpose", 17, {"perm": permutation}, (shape,), (None,), frozenset({0}), {})
    affine = ChannelAffine.along(axis, np.arange(shape[axis]) + 2.0, 1.0)
    forward = RULES["Transpose"].forward(op, 0, affine)
    assert isinstance(forward, dict)
    assert np.array_equal(forward[0].apply(x.transpose(permutation)), affine.apply(x).transpose(permutation))
    backward = RULES["Transpose"].backward(op, 0, forward[0])
    assert isinstance(backward, dict)
    assert backward[0].axis == axis


def test_concat_gives_each_conv_its_slice() -> None:
    text = (
        "g (double[N,3,8,8] x) => (double[N,9,6,6] y) { d = Conv(x, w) e = Conv(x, v) c = Concat<axis=-3>(d, e) "
        "y = BatchNormalization(c, scale, bias, mean, var) }"
    )
    model, _ = folded(model_of(text, constants(w=(4, 3, 3, 3), v=(5, 3, 3, 3)) | norm(9)))
    assert ops(model) == {"Conv": 2, "Concat": 1}


def test_split_hands_each_consumer_its_channels() -> None:
    text = (
        "g (double[N,6,4,4] x) => (double[N,3,4,4] y, double[N,5,4,4] z) { a = Tanh(x) "
        "b = BatchNormalization(a, scale, bias, mean, var) c, d = Split<axis=1>(b, parts) y = Conv(c, w) z = Conv(d, v) }"
    )
    model, _ = folded(model_of(text, constants(w=(3, 2, 1, 1), v=(5, 4, 1, 1)) | norm(6) | {"parts": np.array([2, 4])}))
    assert ops(model) == {"Tanh": 1, "Split": 1, "Conv": 2}


def test_space_to_depth_hands_each_channel_to_its_pixels() -> None:
    text = (
        "g (double[N,3,4,4] x) => (double[N,5,2,2] y) { a = Tanh(x) "
        "b = BatchNormalization(a, scale, bias, mean, var) c = SpaceToDepth<blocksize=2>(b) y = Conv(c, w) }"
    )
    model, _ = folded(model_of(text, constants(w=(5, 12, 1, 1)) | norm(3)))
    assert ops(model) == {"Tanh": 1, "SpaceToDepth": 1, "Conv": 1}


def assert_nothing_folds(arrays: dict, text: str, opset: int = 18) -> None:
    model = model_of(text, arrays, opset=opset)
    before = ops(model)
    fold(model)
    assert ops(model) == before


@pytest.mark.parametrize("mode", ["edge", "reflect", "constant"])
@pytest.mark.parametrize("axes", [False, True])
@pytest.mark.parametrize("forward", [False, True])
def test_pad_that_moves_the_channels_and_keeps_their_number_is_not_crossed(
    mode: str, axes: bool, forward: bool
) -> None:
    pad = f'Pad<mode="{mode}">(a, p, "", ax)' if axes else f'Pad<mode="{mode}">(a, p)'
    chain = f"a = Mul(x, k) c = {pad} y = Conv(c, w)" if forward else f"a = Conv(x, w) c = {pad} y = Mul(c, k)"
    text = f"g (double[1,3,4,4] x) => (double[1,3,4,4] y) {{ {chain} }}"
    arrays = constants(w=(3, 3, 1, 1), k=(3, 1, 1)) | {"p": np.array([1, -1] if axes else [0, 1, 0, 0, 0, -1, 0, 0])}
    assert_nothing_folds(arrays | ({"ax": np.array([-3])} if axes else {}), text)


@pytest.mark.parametrize(
    ("resize", "opset"),
    [
        ('Resize<mode="nearest">(a, "", s)', 13),
        ('Resize<mode="nearest">(a, "", s)', 18),
        ('Resize<mode="linear">(a, "", s)', 18),
        ('Resize<mode="nearest", keep_aspect_ratio_policy="not_smaller", axes=[1,2,3]>(a, "", "", z)', 18),
        ('Resize<mode="nearest", coordinate_transformation_mode="tf_half_pixel_for_nn">(a, "", s1)', 13),
        ('Resize<mode="nearest">(a, "", run)', 18),
    ],
)
def test_resize_that_resamples_the_channels_is_not_crossed(resize: str, opset: int) -> None:
    text = (
        f"g (double[1,4,30,30] x, float[4] run) => (double[N,5,P,Q] y) {{ a = Mul(x, k) c = {resize} y = Conv(c, w) }}"
    )
    arrays = constants(w=(5, 4, 1, 1), k=(4, 1, 1)) | {
        "s": np.array([1, 1.2, 2, 2], np.float32), "s1": np.array([1, 1, 2, 2], np.float32), "z": np.array([4, 33, 33]),
    }  # fmt: skip
    assert_nothing_folds({n: a for n, a in arrays.items() if f"{n})" in text or f"{n}," in text}, text, opset)


@pytest.mark.parametrize(
    "resize",
    ['Resize<mode="nearest", axes=[2,3]>(a, "", "", z)', 'Resize<mode="linear">(a, "", "", full)'],
)
def test_resize_of_other_axes_by_sizes_is_crossed(resize: str) -> None:
    text = f"g (double[1,4,6,6] x) => (double[1,5,9,8] y) {{ b = Tanh(x) a = Mul(b, k) c = {resize} y = Conv(c, w) }}"
    arrays = constants(w=(5, 4, 1, 1), k=(4, 1, 1)) | {"z": np.array([9, 8]), "full": np.array([1, 4, 9, 8])}
    model = model_of(text, {n: a for n, a in arrays.items() if f"{n})" in text}, opset=18)
    after, _ = folded(model)
    assert "Mul" not in ops(after)


def test_affine_of_a_dropout_ratio_is_not_one_of_its_data() -> None:
    text = "g (double[1,3] x, float r) => (double[1,3] y) { m = Mul(r, k) d = Dropout(x, m) y = MatMul(d, w) }"
    assert_nothing_folds(constants(w=(3, 3)) | {"k": np.array(0.5, np.float32)}, text, 13)


@pytest.mark.parametrize(
    "body",
    [
        "c = Slice(b, two, two, one) d = Concat<axis=1>(c, x) y = Conv(d, w)",
        "c = Gather<axis=1>(b, none) d = Concat<axis=1>(c, x) y = Conv(d, w)",
        "c, e = Split<axis=1>(b, parts) y = Conv(e, w)",
    ],
)
def test_no_channels_at_all_are_no_obstacle(body: str) -> None:
    text = f"g (double[N,4,6,6] x) => (double[N,5,6,6] y) {{ a = Tanh(x) b = BatchNormalization(a, scale, bias, mean, var) {body} }}"
    extra = {"two": np.array([2]), "one": np.array([1]), "none": np.zeros(0, np.int64), "parts": np.array([0, 4])}
    arrays = (
        constants(w=(5, 4, 1, 1)) | norm(4) | {n: a for n, a in extra.items() if f"{n})" in body or f"{n}," in body}
    )
    model, _ = folded(model_of(text, arrays))
    assert "BatchNormalization" not in ops(model)


@pytest.mark.parametrize("pool", ["AveragePool", "MaxPool"])
def test_windows_of_nothing_but_padding_are_an_obstacle(pool: str) -> None:
    text = (
        f"g (double[1,1,2,2] x) => (double[1,1,1,1] y) {{ a = Conv(x, w) "
        f"c = {pool}<kernel_shape=[2,2], pads=[1,1,1,1], dilations=[3,3]>(a) y = Add(c, k) }}"
    )
    assert_nothing_folds(constants(w=(1, 1, 1, 1)) | {"k": np.array(5.0)}, text, 19)


def test_output_of_a_split_that_nobody_reads_is_no_obstacle() -> None:
    text = (
        "g (double[N,4,6,6] x) => (double[N,5,6,6] y) { a = Tanh(x) b = BatchNormalization(a, scale, bias, mean, var) "
        "c, e = Split<axis=1>(b, parts) y = Conv(c, w) }"
    )
    model, _ = folded(model_of(text, constants(w=(5, 2, 1, 1)) | norm(4) | {"parts": np.array([2, 2])}))
    assert "BatchNormalization" not in ops(model)


def test_branch_whose_part_changes_nothing_may_be_an_input() -> None:
    text = "g (double[N,4,6,6] x) => (double[N,8,6,6] y) { a = Conv(x, w) c = Concat<axis=1>(a, x) y = Mul(c, k) }"
    scale = np.concatenate([np.arange(2.0, 6.0), np.ones(4)]).reshape(8, 1, 1)
    model, _ = folded(model_of(text, constants(w=(4, 4, 1, 1)) | {"k": scale}))
    assert ops(model) == {"Conv": 1, "Concat": 1}


def test_indices_of_a_max_pool_do_not_change() -> None:
    text = (
        "g (double[N,3,8,8] x) => (double[N,4,3,3] y, int64[N,4,3,3] i) { d = Conv(x, w) "
        "c, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d) y = Mul(c, k) }"
    )
    for scale, left in ((np.array([1.0, 2, 0, 3]), 1), (np.array([1.0, 2, 4, 3]), 0)):
        model, _ = folded(model_of(text, constants(w=(4, 3, 3, 3)) | {"k": scale.reshape(4, 1, 1)}))
        assert ops(model).get("Mul", 0) == left
