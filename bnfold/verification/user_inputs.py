"""The user's own inputs: numpy files, ONNX test data, images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper

from bnfold.draws import fits
from bnfold.errors import DataError
from bnfold.files import StrPath
from bnfold.verification.inputs import Feed
from bnfold.verification.sizes import USUAL
from bnfold.verification.specs import InputSpec, listed, shown

Array = NDArray[Any]

#: So many images at most go into one set of inputs, where the model leaves the batch open.
_IMAGES_AT_ONCE = 8

_KNOWN = "a .npz, .npy, .pb or image file, or a folder of them"


def user_feeds(path: StrPath, specs: Sequence[InputSpec], metadata: Mapping[str, str] | None = None) -> list[Feed]:
    """The user's own inputs.

    Args:
        path: an ``.npz`` keyed by input name; a ``.npy``, ``.pb`` (an ONNX tensor) or image for a model of one input;
            or a folder of those, of ``input_0.pb`` … as ONNX test data has them, or of folders of such.
        specs: the inputs of the model.
        metadata: of the model; what bnfold exported says there how pixels become the input. Without it they are
            divided by 255.

    Raises:
        DataError: the data is missing, damaged, or does not fit the model.
        MissingExtraError: the data is images, and Pillow is not installed.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(f"{source} does not exist")
    if not source.is_dir():
        files = [source]
        if not _is_readable(source):
            raise DataError(f"{source} is not {_KNOWN}; save the inputs with numpy.savez(FILE, NAME=array)")
    else:
        files = sorted(file for file in source.iterdir() if not file.name.startswith("."))
    feeds = [_checked(values, origin, specs) for origin, values in _read(files, source, specs)]
    feeds += _image_feeds([file for file in files if _is_image(file)], specs, metadata or {})
    if not feeds:
        raise DataError(f"{source} holds no inputs; put .npz, .npy or image files there, or ONNX test data input_0.pb")
    return feeds


def _is_readable(file: Path) -> bool:
    return file.suffix in (".npz", ".npy", ".pb") or _is_image(file)


def _is_image(file: Path) -> bool:
    from bnfold.training.image_folder import IMAGE_SUFFIXES

    return file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES


def _read(
    files: Sequence[Path], source: Path, specs: Sequence[InputSpec]
) -> Iterator[tuple[Path, Mapping[str, Array]]]:
    if (source / "input_0.pb").exists():
        yield source, _read_test_data(source, specs)
        files = [file for file in files if file.suffix != ".pb"]
    for file in files:
        if (file / "input_0.pb").exists():
            yield file, _read_test_data(file, specs)
        elif file.suffix in (".npz", ".npy"):
            yield file, _read_numpy(file, specs)
        elif file.suffix == ".pb" and not file.name.startswith("output_"):
            yield file, {_only(file, specs): _read_tensor(file)}


def _only(file: Path, specs: Sequence[InputSpec]) -> str:
    """The name of the one input that one array is for."""
    if len(specs) != 1:
        raise DataError(
            f"{file} holds one array, and the model has the inputs {listed(specs)}; "
            "save them with numpy.savez(FILE, NAME=array, …)"
        )
    return specs[0].name


def _read_numpy(file: Path, specs: Sequence[InputSpec]) -> dict[str, Array]:
    try:
        # Never pickles: they run code.
        with file.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if not isinstance(content, np.ndarray):
                arrays = {name: content[name] for name in content.files}
                if len(arrays) == 1 and len(specs) == 1 and "arr_0" in arrays:
                    return {specs[0].name: arrays["arr_0"]}
                return arrays
    except (ValueError, EOFError, BadZipFile, KeyError, NotImplementedError, ZlibError) as error:
        raise DataError(f"{file} is damaged or holds Python objects; bnfold reads plain arrays only") from error
    except (MemoryError, OverflowError) as error:
        raise DataError(f"{file} is damaged, or holds more than fits into memory; give fewer inputs at once") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    return {_only(file, specs): content}


def _read_test_data(folder: Path, specs: Sequence[InputSpec]) -> dict[str, Array]:
    """ONNX test data: by the names that the tensors carry, where these are those of the inputs, else in their order."""
    tensors = []
    for index in range(len(specs)):
        file = folder / f"input_{index}.pb"
        if not file.exists():
            raise DataError(f"{file} is missing: the model has the inputs {listed(specs)}")
        tensors.append(_tensor(file))
    inputs = [spec.name for spec in specs]
    carried = [tensor.name for tensor in tensors]
    names = carried if sorted(carried) == sorted(inputs) else inputs
    return {name: _array(tensor, folder) for name, tensor in zip(names, tensors, strict=True)}


