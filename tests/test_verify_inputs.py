"""The inputs of a verification: drawn ones are fit to the model, and the user's are checked before use."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bnfold.errors import DataError, InputError, ModelError
from bnfold.verification.inputs import drawn_feeds
from bnfold.verification.specs import InputSpec, input_specs
from bnfold.verification.user_inputs import user_feeds

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
IMAGE = InputSpec("x", FLOAT, ("N", 3, 8, 8))


def _kinds(feeds):
    return [feed.kind for feed in feeds]


def test_the_same_seed_draws_the_same_inputs():
    one, same, other = (drawn_feeds([IMAGE], samples=1, seed=seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a.values["x"], b.values["x"]) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0].values["x"], other[0].values["x"])


def test_a_dynamic_batch_is_drawn_at_several_sizes():
    feeds = drawn_feeds([IMAGE], samples=2, seed=0)
    assert [f.values["x"].shape[0] for f in feeds] == [1, 1, 3, 3, 1, 1, 1, 1, 1, 16]
    assert _kinds(feeds) == ["random"] * 4 + ["zeros", "constant", "large", "tiny", "denormal", "random"]


def test_batch_sizes_that_are_asked_for_are_the_only_ones():
    feeds = drawn_feeds([IMAGE], samples=1, seed=0, batches=(2,))
    assert {f.values["x"].shape[0] for f in feeds} == {2}


def test_a_large_batch_of_large_images_is_left_out():
    feeds = drawn_feeds([InputSpec("x", FLOAT, ("N", 3, 224, 224))], samples=1, seed=0)
    assert max(f.values["x"].shape[0] for f in feeds) == 3


def test_sides_and_lengths_are_one_odd_and_large_and_no_two_alike():
    specs = [InputSpec("x", FLOAT, ("N", 3, "h", "w")), InputSpec("t", FLOAT, ("N", "length", 8))]
    feeds = drawn_feeds(specs, samples=1, seed=0)
    others = [f for f in feeds if f.optional and f.kind == "random"]
    assert [(*f.values["x"].shape, *f.values["t"].shape) for f in others] == [
        (16, 3, 64, 64, 16, 16, 8),
        (1, 3, 1, 1, 1, 1, 8),
        (3, 3, 33, 35, 3, 7, 8),
        (1, 3, 128, 96, 1, 40, 8),
    ]
    assert [f.name for f in others][1] == "random h=1 w=1 length=1"


def test_open_dimensions_of_one_name_have_one_size():
    specs = [InputSpec("x", FLOAT, ("N", "t", 4)), InputSpec("mask", ir.DataType.BOOL, ("N", 1, "t", "t"))]
    for feed in drawn_feeds(specs, samples=1, seed=0):
        batch, length, _ = feed.values["x"].shape
        assert feed.values["mask"].shape == (batch, 1, length, length)


def test_a_given_shape_holds_for_the_same_names_in_other_inputs():
    specs = [InputSpec("x", FLOAT, ("N", "t")), InputSpec("mask", ir.DataType.BOOL, ("N", "t"))]
    feeds = drawn_feeds(specs, samples=1, seed=0, shapes={"x": (2, 9)})
    assert {f.values["mask"].shape for f in feeds} == {(2, 9)}


def test_leaving_a_set_of_inputs_out_does_not_change_the_others():
    many, few = (drawn_feeds([IMAGE], samples=2, seed=0, batches=batches) for batches in ((1, 3), (3,)))
    values = {f.name: f.values["x"] for f in many}
    assert np.array_equal(values["random 2 batch 3"], next(f for f in few if f.name == "random 2 batch 3").values["x"])


def test_a_fixed_batch_is_kept():
    feeds = drawn_feeds([InputSpec("x", FLOAT, (2, 5))], samples=1, seed=0)
    assert {f.values["x"].shape for f in feeds} == {(2, 5)}


def _kind(dtype, kind):
    feeds = drawn_feeds([InputSpec("x", dtype, (64,))], samples=1, seed=0)
    return next(f for f in feeds if f.kind == kind).values["x"]


@pytest.mark.parametrize(("dtype", "peak"), [(FLOAT, 1000), (ir.DataType.FLOAT16, 16), (ir.DataType.BFLOAT16, 1000)])
def test_large_inputs_are_large_and_finite(dtype, peak):
    large = _kind(dtype, "large")
    assert large.dtype == dtype.numpy()
    assert np.isfinite(large.astype(np.float64)).all()
    assert np.abs(large.astype(np.float64)).max() > peak


FLOATS = [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, FLOAT, ir.DataType.DOUBLE]


@pytest.mark.parametrize("dtype", FLOATS)
def test_tiny_inputs_are_normal_numbers_and_denormal_ones_are_not(dtype):
    smallest = float(ml_dtypes.finfo(dtype.numpy()).smallest_normal)
    tiny, denormal = (np.abs(_kind(dtype, kind).astype(np.float64)) for kind in ("tiny", "denormal"))
    assert smallest < np.median(tiny) < 0.01
    assert 0 < denormal.max() < smallest


def test_integer_inputs_are_not_drawn_as_if_they_were_floats():
    assert _kinds(drawn_feeds([InputSpec("n", INT64, (50,))], samples=1, seed=0)) == [
        "random",
        "zeros",
        "constant",
        "large",
    ]


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
    specs = [InputSpec("b", ir.DataType.BOOL, (99,)), InputSpec("u", ir.DataType.UINT8, (9999,), (0, 256))]
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
        ("in.txt", b"1 2 3", "is not a .npz"),
        ("input_0.pb", b"\xff\xff", "not an ONNX tensor"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        user_feeds(tmp_path if name == "input_0.pb" else tmp_path / name, PAIR)


def _tensor_file(path, array=None, name="", **fields):
    tensor = onnx.TensorProto(name=name, **fields) if array is None else onnx.numpy_helper.from_array(array, name)
    path.write_bytes(tensor.SerializeToString())


def test_test_data_is_taken_by_the_names_of_its_tensors_where_they_are_those_of_the_inputs(tmp_path):
    for index, name in enumerate(("n", "a")):  # not in the order of the model
        _tensor_file(tmp_path / f"input_{index}.pb", GOOD[name], name)
    (feed,) = user_feeds(tmp_path, PAIR)
    assert {name: value.dtype for name, value in feed.values.items()} == {"a": np.float32, "n": np.int64}


OUTSIDE = [onnx.StringStringEntryProto(key="location", value="/etc/hostname")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data_type": 1, "dims": [4, 2], "raw_data": b"123"}, "damaged"),
        ({"data_type": 1, "dims": [1 << 40, 1 << 20]}, "damaged"),
        ({"data_type": 1, "dims": [-1, 2], "raw_data": bytes(32)}, "damaged"),
        ({"data_type": 99, "dims": [1], "raw_data": bytes(4)}, "damaged"),
        ({"data_type": 1, "dims": [4, 2], "data_location": 1, "external_data": OUTSIDE}, "in another file"),
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(tmp_path, fields, message):
    _tensor_file(tmp_path / "in.pb", **fields)
    with pytest.raises(DataError, match=message):
        user_feeds(tmp_path / "in.pb", PAIR[:1])


def test_an_array_that_claims_to_be_larger_than_memory_is_refused(tmp_path):
    with (tmp_path / "in.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50, 1 << 10)}
        )
    with pytest.raises(DataError, match="damaged, or holds more than fits into memory"):
        user_feeds(tmp_path / "in.npy", PAIR[:1])


def test_sizes_that_no_memory_holds_are_refused():
    with pytest.raises(InputError, match="2\\^30 numbers"):
        drawn_feeds([InputSpec("x", FLOAT, ("N", 1 << 20, 1 << 20))], samples=1, seed=0)


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        user_feeds(tmp_path / "none", PAIR)
    with pytest.raises(DataError, match="holds no inputs"):
        user_feeds(tmp_path, PAIR)


def test_one_array_does_not_do_for_two_inputs(tmp_path):
    np.save(tmp_path / "in.npy", GOOD["a"])
    with pytest.raises(DataError, match="one array"):
        user_feeds(tmp_path / "in.npy", PAIR)


def test_integers_that_only_become_numbers_are_of_either_sign_and_sizes():
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT64, ["N", 50])]
    model = _model(inputs, [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT)])
    model.graph.outputs[0] = next(v for n in model.graph for v in n.outputs if n.op_type == "Cast")
    model.graph.remove([n for n in model.graph if n.op_type == "Identity"], safe=False)
    drawn = drawn_feeds(input_specs(model), samples=1, seed=0)[0].values["x"]
    assert (drawn.min() < -50, drawn.max() > 50) == (True, True)


@pytest.mark.parametrize("way", [["Cast"], ["Reshape"], ["Unsqueeze", "Cast", "Squeeze"], ["Identity", "Concat"]])
def test_indices_are_followed_on_their_way_to_the_table(way):
    text = '<ir_version: 8, opset_import: ["" : 13]> g (int64[N] x) => (float[N,2] y) <float[5,2] t = {0,1,2,3,4,5,6,7,8,9}, int64[1] s = {-1}, int64[1] z = {0}> { %s y = Gather(t, v%d) }'
    forms = {
        "Cast": "v{1} = Cast <to = 6> (v{0})",
        "Reshape": "v{1} = Reshape(v{0}, s)",
        "Unsqueeze": "v{1} = Unsqueeze(v{0}, z)",
        "Squeeze": "v{1} = Squeeze(v{0}, z)",
        "Identity": "v{1} = Identity(v{0})",
        "Concat": "v{1} = Concat <axis = 0> (v{0}, v{0})",
    }
    nodes = " ".join(forms[name].format(i, i + 1) for i, name in enumerate(way)).replace("v0", "x")
    model = ir.from_proto(onnx.parser.parse_model(text % (nodes, len(way))))
    (spec,) = input_specs(model)
    assert spec.limits == (0, 5)


def _image(path, size, mode="RGB", value=200):
    image = pytest.importorskip("PIL.Image").new(mode, size, value if mode == "L" else (value, 0, 0))
    image.save(path)


PICTURES = [InputSpec("x", FLOAT, ("N", 3, 8, 8))]


def test_images_become_what_the_model_takes(tmp_path):
    for index in range(10):
        _image(tmp_path / f"{index}.png", (20, 12 + index))
    feeds = user_feeds(tmp_path, PICTURES)
    assert [f.values["x"].shape for f in feeds] == [(8, 3, 8, 8), (2, 3, 8, 8)]
    assert feeds[0].name == "0.png … 7.png"
    x = feeds[0].values["x"]
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[0, :, 0, 0], [200 / 255, 0, 0], rtol=1e-6)


def test_images_are_normalized_as_the_model_says(tmp_path):
    _image(tmp_path / "a.png", (8, 8))
    metadata = {"bnfold.normalization": '{"scale": 255, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}'}
    (feed,) = user_feeds(tmp_path / "a.png", PICTURES, metadata)
    np.testing.assert_allclose(feed.values["x"][0, :, 0, 0], [(200 / 255 - 0.5) / 0.25, -2, -2], rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        (("N", 8, 8, 3), FLOAT, (1, 8, 8, 3)),
        ((4, 3, 8, 8), FLOAT, (4, 3, 8, 8)),
        (("N", 3, None, None), FLOAT, (1, 3, 224, 224)),
        (("N", 3, 8, 8), ir.DataType.UINT8, (1, 3, 8, 8)),
    ],
)
def test_images_fit_layouts_batches_and_types(tmp_path, shape, dtype, expected):
    _image(tmp_path / "a.png", (30, 30))
    (feed,) = user_feeds(tmp_path / "a.png", [InputSpec("x", dtype, shape, (0, 256))])
    assert feed.values["x"].shape == expected
    assert feed.values["x"].dtype == dtype.numpy()
    assert feed.values["x"].max() == pytest.approx(200 if dtype == ir.DataType.UINT8 else 200 / 255)


def test_gray_images_serve_models_of_three_channels(tmp_path):
    _image(tmp_path / "a.png", (8, 8), "L")
    (feed,) = user_feeds(tmp_path / "a.png", PICTURES)
    np.testing.assert_allclose(feed.values["x"][0, :, 0, 0], 200 / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (PAIR, "does not take one input of images"),
        ([InputSpec("x", FLOAT, ("N", 7))], "does not take one input of images"),
        ([InputSpec("x", FLOAT, ("N", 1, 8, 8))], "3 channels, and the model takes 1"),
        ([InputSpec("x", FLOAT, ("N", 3, 8, 9))], "not square"),
    ],
)
def test_images_that_do_not_fit_are_refused(tmp_path, specs, message):
    _image(tmp_path / "a.png", (8, 8))
    with pytest.raises(DataError, match=message):
        user_feeds(tmp_path, specs)


def test_a_file_that_is_no_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="not an image"):
        user_feeds(tmp_path, PICTURES)


def test_a_single_tensor_of_test_data_does_for_one_input(tmp_path):
    tensor = onnx.numpy_helper.from_array(GOOD["a"], "a")
    (tmp_path / "input_3.pb").write_bytes(tensor.SerializeToString())
    (tmp_path / "output_0.pb").write_bytes(tensor.SerializeToString())
    for path in (tmp_path, tmp_path / "input_3.pb"):
        (feed,) = user_feeds(path, PAIR[:1])
        np.testing.assert_array_equal(feed.values["a"], GOOD["a"])
