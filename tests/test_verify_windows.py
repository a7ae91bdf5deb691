"""Convolution and pooling of the float64 oracle, held against torch in float64 and ONNX Runtime in float32."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from bnfold.verification import windows
from bnfold.verification.evaluator import Evaluator64
from bnfold.verification.windows import Window

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@st.composite
def _windows(draw):
    rank = draw(st.integers(1, 3))
    ints = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    kernel = ints(1, 3)
    return Window(kernel, ints(1, 3), ints(1, 2), ints(0, 2), ints(0, 2)), ints(3, 7)


@given(_windows(), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.booleans())
@settings(max_examples=60, deadline=None)
def test_conv_agrees_with_torch(case, groups, per_group, outputs, with_bias):
    view, spatial = case
    rank = len(spatial)
    assume(all(n + b + e >= x for n, b, e, x in zip(spatial, view.begin, view.end, view.extent, strict=True)))
    x = _normal(2, groups * per_group, *spatial)
    w = _normal(groups * outputs, per_group, *view.kernel, seed=1)
    b = _normal(groups * outputs, seed=2) if with_bias else None
    pads = [p for pair in reversed(list(zip(view.begin, view.end, strict=True))) for p in pair]
    expected = CONVS[rank](
        F.pad(torch.from_numpy(x), pads),
        torch.from_numpy(w),
        None if b is None else torch.from_numpy(b),
        stride=view.strides,
        dilation=view.dilations,
        groups=groups,
    )
    np.testing.assert_allclose(windows.conv(x, w, b, view, groups), expected.numpy(), rtol=0, atol=1e-12)


@given(_windows(), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.data())
@settings(max_examples=60, deadline=None)
def test_conv_transpose_agrees_with_torch(case, groups, per_group, outputs, data):
    view, spatial = case
    rank = len(spatial)
    extra = tuple(data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(view.strides, view.dilations, strict=True))
    sizes = [
        (n - 1) * s + span + o - 2 * p
        for n, s, span, o, p in zip(spatial, view.strides, view.extent, extra, view.begin, strict=True)
    ]
    assume(min(sizes) >= 1)
    view = Window(view.kernel, view.strides, view.dilations, view.begin, view.begin)
    x = _normal(2, groups * per_group, *spatial)
    w = _normal(groups * per_group, outputs, *view.kernel, seed=1)
    b = _normal(groups * outputs, seed=2)
    expected = TRANSPOSED[rank](
        torch.from_numpy(x),
        torch.from_numpy(w),
        torch.from_numpy(b),
        stride=view.strides,
        padding=view.begin,
        output_padding=extra,
        groups=groups,
        dilation=view.dilations,
    )
    np.testing.assert_allclose(
        windows.conv_transpose(x, w, b, view, groups, extra), expected.numpy(), rtol=0, atol=1e-12
    )


def test_conv_in_blocks_is_the_same_as_in_one(monkeypatch):
    x, w = _normal(2, 4, 9, 8), _normal(6, 2, 3, 3, seed=1)
    view = windows.window((9, 8), (3, 3), pads=(1, 0, 2, 1))
    whole = windows.conv(x, w, None, view, 2)
    monkeypatch.setattr(windows, "_UNROLLED_ELEMENTS", 500)
    np.testing.assert_allclose(windows.conv(x, w, None, view, 2), whole, rtol=0, atol=1e-13)


def _node(op_type, inputs, attributes, opset=17, outputs=("y",)):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in inputs.items()]
    types = [TensorProto.FLOAT, TensorProto.INT64]
    results = [helper.make_tensor_value_info(n, t, None) for n, t in zip(outputs, types[: len(outputs)], strict=True)]
    node = helper.make_node(op_type, list(inputs), list(outputs), **attributes)
    graph = helper.make_graph([node], "one", values, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def _double(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return copy


ROWS = [
    ("Conv", (2, 4, 7, 6), (6, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", (2, 4, 7, 6), (6, 4, 3, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    ("Conv", (2, 4, 7, 6), (6, 2, 3, 3), {"auto_pad": "VALID", "group": 2}),
    ("Conv", (2, 4, 7, 6), (4, 1, 3, 3), {"group": 4, "pads": [0, 1, 2, 3], "dilations": [2, 1]}),
    ("Conv", (1, 2, 9), (3, 2, 4), {"strides": [3], "pads": [2, 1]}),
    ("Conv", (1, 2, 4, 5, 6), (3, 2, 2, 3, 1), {"pads": [1, 0, 0, 0, 1, 0]}),
    ("ConvTranspose", (2, 4, 5, 4), (4, 3, 3, 3), {"strides": [2, 2], "pads": [1, 0, 0, 2]}),
    ("ConvTranspose", (2, 4, 5, 4), (4, 3, 3, 3), {"strides": [2, 2], "output_padding": [1, 0], "group": 2}),
    ("ConvTranspose", (2, 4, 5, 4), (4, 3, 3, 2), {"strides": [2, 3], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", (2, 4, 5, 4), (4, 3, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("ConvTranspose", (2, 4, 5, 4), (4, 3, 3, 3), {"strides": [2, 2], "output_shape": [10, 8]}),
    ("ConvTranspose", (2, 4, 5, 4), (4, 3, 2, 3), {"strides": [3, 2], "output_shape": [15, 8]}),
    ("ConvTranspose", (2, 4, 5, 4), (4, 3, 3, 3), {"dilations": [2, 1], "auto_pad": "VALID", "group": 4}),
    ("ConvTranspose", (1, 2, 5), (2, 3, 3), {"strides": [2]}),
    ("ConvTranspose", (1, 2, 3, 4, 2), (2, 3, 2, 1, 3), {"strides": [2, 1, 1]}),
    ("MaxPool", (2, 3, 7, 6), None, {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    ("MaxPool", (2, 3, 7, 6), None, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", (2, 3, 7, 6), None, {"kernel_shape": [2, 2], "dilations": [2, 3]}),
    ("MaxPool", (2, 3, 7, 6), None, {"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("MaxPool", (2, 3, 9), None, {"kernel_shape": [4], "strides": [3], "ceil_mode": 1, "pads": [1, 1]}),
    ("MaxPool", (1, 2, 5, 4, 3), None, {"kernel_shape": [2, 2, 2]}),
    ("AveragePool", (2, 3, 7, 6), None, {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    ("AveragePool", (2, 3, 7, 6), None, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", (2, 3, 7, 6), None, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", (2, 3, 8, 8), None,
     {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", (2, 3, 7, 6), None, {"kernel_shape": [3, 2], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("LpPool", (2, 3, 7, 6), None, {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "p": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("op_type", "shape", "weight", "attributes"), ROWS)
def test_operator_agrees_with_onnx_runtime(op_type, shape, weight, attributes):
    inputs = {"x": _normal(*shape).astype(np.float32)}
    if weight is not None:
        outputs = weight[0] if op_type == "Conv" else weight[1] * attributes.get("group", 1)
        inputs |= {
            "w": _normal(*weight, seed=1).astype(np.float32),
            "b": _normal(outputs, seed=2).astype(np.float32),
        }
    model = _node(op_type, inputs, attributes)
    expected = ort.InferenceSession(model.SerializeToString()).run(None, inputs)[0]
    ours = Evaluator64(_double(model)).run(None, {n: a.astype(np.float64) for n, a in inputs.items()})[0]
    assert ours.dtype == np.float64
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_dilated_average_pool_divides_by_the_taps_inside():
    x = np.ones((1, 1, 5, 5), dtype=np.float64)
    view = windows.window((5, 5), (2, 2), dilations=(3, 3), pads=(1, 1, 1, 1))
    np.testing.assert_array_equal(windows.average_pool(x, view), np.ones((1, 1, 4, 4)))


@pytest.mark.parametrize("storage_order", [0, 1])
def test_max_pool_indices_agree_with_onnx_runtime(storage_order):
    inputs = {"x": _normal(2, 3, 7, 6).astype(np.float32)}
    attributes = {
        "kernel_shape": [3, 2],
        "strides": [2, 2],
        "pads": [1, 0, 1, 1],
        "storage_order": storage_order,
    }
    model = _node("MaxPool", inputs, attributes, outputs=("y", "i"))
    expected = ort.InferenceSession(model.SerializeToString()).run(None, inputs)[1]
    ours = Evaluator64(_double(model)).run(None, {"x": inputs["x"].astype(np.float64)})[1]
    np.testing.assert_array_equal(ours, expected)


def test_max_pool_of_integers_keeps_the_type():
    x = np.arange(-16, 0, dtype=np.int8).reshape(1, 1, 4, 4)
    view = windows.window((4, 4), (2, 2), strides=(2, 2), pads=(1, 1, 1, 1))
    pooled = windows.max_pool(x, view)
    assert pooled.dtype == np.int8
    np.testing.assert_array_equal(pooled[0, 0], [[-16, -14, -13], [-8, -6, -5], [-4, -2, -1]])
