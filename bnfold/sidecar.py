"""The file beside a model that says how an image becomes its input: where it lies, and how it goes with the model.

What it holds is for :mod:`bnfold.prediction.preprocessing`; who only makes one model of another need not know.
"""

from __future__ import annotations

from pathlib import Path

from bnfold.files import StrPath, write_bytes


def sidecar_file(model: StrPath) -> Path:
    """Where the preprocessing of a model's file lies: ``model.onnx.preprocessing.json``."""
    path = Path(model)
    return path.with_name(f"{path.name}.preprocessing.json")


def copy_sidecar(source: StrPath, target: StrPath) -> None:
    """Give the model ``target`` the sidecar of the model ``source`` that it was made from, if that has one.

    Raises:
        OutputError: it cannot be copied.
    """
    file, copy = sidecar_file(source), sidecar_file(target)
    if file.is_file() and not (copy.exists() and copy.samefile(file)):
        write_bytes(copy, file.read_bytes())
