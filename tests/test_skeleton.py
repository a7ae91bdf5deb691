"""A model and its skeleton with its weights are one and the same, whatever the bytes look like."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folding import constants, model_of, norm
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bnfold.skeleton import complete, join, size_of, skeleton_of, split

TEXT = (
    "g (float[N,3,8,8] x) => (float[N,40,6,6] y) { c = Conv(x, w) y = BatchNormalization(c, scale, bias, mean, var) }"
)


def small_and_large(ir_version: int = 8) -> onnx.ModelProto:
    """A model with one weight that is taken out (4 KB), and four that are not."""
    arrays = constants(w=(40, 3, 3, 3)) | norm(40)
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return ir.to_proto(model_of(TEXT, arrays, ir_version=ir_version))


def holding(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    """A model that holds some tensors, which nothing uses."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    node = helper.make_node("Identity", ["x"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    return helper.make_model(helper.make_graph([node], "g", [value], [output], tensors))


def tensor(array: np.ndarray, name: str = "w", **fields: str) -> onnx.TensorProto:
    proto = numpy_helper.from_array(array, name)
    for field, value in fields.items():
        setattr(proto, field, value)
    return proto


def described() -> onnx.TensorProto:
    proto = tensor(np.ones((30, 30)), doc_string="a weight")
    proto.metadata_props.add(key="layer", value="1")
    return proto


def in_a_body() -> onnx.ModelProto:
    """An If whose branches hold weights."""
    branches = {}
    for index, name in enumerate(("then_branch", "else_branch")):
        output = helper.make_tensor_value_info(name, TensorProto.DOUBLE, [300])
        node = helper.make_node("Identity", [f"w{index}"], [name])
        branches[name] = helper.make_graph([node], name, [], [output], [tensor(np.ones(300), f"w{index}")])
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    output = helper.make_tensor_value_info("y", TensorProto.DOUBLE, [300])
    graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], **branches)], "g", [condition], [output])
    return helper.make_model(graph)


#: Models, and how many weights each loses to its skeleton.
MODELS: Mapping[str, tuple[onnx.ModelProto, int]] = {
    "one large weight": (small_and_large(), 1),
    "IR version 3": (small_and_large(3), 1),
    "no weights": (holding(), 0),
    "scalar and empty": (holding(tensor(np.float32(1)), tensor(np.empty((0, 500)), "v")), 0),
    "doc string and metadata": (holding(described()), 1),
    "float16": (holding(tensor(np.ones((40, 40), np.float16))), 1),
    "bfloat16": (holding(tensor(np.ones((40, 40), ml_dtypes.bfloat16))), 1),
    "bool": (holding(tensor(np.ones(2000, bool))), 1),
    "int64": (holding(tensor(np.arange(2000))), 1),
    "complex": (holding(tensor(np.ones(2000, np.complex64))), 1),
    "int4 stays": (holding(tensor(np.ones(4000, ml_dtypes.int4))), 0),
    "numbers that are no bytes stay": (holding(helper.make_tensor("w", TensorProto.FLOAT, [500], [1.5] * 500)), 0),
    "strings stay": (holding(helper.make_tensor("w", TensorProto.STRING, [500], [b"text"] * 500)), 0),
    "too many bytes stay": (
        holding(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[500], raw_data=bytes(2004))),
        0,
    ),
    "bodies keep theirs": (in_a_body(), 0),
}


def whole(content: bytes) -> onnx.ModelProto:
    """What split and join make of a serialized model."""
    skeleton, weights = split(memoryview(content))
    if not weights:
        return skeleton
    pieces = join(skeleton, weights)
    joined = b"".join(piece if isinstance(piece, bytes) else piece.tobytes() for piece in pieces)
    assert len(joined) == size_of(pieces)
    return onnx.ModelProto.FromString(joined)


@pytest.mark.parametrize("name", MODELS)
def test_split_and_join_are_inverse_to_the_byte(name: str) -> None:
    proto, count = MODELS[name]
    content = proto.SerializeToString()
    skeleton, weights = split(memoryview(content))
    assert len(weights) == count
    assert whole(content).SerializeToString() == content
    pieces = join(skeleton, weights)
    assert b"".join(piece if isinstance(piece, bytes) else piece.tobytes() for piece in pieces) == content


