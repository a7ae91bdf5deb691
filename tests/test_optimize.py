"""The pipeline around the engine: choices, functions, proof, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folding import constants, model_of, norm, ops

import bnfold
from bnfold.errors import InputError, ModelError, OutputError
from bnfold.model_file import ExternalData, load_model, save_model
from bnfold.optimizer import OptimizeOptions
from bnfold.verification import VerifyOptions
from bnfold.verification.oracle import Oracle

TEXT = (
    "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, w) d = BatchNormalization(c, scale, bias, mean, var) "
    "e = Relu(d) y = BatchNormalization(e, scale2, bias2, mean2, var2) }"
)


def source(folder: Path) -> Path:
    arrays = constants(w=(4, 3, 3, 3)) | norm(4) | norm(4, "2")
    model = model_of(TEXT, {name: array.astype(np.float32) for name, array in arrays.items()})
    model.metadata_props["author"] = "someone"
    return save_model(model, folder / "model.onnx")


def test_result_is_written_after_it_was_proven(tmp_path: Path) -> None:
    result = bnfold.optimize(source(tmp_path), tmp_path / "out.onnx", OptimizeOptions(verify=VerifyOptions()))
    assert result.path == tmp_path / "out.onnx"
    assert result.verification is not None
    assert result.verification.ok
    written = load_model(result.path)
    assert ops(written) == {"Conv": 1, "Relu": 1, "BatchNormalization": 1}
    assert written.metadata_props["author"] == "someone"
    onnx.checker.check_model(result.path, full_check=True)


@pytest.mark.parametrize("given", ["path", "proto", "ir"])
def test_training_graphs_that_a_file_has_and_the_result_has_not_are_told_of(given: str, tmp_path: Path) -> None:
    path = source(tmp_path)
    proto = onnx.load(path)
    assert bnfold.optimize(path, tmp_path / "out.onnx").notes == ()
    proto.training_info.add().algorithm.name = "adam"
    onnx.save(proto, path)
    result = bnfold.optimize({"path": path, "proto": proto, "ir": load_model(path)}[given], tmp_path / "out.onnx")
    (note,) = result.notes
    assert "training_info is not in the new file" in note
    assert not onnx.load(tmp_path / "out.onnx").training_info


def test_model_in_memory_is_not_changed(tmp_path: Path) -> None:
    model = load_model(source(tmp_path))
    before = ir.to_proto(model).SerializeToString()
    result = bnfold.optimize(model)
    assert ops(result.model) == {"Conv": 1, "Relu": 1, "BatchNormalization": 1}
    assert ir.to_proto(model).SerializeToString() == before


def test_inspect_says_what_optimize_does(tmp_path: Path) -> None:
    path = source(tmp_path)
    assert bnfold.inspect(path).to_json() == bnfold.optimize(path).report.to_json()


def test_failed_proof_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold import optimizer

    honest = optimizer.fold

    def wrong(model: ir.Model, selected: object, **choices: object) -> object:
        report = honest(model, selected, **choices)  # type: ignore[arg-type]
        weight = model.graph.initializers["w"]
        array = weight.const_value.numpy().copy()  # type: ignore[union-attr]
        array[1] *= 1.01
        weight.const_value = ir.tensor(array, name="w")
        return report

    monkeypatch.setattr(optimizer, "fold", wrong)
    path = source(tmp_path)
    result = bnfold.optimize(path, tmp_path / "out.onnx", OptimizeOptions(verify=VerifyOptions()))
    assert result.path is None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx"]


def test_result_that_breaks_the_specification_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold import optimizer

    honest = optimizer.fold

    def wrong(model: ir.Model, selected: object, **choices: object) -> object:
        report = honest(model, selected, **choices)  # type: ignore[arg-type]
        next(iter(model.graph)).op_type = "Nonsense"
        return report

    monkeypatch.setattr(optimizer, "fold", wrong)
    path = source(tmp_path)
    with pytest.raises(ModelError, match="please report it: the result is not a valid ONNX model: No Op registered"):
        bnfold.optimize(path, tmp_path / "out.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx"]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (OptimizeOptions(only=("d",)), 1),
        (OptimizeOptions(keep=("d",)), 2),
        (OptimizeOptions(only=("y",)), 2),
        (OptimizeOptions(keep=("*",)), 2),
        (OptimizeOptions(keep=("c",)), 2),
    ],
)
def test_choice_of_nodes(tmp_path: Path, options: OptimizeOptions, left: int) -> None:
    assert ops(bnfold.optimize(source(tmp_path), options=options).model)["BatchNormalization"] == left


def test_pattern_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no node or output is named like 'layer1"):
        bnfold.optimize(source(tmp_path), options=OptimizeOptions(only=("layer1*",)))


def test_the_input_is_overwritten_only_when_asked(tmp_path: Path) -> None:
    path = source(tmp_path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="--in-place"):
        bnfold.optimize(path, path)
    assert path.read_bytes() == before
    bnfold.optimize(path, path, OptimizeOptions(in_place=True))
    assert ops(load_model(path))["BatchNormalization"] == 1


def test_external_data_stays_external_and_folds(tmp_path: Path) -> None:
    path = source(tmp_path)
    outside = save_model(load_model(path), tmp_path / "outside.onnx", external_data="always")
    result = bnfold.optimize(
        outside, tmp_path / "out.onnx", OptimizeOptions(external_data="always", verify=VerifyOptions())
    )
    assert result.path is not None
    assert (tmp_path / "out.onnx.data").exists()
    onnx.checker.check_model(result.path, full_check=True)


def test_inputs_that_are_initializers_are_frozen_on_request(tmp_path: Path) -> None:
    model = load_model(source(tmp_path))
    model.graph.inputs.append(model.graph.initializers["w"])
    assert bnfold.inspect(model).batch_norms_after == 2
    result = bnfold.optimize(model, options=OptimizeOptions(freeze_inputs=True))
    assert result.report.batch_norms_after == 1
    assert [value.name for value in result.model.graph.inputs] == ["x"]


FUNCTION = """
<domain: "local", opset_import: ["": 17]>
block (x, w, scale, bias, mean, var) => (y) { c = Conv(x, w) y = BatchNormalization(c, scale, bias, mean, var) }
<domain: "local", opset_import: ["": 17]>
twice (x) => (y) { y = Add(x, x) }
"""


def test_functions_that_hold_a_batch_norm_are_inlined_and_others_kept() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { d = local.block(x, w, scale, bias, mean, var) y = local.twice(d) }"
    arrays = constants(w=(4, 3, 3, 3)) | norm(4)
    model = model_of(text, {n: a.astype(np.float32) for n, a in arrays.items()}, functions=FUNCTION)
    result = bnfold.optimize(model)
    assert ops(result.model) == {"Conv": 1, "twice": 1}
    assert [record.fate for record in result.report.records] == ["folded"]


def test_report_is_plain_json(tmp_path: Path) -> None:
    document = bnfold.optimize(source(tmp_path)).to_json()
    assert json.loads(json.dumps(document)) == document
    first, second = document["report"]["records"]
    assert (first["fate"], first["direction"], first["into"]) == ("folded", "backward", ["c"])
    assert (second["fate"], second["reason"]) == ("kept", "nonzero-shift")


def test_a_proof_without_an_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="output path"):
        bnfold.optimize(source(tmp_path), options=OptimizeOptions(verify=VerifyOptions()))


def test_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        bnfold.optimize(tmp_path / "nope.onnx", tmp_path / "out.onnx")


EVERYWHERE = """
g (float[N,3,8,8] x, bool flag) => (float[N,4,6,6] y) {
    c = Conv(x, w) d = BatchNormalization(c, scale, bias, mean, var) e = Sigmoid(d)
    k = Constant<value = float[1,4,1,1] {1, 2, 3, 4}>()
    f = Max(e, k)
    h = If(flag) <
        then_branch = yes () => (float[N,4,6,6] p) <float[1,4,1,1] a = {4, 3, 2, 1}> { p = Mul(f, a) },
        else_branch = no () => (float[N,4,6,6] q) { q = Identity(f) }
    >
    y = PRelu(h, slope)
}
"""


def scattered(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A model that keeps weights in another file wherever one can be, and what a run of it gives."""
    arrays = constants(w=(4, 3, 3, 3), slope=(4, 1, 1)) | norm(4)
    model = model_of(EVERYWHERE, {name: array.astype(np.float32) for name, array in arrays.items()})
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 8, 8)), "flag": np.array(True)}
    proto, path = ir.to_proto(model), folder / "model.onnx"
    tensors = [proto.graph.node[3].attribute[0].t, *proto.graph.initializer]
    tensors += next(attribute.g for attribute in proto.graph.node[5].attribute if attribute.g.initializer).initializer
    with (folder / "model.onnx.data").open("wb") as stream:
        for tensor in tensors:
            content = onnx.numpy_helper.to_array(tensor).tobytes()
            for field in ("raw_data", "float_data"):
                tensor.ClearField(field)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            place = {"location": "model.onnx.data", "offset": stream.tell(), "length": len(content)}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            stream.write(content)
    path.write_bytes(proto.SerializeToString())
    return path, Oracle(model).run(feeds) | feeds


