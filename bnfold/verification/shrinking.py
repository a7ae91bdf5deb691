"""How small the images may be on which a region is run: as small as lets it do all that it does on large ones.

A convolution or a pool treats all positions alike but those near the border. On an image that holds each border and
some positions between them, and whose sides leave the same remainder to the strides, a region does nothing that it
does not do on one of 224 × 224, and does it a hundred times faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from bnfold.graph import attributes_of, in_default_domain

#: Operators that treat each position alike, and each by itself.
_POINTWISE = frozenset(
    [
        *("Add", "BatchNormalization", "Clip", "Concat", "Div", "Dropout", "Elu", "GlobalAveragePool", "GlobalMaxPool"),
        *("HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Mul", "Neg", "PRelu", "Relu", "Selu"),
        *("Sigmoid", "Softplus", "Sub", "Sum", "Tanh"),
    ]
)

#: Operators that slide a window over the positions.
_WINDOWED = frozenset({"AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool"})

#: Positions, counted in steps of all strides together, that are left between the borders.
_BETWEEN = 4


def small_sides(nodes: Iterable[ir.Node], sides: Sequence[int]) -> tuple[int, ...]:
    """The sides of the smallest image that shows all that ``nodes`` do; never longer than they are.

    Args:
        nodes: the operators of one or more regions on the same image.
        sides: the lengths of its axes from 2 on.
    """
    reach, steps = [0] * len(sides), [1] * len(sides)
    for node in nodes:
        if not in_default_domain(node) or node.op_type not in _POINTWISE | _WINDOWED:
            return tuple(sides)
        if node.op_type in _WINDOWED:
            window = _window(node, len(sides))
            if window is None:
                return tuple(sides)
            for axis, (extent, stride) in enumerate(window):
                reach[axis] += extent - 1
                steps[axis] *= stride
    return tuple(_small(side, r, step) for side, r, step in zip(sides, reach, steps, strict=True))


def _small(side: int, reach: int, step: int) -> int:
    enough = (reach + _BETWEEN) * step + 1
    return min(side, enough + (side - enough) % step)


def _window(node: ir.Node, rank: int) -> list[tuple[int, int]] | None:
    """The extent and stride of a node's window along each axis; None where they do not tell the whole story."""
    attributes = attributes_of(node)
    shape = attributes.get("kernel_shape")
    if shape is None and len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].shape is not None:
        shape = node.inputs[1].shape[2:]
    if (
        shape is None
        or len(shape) != rank
        or "output_shape" in attributes
        or not all(isinstance(n, int) for n in shape)
    ):
        return None
    strides, dilations = (attributes.get(name) or (1,) * rank for name in ("strides", "dilations"))
    return [((n - 1) * d + 1, s) for n, d, s in zip(shape, dilations, strides, strict=True)]
