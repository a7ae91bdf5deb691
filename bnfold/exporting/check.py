"""Compare an exported model with the network that it came from.

The network is evaluated in float64, so the error of both sides can be told apart. With ``e`` the error of
the file and ``n`` the error that the network itself makes in its own precision, the export passes where ``e
≤ max(32·n, 64·ε·s)``: ``ε`` is the spacing of the precision at 1 and ``s`` the largest output. Rounding
differs with the order of sums, but by no more than a small factor; a wrong weight is off by orders of
magnitude.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import nn

from bnfold.errors import ModelError
from bnfold.exporting.conversion import example_input
from bnfold.exporting.result import ExportCheck
from bnfold.exporting.source import Network
from bnfold.model_file import serialized
from bnfold.session import SessionOptions, create_session, run_session

if TYPE_CHECKING:
    from bnfold.exporting.options import ExportOptions

_NETWORK_FACTOR = 32.0
_SPACING_FACTOR = 64.0

#: An attribute such as ``epsilon`` is a float32 in ONNX, so a float64 network is off by up to 2⁻²⁴ of its
#: output.
_ATTRIBUTE_SPACING = 2.0**-24 / _SPACING_FACTOR

#: Batch sizes that are tried; the last is none of those that the exporter traced.
_BATCHES = (1, 2, 5)


def check_export(model: ir.Model, network: Network, options: ExportOptions) -> ExportCheck:
    """Run ``model`` and ``network`` on the same random inputs and compare every output.

    Raises:
        ModelError: an output differs by more than rounding explains, is not finite, or has another shape; the network
            is not a function of its input; or nothing here can run the model.
    """
    content = serialized(model)
    batches = (1,) if options.static else _BATCHES
    errors, own_errors, bounds = [], [], []
    engine, reference_type = "", ""
    for batch in batches:
        sample = example_input(network, batch, seed=options.seed + batch)
        outputs = _evaluate(network.module, sample)
        _check_repeatable(network, outputs, _evaluate(network.module, sample))
        reference, reference_type = _evaluate_double(network.module, sample)
        results, engine = _run(content, sample)
        names = [str(value.name) for value in model.graph.outputs]
        if len(names) != len(reference):
            raise ModelError(
                f"the export of {network.name} has {len(names)} outputs where the network has {len(reference)}; "
                "report this, with the network"
            )
        for name, exact, own in zip(names, reference, outputs, strict=True):
            error, own_error, bound = _compare(network.name, name, results[name], exact, own)
            errors.append(error)
            own_errors.append(own_error)
            bounds.append(bound)
            if error > bound:
                raise ModelError(
                    f"the export of {network.name} does not compute the same function: {name} is off by {error:.3g} "
                    f"with a batch of {batch}, where rounding explains {bound:.3g}; report this, with the network"
                )
    worst = int(np.argmax(errors))
    return ExportCheck(engine, reference_type, sum(batches), errors[worst], own_errors[worst], bounds[worst])


def _check_repeatable(network: Network, once: list[NDArray[Any]], again: list[NDArray[Any]]) -> None:
    """Refuse a network that draws numbers: its own error would be large, and excuse any error of the file."""
    for first, second in zip(once, again, strict=True):
        if first.shape == second.shape and not np.allclose(first, second, rtol=1e-2, equal_nan=True):
            raise ModelError(
                f"the network {network.name} returns something else each time it is given the same input, so that no "
                "file can be held against it; does it draw random numbers in evaluation too?"
            )


def _compare(
    network: str, name: str, result: NDArray[Any], exact: NDArray[Any], own: NDArray[Any]
) -> tuple[float, float, float]:
    """Error of the file, error of the network in its own precision, and the bound of the former."""
    if result.shape != exact.shape:
        raise ModelError(
            f"the export of {network} returns {name} of shape {result.shape} where the network returns "
            f"{exact.shape}; export it as static, or mend its use of the batch size"
        )
    if not np.isfinite(exact).all():
        raise ModelError(f"the network {network} itself returns values of {name} that are not finite")
    if not np.issubdtype(own.dtype, np.floating) or exact.size == 0:  # masks, indices: equal or wrong
        return float(np.any(result != own)), 0.0, 0.5
    difference = np.abs(result.astype(np.float64) - exact)
    error = float(difference.max()) if np.isfinite(difference).all() else float("inf")
    own_error = float(np.abs(own.astype(np.float64) - exact).max())
    spacing = float(np.finfo(result.dtype).eps) if np.issubdtype(result.dtype, np.floating) else 2.0**-8
    spacing = max(spacing, _ATTRIBUTE_SPACING)
    bound = max(_NETWORK_FACTOR * own_error, _SPACING_FACTOR * spacing * float(np.abs(exact).max()))
    return error, own_error, bound


def _evaluate(module: nn.Module, sample: torch.Tensor) -> list[NDArray[Any]]:
    with torch.inference_mode():
        return [_array(tensor) for tensor in _tensors(module(sample))]


def _evaluate_double(module: nn.Module, sample: torch.Tensor) -> tuple[list[NDArray[Any]], str]:
    """The outputs in float64, or in the network's own type where its code insists on that."""
    double = copy.deepcopy(module).double()
    try:
        outputs = [output.astype(np.float64) for output in _evaluate(double, sample.double())]
    except RuntimeError:  # a type that is written out in the network's code
        outputs = [output.astype(np.float64) for output in _evaluate(module, sample)]
        return outputs, str(sample.dtype).removeprefix("torch.")
    return outputs, "float64"


def _tensors(output: object) -> list[torch.Tensor]:
    """The tensors of a network's output, in the order in which torch's exporter writes them."""
    leaves = torch.utils._pytree.tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    plain = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # numpy has no bfloat16
    array: NDArray[Any] = plain.numpy()
    return array


def _run(content: bytes, sample: torch.Tensor) -> tuple[Mapping[str, NDArray[Any]], str]:
    """The model's outputs, from ONNX Runtime without optimizations, or else from onnx's reference."""
    if sample.dtype != torch.bfloat16 and importlib.util.find_spec("onnxruntime") is not None:
        try:
            session = create_session(content, SessionOptions(level="disable", threads=1))
            return run_session(session, {"input": sample.numpy()}), "onnxruntime"
        except ModelError as error:
            failure = error  # an opset or an operator that this ONNX Runtime does not have
    else:
        failure = ModelError("onnxruntime is not installed, or does not take bfloat16")
    return _run_reference(content, sample, failure), "onnx.reference"


def _run_reference(content: bytes, sample: torch.Tensor, failure: ModelError) -> Mapping[str, NDArray[Any]]:
    feeds = {"input": _array(sample)}
    if sample.dtype == torch.bfloat16:
        import ml_dtypes

        feeds = {"input": feeds["input"].astype(ml_dtypes.bfloat16)}
    try:
        evaluator = ReferenceEvaluator(content)
        outputs = evaluator.run(None, feeds)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise ModelError(f"nothing here can run the export, so it cannot be checked: {failure}") from error
    return dict(zip(evaluator.output_names, (np.asarray(value) for value in outputs), strict=True))
