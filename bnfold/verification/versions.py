"""With what a verification was made."""

from __future__ import annotations

from importlib import metadata

_PACKAGES = ("bnfold", "onnx", "onnx-ir", "numpy", "onnxruntime", "onnxruntime-gpu")


def versions() -> dict[str, str]:
    """The version of each package that had a part in it, where installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
