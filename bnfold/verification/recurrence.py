"""LSTM, GRU and RNN in float64: one loop over time, both layouts, every direction, setting and activation.

:mod:`onnx.reference` of onnx 1.23 ignores ``sequence_lens``, ``clip``, ``input_forget``, and the activations of LSTM
and GRU. With ``x`` the data of one step, ``h`` and ``c`` the states, ``⊙`` elementwise, and ``W``, ``R``, ``p``, ``b``
of each gate its rows of the weights, of the peepholes and of ``Wb + Rb``::

    RNN     h' = f(W·x + R·h + b)
    GRU     z  = f(W·x + R·h + b)              r = f(W·x + R·h + b)
            n  = g(W·x + R·(r ⊙ h) + b)        or, with linear_before_reset,  g(W·x + Wb + r ⊙ (R·h + Rb))
            h' = (1 − z) ⊙ n + z ⊙ h
    LSTM    i  = f(W·x + R·h + p ⊙ c + b)      u = f(W·x + R·h + p ⊙ c + b), the forget gate; 1 − i with input_forget
            c' = u ⊙ c + i ⊙ g(W·x + R·h + b)
            o  = f(W·x + R·h + p ⊙ c' + b)     h' = o ⊙ h(c')

``clip`` bounds what goes into the activations of the gates. A sequence that is shorter than the others yields zeros
beyond its end and leaves its states as they are; read in reverse, it begins with its own last step.

Source: the ONNX operator specification of LSTM, GRU and RNN, and ONNX Runtime for what that leaves open.
"""

# mypy: disable-error-code="override"
# onnx.reference is typed in part.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from bnfold.verification.double import NotInFloat64Error

Array = NDArray[Any]
States = tuple[Array, ...]
Outputs = tuple[Array, ...]
Function = Callable[[Array], Array]

#: From what a direction's step gets of the data, ``W·x``, and the states to the next states; the first is the output.
Step = Callable[[Array, States], States]


@dataclass(frozen=True)
class _Activation:
    """A function with up to two parameters, and their defaults; None where there is none that all agree on."""

    function: Callable[[Array, float, float], Array]
    parameters: int = 0
    alpha: float | None = None
    beta: float | None = None


_ACTIVATIONS: Mapping[str, _Activation] = {
    "affine": _Activation(lambda x, a, b: a * x + b, 2),
    "elu": _Activation(lambda x, a, _: np.where(x >= 0, x, a * np.expm1(np.minimum(x, 0))), 1, 1.0),
    "hardsigmoid": _Activation(lambda x, a, b: np.clip(a * x + b, 0, 1), 2, 0.2, 0.5),
    "leakyrelu": _Activation(lambda x, a, _: np.where(x >= 0, x, a * x), 1, 0.01),
    "relu": _Activation(lambda x, _a, _b: np.maximum(x, 0)),
    "scaledtanh": _Activation(lambda x, a, b: a * np.tanh(b * x), 2),
    "sigmoid": _Activation(lambda x, _a, _b: 0.5 * (1 + np.tanh(0.5 * x))),
    "softplus": _Activation(lambda x, _a, _b: np.logaddexp(0, x)),
    "softsign": _Activation(lambda x, _a, _b: x / (1 + np.abs(x))),
    "tanh": _Activation(lambda x, _a, _b: np.tanh(x)),
    # Its operator has 1 for a default, and ONNX Runtime has 0 here.
    "thresholdedrelu": _Activation(lambda x, a, _: np.where(x >= a, x, 0), 1),
}


