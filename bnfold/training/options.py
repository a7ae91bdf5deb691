"""What a training run is asked to do, from Python, from a recipe file or from both."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bnfold.errors import InputError, OptionError
from bnfold.files import StrPath
from bnfold.session import MOST_THREADS

#: Learning rate and weight decay of each optimizer, where none is asked for.
OPTIMIZER_DEFAULTS: Mapping[str, tuple[float, float]] = {"sgd": (0.1, 5e-4), "adamw": (2e-3, 0.05)}

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainOptions:
    """A training run; every field but ``resume`` and ``overwrite`` is a key of a recipe.

    Attributes:
        output: the run's folder, made if it does not exist.
        model: name of the network, as :func:`bnfold.models.build` takes it.
        model_args: its arguments; those that follow from the data (channels, classes) are filled in.
        data: the data set, as :func:`bnfold.training.data.load_data` takes it.
        image_size: side of the images of an image folder, in pixels.
        epochs: passes over the training images.
        batch_size: images of one step, over all workers and all parts together.
        accumulate: parts into which a worker takes its share of a step, one after the other, to save memory; their
            gradients add up to that of the whole, but each batch norm normalizes with one part's statistics.
        optimizer: ``sgd`` (with Nesterov momentum) or ``adamw``.
        lr: the highest learning rate; by default 0.1 for ``sgd`` and 0.002 for ``adamw``.
        momentum: of ``sgd``.
        weight_decay: of all weights but biases and those of normalizations; by default 5e-4 for ``sgd`` and
            0.05 for ``adamw``.
        warmup_epochs: epochs in which the learning rate rises from 0; it then falls along a cosine to 0.
        label_smoothing: share of the target that is spread over all classes.
        ema: decay of an exponential moving average of the weights, which then is what the run gives, its batch norms
            estimated anew on the training images; 0 is off, 0.999 usual.
        precision: ``float32``, or ``bfloat16`` for mixed precision: convolutions and products in bfloat16; weights,
            batch norms' arithmetic and statistics, and the loss in float32.
        shift: pixels by which an image is shifted at most, at random; by default an eighth of its side, 0
            is off.
        flip: whether images are mirrored at random; by default so where the data allows it.
        seed: of initial weights, order, augmentation and dropout.
        device: ``auto`` (CUDA if there is one), ``cpu`` or ``cuda``.
        threads: CPU threads of torch; 0 takes one for a small network, whose steps are too short to share, and
            leaves the choice to torch otherwise.
        resume: go on from the run's checkpoint; all other options must be those that it began with.
        overwrite: start anew in a folder that holds a run.

    Raises:
        InputError: a value is of a wrong type or out of range.
    """

    output: StrPath
    model: str = "resnet"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    data: str = "digits"
    image_size: int | None = None
    epochs: int = 15
    batch_size: int = 64
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.1
    ema: float = 0.0
    precision: str = "float32"
    shift: int | None = None
    flip: bool | None = None
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            value = getattr(self, name)
            if not rule.accepts(value):
                raise OptionError(f"{name} is {value!r}; it must be {rule.description}")
        if self.resume and self.overwrite:
            raise OptionError("resume and overwrite contradict each other; choose one")

    @property
    def peak_lr(self) -> float:
        """The highest learning rate, the optimizer's default filled in."""
        return OPTIMIZER_DEFAULTS[self.optimizer][0] if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        """The weight decay, the optimizer's default filled in."""
        return OPTIMIZER_DEFAULTS[self.optimizer][1] if self.weight_decay is None else self.weight_decay

    def to_recipe(self) -> dict[str, Any]:
        """The options that a run records, as a plain document."""
        document = {name: getattr(self, name) for name in RECIPE_KEYS}
        document["model_args"] = dict(self.model_args)
        return document


#: What a run records of its options: all but where it goes and how it starts.
RECIPE_KEYS: tuple[str, ...] = tuple(
    entry.name for entry in fields(TrainOptions) if entry.name not in ("output", "resume", "overwrite")
)


@dataclass(frozen=True)
class _Rule:
    """What a value may be, as a test and in words."""

    accepts: Callable[[Any], bool]
    description: str


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at_least(least: int) -> _Rule:
    return _Rule(lambda value: _is_int(value) and value >= least, f"a whole number, at least {least}")


def _between(least: int, most: int) -> _Rule:
    return _Rule(lambda value: _is_int(value) and least <= value <= most, f"a whole number from {least} to {most}")


def _optional(rule: _Rule) -> _Rule:
    return _Rule(lambda value: value is None or rule.accepts(value), rule.description)


def _one_of(*choices: str) -> _Rule:
    return _Rule(lambda value: value in choices, f"one of {', '.join(choices)}")


_TEXT = _Rule(lambda value: isinstance(value, str) and bool(value), "a name")
_SHARE = _Rule(lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1")
_NOT_NEGATIVE = _Rule(lambda value: _is_number(value) and 0 <= value < float("inf"), "a number, at least 0")
# Above that, a step does not fit into float32.
_LARGEST = 1e38
_FOLDER = _Rule(lambda value: isinstance(value, os.PathLike) or (isinstance(value, str) and value != ""), "a folder")
_YES_NO = _Rule(lambda value: isinstance(value, bool), "true or false")

_RULES: Mapping[str, _Rule] = {
    "output": _FOLDER,
    "model": _TEXT,
    "model_args": _Rule(
        lambda value: isinstance(value, Mapping) and all(isinstance(key, str) for key in value),
        "a table of names and values",
    ),
    "data": _TEXT,
    "image_size": _optional(_at_least(1)),
    "epochs": _at_least(1),
    "batch_size": _Rule(
        lambda value: _is_int(value) and value >= 2, "a whole number, at least 2: one image has no batch statistics"
    ),
    "accumulate": _at_least(1),
    "optimizer": _one_of(*OPTIMIZER_DEFAULTS),
    "lr": _optional(_Rule(lambda value: _is_number(value) and 0 < value <= _LARGEST, "a number above 0, at most 1e38")),
    "momentum": _Rule(lambda value: _is_number(value) and 0 < value < 1, "a number between 0 and 1"),
    "weight_decay": _optional(
        _Rule(lambda value: _is_number(value) and 0 <= value <= _LARGEST, "a number, at least 0 and at most 1e38")
    ),
    "warmup_epochs": _NOT_NEGATIVE,
    "label_smoothing": _SHARE,
    "ema": _SHARE,
    "precision": _one_of(*PRECISIONS),
    "shift": _optional(_at_least(0)),
    "flip": _optional(_YES_NO),
    "seed": _at_least(0),
    "device": _one_of(*DEVICES),
    "threads": _between(0, MOST_THREADS),
    "resume": _YES_NO,
    "overwrite": _YES_NO,
}


def load_recipe(path: StrPath) -> dict[str, Any]:
    """Read a recipe: a TOML file whose keys are fields of :class:`TrainOptions`.

    Returns:
        The keys that it holds with their values, for ``TrainOptions(output=…, **recipe)``.

    Raises:
        InputError: the file is missing, is not TOML, or holds an unknown key.
    """
    source = Path(path)
    try:
        with source.open("rb") as stream:
            recipe = tomllib.load(stream)
    except FileNotFoundError as error:
        raise InputError(f"the recipe {source} does not exist") from error
    except OSError as error:
        raise InputError(f"the recipe {source} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {source} is not a TOML file: {error}") from error
    keys = ("output", *RECIPE_KEYS)
    for key in recipe:
        if key not in keys:
            close = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(keys)}"
            raise InputError(f"the recipe {source} has an unknown key {key!r}; {hint}")
    return recipe
