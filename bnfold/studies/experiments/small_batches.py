"""Do small batches set training and inference apart, and do population statistics repair it?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from bnfold.studies.ensemble import Architecture, Ensemble, accuracies
from bnfold.studies.intervals import difference, mean_interval, series
from bnfold.studies.laboratory import Laboratory, Plan, accuracy_of
from bnfold.studies.result import Chart, Finding, Outcome, Region, Table
from bnfold.studies.sources import WU_JOHNSON
from bnfold.studies.task import Part

ARCHITECTURE = Architecture(depth=4, norm="batch")

_KINDS = ("moving averages", "population", "mini-batches")


def run(lab: Laboratory) -> Outcome:
    """Test accuracy by batch size, with three kinds of statistics in inference."""
    sizes = (4, 8, 16, 64) if not lab.quick else (4, 64)
    accuracy: dict[int, dict[str, NDArray[np.float64]]] = {}
    rates = {}
    for size in sizes:
        plan = _plan(size, lab)
        rates[size] = lab.tuned(ARCHITECTURE, plan, "last")
        found: dict[str, NDArray[np.float64]] = {}

        def finish(ensemble: Ensemble, size: int = size, found: dict[str, NDArray[np.float64]] = found) -> None:
            found["moving averages"] = accuracy_of(ensemble, lab.task.test)
            found["population"] = accuracy_of(ensemble, lab.task.test, ensemble.population(lab.task.fit.x))
            found["mini-batches"] = _accuracy_in_batches(ensemble, lab.task.test, size)

        lab.train(ARCHITECTURE, plan, lab.seeds, [rates[size]] * len(lab.seeds), lab.task.test, finish=finish)
        accuracy[size] = found
    least, most = sizes[0], sizes[-1]
    gap = {size: 100 * np.abs(accuracy[size]["mini-batches"] - accuracy[size]["moving averages"]) for size in sizes}
    above = Region(0.0, float("inf"), "above 0")
    return Outcome(
        name="small_batches",
        title="Do small batches set training and inference apart?",
        setup=(
            "Perceptrons of 4 hidden layers of 64 ReLU units with batch norm, trained with batches of "
            f"{', '.join(str(size) for size in sizes)} on equally many images where time allows, each at its own best "
            "learning rate. The trained networks classify the test images three times: with their moving averages, as "
            "is usual; with the statistics of the whole training set, as `bnfold recalibrate` sets them; and in "
            "training mode, in random batches of the size that they were trained with."
        ),
        findings=(
            Finding(
                "With small batches training mode and inference differ more than with large ones.",
                WU_JOHNSON,
                f"accuracy in mini-batches against moving averages, distance at {least} minus at {most}, in points",
                difference(gap[least], gap[most]),
                above,
                "{:+.2f}",
            ),
            Finding(
                "Population statistics repair what moving averages lose.",
                WU_JOHNSON,
                f"test accuracy with population statistics minus moving averages, batches of {least}, in points",
                difference(100 * accuracy[least]["population"], 100 * accuracy[least]["moving averages"]),
                above,
                "{:+.2f}",
            ),
        ),
        tables=(
            Table(
                "Test accuracy by batch size (mean over seeds)",
                ("batch", "steps", "learning rate", *_KINDS),
                tuple(
                    (
                        str(size),
                        str(_plan(size, lab).steps),
                        f"{rates[size]:g}",
                        *(f"{mean_interval(accuracy[size][kind]).estimate:.1%}" for kind in _KINDS),
                    )
                    for size in sizes
                ),
            ),
        ),
        charts=(
            Chart(
                "Test accuracy by kind of statistics",
                "batch size in training",
                "test accuracy",
                tuple(series(kind, sizes, np.stack([accuracy[size][kind] for size in sizes])) for kind in _KINDS),
                x_log=True,
            ),
        ),
        caveats=(
            "The learning rate is constant to the end; one that falls to 0 lets moving averages settle, and makes less "
            "of the difference (docs/training.md measures that). Wu and Johnson's networks are convolutional, where "
            "each batch has many more elements of a channel: a batch of 4 here is less than one of 2 there. Batches of "
            "2 are left out, since through two elements no gradient passes (docs/batch_norm.md)."
        ),
    )


def _plan(size: int, lab: Laboratory) -> Plan:
    """As many images for each batch size, within bounds on the number of steps."""
    steps = int(np.clip(lab.sized(16_000, 4_000) // size, lab.sized(500, 150), lab.sized(2_000, 700)))
    return Plan(steps=steps, batch=size, every=steps)


def _accuracy_in_batches(ensemble: Ensemble, test: Part, size: int) -> NDArray[np.float64]:
    """The accuracy (S,) in training mode, averaged over random batches of ``size`` test images."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(test)))
    parts = []
    with torch.no_grad():
        for start in range(0, len(test) - size + 1, size):
            chosen = order[start : start + size]
            parts.append(accuracies(ensemble.forward(test.x[chosen]), test.y[chosen]).double().numpy())
    return np.asarray(np.stack(parts).mean(0))
