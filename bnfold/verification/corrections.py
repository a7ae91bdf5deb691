"""Operators that :mod:`onnx.reference` lacks, computes wrongly, or computes in float32; here in float64.

Found by holding all of onnx 1.23's node tests, at every opset that they are valid in, and the older forms of operators
against ONNX Runtime:

===================================  =================================================================================
DequantizeLinear                     missing in opset 10 to 18, and float32 inside later
Softmax, LogSoftmax, Hardmax         to opset 12 they act on all axes from ``axis`` on, which defaults to 1
Resize of opset 10, Upsample         missing in part
LRN                                  the sum over channels runs over the batch
Loop, Scan                           what they collect is joined where it must be stacked; other axes and directions
Scatter, GlobalLpPool                missing
NonMaxSuppression                    fails without its optional inputs
Pad                                  fails where it takes elements away
AffineGrid                           float32 inside
===================================  =================================================================================
"""

# mypy: disable-error-code="arg-type, no-untyped-call, override"
# onnx.reference is typed in part.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_non_max_suppression import NonMaxSuppression as _NonMaxSuppression
from onnx.reference.ops.op_resize import Resize as _Resize
from onnx.reference.ops.op_scatter_elements import scatter_elements

from bnfold.verification.double import NotInFloat64Error

Array = NDArray[Any]
Outputs = tuple[Array, ...]


def _opset(node: OpRun) -> int:
    """The version of the ONNX operators that the node's model uses."""
    return int(node.run_params["opsets"][""])


def _stated(node: OpRun, name: str) -> bool:
    """Whether the node itself has an attribute, not only a default of the newest opset."""
    return any(attribute.name == name for attribute in node.onnx_node.attribute)


class DequantizeLinear(OpRun):
    """``y = (x − zero_point)·scale``: per tensor, per axis, or per block of an axis (opset 21 on)."""

    def _run(self, x: Array, scale: Array, zero_point: Array | None = None, **attributes: Any) -> Outputs:
        axis, block = int(attributes.get("axis", 1)), int(attributes.get("block_size") or 0)

        def spread(parameter: Array) -> Array:
            wide = parameter.astype(np.float64)
            if wide.size == 1:
                return wide.reshape(())
            if block:
                return np.repeat(wide, block, axis=axis).take(range(x.shape[axis]), axis=axis)
            sizes = [1] * x.ndim
            sizes[axis] = wide.size
            return wide.reshape(sizes)

        shifted = x.astype(np.float64)
        if zero_point is not None:
            shifted = shifted - spread(zero_point)
        return (np.asarray(shifted * spread(scale)),)


def _class_axes(node: OpRun, x: Array, axis: int) -> tuple[int, ...]:
    """The axes over which a softmax sums to one."""
    if _opset(node) >= 13:
        return (axis % x.ndim,)
    first = axis if _stated(node, "axis") else 1
    return tuple(range(first % x.ndim, x.ndim))


def _log_softmax(node: OpRun, x: Array, axis: int) -> Array:
    if not x.size:
        return x
    axes = _class_axes(node, x, axis)
    shifted = x - x.max(axis=axes, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axes, keepdims=True)))


class Softmax(OpRun):
    """``exp(x)/Σ exp(x)``, opset 1 on."""

    def _run(self, x: Array, axis: int = -1) -> Outputs:
        return (np.exp(_log_softmax(self, x, axis)),)


class LogSoftmax(OpRun):
    """``x − log Σ exp(x)``, opset 1 on."""

    def _run(self, x: Array, axis: int = -1) -> Outputs:
        return (_log_softmax(self, x, axis),)


class Hardmax(OpRun):
    """One where the first of the largest elements is, zero elsewhere; opset 1 on."""

    def _run(self, x: Array, axis: int = -1) -> Outputs:
        axes = _class_axes(self, x, axis)
        moved = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
        rows = moved.reshape(-1, int(np.prod(moved.shape[x.ndim - len(axes) :])))
        result = np.zeros_like(rows)
        if x.size:
            result[np.arange(len(rows)), rows.argmax(axis=1)] = 1
        return (np.moveaxis(result.reshape(moved.shape), range(x.ndim - len(axes), x.ndim), axes),)