@pytest.mark.parametrize("name", MODELS)
def test_model_from_a_skeleton_and_its_weights_is_the_model(name: str) -> None:
    proto, _ = MODELS[name]
    skeleton, weights = split(memoryview(proto.SerializeToString()))
    model = ir.from_proto(skeleton)
    complete(model, weights)
    wanted = ir.from_proto(proto)
    for key, value in wanted.graph.initializers.items():
        got = model.graph.initializers[key]
        assert got.shape == value.shape
        assert got.type == value.type
        if name != "too many bytes stay":
            np.testing.assert_array_equal(got.const_value.numpy(), value.const_value.numpy())  # type: ignore[union-attr]


def test_weights_are_the_bytes_that_were_read() -> None:
    content = np.frombuffer(bytearray(small_and_large().SerializeToString()), np.uint8)
    _, weights = split(memoryview(content))
    assert np.shares_memory(weights["w"].numpy(), content)


def test_skeleton_is_valid_and_small() -> None:
    skeleton, _ = split(memoryview(small_and_large().SerializeToString()))
    onnx.checker.check_model(skeleton)
    assert skeleton.ByteSize() < 2000 < small_and_large().ByteSize()


def with_twice_the_graph(proto: onnx.ModelProto) -> bytes:
    """A field that comes twice is merged: here the weights come in a second graph."""
    second = onnx.ModelProto()
    second.graph.initializer.extend(proto.graph.initializer)
    del proto.graph.initializer[:]
    return proto.SerializeToString() + second.SerializeToString()


def with_raw_data_twice(proto: onnx.ModelProto) -> bytes:
    """The last one counts."""
    content = proto.graph.initializer[0].SerializeToString()
    proto.graph.initializer[0].raw_data = bytes(len(proto.graph.initializer[0].raw_data))
    twice = content + proto.graph.initializer[0].SerializeToString()
    field = bytes([5 << 3 | 2, len(twice) & 0x7F | 0x80, len(twice) >> 7]) + twice
    del proto.graph.initializer[0]
    graph = proto.graph.SerializeToString() + field
    proto.ClearField("graph")
    return proto.SerializeToString() + bytes([7 << 3 | 2, len(graph) & 0x7F | 0x80, len(graph) >> 7]) + graph


UNUSUAL = {
    "graph first": lambda m: onnx.ModelProto(graph=m.graph).SerializeToString() + without_graph(m).SerializeToString(),
    "graph twice": with_twice_the_graph,
    "raw data twice": with_raw_data_twice,
    "unknown field": lambda m: m.SerializeToString() + bytes([0xFA, 0x3F, 1, 65]),
    "unknown group": lambda m: m.SerializeToString() + bytes([0xFB, 0x3F, 0xFC, 0x3F]),
}


def without_graph(proto: onnx.ModelProto) -> onnx.ModelProto:
    rest = onnx.ModelProto()
    rest.CopyFrom(proto)
    rest.ClearField("graph")
    return rest


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_layout_is_read_as_protobuf_reads_it(name: str) -> None:
    content = UNUSUAL[name](small_and_large())
    assert whole(content) == onnx.ModelProto.FromString(content)


@given(st.data())
def test_damaged_bytes_are_read_as_protobuf_reads_them_or_refused(data: st.DataObject) -> None:
    content = bytearray(small_and_large().SerializeToString())
    interesting = [*range(300), *range(len(content) - 300, len(content))]
    for position in data.draw(st.lists(st.sampled_from(interesting), min_size=1, max_size=3)):
        content[position] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) - 50, len(content)))]
    try:
        wanted = onnx.ModelProto.FromString(bytes(content))
    except DecodeError:
        with pytest.raises(DecodeError):
            split(memoryview(content))
        return
    assert whole(bytes(content)) == wanted


def test_skeleton_of_a_model_leaves_it_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.from_proto(small_and_large())
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    skeleton, weights = skeleton_of(model)
    assert weights == {"w": tensors["w"]}
    assert list(next(t for t in skeleton.graph.initializer if t.name == "w").dims) == [0]

    def fails(_: ir.Model) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(ir, "to_proto", fails)
    with pytest.raises(OSError, match="no memory"):
        skeleton_of(model)
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == tensors
