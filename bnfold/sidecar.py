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


def copy_sidecar(source: StrPath, target: StrPath) -> tuple[str, ...]:
    """Give the model ``target`` the sidecar of the model ``source`` that it was made from, if that has one.

    Returns:
        What to tell the user: see :func:`sidecar_left_by_another`.

    Raises:
        OutputError: it cannot be copied.
    """
    file, copy = sidecar_file(source), sidecar_file(target)
    if not file.is_file():
        return sidecar_left_by_another(target)
    if not (copy.exists() and copy.samefile(file)):
        write_bytes(copy, file.read_bytes())
    return ()


def sidecar_left_by_another(target: StrPath) -> tuple[str, ...]:
    """What to tell of a sidecar that lies beside a model just written, which brought none: it counts all the same."""
    file = sidecar_file(target)
    if not file.exists():
        return ()
    return (
        f"{file} was there before and says how images become this model's input; remove it if it is another model's",
    )
