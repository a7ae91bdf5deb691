"""Predictions: what is read from the model, what is refused, what is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from folding import model_of

import bnfold
from bnfold.cli.main import main
from bnfold.errors import DataError, InputError, ModelError
from bnfold.model_file import save_model
from bnfold.prediction import PredictOptions

pytest.importorskip("onnxruntime")

#: Class of an image: the channel that is brightest.
TEXT = "g (float[N,3,2,2] input) => (float[N,3] logits) { p = GlobalAveragePool(input) logits = Flatten(p) }"


def classifier(folder: Path, text: str = TEXT, **metadata: object) -> Path:
    model = model_of(text, {})
    model.metadata_props.update({f"bnfold.{key}": json.dumps(value) for key, value in metadata.items()})
    return save_model(model, folder / "model.onnx")


def images(count: int = 7) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % 3
    x = np.full((count, 3, 2, 2), 10, np.uint8)
    x[np.arange(count), labels] = 250
    return x, labels


NORMAL = {"scale": 255.0, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}


def test_pixels_are_normalized_as_the_model_says(tmp_path: Path) -> None:
    path = classifier(tmp_path, normalization=NORMAL, classes=["red", "green", "blue"])
    x, y = images()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    result = bnfold.predict(path, str(tmp_path / "data.npz"), options=PredictOptions(batch=3))
    assert result.accuracy == 1.0
    assert [p.name for p in result.predictions[:3]] == ["red", "green", "blue"]
    logits = ((x / 255 - np.reshape(NORMAL["mean"], (1, 3, 1, 1))) / np.reshape(NORMAL["std"], (1, 3, 1, 1))).mean(
        (2, 3)
    )
    wanted = np.exp(logits).max(1) / np.exp(logits).sum(1)
    assert np.allclose([p.probability for p in result.predictions], wanted, atol=1e-6)


def test_pixels_without_a_normalization_are_refused(tmp_path: Path) -> None:
    x, y = images()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    with pytest.raises(DataError, match="does not say how pixels become its input"):
        bnfold.predict(classifier(tmp_path), str(tmp_path / "data.npz"))


def test_numbers_are_taken_as_they_are_by_a_model_of_somebody_else(tmp_path: Path) -> None:
    x, _ = images()
    np.save(tmp_path / "data.npy", x.astype(np.float64))
    result = bnfold.predict(classifier(tmp_path), str(tmp_path / "data.npy"))
    assert [p.predicted for p in result.predictions] == [0, 1, 2, 0, 1, 2, 0]
    assert result.accuracy is None


def test_folder_of_images_is_read_by_name(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    x, _ = images(3)
    for index, image in enumerate(x):
        Image.fromarray(image.transpose(1, 2, 0)).resize((5, 5)).save(folder / f"{index}.png")
    path = classifier(tmp_path, normalization=NORMAL)
    result = bnfold.predict(path, str(folder))
    assert [(p.sample, p.predicted) for p in result.predictions] == [("0.png", 0), ("1.png", 1), ("2.png", 2)]


def test_model_of_a_fixed_batch_size_gets_full_batches(tmp_path: Path) -> None:
    x, y = images(7)
    np.savez(tmp_path / "data.npz", x=x.astype(np.float32), y=y)
    path = classifier(tmp_path, TEXT.replace("N", "4"))
    result = bnfold.predict(path, str(tmp_path / "data.npz"))
    assert len(result.predictions) == 7
    assert result.accuracy == 1.0


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_every_prediction_is_written(tmp_path: Path, suffix: str) -> None:
    x, y = images()
    np.savez(tmp_path / "data.npz", x=x.astype(np.float32), y=y)
    labels = tmp_path / "labels.txt"
    labels.write_text("red\ngreen\nblue, light\n")
    out = tmp_path / f"out.{suffix}"
    bnfold.predict(classifier(tmp_path), str(tmp_path / "data.npz"), out, PredictOptions(labels=labels))
    text = out.read_text()
    rows = (
        list(csv.DictReader(text.splitlines())) if suffix == "csv" else [json.loads(line) for line in text.splitlines()]
    )
    assert [row["name"] for row in rows[:3]] == ["red", "green", "blue, light"]
    assert [int(row["label"]) for row in rows] == list(y)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"z": np.zeros(3)}, "an array named x is needed"),
        ({"x": np.zeros((3, 3, 4, 4), np.float32)}, "takes samples of shape"),
        ({"x": np.zeros((3, 3, 2, 2), np.float32), "y": np.zeros(2, np.int64)}, r"integers of shape \(3,\)"),
        ({"x": np.array(["a", "b"])}, "samples are numbers"),
    ],
    ids=["no x", "other shape", "labels missing", "text"],
)
def test_data_that_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=words):
        bnfold.predict(classifier(tmp_path), str(tmp_path / "data.npz"))


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="plain arrays"):
        bnfold.predict(classifier(tmp_path), str(tmp_path / "data.npy"))


def test_truncated_archive_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=images()[0])
    (tmp_path / "data.npz").write_bytes((tmp_path / "data.npz").read_bytes()[:100])
    with pytest.raises(DataError, match="is damaged"):
        bnfold.predict(classifier(tmp_path), str(tmp_path / "data.npz"))


def test_score_of_minus_infinity_is_a_class_that_cannot_be(tmp_path: Path) -> None:
    x = np.ones((2, 3, 2, 2), np.float32)
    x[0, 1] = -np.inf
    np.save(tmp_path / "data.npy", x)
    out = tmp_path / "out.jsonl"
    bnfold.predict(classifier(tmp_path), str(tmp_path / "data.npy"), out, PredictOptions(logits=True))
    assert [json.loads(line, parse_constant=pytest.fail)["logits"] for line in out.read_text().splitlines()] == [
        [1.0, None, 1.0], [1.0, 1.0, 1.0],
    ]  # fmt: skip
    np.save(tmp_path / "data.npy", np.full_like(x, -np.inf))
    with pytest.raises(ModelError, match="not finite for sample 0"):
        bnfold.predict(classifier(tmp_path), str(tmp_path / "data.npy"))


def test_model_that_takes_no_sample_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=images()[0].astype(np.float32))
    with pytest.raises(ModelError, match="holds no sample"):
        bnfold.predict(classifier(tmp_path, TEXT.replace("[N,3,2,2]", "[0,3,2,2]")), str(tmp_path / "data.npz"))


def test_logits_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    x = images()[0].astype(np.float32)
    x[4] = np.nan
    np.save(tmp_path / "data.npy", x)
    with pytest.raises(ModelError, match="not finite for sample 4"):
        bnfold.predict(classifier(tmp_path), str(tmp_path / "data.npy"))


def test_labels_are_matched_by_name(tmp_path: Path) -> None:
    """The folders are sorted by name; the model knows its classes in another order."""
    from PIL import Image

    x, labels = images(12)
    for index, (image, label) in enumerate(zip(x, labels, strict=True)):
        folder = tmp_path / "data" / "test" / ["red", "green", "blue"][label]
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "train" / folder.name).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image.transpose(1, 2, 0))
        picture.save(folder / f"{index}.png")
        picture.save(tmp_path / "data" / "train" / folder.name / f"{index}.png")
    path = classifier(tmp_path, normalization=NORMAL, classes=["red", "green", "blue"])
    result = bnfold.predict(path, f"imagefolder:{tmp_path / 'data'}")
    assert result.accuracy == 1.0
    assert all(p.name == p.label_name for p in result.predictions)
    other = classifier(tmp_path, normalization=NORMAL, classes=["red", "green", "violet"])
    with pytest.raises(DataError, match="'blue' that the model does not know"):
        bnfold.predict(other, f"imagefolder:{tmp_path / 'data'}")


def test_images_with_channels_last_are_turned(tmp_path: Path) -> None:
    x, y = images()
    wide = np.repeat(np.repeat(x, 2, axis=2), 2, axis=3)
    np.savez(tmp_path / "data.npz", x=wide.transpose(0, 2, 3, 1), y=y)
    path = classifier(tmp_path, TEXT.replace("2,2", "4,4"), normalization=NORMAL)
    assert bnfold.predict(path, str(tmp_path / "data.npz")).accuracy == 1.0


def test_class_names_must_be_as_many_as_logits(tmp_path: Path) -> None:
    x, _ = images()
    np.save(tmp_path / "data.npy", x.astype(np.float32))
    labels = tmp_path / "labels.txt"
    labels.write_text("one\ntwo\n")
    with pytest.raises(DataError, match="2 class names for 3 logits"):
        bnfold.predict(classifier(tmp_path), str(tmp_path / "data.npy"), options=PredictOptions(labels=labels))


def test_damaged_metadata_is_named(tmp_path: Path) -> None:
    path = classifier(tmp_path)
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {"bnfold.normalization": "{}"})
    onnx.save(proto, path)
    with pytest.raises(ModelError, match="metadata is damaged"):
        bnfold.predict(path, "digits")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--on-error", "skip"], 1, "1 sample has no prediction"),
        ([], 3, "leave such out (--on-error skip)"),
        (["--resume"], 2, "without --out"),
        (["--preprocess", "imagenette"], 2, "neither a preset"),
        (["--top-k", "4"], 3, "the model has 3"),
        (["--actors", "2"], 2, "--engine ray"),
        (["--labels", "nowhere.txt"], 3, "nowhere.txt cannot be read"),
        (["--out", "nowhere/out.csv"], 3, "does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_exit_code_tells_what_happened(
    arguments: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = images()[0].astype(np.float32)
    x[4] = np.nan
    np.save(tmp_path / "data.npy", x)
    before = sorted(tmp_path.iterdir())
    path = classifier(tmp_path)
    assert main(["predict", str(path), str(tmp_path / "data.npy"), *arguments]) == code
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == sorted([*before, path])


def test_json_is_the_only_thing_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "data.npy", images()[0].astype(np.float32))
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(classifier(tmp_path)), str(tmp_path / "data.npy"), "--json", "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["skipped"], told["output"]) == (7, 0, str(out))
    assert told["predictions"] is None


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="batch"):
        PredictOptions(batch=0)
    with pytest.raises(InputError, match="split"):
        PredictOptions(split="validation")
