"""``bnfold deploy``: what it writes for Triton and KServe, and what it refuses to write."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2 as pb

from bnfold.cli.main import main
from bnfold.deployment.cold_start import ColdStart
from bnfold.deployment.golden import golden_pairs
from bnfold.deployment.machine_format import machine_model, this_machine, write_machine_file
from bnfold.deployment.options import DeployOptions
from bnfold.deployment.proof import check_machine_file
from bnfold.deployment.publishing import roll_back
from bnfold.deployment.repository import read_repository, warnings_of
from bnfold.deployment.run import deploy
from bnfold.deployment.triton_config import parse_config
from bnfold.errors import BnfoldError, DataError, ModelError, OptionError, OutputError, RepositoryError, SetupError
from bnfold.prediction.preprocessing import Preprocessing, read_sidecar, write_sidecar
from bnfold.session import create_session, run_session
from bnfold.sidecar import sidecar_file
from bnfold.training.dataset import Normalization

pytestmark = pytest.mark.extra

Shape = list[int | str | None]


def save(path: Path, text: str, *, opset: int = 17, ir_version: int = 8, **initializers: Any) -> Path:
    """A model from ONNX's text format, its weights given by name."""
    model = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "com.microsoft" : 1]>{text}'
    )
    for name, value in initializers.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.save(model, path)
    return path


def convolution(path: Path, *, batch: str = "N", seed: int = 0, classes: int = 3) -> Path:
    """Conv, Relu, mean, Gemm: 2×8×8 images to scores."""
    random = np.random.default_rng(seed)
    return save(
        path,
        f"""agraph (float[{batch},2,8,8] x) => (float[{batch},{classes}] y) {{
            c = Conv<pads=[1,1,1,1]>(x, w, b)
            r = Relu(c)
            g = GlobalAveragePool(r)
            f = Flatten(g)
            y = Gemm<transB=1>(f, v, u)
        }}""",
        w=random.standard_normal((4, 2, 3, 3)).astype("f"),
        b=random.standard_normal(4).astype("f"),
        v=random.standard_normal((classes, 4)).astype("f"),
        u=random.standard_normal(classes).astype("f"),
    )


