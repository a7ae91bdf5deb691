"""What a model's file says of itself: its input, its preprocessing, its scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.errors import DataError, ModelError
from bnfold.files import StrPath, sha256_of
from bnfold.model_file import files_of, load_model
from bnfold.prediction.images import ImageForm
from bnfold.prediction.preprocessing import Preprocessing, from_metadata, overridden, read_sidecar
from bnfold.prediction.samples import Samples
from bnfold.session import run_session
from bnfold.training.dataset import Labels

_ORT_DTYPES: Mapping[str, type[np.floating[Any]]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
}

#: Ops that pass scores on without changing them.
_PASSING = frozenset(("Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze"))


@dataclass(frozen=True, eq=False)
class Reader:
    """What a model says of its input, and how samples become that.

    Attributes:
        model: what to call the model in an error.
        name: of the input.
        dtype: of the input.
        shape: of the input; a string or None where a size is open.
        preprocessing: how raw images become the input, if that is known.
        classes: names of the classes, if they are known.
    """

    model: str
    name: str
    dtype: type[np.floating[Any]]
    shape: tuple[int | str | None, ...]
    preprocessing: Preprocessing | None
    classes: tuple[str, ...]

    @staticmethod
    def of(session: Any, model: str, settings: Sequence[str] = ()) -> Reader:
        """What a session's model says, its metadata and the sidecar beside it included.

        Args:
            session: from :func:`bnfold.session.create_session`.
            model: the path of its file.
            settings: see :func:`bnfold.prediction.preprocessing.overridden`.

        Raises:
            ModelError: the model has another input than one tensor of floating point, or damaged metadata.
            DataError: the sidecar is damaged, or disagrees with the model.
            OptionError: a setting cannot be used.
        """
        inputs = session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _ORT_DTYPES:
            names = ", ".join(f"{i.name} ({i.type})" for i in inputs)
            raise ModelError(f"{model} has the inputs {names}; predict needs one input of floating point")
        if 0 in inputs[0].shape:
            raise ModelError(f"{model} takes an input of shape {inputs[0].shape}, which holds no sample")
        preprocessing, classes = from_metadata(session.get_modelmeta().custom_metadata_map, model)
        sidecar = read_sidecar(model)
        if sidecar is not None:
            preprocessing, classes = sidecar, sidecar.labels or classes
        preprocessing = overridden(preprocessing, settings)
        reader = Reader(
            model, inputs[0].name, _ORT_DTYPES[inputs[0].type], tuple(inputs[0].shape), preprocessing, classes
        )
        reader._check(session.get_outputs()[0].shape)
        return reader

    def _check(self, scores: Sequence[int | str | None] | None) -> None:
        """Hold the preprocessing against the model's shapes."""
        known = self.preprocessing
        if known is None:
            return
        if len(self.shape) == 4:
            _batch, *rest = self.shape
            channels, *size = rest if known.layout == "NCHW" else (rest[2], rest[0], rest[1])
            if isinstance(channels, int) and channels != len(known.mean):
                raise DataError(
                    f"{known.origin} has {len(known.mean)} channels, and {self.model} takes {channels} "
                    f"(its input is {list(self.shape)}, read as {known.layout})"
                )
            if known.size is not None and any(
                isinstance(own, int) and own != said for own, said in zip(size, known.size, strict=True)
            ):
                raise DataError(
                    f"{known.origin} has size {known.size[0]}×{known.size[1]}, and {self.model} takes "
                    f"{size[0]}×{size[1]} (its input is {list(self.shape)}, read as {known.layout})"
                )
        shorter, image = known.shorter_side, self.image_size
        if known.resize == "crop" and shorter is not None and image is not None and shorter < max(image):
            raise DataError(
                f"{known.origin} has shorter_side {shorter}, less than the size {image[0]}×{image[1]} that "
                f"{self.model} takes"
            )
        count = scores[1] if scores is not None and len(scores) > 1 else None
        if known.labels and isinstance(count, int) and count != len(known.labels):
            raise DataError(f"{known.origin} has {len(known.labels)} labels, and {self.model} has {count} classes")

    @property
    def _channels_last(self) -> bool:
        return self.preprocessing is not None and self.preprocessing.layout == "NHWC"

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images that the model takes, where they are known."""
        if len(self.shape) == 4:
            height, width = self.shape[1:3] if self._channels_last else self.shape[2:]
            if isinstance(height, int) and isinstance(width, int):
                return height, width
        return None if self.preprocessing is None else self.preprocessing.size

    def image_form(self) -> ImageForm | None:
        """What images are decoded to; None where that is not known."""
        if self.preprocessing is None or self.preprocessing.channels is None:
            return None
        return ImageForm(self.preprocessing, self.image_size)

    def batch_size(self, wanted: int) -> int:
        """The model's own batch size where that is fixed, ``wanted`` where it is open."""
        return self.shape[0] if self.shape and isinstance(self.shape[0], int) else wanted

    def _channels_first(self, values: NDArray[Any]) -> NDArray[Any]:
        """Images (N, H, W) and (N, H, W, C) as (N, C, H, W); a flat row as what the model takes."""
        wanted = self.shape[1:]
        sizes = [size for size in wanted if isinstance(size, int)]
        if values.ndim == 2 and len(wanted) > 1 and len(sizes) == len(wanted) and np.prod(sizes) == values.shape[1]:
            values = values.reshape(-1, *sizes)
            return np.moveaxis(values, 3, 1) if self._channels_last and values.ndim == 4 else values
        if len(self.shape) != 4:
            return values
        if values.ndim == 3:
            return values[:, None]
        channels = self.shape[3] if self._channels_last else self.shape[1]
        if values.ndim == 4 and isinstance(channels, int) and values.shape[3] == channels != values.shape[1]:
            return np.moveaxis(values, 3, 1)
        return values

    def prepare(self, samples: Samples) -> NDArray[Any]:
        """The samples as the model takes them.

        Raises:
            DataError: they have another shape, or nothing says how pixels become numbers.
        """
        values = self._channels_first(samples.values)
        if self.preprocessing is not None and values.ndim == 4:
            if len(self.preprocessing.mean) != values.shape[1]:
                raise DataError(f"{self.model} was trained on {len(self.preprocessing.mean)} channels, "
                                f"the data has {values.shape[1]}")  # fmt: skip
            values = self.preprocessing.normalization(samples.scale).apply(values)
            if self._channels_last:
                values = np.ascontiguousarray(np.moveaxis(values, 1, 3))
        elif values.dtype.kind in "ui":
            raise DataError(
                f"{self.model} does not say how pixels become its input; say it with --preprocess "
                "(see docs/predict.md), or give numbers as it takes them"
            )
        wanted, got = self.shape[1:], values.shape[1:]
        if len(wanted) != len(got) or any(isinstance(w, int) and w != g for w, g in zip(wanted, got, strict=True)):
            raise DataError(f"{self.model} takes samples of shape {wanted}, the data holds {got}")
        return np.ascontiguousarray(values.astype(self.dtype, copy=False))

    def scores(self, session: Any, values: NDArray[Any], options: Any = None) -> NDArray[Any]:
        """Run the model over prepared samples and return its scores (n, classes).

        A model of fixed batch size gets the last sample several times, where there are too few. ``options`` are those
        of :func:`bnfold.session.run_session`.

        Raises:
            ModelError: it fails while it runs, or does not yield one row of scores for each sample.
        """
        short = self.batch_size(len(values)) - len(values)
        batch = np.concatenate([values, np.repeat(values[-1:], short, axis=0)]) if short > 0 else values
        name, scores = next(iter(run_session(session, {self.name: batch}, options).items()))
        if scores.ndim > 2 and set(scores.shape[2:]) == {1}:  # (N, classes, 1, 1), as some classifiers have it
            scores = scores.reshape(scores.shape[:2])
        if scores.ndim != 2 or len(scores) != len(batch) or not scores.shape[1] or scores.dtype.kind != "f":
            raise ModelError(not_a_classifier(self.model, name, [len(batch) if i == 0 else s for i, s in
                                                                 enumerate(scores.shape)]))  # fmt: skip
        return scores[: len(values)]


