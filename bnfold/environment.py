"""What this machine can run: versions, providers that truly run a model, threads, and the fix for what is missing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import onnx

from bnfold.errors import BnfoldError
from bnfold.session import PROVIDERS, SessionOptions, create_session, run_session

#: What each extra brings, and for which commands; see pyproject.toml.
_EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "cpu": (("onnxruntime", "scipy"), "verify, benchmark and predict on the CPU"),
    "cuda": (("onnxruntime-gpu", "scipy"), "verify, benchmark and predict on CUDA"),
    "train": (("torch", "onnxscript", "safetensors", "scikit-learn", "pillow"), "train and export"),
    "plot": (("matplotlib", "jinja2"), "write HTML reports with plots"),
    "images": (("pillow",), "predict from image files"),
    "parquet": (("pyarrow",), "predict from Parquet and into it"),
    "ray": (("ray", "pyarrow"), "predict on a Ray cluster"),
    "triton": (("tritonclient", "grpcio", "pyyaml"), "deploy for Triton and KServe"),
    "serve": (("kserve",), "serve"),
}
_CORE = ("bnfold", "onnx", "onnx-ir", "numpy", "ml_dtypes")


@dataclass(frozen=True)
class Package:
    """An installed or missing package.

    Attributes:
        name: as the package registry spells it.
        version: None where it is not installed.
        extra: the extra that brings it; None for what bnfold always needs.
    """

    name: str
    version: str | None
    extra: str | None


@dataclass(frozen=True)
class ProviderCheck:
    """Whether a provider truly runs a model here.

    Attributes:
        name: bnfold's short name.
        runs: whether a small convolution ran on it and gave the right number.
        detail: why not, and what to do; the device's answer where it runs.
    """

    name: str
    runs: bool
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`doctor` found.

    Attributes:
        python: its version.
        system: operating system and processor architecture.
        cores: processors that this process may use.
        packages: installed and missing ones.
        providers: each provider that bnfold knows by name.
        advice: sentences that say how to mend what is missing or in conflict.
    """

    python: str
    system: str
    cores: int
    packages: tuple[Package, ...]
    providers: tuple[ProviderCheck, ...]
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The diagnosis as plain data."""
        return {
            "python": self.python,
            "system": self.system,
            "cores": self.cores,
            "packages": [{"name": p.name, "version": p.version, "extra": p.extra} for p in self.packages],
            "providers": [{"name": p.name, "runs": p.runs, "detail": p.detail} for p in self.providers],
            "advice": list(self.advice),
        }


def doctor() -> Diagnosis:
    """Look at this machine; nothing is changed and nothing is downloaded."""
    packages = (
        *(Package(name, _version(name), None) for name in _CORE),
        *(Package(name, _version(name), extra) for extra, (names, _) in _EXTRAS.items() for name in names),
    )
    return Diagnosis(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        packages=packages,
        providers=tuple(_check_provider(name) for name in PROVIDERS),
        advice=tuple(_advice(packages)),
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _check_provider(name: str) -> ProviderCheck:
    """Run a convolution whose result is known."""
    try:
        session = create_session(_probe(), SessionOptions(provider=name))
        result = run_session(session, {"x": np.full((1, 1, 4, 4), 2.0, np.float32)})["y"]
    except BnfoldError as error:
        return ProviderCheck(name, False, str(error))
    if not np.allclose(result, 18.0):
        return ProviderCheck(name, False, "a small convolution gives wrong numbers; reinstall onnxruntime")
    return ProviderCheck(name, True, session.get_providers()[0])


def _probe() -> bytes:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>'
        "probe (float[1,1,4,4] x) => (float[1,1,2,2] y) <float[1,1,3,3] w = {1,1,1,1,1,1,1,1,1}> { y = Conv(x, w) }"
    )
    content: bytes = model.SerializeToString()
    return content


def _advice(packages: tuple[Package, ...]) -> list[str]:
    installed = {p.name for p in packages if p.version}
    advice = []
    if {"onnxruntime", "onnxruntime-gpu"} <= installed:
        advice.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both, "
            "then install one of bnfold[cpu] and bnfold[cuda]"
        )
    runtimes = {"onnxruntime", "onnxruntime-gpu"}
    for extra, (names, purpose) in _EXTRAS.items():
        # One of the two runtimes is enough, and never both.
        present = installed | runtimes if installed & runtimes else installed
        missing = [name for name in names if name not in present]
        if missing:
            advice.append(f"to {purpose}: pip install 'bnfold[{extra}]' (missing: {', '.join(missing)})")
    return advice