def batch_norm(path: Path) -> Path:
    """A Gemm and a batch norm, which can be folded."""
    random = np.random.default_rng(1)
    return save(
        path,
        """agraph (float[N,4] x) => (float[N,3] y) {
            h = Gemm(x, w, b)
            y = BatchNormalization(h, s, t, m, v)
        }""",
        w=random.standard_normal((4, 3)).astype("f"),
        b=random.standard_normal(3).astype("f"),
        s=random.uniform(0.5, 2, 3).astype("f"),
        t=random.standard_normal(3).astype("f"),
        m=random.standard_normal(3).astype("f"),
        v=random.uniform(0.5, 2, 3).astype("f"),
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return convolution(tmp_path / "net.onnx")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def assumed(_model: Path, others: Sequence[Path], *_: object) -> tuple[ColdStart, ...]:
    return (ColdStart(0.01, 0.01, 0.01, 0.001, 1, 1 << 26),) * (1 + len(others))


@pytest.fixture(autouse=True)
def _cold_starts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes take a second each to start: only the tests that look at what they measure start them."""
    if "measured" in request.fixturenames:
        for name in ("STARTS", "COMPARED_STARTS"):
            monkeypatch.setattr(f"bnfold.deployment.cold_start.{name}", 2)
    else:
        monkeypatch.setattr("bnfold.deployment.run.measure_cold_starts", assumed)


@pytest.fixture
def measured() -> None:
    """Asks for true cold starts."""


def config_of(repository: Path, name: str = "net") -> Any:
    return parse_config((repository / name / "config.pbtxt").read_text())


@pytest.mark.usefixtures("measured")
def test_a_deployed_model_is_complete_and_its_golden_outputs_come_out(model: Path, repository: Path) -> None:
    result = deploy(model, repository)
    assert result.model is not None
    (found,) = read_repository(repository)
    assert found == result.model
    assert found.model.read_bytes() == model.read_bytes()
    assert sorted(found.manifest.files) == [
        "config.pbtxt", "fold_report.json", "golden.npz", "inferenceservice.yaml", "model.onnx",
    ]  # fmt: skip
    assert found.manifest.verification["itself"]["verdict"] == "equivalent"
    assert found.manifest.cold_start is not None
    start = found.manifest.cold_start["model.onnx"]
    assert start["starts"] == 2
    assert 0 < start["least_s"] <= start["creation_s"] <= start["greatest_s"]
    assert start["peak_bytes"] > 1 << 20
    assert found.golden is not None
    session = create_session(found.model)
    pairs = golden_pairs(found.golden)
    assert sorted(pair.inputs["x"].shape[0] for pair in pairs) == [1, 2]
    for pair in pairs:
        outputs = run_session(session, pair.inputs)
        assert list(pair.differences(outputs)) == []
        assert "off by" in next(pair.differences({"y": outputs["y"] * 1.001}))
        assert "shape" in next(pair.differences({"y": outputs["y"][:, 1:]}))
        assert "missing" in next(pair.differences({}))
        assert "off by" in next(pair.differences({"y": outputs["y"] * np.nan}))


def test_a_server_of_another_user_can_read_all_of_it(model: Path, repository: Path) -> None:
    deploy(model, repository, DeployOptions(ort_format="here", verify=False))
    umask = os.umask(0)
    os.umask(umask)
    for entry in repository.rglob("*"):
        assert entry.stat().st_mode & 0o777 == (0o777 if entry.is_dir() else 0o666) & ~umask, entry


def test_the_configuration_says_what_was_asked_for(model: Path, repository: Path) -> None:
    options = DeployOptions(max_batch=16, instances=2, threads=3, queue_delay_us=500, preferred=(16, 4), arena=False)
    deploy(model, repository, options)
    config = config_of(repository)
    assert (config.name, config.backend, config.default_model_filename) == ("net", "onnxruntime", "model.onnx")
    assert config.max_batch_size == 16
    assert list(config.version_policy.specific.versions) == [1]
    (port,) = config.input
    assert (port.name, port.data_type, list(port.dims)) == ("x", pb.TYPE_FP32, [2, 8, 8])
    (port,) = config.output
    assert (port.name, port.data_type, list(port.dims), port.label_filename) == ("y", pb.TYPE_FP32, [3], "")
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, pb.ModelInstanceGroup.KIND_CPU)
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "1",
        "execution_mode": "0",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "0",
    }
    assert not config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [(warm.batch_size, list(warm.inputs["x"].dims)) for warm in config.model_warmup] == [
        (1, [2, 8, 8]),
        (16, [2, 8, 8]),
    ]
    (found,) = read_repository(repository)
    assert found.serving.batching is not None
    assert (found.serving.max_batch, found.serving.batching.preferred) == (16, (4, 16))


def test_a_fixed_batch_is_no_batch_to_triton(tmp_path: Path, repository: Path) -> None:
    deploy(convolution(tmp_path / "net.onnx", batch="5"), repository)
    config = config_of(repository)
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [5, 2, 8, 8]
    assert not config.HasField("dynamic_batching")
    assert [warm.batch_size for warm in config.model_warmup] == [1]
    assert list(config.model_warmup[0].inputs["x"].dims) == [5, 2, 8, 8]


@pytest.mark.parametrize(
    ("text", "batched", "inputs", "outputs"),
    [
        ("agraph (float[N,L] x) => (float[N,L] y) { y = Relu(x) }", True, {"x": [-1]}, {"y": [-1]}),
        ("agraph (float[N] x) => (float[N] y) { y = Relu(x) }", True, {"x": [1]}, {"y": [1]}),
        ("agraph (float x) => (float y) { y = Relu(x) }", False, {"x": [1]}, {"y": [1]}),
        ("agraph (float[3] x) => (float y) { y = ReduceMean<keepdims=0>(x) }", False, {"x": [3]}, {"y": [1]}),
        ("agraph (float[N,3] x) => (float y) { y = ReduceMean<keepdims=0>(x) }", False, {"x": [-1, 3]}, {"y": [1]}),
        # The output's first dimension is open, and is not the batch.
        ("agraph (float[N,3] x) => (float[M,3] y) { y = Concat<axis=0>(x, x) }", False, {"x": [-1, 3]}, {"y": [-1, 3]}),
        ("agraph (float[N,3] a, float[N,3] b) => (float[N,3] y) { y = Add(a, b) }", True, {"a": [3], "b": [3]}, {"y": [3]}),
        ("agraph (float[N,3] a, float[3] b) => (float[N,3] y) { y = Add(a, b) }", False, {"a": [-1, 3], "b": [3]}, {"y": [-1, 3]}),
    ],
)  # fmt: skip
def test_dims_leave_out_the_batch_where_there_is_one(
    tmp_path: Path, repository: Path, text: str, batched: bool, inputs: dict[str, Shape], outputs: dict[str, Shape]
) -> None:
    deploy(save(tmp_path / "net.onnx", text), repository)
    config = config_of(repository)
    assert (config.max_batch_size > 0) == batched
    assert {port.name: list(port.dims) for port in config.input} == inputs
    assert {port.name: list(port.dims) for port in config.output} == outputs
    (found,) = read_repository(repository)
    for spec, port in zip((*found.inputs, *found.outputs), (*config.input, *config.output), strict=True):
        assert port.HasField("reshape") == (batched and len(spec.shape) == 1), "Triton refuses it without a batch"
        assert list(port.reshape.shape) == []


@pytest.mark.parametrize(
    ("text", "together"),
    [
        ("y = Softmax<axis=-1>(x)", True),
        ("m = ReduceMean<axes=[1]>(x) y = Sub(x, m)", True),
        ("y = Softmax<axis=0>(x)", False),
        ("m = ReduceMean<axes=[0]>(x) y = Sub(x, m)", False),
        ("y = CumSum(x, zero)", False),  # the first sample of a batch is as it is alone
        ("n = Shape(x) f = Cast<to=1>(n) c = Gather(f, zero) y = Mul(x, c)", False),
        ("r = Reshape(x, one_row) s = Relu(r) y = Reshape(s, rows)", True),
    ],
)
def test_samples_that_change_each_others_results_are_not_joined(
    tmp_path: Path, repository: Path, text: str, together: bool
) -> None:
    """Rows as steps of a sequence, or statistics over the batch: their first dimension is open, and no batch."""
    path = save(
        tmp_path / "net.onnx",
        f"agraph (float[N,3] x) => (float[N,3] y) {{ {text} }}",
        zero=np.array(0, np.int64),
        one_row=np.array([1, -1], np.int64),
        rows=np.array([-1, 3], np.int64),
    )
    result = deploy(path, repository, DeployOptions(verify=False))
    config = config_of(repository)
    assert config.HasField("dynamic_batching") == (config.max_batch_size > 0) == together
    assert list(config.input[0].dims) == ([3] if together else [-1, 3])
    assert any("a sample gives another y together with others" in note for note in result.warnings) != together


def test_a_batch_of_one_size_only_is_none_whatever_the_file_says(tmp_path: Path, repository: Path) -> None:
    path = save(
        tmp_path / "net.onnx",
        """agraph (float[N,3] x) => (float[M,3] y) {
            m = ReduceMean<keepdims=0>(x) z = Mul(m, none) i = Cast<to=7>(z)
            s = Add(i, one_row) y = Reshape(x, s)
        }""",
        none=np.float32(0),
        one_row=np.array([1, 3], np.int64),
    )
    options = DeployOptions(shapes={"x": (1, 3)}, verify=False)
    assert any("does not run on any number" in note for note in deploy(path, repository, options).warnings)
    assert config_of(repository).max_batch_size == 0
    with pytest.raises(OptionError, match="--max-batch needs a model with a batch of any size, and it does not run"):
        deploy(path, repository, DeployOptions(shapes={"x": (1, 3)}, max_batch=2))


@pytest.mark.parametrize(
    ("onnx_type", "triton_type"),
    [
        ("float16", pb.TYPE_FP16),
        ("float", pb.TYPE_FP32),
        ("double", pb.TYPE_FP64),
        ("int32", pb.TYPE_INT32),
        ("int64", pb.TYPE_INT64),
        ("uint8", pb.TYPE_UINT8),
        ("bool", pb.TYPE_BOOL),
    ],
)
def test_data_types_are_tritons_and_all_are_warmed_up_with_zeros(
    tmp_path: Path, repository: Path, onnx_type: str, triton_type: int
) -> None:
    path = save(tmp_path / "net.onnx", f"agraph ({onnx_type}[N,3] x) => (float[N,3] y) {{ y = Cast<to=1>(x) }}")
    deploy(path, repository)
    config = config_of(repository)
    assert config.input[0].data_type == triton_type
    assert config.model_warmup[0].inputs["x"].zero_data, "random bytes could be NaN, or an index beyond its table"


def accelerators(config: Any) -> dict[str, dict[str, str]]:
    found = config.optimization.execution_accelerators.gpu_execution_accelerator
    return {each.name: dict(each.parameters) for each in found}


def test_cuda_runs_on_the_gpu_and_does_not_round_to_tf32(model: Path, repository: Path) -> None:
    deploy(model, repository, DeployOptions(target="cuda"))
    config = config_of(repository)
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    assert accelerators(config) == {"cuda": {"use_tf32": "0"}}


def test_tensorrt_is_told_its_precision_cache_and_sizes(model: Path, repository: Path) -> None:
    deploy(model, repository, DeployOptions(target="tensorrt", precision="FP16", engine_cache="/cache", preferred=(4,)))
    found = accelerators(config_of(repository))
    assert list(found) == ["tensorrt", "cuda"], "CUDA takes what TensorRT leaves"
    engines = found["tensorrt"]["trt_engine_cache_path"]
    assert re.fullmatch(r"/cache/net-[0-9a-f]{16}", engines)
    assert found["tensorrt"] == {
        "precision_mode": "FP16",
        "trt_engine_cache_enable": "true",
        "trt_engine_cache_path": engines,
        "trt_timing_cache_enable": "true",
        "trt_timing_cache_path": engines,
        "trt_profile_min_shapes": "x:1x2x8x8",
        "trt_profile_opt_shapes": "x:4x2x8x8",
        "trt_profile_max_shapes": "x:8x2x8x8",
    }


@pytest.mark.parametrize("external", [False, True], ids=["weights in the file", "beside it"])
def test_another_models_engines_are_not_taken_for_its_own(tmp_path: Path, repository: Path, external: bool) -> None:
    """The second has the first's graph and other weights, the third is the first again."""
    folders = []
    for seed in (0, 1, 0):
        path = tmp_path / f"{seed}.onnx"
        onnx.save(
            onnx.load(convolution(path, seed=seed)),
            path,
            save_as_external_data=external,
            location=f"{seed}.bin",
            size_threshold=0,
        )
        options = DeployOptions(name="net", target="tensorrt", engine_cache="/cache", verify=False)
        deploy(path, repository, options)
        folders.append(accelerators(config_of(repository))["tensorrt"]["trt_engine_cache_path"])
        path.with_suffix(".bin").unlink(missing_ok=True)
    assert folders[0] == folders[2] != folders[1]


def test_labels_come_from_a_file_or_the_metadata_and_belong_to_a_version(tmp_path: Path, repository: Path) -> None:
    path = convolution(tmp_path / "net.onnx")
    proto = onnx.load(path)
    helper.set_model_props(proto, {"bnfold.classes": json.dumps(["a", "b", "c"])})
    onnx.save(proto, path)
    assert deploy(path, repository).model.labels == ("a", "b", "c")  # type: ignore[union-attr]
    assert config_of(repository).output[0].label_filename == "1/labels.txt"
    names = tmp_path / "names"
    names.write_text("x\ny\nz\n")
    assert deploy(path, repository, DeployOptions(labels=names)).model.labels == ("x", "y", "z")  # type: ignore[union-attr]
    label_file = config_of(repository).output[0].label_filename
    assert (repository / "net" / label_file).read_text() == "x\ny\nz\n"
    roll_back(repository, "net")
    (found,) = read_repository(repository)
    assert found.labels == ("a", "b", "c")
    assert config_of(repository).output[0].label_filename == "1/labels.txt"


def test_a_sidecar_goes_with_the_model_and_its_labels_come_before_the_metadatas(
    tmp_path: Path, repository: Path
) -> None:
    path = convolution(tmp_path / "net.onnx")
    preprocessing = Preprocessing((0.5, 0.5), (1.0, 2.0), size=(8, 8), channels=None, labels=("p", "q", "r"))
    write_sidecar(path, preprocessing)
    proto = onnx.load(path)
    helper.set_model_props(proto, {"bnfold.classes": json.dumps(["a", "b", "c"])})
    onnx.save(proto, path)
    deploy(path, repository)
    (found,) = read_repository(repository)
    assert found.labels == ("p", "q", "r")
    assert found.preprocessing == sidecar_file(found.model)
    assert read_sidecar(found.model) == preprocessing


def test_preprocessing_in_the_metadata_is_written_out_for_clients(tmp_path: Path, repository: Path) -> None:
    path = convolution(tmp_path / "net.onnx")
    proto = onnx.load(path)
    helper.set_model_props(
        proto, {"bnfold.normalization": json.dumps(Normalization(255.0, (0.1, 0.2), (1.0, 1.0)).to_json())}
    )
    onnx.save(proto, path)
    deploy(path, repository)
    (found,) = read_repository(repository)
    written = read_sidecar(found.model)
    assert written is not None
    assert written.mean == (0.1, 0.2)
    assert found.labels == ()


@pytest.mark.parametrize(
    "classes", ["{", '{"a": 1, "b": 2, "c": 3}', '"abc"', '["\\ud800", "b", "c"]', "[" * 100_000, "7"]
)
def test_damaged_class_names_in_the_metadata_are_refused(tmp_path: Path, repository: Path, classes: str) -> None:
    path = convolution(tmp_path / "net.onnx")
    proto = onnx.load(path)
    helper.set_model_props(proto, {"bnfold.classes": classes})
    onnx.save(proto, path)
    with pytest.raises(ModelError, match="metadata is damaged"):
        deploy(path, repository)
    assert not repository.exists()


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\u2028b", ""])
def test_a_class_name_is_one_line(tmp_path: Path, repository: Path, name: str) -> None:
    path = convolution(tmp_path / "net.onnx")
    proto = onnx.load(path)
    helper.set_model_props(proto, {"bnfold.classes": json.dumps([name, "b", "c"])})
    onnx.save(proto, path)
    with pytest.raises(DataError, match="empty or more than one line"):
        deploy(path, repository)


def test_a_damaged_sidecar_is_refused(model: Path, repository: Path) -> None:
    sidecar_file(model).write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        deploy(model, repository)
    assert not repository.exists()


def test_a_rollback_restores_the_settings_too(model: Path, repository: Path) -> None:
    deploy(model, repository, DeployOptions(instances=2))
    deploy(model, repository, DeployOptions(instances=5))
    assert config_of(repository).instance_group[0].count == 5
    roll_back(repository, "net")
    assert config_of(repository).instance_group[0].count == 2
    assert list(config_of(repository).version_policy.specific.versions) == [1]


def test_external_data_is_moved_beside_the_model_under_a_name_of_its_own(tmp_path: Path, repository: Path) -> None:
    path = convolution(tmp_path / "net.onnx")
    proto = onnx.load(path)
    (tmp_path / "sub").mkdir()
    onnx.save(proto, tmp_path / "far.onnx", save_as_external_data=True, location="sub/weights.bin", size_threshold=0)
    deploy(tmp_path / "far.onnx", repository, DeployOptions(original=path))
    (found,) = read_repository(repository)
    assert {"model.onnx", "model.onnx.data"} <= set(found.manifest.files)
    x = np.ones((2, 2, 8, 8), np.float32)
    got, wanted = (run_session(create_session(file), {"x": x})["y"] for file in (found.model, path))
    np.testing.assert_array_equal(got, wanted)
    whole = (tmp_path / "far.onnx").read_bytes() + (tmp_path / "sub/weights.bin").read_bytes()
    assert found.manifest.source == {"file": "far.onnx", "sha256": hashlib.sha256(whole).hexdigest()}


def test_the_original_is_what_the_model_is_proven_against(tmp_path: Path, repository: Path) -> None:
    from bnfold.optimizer import optimize

    original = batch_norm(tmp_path / "net.onnx")
    optimize(original, tmp_path / "folded.onnx")
    result = deploy(tmp_path / "folded.onnx", repository, DeployOptions(name="net", original=original))
    assert result.model is not None
    assert result.warnings == ()
    proof = result.model.manifest.verification["original"]
    assert (proof["verdict"], proof["models"]) == ("equivalent", ["net.onnx", "model.onnx"])
    report = json.loads((result.model.folder / "fold_report.json").read_text())
    assert (report["batch_norms_before"], report["batch_norms_after"]) == (1, 0)


def test_a_model_that_is_not_its_original_is_not_deployed(tmp_path: Path, model: Path, repository: Path) -> None:
    other = convolution(tmp_path / "other.onnx", seed=7)
    result = deploy(model, repository, DeployOptions(original=other))
    assert result.model is None
    assert result.proofs.failed
    assert not repository.exists()
    assert main(["deploy", str(model), str(repository), "--original", str(other)]) == 1
    assert not repository.exists()


def test_what_could_be_folded_is_told_and_not_done(tmp_path: Path, repository: Path) -> None:
    result = deploy(batch_norm(tmp_path / "net.onnx"), repository)
    assert [note for note in result.warnings if note.startswith("1 batch norm of it can be folded")]
    assert any(node.op_type == "BatchNormalization" for node in onnx.load(result.model.model).graph.node)  # type: ignore[union-attr]


def test_without_verification_the_manifest_says_so(model: Path, repository: Path) -> None:
    deploy(model, repository, DeployOptions(verify=False))
    (found,) = read_repository(repository)
    assert found.manifest.verification == {"verified": False, "itself": None, "original": None}
    assert found.golden is None


def strange(domain: str, op: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        node = helper.make_node(op, ["x"], ["y"], domain=domain)
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("x", "y")]
        graph = helper.make_graph([node], "g", ports[:1], ports[1:])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]), path
        )
        return path

    return make


