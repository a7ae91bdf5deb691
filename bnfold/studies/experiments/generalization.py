"""Does batch norm regularise?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnfold.studies.ensemble import Architecture, Ensemble, losses
from bnfold.studies.intervals import difference, mean_interval, series
from bnfold.studies.laboratory import Laboratory, Plan, accuracy_of
from bnfold.studies.result import Chart, Finding, Outcome, Region, Table
from bnfold.studies.sources import IOFFE_SZEGEDY, LUO
from bnfold.studies.task import Part

#: Few images, so that there is a gap between training and test at all.
IMAGES = 300

#: Training losses at which the arms are compared: equally well fitted, who generalises better?
MATCHED = 0.02

ARMS = {
    "no norm": Architecture(depth=3),
    "batch norm": Architecture(depth=3, norm="batch"),
}


@dataclass
class _Ledger:
    """Training loss, test loss and test accuracy along training, in inference mode.

    Attributes:
        fit: the training images.
        test: those held out.
        every: steps between two entries.
        rows: for each entry, (3, S).
    """

    fit: Part
    test: Part
    every: int
    rows: list[NDArray[np.float64]] = field(default_factory=list)

    def observe(
        self, step: int, ensemble: Ensemble, _batch: Part, _losses: Tensor, _gradients: Sequence[Tensor]
    ) -> None:
        """Make an entry, now and then."""
        if step % self.every or not step:
            return
        with torch.no_grad():
            fitted = losses(ensemble.forward(self.fit.x, ensemble.running or None), self.fit.y)
            held_out = losses(ensemble.forward(self.test.x, ensemble.running or None), self.test.y)
        accuracy = accuracy_of(ensemble, self.test)
        self.rows.append(np.stack([fitted.double().numpy(), held_out.double().numpy(), accuracy]))

    def matched(self) -> NDArray[np.float64]:
        """The entry (3, S) of each member when its training loss first is at most :data:`MATCHED`; the last if none."""
        table = np.stack(self.rows)
        reached = table[:, 0] <= MATCHED
        first = np.where(reached.any(0), reached.argmax(0), len(table) - 1)
        return np.asarray(table[first, :, np.arange(table.shape[2])].T)

    def reached(self) -> int:
        """How many members ever fit the training images that well."""
        return int((np.stack(self.rows)[:, 0] <= MATCHED).any(0).sum())


def run(lab: Laboratory) -> Outcome:
    """Test error of equally well fitted networks, and at the end of training."""
    plan = Plan(steps=lab.sized(800, 400), every=lab.sized(20, 20), images=IMAGES)
    rates = {arm: lab.tuned(architecture, plan, "last") for arm, architecture in ARMS.items()}
    ledgers = {}
    for arm, architecture in ARMS.items():
        ledgers[arm] = _Ledger(lab.task.fit.first(IMAGES), lab.task.test, plan.every)
        lab.curve(architecture, plan, rates[arm], ledgers[arm].observe)
    matched = {arm: ledger.matched() for arm, ledger in ledgers.items()}
    last = {arm: ledger.rows[-1] for arm, ledger in ledgers.items()}
    steps = np.arange(1, len(ledgers["no norm"].rows) + 1) * plan.every
    above = Region(0.0, float("inf"), "above 0")
    return Outcome(
        name="generalization",
        title="Does batch norm regularise?",
        setup=(
            f"Perceptrons of 3 hidden layers of 64 ReLU units learn from {IMAGES} images only, {plan.steps} steps of "
            "32, each arm at the learning rate whose final validation accuracy is best; no other regularisation. The "
            f"arms are compared where the cross-entropy on the training images first is at most {MATCHED}, in "
            "inference mode, so that both fit equally well; and at the end."
        ),
        findings=(
            Finding(
                "Batch norm regularises: equally well fitted, it generalises better.",
                LUO,
                f"test accuracy at a training loss of {MATCHED}, with minus without batch norm, in points",
                difference(100 * matched["batch norm"][2], 100 * matched["no norm"][2]),
                above,
                "{:+.2f}",
            ),
            Finding(
                "The gap between test loss and training loss is smaller.",
                LUO,
                f"gap at a training loss of {MATCHED}, without minus with batch norm, in nats",
                difference(*(matched[arm][1] - matched[arm][0] for arm in ("no norm", "batch norm"))),
                above,
                "{:+.3f}",
            ),
            Finding(
                "A batch-normalized network ends with a higher test accuracy.",
                IOFFE_SZEGEDY,
                "test accuracy at the end of training, with minus without batch norm, in points",
                difference(100 * last["batch norm"][2], 100 * last["no norm"][2]),
                above,
                "{:+.2f}",
            ),
        ),
        tables=(
            Table(
                "At the same training loss, and at the end (mean over seeds)",
                ("arm", "learning rate", "fit that well", "test loss there", "test accuracy there", "at the end"),
                tuple(
                    (
                        arm,
                        f"{rates[arm]:g}",
                        f"{ledgers[arm].reached()} of {len(lab.seeds)}",
                        f"{mean_interval(matched[arm][1]).estimate:.3f}",
                        f"{mean_interval(matched[arm][2]).estimate:.1%}",
                        f"{mean_interval(last[arm][2]).estimate:.1%}",
                    )
                    for arm in ARMS
                ),
            ),
        ),
        charts=(
            Chart(
                "Test loss against training",
                "steps",
                "test cross-entropy",
                tuple(series(arm, steps, np.stack(ledger.rows)[:, 1]) for arm, ledger in ledgers.items()),
            ),
            Chart(
                "Test accuracy",
                "steps",
                "test accuracy",
                tuple(series(arm, steps, np.stack(ledger.rows)[:, 2]) for arm, ledger in ledgers.items()),
            ),
        ),
        caveats=(
            "Learning rates differ between the arms and regularise too. A third of a point is one test image: only the "
            "interval over seeds says whether there is a difference."
        ),
    )
