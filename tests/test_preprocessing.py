"""How images become input: sidecars, presets and settings, what goes before what, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from folding import constants, model_of, norm

import bnfold
from bnfold.errors import DataError, OptionError
from bnfold.model_file import load_model, save_model
from bnfold.prediction import PredictOptions
from bnfold.prediction.images import ImageForm
from bnfold.prediction.preprocessing import (
    Preprocessing,
    overridden,
    read_sidecar,
    write_sidecar,
)
from bnfold.sidecar import sidecar_file

pytest.importorskip("onnxruntime")
Image = pytest.importorskip("PIL.Image")

RGB = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
TEXT = "g (float[N,3,4,4] input) => (float[N,3] logits) { p = GlobalAveragePool(input) logits = Flatten(p) }"


def picture(folder: Path, width: int = 8, height: int = 6, name: str = "0.png") -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / name)
    return pixels


def model(folder: Path, text: str = TEXT, **metadata: object) -> Path:
    made = model_of(text, {})
    made.metadata_props.update({f"bnfold.{key}": json.dumps(value) for key, value in metadata.items()})
    return save_model(made, folder / "model.onnx")


def logits(path: Path, data: Path, *settings: str) -> np.ndarray:
    options = PredictOptions(preprocess=settings, logits=True)
    return np.array([row.logits for row in bnfold.predict(path, str(data), options=options).predictions])


def test_sidecar_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    full = Preprocessing(
        mean=(1.0,), std=(2.0,), size=(5, 7), resize="stretch", shorter_side=9, interpolation="lanczos",
        channels="L", layout="NHWC", scale=1.0, labels=("a", "b"),
    )  # fmt: skip
    assert write_sidecar(tmp_path / "m.onnx", full) == tmp_path / "m.onnx.preprocessing.json"
    assert read_sidecar(tmp_path / "m.onnx") == full
    assert read_sidecar(tmp_path / "other.onnx") is None


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("[]", "not an object"),
        ("{", "not JSON"),
        ('{"mean": [0]}', "has no std"),
        ('{"mean": [0], "std": [1]}', "channels is RGB and mean has 1 values"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 0]}', "std must be above 0"),
        ('{"mean": [0, 0, NaN], "std": [1, 1, 1]}', "mean is not finite"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "size": 4}', "is damaged"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "size": [4, 4], "shorter_side": 3}', "less than the size"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "shorter_side": 3}', "less than the size 4×4 that .*model.onnx takes"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "shorter_side": true}', "shorter_side is True"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "shorter_side": 1000000000}', "larger than an image may be"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "size": "44"}', "size are lists of numbers"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "size": [4.5, 4]}', "size is a number of pixels"),
        ('{"mean": "123", "std": "123"}', "are lists of numbers"),
        ('{"mean": [true, 0, 0], "std": [1, 1, 1]}', "are lists of numbers"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "scale": "1"}', "scale is one"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "labels": ["a", null, "c"]}', "not all text"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "crop": "center"}', "'crop', which is none of"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "resize": "fit"}', "resize is 'fit'"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "format": 2}', "newer bnfold"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "size": [5, 4]}', r"size 5×4, and .*model.onnx takes 4×4"),
        ('{"mean": [0], "std": [1], "channels": "L"}', r"has 1 channels, and .*model.onnx takes 3"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "layout": "NHWC"}', "has 3 channels, and .* takes 4"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "labels": ["a", "b"]}', "has 2 labels, and .* has 3 classes"),
    ],
)  # fmt: skip
def test_sidecar_that_is_damaged_or_disagrees_with_the_model_is_refused(
    document: str, words: str, tmp_path: Path
) -> None:
    path = model(tmp_path)
    picture(tmp_path / "images")
    sidecar_file(path).write_text(document)
    with pytest.raises(DataError, match=words):
        bnfold.predict(path, str(tmp_path / "images"))


def test_files_of_editors_that_mark_utf8_are_read(tmp_path: Path) -> None:
    path = model(tmp_path)
    sidecar_file(path).write_text('{"mean": [0, 0, 0], "std": [1, 1, 1]}', "utf-8-sig")
    (tmp_path / "labels.txt").write_text("a\nb\nc\n", "utf-8-sig")
    picture(tmp_path / "images")
    options = PredictOptions(labels=tmp_path / "labels.txt")
    (row,) = bnfold.predict(path, str(tmp_path / "images"), options=options).predictions
    assert row.name == "abc"[row.predicted]


def test_settings_go_before_the_sidecar_and_that_before_the_metadata(tmp_path: Path) -> None:
    """Three means, one for each source; the input is the pixel's value less the mean."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "black.png")

    def said(mean: float) -> dict[str, object]:
        return {"scale": 255.0, "mean": [mean] * 3, "std": [1.0] * 3}

    path = model(tmp_path, normalization=said(1.0))
    assert logits(path, folder)[0] == pytest.approx([-1.0] * 3)
    write_sidecar(path, Preprocessing(mean=(2.0,) * 3, std=(1.0,) * 3))
    assert logits(path, folder)[0] == pytest.approx([-2.0] * 3)
    assert logits(path, folder, "mean=3,3,3")[0] == pytest.approx([-3.0] * 3)
    assert logits(path, folder, "mean=3,3,3", "std=2,2,2")[0] == pytest.approx([-1.5] * 3)