def gelu(path: Path) -> Path:
    return save(path, "agraph (float[N,3] x) => (float[N,3] y) { y = com.microsoft.Gelu(x) }")


def layout_of_one_processor(path: Path) -> Path:
    """What ONNX Runtime writes at its highest level: the layout of this processor."""
    import onnxruntime as ort

    source = save(
        path.with_name("source.onnx"),
        "agraph (float[N,16,8,8] x) => (float[N,16,6,6] y) { y = Conv(x, w) }",
        w=np.ones((16, 16, 3, 3), np.float32),
    )
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(path)
    settings.log_severity_level = 4
    ort.InferenceSession(str(source), settings, providers=["CPUExecutionProvider"])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (strange("com.acme", "Foo"), r"com\.acme\.Foo \(1×\), which no server has"),
        (gelu, r"com\.microsoft\.Gelu \(1×\), which are no part of the ONNX standard.*--allow-contrib"),
        (layout_of_one_processor, r"com\.microsoft\.nchwc\.Conv \(1×\).*runs on no other"),
    ],
)
def test_operators_that_are_not_portable_are_named_and_refused(
    tmp_path: Path, repository: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        deploy(make(tmp_path / "net.onnx"), repository)
    assert not repository.exists()


def test_operators_of_onnx_runtime_can_be_allowed(tmp_path: Path, repository: Path) -> None:
    result = deploy(gelu(tmp_path / "net.onnx"), repository, DeployOptions(contributed=True, verify=False))
    assert result.model is not None
    assert any("com.microsoft.Gelu" in note for note in result.warnings)


def test_a_server_too_old_for_the_model_is_told(tmp_path: Path, repository: Path) -> None:
    text = "agraph (float[N,3] x) => (float[N,3] y) { y = Relu(x) }"
    new = save(tmp_path / "net.onnx", text, opset=22, ir_version=10)
    with pytest.raises(ModelError, match=r"1\.18 reads up to opset 21 and IR version 10, and the model has opset 22"):
        deploy(new, repository, DeployOptions(onnxruntime="1.18"))
    late = save(tmp_path / "late.onnx", text, opset=17, ir_version=11)
    with pytest.raises(ModelError, match="save it with an older IR version"):
        deploy(late, repository, DeployOptions(onnxruntime="1.18"))
    with pytest.raises(OptionError, match="is no version of ONNX Runtime"):
        deploy(new, repository, DeployOptions(onnxruntime="newest"))
    assert deploy(new, repository, DeployOptions(onnxruntime="1.21.0")).warnings == ()
    newer = save(tmp_path / "newer.onnx", text, opset=23, ir_version=11)
    (note,) = deploy(newer, repository, DeployOptions(onnxruntime="1.22")).warnings
    assert "does not know whether ONNX Runtime 1.22 reads" in note


def damaged(path: Path) -> Path:
    path.write_bytes(b"\x08\x01garbage")
    return path


def nothing(path: Path) -> Path:
    return path


def does_not_run(path: Path) -> Path:
    """It loads, and fails at any number of samples."""
    return save(path, "agraph (float[N,3] x) => (float[N,3] y) { y = Reshape(x, s) }", s=np.array([7, 11], np.int64))


def text_input(path: Path) -> Path:
    return save(path, "agraph (string[N] x) => (string[N] y) { y = Identity(x) }")


def bfloat_input(path: Path) -> Path:
    return save(path, "agraph (bfloat16[N,3] x) => (bfloat16[N,3] y) { y = Identity(x) }")


def a_sequence(path: Path) -> Path:
    return save(path, "agraph (float[N,3] x) => (seq(float[N,3]) y) { y = SequenceConstruct(x) }")


def a_control_character(path: Path) -> Path:
    save(path, "agraph (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    proto = onnx.load(path)
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "a\x1b[31m\nb"
    onnx.save(proto, path)
    return path


def nothing_in_it(path: Path) -> Path:
    return save(path, "agraph (float[N,3] x, float[0,3] e) => (float[N,3] y) { y = Concat<axis=0>(x, e) }")


def no_input(path: Path) -> Path:
    return save(path, "agraph () => (float[1] y) { y = Constant<value_floats=[1.0]>() }")


def random_numbers(path: Path) -> Path:
    return save(path, "agraph (float[N,3] x) => (float[N,3] y) { y = RandomNormalLike(x) }")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bfloat_input, r"x is a tensor\(bfloat16\), which bnfold does not deploy"),
        (a_sequence, r"y is a seq\(tensor\(float\)\), which bnfold does not deploy"),
        (a_control_character, r"the name 'a\\x1b\[31m\\nb' holds characters that cannot be printed"),
        (nothing_in_it, "e has a dimension of size 0"),
        (no_input, "takes no input"),
        (random_numbers, r"net.onnx draws random numbers \(RandomNormalLike\).*--no-verify"),
        (damaged, "not an ONNX model"),
        (nothing, "does not exist"),
        (does_not_run, "does not run, so it is not deployed"),
        (text_input, r"x is a tensor\(string\)"),
    ],
)
def test_models_that_cannot_be_served_are_refused(
    tmp_path: Path, repository: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(BnfoldError, match=message):
        deploy(make(tmp_path / "net.onnx"), repository)
    assert not repository.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DeployOptions(max_batch=4), "--max-batch needs a model with a batch of any size, and the first"),
        (DeployOptions(preferred=(4,)), "--preferred-batch needs a model"),
    ],
)
def test_batching_is_refused_where_the_batch_is_fixed(
    tmp_path: Path, repository: Path, options: DeployOptions, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        deploy(convolution(tmp_path / "net.onnx", batch="2"), repository, options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", "names 2 classes, and the output y FP32"),
        (b"a\n\nc\n", "empty or more than one line"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, model: Path, content: bytes, message: str) -> None:
    names = tmp_path / "names"
    names.write_bytes(content)
    with pytest.raises(DataError, match=message):
        deploy(model, tmp_path / "repository", DeployOptions(labels=names))


def test_another_interface_under_the_same_name_is_refused(tmp_path: Path, model: Path, repository: Path) -> None:
    deploy(model, repository)
    with pytest.raises(RepositoryError, match="deploy it under another name"):
        deploy(convolution(tmp_path / "more.onnx", classes=4), repository, DeployOptions(name="net"))
    assert [found.version for found in read_repository(repository)] == [1]


def test_a_repository_that_is_a_file_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        deploy(model, tmp_path / "file")


def test_a_full_disk_leaves_what_was_served(model: Path, repository: Path) -> None:
    """The limit on the size of a file stands in for the end of the disk."""
    deploy(model, repository)
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import bnfold.deployment.publishing as p; real = p._staging;\n"
        "def limited(home):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); return real(home)\n"
        "p._staging = limited\n"
        "from bnfold.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    command = [sys.executable, "-c", script, "deploy", str(model), str(repository), "--no-verify"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=repository.parent, check=False)
    assert finished.returncode == 3, finished.stderr
    assert "cannot be written: File too large" in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert [found.version for found in read_repository(repository)] == [1]
    assert warnings_of(repository) == ()


def test_a_killed_deployment_is_made_good_by_the_next(model: Path, repository: Path) -> None:
    deploy(model, repository)
    script = (
        "import os, signal, sys; from bnfold.deployment import publishing;\n"
        "publishing._seal = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from bnfold.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "deploy", str(model), str(repository), "--no-verify"]
    elsewhere = {**os.environ, "TMPDIR": str(repository.parent)}  # what SIGKILL leaves there, pytest removes
    killed = subprocess.run(command, cwd=repository.parent, env=elsewhere, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [found.version for found in read_repository(repository)] == [1]
    (note,) = warnings_of(repository)
    assert "the next one of this model removes it" in note
    deploy(model, repository)
    assert [found.version for found in read_repository(repository)] == [2]
    assert warnings_of(repository) == ()


def test_kserve_is_told_the_runtime_the_protocol_and_the_gpu(model: Path, repository: Path) -> None:
    options = DeployOptions(
        name="My_Net.v2", target="cuda", storage_uri="s3://models/repository", threads=2, instances=3
    )
    deploy(model, repository, options)
    document = yaml.safe_load((repository / "My_Net.v2" / "1" / "inferenceservice.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert document["metadata"]["name"] == "my-net-v2"
    predictor = document["spec"]["predictor"]["model"]
    assert predictor["runtime"] == "kserve-tritonserver"
    assert predictor["protocolVersion"] == "v2"
    assert predictor["storageUri"] == "s3://models/repository"
    assert predictor["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert predictor["resources"]["requests"]["cpu"] == predictor["resources"]["limits"]["cpu"] == "6"


def test_all_cores_are_not_throttled_by_a_limit(model: Path, repository: Path) -> None:
    deploy(model, repository, DeployOptions(verify=False))
    document = yaml.safe_load((repository / "net" / "1" / "inferenceservice.yaml").read_text())
    resources = document["spec"]["predictor"]["model"]["resources"]
    assert resources["requests"]["cpu"] == "1"
    assert list(resources["limits"]) == ["memory"]


@pytest.mark.usefixtures("measured")
def test_onnx_runtimes_own_format_lies_beside_the_portable_one_and_is_for_this_machine(
    model: Path, repository: Path
) -> None:
    result = deploy(model, repository, DeployOptions(ort_format="here"))
    assert [start.ratio is None for start in result.cold_starts.values()] == [True, False]
    assert list(result.cold_starts) == ["model.onnx", "not-portable/here.ort"]
    (found,) = read_repository(repository)
    assert config_of(repository).default_model_filename == "model.onnx", "Triton has another build"
    file = machine_model(found)
    x = np.random.default_rng(0).standard_normal((2, 2, 8, 8)).astype("f")
    got, wanted = (run_session(create_session(each), {"x": x})["y"] for each in (file, found.model))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_file_in_that_format_that_computes_something_else_is_not_deployed(
    tmp_path: Path, model: Path, repository: Path
) -> None:
    deploy(model, repository)
    (found,) = read_repository(repository)
    wrong = write_machine_file(convolution(tmp_path / "other.onnx", seed=5), tmp_path, this_machine("here"))
    with pytest.raises(ModelError, match="computes something else: output y is off by"):
        check_machine_file(wrong, found.golden)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("cpu", "made for here, where the processor is other"),
        ("instructions", "vector instructions is other"),
        ("onnxruntime", "ONNX Runtime is other"),
        ("system", "the system is other"),
    ],
)
def test_onnx_runtimes_own_format_is_refused_on_another_machine(
    model: Path, repository: Path, key: str, message: str
) -> None:
    deploy(model, repository, DeployOptions(ort_format="here", verify=False))
    manifest = repository / "net" / "1" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["machine_file"]["machine"][key] = "other"
    manifest.write_text(json.dumps(document))
    (found,) = read_repository(repository)
    with pytest.raises(SetupError, match=message):
        machine_model(found)
    assert found.model.is_file()


def test_without_that_format_there_is_none_to_read(model: Path, repository: Path) -> None:
    deploy(model, repository, DeployOptions(verify=False))
    with pytest.raises(SetupError, match="--ort-format"):
        machine_model(read_repository(repository)[0])


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_command_deploys_lists_and_rolls_back(
    model: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        code, document = run_json(capsys, "deploy", str(model), str(repository), "--no-verify")
        assert code == 0
    assert document["deployed"]["manifest"]["version"] == 2
    code, document = run_json(capsys, "deploy", "--rollback", "net", str(repository))
    assert (code, document["before"], document["deployed"]["manifest"]["version"]) == (0, 2, 1)
    code, document = run_json(capsys, "deploy", "--list", str(repository))
    assert code == 0
    assert [(each["manifest"]["version"], each["served"]) for each in document["models"]] == [(1, True), (2, False)]
    shutil.copyfile(os.devnull, repository / "net" / "2" / "model.onnx")
    code, document = run_json(capsys, "deploy", "--list", str(repository))
    assert code == 1
    assert "is not the file that was deployed" in document["warnings"][0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["deploy", "one"],
        ["deploy", "one", "two", "three"],
        ["deploy", "--list", "one", "two"],
        ["deploy", "--rollback", "net", "one", "two"],
        ["deploy", "--list", "--rollback", "net", "one"],
        ["deploy", "one", ""],
        ["deploy", "one", "two", "--to", "3"],
        ["deploy", "--list", "one", "--target", "cuda"],
        ["deploy", "--rollback", "net", "one", "--no-verify"],
        ["deploy", "one", "two", "--preferred-batch", "4,x"],
        ["deploy", "one", "two", "--name", "../x"],
        ["deploy", "one", "two", "--precision", "FP16"],
        ["deploy", "one", "two", "--no-verify", "--original", "three"],
        ["deploy", "one", "two", "--ort-format", "a/b"],
        ["deploy", "one", "two", "--max-batch", "2147483648"],
        ["deploy", "one", "two", "--instances", "2147483648"],
        ["deploy", "one", "two", "--threads", "2147483648"],
        ["deploy", "one", "two", "--queue-delay", "18446744073709551616"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert list(tmp_path.iterdir()) == []