class LSTM(OpRun):
    """LSTM, opset 7 on."""

    def _run(
        self,
        x: Array,
        w: Array,
        r: Array,
        b: Array | None = None,
        lengths: Array | None = None,
        h: Array | None = None,
        c: Array | None = None,
        p: Array | None = None,
        **attributes: Any,
    ) -> Outputs:
        coupled, clip = bool(attributes.get("input_forget")), _clip(attributes)
        settings = _functions(attributes, ("sigmoid", "tanh", "tanh"), len(w))

        def step(direction: int) -> Step:
            f, g, last = settings[direction]
            recurrent = r[direction].T
            peepholes = np.zeros((3, r.shape[2])) if p is None else p[direction].reshape(3, -1)
            bias = _bias(b, r, direction).sum(axis=0)

            def advance(fed: Array, states: States) -> States:
                hidden, cell = states
                i, o, u, n = np.split(fed + hidden @ recurrent + bias, 4, axis=-1)
                i = f(clip(i + peepholes[0] * cell))
                u = 1 - i if coupled else f(clip(u + peepholes[2] * cell))
                cell = u * cell + i * g(clip(n))
                return f(clip(o + peepholes[1] * cell)) * last(cell), cell

            return advance

        return _unrolled(x, w, r.shape[2], step, lengths, (h, c), attributes)


class GRU(OpRun):
    """GRU, opset 7 on."""

    def _run(
        self,
        x: Array,
        w: Array,
        r: Array,
        b: Array | None = None,
        lengths: Array | None = None,
        h: Array | None = None,
        **attributes: Any,
    ) -> Outputs:
        reset_after, clip = bool(attributes.get("linear_before_reset")), _clip(attributes)
        settings = _functions(attributes, ("sigmoid", "tanh"), len(w))

        def step(direction: int) -> Step:
            f, g = settings[direction]
            gates, candidate = np.split(r[direction].T, [2 * r.shape[2]], axis=1)
            bias, (own, recurrent) = np.split(_bias(b, r, direction), [2 * r.shape[2]], axis=1)

            def advance(fed: Array, states: States) -> States:
                (hidden,) = states
                first, second = np.split(fed, [2 * hidden.shape[-1]], axis=-1)
                z, reset = np.split(f(clip(first + hidden @ gates + bias.sum(axis=0))), 2, axis=-1)
                if reset_after:
                    n = second + own + reset * (hidden @ candidate + recurrent)
                else:
                    n = second + own + (reset * hidden) @ candidate + recurrent
                return ((1 - z) * g(clip(n)) + z * hidden,)

            return advance

        return _unrolled(x, w, r.shape[2], step, lengths, (h,), attributes)


class RNN(OpRun):
    """RNN, opset 7 on."""

    def _run(
        self,
        x: Array,
        w: Array,
        r: Array,
        b: Array | None = None,
        lengths: Array | None = None,
        h: Array | None = None,
        **attributes: Any,
    ) -> Outputs:
        clip, settings = _clip(attributes), _functions(attributes, ("tanh",), len(w))

        def step(direction: int) -> Step:
            (f,) = settings[direction]
            recurrent, bias = r[direction].T, _bias(b, r, direction).sum(axis=0)
            return lambda fed, states: (f(clip(fed + states[0] @ recurrent + bias)),)

        return _unrolled(x, w, r.shape[2], step, lengths, (h,), attributes)


def _bias(b: Array | None, r: Array, direction: int) -> Array:
    """``Wb`` and ``Rb`` of a direction, one row each."""
    return np.zeros((2, r.shape[1])) if b is None else b[direction].reshape(2, -1)


def _clip(attributes: Mapping[str, Any]) -> Function:
    bound = attributes.get("clip")
    return (lambda x: x) if bound is None else (lambda x: np.clip(x, -bound, bound))


def _functions(attributes: Mapping[str, Any], defaults: Sequence[str], directions: int) -> list[list[Function]]:
    """The activations of each direction; ``alpha`` and ``beta`` are taken in their order by those that have them."""
    names = [str(name).lower() for name in attributes.get("activations") or ()][: directions * len(defaults)]
    names = names or [*defaults] * directions
    unknown = [name for name in names if name not in _ACTIVATIONS]
    if unknown or len(names) != directions * len(defaults):
        raise NotInFloat64Error(f"{directions} × {len(defaults)} activations, given as {names}")
    alphas, betas = (iter(attributes.get(f"activation_{name}") or ()) for name in ("alpha", "beta"))
    functions = [_bound(name, alphas, betas) for name in names]
    return [functions[start : start + len(defaults)] for start in range(0, len(functions), len(defaults))]


