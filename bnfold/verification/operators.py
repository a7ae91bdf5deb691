"""float64 implementations that replace those of :mod:`onnx.reference` where they are slow or wrong.

Each class is named after its operator, as the reference evaluator wants it. Measured on onnx 1.23: Conv is some
fifty times slower there, the pools, GridSample and DeformConv are Python loops, grouped ConvTranspose fails, and
BatchNormalization of opset 9 takes the batch's own statistics where it must take the running ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from bnfold.verification import sampling, windows
from bnfold.verification.corrections import CORRECTIONS
from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.recurrence import RECURRENT
from bnfold.verification.windows import Window

Array = NDArray[Any]
Outputs = tuple[Array, ...]


class Conv(OpRun):
    """Conv, opset 1 on."""

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> Outputs:
        view = _window(x, attributes, w.shape[2:])
        return (windows.conv(x, w, b, view, attributes.get("group") or 1),)


class ConvTranspose(OpRun):
    """ConvTranspose, opset 1 on."""

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> Outputs:
        kernel, spatial = w.shape[2:], x.shape[2:]
        rank = len(kernel)
        strides = tuple(attributes.get("strides") or (1,) * rank)
        dilations = tuple(attributes.get("dilations") or (1,) * rank)
        extra = tuple(attributes.get("output_padding") or (0,) * rank)
        auto_pad = attributes.get("auto_pad") or "NOTSET"
        pads = tuple(attributes.get("pads") or (0,) * 2 * rank)
        begin, end = pads[:rank], pads[rank:]
        wanted = attributes.get("output_shape")
        same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
        if wanted or same:
            targets = wanted[-rank:] if wanted else [n * s for n, s in zip(spatial, strides, strict=True)]
            span = windows.extent(kernel, dilations)
            surplus = [
                (size - 1) * step + more + reach - target
                for size, step, more, reach, target in zip(spatial, strides, extra, span, targets, strict=True)
            ]
            small = tuple(max(t, 0) // 2 for t in surplus)
            large = tuple(max(t, 0) - s for t, s in zip(surplus, small, strict=True))
            begin, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
            if wanted:  # a target beyond the last window is filled with zeros; ONNX Runtime does the same
                end = tuple(min(t, 0) or e for t, e in zip(surplus, end, strict=True))
        elif auto_pad == "VALID":
            begin = end = (0,) * rank
        view = Window(kernel, strides, dilations, begin, end)
        return (windows.conv_transpose(x, w, b, view, attributes.get("group") or 1, extra),)


class MaxPool(OpRun):
    """MaxPool, opset 1 on, with its optional indices."""

    def _run(self, x: Array, **attributes: Any) -> Outputs:
        view = _window(x, attributes, attributes["kernel_shape"])
        ceil_mode = bool(attributes.get("ceil_mode"))
        values = windows.max_pool(x, view, ceil_mode=ceil_mode)
        if len(self.onnx_node.output) == 1:
            return (values,)
        column_major = bool(attributes.get("storage_order"))
        return values, windows.max_pool_indices(x, view, ceil_mode=ceil_mode, column_major=column_major)


class AveragePool(OpRun):
    """AveragePool, opset 1 on."""

    def _run(self, x: Array, **attributes: Any) -> Outputs:
        view = _window(x, attributes, attributes["kernel_shape"])
        return (
            windows.average_pool(
                x,
                view,
                ceil_mode=bool(attributes.get("ceil_mode")),
                count_include_pad=bool(attributes.get("count_include_pad")),
            ),
        )


class LpPool(OpRun):
    """LpPool, opset 2 on."""

    def _run(self, x: Array, **attributes: Any) -> Outputs:
        view = _window(x, attributes, attributes["kernel_shape"])
        power = int(attributes.get("p") or 2)
        return (windows.lp_pool(x, view, power, ceil_mode=bool(attributes.get("ceil_mode"))),)


class GridSample(OpRun):
    """GridSample, opset 16 on; ``bilinear`` and ``bicubic`` are what it called its modes there."""

    def _run(self, x: Array, grid: Array, **attributes: Any) -> Outputs:
        mode = str(attributes.get("mode") or "linear").removeprefix("bi")
        padding = str(attributes.get("padding_mode") or "zeros")
        if mode not in ("nearest", "linear", "cubic") or padding not in ("zeros", "border", "reflection"):
            raise NotInFloat64Error(f"GridSample with mode {mode!r} and padding mode {padding!r}")
        aligned = bool(attributes.get("align_corners"))
        return (sampling.grid_sample(x, grid, mode, padding, align_corners=aligned),)  # type: ignore[arg-type]


class DeformConv(OpRun):
    """DeformConv, opset 19 on."""

    def _run(
        self, x: Array, w: Array, offset: Array, b: Array | None = None, mask: Array | None = None, **attributes: Any
    ) -> Outputs:
        view = _window(x, attributes, w.shape[2:])
        groups, shifts = (int(attributes.get(name) or 1) for name in ("group", "offset_group"))
        return (sampling.deform_conv(x, w, offset, b, mask, view, groups, shifts),)


class BatchNormalization(OpRun):
    """``y = scale·(x − mean)/√(var + ε) + B`` on axis 1, opset 7 on; ``training_mode=1`` of opset 14 on as well."""

    def _run(self, x: Array, scale: Array, bias: Array, mean: Array, variance: Array, **attributes: Any) -> Outputs:
        epsilon = float(attributes["epsilon"])
        if attributes.get("training_mode"):
            axes = (0, *range(2, x.ndim))
            own_mean, own_variance = x.mean(axis=axes), x.var(axis=axes)
            momentum = float(attributes["momentum"])
            running = (
                mean * momentum + own_mean * (1 - momentum),
                variance * momentum + own_variance * (1 - momentum),
            )
            return _normalize(x, scale, bias, own_mean, own_variance, epsilon), *running
        if any(self.onnx_node.output[1:]):
            raise NotInFloat64Error("BatchNormalization in the training form of opset 7 to 13")
        return (_normalize(x, scale, bias, mean, variance, epsilon),)


def _normalize(x: Array, scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float) -> Array:
    def spread(parameter: Array) -> Array:
        # spatial=0 (opset 7 and 8) brings parameters of the shape (C, D1, …, Dn).
        return parameter if parameter.ndim > 1 else parameter.reshape(-1, *(1,) * (x.ndim - 2))

    if x.ndim == 1:
        return np.asarray(scale * (x - mean) / np.sqrt(variance + epsilon) + bias)
    result = np.asarray(x - spread(mean))
    result *= spread(scale) / np.sqrt(spread(variance) + epsilon)  # in place: these arrays are the largest of a network
    result += spread(bias)
    return result


def _window(x: Array, attributes: dict[str, Any], kernel: tuple[int, ...]) -> Window:
    return windows.window(
        x.shape[2:],
        kernel,
        strides=attributes.get("strides"),
        dilations=attributes.get("dilations"),
        pads=attributes.get("pads"),
        auto_pad=attributes.get("auto_pad") or "NOTSET",
    )


OPERATORS: tuple[type[OpRun], ...] = (
    Conv,
    ConvTranspose,
    MaxPool,
    AveragePool,
    LpPool,
    GridSample,
    DeformConv,
    BatchNormalization,
    *CORRECTIONS,
    *RECURRENT,
)
