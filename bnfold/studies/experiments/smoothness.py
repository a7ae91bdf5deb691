"""Are gradients more predictive with batch norm?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnfold.studies.ensemble import Architecture, Ensemble, losses
from bnfold.studies.intervals import ratio, series
from bnfold.studies.laboratory import Laboratory, Plan
from bnfold.studies.result import Chart, Finding, Outcome, Region, Table
from bnfold.studies.sources import SANTURKAR
from bnfold.studies.task import Part

#: Step lengths along the gradient, in multiples of the learning rate; the range of Santurkar et al.
LENGTHS = (0.5, 1.0, 2.0, 4.0)

ARMS = {"no norm": Architecture(depth=5), "batch norm": Architecture(depth=5, norm="batch")}


@dataclass
class _Surveyor:
    """Walks from where training stands along the gradient, and looks at loss and gradient on the way.

    Attributes:
        rate: the learning rate that step lengths are multiples of.
        every: training steps between two surveys.
        steps: when surveys were made.
        loss_range: (S,) for each: highest minus lowest loss on the way.
        gradient_change: the largest ``‖g(x − d) − g(x)‖`` on the way.
        relative_change: that over ``‖g(x)‖``.
        smoothness: the largest ``‖g(x − d) − g(x)‖ / ‖d‖``, the effective β.
    """

    rate: float
    every: int
    steps: list[int] = field(default_factory=list)
    loss_range: list[NDArray[np.float64]] = field(default_factory=list)
    gradient_change: list[NDArray[np.float64]] = field(default_factory=list)
    relative_change: list[NDArray[np.float64]] = field(default_factory=list)
    smoothness: list[NDArray[np.float64]] = field(default_factory=list)

    def observe(self, step: int, ensemble: Ensemble, batch: Part, here: Tensor, gradients: Sequence[Tensor]) -> None:
        """Survey the batch in hand, now and then."""
        if step % self.every:
            return
        parameters = ensemble.parameters()
        stored = [parameter.detach().clone() for parameter in parameters]
        size = _norm(gradients)
        seen, changes, slopes = [here], [], []
        for length in LENGTHS:
            with torch.no_grad():
                for parameter, start, gradient in zip(parameters, stored, gradients, strict=True):
                    parameter.copy_(start - length * self.rate * gradient)
            there = losses(ensemble.forward(batch.x), batch.y)
            others = torch.autograd.grad(there.sum(), parameters)
            change = _norm([other - gradient for other, gradient in zip(others, gradients, strict=True)])
            seen.append(there.detach())
            changes.append(change)
            slopes.append(change / (length * self.rate * size))
        with torch.no_grad():
            for parameter, start in zip(parameters, stored, strict=True):
                parameter.copy_(start)
        values, change = torch.stack(seen), torch.stack(changes).amax(0)
        self.steps.append(step)
        self.loss_range.append((values.amax(0) - values.amin(0)).double().numpy())
        self.gradient_change.append(change.double().numpy())
        self.relative_change.append((change / size).double().numpy())
        self.smoothness.append(torch.stack(slopes).amax(0).double().numpy())


def run(lab: Laboratory) -> Outcome:
    """Surveys along the training of both arms, with step lengths that are the same for both."""
    plan = Plan(steps=lab.sized(500, 200), every=10)
    rates = {arm: lab.tuned(architecture, plan) for arm, architecture in ARMS.items()}
    common = rates["no norm"]
    surveys: dict[str, _Surveyor] = {}
    for arm, architecture in ARMS.items():
        surveys[arm] = _Surveyor(common, every=lab.sized(20, 20))
        lab.curve(architecture, plan, rates[arm], surveys[arm].observe)
    quantities = {
        "the loss varies": ("variation of the loss along the gradient", "loss_range"),
        "the gradient changes": ("largest change of the gradient, relative to its length", "relative_change"),
        "the effective smoothness is": ("largest change of the gradient over the distance walked", "smoothness"),
    }
    findings = tuple(
        Finding(
            f"Along the gradient, {words} less with batch norm." if "smooth" not in words
            else "The effective β-smoothness is better (lower) with batch norm.",
            SANTURKAR,
            f"{what}, without ÷ with batch norm",
            ratio(_typical(surveys["no norm"], name), _typical(surveys["batch norm"], name)),
            Region(1.0, float("inf"), "above 1"),
            "{:.2f}×",
        )
        for words, (what, name) in quantities.items()
    )  # fmt: skip
    return Outcome(
        name="smoothness",
        title="Are gradients more predictive?",
        setup=(
            f"Perceptrons of 5 hidden layers of 64 ReLU units, {plan.steps} steps of 32 images, each arm at its own "
            "best learning rate. Every 20 steps we walk from where training stands along the gradient of the batch in "
            f"hand, by {', '.join(f'{length:g}' for length in LENGTHS)} times {common:g}, the rate of the arm without "
            "norm, in both arms, and look at the loss and the gradient there. Compared are geometric means over "
            "training."
        ),
        findings=findings,
        tables=(
            Table(
                "Geometric means over training and seeds",
                ("arm", "learning rate", "variation of the loss", "relative change of the gradient", "effective β"),
                tuple(
                    (
                        arm,
                        f"{rates[arm]:g}",
                        *(
                            f"{np.exp(np.log(_typical(survey, name)).mean()):.3g}"
                            for name in ("loss_range", "relative_change", "smoothness")
                        ),
                    )
                    for arm, survey in surveys.items()
                ),
            ),
        ),
        charts=tuple(
            Chart(
                what[:1].upper() + what[1:],
                "step",
                what.split(",")[0],
                tuple(series(arm, survey.steps, np.stack(getattr(survey, name))) for arm, survey in surveys.items()),
                y_log=True,
            )
            for what, name in quantities.values()
        ),
        caveats=(
            "The lengths of gradients differ between the arms, and with them the distance walked: a shorter gradient "
            "makes the loss vary less all by itself. The relative change and the effective β are free of that in part."
        ),
    )


def _typical(survey: _Surveyor, name: str) -> NDArray[np.float64]:
    """The geometric mean (S,) over training."""
    values = np.stack(getattr(survey, name))
    return np.asarray(np.exp(np.log(np.maximum(values, 1e-12)).mean(0)))


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean length (S,) of each member's gradient."""
    return torch.stack([tensor.square().sum((1, 2)) for tensor in tensors]).sum(0).sqrt()
