"""A run's folder, and ``run.json``: all that it takes to build the trained network again.

::

    RUN/
      run.json                 what was trained on what, with which options; the result once it is there
      checkpoint.safetensors   weights, optimizer and place in the run: one file, so it is never half of two states
      weights.safetensors      the trained weights
      metrics.jsonl            one line an epoch
      curves.png               loss, accuracy and learning rate by epoch, where matplotlib is installed
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.errors import CheckpointError
from bnfold.files import StrPath, write_json
from bnfold.training.dataset import Normalization

RUN_FILE = "run.json"
CHECKPOINT_FILE = "checkpoint.safetensors"
WEIGHTS_FILE = "weights.safetensors"
METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"

_FORMAT = 1


@dataclass(frozen=True)
class Run:
    """The content of ``run.json``.

    Attributes:
        model: name of the network.
        model_args: all its arguments, those that followed from the data included.
        data: the data set, its path absolute.
        data_fingerprint: digest of its content.
        input_shape: (C, H, W).
        classes: names in the order of the labels.
        normalization: how raw pixels become input.
        options: the options of the run, as :meth:`TrainOptions.to_recipe` gives them.
        versions: of what it was trained with.
        result: figures of the finished run; None before.
    """

    model: str
    model_args: Mapping[str, Any]
    data: str
    data_fingerprint: str
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    normalization: Normalization
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    result: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """As a plain document; :func:`read_run` reads it back."""
        return {
            "format": _FORMAT,
            "model": self.model,
            "model_args": dict(self.model_args),
            "data": {
                "spec": self.data,
                "fingerprint": self.data_fingerprint,
                "input_shape": list(self.input_shape),
                "classes": list(self.classes),
                "normalization": self.normalization.to_json(),
            },
            "options": dict(self.options),
            "versions": dict(self.versions),
            "result": None if self.result is None else dict(self.result),
        }


def write_run(folder: Path, run: Run) -> None:
    """Write ``run.json``.

    Raises:
        OutputError: it cannot be written.
    """
    write_json(folder / RUN_FILE, run.to_json())


def read_run(folder: StrPath) -> Run:
    """Read ``run.json``.

    Raises:
        CheckpointError: the folder holds no run, or ``run.json`` is damaged or of a newer bnfold.
    """
    source = Path(folder) / RUN_FILE
    try:
        document = json.loads(source.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{folder} holds no training run: there is no {RUN_FILE} in it") from error
    except OSError as error:
        raise CheckpointError(f"{source} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} is damaged: it is not JSON") from error
    try:
        if document["format"] != _FORMAT:
            raise CheckpointError(f"{source} is of format {document['format']}; install a newer bnfold")
        data = document["data"]
        return Run(
            model=str(document["model"]),
            model_args=dict(document["model_args"]),
            data=str(data["spec"]),
            data_fingerprint=str(data["fingerprint"]),
            input_shape=tuple(int(size) for size in data["input_shape"]),
            classes=tuple(str(name) for name in data["classes"]),
            normalization=Normalization.from_json(data["normalization"]),
            options=dict(document["options"]),
            versions=dict(document["versions"]),
            result=None if document["result"] is None else dict(document["result"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} is damaged: {type(error).__name__} {error}") from error