def test_saved_preprocessing_is_found_by_the_next_run(tmp_path: Path) -> None:
    path = model(tmp_path)
    picture(tmp_path / "images")
    labels = tmp_path / "labels.txt"
    labels.write_text("red\ngreen\nblue\n")
    settings = ("mean=0.4,0.5,0.6", "std=1,1,1", "size=4", "shorter-side=5")
    options = PredictOptions(preprocess=settings, save_preprocessing=True, labels=labels)
    first = bnfold.predict(path, str(tmp_path / "images"), options=options)
    again = bnfold.predict(path, str(tmp_path / "images"))
    assert first.predictions == again.predictions
    assert again.predictions[0].name in ("red", "green", "blue")


@pytest.mark.parametrize(
    "settings",
    [("mean",), ("mean=a",), ("crop=1",), ("size=1,2,3",), ("mean=0,0,0",), ("imagenet", "std=0,1,1"), ("imagenette",),
     ("imagenet", "resize=fit")],
    ids=" ".join,
)  # fmt: skip
def test_settings_that_mean_nothing_are_wrong_usage(settings: tuple[str, ...]) -> None:
    with pytest.raises(OptionError):
        overridden(None, settings)


def test_imagenet_is_what_torchvision_evaluates_with() -> None:
    made = overridden(None, ("imagenet",))
    assert made is not None
    assert (made.size, made.shorter_side, made.interpolation, made.scale) == ((224, 224), 256, "bilinear", 255.0)
    assert made.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("given", [(9, 7), (7, 9), (8, 8), (31, 10), (10, 31), (17, 5), (11, 13), (64, 6)])
@pytest.mark.parametrize(("shorter", "size"), [(8, (5, 5)), (7, (4, 6)), (9, (9, 9)), (6, (3, 3))])
def test_shorter_side_is_what_torchvision_does(
    given: tuple[int, int], shorter: int, size: tuple[int, int], tmp_path: Path
) -> None:
    """Resize cuts the longer side off to whole pixels, CenterCrop rounds half to even: as their sources have it."""
    picture(tmp_path, *given)
    width, height = given
    long = int(shorter * max(given) / min(given))
    scaled = (shorter, long) if width <= height else (long, shorter)
    left, top = round((scaled[0] - size[1]) / 2.0), round((scaled[1] - size[0]) / 2.0)
    with Image.open(tmp_path / "0.png") as image:
        resized = np.asarray(image.resize(scaled, Image.Resampling.BILINEAR))
    wanted = resized[top : top + size[0], left : left + size[1]].transpose(2, 0, 1)
    form = ImageForm(Preprocessing(RGB.mean, RGB.std, shorter_side=shorter), size)
    assert np.array_equal(form.decode(tmp_path / "0.png", "0"), wanted)


@pytest.mark.parametrize("side", [(8, 6), (6, 8), (5, 5), (4, 9)])
@pytest.mark.parametrize("size", [(4, 4), (3, 5), (5, 2)])
def test_crop_leaves_no_gap_and_distorts_nothing(side: tuple[int, int], size: tuple[int, int], tmp_path: Path) -> None:
    """A horizontal ramp stays one: its slope is that of one factor for both axes."""
    ramp = np.broadcast_to(np.linspace(0, 250, side[1]), side).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    made = ImageForm(RGB, size).decode(tmp_path / "ramp.png", "ramp")
    assert made.shape == (3, *size)
    assert (np.diff(made.astype(int), axis=1) == 0).all()


