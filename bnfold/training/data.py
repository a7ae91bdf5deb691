"""Load a data set named by a spec: ``digits``, ``cifar10:DIR``, ``imagefolder:DIR`` or ``npz:FILE``.

Whatever the source, the result is a :class:`~bnfold.training.dataset.DataSet` of raw images and labels, the
same on every call.
"""

from __future__ import annotations

import difflib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import DataError
from bnfold.extras import require
from bnfold.training.dataset import DataSet, Labels, Normalization, Split, stratified_split
from bnfold.training.image_folder import load_image_folder

_CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_CIFAR10_RECORD = 1 + 3 * 32 * 32

_SPECS = "digits, cifar10:DIR, imagefolder:DIR or npz:FILE"
_NPZ_LAYOUT = "x_train, y_train, x_test and y_test, or x and y"


def load_data(spec: str, *, image_size: int | None = None) -> DataSet:
    """Load a data set.

    Args:
        spec: ``digits`` (scikit-learn's 1,797 images of 8×8 pixels), ``cifar10:DIR`` (the binary version),
            ``imagefolder:DIR`` (one folder a class) or ``npz:FILE`` (numpy arrays).
        image_size: side to which the images of an ``imagefolder`` are resized and cropped; without it they
            must all have one size.

    Raises:
        DataError: the spec is unknown, or what it names is missing, damaged or laid out otherwise.
        MissingExtraError: the package that reads it is not installed.
    """
    kind, _, location = spec.partition(":")
    if kind == "digits" and not location:
        data = _digits()
    elif kind in ("cifar10", "imagefolder", "npz") and location:
        path = Path(location).expanduser()
        if kind == "cifar10":
            data = _cifar10(path)
        elif kind == "npz":
            data = _npz(path)
        else:
            data = load_image_folder(path, image_size)
    else:
        close = difflib.get_close_matches(kind, ("digits", "cifar10", "imagefolder", "npz"), n=1)
        hint = f"; did you mean {close[0]}?" if close and close[0] != kind else ""
        raise DataError(f"there is no data set {spec!r}; use {_SPECS}{hint}")
    if image_size is not None and kind != "imagefolder":
        raise DataError(f"an image size can be chosen for imagefolder data only, not for {spec}")
    return data


def resolved_spec(spec: str) -> str:
    """``spec`` with its folder or file as an absolute path, so that it means the same from another folder."""
    kind, colon, location = spec.partition(":")
    return f"{kind}:{Path(location).expanduser().absolute()}" if colon and location else spec


def _digits() -> DataSet:
    """Scikit-learn's copy of the test part of UCI's *Optical Recognition of Handwritten Digits*."""
    bunch = require("sklearn.datasets", "train").load_digits()
    images = bunch.images.astype(np.uint8)[:, None]  # whole numbers from 0 to 16
    labels = bunch.target.astype(np.int64)
    classes = tuple(str(name) for name in bunch.target_names)
    return _split_and_normalize("digits", images, labels, classes, scale=16.0, mirrored=False)


def _split_and_normalize(
    spec: str, images: NDArray[Any], labels: Labels, classes: tuple[str, ...], *, scale: float, mirrored: bool
) -> DataSet:
    whole = Split(images, labels)
    train_indices, test_indices = stratified_split(labels, classes, spec)
    return _normalized(
        spec, whole.take(train_indices), whole.take(test_indices), classes, scale=scale, mirrored=mirrored
    )


def _normalized(
    spec: str, train: Split, test: Split, classes: tuple[str, ...], *, scale: float, mirrored: bool
) -> DataSet:
    return DataSet(spec, train, test, classes, Normalization.of(train.images, scale), mirrored)


def _cifar10(folder: Path) -> DataSet:
    """The binary version: records of one label byte and 3,072 bytes of pixels, channel by channel."""
    if (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; cifar10:DIR needs the folder that holds data_batch_1.bin")
    batches = sorted(folder.glob("data_batch_*.bin"))
    test_file = folder / "test_batch.bin"
    if not batches or not test_file.is_file():
        if (folder / "data_batch_1").exists():
            raise DataError(
                f"{folder} holds the pickled version of CIFAR-10, which is not safe to load; "
                "get the binary version (cifar-10-binary.tar.gz)"
            )
        missing = "test_batch.bin" if batches else "data_batch_1.bin"
        raise DataError(
            f"{folder} has no {missing}; cifar10:DIR needs data_batch_1.bin to data_batch_5.bin and test_batch.bin"
        )
    parts = [_cifar10_batch(file) for file in batches]
    train = Split(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))
    spec = f"cifar10:{folder.absolute()}"
    return _normalized(spec, train, _cifar10_batch(test_file), _CIFAR10_CLASSES, scale=255.0, mirrored=True)


