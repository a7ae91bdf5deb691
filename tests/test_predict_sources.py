"""Where samples come from: arrays, archives, folders, Parquet; read in pieces, damaged or not."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folding import model_of

import bnfold
from bnfold.deployment import PredictOptions
from bnfold.deployment.pipeline import pipelined
from bnfold.deployment.reader import with_labels_of
from bnfold.deployment.samples import DataOptions, Samples, Source, open_source
from bnfold.errors import DataError, MissingExtraError, ModelError, OptionError
from bnfold.model_file import save_model

pytest.importorskip("onnxruntime")
Image = pytest.importorskip("PIL.Image")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TEXT = "g (float[N,3,2,2] input) => (float[N,3] logits) { p = GlobalAveragePool(input) logits = Flatten(p) }"
PLAIN = ("mean=0,0,0", "std=1,1,1")
COUNT = 23


def model(folder: Path, text: str = TEXT) -> Path:
    return save_model(model_of(text, {}), folder / "model.onnx")


def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((COUNT, 3, 2, 2)).astype(np.float32)


def encoded(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (2, 2, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def npy(folder: Path) -> Path:
    np.save(folder / "data.npy", values())
    return folder / "data.npy"


def npz(folder: Path) -> Path:
    np.savez(folder / "data.npz", x=values(), y=np.arange(COUNT))
    return folder / "data.npz"


def compressed(folder: Path) -> Path:
    np.savez_compressed(folder / "data.npz", x=values())
    return folder / "data.npz"


def by_columns(folder: Path) -> Path:
    np.savez(folder / "data.npz", x=np.asfortranarray(values()))
    return folder / "data.npz"


def lists(kind: Callable[[], Any]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        rows = values().reshape(COUNT, 12)
        column = pa.array(rows.tolist(), kind())
        table = pa.table({"x": column, "label": list(range(COUNT))})
        (folder / "table").mkdir()
        pq.write_table(table.slice(0, 9), folder / "table" / "a.parquet", row_group_size=4)
        pq.write_table(table.slice(9), folder / "table" / "b.parquet", row_group_size=5)
        return folder / "table"

    return made


def nested(folder: Path) -> Path:
    pq.write_table(pa.table({"x": values().tolist()}), folder / "data.parquet", row_group_size=10)
    return folder / "data.parquet"


SOURCES = {
    "npy": npy, "npz": npz, "compressed npz": compressed, "npz by columns": by_columns, "nested lists": nested,
    "lists": lists(lambda: pa.list_(pa.float32())), "large lists": lists(lambda: pa.large_list(pa.float32())),
    "lists of fixed size": lists(lambda: pa.list_(pa.float32(), 12)),
}  # fmt: skip


def pieces(source: Source, cuts: list[tuple[int, int]]) -> np.ndarray:
    return np.concatenate([np.asarray(source.read(*cut).values).reshape(-1, 3, 2, 2) for cut in cuts])


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("start", [0, 5, 9, 22])
def test_pieces_are_the_whole_from_wherever_one_begins(name: str, start: int, tmp_path: Path) -> None:
    source = open_source(str(SOURCES[name](tmp_path)), DataOptions())
    try:
        cuts = [(at, min(at + 4, COUNT)) for at in range(start, COUNT, 4)]
        assert np.array_equal(pieces(source, cuts), values()[start:])
        assert np.array_equal(pieces(source, [(3, 8)]), values()[3:8]), "and back again"
        assert source.count == COUNT
        if source.labelled:
            labels = source.read(2, 12).labels
            assert labels is not None
            assert labels.tolist() == list(range(2, 12))
    finally:
        source.close()


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_predictions(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "reference.npy", values())
    wanted = bnfold.predict(model(tmp_path), str(tmp_path / "reference.npy"), options=PredictOptions(logits=True))
    got = bnfold.predict(model(tmp_path), str(SOURCES[name](tmp_path)), options=PredictOptions(logits=True, batch=5))
    assert [row.logits for row in got.predictions] == [row.logits for row in wanted.predictions]


@pytest.mark.parametrize("kind", ["npy", "npz", "compressed npz", "parquet"])
def test_memory_does_not_grow_with_the_data(kind: str, tmp_path: Path) -> None:
    """20 MB of samples, read with less than 4 MB."""
    x = np.random.default_rng(0).integers(0, 9, (5000, 1024)).astype(np.float32)
    file = tmp_path / {"npy": "d.npy", "parquet": "d.parquet"}.get(kind, "d.npz")
    if kind == "parquet":
        column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 1024)
        pq.write_table(pa.table({"x": column}), file, row_group_size=500)
    else:
        {"npy": np.save, "npz": np.savez, "compressed npz": np.savez_compressed}[kind](
            file, **({"arr": x} if kind == "npy" else {"x": x})
        )
    del x
    source = open_source(str(file), DataOptions())
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    largest = 0
    for start in range(0, 5000, 64):
        source.read(start, min(start + 64, 5000))
        largest = max(largest, tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - arrow)
    tracemalloc.stop()
    source.close()
    assert largest < 4e6


def test_images_of_parquet_are_those_of_a_folder(tmp_path: Path) -> None:
    """Bare bytes, Hugging Face's struct with bytes, and with a path, beside files."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "9.png").write_bytes(b"nothing")
    contents = [encoded(number) for number in range(5)]
    for number, content in enumerate(contents):
        (folder / ("deep" if number > 2 else "") / f"{9 - number if number < 3 else number}.png").write_bytes(content)
    order = [2, 1, 0, 3, 4]  # 7.png, 8.png, 9.png, deep/3.png, deep/4.png
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "loose.bin").write_bytes(contents[3])
    structs = [{"bytes": contents[number], "path": "x.png"} for number in order]
    structs[3] = {"bytes": None, "path": "loose.bin"}
    pq.write_table(pa.table({"image": structs}), tmp_path / "t" / "structs.parquet")
    pq.write_table(pa.table({"bytes": [contents[number] for number in order]}), tmp_path / "plain.parquet")
    results = [
        bnfold.predict(model(tmp_path), str(data), options=PredictOptions(logits=True, preprocess=PLAIN))
        for data in (folder, tmp_path / "t" / "structs.parquet", tmp_path / "plain.parquet")
    ]
    logits = [[row.logits for row in result.predictions] for result in results]
    assert logits[0] == logits[1] == logits[2]
    assert [row.sample for row in results[0].predictions] == ["7.png", "8.png", "9.png", "deep/3.png", "deep/4.png"]


