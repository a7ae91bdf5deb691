"""An export keeps every batch norm, computes the network's function, and is checked before it is written."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from training_samples import write_npz

from bnfold.errors import CheckpointError, InputError, ModelError, OutputError
from bnfold.exporting import ExportOptions, export
from bnfold.exporting.check import check_export
from bnfold.exporting.cleaning import clean_model
from bnfold.exporting.conversion import to_onnx
from bnfold.exporting.opset import set_opset
from bnfold.exporting.source import Network
from bnfold.models import build
from bnfold.session import SessionOptions, create_session, run_session
from bnfold.training import TrainOptions, train

_SMALL = {"widths": [4, 6], "in_channels": 2, "num_classes": 3}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    archive = write_npz(folder / "d.npz", side=8)
    train(
        TrainOptions(
            output=folder / "run", model="resnet", model_args={"widths": [4, 6]}, data=f"npz:{archive}",
            epochs=1, batch_size=16, device="cpu", threads=1,
        )
    )  # fmt: skip
    return folder / "run"


def _options(**changes: Any) -> ExportOptions:
    return ExportOptions(**{"model_args": _SMALL, "input_shape": (2, 8, 8), **changes})


def _network(module: nn.Module, *shape: int) -> Network:
    return Network("net", module.eval(), shape, {})


def _op_types(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_a_run_is_exported_with_nothing_retyped(run_folder: Path, tmp_path: Path) -> None:
    result = export(run_folder, tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    assert result.inputs == {"input": ("batch", 1, 8, 8)}
    assert result.outputs == {"logits": ("batch", 3)}
    assert (result.opset, result.batch_norms) == (20, 6)
    notes = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert notes["bnfold.classes"] == ["0", "1", "2"]
    assert notes["bnfold.normalization"] == json.loads((run_folder / "run.json").read_text())["data"]["normalization"]
    assert notes["bnfold.run"]["model"] == "resnet"
    assert result.check.max_error <= result.check.bound
    assert result.check.engine == "onnxruntime"
    json.dumps(result.to_json(), allow_nan=False)


def test_the_exported_model_answers_as_the_trained_network(run_folder: Path, tmp_path: Path) -> None:
    export(run_folder, tmp_path / "m.onnx")
    images = np.random.default_rng(0).normal(size=(7, 1, 8, 8)).astype(np.float32)
    session = create_session(tmp_path / "m.onnx", SessionOptions(threads=1))
    network = build("resnet", widths=[4, 6], num_classes=3).eval()
    weights = run_folder / "weights.safetensors"
    from bnfold.training.checkpoint import load_weights

    network.load_state_dict(load_weights(weights))
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run_session(session, {"input": images})["logits"], expected, atol=1e-5)


def test_a_clean_export_holds_no_constant_subgraphs_no_paths_and_readable_names(
    run_folder: Path, tmp_path: Path
) -> None:
    export(run_folder, tmp_path / "m.onnx")
    types = set(_op_types(tmp_path / "m.onnx"))
    assert types == {"Conv", "BatchNormalization", "Relu", "Add", "ReduceMean", "Gemm"}
    content = (tmp_path / "m.onnx").read_bytes()
    assert b".py" not in content
    assert str(run_folder).encode() not in content
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert "/stages/1/0/bn1/BatchNormalization" in [node.name for node in graph.node]
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert {len(node.input) for node in graph.node if node.op_type == "Conv"} == {2}


def test_flattening_becomes_one_reshape_with_an_open_batch(tmp_path: Path) -> None:
    export("mlp", tmp_path / "m.onnx", _options(model_args={"in_features": 128, "widths": [4]}))
    assert _op_types(tmp_path / "m.onnx") == ["Reshape", "Gemm", "BatchNormalization", "Relu", "Gemm"]
    graph = onnx.load(tmp_path / "m.onnx").graph
    (shape,) = (tensor for tensor in graph.initializer if tensor.name == graph.node[0].input[1])
    assert onnx.numpy_helper.to_array(shape).tolist() == [-1, 128]


def test_a_raw_export_is_what_torch_wrote(run_folder: Path, tmp_path: Path) -> None:
    result = export(run_folder, tmp_path / "m.onnx", ExportOptions(clean=False))
    assert result.batch_norms == 6
    assert {"CastLike", "Expand"} <= set(_op_types(tmp_path / "m.onnx"))


@pytest.mark.parametrize("name", ["mlp", "preact_resnet", "vgg"])
def test_every_network_of_ours_exports(name: str, tmp_path: Path) -> None:
    arguments = {"in_features": 128} if name == "mlp" else {"widths": [4, 6], "in_channels": 2}
    result = export(name, tmp_path / "m.onnx", _options(model_args=arguments))
    network = build(name, **arguments)
    assert result.batch_norms == sum(
        isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in network.modules()
    )


@pytest.fixture(scope="module")
def converted() -> tuple[ir.Model, Network]:
    """A clean export of a residual network at opset 18, and the network."""
    torch.manual_seed(0)
    network = _network(build("resnet", **_SMALL), 2, 8, 8)
    model, _ = to_onnx(network, _options(opset=18))
    clean_model(model)
    return model, network


@pytest.mark.parametrize(
    ("opset", "ir_version"), [(7, 4), (9, 4), (11, 6), (12, 7), (13, 7), (14, 7), (15, 8), (17, 8), (18, 8)]
)
def test_a_lower_opset_is_reached_and_computes_the_same(
    converted: tuple[ir.Model, Network], opset: int, ir_version: int
) -> None:
    model, network = converted[0].clone(), converted[1]
    set_opset(model, opset)
    proto = ir.to_proto(model)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
    assert proto.ir_version == ir_version
    onnx.checker.check_model(proto, full_check=True)
    assert check_export(model, network, _options()).max_error < 1e-5


@pytest.mark.parametrize("opset", [13, 23])
def test_the_opset_asked_for_is_the_opset_of_the_file(opset: int, tmp_path: Path) -> None:
    result = export("mlp", tmp_path / "m.onnx", _options(model_args={"in_features": 128}, opset=opset))
    model = onnx.load(tmp_path / "m.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert (result.opset, result.batch_norms) == (opset, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 99}, "newer than the installed onnx"),
        ({"opset": 13, "clean": False}, "cannot be brought to opset 13: .* is a Shape"),
    ],
)
def test_an_opset_that_cannot_be_had_is_an_error_and_leaves_no_file(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        export("resnet", tmp_path / "m.onnx", _options(**options))
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_an_opset_lacks_is_named() -> None:
    model = ir.from_onnx_text('<ir_version: 9, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { y = Gelu(x) }')
    with pytest.raises(ModelError, match="there is no Gelu in it"):
        set_opset(model, 18)


def test_an_attribute_that_an_opset_lacks_is_named_unless_it_is_the_default() -> None:
    text = (
        '<ir_version: 9, opset_import: ["" : 20]> g (float[2, 3] x) => (float[2, 1] y) '
        "<int64[1] axes = {1}> { y = ReduceSum <noop_with_empty_axes: int = %d> (x, axes) }"
    )
    model = ir.from_onnx_text(text % 0)
    set_opset(model, 11)
    assert [node.op_type for node in model.graph] == ["ReduceSum"]
    assert list(model.graph[0].attributes["axes"].as_ints()) == [1]
    with pytest.raises(ModelError, match="its noop_with_empty_axes is not known there"):
        set_opset(ir.from_onnx_text(text % 1), 11)


@pytest.mark.parametrize("batch", [1, 4])
def test_the_batch_is_open_unless_static(tmp_path: Path, batch: int) -> None:
    export("mlp", tmp_path / "open.onnx", _options(model_args={"in_features": 128}))
    static = export("mlp", tmp_path / "static.onnx", _options(model_args={"in_features": 128}, static=True))
    assert static.inputs == {"input": (1, 2, 8, 8)}
    images = np.zeros((batch, 2, 8, 8), np.float32)
    assert run_session(create_session(tmp_path / "open.onnx"), {"input": images})["logits"].shape == (batch, 10)


def test_several_outputs_repeated_and_functional_batch_norms_are_kept(tmp_path: Path) -> None:
    result = export("training_samples:two_heads", tmp_path / "m.onnx", _options(model_args={}))
    assert list(result.outputs) == ["output_0", "output_1"]
    assert result.batch_norms == 3


def test_code_that_insists_on_float32_is_compared_in_float32(tmp_path: Path) -> None:
    result = export("training_samples:float32_inside", tmp_path / "m.onnx", _options(model_args={}, input_shape=(4,)))
    assert result.check.reference == "float32"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_are_checked_with_their_own_rounding(dtype: torch.dtype) -> None:
    network = _network(build("mlp", in_features=8, widths=[6]).to(dtype), 8)
    options = ExportOptions(input_shape=(8,))
    model, count = to_onnx(network, options)
    check = check_export(model, network, options)
    assert count == 1
    assert check.max_error <= check.bound
    assert check.bound < (1e-6 if dtype == torch.float64 else 1.0)


@pytest.mark.parametrize("change", [1e-3, float("nan")])
def test_a_weight_that_is_off_is_caught(converted: tuple[ir.Model, Network], change: float) -> None:
    model, network = converted[0].clone(), converted[1]
    weight = model.graph.initializers["conv.weight"]
    assert weight.const_value is not None
    wrong = weight.const_value.numpy().copy()
    wrong[0] *= 1 + change
    weight.const_value = ir.tensor(wrong)
    with pytest.raises(ModelError, match="does not compute the same function"):
        check_export(model, network, _options())


def test_the_module_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mine = build("resnet", **_SMALL).train()
    before = copy.deepcopy(mine.state_dict())
    monkeypatch.setattr("training_samples.two_heads", lambda: mine)
    export("training_samples:two_heads", tmp_path / "m.onnx", _options(model_args={}))
    assert mine.training
    assert all(module.training for module in mine.modules())
    assert all(torch.equal(value, before[key]) for key, value in mine.state_dict().items())


def test_an_export_changes_no_global_state(tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    filters = list(warnings.filters)
    export("mlp", tmp_path / "m.onnx", _options(model_args={"in_features": 128}))
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: logging.getLogger(name).level for name in levels} == levels
    assert list(warnings.filters) == filters


@pytest.fixture
def weight_files(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    weights = build("resnet", **_SMALL).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "w.pt")
    return tmp_path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_file_of_weights_needs_a_name_and_a_shape(weight_files: Path, name: str) -> None:
    source = weight_files / name
    result = export(source, weight_files / "m.onnx", _options(model="resnet"))
    assert result.network == "resnet"
    named = export("resnet", weight_files / "n.onnx", _options(weights=source))
    assert named.check.max_error == result.check.max_error
    with pytest.raises(InputError, match="name the network"):
        export(source, weight_files / "m.onnx", _options())
    with pytest.raises(InputError, match="shape of one input"):
        export(source, weight_files / "m.onnx", _options(model="resnet", input_shape=None))


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("none", {}, CheckpointError, "does not exist"),
        ("none.pt", {"model": "resnet"}, CheckpointError, "does not exist"),
        (".", {}, CheckpointError, "holds no training run"),
        ("resnet", {"weights": "none.pt"}, CheckpointError, "none.pt does not exist"),
        ("resnet", {"model": "vgg"}, InputError, "names a network itself"),
        ("resnet", {"input_shape": (3, 8, 8)}, InputError, "does not take an input"),
        ("resnet", {"model_args": {"depth": 4}}, InputError, "cannot be built"),
        ("torch.nn:LazyLinear", {"model_args": {"out_features": 4}}, InputError, "lazy modules"),
        ("w.safetensors", {"model": "vgg"}, CheckpointError, "has no tensor features"),
        ("w.safetensors", {"model": "resnet", "weights": "w.pt"}, InputError, "leave out the other"),
        ("w.pt", {"model": "resnet", "model_args": {**_SMALL, "widths": [5, 6]}}, CheckpointError, "conv.weight"),
        ("training_samples:batch_bound", {"model_args": {}, "input_shape": (8,)}, ModelError, "static"),
    ],
)
def test_a_source_that_cannot_be_exported_is_refused_and_leaves_no_file(
    weight_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(weight_files)
    with pytest.raises(error, match=message):
        export(source, "m.onnx", _options(**options))
    assert sorted(path.name for path in weight_files.iterdir()) == ["w.pt", "w.safetensors"]


@pytest.mark.parametrize("output", ["folder", "none/m.onnx"])
def test_a_place_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError):
        export("no_such_module:net", output, _options())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"opset": 6}, "opset is 6"), ({"input_shape": (0, 2)}, "at least 1"), ({"seed": -1}, "seed is -1")],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExportOptions(**options)


def test_an_interrupted_run_exports_what_it_reached(run_folder: Path, tmp_path: Path) -> None:
    for name in ("run.json", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    found = export(tmp_path, tmp_path / "m.onnx")
    assert found.batch_norms == 6
    assert "is not complete" in " ".join(found.notes)
    assert export(run_folder, tmp_path / "n.onnx").notes == ()