def not_a_classifier(model: str, output: str, shape: Sequence[object]) -> str:
    """The sentence for a model whose output is no table of scores."""
    return (
        f"{model} is no classifier: its output {output!r} has shape ({', '.join(str(size) for size in shape)}) where "
        "predict needs (N, classes); run such a model with onnxruntime itself"
    )


def check_is_classifier(session: Any, model: str) -> None:
    """Refuse, before any data is read, a model whose declared output cannot be a table of scores.

    Raises:
        ModelError: its first output has another rank or type.
    """
    output = session.get_outputs()[0]
    shape = output.shape
    if output.type not in _ORT_DTYPES:
        raise ModelError(
            f"{model} is no classifier: its output {output.name!r} is {output.type}; "
            "predict needs scores of floating point, (N, classes)"
        )
    if not shape:  # a rank that is not known comes as an empty list, as that of a scalar does
        return
    if len(shape) < 2 or any(isinstance(size, int) and size != 1 for size in shape[2:]):
        raise ModelError(not_a_classifier(model, output.name, shape))


@dataclass(frozen=True)
class ModelFacts:
    """What the file itself says.

    Attributes:
        sha256: digest of the file and of all files that hold its weights.
        probabilities: whether its scores went through a softmax already.
    """

    sha256: str
    probabilities: bool

    @staticmethod
    def of(model: StrPath) -> ModelFacts:
        """Read them.

        Raises:
            ModelError: a file is missing or is no ONNX model.
        """
        path = Path(model)
        loaded = load_model(path)
        try:
            digest = sha256_of(*files_of(loaded, path))
        except OSError as error:
            raise ModelError(f"{error.filename} cannot be read: {error.strerror or error}") from error
        return ModelFacts(digest, _ends_in_softmax(loaded.graph))


