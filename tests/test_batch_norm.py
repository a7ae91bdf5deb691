"""The reference transform: the same numbers as torch in both modes, and gradients that finite differences confirm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bnfold.batch_norm import (
    Forward,
    RunningStatistics,
    Statistics,
    batch_statistics,
    forward_inference,
    forward_training,
    inference_affine,
    spread,
)
from bnfold.errors import InputError

SHAPES = [(2, 3), (32, 5), (4, 3, 7), (4, 3, 5, 6), (2, 3, 2, 3, 4)]
ANY_AXES = [((6, 4), 1), ((6, 4), 0), ((3, 4, 5), 2), ((3, 4, 5), -1), ((3, 4, 5), (1, 2)), ((2, 3, 4, 5), (1, 3))]


def sample(shape: tuple[int, ...], channels: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "x": 3 * random.standard_normal(shape) + 2,
        "dy": random.standard_normal(shape),
        "gamma": random.uniform(-2, 2, channels),
        "beta": random.standard_normal(channels),
        "mean": random.standard_normal(channels),
        "var": random.uniform(0.2, 3, channels),
    }


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Within 1e-12 of the largest value."""
    return ours.shape == theirs.shape and bool(np.abs(ours - theirs).max() <= 1e-12 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("momentum", [0.1, 0.7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_mode_is_torchs(shape: tuple[int, ...], momentum: float) -> None:
    torch = pytest.importorskip("torch")
    given = sample(shape, shape[1:2])
    tensors = {name: torch.from_numpy(array.copy()) for name, array in given.items()}
    for name in ("x", "gamma", "beta"):
        tensors[name].requires_grad_()
    output = torch.nn.functional.batch_norm(
        tensors["x"], tensors["mean"], tensors["var"], tensors["gamma"], tensors["beta"], True, momentum, 1e-3
    )
    output.backward(tensors["dy"])

    forward = forward_training(given["x"], given["gamma"], given["beta"], eps=1e-3)
    gradients = forward.backward(given["dy"])
    running = RunningStatistics(given["mean"], given["var"]).updated(forward.statistics, momentum)
    assert close(forward.y, output.detach().numpy())
    assert close(gradients.x, tensors["x"].grad.numpy())
    assert close(gradients.gamma, tensors["gamma"].grad.numpy())
    assert close(gradients.beta, tensors["beta"].grad.numpy())
    assert close(running.mean, tensors["mean"].numpy())
    assert close(running.var, tensors["var"].numpy())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_evaluation_mode_is_torchs(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    given = sample(shape, shape[1:2], seed=1)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in given.items()}
    for name in ("x", "gamma", "beta"):
        tensors[name].requires_grad_()
    output = torch.nn.functional.batch_norm(
        tensors["x"], tensors["mean"], tensors["var"], tensors["gamma"], tensors["beta"], False, 0.1, 1e-5
    )
    output.backward(tensors["dy"])

    running = RunningStatistics(given["mean"], given["var"])
    forward = forward_inference(given["x"], given["gamma"], given["beta"], running)
    gradients = forward.backward(given["dy"])
    assert close(forward.y, output.detach().numpy())
    assert close(gradients.x, tensors["x"].grad.numpy())
    assert close(gradients.gamma, tensors["gamma"].grad.numpy())
    assert close(gradients.beta, tensors["beta"].grad.numpy())


def numeric_gradient(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences, whose error is of the order step²."""
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        sides = []
        for sign in (1, -1):
            moved = at.copy()
            moved[index] += sign * step
            sides.append(function(moved))
        gradient[index] = (sides[0] - sides[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(("shape", "axes"), ANY_AXES, ids=str)
def test_gradients_are_those_of_finite_differences(
    shape: tuple[int, ...], axes: int | tuple[int, ...], training: bool
) -> None:
    places = (axes,) if isinstance(axes, int) else axes
    given = sample(shape, tuple(shape[axis] for axis in places), seed=2)

    def forward(**changed: np.ndarray) -> Forward:
        at = given | changed
        if training:
            return forward_training(at["x"], at["gamma"], at["beta"], channel_axes=axes)
        fixed = RunningStatistics(at["mean"], at["var"])
        return forward_inference(at["x"], at["gamma"], at["beta"], fixed, channel_axes=axes)

    gradients = forward().backward(given["dy"])
    for name in ("x", "gamma", "beta"):

        def loss(value: np.ndarray, name: str = name) -> float:
            return float((forward(**{name: value}).y * given["dy"]).sum())

        numeric = numeric_gradient(loss, given[name])
        assert np.abs(getattr(gradients, name) - numeric).max() < 1e-7, name


@pytest.mark.parametrize(("shape", "axes"), ANY_AXES, ids=str)
def test_channels_are_normalized_over_all_other_axes(shape: tuple[int, ...], axes: int | tuple[int, ...]) -> None:
    places = (axes,) if isinstance(axes, int) else axes
    x = sample(shape, ())["x"]
    channels = tuple(shape[axis] for axis in places)
    forward = forward_training(x, np.ones(channels), np.zeros(channels), eps=0.0, channel_axes=axes)
    after = batch_statistics(forward.y, axes)
    assert np.abs(after.mean).max() < 1e-14
    assert np.abs(after.var - 1).max() < 1e-13


def test_variance_is_biased_in_the_batch_and_unbiased_in_the_running_average() -> None:
    x = sample((7, 3), (3,))["x"]
    statistics = batch_statistics(x)
    assert close(statistics.var, x.var(axis=0))
    assert close(statistics.unbiased_var, x.var(axis=0, ddof=1))


def test_input_gradient_is_orthogonal_to_the_constants_and_to_the_normalized_input() -> None:
    """Which is why moving or stretching the whole batch changes nothing; exact only for ε = 0."""
    given = sample((16, 3, 2, 2), (3,), seed=3)
    forward = forward_training(given["x"], given["gamma"], given["beta"], eps=0.0)
    dx = forward.backward(given["dy"]).x
    assert np.abs(dx.sum(axis=(0, 2, 3))).max() < 1e-12
    assert np.abs((dx * forward.normalized).sum(axis=(0, 2, 3))).max() < 1e-12


def test_inference_is_the_affine() -> None:
    given = sample((5, 4, 3), (4,), seed=4)
    population = Statistics(given["mean"], given["var"], 100)
    scale, shift = inference_affine(given["gamma"], given["beta"], population)
    y = forward_inference(given["x"], given["gamma"], given["beta"], population).y
    assert close(spread(scale, 3) * given["x"] + spread(shift, 3), y)


def test_large_offsets_cost_no_digits_of_the_variance() -> None:
    """E[x²] − E[x]² would lose all of them."""
    x = np.random.default_rng(0).standard_normal((1000, 2)) + 1e8
    assert np.allclose(batch_statistics(x).var, (x - 1e8).var(axis=0), rtol=1e-10)


def test_narrow_types_are_widened_first() -> None:
    x = np.full((4096, 1), 0.1, np.float16)
    assert batch_statistics(x).mean[0] == float(np.float16(0.1))


ONE = np.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: forward_training(np.ones((4, 3)), np.ones(4), ONE), "gamma has shape"),
        (lambda: forward_training(np.ones((4, 3)), ONE, np.ones((3, 1))), "beta has shape"),
        (lambda: forward_inference(np.ones((4, 3)), ONE, ONE, Statistics(np.ones(2), ONE, 1)), "mean has shape"),
        (lambda: forward_training(np.ones((4, 3)), ONE, ONE, eps=-1.0), "at least 0"),
        (lambda: batch_statistics(np.ones((4, 3)), 2), "axes"),
        (lambda: batch_statistics(np.ones((4, 3)), (1, -1)), "axes"),
        (lambda: batch_statistics(np.ones((0, 3))), "no element"),
        (lambda: batch_statistics(np.ones((1, 3))).unbiased_var, "two or more"),
        (lambda: forward_training(np.ones((4, 3)), ONE, ONE).backward(np.ones((3, 4))), "must agree"),
    ],
)
def test_what_does_not_belong_together_is_told_of(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