def _cifar10_batch(file: Path) -> Split:
    try:
        content = np.fromfile(file, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    if not len(content) or len(content) % _CIFAR10_RECORD:
        raise DataError(
            f"{file} holds {len(content):,} bytes, not a whole number of {_CIFAR10_RECORD:,}-byte records; "
            "download it again"
        )
    records = content.reshape(-1, _CIFAR10_RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() > 9:
        first = int(np.argmax(labels > 9))
        raise DataError(f"{file}: record {first} has label {labels[first]}, outside 0 to 9; download it again")
    return Split(records[:, 1:].reshape(-1, 3, 32, 32), labels)


def _npz(file: Path) -> DataSet:
    arrays = _read_npz(file)
    spec = f"npz:{file.absolute()}"
    names = arrays.get("classes")
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        train = _npz_split(file, arrays, "x_train", "y_train")
        test = _npz_split(file, arrays, "x_test", "y_test")
        if train.images.shape[1:] != test.images.shape[1:] or train.images.dtype != test.images.dtype:
            raise DataError(
                f"{file}: x_train holds {_kind_of(train.images)} and x_test {_kind_of(test.images)}; they must agree"
            )
        classes = _npz_classes(file, names, train.labels)
        if test.labels.max() >= len(classes):
            raise DataError(
                f"{file}: y_test has label {test.labels.max()}, outside the {len(classes)} classes of y_train"
            )
        return _normalized(spec, train, test, classes, scale=_npz_scale(train), mirrored=False)
    if {"x", "y"} <= arrays.keys():
        whole = _npz_split(file, arrays, "x", "y")
        classes = _npz_classes(file, names, whole.labels)
        return _split_and_normalize(spec, whole.images, whole.labels, classes, scale=_npz_scale(whole), mirrored=False)
    held = ", ".join(arrays) or "nothing"
    raise DataError(f"{file} holds {held}; npz:FILE needs arrays named {_NPZ_LAYOUT}")


def _read_npz(file: Path) -> Mapping[str, NDArray[Any]]:
    if not file.is_file():
        what = "is not a file" if file.exists() else "does not exist"
        raise DataError(f"{file} {what}; npz:FILE needs a numpy archive with {_NPZ_LAYOUT}")
    try:
        with file.open("rb") as stream:  # ours to close, whatever numpy makes of it
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.lib.npyio.NpzFile):
                return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            raise DataError(
                f"{file} is not an archive of plain arrays, and loading pickled objects is not safe; "
                "write numbers with numpy.savez"
            ) from error
        raise DataError(f"{file} is not a numpy archive, or is damaged; write it with numpy.savez") from error
    except MemoryError as error:
        raise DataError(f"{file} is damaged, or holds more than fits into memory: {error}") from error
    raise DataError(f"{file} is a single array, not an archive; write it with numpy.savez")


def _npz_split(file: Path, arrays: Mapping[str, NDArray[Any]], images_name: str, labels_name: str) -> Split:
    images = _npz_images(file, images_name, arrays[images_name])
    labels = arrays[labels_name]
    if labels.ndim == 2 and labels.shape[1] == 1:  # a column, as some archives have it
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{file}: {labels_name} is {labels.dtype} of shape {labels.shape}; labels are integers of shape (N,)"
        )
    if len(labels) != len(images):
        raise DataError(f"{file}: {images_name} holds {len(images)} images and {labels_name} {len(labels)} labels")
    if not len(labels):
        raise DataError(f"{file}: {images_name} is empty")
    if labels.min() < 0:
        raise DataError(f"{file}: {labels_name} has label {labels.min()}; labels count from 0")
    return Split(images, labels.astype(np.int64))


def _npz_images(file: Path, name: str, array: NDArray[Any]) -> NDArray[Any]:
    """The images as uint8 or float32 (N, C, H, W), from NCHW, NHWC or NHW."""
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{file}: {name} is {array.dtype}; images are uint8 or floating point")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3, 4) and array.shape[1] not in (1, 3, 4):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4:
        raise DataError(f"{file}: {name} has shape {array.shape}; images are (N, C, H, W), (N, H, W, C) or (N, H, W)")
    if 0 in array.shape[1:]:
        raise DataError(f"{file}: {name} has shape {array.shape}, which leaves nothing in an image")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):  # what overflows is told of in the next line
        images = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(images).all():
        raise DataError(f"{file}: {name} holds values that are not finite float32 numbers")
    return images


def _npz_scale(split: Split) -> float:
    return 255.0 if split.images.dtype == np.uint8 else 1.0


def _npz_classes(file: Path, names: NDArray[Any] | None, train_labels: Labels) -> tuple[str, ...]:
    """The names of the classes; each class must have a training image."""
    present = np.unique(train_labels)
    if names is not None:
        if names.ndim != 1 or names.dtype.kind != "U":
            raise DataError(f"{file}: classes is {names.dtype} of shape {names.shape}; it is one string a class")
        if present[-1] >= len(names):
            raise DataError(f"{file}: label {present[-1]} is outside the {len(names)} names in classes")
    count = int(present[-1]) + 1 if names is None else len(names)
    if len(present) != count:
        empty = int(np.flatnonzero(np.append(present, count) != np.arange(len(present) + 1))[0])
        why = f"labels go up to {count - 1}" if names is None else f"classes holds {count} names"
        raise DataError(f"{file}: no training image has label {empty}, though {why}; labels count from 0 without gaps")
    return tuple(str(index) for index in range(count)) if names is None else tuple(str(name) for name in names)


def _kind_of(images: NDArray[Any]) -> str:
    return f"{images.dtype} images of shape {images.shape[1:]}"
