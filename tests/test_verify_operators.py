"""The float64 operators against ONNX Runtime in the forms of older opsets, and against onnx's own node tests."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference.ops import op_grid_sample

from bnfold.session import SessionOptions, create_session
from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.metrics import is_float
from bnfold.verification.oracle import Oracle
from bnfold.verification.sampling import deform_conv, grid_sample
from bnfold.verification.windows import conv, window

IMAGE = "float[2,4,6,6] x"
ROWS = "float[2,3] x"
TWICE = "float[4] s = {1, 1, 2, 2}"
FAR = "float[2,1,2,2] g = {0.1, 1.2, -3.3, 2.4, -0.5, 1.06, 0.7, -1.8}"
BODY = "body = g (%s a, %s b) => (%s c, %s d) { c = Add(a, b)  d = Neg(c) }"
VECTOR = BODY % (("float[3]",) * 4)

#: opset, input, constants, nodes
FORMS = [
    (7, IMAGE, "", 'y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (x)'),
    (7, IMAGE, "", 'y = Upsample <mode = "linear", scales = [1.0, 1.0, 2.0, 2.0]> (x)'),
    (9, IMAGE, TWICE, 'y = Upsample <mode = "nearest"> (x, s)'),
    (9, IMAGE, TWICE, 'y = Upsample <mode = "linear"> (x, s)'),
    (10, IMAGE, TWICE, 'y = Resize <mode = "nearest"> (x, s)'),
    (10, IMAGE, TWICE, 'y = Resize <mode = "linear"> (x, s)'),
    (10, IMAGE, "float[4] s = {1, 1, 0.5, 0.5}", 'y = Resize <mode = "nearest"> (x, s)'),
    (11, IMAGE, TWICE + ", float[0] r = {}", 'y = Resize <mode = "cubic"> (x, r, s)'),
    (13, IMAGE, "int64[4] z = {2, 4, 9, 11}", 'y = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , , z)'),
    (18, IMAGE, "int64[4] z = {2, 4, 3, 4}", 'y = Resize <mode = "linear", antialias = 1> (x, , , z)'),
    (7, IMAGE, "", "y = Softmax (x)"),
    (9, IMAGE, "", "y = Softmax <axis = 2> (x)"),
    (12, IMAGE, "", "y = Softmax <axis = -1> (x)"),
    (13, IMAGE, "", "y = Softmax (x)"),
    (13, IMAGE, "", "y = Softmax <axis = 1> (x)"),
    (9, IMAGE, "", "y = LogSoftmax (x)"),
    (13, IMAGE, "", "y = LogSoftmax <axis = 0> (x)"),
    (9, IMAGE, "", "y = Hardmax (x)"),
    (13, IMAGE, "", "y = Hardmax <axis = 1> (x)"),
    (9, IMAGE, "", "y = LRN <size = 3> (x)"),
    (9, IMAGE, "", "y = LRN <size = 5, alpha = 0.5, beta = 0.5, bias = 2.0> (x)"),
    (9, IMAGE, "", "y = GlobalLpPool <p = 3> (x)"),
    (9, IMAGE, "", "y = Pad <pads = [0,0,1,0,0,0,-1,2], value = 0.5> (x)"),
    (9, IMAGE, "", 'y = Pad <pads = [0,0,1,-2,0,0,2,1], mode = "reflect"> (x)'),
    (13, IMAGE, "int64[8] p = {0, 0, -1, -2, 0, 0, 3, -1}, float c = {0.5}", "y = Pad (x, p, c)"),
    (13, IMAGE, "int64[8] p = {0, 0, 1, -2, 0, -1, 2, 1}", 'y = Pad <mode = "edge"> (x, p)'),
    (18, IMAGE, "int64[4] p = {1, -2, 0, 2}, int64[2] a = {-1, 2}", 'y = Pad <mode = "reflect"> (x, p, , a)'),
    (19, IMAGE, "int64[4] p = {1, 2, 0, 2}, int64[2] a = {-1, 2}", 'y = Pad <mode = "wrap"> (x, p, , a)'),
    (9, IMAGE, "int64[1,1,1,1] i = {2}, float[1,1,1,1] u = {9}", "y = Scatter <axis = 1> (x, i, u)"),
    (10, ROWS, "float s = {0.1}, uint8 z = {128}", "q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z)"),
    (13, ROWS, "float[3] s = {0.1, 0.2, 0.3}, int8[3] z = {1, 2, 3}, int8[3,2] w = {1, 2, 3, 4, 5, 6}", "d = DequantizeLinear <axis = 0> (w, s, z)  y = MatMul(x, d)"),
    (13, ROWS, "float[2] s = {0.1, 0.2}, int8[3,2] w = {1, 2, 3, 4, 5, 6}", "d = DequantizeLinear (w, s)  y = MatMul(x, d)"),
    (21, "float[2,4] x", "float[2,2] s = {0.1, 0.2, 0.3, 0.4}, int8[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}", "d = DequantizeLinear <axis = 0, block_size = 2> (w, s)  y = MatMul(x, d)"),
    (13, ROWS, "int64 n = {3}, bool t = {1}", "f, y = Loop (n, t, x) <body = g (int64 i, bool e, float[2,3] a) => (bool o, float[2,3] b, float[2,3] s) { o = Identity(e)  b = Add(a, a)  s = Neg(b) }>"),
    (13, ROWS, "int64 n = {3}, bool t = {1}, int64 z = {0}", "r = Gather(x, z)  f, y = Loop (n, t, r) <body = g (int64 i, bool e, float[3] a) => (bool o, float[3] b, int64 s) { o = Identity(e)  b = Add(a, r)  s = Identity(i) }>  h = Cast <to = 1> (y)  k = Cast <to = 1> (n)  l = Mul(h, k)"),
    (13, ROWS, "int64 n = {30}, bool t = {1}, int64 m = {4}", "y = Loop (n, t, x) <body = g (int64 i, bool e, float[2,3] a) => (bool o, float[2,3] b) { o = Less(i, m)  b = Add(a, a) }>"),
    (11, "float[5,3] x", "float[3] z = {0, 0, 0}", f"f, y = Scan <num_scan_inputs = 1, {VECTOR}> (z, x)"),
    (11, "float[3,5] x", "float[3] z = {0, 0, 0}", f"f, y = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1], {VECTOR}> (z, x)"),
    (11, "float[5,3] x", "float[3] z = {0, 0, 0}", f"f, y = Scan <num_scan_inputs = 1, scan_input_directions = [1], scan_output_directions = [1], {VECTOR}> (z, x)"),
    (16, IMAGE, "float[2,1,2,2] g = {0.1, 0.2, 0.3, 0.4, -0.5, 0.6, 0.7, -0.8}", "y = GridSample (x, g)"),
    (16, IMAGE, FAR, 'y = GridSample <mode = "bicubic", padding_mode = "reflection"> (x, g)'),
    (16, IMAGE, FAR, 'y = GridSample <mode = "bicubic", padding_mode = "border", align_corners = 1> (x, g)'),
    (16, IMAGE, FAR, 'y = GridSample <mode = "nearest", padding_mode = "zeros"> (x, g)'),
    (16, IMAGE, FAR, 'y = GridSample <mode = "bilinear", padding_mode = "reflection", align_corners = 1> (x, g)'),
    (20, "float[1,2,3] x", "int64[4] z = {1, 1, 3, 4}", "y = AffineGrid (x, z)"),
    (20, "float[1,2,3] x", "int64[4] z = {1, 1, 3, 4}", "y = AffineGrid <align_corners = 1> (x, z)"),
    (20, "float[2,3,4] x", "int64[5] z = {2, 1, 2, 3, 4}", "y = AffineGrid (x, z)"),
    (17, "float[5] x", "int64 n = {5}", "w = HannWindow (n)  y = Mul(x, w)"),
    (17, "float[5] x", "int64 n = {5}", "w = HammingWindow <periodic = 0> (n)  y = Mul(x, w)"),
    (17, "float[5] x", "int64 n = {5}", "w = BlackmanWindow (n)  y = Mul(x, w)"),
    (11, "float[5,4] x", "float[1,1,5] s = {1, 2, 3, 4, 5}, int64 m = {3}", "h = Abs(x)  b = Unsqueeze <axes = [0]> (h)  y = NonMaxSuppression (b, s, m)"),
]  # fmt: skip


def _model(opset, declared, constants, nodes):
    kind = "int64" if "NonMax" in nodes or "int64 s)" in nodes else "float"
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({declared}) => ({kind} y) <{constants}> {{ {nodes} }}'
    model = onnx.parser.parse_model(text.replace("<>", ""))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form[0]} {form[3][:60]}")
def test_older_forms_agree_with_the_runtime(form):
    model = _model(*form)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    session = create_session(model.SerializeToString(), SessionOptions(level="disable"))
    (expected,) = session.run(["y"], {"x": x})
    oracle = Oracle(ir.from_proto(model))
    actual = oracle.run({"x": x})["y"]
    assert actual.dtype == (np.float64 if is_float(expected) else expected.dtype)
    assert oracle.narrowed == []
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(("sides", "points"), [((6,), (7,)), ((4, 5), (3, 3)), ((3, 2, 4), (2, 1, 2))])
def test_points_between_pixels_agree_with_the_reference_one_by_one(sides, points, mode, padding, align_corners):
    if (mode, padding) == ("cubic", "border"):
        pytest.skip("ONNX Runtime and PyTorch agree on another function; see the forms above")
    random = np.random.default_rng(2)
    x, grid = random.standard_normal((2, 2, *sides)), random.uniform(-2.5, 2.5, (2, *points, len(sides)))
    expected = _GridSample64()._run(x, grid, mode=mode, padding_mode=padding, align_corners=int(align_corners))[0]
    np.testing.assert_allclose(grid_sample(x, grid, mode, padding, align_corners=align_corners), expected, atol=1e-12)


class _GridSample64(op_grid_sample.GridSample):
    """onnx's own, without the float32 inside."""

    mode, padding_mode, align_corners = "linear", "zeros", 0

    def __init__(self):
        """Leave out the node, which only says how."""

    def _gs_denormalize_coordinates(self, n, dims, align_corners):
        return np.array([self._gs_denormalize(v, size, align_corners) for v, size in zip(n, dims, strict=True)])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shifts", [1, 2])
