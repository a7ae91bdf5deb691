"""Read images that are laid out as one folder a class."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

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

#: Images that are decoded at once, at most.
_READERS = 8


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
    listing = list_image_folder(folder)
    images = read_images([*listing.train_files, *listing.test_files], image_size)
    count = len(listing.train_files)
    return DataSet(
        f"imagefolder:{folder.absolute()}",
        Split(images[:count], listing.train_labels),
        Split(images[count:], listing.test_labels),
        listing.classes,
        Normalization.of(images[:count], 255.0),
        mirrored=True,
    )


@dataclass(frozen=True, eq=False)
class ImageListing:
    """The files of a data set of images, none of them read yet.

    Attributes:
        train_files: images to learn from.
        train_labels: the class of each.
        test_files: images held out.
        test_labels: the class of each.
        classes: the name of each class, in the order of the labels.
    """

    train_files: tuple[Path, ...]
    train_labels: Labels
    test_files: tuple[Path, ...]
    test_labels: Labels
    classes: tuple[str, ...]


def list_image_folder(folder: Path) -> ImageListing:
    """List what :func:`load_image_folder` reads.

    Raises:
        DataError: the folder is not laid out so, or a class is empty.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; {_LAYOUT}")
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
    else:
        classes = _classes(folder)
        files = _files(folder, classes)
        train_indices, test_indices = stratified_split(_labels(files, classes), classes, str(folder))
        train_files, test_files = ([files[index] for index in part] for part in (train_indices, test_indices))
    return ImageListing(
        tuple(train_files),
        _labels(train_files, classes),
        tuple(test_files),
        _labels(test_files, classes),
        tuple(classes),
    )


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
        DataError: a file is not an image, is damaged, has more than 8 bits a channel, or differs in size; or all are
            more than this machine's memory holds.
        MissingExtraError: Pillow is not installed.
    """
    if image_size is not None:  # before an image is blown up to it
        _check_memory(len(files), (image_size, image_size))
    size = _read_image(files[0], image_size).size
    _check_memory(len(files), size)
    images = np.empty((len(files), 3, size[1], size[0]), dtype=np.uint8)

    def read(index: int) -> bool:
        """Put one image in its place, and tell whether it is gray."""
        image = _read_image(files[index], image_size)
        if image.size != size:
            raise DataError(
                f"{files[index]} is {image.width}×{image.height} and {files[0]} {size[0]}×{size[1]}; "
                "give an image size to which all are resized"
            )
        images[index] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        return image.mode == "L"

    # Threads, since Pillow lets go of the interpreter's lock while it decodes.
    pool = ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1))
    try:
        gray = all(list(pool.map(read, range(len(files)))))
    finally:
        pool.shutdown(cancel_futures=True)
    return np.ascontiguousarray(images[:, :1]) if gray else images


def _check_memory(count: int, size: tuple[int, int]) -> None:
    """Refuse images that the machine's memory cannot hold: it would swap, or kill the process."""
    needed, there = 3 * count * size[0] * size[1], os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise DataError(
            f"{count:,} images of {size[0]}×{size[1]} pixels take {needed / 2**30:,.0f} GiB, and this machine has "
            f"{there / 2**30:,.0f} GiB of memory; choose a smaller image size, or fewer images"
        )


def _read_image(file: Path, image_size: int | None) -> Image:
    image = decode_image(file, str(file))
    return image if image_size is None else _resized(image, image_size)


def decode_image(source: Path | BinaryIO, name: str) -> Image:
    """Decode an image file as 8-bit gray (mode L) or RGB.

    Args:
        source: the file, or its content.
        name: what to call it in an error.

    Raises:
        DataError: it is not an image, is damaged, or has more than 8 bits a channel.
        MissingExtraError: Pillow is not installed.
    """
    pillow: Any = require("PIL.Image", "images")
    try:
        with pillow.open(source) as stream:
            if stream.format == "EPS":  # Pillow would have Ghostscript run it
                raise DataError(f"{name} is a program in PostScript; convert it to an image")
            if stream.mode in _WIDE_MODES or stream.mode.startswith("I;"):
                raise DataError(f"{name} has more than 8 bits a channel; convert it to an 8-bit image")
            image: Image = stream.convert("L" if stream.mode in _GRAY_MODES else "RGB")
            return image
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, zlib.error) as error:
        raise DataError(f"{name} is not an image, or is damaged; mend or remove it") from error
    except pillow.DecompressionBombError as error:
        raise DataError(f"{name} is larger than an image may be; remove it") from error


def _resized(image: Image, side: int) -> Image:
    """``image`` with its shorter side scaled to ``side``, and the middle square of it."""
    shorter = min(image.size)
    width = max(side, round(image.width * side / shorter))
    height = max(side, round(image.height * side / shorter))
    if (width, height) != image.size:
        image = image.resize((width, height), require("PIL.Image", "images").Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))
