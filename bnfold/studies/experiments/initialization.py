"""Is bad initialisation tolerated?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnfold.studies.ensemble import Architecture
from bnfold.studies.intervals import difference, mean_interval, series
from bnfold.studies.laboratory import Laboratory, Plan
from bnfold.studies.result import Chart, Finding, Outcome, Region, Table
from bnfold.studies.sources import IOFFE_SZEGEDY

LEARNED = 0.9


def run(lab: Laboratory) -> Outcome:
    """The test accuracy after training, over gains of the initial weights, each with its own learning rate."""
    steps = lab.sized(300, 200)
    octaves = np.arange(-6, 7, lab.sized(1, 2)).astype(np.float64)
    # Without norm the gradient grows with the gain to the power of the depth, or falls: the best rate is far away.
    grid = lab.rates(-36, 13, 2)
    arms = {"no norm": Architecture(), "batch norm": Architecture(norm="batch")}
    ends: dict[str, NDArray[np.float64]] = {}
    rates: dict[str, list[float]] = {}
    for arm, architecture in arms.items():
        plans = [Plan(steps, every=steps, gain=float(2.0**octave)) for octave in octaves]
        rates[arm] = [lab.tuned(architecture, plan, "last", grid) for plan in plans]
        ends[arm] = np.stack(
            [lab.curve(architecture, plan, rate).accuracy[-1] for plan, rate in zip(plans, rates[arm], strict=True)]
        )
    width = {arm: (accuracy >= LEARNED).sum(0) * lab.sized(1, 2) for arm, accuracy in ends.items()}
    return Outcome(
        name="initialization",
        title="Is bad initialisation tolerated?",
        setup=(
            f"Perceptrons of 4 hidden layers of 64 ReLU units, {steps} steps of 32 images. The weights of the hidden "
            f"layers begin as He et al. would have them, times a gain from 2^{octaves[0]:.0f} to "
            f"2^{octaves[-1]:.0f}. The learning rate is chosen for each arm and each gain anew, from 2^-36 to 2^12, so "
            "that only what no learning rate mends counts. A network whose numbers overflow has an accuracy of 0."
        ),
        findings=(
            Finding(
                "Batch norm lets us be less careful about initialisation.",
                IOFFE_SZEGEDY,
                f"range of gains that end with {LEARNED:.0%} test accuracy, with minus without batch norm, in octaves",
                difference(width["batch norm"], width["no norm"]),
                Region(0.0, float("inf"), "above 0"),
                "{:+.1f}",
            ),
            Finding(
                "A normalized layer is unaffected by the scale of its weights, and so is training.",
                IOFFE_SZEGEDY,
                "best minus worst accuracy over all gains, with batch norm, in points",
                mean_interval(100 * (ends["batch norm"].max(0) - ends["batch norm"].min(0))),
                Region(-float("inf"), 10.0, "below 10 points"),
                "{:.1f}",
            ),
        ),
        tables=(
            Table(
                "Test accuracy by gain (mean over seeds), and the learning rate chosen",
                ("gain", *(f"{arm}{what}" for arm in arms for what in ("", ", rate"))),
                tuple(
                    (
                        f"2^{octave:.0f}",
                        *(text for arm in arms for text in (f"{ends[arm][row].mean():.1%}", f"{rates[arm][row]:g}")),
                    )
                    for row, octave in enumerate(octaves)
                ),
            ),
        ),
        charts=(
            Chart(
                "Test accuracy by gain of the initial weights",
                "gain of the hidden layers' initial weights",
                "test accuracy",
                tuple(series(arm, 2.0**octaves, accuracy) for arm, accuracy in ends.items()),
                x_log=True,
                reference=(LEARNED, "has learned"),
            ),
        ),
        caveats=(
            "Large initial weights under batch norm shrink the steps that turn them: the gradient is divided by the "
            "gain. A learning rate that makes up for it is too large for the last layer, whose weights are not scaled."
        ),
    )