def test_labels_of_parquet_are_numbers_or_names(tmp_path: Path) -> None:
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]].repeat(4, 1).tolist()
    labels = tmp_path / "names.txt"
    labels.write_text("red\ngreen\nblue\n")
    names = ["red", "green", "blue", None]
    pq.write_table(pa.table({"x": x, "colour": names}), tmp_path / "names.parquet")
    features = '{"info": {"features": {"label": {"names": ["green", "blue", "red"], "_type": "ClassLabel"}}}}'
    table = pa.table({"x": x, "label": [2, 0, 1, None]}).replace_schema_metadata({"huggingface": features})
    pq.write_table(table, tmp_path / "numbers.parquet")
    for name, column in (("names", "colour"), ("numbers", None)):
        options = PredictOptions(labels=labels, label_column=column)
        result = bnfold.predict(model(tmp_path), str(tmp_path / f"{name}.parquet"), options=options)
        assert [row.label_name for row in result.predictions] == ["red", "green", "blue", None]
        assert (result.accuracy, result.tally.labelled) == (1.0, 3)


def test_data_set_of_folders_is_read_file_by_file(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(("a", "b")):
            (tmp_path / "d" / part / name).mkdir(parents=True)
            (tmp_path / "d" / part / name / "0.png").write_bytes(encoded(number))
    source = open_source(f"imagefolder:{tmp_path / 'd'}", DataOptions())
    raw = source.read(0, 2)
    assert raw.names == ("test/a/0.png", "test/b/0.png")
    assert isinstance(raw.values, tuple)
    assert source.classes == ("a", "b")


def test_flat_rows_take_the_shape_of_a_model_with_channels_last(tmp_path: Path) -> None:
    text = (
        "g (float[N,2,2,3] input) => (float[N,3] logits) "
        "{ t = Transpose <perm = [0,3,1,2]> (input) p = GlobalAveragePool(t) logits = Flatten(p) }"
    )
    x = np.arange(12, dtype=np.float32).reshape(1, 12)
    np.save(tmp_path / "x.npy", x)
    for settings in ((), (*PLAIN, "layout=NHWC")):
        options = PredictOptions(logits=True, preprocess=settings)
        result = bnfold.predict(model(tmp_path, text), str(tmp_path / "x.npy"), options=options)
        assert result.predictions[0].logits == pytest.approx(x.reshape(4, 3).mean(0).tolist())


def test_sample_without_a_label_has_none_in_the_order_of_the_model_either() -> None:
    samples = Samples(("0", "1"), np.zeros((2, 3)), np.array([1, -1]), 1.0, ("a", "b"))
    labels = with_labels_of(samples, ("b", "a")).labels
    assert labels is not None
    assert labels.tolist() == [0, -1]


# What is skipped


def test_unreadable_images_are_skipped_counted_and_told(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.png").write_bytes(encoded(number)[: 40 if number in (3, 4) else None])
    with pytest.raises(DataError, match=r"3\.png is not an image, or is damaged.*--on-error skip"):
        bnfold.predict(model(tmp_path), str(folder), options=PredictOptions(preprocess=PLAIN))
    options = PredictOptions(preprocess=PLAIN, on_error="skip", batch=2)
    result = bnfold.predict(model(tmp_path), str(folder), options=options)
    assert [row.sample for row in result.predictions] == [f"{n}.png" for n in range(10) if n not in (3, 4)]
    assert [failure.sample for failure in result.failures] == ["3.png", "4.png"]
    assert result.tally.skipped == 2


def test_data_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"text")
    options = PredictOptions(preprocess=PLAIN, on_error="skip")
    with pytest.raises(DataError, match="none of the 1 samples"):
        bnfold.predict(model(tmp_path), str(tmp_path / "images"), tmp_path / "out.csv", options)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "model.onnx"]


