"""Where samples come from: arrays, archives, folders, Parquet; read in pieces, damaged or not."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folding import model_of

import bnfold
from bnfold.errors import DataError, MissingExtraError, ModelError, OptionError, OutputError
from bnfold.model_file import save_model
from bnfold.prediction import PredictOptions
from bnfold.prediction.pipeline import pipelined
from bnfold.prediction.reader import with_labels_of
from bnfold.prediction.samples import DataOptions, Samples, Source, open_source

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
    np.savez(folder / "data.npz", x=values(), y=np.arange(COUNT) % 3)
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
        table = pa.table({"x": column, "label": [row % 3 for row in range(COUNT)]})
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
            assert labels.tolist() == [row % 3 for row in range(2, 12)]
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


def test_categories_are_labels(tmp_path: Path) -> None:
    """As pandas writes them."""
    data = table_of(x=ROW * 3, label=pa.array(["b", None, "a"]).dictionary_encode())(tmp_path)
    source = open_source(str(data), DataOptions())
    labels = source.read(0, 3).labels
    source.close()
    assert source.classes == ("a", "b")
    assert labels is not None
    assert labels.tolist() == [1, -1, 0]


def test_label_that_the_data_has_no_name_for_is_refused(tmp_path: Path) -> None:
    names = b'{"info": {"features": {"label": {"names": ["b", "a", "c"]}}}}'
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match="the data has label 7, and names 3 classes"):
        bnfold.predict(model(tmp_path), str(names_of_labels(names, 7)(tmp_path)),
                       options=PredictOptions(labels=tmp_path / "labels.txt"))  # fmt: skip


def test_name_that_two_classes_of_the_model_have_matches_no_label(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("crane\nhen\ncrane\n")
    data = table_of(x=ROW * 2, label=["crane", "hen"])(tmp_path)
    with pytest.raises(DataError, match="2 classes named 'crane'"):
        bnfold.predict(model(tmp_path), str(data), options=PredictOptions(labels=tmp_path / "labels.txt"))
    data = table_of(x=ROW * 2, label=["hen", "hen"])(tmp_path)
    options = PredictOptions(labels=tmp_path / "labels.txt")
    assert [row.label for row in bnfold.predict(model(tmp_path), str(data), options=options).predictions] == [1, 1]


def test_more_tables_are_read_than_a_process_can_have_open(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    for number in range(70):
        pq.write_table(pa.table({"x": ROW}), tmp_path / "table" / f"{number}.parquet")
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60)); import pyarrow.parquet;"
        "from bnfold.prediction.samples import DataOptions, open_source;"
        "print(len(open_source(sys.argv[1], DataOptions()).read(0, 70).values))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "table")], capture_output=True, text=True, check=False
    )
    assert done.stdout == "70\n", done.stderr


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


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(0))
    os.mkfifo(folder / "b.png")
    (folder / "c.png").symlink_to("nowhere")
    (folder / "d.png").symlink_to("/dev/zero")
    (folder / "again").symlink_to(".")
    Image.new("RGB", (1, 60_000)).save(folder / "thin.png")
    options = PredictOptions(preprocess=("imagenet",), on_error="skip")
    result = bnfold.predict(model(tmp_path, TEXT.replace("2,2]", "H,W]")), str(folder), tmp_path / "out.csv", options)
    assert result.tally.rows == 1
    said = (tmp_path / "out.csv.skipped.jsonl").read_text().splitlines()
    assert ["is gone, or no regular file" in line for line in said] == [True, True, True, False]
    assert "would be resized to 256" in said[3]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_any_name_of_a_file_is_one_value_of_one_row(suffix: str, tmp_path: Path) -> None:
    """Names of files and of classes are bytes, of which some are no Unicode."""
    names = ["a,b.png", 'a"b.png', "a\nb.png", "a\rb.png", "a\r\nb.png", os.fsdecode(b"a\xffb.png"), "ü☃.png"]
    classes = [os.fsdecode(b"class \xff"), "b", "c"]
    for split in ("train", "test"):
        for of_class in classes:
            (tmp_path / split / of_class).mkdir(parents=True)
            for name in names:
                (tmp_path / split / of_class / name).write_bytes(encoded(0))
    out = tmp_path / f"out.{suffix}"
    bnfold.predict(model(tmp_path), f"imagefolder:{tmp_path}", out, PredictOptions(preprocess=PLAIN))
    if suffix == "csv":
        with out.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            read = [row["sample"] for row in csv.DictReader(stream)]
    elif suffix == "jsonl":
        read = [json.loads(line)["sample"] for line in out.read_text().split("\n")[:-1]]
    else:
        read = [name.replace("\\udcff", "\udcff") for name in pq.read_table(out)["sample"].to_pylist()]
    assert sorted(read) == sorted(f"test/{of_class}/{name}" for of_class in classes for name in names)


@pytest.mark.parametrize("data", ["images", "images/deep/.."])
def test_table_is_not_written_among_the_data(data: str, tmp_path: Path) -> None:
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "images" / "a.png").write_bytes(encoded(0))
    options = PredictOptions(preprocess=PLAIN)
    with pytest.raises(OutputError, match="lies in the folder of the data"):
        bnfold.predict(model(tmp_path), str(tmp_path / data), tmp_path / "images" / "deep" / "out.parquet", options)
    bnfold.predict(model(tmp_path), str(tmp_path / data), tmp_path / "images" / "out.csv", options)


@pytest.mark.parametrize("kind", ["EPS", "DDS"])
def test_images_of_rare_kinds_that_cannot_be_decoded_are_left_out(kind: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, kind)
    content = stream.getvalue()
    if kind == "DDS":  # of pixels of no kind
        content = content[:80] + bytes(4) + content[84:]
    pq.write_table(pa.table({"image": [encoded(0), content]}), tmp_path / "data.parquet")
    options = PredictOptions(preprocess=PLAIN, on_error="skip")
    result = bnfold.predict(model(tmp_path), str(tmp_path / "data.parquet"), options=options)
    (failure,) = result.failures
    assert failure.sample == "1"
    assert ("PostScript" if kind == "EPS" else "is not an image") in failure.error


@pytest.mark.parametrize("what", ["data", "model"])
def test_what_is_read_is_not_replaced(what: str, tmp_path: Path) -> None:
    data = table_of(x=ROW)(tmp_path)
    network = model(tmp_path).rename(tmp_path / "model.csv")
    target = data if what == "data" else network
    link = tmp_path / f"link{target.suffix}"
    link.symlink_to(target)
    before = target.read_bytes()
    for out in (target, link):
        with pytest.raises(OutputError, match=f"is the {what} itself"):
            bnfold.predict(network, str(data), out)
    assert target.read_bytes() == before


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


def other_labels(labels: Any) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        (folder / "table").mkdir()
        pq.write_table(pa.table({"x": ROW, "label": [1]}), folder / "table" / "a.parquet")
        pq.write_table(pa.table({"x": ROW} | labels), folder / "table" / "b.parquet")
        return folder / "table"

    return made


def twice_a_column(folder: Path) -> Path:
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([1]), pa.array(ROW)], names=["label", "label", "x"]),
                   folder / "data.parquet")  # fmt: skip
    return folder / "data.parquet"


def names_of_labels(names: bytes, label: int) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        table = pa.table({"x": ROW, "label": [label]}).replace_schema_metadata({b"huggingface": names})
        pq.write_table(table, folder / "data.parquet")
        return folder / "data.parquet"

    return made


def archive(shape: tuple[int, ...], member: str = "x", kind: str = "<f4") -> Callable[[Path], Path]:
    """An array that says of itself what is not so, beside a sound x where it is another."""

    def made(folder: Path) -> Path:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
        np.savez(folder / "data.npz", **({} if member == "x" else {"x": values()}))
        with zipfile.ZipFile(folder / "data.npz", "a") as file:
            file.writestr(f"{member}.npy", header.getvalue())
        return folder / "data.npz"

    return made


def array_of(content: bytes) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        (folder / "data.npy").write_bytes(content)
        return folder / "data.npy"

    return made


def with_password(folder: Path) -> Path:
    file = npz(folder)
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(content)
    return file


def labelled(y: Any) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        np.savez(folder / "data.npz", x=values()[: len(y)], y=y)
        return folder / "data.npz"

    return made


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
        (table_of(x=ROW, label=pa.array([2**63], pa.uint64())), "label 9223372036854775807, and .* has the classes 0 to 2"),
        (two_schemas, "its column 'x' is not the"),
        (other_labels({}), "b.parquet: its column 'label' is not the int64"),
        (other_labels({"label": ["a"]}), "b.parquet: its column 'label' is not the int64"),
        (twice_a_column, "more than one column 'label'"),
        (names_of_labels(b"[" * 100_000, 3), "sample 0 of .* has label 3, and .* has the classes 0 to 2"),
        (labelled([0, 3, 1]), "sample 1 of .* has label 3, and .* has the classes 0 to 2"),
        (labelled(np.array([0, 2**64 - 1], np.uint64)), "sample 1 of .* has label 9223372036854775807"),
        (archive((-5, 12)), "not a numpy file of plain arrays, or is damaged"),
        (archive((10**9, 12)), "is damaged"),
        (archive((10**30, 12)), "is damaged"),
        (archive((10**15,), "y", "<i8"), "not a numpy file of plain arrays, or is damaged"),
        (archive((10**30,), "y", "<i8"), "not a numpy file of plain arrays, or is damaged"),
        (array_of(b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000), "not a numpy file"),
        (with_password, "not a numpy file of plain arrays, or is damaged"),
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
