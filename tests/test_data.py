"""Data sets load to the same values each time; what is not laid out as said is refused in one sentence."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bnfold.errors import DataError
from bnfold.training.data import load_data, resolved_spec
from bnfold.training.dataset import Normalization, stratified_split, top1_accuracy


def test_digits_are_split_by_class_and_never_otherwise() -> None:
    data, again = load_data("digits"), load_data("digits")
    assert len(data.train) + len(data.test) == 1797
    assert data.input_shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert data.normalization.scale == 16
    assert not data.mirrored
    assert data.fingerprint() == again.fingerprint()
    whole = np.bincount(data.train.labels) + np.bincount(data.test.labels)
    assert np.abs(np.bincount(data.test.labels) - 0.2 * whole).max() <= 0.5


def test_normalized_training_images_have_mean_0_and_variance_1() -> None:
    data = load_data("digits")
    inputs = data.inputs(data.train)
    assert inputs.dtype == np.float32
    assert abs(inputs.mean(dtype=np.float64)) < 1e-6
    assert abs(inputs.std(dtype=np.float64) - 1) < 1e-6


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalization_is_computed_channel_by_channel(dtype: Any) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (20, 3, 5, 4)).astype(dtype)
    raw[:, 1] = 7  # a constant channel is not divided by zero
    normalization = Normalization.of(raw, 255.0)
    exact = raw.astype(np.float64) / 255
    np.testing.assert_allclose(normalization.mean, exact.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(normalization.std[::2], exact.std((0, 2, 3))[::2], rtol=1e-12)
    assert normalization.std[1] == 1
    assert Normalization.from_json(normalization.to_json()) == normalization
    expected = (exact - exact.mean((0, 2, 3), keepdims=True)) / np.reshape(normalization.std, (1, 3, 1, 1))
    np.testing.assert_allclose(normalization.apply(raw), expected, atol=1e-5)


def test_a_split_keeps_every_sample_once_and_tests_every_class() -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(4), [2, 3, 10, 50]))
    train, test = stratified_split(labels, ["a", "b", "c", "d"], "here")
    assert sorted([*train, *test]) == list(range(65))
    assert np.bincount(labels[test]).tolist() == [1, 1, 2, 10]


def test_a_class_of_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match="class 'b' has 1 "):
        stratified_split(np.array([0, 0, 1]), ["a", "b"], "here")


def _cifar(folder: Path, *, label: int = 3) -> Path:
    random = np.random.default_rng(0)
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        records = random.integers(0, 256, (5, 3073)).astype(np.uint8)
        records[:, 0] = np.arange(5)
        records[3, 0] = label
        (folder / name).write_bytes(records.tobytes())
    return folder


def test_cifar10_binary_batches_are_joined(tmp_path: Path) -> None:
    data = load_data(f"cifar10:{_cifar(tmp_path)}")
    assert data.train.images.shape == (10, 3, 32, 32)
    assert len(data.test) == 5
    assert data.classes[3] == "cat"
    assert data.mirrored
    first = np.frombuffer((tmp_path / "data_batch_1.bin").read_bytes(), np.uint8)[1:3073]
    np.testing.assert_array_equal(data.train.images[0].ravel(), first)


def _save_image(path: Path, value: int = 9, *, size: tuple[int, int] = (6, 5), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "I;16") else (value,) * len(mode)).save(path)


def _image_folder(folder: Path, parts: tuple[str, ...], **kwargs: Any) -> Path:
    for part in parts:
        for label, name in enumerate(("cat", "dog")):
            for index in range(5):
                _save_image(folder / part / name / f"{index}.png", 10 * label + index, **kwargs)
    return folder


@pytest.mark.parametrize(("parts", "train", "test"), [(("train", "val"), 10, 10), (("",), 8, 2)])
def test_an_image_folder_is_read_with_and_without_its_own_split(
    tmp_path: Path, parts: tuple[str, ...], train: int, test: int
) -> None:
    data = load_data(f"imagefolder:{_image_folder(tmp_path, parts)}")
    assert (len(data.train), len(data.test)) == (train, test)
    assert data.classes == ("cat", "dog")
    assert data.input_shape == (1, 5, 6)
    np.testing.assert_array_equal(data.train.images.max((1, 2, 3)) // 10, data.train.labels)


def test_images_are_gray_only_if_all_are(tmp_path: Path) -> None:
    _image_folder(tmp_path, ("",))
    _save_image(tmp_path / "dog" / "color.png", 50, mode="RGB")
    assert load_data(f"imagefolder:{tmp_path}").input_shape == (3, 5, 6)


def test_images_are_resized_and_cropped_to_one_size(tmp_path: Path) -> None:
    _image_folder(tmp_path, ("",))
    _save_image(tmp_path / "dog" / "wide.png", size=(40, 10))
    assert load_data(f"imagefolder:{tmp_path}", image_size=4).input_shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((20, 6, 7), np.uint8, (1, 6, 7)),
        ((20, 3, 6, 7), np.float32, (3, 6, 7)),
        ((20, 6, 7, 3), np.uint8, (3, 6, 7)),
        ((20, 8, 6, 7), np.float64, (8, 6, 7)),
        ((20, 1, 6, 1), np.uint8, (1, 6, 1)),
    ],
)
def test_npz_images_come_in_three_layouts(
    tmp_path: Path, shape: tuple[int, ...], dtype: Any, expected: tuple[int, ...]
) -> None:
    images = np.random.default_rng(0).random(shape).astype(dtype)
    np.savez(tmp_path / "d.npz", x=images, y=np.arange(20) % 2)
    data = load_data(f"npz:{tmp_path / 'd.npz'}")
    assert data.input_shape == expected
    assert data.train.images.dtype == (np.uint8 if dtype == np.uint8 else np.float32)


def test_npz_with_its_own_split_and_class_names(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 2, 2), np.uint8), np.array([0, 1, 0, 1], np.uint8)
    np.savez(
        tmp_path / "d.npz", x_train=images, y_train=labels[:, None], x_test=images[:2], y_test=labels[:2],
        classes=np.array(["no", "yes"]),
    )  # fmt: skip
    data = load_data(f"npz:{tmp_path / 'd.npz'}")
    assert (len(data.train), len(data.test), data.classes) == (4, 2, ("no", "yes"))
    assert data.train.labels.dtype == np.int64


def _bad_npz(**arrays: Any) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        np.savez(folder / "d.npz", **arrays)
        return f"npz:{folder / 'd.npz'}"

    return make


def _bad_bytes(content: bytes) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "d.npz").write_bytes(content)
        return f"npz:{folder / 'd.npz'}"

    return make


def _bad_npy(folder: Path) -> str:
    np.save(folder / "d.npy", np.zeros(3))
    return f"npz:{folder / 'd.npy'}"


def _truncated_npz(folder: Path) -> str:
    np.savez(folder / "whole.npz", x=_X, y=_Y)
    (folder / "d.npz").write_bytes((folder / "whole.npz").read_bytes()[:-40])
    return f"npz:{folder / 'd.npz'}"


def _npz_that_claims_too_much(folder: Path) -> str:
    with zipfile.ZipFile(folder / "d.npz", "w") as archive:
        for name, shape in (("x", (1 << 30, 1 << 20)), ("y", (1 << 30,))):
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return f"npz:{folder / 'd.npz'}"


def _folder(*steps: Callable[[Path], object], kind: str = "imagefolder") -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        for step in steps:
            step(folder)
        return f"{kind}:{folder}"

    return make


_X, _Y = np.zeros((6, 4, 4), np.uint8), np.array([0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: "digit", "did you mean digits"),
        (lambda _: "digits:x", "there is no data set"),
        (lambda _: "npz:", "there is no data set"),
        (lambda folder: f"npz:{folder}/none.npz", "does not exist"),
        (_bad_bytes(b"hello"), "not a numpy archive"),
        (_bad_bytes(b""), "not a numpy archive"),
        (_bad_npy, "single array"),
        (_truncated_npz, "not a numpy archive"),
        (_npz_that_claims_too_much, "holds more than fits into memory"),
        (_bad_npz(x=np.array([{}], dtype=object), y=_Y), "plain arrays"),
        (_bad_npz(a=_X), "holds a; npz:FILE needs"),
        (_bad_npz(x=_X, y=_Y[:5]), "6 images and y 5 labels"),
        (_bad_npz(x=_X, y=_Y.astype(float)), "labels are integers"),
        (_bad_npz(x=_X, y=_Y - 1), "label -1"),
        (_bad_npz(x=_X, y=_Y + 1), "no training image has label 0"),
        (_bad_npz(x=_X, y=_Y * 10**12), "no training image has label 1,"),
        (_bad_npz(x=_X, y=_Y, classes=np.array(["a"])), "outside the 1 names"),
        (_bad_npz(x=_X, y=_Y, classes=np.arange(2)), "one string a class"),
        (_bad_npz(x=_X[:, 0], y=_Y), "has shape"),
        (_bad_npz(x=_X[:, :0], y=_Y), "leaves nothing"),
        (_bad_npz(x=_X[:0], y=_Y[:0]), "is empty"),
        (_bad_npz(x=_X.astype(np.int64), y=_Y), "uint8 or floating point"),
        (_bad_npz(x=np.where(_X == 0, np.nan, 0.0), y=_Y), "not finite"),
        (_bad_npz(x=_X + 1e300, y=_Y), "not finite"),
        (_bad_npz(x_train=_X, y_train=_Y, x_test=_X[:, :2], y_test=_Y), "must agree"),
        (_bad_npz(x_train=_X, y_train=_Y, x_test=_X, y_test=_Y + 1), "outside the 2 classes"),
        (lambda folder: f"cifar10:{folder}/none", "not a folder"),
        (lambda folder: f"cifar10:{folder}", "has no data_batch_1.bin"),
        (_folder(lambda f: (f / "data_batch_1").touch(), kind="cifar10"), "pickled version"),
        (_folder(_cifar, lambda f: (f / "test_batch.bin").unlink(), kind="cifar10"), "no test_batch.bin"),
        (_folder(_cifar, lambda f: (f / "test_batch.bin").write_bytes(b"12"), kind="cifar10"), "2 bytes"),
        (_folder(lambda f: _cifar(f, label=10), kind="cifar10"), "record 3 has label 10"),
        (lambda folder: f"imagefolder:{folder}/none", "not a folder"),
        (_folder(), "no class folders"),
        (_folder(lambda f: _image_folder(f, ("train",))), "neither test nor val"),
        (_folder(lambda f: _image_folder(f, ("",)), lambda f: (f / "emu").mkdir()), "emu holds no images"),
        (
            _folder(lambda f: _image_folder(f, ("train", "test")), lambda f: _save_image(f / "test/emu/1.png")),
            "emu: there is no class",
        ),
        (_folder(lambda f: _image_folder(f, ("",)), lambda f: (f / "cat/a.png").write_text("x")), "a.png is not"),
        (
            _folder(
                lambda f: _image_folder(f, ("",)),
                lambda f: (f / "cat/a.png").write_bytes((f / "cat/0.png").read_bytes()[:-30]),
            ),
            "a.png is not an image, or is damaged",
        ),
        (
            _folder(lambda f: _image_folder(f, ("",)), lambda f: _save_image(f / "cat/a.png", size=(9, 9))),
            "9×9.*6×5.*image size",
        ),
        (
            _folder(lambda f: _image_folder(f, ("",)), lambda f: _save_image(f / "cat/a.png", mode="I;16")),
            "8 bits",
        ),
    ],
)  # fmt: skip
def test_data_that_is_not_as_said_is_refused(tmp_path: Path, make: Callable[[Path], str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(make(tmp_path))


def test_images_that_memory_cannot_hold_are_refused_before_one_is_resized(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images of 1000000×1000000 pixels take .* smaller image size"):
        load_data(f"imagefolder:{_image_folder(tmp_path, ('',))}", image_size=1_000_000)


def test_an_image_size_is_for_image_folders_only() -> None:
    with pytest.raises(DataError, match="imagefolder data only"):
        load_data("digits", image_size=8)


def test_a_resolved_spec_means_the_same_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolved_spec("npz:a.npz") == f"npz:{tmp_path}/a.npz"
    assert resolved_spec("digits") == "digits"


@pytest.mark.parametrize(
    ("logits", "labels", "accuracy"),
    [
        ([[0, 1], [1, 0]], [1, 0], 1.0),
        ([[0, 1], [1, 0]], [1, 1], 0.5),
        ([[np.nan, 1], [1, 0]], [0, 0], 0.5),
    ],
)
def test_accuracy_is_the_share_of_largest_logits(logits: list[list[float]], labels: list[int], accuracy: float) -> None:
    assert top1_accuracy(np.array(logits), np.array(labels)) == accuracy


@pytest.mark.parametrize(("shape", "count"), [((3, 2), 2), ((3,), 3), ((0, 2), 0)])
def test_logits_and_labels_that_do_not_belong_together_are_refused(shape: tuple[int, ...], count: int) -> None:
    with pytest.raises(DataError, match="do not belong together"):
        top1_accuracy(np.zeros(shape), np.zeros(count, int))