@pytest.mark.parametrize("external_data", ["always", "never"])
@pytest.mark.parametrize("in_place", [False, True])
def test_weights_outside_are_the_same_wherever_they_are_and_go(
    tmp_path: Path, external_data: ExternalData, in_place: bool
) -> None:
    path, wanted = scattered(tmp_path)
    feeds = {name: wanted.pop(name) for name in ("x", "flag")}
    target = path if in_place else tmp_path / "out.onnx"
    result = bnfold.optimize(path, target, OptimizeOptions(external_data=external_data, in_place=in_place))
    assert result.report.batch_norms_after == 0
    for model in (result.model, load_model(target)):
        np.testing.assert_allclose(Oracle(model).run(feeds)["y"], wanted["y"], rtol=1e-5)
    onnx.checker.check_model(target, full_check=True)


def test_op_that_computes_a_weight_is_kept_though_its_reader_gets_another() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N,2,4,4] x) => (float[N,2,2,2] y)
        <float[2] k = {2, 3}> { a = Transpose<perm = [1, 0, 2, 3]>(w) c = Conv(x, a) b = Unsqueeze(k, i) y = Mul(c, b) }"""
    proto = onnx.parser.parse_model(text)
    arrays = {"w": np.ones((2, 2, 3, 3), np.float32), "i": np.array([1, 2])}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    assert ops(bnfold.optimize(proto).model) == {"Conv": 1}
    assert ops(bnfold.optimize(proto, options=OptimizeOptions(keep=("a",))).model) == {"Transpose": 1, "Conv": 1}