#: What Resize of opset 10 and Upsample do; the attributes that say so came later.
_ASYMMETRIC: Mapping[str, Any] = {
    "coordinate_transformation_mode": "asymmetric",
    "cubic_coeff_a": -0.75,
    "exclude_outside": 0,
    "extrapolation_value": 0.0,
    "nearest_mode": "floor",
}


class Resize(_Resize):
    """Resize, opset 10 on."""

    def _run(self, x: Array, *inputs: Array | None, **attributes: Any) -> Outputs:
        if _opset(self) == 10:
            inputs, attributes = (None, inputs[0]), {**attributes, **_ASYMMETRIC}
        result: Outputs = super()._run(x, *inputs, **attributes)
        return result


class Upsample(_Resize):
    """Upsample, opset 7 to 9: in 7 and 8 the scales are an attribute."""

    scales: Sequence[float]

    def _run(self, x: Array, *inputs: Array | None, **attributes: Any) -> Outputs:
        scales = inputs[0] if inputs else np.asarray(self.scales, dtype=np.float64)
        mode = "linear" if attributes["mode"] in ("linear", "bilinear") else attributes["mode"]
        result: Outputs = super()._run(x, None, scales, mode=mode, **_ASYMMETRIC)
        return result


class Pad(OpRun):
    """Pad, opset 1 on: elements are taken away where a number is negative, then added where one is positive."""

    paddings: Sequence[int]
    pads: Sequence[int]

    def _run(self, x: Array, *inputs: Array | None, **attributes: Any) -> Outputs:
        if _opset(self) < 11:  # when all of it was attributes
            inputs = (np.array(self.paddings if _opset(self) < 2 else self.pads), np.array(getattr(self, "value", 0.0)))
        given, value, axes = (*inputs, None, None)[:3]
        pads = [int(pad) for pad in np.ravel(given)]
        places = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in np.ravel(axes)]
        widths, window = [(0, 0)] * x.ndim, [slice(None)] * x.ndim
        for number, axis in enumerate(places):
            begin, end = pads[number], pads[number + len(places)]
            window[axis] = slice(max(-begin, 0), x.shape[axis] - max(-end, 0))
            widths[axis] = max(begin, 0), max(end, 0)
        mode = attributes["mode"]
        settings = {"constant_values": 0 if value is None else value} if mode == "constant" else {}
        return (np.pad(x[tuple(window)], widths, mode=mode, **settings).astype(x.dtype),)


class Scatter(OpRun):
    """The former name of ScatterElements, opset 9 and 10."""

    def _run(self, data: Array, indices: Array, updates: Array, axis: int = 0) -> Outputs:
        return (scatter_elements(data, indices, updates, axis=axis),)