# What is refused


def damaged_table(folder: Path) -> Path:
    file = nested(folder)
    content = bytearray(file.read_bytes())
    content[200:400] = bytes(200)
    file.write_bytes(content)
    return file


def cut_archive(folder: Path) -> Path:
    file = npz(folder)
    file.write_bytes(file.read_bytes()[:700])
    return file


def flipped_archive(folder: Path) -> Path:
    file = compressed(folder)
    content = bytearray(file.read_bytes())
    content[300:400] = bytes(100)
    file.write_bytes(content)
    return file


def cut_array(folder: Path) -> Path:
    file = npy(folder)
    file.write_bytes(file.read_bytes()[:700])
    return file


def table_of(**columns: Any) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / "data.parquet")
        return folder / "data.parquet"

    return made


def two_schemas(folder: Path) -> Path:
    (folder / "table").mkdir()
    pq.write_table(pa.table({"x": values().tolist()}), folder / "table" / "a.parquet")
    pq.write_table(pa.table({"z": [1]}), folder / "table" / "b.parquet")
    return folder / "table"


def empty_folder(folder: Path) -> Path:
    (folder / "images").mkdir()
    return folder / "images"


def text_file(name: str) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        (folder / name).write_text("not what the name says")
        return folder / name

    return made


ROW = [[0.0] * 12]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nope.npz", "does not exist"),
        (lambda folder: folder / "nope.npy", "does not exist"),
        (lambda folder: folder / "nope.parquet", "does not exist"),
        (lambda folder: folder / "nope", "there is no data set"),
        (empty_folder, "holds no images"),
        (text_file("d.npz"), "not a numpy file of plain arrays, or is damaged"),
        (text_file("d.npy"), "not a numpy file of plain arrays, or is damaged"),
        (text_file("d.parquet"), "not a Parquet file, or is damaged"),
        (cut_archive, "is damaged"),
        (cut_array, "is damaged"),
        (flipped_archive, "is damaged"),
        (damaged_table, "is damaged"),
        (table_of(z=["a"]), "no column of images"),
        (table_of(a=ROW, b=ROW), "more than one column of samples: a, b; name one with --column"),
        (table_of(x=[[0.0], [0.0, 1.0]]), "differ in length"),
        (table_of(x=[[0.0] * 12, None]), "has no value in one of the rows from 0 on"),
        (table_of(x=[[0.0] * 11 + [None]]), "a number is missing"),
        (table_of(x=[[0.0] * 11]), "takes samples of shape"),
        (table_of(x=ROW, label=[0.5]), "labels are integers or names"),
        (two_schemas, "its column 'x' is not the"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_is_one_sentence(make: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    path = model(tmp_path)
    data = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=words):
        bnfold.predict(path, str(data), tmp_path / "out.csv")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (PredictOptions(column="z"), "has no column 'z'"),
        (PredictOptions(column="label"), "column 'label' is int64"),
        (PredictOptions(label_column="z"), "has no column 'z'"),
    ],
)
def test_columns_that_are_not_there_are_named(options: PredictOptions, words: str, tmp_path: Path) -> None:
    data = table_of(x=ROW, label=[1])(tmp_path)
    with pytest.raises(DataError, match=words):
        bnfold.predict(model(tmp_path), str(data), options=options)


def test_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    data, path = nested(tmp_path), model(tmp_path)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet")
    for module in ("pyarrow", "ray"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"bnfold\[parquet\]"):
        bnfold.predict(path, str(data))
    with pytest.raises(MissingExtraError, match=r"bnfold\[parquet\]"):
        bnfold.predict(path, str(npy(tmp_path)), tmp_path / "out.parquet")
    with pytest.raises(MissingExtraError, match=r"bnfold\[ray\]"):
        bnfold.predict(path, str(npy(tmp_path)), options=PredictOptions(engine="ray"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("g (float[N,3,2,2] a, float[N,3,2,2] b) => (float[N,3] logits) { c = Add(a, b) p = GlobalAveragePool(c) logits = Flatten(p) }",
         "needs one input of floating point"),
        ("g (int64[N,3] a) => (int64[N,3] logits) { logits = Identity(a) }", "needs one input of floating point"),
        ("g (float[N,3,2,2] a) => (float[N,3,2,2] b) { b = Relu(a) }", r"is no classifier: its output 'b' has shape \(N, 3, 2, 2\)"),
        ("g (float[N,3,2,2] a) => (int64[N,2,2] b) { b = ArgMax <axis = 1, keepdims = 0> (a) }", "is no classifier.*tensor.int64"),
        ("g (float[N,3,2,2] a) => (float[b,c] d) { s = Constant <value_ints = [2, -1]> () d = Reshape(a, s) }", "is no classifier"),
    ],
)  # fmt: skip
def test_models_that_are_no_classifier_are_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        bnfold.predict(model(tmp_path, text), str(npy(tmp_path)), tmp_path / "out.csv")
    assert not (tmp_path / "out.csv.partial").exists()


