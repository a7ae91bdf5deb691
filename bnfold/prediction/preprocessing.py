"""How an image becomes a model's input, as a value and as a file beside the model.

``x = (raw / scale − mean) / std``, channel by channel, after the image was resized and cropped. A model that bnfold
exported carries mean, std and labels in its metadata. The *sidecar* ``MODEL.preprocessing.json`` says the same for any
model, and more. What has priority, highest first: what the caller says, the sidecar, the metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from bnfold.errors import DataError, ModelError, OptionError
from bnfold.files import StrPath, write_json
from bnfold.sidecar import sidecar_file
from bnfold.training.dataset import Normalization

ResizePolicy = Literal["crop", "stretch", "none"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Channels = Literal["RGB", "BGR", "L"]
Layout = Literal["NCHW", "NHWC"]

_FORMAT = 1


@dataclass(frozen=True)
class Preprocessing:
    """How raw images become a model's input.

    Attributes:
        size: height and width of the input; None leaves them to the model's own shape.
        resize: ``crop`` scales the shorter side to ``shorter_side`` and cuts out the middle; ``stretch`` scales both
            sides to ``size``; ``none`` takes images of the right size only.
        shorter_side: for ``crop``; None is the smallest that leaves no gap.
        interpolation: Pillow's name of the filter.
        channels: order of the channels of images that are decoded here; None where images cannot be decoded. Arrays
            are taken in the order that they have.
        layout: of the model's input.
        scale: what an 8-bit pixel is divided by: 255 for a mean and std of numbers from 0 to 1, 1 for those of
            pixels.
        mean: one value a channel.
        std: likewise.
        labels: names of the classes; empty where they are not known.
        origin: where this was read, for errors.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None
    resize: ResizePolicy = "crop"
    shorter_side: int | None = None
    interpolation: Interpolation = "bilinear"
    channels: Channels | None = "RGB"
    layout: Layout = "NCHW"
    scale: float = 255.0
    labels: tuple[str, ...] = ()
    origin: str = field(default="the preprocessing", compare=False)

    def __post_init__(self) -> None:
        wrong = next(_contradictions(self), None)
        if wrong is not None:
            raise DataError(f"{self.origin}: {wrong}")

    def to_json(self) -> dict[str, Any]:
        """As a plain document; :meth:`from_json` reads it back."""
        return {
            "format": _FORMAT,
            "size": None if self.size is None else list(self.size),
            "resize": self.resize,
            "shorter_side": self.shorter_side,
            "interpolation": self.interpolation,
            "channels": self.channels,
            "layout": self.layout,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
            "labels": list(self.labels),
        }

    @staticmethod
    def from_json(document: Any, origin: str) -> Preprocessing:
        """Read what :meth:`to_json` wrote; all but ``mean`` and ``std`` may be left out.

        Raises:
            DataError: the document is not of that form.
        """
        if not isinstance(document, dict):
            raise DataError(f"{origin} is not an object of JSON; see docs/predict.md for what it holds")
        if document.get("format", _FORMAT) != _FORMAT:
            raise DataError(f"{origin} is of format {document['format']}; install a newer bnfold")
        known = {member.name for member in fields(Preprocessing)} - {"origin"} | {"format"}
        strange = sorted(set(document) - known)
        if strange:
            raise DataError(f"{origin} has {strange[0]!r}, which is none of {', '.join(sorted(known))}")
        try:
            size = document.get("size")
            values = {name: value for name, value in document.items() if name != "format"}
            values["mean"] = tuple(map(float, _numbers(document["mean"])))
            values["std"] = tuple(map(float, _numbers(document["std"])))
            values["size"] = None if size is None else _size(size)
            (values["scale"],) = map(float, _numbers([document.get("scale", 255.0)]))
            values["labels"] = _names(document.get("labels") or [])
            return Preprocessing(**values, origin=origin)
        except KeyError as error:
            raise DataError(f"{origin} has no {error.args[0]}; mean and std are needed") from error
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            raise DataError(f"{origin} is damaged: {error}; see docs/predict.md for what it holds") from error

    def normalization(self, full: float) -> Normalization:
        """What to do with raw values of which ``full`` stands for white: 255 in 8-bit images, 16 in the digits."""
        return Normalization(full * self.scale / 255.0, self.mean, self.std)


def _contradictions(value: Preprocessing) -> Any:
    """What is wrong with a preprocessing, as the ends of sentences."""
    if not value.mean or len(value.mean) != len(value.std):
        yield f"mean has {len(value.mean)} values and std {len(value.std)}; give one of each for each channel"
    if not all(math.isfinite(number) for number in value.mean):
        yield "mean is not finite"
    if not all(math.isfinite(number) and number > 0 for number in value.std):
        yield "std must be above 0"
    if not (math.isfinite(value.scale) and value.scale > 0):
        yield f"scale is {value.scale}; it must be above 0"
    for name, kinds in (("resize", ResizePolicy), ("interpolation", Interpolation), ("layout", Layout)):
        if getattr(value, name) not in get_args(kinds):
            yield f"{name} is {getattr(value, name)!r}; it is one of {', '.join(get_args(kinds))}"
    if value.channels is not None:
        if value.channels not in get_args(Channels):
            yield f"channels is {value.channels!r}; it is one of {', '.join(get_args(Channels))}"
        if len(value.channels) != len(value.mean):
            yield f"channels is {value.channels} and mean has {len(value.mean)} values"
    if value.size is not None and min(value.size) < 1:
        yield f"size is {value.size[0]}×{value.size[1]}; it must be at least 1×1"
    if value.shorter_side is not None:
        if type(value.shorter_side) is not int or value.shorter_side < 1:
            yield f"shorter_side is {value.shorter_side!r}; it is a number of pixels"
        elif value.size is not None and value.shorter_side < max(value.size):
            yield f"shorter_side is {value.shorter_side}, less than the size {value.size[0]}×{value.size[1]} to cut out"