def _bound(name: str, alphas: Iterator[float], betas: Iterator[float]) -> Function:
    activation = _ACTIVATIONS[name]
    alpha = next(alphas, activation.alpha) if activation.parameters > 0 else 0.0
    beta = next(betas, activation.beta) if activation.parameters > 1 else 0.0
    if alpha is None or beta is None:
        raise NotInFloat64Error(f"the activation {name} without its parameters")
    return lambda x: activation.function(x, float(alpha), float(beta))


def _unrolled(
    x: Array,
    w: Array,
    hidden: int,
    step: Callable[[int], Step],
    lengths: Array | None,
    initial: tuple[Array | None, ...],
    attributes: Mapping[str, Any],
) -> Outputs:
    """The outputs of all steps, and the last states, of all directions.

    Args:
        x: ``(time, batch, in)``, or ``(batch, time, in)`` in layout 1.
        w: ``(directions, gates · hidden, in)``.
        hidden: the size of a state.
        step: what each direction does at each step.
        lengths: of the sequences, ``(batch,)``; None where all have that of the data.
        initial: ``(directions, batch, hidden)``, or ``(batch, directions, hidden)`` in layout 1, each; None for zeros.
        attributes: of the node.
    """
    batch_first = bool(attributes.get("layout"))
    reverse = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[attributes["direction"]]
    if len(w) != len(reverse):
        raise NotInFloat64Error(f"{len(w)} weight matrices for {len(reverse)} directions")
    x = x.swapaxes(0, 1) if batch_first else x
    time, batch = x.shape[:2]
    ends = np.full(batch, time) if lengths is None else lengths.astype(np.int64)
    least = int(any(states is not None for states in initial))  # an empty one may keep its first state, or have none
    if np.any((ends < least) | (ends > time)):
        raise NotInFloat64Error(f"sequences of lengths {ends.tolist()} in {time} steps")
    steps = np.arange(time)[:, None]
    mirrored = np.where(steps < ends, ends - 1 - steps, steps)[:, :, None]
    results: list[tuple[Array, States]] = []
    for direction, backward in enumerate(reverse):
        states = tuple(
            np.zeros((batch, hidden)) if s is None else (s.swapaxes(0, 1) if batch_first else s)[direction]
            for s in initial
        )
        fed = (np.take_along_axis(x, mirrored, axis=0) if backward else x) @ w[direction].T
        outputs, last = _run_through(fed, step(direction), states, ends)
        results.append((np.take_along_axis(outputs, mirrored, axis=0) if backward else outputs, last))
    y = np.stack([outputs for outputs, _ in results], axis=1)
    lasts = [np.stack(state) for state in zip(*(states for _, states in results), strict=True)]
    if batch_first:
        return y.transpose(2, 0, 1, 3), *(last.swapaxes(0, 1) for last in lasts)
    return y, *lasts


def _run_through(fed: Array, step: Step, states: States, ends: Array) -> tuple[Array, States]:
    """The outputs of all steps in their order, and the states behind the last one of each sequence."""
    outputs = np.zeros((*fed.shape[:2], states[0].shape[-1]))
    for t, row in enumerate(fed):
        goes_on = (t < ends)[:, None]
        new = step(row, states)
        states = tuple(np.where(goes_on, after, before) for after, before in zip(new, states, strict=True))
        outputs[t] = np.where(goes_on, states[0], 0)
    return outputs, states


RECURRENT: tuple[type[OpRun], ...] = (LSTM, GRU, RNN)