def test_images_are_resized_as_in_training(tmp_path: Path) -> None:
    from bnfold.training.image_folder import read_images

    for index, (width, height) in enumerate([(8, 6), (6, 8), (31, 7), (4, 4), (3, 3)]):
        picture(tmp_path / "images", width, height, f"{index}.png")
    files = sorted((tmp_path / "images").iterdir())
    wanted = read_images(files, 4)
    form = ImageForm(RGB, (4, 4))
    assert np.array_equal(wanted, np.stack([form.decode(file, file.name) for file in files]))


def test_channels_are_turned_around_and_moved_last(tmp_path: Path) -> None:
    """A model that takes (N, H, W, C) in BGR, as some exporters write it."""
    text = (
        "g (float[N,6,8,3] input) => (float[N,3] logits) "
        "{ t = Transpose <perm = [0,3,1,2]> (input) p = GlobalAveragePool(t) logits = Flatten(p) }"
    )
    pixels = picture(tmp_path / "images")
    got = logits(model(tmp_path, text), tmp_path / "images", "mean=0,0,0", "std=1,1,1", "scale=1", "channels=BGR",
                 "layout=NHWC")  # fmt: skip
    assert got[0] == pytest.approx(pixels.mean((0, 1))[::-1], rel=1e-5)


def test_image_of_another_size_is_refused_where_nothing_is_resized(tmp_path: Path) -> None:
    picture(tmp_path / "images")
    with pytest.raises(DataError, match=r"0\.png is 8×6 and the model takes 4×4"):
        logits(model(tmp_path), tmp_path / "images", "mean=0,0,0", "std=1,1,1", "resize=none")


def test_images_of_many_sizes_need_one_to_be_resized_to(tmp_path: Path) -> None:
    picture(tmp_path / "images", 8, 6, "0.png")
    picture(tmp_path / "images", 9, 6, "1.png")
    path = model(tmp_path, TEXT.replace("4,4", "H,W"))
    with pytest.raises(DataError, match="say to which size"):
        logits(path, tmp_path / "images", "mean=0,0,0", "std=1,1,1")
    assert logits(path, tmp_path / "images", "mean=0,0,0", "std=1,1,1", "size=4x6").shape == (2, 3)


@pytest.mark.parametrize("in_place", [False, True])
def test_optimized_model_keeps_metadata_and_sidecar(in_place: bool, tmp_path: Path) -> None:
    text = (
        "g (float[N,3,4,4] input) => (float[N,3] logits) { c = Conv <pads = [1,1,1,1]> (input, w) "
        "b = BatchNormalization(c, scale, bias, mean, var) p = GlobalAveragePool(b) logits = Flatten(p) }"
    )
    arrays = {k: v.astype(np.float32) for k, v in (constants(w=(3, 3, 3, 3)) | norm(3)).items()}
    made = model_of(text, arrays)
    made.metadata_props["bnfold.classes"] = '["a", "b", "c"]'
    path = save_model(made, tmp_path / "model.onnx")
    write_sidecar(path, RGB)
    target = path if in_place else tmp_path / "out.onnx"
    bnfold.optimize(path, target, bnfold.OptimizeOptions(in_place=in_place))
    assert load_model(target).metadata_props["bnfold.classes"] == '["a", "b", "c"]'
    assert read_sidecar(target) == RGB
    picture(tmp_path / "images")
    assert bnfold.predict(target, str(tmp_path / "images")).predictions[0].name in "abc"


def test_model_without_a_sidecar_gives_none_away(tmp_path: Path) -> None:
    path = model(tmp_path)
    bnfold.optimize(path, tmp_path / "out.onnx")
    assert not sidecar_file(tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("in_memory", [False, True])
def test_sidecar_of_the_model_that_was_there_before_is_told_of(in_memory: bool, tmp_path: Path) -> None:
    path, target = tmp_path / "m.onnx", tmp_path / "out.onnx"
    model = model_of("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }", {})
    save_model(model, path)
    assert bnfold.optimize(model if in_memory else path, target).notes == ()
    write_sidecar(target, RGB)
    result = bnfold.optimize(model if in_memory else path, target)
    (note,) = result.notes
    assert note.startswith(f"{sidecar_file(target)} was there before")
    assert result.to_json()["notes"] == [note]
    assert read_sidecar(target) == RGB
    write_sidecar(path, RGB)
    assert bnfold.optimize(path, target).notes == ()
