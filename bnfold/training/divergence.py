"""Say where numbers stopped being finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def not_finite_state(model: nn.Module) -> str | None:
    """The name of the first weight or buffer of ``model`` that holds an infinity or a NaN, if there is one."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return name
    return None


def first_layer_not_finite(network: nn.Module, images: Tensor) -> str:
    """Run ``network`` once more as it is, and say which layer was the first whose output is not finite.

    A layer that contains others comes after them: it is named where what it does itself made the number.

    Args:
        network: in the mode in which it gave such an output.
        images: the batch that did.
    """
    if not _is_finite(images):
        return "the images themselves are not finite"
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and not _is_finite(output):
            plain = name.removeprefix("module.")  # what data parallel training puts before
            found.append(_described(plain, module, inputs))

    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: look(name, module, inputs, output))
        for name, module in network.named_modules()
    ]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "every layer's output is finite, so it is the loss itself"


def _is_finite(values: Any) -> bool:
    """Whether all numbers of a tensor, or of several, are finite; what is no tensor counts as finite."""
    if isinstance(values, tuple | list):
        return all(_is_finite(value) for value in values)
    return not isinstance(values, Tensor) or not values.is_floating_point() or bool(values.isfinite().all())


def _described(name: str, module: nn.Module, inputs: Any) -> str:
    kind = type(module).__name__
    layer = f"layer {name} ({kind})" if name else f"the network itself ({kind})"
    # Parameters alone: the bad batch may have spoilt running statistics on its way.
    weights = dict(module.named_parameters())
    bad = next((key for key, value in weights.items() if not _is_finite(value)), None)
    if bad is not None:
        return f"{layer} is the first whose output is not finite: its {bad} is not, after the steps before"
    if not _is_finite(inputs):
        return f"{layer} is the first that gets an input that is not finite, from an operation before it"
    sizes = [f"its input (up to {_largest(inputs):.1e})"]
    if weights:
        sizes.append(f"its weights (up to {_largest(list(weights.values())):.1e})")
    verb = "is" if len(sizes) == 1 else "are"
    return f"{layer} is the first whose output is not finite, though {' and '.join(sizes)} {verb}"


def _largest(values: Any) -> float:
    """The largest magnitude in a tensor or in several."""
    if isinstance(values, tuple | list):
        return max((_largest(value) for value in values), default=0.0)
    return float(values.abs().max()) if isinstance(values, Tensor) and values.numel() else 0.0
