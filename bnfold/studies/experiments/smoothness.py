"""Are gradients more predictive with batch norm?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

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


class _Quantity(NamedTuple):
    """One thing that a survey measures: what is claimed of it, what it is, its attribute, its chart."""

    claim: str
    what: str
    name: str
    title: str


_QUANTITIES = (
    _Quantity(
        "Along the gradient, the loss varies less with batch norm.",
        "variation of the loss along the gradient",
        "loss_range",
        "Variation of the loss",
    ),
    _Quantity(
        "Along the gradient, the gradient changes less with batch norm.",
        "largest change of the gradient, relative to its length",
        "relative_change",
        "Relative change of the gradient",
    ),
    _Quantity(
        "The effective β-smoothness is better (lower) with batch norm.",
        "largest change of the gradient over the distance walked",
        "smoothness",
        "Effective β-smoothness",
    ),
)


@dataclass
class _Surveyor:
    """Walks from where training stands along the gradient, and looks at loss and gradient on the way.

    Attributes:
        rate: the learning rate that step lengths are multiples of.
        every: training steps between two surveys.
        steps: when surveys were made.
        loss_range: (S,) for each: highest minus lowest loss on the way.
        relative_change: the largest ``‖g(x − d) − g(x)‖ / ‖g(x)‖`` on the way.
        smoothness: the largest ``‖g(x − d) − g(x)‖ / ‖d‖``, the effective β.
    """

    rate: float
    every: int
    steps: list[int] = field(default_factory=list)
    loss_range: list[NDArray[np.float64]] = field(default_factory=list)
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
    findings = tuple(
        Finding(
            quantity.claim,
            SANTURKAR,
            f"{quantity.what}, without ÷ with batch norm",
            ratio(_typical(surveys["no norm"], quantity.name), _typical(surveys["batch norm"], quantity.name)),
            Region(1.0, float("inf"), "above 1"),
            "{:.2f}×",
        )
        for quantity in _QUANTITIES
    )
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
                        *(f"{np.exp(np.log(_typical(survey, it.name)).mean()):.3g}" for it in _QUANTITIES),
                    )
                    for arm, survey in surveys.items()
                ),
            ),
        ),
        charts=tuple(
            Chart(
                it.title,
                "step",
                it.title[:1].lower() + it.title[1:],
                tuple(series(arm, survey.steps, np.stack(getattr(survey, it.name))) for arm, survey in surveys.items()),
                y_log=True,
            )
            for it in _QUANTITIES
        ),
        caveats=(
            "The lengths of gradients differ between the arms, and with them the distance walked: a shorter gradient "
            "makes the loss vary less all by itself, as it does in the end, when an arm has fitted its images: the "
            "plots show when. The relative change and the effective β are free of that in part."
        ),
    )


def _typical(survey: _Surveyor, name: str) -> NDArray[np.float64]:
    """The geometric mean (S,) over training."""
    values = np.stack(getattr(survey, name))
    return np.asarray(np.exp(np.log(np.maximum(values, 1e-12)).mean(0)))


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean length (S,) of each member's gradient."""
    return torch.stack([tensor.square().sum((1, 2)) for tensor in tensors]).sum(0).sqrt()
