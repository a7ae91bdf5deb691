"""ONNX Runtime sessions: the one place that imports onnxruntime.

A provider that was asked for and does not run is an error here, never a silent fall-back to the CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import ModelError, OptionError, ProviderError, one_line
from bnfold.extras import require

#: The short names that bnfold takes, and ONNX Runtime's own, which it takes as well.
PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

#: The extra that installs each provider's package.
_PROVIDER_EXTRA: Mapping[str, str] = {"CPUExecutionProvider": "cpu"}

#: No session gets more threads: their stacks alone would take all memory, and starting them minutes.
MOST_THREADS = 1024

#: ONNX Runtime's graph optimization levels under the names that the command line uses.
LEVELS: Mapping[str, str] = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


@dataclass(frozen=True)
class SessionOptions:
    """How a session is built.

    Attributes:
        provider: ``cpu``, ``cuda``, ``tensorrt`` or ONNX Runtime's own name of a provider.
        level: graph optimization level, a key of :data:`LEVELS`.
        threads: intra-op threads; 0 leaves the choice to ONNX Runtime.
        spinning: whether idle worker threads spin for a while before they sleep (ONNX Runtime's default).
        arena: whether memory that a run no longer needs is kept for the next one.
        disabled_optimizers: names of ONNX Runtime's own graph transformers to leave out.
        provider_options: passed on to the provider.
        profile: where ONNX Runtime writes its profile when the session ends it, as the beginning of a path; empty
            for none.
        optimized: where ONNX Runtime writes the model as it has optimized it, in its own format (``.ort``), which only
            this version of it reads, on such a machine; empty for nowhere.

    Raises:
        OptionError: the number of threads is out of range.
    """

    provider: str = "cpu"
    level: str = "all"
    threads: int = 0
    spinning: bool = True
    arena: bool = True
    disabled_optimizers: tuple[str, ...] = ()
    provider_options: Mapping[str, str] = field(default_factory=dict)
    profile: str = ""
    optimized: str = ""

    def __post_init__(self) -> None:
        check_threads(self.threads)


def check_threads(threads: int) -> None:
    """Refuse a number of threads that no machine has.

    Raises:
        OptionError: it is negative, or above :data:`MOST_THREADS`.
    """
    if not 0 <= threads <= MOST_THREADS:
        raise OptionError(f"{threads} is no number of threads; it is at most {MOST_THREADS}, or 0 for the default")


def provider_name(provider: str) -> str:
    """ONNX Runtime's name for ``provider``.

    Raises:
        ProviderError: the name is not known.
    """
    if provider in PROVIDERS:
        return PROVIDERS[provider]
    if provider.endswith("ExecutionProvider"):
        return provider
    known = ", ".join(PROVIDERS)
    raise ProviderError(f"unknown provider {provider!r}; use one of {known}, or ONNX Runtime's full name")


def runtime_errors() -> tuple[type[Exception], ...]:
    """The exception classes that ONNX Runtime raises: its own, which share no base class, and ValueError."""
    state = require("onnxruntime.capi.onnxruntime_pybind11_state", "cpu")
    own = (value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception))
    return (*own, ValueError)


def create_session(model: str | Path | bytes, options: SessionOptions | None = None) -> Any:
    """Build an ``onnxruntime.InferenceSession`` that truly runs on the provider that was asked for.

    Args:
        model: path of an ONNX file, or its serialized bytes.
        options: see :class:`SessionOptions`.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ProviderError: the provider is unknown, not part of this onnxruntime, or cannot run here.
        ModelError: ONNX Runtime does not accept the model.
    """
    options = options or SessionOptions()
    ort = require("onnxruntime", _PROVIDER_EXTRA.get(provider_name(options.provider), "cuda"))
    wanted = provider_name(options.provider)
    available = ort.get_available_providers()
    if wanted not in available:
        raise ProviderError(
            f"{wanted} is not part of this onnxruntime {ort.__version__}, which has {', '.join(available)}; "
            f"{_remedy(wanted)}"
        )
    settings = ort.SessionOptions()
    settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[options.level])
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = 4  # errors come back as exceptions; the log would repeat them on stderr
    settings.enable_cpu_mem_arena = settings.enable_mem_pattern = options.arena
    if not options.spinning:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if options.profile:
        settings.enable_profiling = True
        settings.profile_file_prefix = options.profile
    if options.optimized:
        settings.optimized_model_filepath = options.optimized
        settings.add_session_config_entry("session.save_model_format", "ORT")
    source = model if isinstance(model, bytes) else str(model)
    label = "the model in memory" if isinstance(model, bytes) else str(model)
    if not label.isascii():
        _check_is_text(label)
    try:
        with warnings.catch_warnings():
            # It warns of a fall-back to the CPU, which is an error three lines on.
            warnings.simplefilter("ignore", UserWarning)
            session = ort.InferenceSession(
                source,
                settings,
                providers=[(wanted, dict(options.provider_options))],
                disabled_optimizers=list(options.disabled_optimizers) or None,
            )
    except runtime_errors() as error:
        raise ModelError(f"ONNX Runtime does not load {label}: {one_line(error)}") from error
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"{wanted} is installed but cannot run on this machine (ONNX Runtime fell back to "
            f"{session.get_providers()[0]}); run `bnfold doctor` to see what is missing"
        )
    session.disable_fallback()
    return session


def _check_is_text(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ModelError(f"ONNX Runtime takes no file whose name is not UTF-8: {path!r}; give it another") from error


def _remedy(provider: str) -> str:
    if provider in (PROVIDERS["cuda"], PROVIDERS["tensorrt"]):
        return "uninstall onnxruntime, then pip install 'bnfold[cuda]'"
    return "install the onnxruntime package that brings it"


def run_options() -> Any:
    """Options of runs; to set ``terminate`` in them, from any thread, makes the run that is going on fail."""
    options = require("onnxruntime", "cpu").RunOptions()
    options.log_severity_level = 4  # errors come back as exceptions; the log would repeat them on stderr
    return options


def run_session(session: Any, feeds: Mapping[str, NDArray[Any]], options: Any = None) -> dict[str, NDArray[Any]]:
    """Run a session once, so that Ctrl-C and SIGTERM end it, however long it would take; return its outputs by name.

    Python looks at signals between its own instructions only, and ONNX Runtime at its flag between operators. So the
    run has a thread of its own, which takes about 0.1 ms more.

    Args:
        session: from :func:`create_session`.
        feeds: the inputs by name.
        options: from :func:`run_options`, for a caller that another thread shall be able to stop.

    Raises:
        ModelError: ONNX Runtime failed while running the model.
    """
    settings = run_options() if options is None else options
    names: Sequence[str] = [output.name for output in session.get_outputs()]
    try:
        with ThreadPoolExecutor(1) as pool:
            try:
                outputs: Sequence[Any] = pool.submit(session.run, names, dict(feeds), settings).result()
            except BaseException:
                settings.terminate = True
                raise
    except runtime_errors() as error:
        raise ModelError(f"ONNX Runtime failed while running the model: {one_line(error)}") from error
    odd = next((name for name, value in zip(names, outputs, strict=True) if isinstance(value, list | dict)), None)
    if odd is not None:  # numpy would stack the tensors of a sequence, or refuse to
        raise ModelError(f"output {odd!r} is a sequence or a map; bnfold runs models whose outputs are tensors")
    return {name: np.asarray(value) for name, value in zip(names, outputs, strict=True)}
