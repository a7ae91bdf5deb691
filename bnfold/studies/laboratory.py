"""Train ensembles and choose learning rates; what all experiments share.

SGD with momentum 0.9 and a constant learning rate, no weight decay, no augmentation. The learning rate of an arm is the
one of a grid whose validation accuracy is best on average over seeds that are used for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnfold.progress import Progress, silent
from bnfold.studies.ensemble import Architecture, Ensemble, Statistics, accuracies, losses
from bnfold.studies.task import Part, Task

#: Seeds from here on choose learning rates.
_TUNING_SEED = 10_000

#: Called as ``observe(step, ensemble, batch, losses, gradients)`` before each update.
Observe = Callable[[int, Ensemble, Part, Tensor, Sequence[Tensor]], None]


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        steps: updates.
        batch: samples of each.
        every: steps from one evaluation to the next.
        images: training images; None for all.
        gain: of the initial weights of hidden layers.
    """

    steps: int
    batch: int = 32
    every: int = 10
    images: int | None = None
    gain: float = 1.0


@dataclass(frozen=True, eq=False)
class Curve:
    """How an ensemble came along, evaluated with its running statistics.

    Attributes:
        steps: (K,) updates made.
        accuracy: (K, S) on held-out samples.
    """

    steps: NDArray[np.int64]
    accuracy: NDArray[np.float64]

    def steps_to(self, target: float) -> NDArray[np.float64]:
        """The first evaluation (S,) of each member at or above an accuracy; the last, where none is."""
        reached = self.accuracy >= target
        first = np.where(reached.any(0), reached.argmax(0), len(self.steps) - 1)
        return self.steps[first].astype(np.float64)

    def reaches(self, target: float) -> NDArray[np.bool_]:
        """Whether each member (S,) ever has an accuracy."""
        return np.asarray((self.accuracy >= target).any(0))


@dataclass
class Laboratory:
    """The task, the sizes, and the learning rates chosen so far.

    Attributes:
        task: the data.
        seeds: of the runs that are reported.
        quick: whether grids are coarse and training short.
        progress: told of the training steps of the experiment in hand.
        stage: name of that experiment.
    """

    task: Task
    seeds: tuple[int, ...]
    quick: bool
    progress: Progress = silent
    stage: str = ""
    _steps: int = field(default=0, init=False)
    _chosen: dict[tuple[Architecture, Plan, str, tuple[float, ...]], float] = field(default_factory=dict, init=False)

    def sized(self, full: int, quick: int) -> int:
        """A size, by the kind of study."""
        return quick if self.quick else full

    def rates(self, low: int = -9, high: int = 4, step: int = 1) -> tuple[float, ...]:
        """A grid of learning rates: powers of 2 from ``low`` to below ``high``; every second one in a quick study."""
        return tuple(2.0**exponent for exponent in range(low, high, self.sized(step, 2 * step)))

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Seeds that choose learning rates and are not reported."""
        return tuple(_TUNING_SEED + index for index in range(self.sized(4, 2)))

    def tuned(
        self,
        architecture: Architecture,
        plan: Plan,
        criterion: Literal["mean", "last"] = "mean",
        grid: tuple[float, ...] | None = None,
    ) -> float:
        """The learning rate of an arm.

        Args:
            architecture: of the networks.
            plan: of their training.
            criterion: validation accuracy as the mean over all evaluations, which rewards speed, or the last.
            grid: learning rates to choose from, increasing.
        """
        rates = grid or self.rates()
        key = (architecture, plan, criterion, rates)
        if key not in self._chosen:
            seeds = [seed for seed in self.tuning_seeds for _ in rates]
            curve = self.train(architecture, plan, seeds, rates * len(self.tuning_seeds), self.task.validation)
            scores = curve.accuracy.mean(0) if criterion == "mean" else curve.accuracy[-1]
            self._chosen[key] = rates[int(scores.reshape(-1, len(rates)).mean(0).argmax())]
        return self._chosen[key]

    def curve(self, architecture: Architecture, plan: Plan, lr: float, observe: Observe | None = None) -> Curve:
        """One run a seed, on the test images."""
        rates = [lr] * len(self.seeds)
        return self.train(architecture, plan, self.seeds, rates, self.task.test, observe=observe)

    def train(
        self,
        architecture: Architecture,
        plan: Plan,
        seeds: Sequence[int],
        rates: Sequence[float],
        held_out: Part,
        *,
        observe: Observe | None = None,
        finish: Callable[[Ensemble], None] | None = None,
        gains: Sequence[float] | None = None,
    ) -> Curve:
        """Train one member for each seed and learning rate.

        Args:
            architecture: of the networks.
            plan: of their training.
            seeds: of weights and order, one for each member.
            rates: learning rates likewise.
            held_out: what the curve is measured on.
            observe: called before each update.
            finish: called with the trained ensemble.
            gains: of hidden weights, one for each member; the plan's by default.
        """
        task = self.task
        fit = task.fit if plan.images is None else task.fit.first(plan.images)
        gains = [plan.gain] * len(seeds) if gains is None else gains
        ensemble = Ensemble(architecture, seeds, features=task.features, classes=task.classes, gains=gains)
        parameters = ensemble.parameters()
        velocities = [torch.zeros_like(parameter) for parameter in parameters]
        lr = torch.tensor(rates)[:, None, None]
        order = _order(seeds, len(fit), plan)
        noise = torch.Generator().manual_seed(min(seeds))
        points: list[tuple[int, NDArray[np.float64]]] = []
        for step in range(plan.steps):
            chosen = order[:, step]
            batch = Part(fit.x[chosen], fit.y[chosen])
            statistics: Statistics = []
            member_losses = losses(ensemble.forward(batch.x, collect=statistics, disturbance=noise), batch.y)
            gradients = torch.autograd.grad(member_losses.sum(), parameters)
            if observe is not None:
                observe(step, ensemble, batch, member_losses.detach(), gradients)
            with torch.no_grad():
                ensemble.update_running(statistics, plan.batch)
                for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
                    velocity.mul_(0.9).add_(gradient)
                    parameter.sub_(lr * velocity)
            if (step + 1) % plan.every == 0:
                points.append((step + 1, accuracy_of(ensemble, held_out)))
                self._steps += plan.every * len(seeds)
                self.progress(self.stage, self._steps, 0)
        if finish is not None:
            finish(ensemble)
        return Curve(np.array([step for step, _ in points]), np.stack([accuracy for _, accuracy in points]))

    def at(self, stage: str) -> Laboratory:
        """The same laboratory, its choices shared, telling of another experiment."""
        other = replace(self, stage=stage)
        other._chosen = self._chosen
        return other


def _order(seeds: Sequence[int], count: int, plan: Plan) -> Tensor:
    """The samples (S, steps, batch) of each step: epochs in random order, one after the other."""
    rows = []
    for seed in seeds:
        random = np.random.default_rng([seed, 2])
        epochs = -(-plan.steps * plan.batch // count)
        rows.append(np.concatenate([random.permutation(count) for _ in range(epochs)])[: plan.steps * plan.batch])
    return torch.from_numpy(np.stack(rows)).view(len(seeds), plan.steps, plan.batch)


def accuracy_of(ensemble: Ensemble, part: Part, statistics: Statistics | None = None) -> NDArray[np.float64]:
    """The accuracy (S,) of each member in inference, with its running statistics or others."""
    with torch.no_grad():
        logits = ensemble.forward(part.x, statistics or ensemble.running or None)
        return accuracies(logits, part.y).double().numpy()
