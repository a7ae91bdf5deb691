"""Loading trusts nothing; saving leaves a whole file or none."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folding import constants, model_of, norm

from bnfold import model_file
from bnfold.errors import ModelError, OutputError
from bnfold.model_file import from_proto, load_model, save_model, serialized

TEXT = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, w) y = BatchNormalization(c, scale, bias, mean, var) }"


def model() -> ir.Model:
    arrays = constants(w=(4, 3, 3, 3)) | norm(4)
    return model_of(TEXT, {name: array.astype(np.float32) for name, array in arrays.items()})


def external(folder: Path, location: str = "weights.bin") -> Path:
    """A model whose weights lie in another file, as onnx writes it."""
    path = folder / "model.onnx"
    onnx.save(ir.to_proto(model()), path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def test_a_saved_model_is_the_model_that_was_saved(tmp_path: Path) -> None:
    for choice in ("auto", "always", "never"):
        path = save_model(model(), tmp_path / f"{choice}.onnx", external_data=choice)  # type: ignore[arg-type]
        loaded = load_model(path)
        assert serialized(loaded) == serialized(model())
        assert path.with_name(f"{path.name}.data").exists() == (choice == "always")


def test_external_data_can_be_moved_in_and_out_and_over_itself(tmp_path: Path) -> None:
    source = external(tmp_path)
    inside = save_model(load_model(source), tmp_path / "inside.onnx", external_data="never")
    assert serialized(load_model(inside)) == serialized(load_model(source))
    wanted = serialized(load_model(source))
    save_model(load_model(source), source, external_data="always")
    assert serialized(load_model(source)) == wanted


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello, this is text\n", "is not an ONNX model"),
        (b"", "is not an ONNX model"),
        (b"PK\x03\x04" + b"\x00" * 100, "is not an ONNX model"),
        ("truncated", "is not an ONNX model"),
    ],
    ids=["text", "empty", "zip", "truncated"],
)
def test_what_is_no_model_is_refused_in_one_sentence(tmp_path: Path, content: bytes | str, words: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(serialized(model())[:-200] if isinstance(content, str) else content)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(tmp_path / "nope.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda m: m.graph.node[0].input.__setitem__(0, "nobody"), "reads 'nobody', which is neither an input nor"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "y"), "a node of type .* reads 'y'.*; put the nodes in order"),
        (lambda m: m.ClearField("opset_import"), r"which version of the operators it uses \(opset_import\); export it"),
        (lambda m: m.graph.node.append(m.graph.node[0]), "not a valid ONNX model"),
        (lambda m: setattr(m.opset_import[0], "version", 999), "uses version 999 of the ONNX operators"),
        (lambda m: m.graph.node.add(op_type="Nonsense", output=["z"]), "not a valid ONNX model"),
        (lambda m: m.ClearField("graph"), "holds no graph"),
        (lambda m: m.graph.initializer[0].ClearField("raw_data"), "not a valid ONNX model"),
        (lambda m: grow(m, "w", 4), r"the tensor 'w' holds 436 bytes, and its shape and type need 432"),
        (lambda m: grow(m, "w", -4), r"the tensor 'w' holds 428 bytes"),
        (lambda m: grow(m, "large", 4), r"the tensor 'large' holds 4004 bytes, and its shape and type need 4000"),
        (lambda m: grow(m, "large", -1), r"the tensor 'large' holds 3999 bytes"),
        (lambda m: m.graph.initializer.add(name="t", data_type=1, dims=[2], float_data=[1, 2, 3]), "holds 3 numbers"),
        (lambda m: m.graph.initializer.add(name="t", data_type=1, dims=[-1, -1], float_data=[1]), "not a valid"),
        (lambda m: m.graph.initializer.add(name="t", data_type=99, dims=[1], raw_data=b"1234"), "not a valid"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[-1]), "not a valid ONNX model"),
        (lambda m: m.graph.initializer[-1].ClearField("name"), "not a valid ONNX model"),
        (lambda m: m.graph.node[0].attribute.add(name="pads", type=1, f=0.5), "not a valid ONNX model"),
        (lambda m: setattr(m.graph.initializer[-1], "data_type", 99), "the tensor 'large' is of no type that there is"),
        (lambda m: m.graph.node.add(op_type="Constant", input=[""], output=["z"]), "not a valid ONNX model"),
        (lambda m: m.graph.node.add(op_type="Max", input=["x", "", "x"], output=["z"]), "the Max '' skips an operand"),
        (
            lambda m: setattr(size_of(m.graph.input[0], 0), "dim_value", 1 << 62),
            "declares that 'x' is 4611686018427387904",
        ),
    ],
    ids=[
        "dangling input",
        "cycle",
        "no version",
        "name twice",
        "unknown opset",
        "unknown op",
        "no graph",
        "weight without data",
        "small weight too long",
        "small weight too short",
        "large weight too long",
        "large weight too short",
        "numbers too many",
        "negative shape",
        "unknown type",
        "large weight twice",
        "weight without name",
        "attribute of another type",
        "large weight of unknown type",
        "operand of an op that has none",
        "skipped operand",
        "absurd size",
    ],
)
def test_malformed_graph_is_refused(tmp_path: Path, damage: object, words: str) -> None:
    proto = ir.to_proto(model())
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1000, np.float32), "large"))
    damage(proto)  # type: ignore[operator]
    path = tmp_path / "bad.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=words) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def size_of(value: onnx.ValueInfoProto, axis: int) -> onnx.TensorShapeProto.Dimension:
    return value.type.tensor_type.shape.dim[axis]


def grow(proto: onnx.ModelProto, name: str, count: int) -> None:
    """Make the data of a weight longer than its shape says, or shorter."""
    (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == name)
    tensor.raw_data = (tensor.raw_data + bytes(max(count, 0)))[: len(tensor.raw_data) + count]


def test_file_that_is_too_large_to_be_a_model_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.onnx").open("wb") as stream:
        stream.truncate(1 << 31)
    with pytest.raises(ModelError, match="smaller than 2 GiB"):
        load_model(tmp_path / "huge.onnx")


def test_model_is_read_from_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[serialized(model())])
    writer.start()
    assert serialized(load_model(pipe)) == serialized(model())
    writer.join()


def test_model_in_memory_does_not_see_later_changes_of_its_file(tmp_path: Path) -> None:
    path = save_model(model(), tmp_path / "model.onnx")
    loaded = load_model(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert serialized(loaded) == serialized(model())


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin .* is missing"):
        load_model(path)


def test_truncated_external_data_is_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(ModelError, match="too short"):
        load_model(path)


def test_external_data_longer_than_its_tensor_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    (entry,) = (entry for entry in proto.graph.initializer[0].external_data if entry.key == "length")
    entry.value = str(int(entry.value) + 4)
    path.write_bytes(proto.SerializeToString())
    with (tmp_path / "weights.bin").open("ab") as stream:
        stream.write(bytes(8))
    with pytest.raises(ModelError, match="436 bytes long, and its shape and type need 432"):
        load_model(path)


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "sub/../../secret.bin", "{outside}/secret.bin", "link.bin", "a\0b", "x" * 5000],
    ids=["above", "beside", "absolute", "link", "zero byte", "too long"],
)
def test_external_data_never_leaves_the_folder_of_the_model(tmp_path: Path, location: str) -> None:
    folder, secret = tmp_path / "model", tmp_path / "secret.bin"
    folder.mkdir()
    path = external(folder)
    secret.write_bytes((folder / "weights.bin").read_bytes())
    (folder / "sub").mkdir()
    (folder / "link.bin").symlink_to(secret)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location.format(outside=tmp_path)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"outside the model's folder|has no path of a file|is missing"):
        load_model(path)


@pytest.mark.parametrize("where", ["node", "producer", "domain"])
def test_name_that_is_no_text_is_refused_where_it_would_be_written(where: str) -> None:
    """Protobuf and ONNX's checker let it pass."""
    proto = ir.to_proto(model())
    match where:
        case "node":
            proto.graph.node[0].doc_string = "a name"
        case "producer":
            proto.producer_version = "a name"
        case "domain":
            proto.opset_import.add(domain="a name", version=1)
    damaged = onnx.ModelProto.FromString(proto.SerializeToString().replace(b"a name", b"a n\xffme"))
    with pytest.raises(ModelError, match=r"is damaged, and cannot be written again: 'utf-8'"):
        serialized(from_proto(damaged))


def test_output_that_is_a_folder_or_has_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        save_model(model(), tmp_path)
    with pytest.raises(OutputError, match="does not exist"):
        save_model(model(), tmp_path / "no" / "model.onnx")


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old one")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_file, "join", full)
    with pytest.raises(OutputError, match="No space left on device"):
        save_model(model(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"the old one"


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_a_device_without_an_end_is_not_read_until_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "_MESSAGE_LIMIT", 1 << 20)
    with pytest.raises(ModelError, match="/dev/zero is no ONNX file"):
        load_model("/dev/zero")
