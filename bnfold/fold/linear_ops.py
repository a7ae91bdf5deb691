"""How Conv, ConvTranspose, DeformConv, Gemm and MatMul store their kernels: the adapters of the ops that are linear.

Source: the ONNX operator specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bnfold.fold.linear import Array, Attributes, BiasSlot, LinearOp
from bnfold.fold.report import Reason, Refusal


def _conv_kernel(weight: Array, attributes: Attributes) -> Array | Refusal:
    group = int(attributes.get("group", 1))
    if weight.ndim < 3 or group < 1 or weight.shape[0] % group:
        return Refusal(Reason.PARAMETERS_INVALID, f"a weight of shape {weight.shape} with group={group}")
    return weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)


def _conv_stored(kernel: Array, _attributes: Attributes, taps: tuple[int, ...]) -> Array:
    group, out, inner, _ = kernel.shape
    return kernel.reshape(group * out, inner, *taps)


def _transposed_kernel(weight: Array, attributes: Attributes) -> Array | Refusal:
    kernel = _conv_kernel(weight, attributes)  # the same grouping, with inputs where a Conv has outputs
    return kernel if isinstance(kernel, Refusal) else kernel.transpose(0, 2, 1, 3)


def _transposed_stored(kernel: Array, attributes: Attributes, taps: tuple[int, ...]) -> Array:
    return _conv_stored(kernel.transpose(0, 2, 1, 3), attributes, taps)


def _gemm_kernel(weight: Array, attributes: Attributes) -> Array | Refusal:
    if weight.ndim != 2:
        return Refusal(Reason.PARAMETERS_INVALID, f"a Gemm weight of rank {weight.ndim}")
    rows = weight if attributes.get("transB", 0) else weight.T
    return rows[None, :, :, None]


def _gemm_stored(kernel: Array, attributes: Attributes, _taps: tuple[int, ...]) -> Array:
    rows: Array = kernel[0, :, :, 0]
    return rows if attributes.get("transB", 0) else rows.T


def _matmul_kernel(weight: Array, _attributes: Attributes) -> Array | Refusal:
    if weight.ndim < 2:
        return Refusal(Reason.AXIS_MISMATCH, "a MatMul by a vector has no axis of output channels")
    # (…, K, N): a stack of matrices becomes the taps of one.
    inner, out = weight.shape[-2:]
    return weight.reshape(-1, inner, out).transpose(2, 1, 0)[None]


def _matmul_stored(kernel: Array, _attributes: Attributes, taps: tuple[int, ...]) -> Array:
    matrices: Array = kernel[0].transpose(2, 1, 0)
    return matrices.reshape(*taps, *matrices.shape[1:])


def _conv_shift(attributes: Attributes, taps: tuple[int, ...]) -> Refusal | None:
    if all(size == 1 for size in taps):
        # A 1×1 kernel never needs padding, but explicit pads would still add border pixels.
        padded = attributes.get("auto_pad", "NOTSET") == "NOTSET" and any(attributes.get("pads", ()))
    else:
        auto_pad = attributes.get("auto_pad", "NOTSET")
        padded = auto_pad.startswith("SAME") or (auto_pad == "NOTSET" and any(attributes.get("pads", ())))
    if padded:
        return Refusal(Reason.PADDING, "the convolution pads with zeros, where the batch norm has a shift")
    return None


def _transposed_shift(attributes: Attributes, taps: tuple[int, ...]) -> Refusal | None:
    """Only a 1×1 kernel at stride 1 gives every output position every tap.

    Already at ``kernel = stride`` each position sees one tap of its own, so the shift would become a pattern.
    """
    plain = (
        all(size == 1 for size in taps)
        and all(stride == 1 for stride in attributes.get("strides", ()))
        and not any(attributes.get("pads", ()))
        and not any(attributes.get("output_padding", ()))
        and not attributes.get("output_shape")
        and attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )
    if plain:
        return None
    return Refusal(Reason.NONZERO_SHIFT, "a transposed convolution spreads a shift unevenly over its output positions")


def _deformed_shift(_attributes: Attributes, _taps: tuple[int, ...]) -> Refusal | None:
    return Refusal(Reason.PADDING, "the deformable convolution may look beyond the border, where it sees zeros")


def _matmul_shift(_attributes: Attributes, taps: tuple[int, ...]) -> Refusal | None:
    if taps:
        return Refusal(Reason.NONZERO_SHIFT, "each matrix of the stack would turn the shift into another bias")
    return None


def _last(rank: int | None) -> int | None:
    return None if rank is None else rank - 1


def _whole_bias(stored: Array, channels: int, _attributes: Attributes) -> Array | Refusal:
    if stored.ndim and stored.shape[-1] not in (1, channels):
        return Refusal(Reason.PARAMETERS_INVALID, f"a bias of shape {stored.shape} for {channels} channels")
    return stored


_BIAS = BiasSlot(index=2, read=_whole_bias, stored=lambda bias, _present, _attributes: bias)

_CONV = LinearOp(
    bias=_BIAS,
    kernel=_conv_kernel,
    taps=lambda shape: shape[2:],
    stored=_conv_stored,
    input_axis=lambda _rank, _attributes: 1,
    output_axis=lambda _rank: 1,
    shift_before=_conv_shift,
)

#: The ops of ONNX that are linear, and absorb an affine before and after them.
LINEAR_OPS: Mapping[str, LinearOp] = {
    "Conv": _CONV,
    "ConvTranspose": replace(
        _CONV, kernel=_transposed_kernel, stored=_transposed_stored, shift_before=_transposed_shift
    ),
    "DeformConv": replace(_CONV, bias=replace(_BIAS, index=3), shift_before=_deformed_shift, window_is_data=True),
    "Gemm": LinearOp(
        bias=_BIAS,
        kernel=_gemm_kernel,
        taps=lambda _shape: (),
        stored=_gemm_stored,
        input_axis=lambda _rank, attributes: 0 if attributes.get("transA", 0) else 1,
        output_axis=lambda _rank: 1,
        shift_before=lambda _attributes, _taps: None,
    ),
    "MatMul": LinearOp(
        bias=None,
        kernel=_matmul_kernel,
        taps=lambda shape: shape[:-2],
        stored=_matmul_stored,
        input_axis=lambda rank, _attributes: _last(rank),
        output_axis=_last,
        shift_before=_matmul_shift,
    ),
}