def test_scores_of_a_pixel_are_scores(tmp_path: Path) -> None:
    """(N, classes, 1, 1), as classifiers of the ONNX model zoo have it."""
    text = "g (float[N,3,2,2] input) => (float[N,3,1,1] logits) { logits = GlobalAveragePool(input) }"
    result = bnfold.predict(model(tmp_path, text), str(npy(tmp_path)))
    assert [row.predicted for row in result.predictions] == values().mean((2, 3)).argmax(1).tolist()


def test_softmax_is_not_taken_of_what_went_through_one(tmp_path: Path) -> None:
    soft = TEXT.replace("logits = Flatten(p)", "f = Flatten(p) s = Softmax(f) logits = Identity(s)")
    one = bnfold.predict(model(tmp_path), str(npy(tmp_path))).predictions
    two = bnfold.predict(model(tmp_path, soft), str(npy(tmp_path))).predictions
    assert [row.probability for row in one] == pytest.approx([row.probability for row in two], rel=1e-6)


def test_best_classes_are_in_order_and_equals_by_number(tmp_path: Path) -> None:
    x = np.zeros((1, 3, 2, 2), np.float32)
    x[0, 1] = 1
    np.save(tmp_path / "x.npy", x)
    (row,) = bnfold.predict(model(tmp_path), str(tmp_path / "x.npy"), options=PredictOptions(top_k=3)).predictions
    assert [rank.predicted for rank in row.top] == [1, 0, 2]
    assert sum(rank.probability for rank in row.top) == pytest.approx(1)
    with pytest.raises(DataError, match="the best 4 classes were asked for, and the model has 3"):
        bnfold.predict(model(tmp_path), str(tmp_path / "x.npy"), options=PredictOptions(top_k=4))


def test_outputs_of_all_formats_tell_the_same(tmp_path: Path) -> None:
    import csv
    import json

    options = PredictOptions(top_k=2, logits=True, batch=4)
    rows = [row.to_json() for row in bnfold.predict(model(tmp_path), str(npz(tmp_path)), options=options).predictions]
    for suffix in ("csv", "jsonl", "parquet"):
        bnfold.predict(model(tmp_path), str(tmp_path / "data.npz"), tmp_path / f"o.{suffix}", options)
    assert [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()] == rows
    assert pq.read_table(tmp_path / "o.parquet").to_pylist() == rows
    for told, row in zip(csv.DictReader((tmp_path / "o.csv").read_text().splitlines()), rows, strict=True):
        assert float(told["probability_2"]) == row["top"][1]["probability"]
        assert told["name_2"] == row["top"][1]["name"]
        assert [float(told[f"logit_{number}"]) for number in range(3)] == row["logits"]


@pytest.mark.parametrize(
    "values",
    [{"workers": -1}, {"top_k": 0}, {"on_error": "ignore"}, {"engine": "spark"}, {"resume": True, "overwrite": True},
     {"actors": 2}, {"address": "auto"}, {"engine": "ray", "actors": 0}, {"threads": -1}],
    ids=str,
)  # fmt: skip
def test_options_that_mean_nothing_are_wrong_usage(values: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        PredictOptions(**values)


# The pipeline


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order_and_few_are_on_the_way(workers: int) -> None:
    taken = 0

    def items() -> Any:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield number

    for number, result in enumerate(pipelined(items(), lambda n: n * 2, lambda n: n + 1, workers)):
        assert result == 2 * number + 1
        assert taken <= number + 1 + workers + 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stage", ["read", "decode", "run"])
def test_failure_of_a_stage_comes_after_the_results_before_it(stage: str, workers: int) -> None:
    def failing(name: str) -> Callable[[int], int]:
        def step(number: int) -> int:
            if name == stage and number == 5:
                raise DataError("five")
            return number

        return step

    results = pipelined(map(failing("read"), range(9)), failing("decode"), failing("run"), workers)
    seen: list[int] = []
    with pytest.raises(DataError, match="five"):
        seen.extend(results)
    assert seen == [0, 1, 2, 3, 4]