def read_sidecar(model: StrPath) -> Preprocessing | None:
    """The preprocessing beside a model; None where there is none.

    Raises:
        DataError: it cannot be read, or is damaged.
    """
    file = sidecar_file(model)
    try:
        content = file.read_text(encoding="utf-8-sig")  # as some editors write it
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is damaged: it is not JSON") from error
    return Preprocessing.from_json(document, str(file))


def write_sidecar(model: StrPath, preprocessing: Preprocessing) -> Path:
    """Write the preprocessing beside a model, and return the file.

    Raises:
        OutputError: the file cannot be written.
    """
    file = sidecar_file(model)
    write_json(file, preprocessing.to_json())
    return file


def from_metadata(metadata: Mapping[str, str], model: str) -> tuple[Preprocessing | None, tuple[str, ...]]:
    """The preprocessing and the class names that bnfold's export left in a model's metadata.

    Raises:
        ModelError: the metadata is damaged.
    """
    try:
        classes = _names(json.loads(metadata.get("bnfold.classes", "[]")))
        stored = metadata.get("bnfold.normalization")
        if stored is None:
            return None, classes
        normalization = Normalization.from_json(json.loads(stored))
        return of_training(normalization, classes, None, f"the metadata of {model}"), classes
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, DataError) as error:
        raise ModelError(f"{model}: its bnfold metadata is damaged; export the model again") from error


def _numbers(value: Any) -> list[int | float]:
    """Numbers out of JSON; a TypeError where they are none."""
    if not isinstance(value, list) or any(type(number) not in (int, float) for number in value):
        raise TypeError("mean, std and size are lists of numbers, and scale is one")
    return value


def _size(value: Any) -> tuple[int, int]:
    height, width = _numbers(value)
    if not (isinstance(height, int) and isinstance(width, int)):
        raise TypeError("size is a number of pixels and another")
    return height, width


def _names(value: Any) -> tuple[str, ...]:
    """Class names out of JSON; a ValueError or TypeError where they are no list, or cannot be written as UTF-8."""
    if not isinstance(value, list):
        raise TypeError("the names of the classes are no list")
    if any(not isinstance(name, str | int | float) for name in value):
        raise TypeError("the names of the classes are not all text")
    names = tuple(str(name) for name in value)
    "".join(names).encode()  # JSON can spell half of a surrogate pair, which no file of text can hold
    return names


def of_training(
    normalization: Normalization, classes: Sequence[str], size: tuple[int, int] | None, origin: str
) -> Preprocessing:
    """What a network was trained with: see :func:`bnfold.training.image_folder.load_image_folder`."""
    channels: dict[int, Channels] = {1: "L", 3: "RGB"}
    return Preprocessing(
        mean=normalization.mean,
        std=normalization.std,
        size=size,
        channels=channels.get(len(normalization.mean)),
        labels=tuple(classes),
        origin=origin,
    )


def read_class_names(file: StrPath) -> tuple[str, ...]:
    """The lines of a file with the name of one class a line.

    Raises:
        DataError: it cannot be read, or is no text.
    """
    try:
        return tuple(Path(file).read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as a list of class names, one a line") from error


#: Preprocessing under a name.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # What torchvision and timm evaluate most networks with.
    "imagenet": {
        "size": (224, 224), "shorter_side": 256,
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    },
}  # fmt: skip

_ORIGIN = "--preprocess"


def overridden(base: Preprocessing | None, settings: Sequence[str]) -> Preprocessing | None:
    """``base`` with what the caller says in its place.

    Args:
        base: from the sidecar or the metadata; None where neither is there.
        settings: each ``KEY=VALUE`` with a field of :class:`Preprocessing` other than ``labels``, numbers separated by
            commas, or a name of :data:`PRESETS`. Later ones win.

    Raises:
        OptionError: a setting is not of that form, or mean and std are not known.
    """
    if not settings:
        return base
    values: dict[str, Any] = {}
    for setting in settings:
        values |= _parsed(setting)
    try:
        if base is not None:
            return replace(base, **values, origin=_ORIGIN)
        if not {"mean", "std"} <= set(values):
            raise OptionError("--preprocess needs mean=… and std=…, or a preset (imagenet), for a model without them")
        count = len(values["mean"])
        return Preprocessing(
            **({"channels": "L" if count == 1 else "RGB" if count == 3 else None} | values), origin=_ORIGIN
        )
    except DataError as error:
        raise OptionError(str(error)) from error


def _parsed(setting: str) -> Mapping[str, Any]:
    if setting in PRESETS:
        return PRESETS[setting]
    key, equals, text = setting.partition("=")
    name = key.strip().replace("-", "_")
    try:
        match name if equals else None:
            case "mean" | "std":
                return {name: tuple(float(value) for value in text.split(","))}
            case "size":
                sides = [int(value) for value in text.replace("x", ",").split(",")]
                height, width = sides * 2 if len(sides) == 1 else sides
                return {"size": (height, width)}
            case "shorter_side":
                return {name: int(text)}
            case "scale":
                return {name: float(text)}
            case "resize" | "interpolation" | "channels" | "layout":
                return {name: text}
    except ValueError as error:
        raise OptionError(f"--preprocess {setting}: {error}") from error
    keys = "mean, std, size, resize, shorter-side, interpolation, channels, layout and scale"
    raise OptionError(f"--preprocess {setting!r} is neither a preset ({', '.join(PRESETS)}) nor KEY=VALUE with {keys}")
