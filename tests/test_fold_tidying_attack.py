# a graph in a table is one line of ONNX text
"""Ops that look idle, shapes that are not what the file says, sizes that are more than sizes: same numbers after."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import bnfold
from bnfold.errors import BnfoldError
from bnfold.optimizer import OptimizeOptions

Feeds = dict[str, Any]


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def parsed(
    text: str, *, open_dims: bool = False, declared: dict[str, list[int | str]] | None = None
) -> onnx.ModelProto:
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1, "my": 1]> {text}')
    for value in made.graph.input if open_dims else ():
        value.type.tensor_type.shape.dim[0].dim_value = -1  # as old exporters write what they do not know
    for name, shape in (declared or {}).items():
        made.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return made


def outputs(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def optimized(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    from onnx_ir import to_proto

    return to_proto(bnfold.optimize(model, None, OptimizeOptions(**options)).model)


PIECES = "s = Constant<value=int64[2]{2,2}>() i = Constant<value=int64{0}>() j = Constant<value=int64{1}>() q = SplitToSequence<axis=0>(x, s)"
LOOP = "c = Constant<value=int64{1}>() t = Cast<to=9>(c) y = Loop(n, t, x)"

#: The graph, how it is made, and what it is fed.
SAME: list[tuple[str, str, dict[str, Any], Feeds]] = [
    ("pieces taken in branches", f"g (float[4,3] x, bool c) => (float[2,3] y) {{ {PIECES} y = If(c) <then_branch = t () => (float[2,3] ta) {{ ta = SequenceAt(q, i) }}, else_branch = e () => (float[2,3] ea) {{ ea = SequenceAt(q, j) }}> }}", {}, {"x": drawn(4, 3), "c": np.array(True)}),
    ("one piece under two names", f"g (float[4,3] x) => (float[2,3] a, float[2,3] b) {{ {PIECES} a = SequenceAt(q, j) b = SequenceAt(q, j) }}", {}, {"x": drawn(4, 3)}),
    ("pieces without their axis", "g (float[N,2] x) => (float[N] a) { i = Constant<value=int64{1}>() q = SplitToSequence<axis=1,keepdims=0>(x, i) a = SequenceAt(q, i) }", {}, {"x": drawn(4, 2)}),
    ("function of the same name", "g (float[N,5] x) => (float[N,5] a) { s = Constant<value=int64[2]{2,3}>() z = Constant<value=int64{1}>() q = SplitToSequence<axis=1>(x, s) a = my.SequenceAt(q, z) } <domain: \"my\", opset_import: [\"\": 17]> SequenceAt (q, z) => (o) { o = ConcatFromSequence<axis=1>(q) }", {}, {"x": drawn(4, 5)}),
    ("open size written as -1", "g (float[N,3] x, float[N,3] w) => (float[M,3] y) { s = Shape(w) e = Expand(x, s) y = Relu(e) }", {"open_dims": True}, {"x": drawn(1, 3), "w": drawn(4, 3)}),
    ("open size written as -1, and a slice", "g (float[N,3] x) => (float[M,3] y) <float[1,3] k = {1,2,3}, int64[1] z = {0}, int64[1] o = {1}> { s = Mul(x, k) e = Slice(s, z, o, z) y = Relu(e) }", {"open_dims": True}, {"x": drawn(2, 3)}),
    ("loop that grows what it carries", f"g (int64 n, float[2] x) => (float[k] y) {{ {LOOP} <body = b (int64 i, bool ci, float[2] v) => (bool co, float[m] vo) {{ co = Identity(ci) st = Constant<value=int64[1]{{0}}>() en = Constant<value=int64[1]{{2}}>() v2 = Slice(v, st, en) vo = Concat<axis=0>(v, v2) }}> }}", {}, {"n": np.array(3), "x": drawn(2)}),
    ("loop that raises the rank of what it carries", f"g (int64 n, float[B,3] x) => (float[?,?,?] y) <float[3,3] W = {{1,2,3,4,5,6,7,8,9}}, float[3] w = {{1,2,3}}, int64[1] ax = {{0}}> {{ {LOOP} <body = b (int64 i, bool ci, float[B,3] v) => (bool co, float[?,?,?] vo) {{ co = Identity(ci) p = MatMul(v, W) q = Add(p, w) vo = Unsqueeze(q, ax) }}> }}", {}, {"n": np.array(2), "x": drawn(2, 3)}),
    ("batch norm that only sizes a Reshape", "g (float[N,3] x, float[N,3] w) => (float[M,3] y) <float[3] g = {1,2,3}, float[3] b = {0,1,2}, float[3] m = {1,1,1}, float[3] v = {1,1,2}, int64[1] k = {3}, int64[1] i = {0}> { n = BatchNormalization(x, g, b, m, v) s = Shape(n) d = Gather(s, i) c = Concat<axis=0>(d, k) y = Reshape(w, c) }", {}, {"x": drawn(4, 3), "w": drawn(4, 3)}),
    ("linear op that only sizes a Reshape", "g (float[N,3] x, float[B,T,3] w) => (float[M,2] y) <float[3] s = {1,2,3}, float[3,3] W = {1,2,3,4,5,6,7,8,9}, float[3,2] U = {1,2,3,4,5,6}, float[2] u = {1,2}, int64[2] k = {2,7}, int64[1] z = {0}, int64[1] two = {2}, int64[1] one = {1}> { n0 = Gemm(x, W) n = Mul(n0, s) n1 = ReduceSum<keepdims=0>(n) n2 = Cast<to=7>(n1) n3 = Reshape(n2, one) n5 = Mul(n3, z) n6 = Sub(n5, one) c = Concat<axis=0>(n6, k) c2 = Slice(c, z, two) p = MatMul(w, U) r = Reshape(p, c2) y = Add(r, u) }", {}, {"x": drawn(4, 3), "w": drawn(4, 2, 3)}),
    ("branch that only sizes a Reshape", "g (float[N,3,4] x, float[N,3] w, bool q) => (float[M,3] y, float[N,3,4] z) <float[3,3,1] W = {1,2,3,4,5,6,7,8,9}, float[3,1] mm = {1,2,3}, int64[1] k = {3}, float[1] big = {1}> { xx = Conv(x, W) z = Mul(xx, mm) d = If(q) <then_branch = t () => (int64[1] td) { s1 = Add(xx, big) s = Shape<start=0,end=1>(s1) td = Abs(s) }, else_branch = e () => (int64[1] ed) { s2 = Shape<start=0,end=1>(x) ed = Abs(s2) }> c = Concat<axis=0>(d, k) y = Reshape(w, c) }", {}, {"x": drawn(2, 3, 4), "w": drawn(2, 3), "q": np.array(True)}),
    ("stale shape behind a custom op", "g (float[N,3] x) => (float[M,3] y) <int64[1] s = {0}, int64[1] e = {1}> { c = com.microsoft.Gelu(x) p = Slice(c, s, e) y = Relu(p) }", {"declared": {"c": [1, 3]}}, {"x": drawn(2, 3)}),
    ("stale shape of a Reshape to what a caller says", "g (float[B,2,3] x, int64[n] k) => (float[?,?,?] y) <float[3,2] W = {1,2,3,4,5,6}, float[2] u = {1,2}> { p = MatMul(x, W) r = Reshape(p, k) y = Add(r, u) }", {"declared": {"r": ["M", 2]}}, {"x": drawn(2, 2, 3), "k": np.array([1, 4, 2])}),
    ("Reshape of a constant that a Reshape yields", "g (float[2,12] x) => (float[2,12] y) <float[3,4] k = {1,2,3,4,5,6,7,8,9,10,11,12}, int64[2] s = {2,6}, int64[1] u = {12}> { a = Reshape(k, s) b = Reshape(a, u) y = Mul(x, b) }", {}, {"x": drawn(2, 12)}),
    ("Reshape of a constant that a Flatten yields", "g (float[2,12] x) => (float[2,12] y) <float[3,4] k = {1,2,3,4,5,6,7,8,9,10,11,12}, int64[1] u = {12}> { a = Flatten(k) b = Reshape(a, u) y = Mul(x, b) }", {}, {"x": drawn(2, 12)}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "making", "feeds"), [row[1:] for row in SAME], ids=[row[0] for row in SAME])
def test_result_computes_the_same(text: str, making: dict[str, Any], feeds: Feeds) -> None:
    before = parsed(text, **making)
    after = optimized(before)
    onnx.checker.check_model(after)
    for wanted, got in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    again = optimized(after)
    assert [node.op_type for node in again.graph.node] == [node.op_type for node in after.graph.node]


ROWS = "g (float[N,2,3] x) => (float[M,2] y) <int64[2] k = {-1,2}, float[3,2] U = {1,2,3,4,5,6}, float[2] u = {1,2}> "


@pytest.mark.parametrize(
    "text",
    [
        ROWS + "{ kk = Identity(k) q = MatMul(x, U) r = Reshape(q, kk) y = Add(r, u) }",
        ROWS + "{ kk = Identity(k) xx = Flatten(x) l = Constant<value=int64[3]{-1,2,3}>() p = Reshape(xx, l) q = MatMul(p, U) r = Reshape(q, kk) y = Add(r, u) }",
    ],
)  # fmt: skip
def test_one_run_finds_all(text: str) -> None:
    after = optimized(parsed(text))
    assert sorted(node.op_type for node in after.graph.node) == ["Gemm", "Reshape"]


MALFORMED = [
    's = Constant<value_strings=["a"]>() e = Constant<value=int64[1]{9}>() y = Slice(x, s, e)',
    "s = Constant<value=int64[1]{0}>() e = Constant<value=int64[2]{9223372036854775807,9223372036854775807}>() a = Constant<value=int64[1]{0}>() y = Slice(x, s, e, a)",
    's = Constant<value_strings=["a","b"]>() y = Reshape(x, s)',
    's = Constant<value_strings=["a"]>() q = Shape<end=1>(x) c = Concat<axis=0>(q, s) y = Reshape(x, c)',
    's = Constant<value_string="a">() i = Constant<value=int64{0}>() q = SplitToSequence<axis=1>(x, s) y = SequenceAt(q, i)',
    's = Constant<value=int64[2]{1,2}>() i = Constant<value_strings=["a"]>() q = SplitToSequence<axis=1>(x, s) y = SequenceAt(q, i)',
    "s = Constant<value=int64[1,2]{1,2}>() i = Constant<value=int64{0}>() q = SplitToSequence<axis=1>(x, s) y = SequenceAt(q, i)",
]  # fmt: skip


@pytest.mark.parametrize("body", MALFORMED)
def test_model_that_would_not_run_is_left_alone_or_refused(body: str) -> None:
    model = parsed(f"g (float[N,3] x) => (float[?,?] y) {{ {body} }}")
    try:
        after = optimized(model)
    except BnfoldError:
        return
    assert len(after.graph.node) == len(model.graph.node)


def test_strings_that_are_computed_stay_computed() -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Reshape", ["s", "k"], ["r"]), onnx.helper.make_node("Equal", ["r", "x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.STRING, ["N", 2])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.BOOL, ["N", 2])],
        [
            onnx.helper.make_tensor("s", onnx.TensorProto.STRING, [2], ["a", "b"]),
            onnx.helper.make_tensor("k", onnx.TensorProto.INT64, [2], [1, 2]),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    assert [node.op_type for node in optimized(model).graph.node] == ["Reshape", "Equal"]


@pytest.mark.parametrize(
    ("text", "kept", "left"),
    [
        ("g (float[N,3] x, float[M,3] w) => (float[?,3] y) <int64[1] k = {3}> { s = Shape<end=1>(w) c = Concat<axis=0>(s, k) y = Reshape(x, c) }", "c", ["Shape", "Concat", "Reshape"]),
        ("g (float[N,3] x) => (float[N,3] y) <float[3] k = {1,2,3}> { a = Sqrt(k) y = Mul(x, a) }", "a", ["Sqrt", "Mul"]),
        ("g (float[N,3] x) => (float[N,3] y) { a = Identity(x) y = Relu(a) }", "a", ["Identity", "Relu"]),
    ],
)  # fmt: skip
def test_op_that_is_to_be_kept_stays(text: str, kept: str, left: list[str]) -> None:
    assert [node.op_type for node in optimized(parsed(text), keep=(kept,)).graph.node] == left


def test_file_does_not_grow_by_what_is_repeated_or_stands_for_numbers() -> None:
    body = "".join(f" t{i} = Tile(r{i}, n) x{i + 1} = Add(x{i}, t{i})" for i in range(3))
    body += " f = Cast<to=1>(q) w = Mul(f, k) y = MatMul(x3, w)"
    model = parsed(f"g (float[64,256] x0) => (float[64,256] y) {{ {body} }}")
    arrays = {f"r{i}": drawn(1, 256) for i in range(3)} | {"n": np.array([64, 1]), "k": drawn(1, 256)}
    arrays["q"] = np.random.default_rng(0).integers(-9, 9, (256, 256)).astype(np.int8)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    assert optimized(model).ByteSize() <= 1.05 * model.ByteSize()


def test_tensors_of_a_sequence_that_is_given_may_have_any_shape() -> None:
    """ONNX Runtime holds callers to the shapes of tensors, and not of what a sequence holds."""
    model = parsed(
        "g (seq(float[2,3]) q) => (float[?,3] y) <int64[1] b = {0}, int64[1] e = {2}, int64 i = {0}> "
        "{ a = SequenceAt(q, i) s = Slice(a, b, e) y = Relu(s) }"
    )
    feeds = {"q": [drawn(5, 3)]}
    (wanted,), (got,) = outputs(model, feeds), outputs(optimized(model), feeds)  # type: ignore[arg-type]
    assert wanted.shape == (2, 3)
    assert np.array_equal(got, wanted)
