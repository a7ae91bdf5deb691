"""Does batch norm keep the inputs of layers still, and is that why it helps?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnfold.studies.ensemble import Architecture, Ensemble, losses
from bnfold.studies.intervals import difference, mean_interval, ratio, series
from bnfold.studies.laboratory import Curve, Laboratory, Plan
from bnfold.studies.result import Chart, Finding, Outcome, Region, Table
from bnfold.studies.sources import IOFFE_SZEGEDY, SANTURKAR
from bnfold.studies.task import Part

ARMS = {
    "no norm": Architecture(depth=5),
    "batch norm": Architecture(depth=5, norm="batch"),
    "noisy batch norm": Architecture(depth=5, norm="noisy"),
}


@dataclass
class _Seismograph:
    """How far the inputs of layers move from one step to the next, on one batch that stays the same.

    Attributes:
        probe: that batch.
        every: steps between two measurements.
        movements: (S,) for each measurement: the root mean square, over layers and units, of the change of the mean in
            standard deviations and of the logarithm of the standard deviation.
        steps: when each was made.
    """

    probe: Part
    every: int
    movements: list[NDArray[np.float64]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    _before: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def observe(self, step: int, ensemble: Ensemble, _batch: Part, _losses: Tensor, _gradients: object) -> None:
        """Measure in pairs of consecutive steps."""
        if step % self.every > 1:
            return
        watched: list[Tensor] = []
        noise = torch.Generator().manual_seed(step)
        with torch.no_grad():
            ensemble.forward(self.probe.x, disturbance=noise, watch=watched)
        inputs = [torch.relu(z) for z in watched]
        now = [(h.mean(1), h.std(1) + 1e-2) for h in inputs]  # a dead unit does not move
        if step % self.every == 1:
            squares = torch.stack(
                [
                    ((mean - old_mean) / old_std).square() + (std / old_std).log().square()
                    for (mean, std), (old_mean, old_std) in zip(now, self._before, strict=True)
                ]
            )
            self.movements.append(squares.mean((0, 2)).sqrt().double().numpy())
            self.steps.append(step)
        self._before = now


@dataclass
class _Crosswind:
    """How much an update of the layers below a layer turns that layer's gradient: shift as Santurkar et al. define it.

    With ``G`` the gradient of layer *i* before an update, and ``G'`` on the same batch after the layers below *i* alone
    were updated, it is ``‖G − G'‖ / ‖G‖``.

    Attributes:
        every: steps between two measurements.
        changes: (S,) for each measurement, the mean over hidden layers but the first.
    """

    every: int
    changes: list[NDArray[np.float64]] = field(default_factory=list)
    _before: tuple[Part, list[Tensor]] | None = None

    def observe(
        self, step: int, ensemble: Ensemble, batch: Part, _losses: Tensor, _gradients: Sequence[Tensor]
    ) -> None:
        """Remember weights and batch before an update, and measure after it."""
        if step % self.every == 0:
            old = [parameter.detach().clone() for parameter in ensemble.parameters()]
            self._before = (batch, old)
        elif step % self.every == 1 and self._before is not None:
            self.changes.append(self._measured(ensemble, *self._before))

    @staticmethod
    def _measured(ensemble: Ensemble, batch: Part, old: list[Tensor]) -> NDArray[np.float64]:
        depth = ensemble.architecture.depth
        parameters = ensemble.parameters()
        new = [parameter.detach().clone() for parameter in parameters]
        owners = ensemble.layers()

        def gradient(layer: int) -> Tensor:
            (values,) = torch.autograd.grad(losses(ensemble.forward(batch.x), batch.y).sum(), [ensemble.weights[layer]])
            return values.flatten(1)

        changes = []
        for layer in range(1, depth):
            _put(parameters, old)
            before = gradient(layer)
            _put(parameters, [new[k] if owner < layer else old[k] for k, owner in enumerate(owners)])
            changes.append((gradient(layer) - before).norm(dim=1) / before.norm(dim=1))
        _put(parameters, new)
        return torch.stack(changes).mean(0).double().numpy()


def _typical(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The geometric mean over the first axis."""
    return np.asarray(np.exp(np.log(values).mean(0)))


def _put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


@dataclass(frozen=True)
class _Measured:
    """What training one arm showed; S seeds.

    Attributes:
        rate: the learning rate.
        curve: losses and accuracies.
        steps: at which movement and change were measured.
        movements: of layer inputs, (measurements, S); see :class:`_Seismograph`.
        changes: of gradients, (measurements, S); see :class:`_Crosswind`.
    """

    rate: float
    curve: Curve
    steps: list[int]
    movements: NDArray[np.float64]
    changes: NDArray[np.float64]

    @property
    def movement(self) -> NDArray[np.float64]:
        """The typical movement, (S,)."""
        return _typical(self.movements)

    @property
    def change(self) -> NDArray[np.float64]:
        """The typical change of gradients, (S,)."""
        return _typical(self.changes)

    @property
    def speed(self) -> NDArray[np.float64]:
        """Test accuracy as the mean over training, in percent, (S,)."""
        return np.asarray(100 * self.curve.accuracy.mean(0))


