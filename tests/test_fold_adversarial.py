"""Models made to mislead the engine; each row was a defect once, or is one in some other tool."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folding import Array, constants, feeds_of, folded, model_of, norm, ops, reason_of
from onnx import numpy_helper

import bnfold
from bnfold.errors import InputError, ModelError, OutputError
from bnfold.fold import fold
from bnfold.model_file import load_model, save_model
from bnfold.optimizer import OptimizeOptions
from bnfold.verification.oracle import Oracle

BN = "BatchNormalization(c, scale, bias, mean, var)"


@pytest.mark.parametrize(
    ("name", "text", "arrays"),
    [
        ("gemm and gemm transposed", "g (double[4,4] x) => (double[4,4] y, double[4,4] z) "
         "{ a = Gemm(x, w) y = Mul(a, k) b = Gemm<transB=1>(x, w) z = Mul(b, k) }", constants(w=(4, 4), k=(4,))),
        ("gemm transposed and matmul", "g (double[4,4] x) => (double[4,4] y, double[4,4] z) "
         "{ a = Gemm<transB=1>(x, w) y = Mul(a, k) b = MatMul(x, w) z = Mul(b, k) }", constants(w=(4, 4), k=(4,))),
        ("conv and transposed conv", "g (double[1,4,5,5] x) => (double[1,4,3,3] y, double[1,4,7,7] z) "
         "{ a = Conv(x, w) y = Mul(a, k) b = ConvTranspose(x, w) z = Mul(b, k) }", constants(w=(4, 4, 3, 3), k=(4, 1, 1))),
        ("conv of two groupings", "g (double[1,4,5,5] x, double[1,2,5,5] u) => (double[1,4,3,3] y, double[1,4,3,3] z) "
         "{ a = Conv<group=2>(x, w) y = Mul(a, k) b = Conv(u, w) z = Mul(b, k) }", constants(w=(4, 2, 3, 3), k=(4, 1, 1))),
    ],
)  # fmt: skip
def test_weight_shared_between_layouts_gives_each_its_own(name: str, text: str, arrays: dict[str, Array]) -> None:
    del name
    model, _ = folded(model_of(text, arrays))
    assert "Mul" not in ops(model)


def test_default_of_a_shape_that_callers_may_feed_proves_nothing() -> None:
    text = "g (double[N,4,5,5] x, int64[3] s) => (double[A,B,D] y) { c = Conv(x, w) r = Reshape(c, s) y = Mul(r, k) }"
    model = model_of(text, constants(w=(4, 4, 3, 3), k=(4, 1)) | {"s": np.array([0, 4, 9])})
    feeds = feeds_of(model) | {"s": np.array([9, 4, 2])}
    expected = Oracle(model).run(feeds)["y"]
    fold(model)
    assert np.allclose(Oracle(model).run(feeds)["y"], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "dtype", "first", "second"),
    [
        ("overflow", np.float16, 1000.0, 100.0),
        ("underflow", np.float16, 1e-4, 1e-4),
        ("float32 underflow", np.float32, 1e-25, 1e-25),
    ],
)
@pytest.mark.parametrize("between", ["c = Identity(b) d = Mul(c, l)", "d = Mul(b, l)"], ids=["absorbed", "collapsed"])
def test_product_that_the_dtype_cannot_hold_stays_two_factors(
    name: str, dtype: type, first: float, second: float, between: str
) -> None:
    del name
    onnx_name = {np.float16: "float16", np.float32: "float"}[dtype]
    text = f"g ({onnx_name}[N,4] x) => ({onnx_name}[N,4] y) {{ a = Relu(x) b = Mul(a, k) {between} y = Relu(d) }}"
    steps = np.arange(4) / 64 + 1
    model = model_of(text, {"k": np.full(4, first, dtype), "l": (second * steps).astype(dtype)})
    fold(model)
    assert ops(model)["Mul"] == 2


def two_branches(*initializers: list[onnx.TensorProto]) -> ir.Model:
    """An If whose branches each have an initializer named w."""
    text = (
        "g (float[N,3,8,8] x, bool f) => (float[N,4,6,6] y) { y = If (f) <"
        "then_branch = t () => (float[N,4,6,6] p) { c = Conv(x, w) p = BatchNormalization(c, scale, bias, mean, var) },"
        "else_branch = e () => (float[N,4,6,6] q) { d = Conv(x, w) q = BatchNormalization(d, scale, bias, mean, var) }> }"
    )
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    for name, array in norm(4).items():
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    for attribute, extra in zip(proto.graph.node[0].attribute, initializers, strict=True):
        attribute.g.initializer.extend(extra)
    return ir.from_proto(proto)


@pytest.mark.parametrize("flag", [True, False])
def test_branches_that_use_one_name_for_two_weights_keep_both(flag: bool) -> None:
    weights = [
        [numpy_helper.from_array(constants(seed, w=(4, 3, 3, 3))["w"].astype(np.float32), "w")] for seed in (1, 2)
    ]
    model = two_branches(*weights)
    feeds = feeds_of(model) | {"f": np.array(flag)}
    expected = Oracle(model).run(feeds)["y"]
    report = fold(model)
    assert report.batch_norms_after == 0
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert np.allclose(Oracle(model).run(feeds)["y"], expected, rtol=1e-5, atol=1e-5)


def test_batch_size_that_a_file_claims_of_its_output_is_not_believed() -> None:
    text = (
        "g (double[N,3,5,5] x) => (double[1,4,3,3] y, double[1,4,3,3] z) "
        "{ y = Conv(x, w) s = Shape<start=0, end=1>(y) f = Cast<to=11>(s) r = Relu(y) z = Mul(r, f) }"
    )
    model = model_of(text, constants(w=(4, 3, 3, 3)))
    feeds = feeds_of(model)
    expected = Oracle(model).run(feeds)["z"]
    fold(model)
    assert np.allclose(Oracle(model).run(feeds)["z"], expected, rtol=1e-12)


def test_nearly_dead_input_channel_is_no_obstacle() -> None:
    weight = np.ones((2, 4, 1, 1), np.float16)
    weight[:, 3] = 1e-5  # subnormal in the file already
    text = "g (float16[N,4,3,3] x) => (float16[N,2,3,3] y) { c = Conv(x, w) y = Mul(c, k) }"
    model = model_of(text, {"w": weight, "k": np.array([[[1.3]], [[0.7]]], np.float16)})
    fold(model)
    assert ops(model) == {"Conv": 1}


def test_input_channel_that_would_die_is_an_obstacle() -> None:
    weight = np.ones((2, 4, 1, 1), np.float16)
    weight[:, 3] = 2e-3
    text = "g (float16[N,4,3,3] x) => (float16[N,2,3,3] y) { c = Conv(x, w) y = Mul(c, k) }"
    model = model_of(text, {"w": weight, "k": np.array([[[1e-4]], [[2e-4]]], np.float16)})
    assert reason_of(fold(model)) == "underflow"


def test_bfloat16_chain_collapses_only_to_ops_of_the_opset() -> None:
    k = np.arange(1, 5).reshape(4, 1).astype(ml_dtypes.bfloat16)
    text = "g (bfloat16[N,4,3] x) => (bfloat16[N,4,3] y) { a = Relu(x) b = Mul(a, k) c = Add(b, k) y = Relu(c) }"
    for opset, wanted in ((13, {"Relu": 2, "Mul": 1, "Add": 1}), (17, {"Relu": 2, "BatchNormalization": 1})):
        model = model_of(text, {"k": k}, opset=opset)
        fold(model)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        assert ops(model) == wanted


@pytest.mark.parametrize(
    ("name", "text", "arrays"),
    [
        ("matmul of nothing", "g (double[3,0] x) => (double[3,4] y) { c = MatMul(x, w) y = Mul(c, k) }",
         {"w": np.zeros((0, 4)), "k": np.full((), 2.0)}),
        ("conv of no channels", "g (double[1,3,5,5] x) => (double[1,0,3,3] y) { c = Conv(x, w) y = Mul(c, k) }",
         {"w": np.zeros((0, 3, 3, 3)), "k": np.full((), 2.0)}),
        ("range without end", "g (double[N,4] x) => (double[N,4] y) { r = Range(a, b, d) s = ReduceSum(r) c = Mul(x, s) y = Relu(c) }",
         {"a": np.array(0.0), "b": np.array(np.inf), "d": np.array(1.0)}),
        ("range to nowhere", "g (double[N,4] x) => (double[N,4] y) { r = Range(a, b, d) s = ReduceSum(r) c = Mul(x, s) y = Relu(c) }",
         {"a": np.array(0.0), "b": np.array(np.nan), "d": np.array(1.0)}),
        ("range in no steps", "g (double[N,4] x) => (double[N,4] y) { r = Range(a, b, d) s = ReduceSum(r) c = Mul(x, s) y = Relu(c) }",
         {"a": np.array(0.0), "b": np.array(9.0), "d": np.array(0.0)}),
    ],
)  # fmt: skip
def test_degenerate_constants_are_left_alone(name: str, text: str, arrays: dict[str, Array]) -> None:
    del name
    model = model_of(text, arrays)
    before = ops(model)
    fold(model)
    assert ops(model) == before


def test_long_and_branching_chains_of_constants_cost_no_more_than_their_nodes() -> None:
    steps = " ".join(f"i{n + 1} = Identity(i{n})" for n in range(400)) + " j0 = Add(i400, i400) "
    steps += " ".join(f"j{n + 1} = Add(j{n}, j{n})" for n in range(40))
    text = f"g (double[N,3,8,8] x) => (double[N,4,6,6] y) {{ {steps} c = Conv(x, w) y = BatchNormalization(c, scale, bias, mean, j40) }}"
    arrays = constants(w=(4, 3, 3, 3)) | norm(4)
    arrays["i0"] = arrays.pop("var")
    model = model_of(text, arrays)
    fold(model)  # exponential in the depth, it would never come back
    assert ops(model) == {"Conv": 1}


def test_kilobyte_that_names_a_terabyte_is_not_computed() -> None:
    steps = " ".join(f"v{n + 1} = Concat<axis=0>(v{n}, v{n})" for n in range(60))
    text = (
        f"g (double[N,4] x) => (double[N,4] y) {{ {steps} s = ReduceSum<keepdims=0>(v60) c = Mul(x, s) y = Relu(c) }}"
    )
    model = model_of(text, constants(v0=(2, 64)))  # two axes: ONNX itself follows the values of vectors
    fold(model)
    assert ops(model)["Concat"] == 60


@pytest.mark.parametrize(
    ("name", "dtype"), [("integers", np.int64), ("booleans", np.bool_), ("complex numbers", np.complex64)]
)
def test_weights_and_parameters_of_other_types_are_left_alone(name: str, dtype: type) -> None:
    del name
    text = f"g (double[N,3,8,8] x) => (double[N,4,6,6] y) {{ c = Conv(x, w) y = {BN} }}"
    for wrong in ("w", "scale", "var"):
        arrays = constants(w=(4, 3, 3, 3)) | norm(4)
        arrays[wrong] = np.ones(arrays[wrong].shape, dtype)
        report = fold(model_of(text, arrays))
        assert report.batch_norms[0].fate == "kept"


def test_node_that_is_kept_absorbs_nothing() -> None:
    text = f"g (double[N,4,8,8] x) => (double[N,4,8,8] y) {{ a = Relu(x) b = Mul(a, k) c = Identity(b) d = {BN} y = Relu(d) }}"
    model = model_of(text, norm(4) | constants(k=(4, 1, 1)))
    before = {name: v.const_value.numpy().copy() for name, v in model.graph.initializers.items()}  # type: ignore[union-attr]
    after = bnfold.optimize(model, options=OptimizeOptions(keep=("d",))).model
    for name, array in before.items():
        assert np.array_equal(after.graph.initializers[name].const_value.numpy(), array)  # type: ignore[union-attr]


def test_alias_of_the_default_domain_is_understood() -> None:
    text = f"g (double[N,3,8,8] x) => (double[N,4,6,6] y) {{ v = Identity(w) c = Conv(x, v) y = {BN} }}"
    model = model_of(text, constants(w=(4, 3, 3, 3)) | norm(4))
    proto = ir.to_proto(model)
    proto.opset_import[0].domain = "ai.onnx"
    for node in proto.graph.node:
        node.domain = "ai.onnx"
    model = ir.from_proto(proto)
    fold(model)
    assert ops(model) == {"Conv": 1}


def test_bias_computed_at_run_time_does_not_stop_a_scale_before_the_op() -> None:
    text = "g (double[N,3,8,8] x, double[4] b) => (double[N,4,6,6] y) { d = Mul(x, k) y = Conv(d, w, b) }"
    model, _ = folded(model_of(text, constants(w=(4, 3, 3, 3), k=(3, 1, 1))))
    assert ops(model) == {"Conv": 1}
    text = (
        "g (double[N,3] x, double[N,4] b) => (double[N,4] y) { d = Mul(x, k) y = Gemm<alpha=0.5, beta=2.0>(d, w, b) }"
    )
    model, _ = folded(model_of(text, constants(w=(3, 4), k=(3,))))
    assert ops(model) == {"Gemm": 1}


def test_bias_computed_at_run_time_still_stops_what_follows_the_op() -> None:
    text = (
        "g (double[N,3,8,8] x, double[4] b) => (double[N,4,6,6] y) "
        "{ d = Mul(x, k) c = Conv(d, w, b) y = BatchNormalization(c, scale, bias, mean, var) }"
    )
    model, report = folded(model_of(text, constants(w=(4, 3, 3, 3), k=(3, 1, 1)) | norm(4)))
    assert ops(model) == {"Conv": 1, "BatchNormalization": 1}
    assert reason_of(report) == "weight-not-constant"


def test_reader_of_the_shape_is_no_reader_of_the_elements() -> None:
    text = (
        "g (double[N,3,8,8] x) => (double[N,4,36] y) { c = Conv(x, w) s = Shape<start=0, end=2>(c) "
        "d = BatchNormalization(c, scale, bias, mean, var) e = Shape(d) t = Concat<axis=0>(s, m) f = Relu(d) y = Reshape(f, t) }"
    )
    model, _ = folded(model_of(text, constants(w=(4, 3, 3, 3)) | norm(4) | {"m": np.array([-1])}))
    assert "BatchNormalization" not in ops(model)


def test_dropout_with_an_empty_training_input_is_inference() -> None:
    text = f'g (double[N,3,8,8] x) => (double[N,4,6,6] y) {{ d = Conv(x, w) c = Dropout(d, "", "") y = {BN} }}'
    model, _ = folded(model_of(text, constants(w=(4, 3, 3, 3)) | norm(4)))
    assert "BatchNormalization" not in ops(model)


def test_function_of_affines_alone_is_inlined() -> None:
    functions = '<domain: "local", opset_import: ["": 17]> layer_scale (x, g) => (y) { y = Mul(x, g) }'
    text = "g (float[N,3] x) => (float[N,4] y) { c = MatMul(x, w) y = local.layer_scale(c, k) }"
    arrays = {name: array.astype(np.float32) for name, array in constants(w=(3, 4), k=(4,)).items()}
    assert ops(bnfold.optimize(model_of(text, arrays, functions=functions)).model) == {"MatMul": 1}


# Files.

FLOAT_TEXT = f"g (float[N,3,8,8] x) => (float[N,4,6,6] y) {{ c = Conv(x, w) y = {BN} }}"


def float_model() -> ir.Model:
    arrays = constants(w=(4, 3, 3, 3)) | norm(4)
    return model_of(FLOAT_TEXT, {name: array.astype(np.float32) for name, array in arrays.items()})


def test_weights_of_the_input_are_never_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    proto = ir.to_proto(float_model())
    onnx.save(proto, source, save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    before = (tmp_path / "out.onnx.data").read_bytes()
    with pytest.raises(OutputError, match="holds the weights of the input"):
        bnfold.optimize(source, tmp_path / "out.onnx", OptimizeOptions(external_data="always"))
    assert (tmp_path / "out.onnx.data").read_bytes() == before
    assert bnfold.optimize(source, tmp_path / "out.onnx", OptimizeOptions(external_data="never")).path is not None


def test_external_data_of_a_branch_is_found_beside_the_model(tmp_path: Path) -> None:
    weights = [[numpy_helper.from_array(constants(s, w=(4, 3, 3, 3))["w"].astype(np.float32), "w")] for s in (1, 2)]
    proto = ir.to_proto(two_branches(*weights))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert fold(load_model(path)).batch_norms_after == 0


def test_sparse_tensors_are_named(tmp_path: Path) -> None:
    proto = ir.to_proto(float_model())
    sparse = onnx.helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([1.0], np.float32), "sp"), numpy_helper.from_array(np.array([2]), "i"), [4]
    )
    proto.graph.sparse_initializer.append(sparse)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="sparse tensors"):
        load_model(path)


def test_protobuf_in_memory_is_taken_and_other_things_are_not() -> None:
    proto = ir.to_proto(float_model())
    assert bnfold.inspect(proto).batch_norms_after == 0
    for wrong in (b"bytes", None, 3):
        with pytest.raises(InputError, match="is no model"):
            bnfold.optimize(wrong)  # type: ignore[arg-type]


def test_documentation_of_an_output_survives(tmp_path: Path) -> None:
    model = float_model()
    model.graph.outputs[0].doc_string = "what comes out"
    path = save_model(bnfold.optimize(model).model, tmp_path / "m.onnx")
    assert load_model(path).graph.outputs[0].doc_string == "what comes out"
