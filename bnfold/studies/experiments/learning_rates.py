"""Are larger learning rates tolerated?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnfold.studies.ensemble import Architecture
from bnfold.studies.intervals import difference, mean_interval, series
from bnfold.studies.laboratory import Laboratory, Plan
from bnfold.studies.result import Chart, Finding, Outcome, Region, Table
from bnfold.studies.sources import BJORCK, WU_JOHNSON

#: A run that ends with this test accuracy has learned.
LEARNED = 0.9


def run(lab: Laboratory) -> Outcome:
    """The test accuracy after training, over a grid of learning rates."""
    plan = Plan(steps=lab.sized(500, 200), every=lab.sized(500, 200))
    exponents = np.arange(-10, 9, lab.sized(1, 2))
    rates = 2.0**exponents
    arms = {"no norm": Architecture(), "batch norm": Architecture(norm="batch")}
    seeds = [seed for seed in lab.seeds for _ in rates]
    ends = {}
    for arm, architecture in arms.items():
        curve = lab.train(architecture, plan, seeds, list(rates) * len(lab.seeds), lab.task.test)
        ends[arm] = curve.accuracy[-1].reshape(len(lab.seeds), len(rates))
    highest = {arm: _highest(accuracy, exponents) for arm, accuracy in ends.items()}
    width = {arm: (accuracy >= LEARNED).sum(1) * lab.sized(1, 2) for arm, accuracy in ends.items()}
    more = Region(0.0, float("inf"), "above 0")
    return Outcome(
        name="learning_rates",
        title="Are larger learning rates tolerated?",
        setup=(
            f"Perceptrons of 4 hidden layers of 64 ReLU units, {plan.steps} steps of 32 images at a constant learning "
            f"rate, for each rate from 2^{exponents[0]} to 2^{exponents[-1]}. A run that ends with a test accuracy of "
            f"{LEARNED:.0%} has learned. Rates are compared in octaves, factors of 2; the grid is the tuning."
        ),
        findings=(
            Finding(
                "Batch norm enables training with larger learning rates.",
                BJORCK,
                "highest rate that learns, with over without batch norm, in octaves",
                difference(highest["batch norm"], highest["no norm"]),
                more,
                "{:+.1f}",
            ),
            Finding(
                "Batch norm makes networks less sensitive to the learning rate.",
                WU_JOHNSON,
                "width of the range of rates that learn, with minus without batch norm, in octaves",
                difference(width["batch norm"], width["no norm"]),
                more,
                "{:+.1f}",
            ),
        ),
        tables=(
            Table(
                "Rates that learn (mean over seeds)",
                ("arm", "highest, power of 2", "width, octaves", "best accuracy of the grid"),
                tuple(
                    (
                        arm,
                        f"{mean_interval(highest[arm]).estimate:.1f}",
                        f"{mean_interval(width[arm]).estimate:.1f}",
                        f"{ends[arm].mean(0).max():.1%}",
                    )
                    for arm in arms
                ),
            ),
        ),
        charts=(
            Chart(
                "Test accuracy by learning rate",
                "learning rate",
                "test accuracy",
                tuple(series(arm, rates, accuracy.T) for arm, accuracy in ends.items()),
                x_log=True,
                reference=(LEARNED, "has learned"),
            ),
        ),
        caveats=(
            f"The grid ends at 2^{exponents[-1]}; an arm that learns there tolerates at least that much. Momentum is "
            "0.9, so that a rate is worth about ten times what it is without."
        ),
    )


def _highest(accuracy: NDArray[np.float64], exponents: NDArray[np.int64]) -> NDArray[np.float64]:
    """The highest exponent (seeds,) at which a run learns; one below the grid where none does."""
    learned = accuracy >= LEARNED
    last = learned.shape[1] - 1 - learned[:, ::-1].argmax(1)
    return np.asarray(np.where(learned.any(1), exponents[last], exponents[0] - 1), dtype=np.float64)