@pytest.mark.parametrize("attributes", [{}, {"strides": (2, 1)}, {"dilations": (1, 2), "pads": (1, 0, 2, 1)}])
def test_a_deformed_convolution_agrees_with_one_of_moved_images(groups, shifts, attributes):
    """Whole offsets of all taps alike are a convolution of an image that was moved; halves lie in the middle of two."""
    random = np.random.default_rng(3)
    x, weight, bias = (random.standard_normal(shape) for shape in ((2, 4, 7, 8), (6, 4 // groups, 3, 2), (6,)))
    view = window((7, 8), (3, 2), **attributes)
    plain = conv(x, weight, bias, view, groups)
    spatial = plain.shape[2:]
    still = np.zeros((2, shifts * 12, *spatial))
    half = np.ones((2, shifts * 6, *spatial)) / 2
    np.testing.assert_allclose(deform_conv(x, weight, still, bias, None, view, groups, shifts), plain, atol=1e-12)
    masked = deform_conv(x, weight, still, None, half, view, groups, shifts)
    np.testing.assert_allclose(masked, conv(x, weight, None, view, groups) / 2, atol=1e-12)
    right = np.concatenate([x[..., 1:], np.zeros_like(x[..., :1])], axis=-1)
    left_edge = window((7, 8), (3, 2), **attributes)
    if not any(left_edge.begin):  # what a padded position reads is moved into the image
        across = still.copy().reshape(2, shifts, 6, 2, *spatial)
        across[:, :, :, 1] = 0.5
        halfway = deform_conv(x, weight, across.reshape(still.shape), None, None, view, groups, shifts)
        np.testing.assert_allclose(halfway, conv((x + right) / 2, weight, None, view, groups), atol=1e-12)


def test_dequantized_weights_are_not_rounded_to_float32():
    model = _model(13, "float[1] x", "float s = {0.001}, int32[1] w = {1234567891}", "d = DequantizeLinear (w, s)  y = Add(x, d)")  # fmt: skip
    y = Oracle(ir.from_proto(model)).run({"x": np.zeros(1)})["y"]
    assert y == 1234567891 * np.float64(np.float32(0.001))


def test_a_loop_of_no_steps_that_collects_is_refused():
    body = "body = g (int64 i, bool e, float[2,3] a) => (bool o, float[2,3] b, float[2,3] s) { o = Identity(e)  b = Add(a, a)  s = Neg(b) }"
    model = _model(13, ROWS, "int64 n = {0}, bool t = {1}", f"f, y = Loop (n, t, x) <{body}>")
    with pytest.raises(NotInFloat64Error, match=r"Loop.*no steps"):
        Oracle(ir.from_proto(model)).run({"x": np.zeros((2, 3))})


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int4", "uint4"])
def test_small_types_are_not_widened(dtype):
    kind = getattr(__import__("ml_dtypes"), dtype)
    number = int(ir.DataType.from_numpy(np.dtype(kind)))
    value = onnx.helper.make_tensor_value_info("x", number, [3])
    output = onnx.helper.make_tensor_value_info("y", number, [3])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=11)
    x = np.array([1, 2, 3], dtype=kind)
    assert Oracle(ir.from_proto(model)).run({"x": x})["y"].dtype == kind


#: Of onnx's node tests, those that float64 does not run, computes in less, or rounds elsewhere at a tie.
NOT_IN_FLOAT64 = {"BitCast", "Scan"}
NARROW = {"Adam", "BitCast", "TfIdfVectorizer"}
OTHER_ROUNDING = {"DynamicQuantizeLinear"}
RANDOM = {"Bernoulli", "RandomUniformLike"}


@pytest.mark.slow
def test_the_node_tests_of_onnx_run_in_float64():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NaN and infinities on purpose
        cases = collect_testcases(None)
    failures, compared = [], 0
    for case in cases:
        ops = {node.op_type for node in case.model.graph.node}
        inputs, outputs = ([_array(value) for value in values] for values in case.data_sets[0])
        tensors = all(isinstance(value, np.ndarray) for value in (*inputs, *outputs))
        if not tensors or ops & (RANDOM | OTHER_ROUNDING) or "dynamicquantizelinear" in case.name:
            continue
        compared += 1
        try:
            oracle = Oracle(ir.from_proto(case.model))
            results = oracle.run(dict(zip((v.name for v in case.model.graph.input), inputs, strict=True)))
        except NotInFloat64Error as error:
            if not ops & NOT_IN_FLOAT64:
                failures.append(f"{case.name}: {error}")
            continue
        if set(oracle.narrowed) - NARROW:
            failures.append(f"{case.name}: in less than float64: {oracle.narrowed}")
        for value, expected in zip(case.model.graph.output, outputs, strict=True):
            if not _close(results[value.name], expected, case):
                failures.append(f"{case.name}: {value.name} differs")
    assert failures == []
    assert compared > 1500


def _array(value):
    return ir.serde.deserialize_tensor(value).numpy() if isinstance(value, onnx.TensorProto) else value


def _close(actual, expected, case):
    if actual.shape != expected.shape:
        return False
    if not is_float(expected):
        same = (actual == expected) | ((actual != actual) & (expected != expected))  # float8 has NaN too
        return bool(np.all(same))
    coarse = expected.dtype.itemsize < 4 or ("FLOAT16" in case.name and "to_FLOAT" in case.name)
    tolerance = 1e-2 if coarse else 1e-3
    return np.allclose(
        actual, expected.astype(np.float64), rtol=tolerance, atol=max(case.atol, tolerance / 100), equal_nan=True
    )