def _read_tensor(file: Path) -> Array:
    return _array(_tensor(file), file)


def _tensor(file: Path) -> onnx.TensorProto:
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise DataError(f"{file} is not an ONNX tensor, or is damaged") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    return tensor


def _array(tensor: onnx.TensorProto, source: Path) -> Array:
    # Another file would be looked for wherever the tensor says, and a negative size would be made up.
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise DataError(f"{source}: the tensor {tensor.name!r} keeps its data in another file; save it in one")
    try:
        if min(tensor.dims, default=0) < 0:
            raise ValueError("a negative size")
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError, MemoryError, OverflowError) as error:
        raise DataError(f"{source}: the tensor {tensor.name!r} is damaged, or of a type without numbers") from error


def _checked(values: Mapping[str, Array], source: Path, specs: Sequence[InputSpec]) -> Feed:
    names = [spec.name for spec in specs]
    if set(values) != set(names):
        raise DataError(f"{source} holds {', '.join(sorted(values)) or 'nothing'}; the model has {listed(specs)}")
    for spec in specs:
        array = values[spec.name]
        if array.dtype != spec.dtype.numpy():
            raise DataError(
                f"{source}: {spec.name!r} has the type {array.dtype}, and the model wants "
                f"{spec.dtype.numpy()}; convert it with .astype"
            )
        if spec.shape is not None and not fits(spec.shape, array.shape):
            raise DataError(
                f"{source}: {spec.name!r} has the shape {shown(array.shape)}, and the model wants {shown(spec.shape)}"
            )
        if prod(array.shape) == 0:
            raise DataError(f"{source}: {spec.name!r} is empty (shape {shown(array.shape)})")
    return Feed(source.name, "user", {name: values[name] for name in names})


def _image_feeds(files: Sequence[Path], specs: Sequence[InputSpec], metadata: Mapping[str, str]) -> list[Feed]:
    """Images as a model of one image input takes them, a few at a time."""
    if not files:
        return []
    if len(specs) != 1 or specs[0].shape is None or len(specs[0].shape) != 4:
        raise DataError(f"{files[0]} is an image, and the model does not take one input of images (N, C, H, W)")
    spec, shape = specs[0], specs[0].shape
    batch = shape[0] if isinstance(shape[0], int) else _IMAGES_AT_ONCE
    feeds = []
    for start in range(0, len(files), batch):
        group = files[start : start + batch]
        if isinstance(shape[0], int):  # a model of fixed batch size: fill up
            group = [*group, *[group[-1]] * (batch - len(group))]
        name = group[0].name if group[0] == group[-1] else f"{group[0].name} … {group[-1].name}"
        feeds.append(Feed(name, "user", {spec.name: _pixels(group, spec, shape, metadata)}))
    return feeds


def _pixels(
    files: Sequence[Path], spec: InputSpec, shape: Sequence[int | str | None], metadata: Mapping[str, str]
) -> Array:
    from bnfold.training.image_folder import read_images

    last = shape[-1] in (1, 3) and shape[1] not in (1, 3)  # channels last, as TensorFlow has them
    sides = [size if isinstance(size, int) else USUAL[1][0] for size in (shape[1:3] if last else shape[2:])]
    if sides[0] != sides[1]:
        raise DataError(
            f"{files[0]} is an image, and the model takes images of {sides[0]}×{sides[1]}, which are not square; "
            "give arrays in an .npz"
        )
    images: Array = read_images(files, sides[0])
    wanted = shape[-1] if last else shape[1]
    if images.shape[1] == 1 and wanted != 1:
        images = np.repeat(images, 3, axis=1)
    if isinstance(wanted, int) and images.shape[1] != wanted:
        raise DataError(f"{files[0]} has {images.shape[1]} channels, and the model takes {wanted}")
    if spec.dtype.is_floating_point():
        images = _normalized(images, metadata)
    return (np.moveaxis(images, 1, -1) if last else images).astype(spec.dtype.numpy())


def _normalized(images: Array, metadata: Mapping[str, str]) -> Array:
    """8-bit pixels as numbers: as the model's own metadata says, else from 0 to 1."""
    from bnfold.training.dataset import Normalization

    stored = metadata.get("bnfold.normalization")
    if stored is not None:
        try:
            own = Normalization.from_json(json.loads(stored))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError("the model's bnfold metadata is damaged; export the model again") from error
        if len(own.mean) == images.shape[1]:
            return Normalization(255.0, own.mean, own.std).apply(images)
    return images / 255.0