class GlobalLpPool(OpRun):
    """``(Σ |x|^p)^(1/p)`` over all spatial axes."""

    def _run(self, x: Array, p: int = 2) -> Outputs:
        total = (np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
        return (np.asarray(total ** (1.0 / p)),)


class LRN(OpRun):
    """``x / (bias + alpha/size · Σ x²)^beta``, the sum over ``size`` neighbouring channels."""

    def _run(self, x: Array, **attributes: Any) -> Outputs:
        size = int(attributes["size"])
        before, after = (size - 1) // 2, size // 2
        squares = np.pad(x**2, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
        total = sum(squares[:, tap : tap + x.shape[1]] for tap in range(size))
        scale = attributes["alpha"] / size
        return (np.asarray(x / (attributes["bias"] + scale * total) ** attributes["beta"]),)


class _WithBody(OpRun):
    """An operator whose subgraph may read values of the outer graph."""

    body: Any

    def need_context(self) -> bool:
        """Whether it is handed those values."""
        return True


class Loop(_WithBody):
    """Loop, opset 1 on; what each step yields beside its state is stacked along a new first axis."""

    def _run(
        self,
        trip_count: Array | None,
        condition: Array | None,
        *state: Any,
        context: Mapping[str, Any] | None = None,
        attributes: dict[str, Any] | None = None,
        **_settings: Any,
    ) -> tuple[Any, ...]:
        names, carried = self.body.input_names, list(state)
        collected: list[list[Array]] = [[] for _ in self.body.output_names[1 + len(carried) :]]
        going, step = condition is None or bool(np.all(condition)), 0
        while going and (trip_count is None or step < int(np.ravel(trip_count)[0])):
            values = {**(context or {}), names[0]: np.array(step, dtype=np.int64), names[1]: np.array(True)}
            values.update(zip(names[2:], carried, strict=True))
            again, *results = self.body.run(None, values, attributes=attributes)
            carried = results[: len(carried)]
            for found, result in zip(collected, results[len(carried) :], strict=True):
                found.append(result)
            going, step = bool(np.all(again)), step + 1
        return (*carried, *(_stacked(found) for found in collected))


class Scan(_WithBody):
    """Scan, opset 9 on, with its axes and directions."""

    def _run(self, *inputs: Array, context: Mapping[str, Any] | None = None, **attributes: Any) -> Outputs:
        if _opset(self) < 9:
            raise NotInFloat64Error("Scan of opset 8")
        count = int(attributes["num_scan_inputs"])
        state, scanned = list(inputs[:-count]), inputs[-count:]
        axes, directions = (attributes.get(f"scan_input_{kind}") or [0] * count for kind in ("axes", "directions"))
        rows = [
            np.moveaxis(value, axis, 0)[:: -1 if direction else 1]
            for value, axis, direction in zip(scanned, axes, directions, strict=True)
        ]
        collected: list[list[Array]] = [[] for _ in self.body.output_names[len(state) :]]
        for row in zip(*rows, strict=True):
            values = {**(context or {}), **dict(zip(self.body.input_names, (*state, *row), strict=True))}
            results = self.body.run(None, values, attributes=attributes.get("attributes"))
            state = results[: len(state)]
            for found, result in zip(collected, results[len(state) :], strict=True):
                found.append(result)
        total = len(collected)
        axes, directions = (attributes.get(f"scan_output_{kind}") or [0] * total for kind in ("axes", "directions"))
        outputs = (
            np.moveaxis(_stacked(found)[:: -1 if direction else 1], 0, axis)
            for found, axis, direction in zip(collected, axes, directions, strict=True)
        )
        return (*state, *outputs)


def _stacked(found: list[Array]) -> Array:
    if not found:
        raise NotInFloat64Error("a loop of no steps yields values whose shape nobody knows")
    return np.stack(found)


class NonMaxSuppression(_NonMaxSuppression):
    """NonMaxSuppression, opset 10 on; the limits left out are those of the specification."""

    def _run(self, boxes: Array, scores: Array, *limits: Array | None, **attributes: Any) -> Outputs:
        defaults = (np.zeros(1, dtype=np.int64), np.zeros(1), np.full(1, -np.inf))
        given = (*limits, None, None, None)
        filled = (
            default if limit is None else np.ravel(limit) for limit, default in zip(given, defaults, strict=False)
        )
        result: Outputs = super()._run(boxes, scores, *filled, **attributes)
        return result


class AffineGrid(OpRun):
    """AffineGrid, opset 20 on."""

    def _run(self, theta: Array, size: Array, align_corners: int = 0) -> Outputs:
        spatial = [int(n) for n in size[2:]]
        axes = [np.linspace(-1, 1, n) if align_corners and n > 1 else (2 * np.arange(n) + 1) / n - 1 for n in spatial]
        places = np.stack([*np.meshgrid(*axes, indexing="ij")[::-1], np.ones(spatial)], axis=-1)  # x, y(, z), 1
        return (np.asarray(np.einsum("...k,nck->n...c", places, theta)),)


CORRECTIONS: tuple[type[OpRun], ...] = (
    AffineGrid,
    DequantizeLinear,
    GlobalLpPool,
    Hardmax,
    LRN,
    LogSoftmax,
    Loop,
    NonMaxSuppression,
    Pad,
    Resize,
    Scan,
    Scatter,
    Softmax,
    Upsample,
)
