"""Read images that are laid out as one folder a class."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import DataError
from bnfold.extras import require
from bnfold.training.dataset import DataSet, Labels, Normalization, Split, stratified_split

if TYPE_CHECKING:
    from PIL.Image import Image

#: File names that are taken for images; others in a class's folder are left alone.
IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))

_TEST_FOLDERS = ("test", "val", "valid", "validation")
_LAYOUT = "imagefolder:DIR needs DIR/train/CLASS/*.png and DIR/test/CLASS/*.png, or DIR/CLASS/*.png"
_GRAY_MODES = frozenset(("1", "L", "LA"))
_WIDE_MODES = frozenset(("I", "F"))


def load_image_folder(folder: Path, image_size: int | None) -> DataSet:
    """Load ``DIR/train/CLASS/*`` with ``DIR/test`` (or ``val``), or split ``DIR/CLASS/*`` by class.

    Images are gray if all are, and RGB otherwise.

    Args:
        folder: the data set's folder.
        image_size: side to which each image is resized (the shorter side, bilinear) and cropped (the middle);
            without it, all images must have one size.

    Raises:
        DataError: the folder is not laid out so, a class is empty, or an image cannot be read.
        MissingExtraError: Pillow is not installed.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; {_LAYOUT}")
    spec = f"imagefolder:{folder.absolute()}"
    if (folder / "train").is_dir():
        test_folder = next((folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()), None)
        if test_folder is None:
            raise DataError(f"{folder} has train and neither test nor val; {_LAYOUT}")
        classes = _classes(folder / "train")
        strangers = sorted(set(_classes(test_folder)) - set(classes))
        if strangers:
            raise DataError(f"{test_folder / strangers[0]}: there is no class of that name in {folder / 'train'}")
        train_files = _files(folder / "train", classes)
        test_files = _files(test_folder, _classes(test_folder))
        images = read_images([*train_files, *test_files], image_size)
        labels = _labels([*train_files, *test_files], classes)
        count = len(train_files)
        train, test = Split(images[:count], labels[:count]), Split(images[count:], labels[count:])
    else:
        classes = _classes(folder)
        files = _files(folder, classes)
        labels = _labels(files, classes)
        train_indices, test_indices = stratified_split(labels, classes, str(folder))
        whole = Split(read_images(files, image_size), labels)
        train, test = whole.take(train_indices), whole.take(test_indices)
    return DataSet(spec, train, test, tuple(classes), Normalization.of(train.images, 255.0), mirrored=True)


def _classes(folder: Path) -> list[str]:
    """The names of the class folders, sorted."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder} holds no class folders; {_LAYOUT}")
    return names


def _files(folder: Path, classes: Sequence[str]) -> list[Path]:
    """The image files of each class, class by class, sorted."""
    files: list[Path] = []
    for name in classes:
        members = sorted(
            entry
            for entry in (folder / name).iterdir()
            if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")
        )
        if not members:
            raise DataError(f"{folder / name} holds no images; remove the folder or fill it")
        files += members
    return files


def _labels(files: Sequence[Path], classes: Sequence[str]) -> Labels:
    """The class of each file, which is the name of its folder."""
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number[file.parent.name] for file in files], dtype=np.int64)


def read_images(files: Sequence[Path], image_size: int | None = None) -> NDArray[np.uint8]:
    """Read image files as uint8 (N, C, H, W): C is 1 if all are gray, and 3 (RGB) otherwise.

    Args:
        files: at least one image file.
        image_size: see :func:`load_image_folder`.

    Raises:
        DataError: a file is not an image, is damaged, has more than 8 bits a channel, or differs in size.
        MissingExtraError: Pillow is not installed.
    """
    opened = [_read_image(file, image_size) for file in files]
    gray = all(image.mode in _GRAY_MODES for image in opened)
    size = opened[0].size
    images = np.empty((len(files), 1 if gray else 3, size[1], size[0]), dtype=np.uint8)
    for index, image in enumerate(opened):
        if image.size != size:
            raise DataError(
                f"{files[index]} is {image.width}×{image.height} and {files[0]} {size[0]}×{size[1]}; "
                "give an image size to which all are resized"
            )
        pixels = np.asarray(image.convert("L" if gray else "RGB"))
        images[index] = pixels[None] if gray else pixels.transpose(2, 0, 1)
    return images


def _read_image(file: Path, image_size: int | None) -> Image:
    pillow: Any = require("PIL.Image", "train")
    try:
        with pillow.open(file) as stream:
            if stream.mode in _WIDE_MODES or stream.mode.startswith("I;"):
                raise DataError(f"{file} has more than 8 bits a channel; convert it to an 8-bit image")
            mode = stream.mode
            image: Image = stream.convert("L" if mode in _GRAY_MODES else "RGB")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{file} is not an image, or is damaged; mend or remove it") from error
    except pillow.DecompressionBombError as error:
        raise DataError(f"{file} is larger than an image may be; remove it") from error
    return image if image_size is None else _resized(image, image_size)


def _resized(image: Image, side: int) -> Image:
    """``image`` with its shorter side scaled to ``side``, and the middle square of it."""
    shorter = min(image.size)
    width = max(side, round(image.width * side / shorter))
    height = max(side, round(image.height * side / shorter))
    if (width, height) != image.size:
        image = image.resize((width, height), require("PIL.Image", "train").Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))
