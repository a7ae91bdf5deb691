"""Is a normalized layer blind to the scale of its weights? Identities, which hold to rounding or do not hold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnfold.batch_norm import DEFAULT_EPS, Forward, forward_training
from bnfold.studies.intervals import extremes, series
from bnfold.studies.laboratory import Laboratory
from bnfold.studies.result import Chart, Finding, Outcome, Region, Table
from bnfold.studies.sources import IOFFE_SZEGEDY, VAN_LAARHOVEN

#: Factors of the weights: powers of ten, which rounding does not pass over.
SCALES = np.array([1e-4, 1e-3, 1e-2, 1e-1, 1e1, 1e2, 1e3, 1e4])

_EXACT = Region(-1.0, 1e-10, "below 1e-10")
_STEPS = 200
_RATE = 0.1


class _Layer:
    """A linear layer and its batch norm in float64, with a loss behind them: ``L = Σ c·y``, ``y = BN(u W)``."""

    def __init__(self, seed: int, u: NDArray[np.float64], width: int = 32) -> None:
        random = np.random.default_rng(seed)
        self.u = u
        self.weight = random.standard_normal((u.shape[1], width)) / np.sqrt(u.shape[1])
        self.gamma, self.beta = random.uniform(0.5, 2, width), random.standard_normal(width)
        self.upstream = random.standard_normal((len(u), width)) / len(u)

    def forward(self, weight: NDArray[np.float64], eps: float = 0.0) -> Forward:
        return forward_training(self.u @ weight, self.gamma, self.beta, eps=eps)

    def gradient(self, weight: NDArray[np.float64], eps: float = 0.0) -> NDArray[np.float64]:
        return np.asarray(self.u.T @ self.forward(weight, eps).backward(self.upstream).x)


def run(lab: Laboratory) -> Outcome:
    """Each identity's largest violation over all scales, for each seed."""
    u = lab.task.fit.first(128).x.double().numpy()
    layers = [_Layer(seed, u) for seed in lab.seeds]
    violations: dict[str, list[float]] = {"output": [], "gradient": [], "orthogonal": [], "step": [], "length": []}
    for done, layer in enumerate(layers):
        for name, value in _violations(layer).items():
            violations[name].append(value)
        lab.progress(lab.stage, done + 1, len(layers))
    with_eps = np.array([[_output_change(layer, scale, DEFAULT_EPS) for layer in layers] for scale in SCALES])
    without = np.array([[_output_change(layer, scale, 0.0) for layer in layers] for scale in SCALES])
    words = {
        "output": ("Scaling the weights of a normalized layer does not change its output.",
                   "largest change of BN(a·W u), relative to the largest output"),
        "gradient": ("Larger weights get smaller gradients: ∂L/∂(aW) = 1/a · ∂L/∂W.",
                     "largest error of a·∂L/∂(aW) against ∂L/∂W, relative"),
        "orthogonal": ("The gradient is orthogonal to the weights of each unit: it turns them, and stretches none.",
                       "largest |⟨w, ∂L/∂w⟩| over ‖w‖·‖∂L/∂w‖"),
        "step": ("A step on weights that are a times as long, at a² times the learning rate, gives the same function.",
                 "largest difference of the outputs after the step, relative"),
        "length": ("Plain gradient descent lengthens the weights by exactly the steps: ‖w − ηg‖² = ‖w‖² + η²‖g‖².",
                   f"largest relative error of ‖w‖² over {_STEPS} steps"),
    }  # fmt: skip
    sources = {"output": IOFFE_SZEGEDY, "gradient": IOFFE_SZEGEDY}
    return Outcome(
        name="scale_invariance",
        title="Is a normalized layer blind to the scale of its weights?",
        setup=(
            "A linear layer of 32 units with batch norm on 128 digits, ε = 0, in float64, with the gradients of "
            "docs/batch_norm.md in numpy. Weights are scaled by 1e-4 to 1e4. For each seed the largest violation of "
            "each identity counts; given are the median and the range over seeds, and an identity holds if all of them "
            "are rounding."
        ),
        findings=tuple(
            Finding(claim, sources.get(name, VAN_LAARHOVEN), quantity, extremes(violations[name]), _EXACT, "{:.1e}")
            for name, (claim, quantity) in words.items()
        ),
        tables=(
            Table(
                "Relative change of the output by scale (largest over seeds)",
                ("scale a", "ε = 0", f"ε = {DEFAULT_EPS:g}"),
                tuple(
                    (f"{scale:g}", f"{without[row].max():.1e}", f"{with_eps[row].max():.1e}")
                    for row, scale in enumerate(SCALES)
                ),
            ),
        ),
        charts=(
            Chart(
                "What ε breaks",
                "scale of the weights",
                "relative change of the output",
                (
                    series(f"ε = {DEFAULT_EPS:g}", SCALES, np.maximum(with_eps, 1e-17)),
                    series("ε = 0", SCALES, np.maximum(without, 1e-17)),
                ),
                x_log=True,
                y_log=True,
            ),
        ),
        caveats=(
            "With ε the invariance is one of large weights only: where the variance of the layer comes near ε, the "
            "scale matters, as the table shows."
        ),
    )


def _violations(layer: _Layer) -> dict[str, float]:
    weight = layer.weight
    gradient = layer.gradient(weight)
    changes, errors, steps = [], [], []
    stepped = layer.forward(weight - _RATE * gradient).y
    for scale in SCALES:
        changes.append(_output_change(layer, float(scale), 0.0))
        scaled = layer.gradient(scale * weight)
        errors.append(_relative(scale * scaled, gradient))
        steps.append(_relative(layer.forward(scale * weight - _RATE * scale**2 * scaled).y, stepped))
    lengths = np.linalg.norm(weight, axis=0) * np.linalg.norm(gradient, axis=0)
    cosines = np.abs((weight * gradient).sum(0)) / lengths
    return {
        "output": max(changes),
        "gradient": max(errors),
        "orthogonal": float(cosines.max()),
        "step": max(steps),
        "length": _length_error(layer),
    }


def _length_error(layer: _Layer) -> float:
    """How far ‖w‖² is from its start plus the squared steps, at most, along gradient descent."""
    weight = layer.weight.copy()
    wanted = (weight**2).sum(0)
    worst = 0.0
    for _ in range(_STEPS):
        step = _RATE * layer.gradient(weight)
        weight -= step
        wanted += (step**2).sum(0)
        worst = max(worst, _relative((weight**2).sum(0), wanted))
    return worst


def _output_change(layer: _Layer, scale: float, eps: float) -> float:
    return _relative(layer.forward(scale * layer.weight, eps).y, layer.forward(layer.weight, eps).y)


def _relative(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())
