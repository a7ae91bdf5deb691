"""How LSTM, GRU and RNN store what they multiply their data with: they absorb an affine before them, never after.

At each step, each gate of each direction begins with the same linear function of the data, and whatever else there is
(states, peepholes, clipping, activations, the lengths of sequences) is added to its result or done to the sum::

    X[t] · Wᵀ + Wb    with W of shape (directions, gates · hidden, in) and Wb of (directions, gates · hidden)

So an affine of the data goes into ``W`` and ``Wb`` as it does into those of a Gemm, nothing is ever padded, and the
recurrent weights and biases ``R`` and ``Rb`` stay as they are. ``Wb`` is stored beside ``Rb``, in one input ``B``.

Source: the ONNX operator specification of LSTM, GRU and RNN, operator set 1 on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bnfold.fold.linear import AbsorbingOp, Array, Attributes, BiasSlot
from bnfold.fold.report import Reason, Refusal


def _directions(attributes: Attributes) -> int:
    return 2 if attributes.get("direction", "forward") == "bidirectional" else 1


def _adapter(gates: int) -> AbsorbingOp:
    """The adapter of an op of so many gates."""

    def kernel(weight: Array, attributes: Attributes) -> Array | Refusal:
        directions = _directions(attributes)
        if weight.ndim != 3 or weight.shape[0] != directions or weight.shape[1] % gates:
            what = f"a weight of shape {weight.shape} where {directions} × a multiple of {gates} × inputs belongs"
            return Refusal(Reason.PARAMETERS_INVALID, what)
        return weight.reshape(1, -1, weight.shape[2], 1)

    return AbsorbingOp(
        bias=BiasSlot(index=3, read=_read_bias, stored=_stored_bias),
        kernel=kernel,
        taps=lambda _shape: (),
        stored=lambda kernel, attributes, _taps: kernel.reshape(_directions(attributes), -1, kernel.shape[2]),
        input_axis=lambda _rank, _attributes: 2,  # in either layout
        shift_before=lambda _attributes, _taps: None,
    )


def _read_bias(stored: Array, channels: int, attributes: Attributes) -> Array | Refusal:
    """The first half of each direction's row."""
    directions = _directions(attributes)
    if stored.shape != (directions, 2 * channels // directions):
        return Refusal(Reason.PARAMETERS_INVALID, f"a bias of shape {stored.shape} for {channels} rows of weights")
    return stored[:, : channels // directions].reshape(-1)


def _stored_bias(bias: Array, present: Array | None, attributes: Attributes) -> Array:
    """The bias beside that of the recurrent weights, which is 0 where there was none."""
    rows = bias.reshape(_directions(attributes), -1)
    recurrent = np.zeros_like(rows) if present is None else present[:, rows.shape[1] :]
    return np.concatenate([rows, recurrent], axis=1)


#: The ops that are no linear ones, but begin with one.
RECURRENT_OPS: Mapping[str, AbsorbingOp] = {"LSTM": _adapter(4), "GRU": _adapter(3), "RNN": _adapter(1)}
