"""What a hostile reader found in the engine: each row was once a wrong number, an invalid file or a traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folding import Array, constants, feeds_of, folded, model_of, norm, ops, reason_of

import bnfold
from bnfold.errors import ModelError
from bnfold.fold import fold
from bnfold.verification.oracle import Oracle

BN = "BatchNormalization(c, scale, bias, mean, var)"


@pytest.mark.parametrize(
    ("text", "arrays"),
    [
        # A constant that looks at a run-time shape is written out, and is a scalar.
        ("g (double[2,4] a) => (double[4] y) { s = Shape<start=0, end=1>(a) q = Squeeze(s) l = Sub(q, one) r = Relu(a) y = Gather(r, l) }", {"one": np.array(1)}),
        # Two scalars collapse to one, behind a value without dimensions.
        ("g (double[4] a) => (double y) { m = MatMul(a, b) n = Mul(m, k) y = Mul(n, k) }", {"b": np.ones(4), "k": np.array(3.0)}),
        ("g (double[4] a) => (double y) { m = ReduceSum<keepdims=0>(a) n = Mul(m, k) y = Add(n, k) }", {"k": np.array(3.0)}),
        ("g (double[2,3] a) => (double[2,3] y) { e = Exp(a) n = Add(e, k) t = Transpose(n) u = Transpose(t) y = Add(u, k) }", {"k": np.array(3.0)}),
    ],
)  # fmt: skip
def test_scalar_constants_stay_scalars(text: str, arrays: dict[str, Array]) -> None:
    model, _ = folded(model_of(text, arrays))
    wrong = [v.name for v in model.graph.initializers.values() if v.shape is not None and list(v.shape) == [1]]
    assert not wrong


def test_local_function_named_dequantize_linear_is_not_onnx_s() -> None:
    functions = (
        '<domain: "local", opset_import: ["": 17]> DequantizeLinear (q, s) => (w) { c = CastLike(q, s) w = Pow(c, s) }'
    )
    text = (
        f"g (double[N,4,5,5] x) => (double[N,4,5,5] y) {{ w = local.DequantizeLinear(q, s) c = Conv(x, w) y = {BN} }}"
    )
    arrays = norm(4) | {"q": np.arange(16, dtype=np.int8).reshape(4, 4, 1, 1), "s": np.array(2.0)}
    model = model_of(text, arrays, functions=functions)
    report = fold(model)
    assert reason_of(report) == "weight-not-constant"


def test_narrow_parameters_of_a_wide_batch_norm_do_not_overflow() -> None:
    text = (
        "g (float[N,4,5,5] x) => (float[N,5,5,4] y) { r = Relu(x) c = BatchNormalization(r, scale, bias, mean, var) "
        "t = Transpose<perm=[0,2,3,1]>(c) y = Mul(t, k) }"
    )
    half = {"scale": np.full(4, 3e4), "bias": np.ones(4), "mean": np.zeros(4), "var": np.ones(4)}
    arrays = {name: array.astype(np.float16) for name, array in half.items()}
    before = model_of(text, arrays | {"k": np.array([30, 31, 32, 33], np.float32)})
    after = before.clone()
    fold(after)
    feeds = feeds_of(before)
    wanted, got = Oracle(before).run(feeds)["y"], Oracle(after).run(feeds)["y"]
    assert np.max(np.abs(wanted - got)) < 1e-6 * np.max(np.abs(wanted))


def test_constants_of_old_operator_sets_are_not_broadcast_as_in_new_ones() -> None:
    text = "g (double[1,2,3,3] x) => (double[1,2,3,3] y) { a = Add<axis=0, broadcast=1>(p, q) w = Reshape(a, to) c = Conv(x, w) y = Neg(c) }"
    arrays = {"p": np.ones((2, 2)), "q": np.array([1.0, 5.0]), "to": np.array([2, 2, 1, 1])}
    model = model_of(text, arrays, opset=6)
    fold(model)
    assert ops(model) == {"Add": 1, "Reshape": 1, "Conv": 1, "Neg": 1}


@pytest.mark.parametrize(
    ("text", "arrays"),
    [
        # To eight bits runtimes saturate, or do not; strings have no width at all.
        ("g (float[2] x, float s) => (float[2] y) { z = Cast<to=17>(x) c = CastLike(k, z) y = DequantizeLinear(c, s) }", {"k": np.array([1e3, 1], np.float32)}),
        ("g (string[2] x) => (bool[2] y) { c = CastLike(k, x) y = Equal(x, c) }", {"k": np.array([1e3, 1], np.float32)}),
    ],
)  # fmt: skip
def test_constant_of_a_type_that_is_the_runtime_s_own_stays_computed(text: str, arrays: dict[str, Array]) -> None:
    model = model_of(text, arrays, opset=19, ir_version=9)
    before = ops(model)
    fold(model)
    assert ops(model) == before


@pytest.mark.parametrize(
    ("reason", "text", "levels"),
    [
        ("parameters-invalid", f"g (float[N,0,5,5] x) => (float[N,4,5,5] y) {{ w = DequantizeLinear(q, d) c = Conv(x, w) y = {BN} }}", (4, 0, 1, 1)),
        ("weight-quantized", f"g (float[N,4,5,5] x) => (float[N,4,5,5] y) {{ w = DequantizeLinear<output_dtype=1>(q, h) c = Conv(x, w) y = {BN} }}", (4, 4, 1, 1)),
    ],
)  # fmt: skip
def test_quantized_weight_that_cannot_take_the_fold_stays(reason: str, text: str, levels: tuple[int, ...]) -> None:
    arrays: dict[str, Array] = {n: a.astype(np.float32) for n, a in norm(4).items()}
    scale = {"h": np.array(0.5, np.float16)} if "h)" in text else {"d": np.array(0.5, np.float32)}
    model = model_of(text, arrays | scale | {"q": np.ones(levels, np.int8)}, opset=23, ir_version=11)
    assert reason_of(fold(model)) == reason


def test_one_scale_for_all_channels_stays_one() -> None:
    text = "g (float[N,4,5,5] x) => (float[N,4,5,5] y) { w = DequantizeLinear(q, d) a = Conv(x, w) y = Mul(a, k) }"
    arrays = {"q": np.ones((4, 4, 1, 1), np.int8), "d": np.array(0.5, np.float32), "k": np.array(3.0, np.float32)}
    model, _ = folded(model_of(text, arrays, opset=21, ir_version=10), tolerance=1e-6)
    assert ops(model) == {"DequantizeLinear": 1, "Conv": 1}
    (node,) = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert node.inputs[1] is not None
    assert node.inputs[1].shape is not None
    assert node.inputs[1].shape.rank() == 0


def test_blocks_of_no_size_are_refused() -> None:
    text = "g (double[1,4,2,2] x) => (double[1,4,2,2] y) { c = Conv(x, w) y = BatchNormalization(c, scale, bias, mean, var) }"
    model = model_of(text, constants(w=(4, 4, 1, 1)) | norm(4))
    conv = next(iter(model.graph))
    node = ir.node("SpaceToDepth", [conv.outputs[0]], attributes={"blocksize": 0})
    node.outputs[0].name = "s"
    model.graph.insert_after(conv, node)
    norm_node = list(model.graph)[-1]
    norm_node.replace_input_with(0, node.outputs[0])
    fold(model)
    assert ops(model)["BatchNormalization"] == 1


def test_linear_ops_in_a_row_that_share_their_weight_end() -> None:
    body = "a0 = Relu(x) " + " ".join(f"a{i + 1} = Conv(a{i}, w)" for i in range(150)) + " y = Relu(a150)"
    model = model_of(
        f"g (double[1,2,2,2] x) => (double[1,2,2,2] y) {{ {body} }}", {"w": np.eye(2).reshape(2, 2, 1, 1) * 0.9}
    )
    fold(model)
    assert ops(model)["Relu"] == 2


def test_result_with_contradicting_shapes_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the engine ever be wrong about a shape, nobody gets the file."""
    text = "g (float[N,4,5,5] x) => (float[N,4,5,5] y) { c = Conv(x, w) y = Relu(c) }"
    source = tmp_path / "in.onnx"
    onnx.save(ir.to_proto(model_of(text, {"w": np.ones((4, 4, 1, 1), np.float32)})), source)
    from bnfold import optimizer

    honest = optimizer.fold

    def wrong(model: ir.Model, *arguments: object, **choices: object) -> object:
        report = honest(model, *arguments, **choices)  # type: ignore[arg-type]
        weight = model.graph.initializers["w"]
        weight.const_value = ir.tensor(np.ones((5, 4, 1, 1), np.float32), name="w")
        weight.shape = ir.Shape([5, 4, 1, 1])
        return report

    monkeypatch.setattr(optimizer, "fold", wrong)
    with pytest.raises(ModelError, match="please report it"):
        bnfold.optimize(source, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("op", "shape"), [("Conv", (4,)), ("Conv", (4, 4)), ("ConvTranspose", (4,)), ("Gemm", (4,)), ("Gemm", (1, 4, 4))]
)
def test_weight_of_a_rank_that_its_op_does_not_have_is_left_alone(op: str, shape: tuple[int, ...]) -> None:
    text = f"g (double[N,4] x) => (double[A,B] y) {{ a = Gemm(x, v) b = {op}(a, w) y = Add(b, x) }}"
    model = model_of(text, constants(v=(4, 4), w=shape))
    fold(model)
    assert ops(model) == ops(model_of(text, constants(v=(4, 4), w=shape)))


@pytest.mark.parametrize("between", ["s = Shape(b)", "s = Size(b)", "c = Identity(b) s = Shape(c)"])
def test_shape_of_a_value_inside_a_chain_that_collapses_is_still_known_in_time(between: str) -> None:
    text = (
        f"g (double[N,4,5] x) => (double[N,4,5] y, int64[R] s) {{ a = Relu(x) b = Mul(a, k) {between} y = Add(b, l) }}"
    )
    text = text.replace("int64[R]", "int64") if "Size" in text else text
    model, _ = folded(model_of(text, constants(k=(4, 1), l=(4, 1))), tidy=True)
    assert ops(model) == {"Relu": 1, "BatchNormalization": 1, "Size" if "Size" in text else "Shape": 1}


def test_constant_without_a_value_is_none() -> None:
    proto = ir.to_proto(
        model_of("g (double[N,4] x) => (double[N,4] y) { k = Constant<value=double{2}>() y = Mul(x, k) }", {})
    )
    del proto.graph.node[0].attribute[:]
    model = ir.from_proto(proto)
    fold(model, tidy=True)
    assert ops(model) == {"Mul": 1}
