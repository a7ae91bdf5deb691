"""The inputs of a verification: drawn ones are fit to the model, and the user's are checked before use."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bnfold.errors import DataError, InputError, ModelError
from bnfold.verification.inputs import InputSpec, drawn_feeds, input_specs, user_feeds

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
IMAGE = InputSpec("x", FLOAT, ("N", 3, 8, 8))


def _kinds(feeds):
    return [feed.kind for feed in feeds]


def test_the_same_seed_draws_the_same_inputs():
    one, same, other = (drawn_feeds([IMAGE], samples=1, seed=seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a.values["x"], b.values["x"]) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0].values["x"], other[0].values["x"])


def test_a_dynamic_batch_is_drawn_at_several_sizes():
    feeds = drawn_feeds([IMAGE], samples=2, seed=0, batches=(1, 3))
    assert [f.values["x"].shape[0] for f in feeds] == [1, 1, 3, 3, 1, 1, 1]
    assert _kinds(feeds) == ["random"] * 4 + ["zeros", "constant", "large"]


def test_a_fixed_batch_is_kept():
    feeds = drawn_feeds([InputSpec("x", FLOAT, (2, 5))], samples=1, seed=0)
    assert {f.values["x"].shape for f in feeds} == {(2, 5)}


@pytest.mark.parametrize(("dtype", "peak"), [(FLOAT, 1000), (ir.DataType.FLOAT16, 16), (ir.DataType.BFLOAT16, 1000)])
def test_large_inputs_are_large_and_finite(dtype, peak):
    feeds = drawn_feeds([InputSpec("x", dtype, (64,))], samples=1, seed=0)
    large = feeds[-1].values["x"].astype(np.float64)
    assert feeds[-1].values["x"].dtype == dtype.numpy()
    assert np.isfinite(large).all()
    assert np.abs(large).max() > peak


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(("N", 3, "h", "w"), (1, 3, 64, 64)), (("N", None, None, None), (1, 3, 64, 64)),
     (("N", "t", 40), (1, 16, 40)), ((None,), (1,)), ((), ())],
)  # fmt: skip
def test_dynamic_dimensions_get_sensible_sizes(shape, expected):
    feeds = drawn_feeds([InputSpec("x", FLOAT, shape)], samples=1, seed=0)
    assert feeds[0].values["x"].shape == expected


def test_shapes_given_by_the_user_win():
    feeds = drawn_feeds([IMAGE], samples=1, seed=0, shapes={"x": (5, 3, 8, 8)})
    assert {f.values["x"].shape for f in feeds} == {(5, 3, 8, 8)}


@pytest.mark.parametrize(
    ("spec", "shapes", "message"),
    [
        (IMAGE, {"x": (1, 4, 8, 8)}, r"does not fit input 'x'"),
        (IMAGE, {"x": (1, 3, 8)}, r"does not fit input 'x'"),
        (IMAGE, {"z": (1,)}, r"no input 'z'; the model has x"),
        (InputSpec("x", FLOAT, None), {}, r"--input-shape x="),
    ],
)
def test_a_shape_that_cannot_be_is_refused(spec, shapes, message):
    with pytest.raises(InputError, match=message):
        drawn_feeds([spec], samples=1, seed=0, shapes=shapes)


def _model(inputs, nodes=(), initializers=()):
    node = helper.make_node("Identity", ["x"], ["y"])
    output = helper.make_tensor_value_info("y", inputs[0].type.tensor_type.elem_type, None)
    graph = helper.make_graph([*nodes, node], "g", list(inputs), [output], list(initializers))
    return ir.from_proto(helper.make_model(graph))


def test_inputs_with_a_default_are_not_fed():
    weight = onnx.numpy_helper.from_array(np.ones(2, dtype=np.float32), "w")
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "w")]
    assert [s.name for s in input_specs(_model(inputs, initializers=[weight]))] == ["x"]


def test_indices_stay_inside_the_table_that_they_look_up():
    table = onnx.numpy_helper.from_array(np.ones((7, 2), dtype=np.float32), "table")
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT64, ["N", 50])]
    model = _model(inputs, [helper.make_node("Gather", ["table", "x"], ["rows"])], [table])
    feeds = drawn_feeds(input_specs(model), samples=2, seed=0)
    drawn = np.concatenate([f.values["x"].ravel() for f in feeds])
    assert drawn.dtype == np.int64
    assert drawn.min() == 0
    assert drawn.max() == 6


def test_booleans_and_bytes_are_drawn_from_their_whole_range():
    specs = [InputSpec("b", ir.DataType.BOOL, (99,)), InputSpec("u", ir.DataType.UINT8, (9999,), 256)]
    values = drawn_feeds(specs, samples=1, seed=0)[0].values
    assert set(values["b"].tolist()) == {True, False}
    assert (values["u"].min(), values["u"].max()) == (0, 255)


def test_strings_cannot_be_drawn():
    with pytest.raises(ModelError, match="STRING"):
        input_specs(_model([helper.make_tensor_value_info("x", TensorProto.STRING, [1])]))


PAIR = [InputSpec("a", FLOAT, ("N", 2)), InputSpec("n", INT64, (3,))]
GOOD = {"a": np.zeros((4, 2), np.float32), "n": np.zeros(3, np.int64)}


def test_an_archive_is_read_by_input_name(tmp_path):
    np.savez(tmp_path / "in.npz", **GOOD)
    (feed,) = user_feeds(tmp_path / "in.npz", PAIR)
    assert feed.kind == "user"
    assert feed.values["a"].shape == (4, 2)


def test_one_array_does_for_one_input(tmp_path):
    np.save(tmp_path / "in.npy", GOOD["a"])
    np.savez(tmp_path / "in.npz", GOOD["a"])
    for name in ("in.npy", "in.npz"):
        (feed,) = user_feeds(tmp_path / name, PAIR[:1])
        assert feed.values["a"].shape == (4, 2)


def test_a_folder_gives_one_feed_for_each_file_and_test_set(tmp_path):
    np.savez(tmp_path / "b.npz", **GOOD)
    np.savez(tmp_path / "a.npz", **GOOD)
    (tmp_path / "test_data_set_0").mkdir()
    for index, name in enumerate(("a", "n")):
        tensor = onnx.numpy_helper.from_array(GOOD[name], name)
        (tmp_path / "test_data_set_0" / f"input_{index}.pb").write_bytes(tensor.SerializeToString())
    feeds = user_feeds(tmp_path, PAIR)
    assert [f.name for f in feeds] == ["a.npz", "b.npz", "test_data_set_0"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": GOOD["a"]}, "holds a; the model has a, n"),
        (GOOD | {"z": GOOD["n"]}, "holds a, n, z"),
        (GOOD | {"a": np.zeros((4, 2))}, "float64.*wants float32"),
        (GOOD | {"a": np.zeros((4, 3), np.float32)}, r"shape \(4, 3\).*wants \(N, 2\)"),
        (GOOD | {"a": np.zeros(2, np.float32)}, r"shape \(2\)"),
        (GOOD | {"a": np.zeros((0, 2), np.float32)}, "empty"),
        (GOOD | {"a": np.array([[None]])}, "Python objects"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_one_sentence(tmp_path, arrays, message):
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        user_feeds(tmp_path / "in.npz", PAIR)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.npz", b"PK\x03\x04 broken", "damaged"),
        ("in.npz", b"", "damaged"),
        ("in.npy", b"\x93NUMPY", "damaged"),
        ("in.txt", b"1 2 3", "neither .npz nor .npy"),
        ("input_0.pb", b"\xff\xff", "not an ONNX tensor"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        user_feeds(tmp_path if name == "input_0.pb" else tmp_path / name, PAIR)


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        user_feeds(tmp_path / "none", PAIR)
    with pytest.raises(DataError, match="holds no inputs"):
        user_feeds(tmp_path, PAIR)


def test_one_array_does_not_do_for_two_inputs(tmp_path):
    np.save(tmp_path / "in.npy", GOOD["a"])
    with pytest.raises(DataError, match="one array"):
        user_feeds(tmp_path / "in.npy", PAIR)
