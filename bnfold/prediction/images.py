"""Decode, resize and crop images into arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import DataError
from bnfold.extras import require
from bnfold.prediction.preprocessing import Preprocessing
from bnfold.training.image_folder import decode_image

if TYPE_CHECKING:
    from PIL.Image import Image

#: What an image may become, as much as Pillow opens without a warning: a strip of one pixel's width would fill memory.
_MOST_PIXELS = 89_478_485

#: An image that is not decoded yet: its file, its content, or nothing where a table has no value.
Encoded = Path | bytes | None


@dataclass(frozen=True)
class Failure:
    """A sample without a prediction.

    Attributes:
        sample: its name.
        error: why, in a sentence.
    """

    sample: str
    error: str


@dataclass(frozen=True)
class ImageForm:
    """What a decoded image must look like.

    Attributes:
        preprocessing: how to resize it, and in which order its channels go.
        size: height and width, where they are known.
    """

    preprocessing: Preprocessing
    size: tuple[int, int] | None

    def decode(self, encoded: Encoded, name: str) -> NDArray[np.uint8]:
        """One image as (C, H, W).

        Raises:
            DataError: it is no image, is damaged, or has another size than it must have.
            MissingExtraError: Pillow is not installed.
        """
        if encoded is None:
            raise DataError(f"{name} has no image")
        if isinstance(encoded, Path) and not encoded.is_file():  # a pipe or a device would be read for ever
            raise DataError(f"{name} is gone, or no regular file; remove it")
        image = decode_image(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, name)
        image = image.convert("L" if self.preprocessing.channels == "L" else "RGB")
        pixels = np.asarray(self._sized(image, name))
        if pixels.ndim == 2:
            return pixels[None]
        return pixels.transpose(2, 0, 1)[:: -1 if self.preprocessing.channels == "BGR" else 1]

    def _sized(self, image: Image, name: str) -> Image:
        if self.size is None:
            return image
        height, width = self.size
        if self.preprocessing.resize == "stretch":
            return self._resized(image, (width, height), name)
        if self.preprocessing.resize == "none":
            if image.size != (width, height):
                raise DataError(
                    f"{name} is {image.width}×{image.height} and the model takes {width}×{height}; "
                    "let it be resized (--preprocess resize=crop or resize=stretch)"
                )
            return image
        shorter, given = self.preprocessing.shorter_side, min(image.size)
        if shorter is not None:  # to the pixel what torchvision's Resize and CenterCrop do, for which such models are
            image = self._resized(image, (image.width * shorter // given, image.height * shorter // given), name)
            left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        else:  # what bnfold's training does
            scale = max(Fraction(width, image.width), Fraction(height, image.height))
            image = self._resized(
                image, (max(width, round(image.width * scale)), max(height, round(image.height * scale))), name
            )
            left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))

    def _resized(self, image: Image, size: tuple[int, int], name: str) -> Image:
        if image.size == size:
            return image
        if size[0] * size[1] > _MOST_PIXELS:
            raise DataError(f"{name} is {image.width}×{image.height} and would be resized to {size[0]}×{size[1]}, "
                            "which is larger than an image may be; cut it, or resize to less")  # fmt: skip
        return image.resize(
            size, getattr(require("PIL.Image", "images").Resampling, self.preprocessing.interpolation.upper())
        )


def decode_all(
    encoded: Sequence[Encoded], names: Sequence[str], place: str, form: ImageForm
) -> tuple[NDArray[np.uint8], list[int], list[Failure]]:
    """Decode images of one size.

    Args:
        encoded: the images.
        names: what to call each in the results.
        place: what holds those that are no files of their own, for errors.
        form: what comes out.

    Returns:
        The images (n, C, H, W), the positions that they had, and what could not be decoded.

    Raises:
        DataError: two images differ in size, and nothing says to which they are to be resized.
        MissingExtraError: Pillow is not installed.
    """
    images: list[NDArray[Any]] = []
    kept: list[int] = []
    failures: list[Failure] = []
    for position, (item, name) in enumerate(zip(encoded, names, strict=True)):
        try:
            image = form.decode(item, str(item) if isinstance(item, Path) else f"row {name} of {place}")
        except DataError as error:
            failures.append(Failure(name, str(error)))
            continue
        if images and image.shape != images[0].shape:
            raise DataError(
                f"{name} is {image.shape[2]}×{image.shape[1]} and {names[kept[0]]} "
                f"{images[0].shape[2]}×{images[0].shape[1]}; say to which size they are resized (--preprocess size=224)"
            )
        images.append(image)
        kept.append(position)
    return (np.stack(images) if images else np.empty((0, 0, 0, 0), np.uint8)), kept, failures
