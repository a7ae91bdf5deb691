"""Golden files: what the reference computes, on a machine that does not have it."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from verify_networks import DAMAGES, random_network

from bnfold.errors import DataError, InputError, ModelError, OptionError, OutputError
from bnfold.verification import VerifyOptions, record_golden, verify, verify_golden
from bnfold.verification.golden import load_golden


def _models(seed=3, dtype="float32"):
    network = random_network(seed, dtype)
    damage = DAMAGES["bias dropped"](network, np.random.default_rng(0))
    return [ir.from_proto(m) for m in (network.model(False), network.model(True), network.model(True, damage))]


def _text(body, declared="float[N,2] x", opset=17, result="float[N,2] y"):
    return ir.from_proto(
        onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : {opset}]> g ({declared}) => ({result}) <float[2,2] w = {{1, 2, 3, 4}}> {{ {body} }}'
        )
    )


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "golden.npz"
    record_golden(_models()[0], path)
    return path


@pytest.mark.parametrize(("dtype", "runtime"), [("float32", True), ("float16", True), ("bfloat16", False)])
def test_a_golden_file_judges_as_the_reference_itself_does(tmp_path, dtype, runtime):
    original, folded, damaged = _models(3, dtype)
    options = VerifyOptions(runtime=runtime)
    record_golden(original, tmp_path / "g.npz", options)
    for candidate in (folded, damaged):
        direct = verify(original, candidate, options)
        later = verify_golden(tmp_path / "g.npz", candidate, options)
        assert later.sentence == direct.sentence
        assert [o.judgement for o in later.outputs] == [o.judgement for o in direct.outputs]
        assert later.models[0].startswith(str(tmp_path / "g.npz"))


def test_a_golden_file_is_written_beside_a_verdict(tmp_path):
    original, folded, damaged = _models()
    verify(original, folded, VerifyOptions(save_golden=tmp_path / "g.npz"))
    assert verify_golden(tmp_path / "g.npz", damaged).verdict == "mismatch"


@pytest.mark.parametrize("name", ["original.onnx", "folded.onnx", "x.npz"])
def test_a_golden_file_is_never_written_over_what_is_read(tmp_path, name):
    for file, model in zip(("original.onnx", "folded.onnx"), _models()[:2], strict=True):
        ir.save(model, tmp_path / file)
    np.savez(tmp_path / "x.npz", x=np.zeros(2, np.float32))
    before = (tmp_path / name).read_bytes()
    options = VerifyOptions(save_golden=tmp_path / name, inputs=tmp_path / "x.npz")
    with pytest.raises(OutputError, match="is an input itself"):
        verify(tmp_path / "original.onnx", tmp_path / "folded.onnx", options)
    if name != "folded.onnx":
        with pytest.raises(OutputError, match="is an input itself"):
            record_golden(tmp_path / "original.onnx", tmp_path / name, options)
    assert (tmp_path / name).read_bytes() == before


def test_a_golden_file_holds_plain_arrays_the_bounds_and_the_versions(golden):
    with np.load(golden, allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        assert arrays["feed/0/output/0"].dtype == np.float64
    assert about["format"] == "bnfold golden"
    assert {"bnfold", "onnx", "numpy"} <= set(about["made_with"])
    assert len(about["model"]["graph_sha256"]) == 64
    assert all(bound > 0 for feed in about["feeds"] for bound in feed["outputs"][0]["bounds"].values())


def test_several_inputs_of_several_types_and_outputs_come_back_bit_for_bit(tmp_path):
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (bfloat16[N,2] a, int64[N] n, bool[2] b) '
        "=> (float[N,2] y, int64[N] m, bool[2] c) { f = Cast <to = 1> (a)  y = Neg(f)  m = Identity(n)  c = Not(b) }"
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    kept = record_golden(model, tmp_path / "g.npz", VerifyOptions(runtime=False))
    back = load_golden(tmp_path / "g.npz")
    one, other = kept.expectation.measurement, back.expectation.measurement
    assert back.expectation.interface == kept.expectation.interface
    assert [feed.name for feed in one.feeds] == [feed.name for feed in other.feeds]
    for ours, theirs in zip(one.feeds, other.feeds, strict=True):
        for name, value in ours.values.items():
            assert theirs.values[name].dtype == value.dtype
            np.testing.assert_array_equal(theirs.values[name], value)
    for index, outputs in enumerate(one.expected):
        for name, value in outputs.items():
            np.testing.assert_array_equal(other.expected[index][name], value)


def test_an_infinite_output_survives_the_file(tmp_path):
    huge = _text("k = Constant <value = float {3e38}> ()  z = Mul(x, k)  y = Mul(z, k)")
    same = _text("k = Constant <value = float {3e38}> ()  n = Neg(x)  z = Mul(n, k)  h = Mul(z, k)  y = Neg(h)")
    record_golden(huge, tmp_path / "g.npz")
    assert verify_golden(tmp_path / "g.npz", same).verdict == verify(huge, same).verdict


def test_the_very_model_of_the_golden_file_is_told_from_a_transformed_one(golden):
    original = _models()[0]
    result = verify_golden(golden, original)
    assert result.ok
    assert any("the very model" in note for note in result.notes)
    assert verify_golden(golden, original, VerifyOptions(runtime=False)).verdict == "nothing proven"


def test_a_reference_that_float64_cannot_run_needs_the_runtime_later_too(tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[N,2] x) => (float[N,2] y) '
    one, other = (
        ir.from_proto(onnx.parser.parse_model(text + body))
        for body in ("{ y = com.microsoft.FastGelu(x) }", "{ n = Neg(x)  h = Neg(n)  y = com.microsoft.FastGelu(h) }")
    )
    record_golden(one, tmp_path / "g.npz")
    assert verify_golden(tmp_path / "g.npz", other).reference == "onnxruntime"
    with pytest.raises(InputError, match="allow the runtime"):
        verify_golden(tmp_path / "g.npz", other, VerifyOptions(runtime=False))


@pytest.mark.parametrize("options", [{"localize": True}, {"save_golden": "again.npz"}])
def test_what_needs_the_reference_itself_is_refused(golden, options):
    with pytest.raises(OptionError, match="does not hold the reference"):
        verify_golden(golden, _models()[1], VerifyOptions(**options))


def test_another_interface_is_an_error(golden):
    with pytest.raises(ModelError, match="different inputs"):
        verify_golden(golden, _text("y = MatMul(z, w)", "float[N,2] z"))


def test_a_path_that_cannot_be_written_is_told_before_the_work(tmp_path):
    calls = []
    with pytest.raises(OutputError, match="does not exist"):
        record_golden(_models()[0], tmp_path / "none" / "g.npz", progress=lambda *call: calls.append(call))
    assert calls == []


def _damaged_files(golden, folder):
    """Files that are no golden file, each with what is said of it."""
    whole = golden.read_bytes()
    yield b"", "no golden file, or is damaged"
    yield b"not a file of numpy's", "no golden file, or is damaged"
    yield whole[: len(whole) // 2], "no golden file, or is damaged"
    middle = len(whole) // 3
    yield whole[:middle] + bytes(99) + whole[middle + 99 :], "damaged|no golden file"
    for arrays, message in (
        ({"x": np.zeros(3)}, "no golden file"),
        ({"about": np.frombuffer(b"{}", np.uint8)}, "no golden file"),
        ({"about": np.frombuffer(b"\xff\xfe", np.uint8)}, "no golden file"),
        ({"about": np.frombuffer(b'{"format": "bnfold golden", "version": 9}', np.uint8)}, "version 9"),
        ({"about": np.frombuffer(b'{"format": "bnfold golden", "version": 1}', np.uint8)}, "lacks some"),
        ({"about": np.array([{"a": 1}], dtype=object)}, "no golden file, or is damaged"),
    ):
        np.savez(folder / "made.npz", **arrays)
        yield (folder / "made.npz").read_bytes(), message


def test_damaged_and_foreign_files_are_one_sentence(golden, tmp_path):
    candidate = _models()[1]
    for content, message in _damaged_files(golden, tmp_path):
        (tmp_path / "g.npz").write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            verify_golden(tmp_path / "g.npz", candidate)
        assert "\n" not in str(caught.value)


def test_a_golden_file_that_lacks_an_array_is_damaged(golden, tmp_path):
    with np.load(golden) as content:
        arrays = dict(content)
    for name in ("feed/0/input/0", "feed/1/output/0"):
        np.savez(tmp_path / "g.npz", **{key: value for key, value in arrays.items() if key != name})
        with pytest.raises(DataError, match="lacks some"):
            load_golden(tmp_path / "g.npz")


def test_a_missing_file_and_a_folder_are_no_golden_file(tmp_path):
    for path, message in ((tmp_path / "none.npz", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(DataError, match=message):
            load_golden(path)


def test_a_golden_file_is_an_ordinary_archive(golden):
    assert all(name.endswith(".npy") for name in zipfile.ZipFile(golden).namelist())
