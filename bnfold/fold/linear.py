"""Linear ops and the affines that they absorb: pure numpy, no graph.

With the kernel ``W`` of an op seen as ``(group, out, in, taps)``, every linear op of ONNX computes, for output
channel ``o`` and summed over the inputs and taps that reach one output position::

    y[o] = Σ W[o, i, k] · x[i] + b[o]

An affine ``s, t`` after it gives ``W' = s ⊙ W`` on the output channels and ``b' = s ⊙ b + t``. An affine before it
gives ``W' = W ⊙ s`` on the input channels and ``b' = b + Σ W · t``, where every output position sees every tap; an
op that pads sees zeros instead of ``t`` at its border, so there ``t`` must be zero.

The scales are kept beside the stored kernel, in float64, until :meth:`Linear.rounded_kernel`: each weight is rounded
once, however many affines reach it, and a kernel that no affine reaches is never copied.

How the ops of ONNX store that is told by an :class:`AbsorbingOp` each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.fold.report import Reason, Refusal

if TYPE_CHECKING:
    from bnfold.fold.quantized import Quantization

Array = NDArray[Any]
Attributes = Mapping[str, Any]

#: Weights computed in float64 at a time.
_PIECE = 1 << 16


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear op with the affines that it has absorbed so far.

    Attributes:
        kernel: the stored kernel as ``(group, out, in, taps)``, a view where possible; or a new one in float64.
        taps: the shape of the taps: the spatial sizes of a Conv, the stack of a MatMul's matrices.
        dtype: in which the weight is stored.
        is_new: whether the kernel is not the stored one, but was computed from several.
        out_scale: ``(group · out,)``, float64.
        in_scale: ``(group · in,)``, float64.
        bias: float64, last axis of length ``group · out`` or 1, or None.
        out_magnitude: for each output channel, that of its largest stored weight.
        in_magnitude: for each input channel, likewise.
        quantization: how the weight is stored, where it is as integers, whose kernel is then the dequantized one; such
            a weight can take in factors on its output channels only.
    """

    kernel: Array
    taps: tuple[int, ...]
    dtype: np.dtype[Any]
    is_new: bool
    out_scale: Float64Array
    in_scale: Float64Array
    bias: Float64Array | None
    out_magnitude: Float64Array
    in_magnitude: Float64Array
    quantization: Quantization | None = None

    @staticmethod
    def of(kernel: Array, taps: tuple[int, ...], bias: Array | None) -> Linear:
        """A linear op that has absorbed nothing yet, by its stored kernel."""
        group, out, inner, count = kernel.shape
        flat = kernel.reshape(group, out, inner * count)  # along its longest runs, numpy is many times as fast
        return Linear(
            kernel=kernel,
            taps=taps,
            dtype=kernel.dtype,
            is_new=False,
            out_scale=np.ones(group * out),
            in_scale=np.ones(group * inner),
            bias=None if bias is None else bias.astype(np.float64),
            out_magnitude=_magnitude(flat, 2).reshape(-1),
            in_magnitude=_magnitude(flat, 1).reshape(group * inner, count).max(axis=1),
        )

    @staticmethod
    def computed(kernel: Float64Array, bias: Float64Array | None, dtype: np.dtype[Any]) -> Linear:
        """A linear op of which nothing is stored yet: ``(group, out, in, *taps)``, to be rounded to ``dtype``."""
        flat = kernel.reshape(*kernel.shape[:3], -1)
        return replace(Linear.of(flat, kernel.shape[3:], bias), dtype=dtype, is_new=True)

    @property
    def out_channels(self) -> int:
        """Number of output channels, all groups together."""
        return int(self.out_scale.size)

    @property
    def changed(self) -> bool:
        """Whether the weight is another than the stored one."""
        return self.is_new or bool(np.any(self.out_scale != 1.0) or np.any(self.in_scale != 1.0))

    @property
    def in_channels(self) -> int:
        """Number of input channels, all groups together."""
        return int(self.in_scale.size)

    def after(self, affine: ChannelAffine) -> Linear:
        """``affine ∘ op``; the affine has one entry for each output channel."""
        if self.bias is not None:
            bias: Float64Array | None = affine.scale * self.bias + affine.shift
        else:
            bias = affine.shift if affine.has_shift else None
        return replace(self, out_scale=self.out_scale * affine.scale, bias=bias)

    def before(self, affine: ChannelAffine) -> Linear:
        """``op ∘ affine``; the affine has one entry for each input channel."""
        bias = self.bias
        if affine.has_shift:
            group, out, inner, _ = self.kernel.shape
            shift = (self.in_scale * affine.shift).reshape(group, 1, inner)
            moved = (self.kernel.sum(axis=3, dtype=np.float64) * shift).sum(axis=2).reshape(group * out)
            bias = self.out_scale * moved + (0.0 if bias is None else bias)
        return replace(self, in_scale=self.in_scale * affine.scale, bias=bias)

    def with_uniform_input(self) -> Linear | None:
        """The same with what it multiplies its inputs by in the output scale; None where inputs are treated unlike."""
        if np.any(self.in_scale != self.in_scale[:1]):
            return None
        return replace(self, out_scale=self.out_scale * self.in_scale[0], in_scale=np.ones_like(self.in_scale))

    def rounded_kernel(self) -> Array:
        """The kernel with everything absorbed, each weight rounded once, given that there is no :meth:`problem`."""
        kernel = np.empty(self.kernel.shape, self.dtype)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for index in self._pieces():
                kernel[index] = self._exact(index)
        return kernel

    def rounded_bias(self) -> Array | None:
        """The bias, likewise; None where it is zero and was absent."""
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            return None if self.bias is None else self.bias.astype(self.dtype)

    def rounding_error(self) -> float:
        """The largest ``|rounded − exact|`` of any weight, relative to the largest one of the same output channel."""
        worst = 0.0
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for index in self._pieces():
                exact = self._exact(index)
                largest = _magnitude(exact, (2, 3))
                exact -= exact.astype(self.dtype)
                error = _magnitude(exact, (2, 3))
                worst = max(worst, float((error / np.where(largest > 0, largest, 1)).max(initial=0)))
        return worst

    def exact(self) -> Float64Array:
        """The kernel with everything absorbed, ``(group, out, in, taps)`` in float64."""
        exact = np.empty(self.kernel.shape)
        for index in self._pieces():
            exact[index] = self._exact(index)
        return exact

    def _pieces(self) -> Iterator[tuple[slice, slice]]:
        """The kernel in pieces of some groups, or of some channels of one, whose float64 copies fit in the cache."""
        group, out, inner, taps = self.kernel.shape
        row = max(1, inner * taps)
        groups, rows = max(1, _PIECE // max(1, out * row)), max(1, _PIECE // row)
        for first in range(0, group, groups):
            for start in range(0, out, rows):
                yield slice(first, first + groups), slice(start, start + rows)

    def _exact(self, index: tuple[slice, slice]) -> Float64Array:
        """One piece of the kernel with everything absorbed, in float64."""
        group, out, inner, _ = self.kernel.shape
        exact: Float64Array = self.kernel[index].astype(np.float64)
        exact *= self.out_scale.reshape(group, out, 1, 1)[index]
        if np.any(self.in_scale != 1.0):
            exact *= self.in_scale.reshape(group, 1, inner, 1)[index[0]]
        return exact

    def problem(self) -> Refusal | None:
        """Why the result cannot be stored, if it cannot: it would overflow, or lose a channel to underflow."""
        if not (np.all(np.isfinite(self.out_scale)) and np.all(np.isfinite(self.in_scale))):
            return Refusal(Reason.OVERFLOW, "a folded weight would not be finite")
        if self.quantization is not None:
            changed = self.quantization.times(self.out_scale)
            return changed if isinstance(changed, Refusal) else self._bias_problem()
        return None if self._clearly_fits() else self._measured_problem()

    def _bias_problem(self) -> Refusal | None:
        with np.errstate(over="ignore"):
            if self.bias is None or _all_finite(self.bias.astype(self.dtype)):
                return None
        return Refusal(Reason.OVERFLOW, f"a folded bias would overflow {self.dtype.name}")

    def _clearly_fits(self) -> bool:
        """Whether bounds alone show that nothing overflows or underflows, which they nearly always do."""
        dtype = self.dtype
        out, inner = np.abs(self.out_scale), np.abs(self.in_scale)
        with np.errstate(over="ignore"):
            most = float((self.out_magnitude * out).max() * inner.max())
            least_out = self.out_magnitude * out * _least(inner)
            least_in = self.in_magnitude * inner * _least(out)
        if self.bias is not None:
            most = max(most, float(np.abs(self.bias).max(initial=0)))
        # A channel whose largest weight is far above the subnormal range is rounded like any other.
        floor = _limit(dtype, "tiny") / unit_roundoff(dtype)
        return most < 0.5 * _limit(dtype, "max") and bool(
            np.all((least_out == 0) | (least_out > floor)) and np.all((least_in == 0) | (least_in > floor))
        )

    def _measured_problem(self) -> Refusal | None:
        """Round, and look at what each channel lost.

        A channel is worse off if its error, relative to its largest weight, is more than twice what rounding
        costs, and more than twice what storing the weights as they are had cost it already.
        """
        dtype = self.dtype
        kernel, bias = self.rounded_kernel(), self.rounded_bias()
        if not _all_finite(kernel) or (bias is not None and not _all_finite(bias)):
            return Refusal(Reason.OVERFLOW, f"a folded weight or bias would overflow {dtype.name}")
        exact = self.exact()
        largest, error = np.abs(exact), np.abs(exact - kernel.astype(np.float64))
        half_step = _limit(dtype, "smallest_subnormal") / 2
        for axes, stored in (((2, 3), self.out_magnitude), ((1, 3), self.in_magnitude)):
            own = half_step / np.where((stored > 0) & (not self.is_new), stored, np.inf)
            allowed = 2 * np.maximum(unit_roundoff(dtype), own).reshape(len(exact), -1)
            if np.any(error.max(axis=axes) > allowed * largest.max(axis=axes)):
                return Refusal(Reason.UNDERFLOW, f"a folded channel would underflow {dtype.name}")
        return None


def _magnitude(array: Array, axes: int | tuple[int, ...]) -> Float64Array:
    """The largest magnitude along some axes: two reductions over what is there, rather than one over a copy."""
    largest: Float64Array = np.maximum(array.max(axis=axes), -array.min(axis=axes)).astype(np.float64)
    return largest


def _least(scales: Float64Array) -> float:
    """The smallest scale that is not 0; a channel that is multiplied by 0 loses nothing to rounding."""
    return float(scales[scales > 0].min(initial=np.inf)) if np.any(scales > 0) else 0.0


def unit_roundoff(dtype: np.dtype[Any]) -> float:
    """Half the distance from 1 to the next number: the largest relative error of rounding a normal number."""
    return _limit(dtype, "eps") / 2


def _limit(dtype: np.dtype[Any], name: str) -> float:
    limits: Any = ml_dtypes.finfo  # numpy's own knows nothing of bfloat16; this one serves all dtypes
    return float(getattr(limits(dtype), name))


def _all_finite(array: Array) -> bool:
    # bfloat16 has no isfinite of its own in every numpy; its largest magnitude tells the same.
    return bool(np.isfinite(array.astype(np.float32, copy=False)).all())


@dataclass(frozen=True)
class BiasSlot:
    """The input of an op that holds its bias ``b``, alone or beside other numbers.

    Attributes:
        index: of the input.
        read: ``b``, given what is stored, the number of output channels and the op's attributes; or a refusal.
        stored: what to store, given ``b``, what is stored (None: nothing), and the op's attributes.
    """

    index: int
    read: Callable[[Array, int, Attributes], Array | Refusal]
    stored: Callable[[Array, Array | None, Attributes], Array]


@dataclass(frozen=True)
class AbsorbingOp:
    """How one ONNX op that absorbs an affine of its data, input 0, stores the kernel, input 1: the adapter of that op.

    Attributes:
        bias: where it takes a bias; None where it takes none.
        kernel: the stored weight as ``(group, out, in, taps)``, or a refusal.
        taps: the shape of the taps, given that of the stored weight.
        stored: the weight as it is stored, given the kernel and the shape of its taps.
        input_axis: axis of the data input that the kernel contracts, given its rank (None: not known).
        shift_before: None, or why a shift cannot be absorbed before the op, given the shape of the taps.
    """

    bias: BiasSlot | None
    kernel: Callable[[Array, Attributes], Array | Refusal]
    taps: Callable[[tuple[int, ...]], tuple[int, ...]]
    stored: Callable[[Array, Attributes, tuple[int, ...]], Array]
    input_axis: Callable[[int | None, Attributes], int | None]
    shift_before: Callable[[Attributes, tuple[int, ...]], Refusal | None]


@dataclass(frozen=True)
class LinearOp(AbsorbingOp):
    """The adapter of an op that computes nothing else, and so absorbs an affine of its output as well.

    Attributes:
        output_axis: axis of the output that holds the output channels, given its rank (None: not known).
        window_is_data: whether what an output position sees is computed at run time: it merges with no other op.
    """

    output_axis: Callable[[int | None], int | None]
    window_is_data: bool = False
