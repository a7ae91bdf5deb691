"""Load a deployed model, and hold it against its golden file before anyone is answered by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.deployment.golden import GoldenPair, golden_pairs
from bnfold.deployment.repository import DeployedModel
from bnfold.errors import ModelError
from bnfold.serving.options import ServeOptions
from bnfold.serving.request import RequestError, RunError
from bnfold.serving.sessions import Session, open_sessions, target_of

#: How far off an accelerator may be, as a share of the output's largest value: the golden file's bounds are those of
#: the CPU, and TF32 or FP16 keep about three digits.
_ACCELERATOR_SHARE = 0.02


def load(model: DeployedModel, options: ServeOptions) -> tuple[Session, ...]:
    """The sessions of a model, each found to give what the golden file says.

    Raises:
        ProviderError: the provider does not run here.
        SetupError: ONNX Runtime's own format was asked for, and there is none for this machine.
        ModelError: ONNX Runtime does not load the model, or it gives something else.
        DataError: the golden file is damaged.
    """
    sessions = open_sessions(model, options)
    if model.golden is not None:
        on_cpu = target_of(model, options) == "cpu"
        pairs = [pair if on_cpu else _relaxed(pair) for pair in golden_pairs(model.golden)]
        for session in sessions:
            for pair in pairs:
                _check(model, session, pair)
        if model.serving.batching is not None and model.serving.max_batch > 1 and pairs:
            _check_joined(model, sessions[0], pairs[0])
    return sessions


def _relaxed(pair: GoldenPair) -> GoldenPair:
    largest = {name: float(np.nanmax(np.abs(values), initial=0.0)) for name, values in pair.outputs.items()}
    return replace(
        pair, bounds={name: max(bound, _ACCELERATOR_SHARE * largest[name]) for name, bound in pair.bounds.items()}
    )


def _check(model: DeployedModel, run: Session, pair: GoldenPair) -> None:
    wrong = "; ".join(pair.differences(_outputs(model, run, pair.inputs)))
    if wrong:
        raise ModelError(
            f"{model.model} does not give here what {model.golden} says: {wrong}; "
            f"run `bnfold verify --golden {model.golden} {model.model}`"
        )


def _check_joined(model: DeployedModel, run: Session, pair: GoldenPair) -> None:
    """Require that rows of a batch do not influence each other: what is joined then gives what it gives alone."""
    first = {name: values[:1] for name, values in pair.inputs.items()}
    other = {name: np.flip(values, tuple(range(1, values.ndim))) for name, values in first.items()}
    joined = _outputs(model, run, {name: np.concatenate([first[name], other[name]]) for name in first})
    alone = replace(pair, inputs=first, outputs={name: values[:1] for name, values in pair.outputs.items()})
    if any(alone.differences({name: values[:1] for name, values in joined.items()})):
        raise ModelError(
            f"{model.model} gives something else when requests are joined in a batch; "
            "deploy it again without dynamic batching"
        )


def _outputs(model: DeployedModel, run: Session, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    try:
        return run(inputs)
    except (RequestError, RunError) as error:
        raise ModelError(f"{model.model} does not run on the input of {model.golden}: {error}") from error