def _ends_in_softmax(graph: ir.Graph) -> bool:
    node = graph.outputs[0].producer() if graph.outputs else None
    while node is not None and node.op_type in _PASSING:
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node is not None and node.op_type == "Softmax"


def with_labels_of(samples: Samples, classes: Sequence[str]) -> Samples:
    """The samples with their labels counted as the model counts; see :func:`label_numbers`.

    Raises:
        DataError: some names agree and others do not.
    """
    if samples.labels is None:
        return samples
    numbers = label_numbers(samples.classes, classes)
    if numbers is None:
        return samples
    return replace(samples, labels=renumbered(samples.labels, numbers), classes=tuple(classes))


def renumbered(labels: Labels, numbers: NDArray[np.int64]) -> Labels:
    """Labels as the model counts; −1 stays that of a sample without one.

    Raises:
        DataError: a label is none of the classes that the data names.
    """
    if labels.max(initial=-1) >= len(numbers):
        raise DataError(f"the data has label {labels.max()}, and names {len(numbers)} classes, counted from 0")
    return np.where(labels < 0, -1, numbers[labels])


def label_numbers(theirs: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64] | None:
    """The model's number for each class of the data, matched by name; None where the data's own numbers hold.

    Folders are sorted by name, and a model may know its classes in another order. Names of which none agree are
    two vocabularies for the same numbers.

    Raises:
        DataError: some names agree and others do not, or the model has a name twice.
    """
    if not theirs or tuple(classes) == tuple(theirs):
        return None
    known = set(classes) & set(theirs)
    if not known:
        return None
    strange = [name for name in theirs if name not in known]
    if strange:
        raise DataError(
            f"the data has a class {strange[0]!r} that the model does not know; it knows {', '.join(classes)}"
        )
    often = Counter(classes)
    ambiguous = next((name for name in theirs if often[name] > 1), None)
    if ambiguous is not None:  # as "crane" is of ImageNet, a bird and a machine
        raise DataError(
            f"the model has {often[ambiguous]} classes named {ambiguous!r}, so that labels cannot be matched by name; "
            "give each a name of its own (--labels)"
        )
    return np.array([list(classes).index(name) for name in theirs], np.int64)