def run(lab: Laboratory) -> Outcome:
    """Movement of layer inputs and speed of three arms."""
    plan = Plan(steps=lab.sized(500, 200), every=10)
    rates = {arm: lab.tuned(architecture, plan) for arm, architecture in ARMS.items()}
    arms = {arm: _trained(lab, architecture, plan, rates[arm]) for arm, architecture in ARMS.items()}
    return Outcome(
        name="covariate_shift",
        title="Does batch norm help by keeping the inputs of layers still?",
        setup=(
            f"Perceptrons of 5 hidden layers of 64 ReLU units, {plan.steps} steps of 32 images, each arm at its own "
            "best learning rate. Movement is how much the mean (in standard deviations) and the standard deviation (in "
            "its logarithm) of what each layer takes in change in one step, on 256 images that stay the same: the root "
            "mean square over layers and units. The third arm shifts and scales what batch norm puts out at random, "
            "anew in each step and for each unit (Santurkar et al.): it has the norm, and restless inputs. The change "
            "of gradients is their other measure of shift: by how much of its length a layer's gradient changes, on "
            "the same batch and without noise, when only the layers below it are updated. Speed is the test accuracy "
            "as the mean over training."
        ),
        findings=_findings(arms),
        tables=(_table(arms),),
        charts=_charts(arms),
        caveats=(
            "Movement is of one step at each arm's own learning rate, as each arm trains; at equal rates it would be "
            "another. Where the noisy network moves more than the one without norm and still trains faster, "
            "stability of layer inputs is not what the gain comes from. In the end an arm that has fitted its images "
            "hardly moves at all; the plots show when."
        ),
    )


def _trained(lab: Laboratory, architecture: Architecture, plan: Plan, rate: float) -> _Measured:
    device = _Seismograph(lab.task.fit.first(256), every=10)
    vane = _Crosswind(every=10)

    def observe(*given: Any) -> None:
        device.observe(*given)
        vane.observe(*given)

    curve = lab.curve(architecture, plan, rate, observe)
    return _Measured(rate, curve, device.steps, np.stack(device.movements), np.stack(vane.changes))


def _findings(arms: Mapping[str, _Measured]) -> tuple[Finding, ...]:
    plain, normed, noisy = (arms[arm] for arm in ("no norm", "batch norm", "noisy batch norm"))
    above = Region(1.0, float("inf"), "above 1")
    faster = Region(0.0, float("inf"), "above 0")
    return (
        Finding(
            "Batch norm keeps the distribution of layer inputs more stable.",
            IOFFE_SZEGEDY,
            "movement without ÷ with batch norm",
            ratio(plain.movement, normed.movement),
            above,
            "{:.2f}×",
        ),
        Finding(
            "By the change of gradients, batch norm does not reduce internal covariate shift.",
            SANTURKAR,
            "change of a layer's gradient by the update of those below, with ÷ without batch norm",
            ratio(normed.change, plain.change),
            Region(0.8, float("inf"), "above 0.8"),
            "{:.2f}×",
        ),
        Finding(
            "Noise behind batch norm makes layer inputs less stable than without batch norm.",
            SANTURKAR,
            "movement with noisy batch norm ÷ without norm",
            ratio(noisy.movement, plain.movement),
            above,
            "{:.2f}×",
        ),
        Finding(
            "Still the noisy network trains faster than the one without norm.",
            SANTURKAR,
            "mean test accuracy over training, noisy batch norm minus no norm, in points",
            difference(noisy.speed, plain.speed),
            faster,
            "{:+.2f}",
        ),
        Finding(
            "Batch norm trains faster than no norm.",
            SANTURKAR,
            "mean test accuracy over training, batch norm minus no norm, in points",
            difference(normed.speed, plain.speed),
            faster,
            "{:+.2f}",
        ),
    )


def _table(arms: Mapping[str, _Measured]) -> Table:
    rows = (
        (
            arm,
            f"{measured.rate:g}",
            f"{float(_typical(measured.movement)):.3f}",
            f"{float(_typical(measured.change)):.3f}",
            f"{measured.speed.mean():.1f} %",
            f"{mean_interval(measured.curve.accuracy[-1]).estimate:.1%}",
        )
        for arm, measured in arms.items()
    )
    headings = (
        "arm",
        "learning rate",
        "movement in a step",
        "change of gradients",
        "mean accuracy over training",
        "accuracy at the end",
    )
    return Table("Movement and speed (mean over seeds)", headings, tuple(rows))


def _charts(arms: Mapping[str, _Measured]) -> tuple[Chart, ...]:
    moved = tuple(series(arm, measured.steps, measured.movements) for arm, measured in arms.items())
    changed = tuple(series(arm, measured.steps, measured.changes) for arm, measured in arms.items())
    accuracy = tuple(series(arm, measured.curve.steps, measured.curve.accuracy) for arm, measured in arms.items())
    return (
        Chart("Movement of layer inputs", "step", "movement in one step", moved, y_log=True),
        Chart("Change of gradients by the layers below", "step", "relative change", changed, y_log=True),
        Chart("Test accuracy", "steps", "test accuracy", accuracy),
    )
