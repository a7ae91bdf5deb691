"""Do gradients explode at initialisation in deep networks with batch norm, and do skip connections cure it?"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnfold.studies.ensemble import Architecture, Ensemble
from bnfold.studies.intervals import difference, mean_interval, series
from bnfold.studies.laboratory import Laboratory, Plan
from bnfold.studies.result import Chart, Finding, Outcome, Region, Table
from bnfold.studies.sources import DE_SMITH, YANG

#: What the squared gradient grows by in each layer of a wide ReLU network, from the last layer to the first.
PREDICTED = math.pi / (math.pi - 1)

#: Layers at either end that are left out of the growth: the input is not yet, or the end still, special.
_MARGIN = 6


def run(lab: Laboratory) -> Outcome:
    """Growth of the squared gradient by layer at initialisation, and training at that depth."""
    depth, width, batch = lab.sized(36, 30), lab.sized(384, 256), lab.sized(256, 192)
    arms = {
        "no norm": Architecture(depth, width),
        "batch norm": Architecture(depth, width, norm="batch"),
        "batch norm, skips": Architecture(depth, width, norm="batch", skip=True),
    }
    gradients = {}
    for arm, architecture in arms.items():
        gradients[arm] = _squared_gradients(architecture, lab, batch)
        lab.progress(lab.stage, len(gradients), len(arms))
    growth = {arm: _growth(values) for arm, values in gradients.items()}
    trained, rates, plan = _trained(lab)
    return Outcome(
        name="explosion",
        title="Do gradients explode in deep networks at initialisation?",
        setup=(
            f"Networks of {depth} hidden layers of {width} ReLU units with He et al.'s initial weights, {batch} random "
            "inputs, a random gradient at the end. Growth is the factor by which the squared length of the gradient at "
            f"a layer's activation grows in each layer on its way back, without the {_MARGIN} layers at either end. "
            f"Then networks of {_DEEP.depth} layers of {_DEEP.width} units are trained on the digits, {plan.steps} "
            "steps of 64 images, each arm at its own best learning rate."
        ),
        findings=(
            Finding(
                "With batch norm and ReLU the squared gradient grows by π/(π − 1) ≈ 1.467 in each layer.",
                YANG,
                "growth in a layer, batch norm without skip connections",
                mean_interval(growth["batch norm"]),
                Region(0.97 * PREDICTED, 1.03 * PREDICTED, f"within 3 % of {PREDICTED:.3f}"),
                "{:.3f}",
            ),
            Finding(
                "Batch norm itself is the cause.",
                YANG,
                "growth in a layer, batch norm minus no norm",
                difference(growth["batch norm"], growth["no norm"]),
                Region(0.2, float("inf"), "above 0.2"),
                "{:+.3f}",
            ),
            Finding(
                "With skip connections the growth in a layer falls with depth, so that nothing explodes.",
                DE_SMITH,
                "growth in a layer, batch norm with skip connections, second half of the layers",
                mean_interval(_growth(gradients["batch norm, skips"], depth // 2)),
                Region(0.9, 1.1, "0.9 to 1.1"),
                "{:.3f}",
            ),
            Finding(
                "Deep batch-normalized networks without skip connections are not trainable, those with them are.",
                YANG,
                f"test accuracy at {_DEEP.depth} layers, with minus without skip connections, in points",
                difference(100 * trained["batch norm, skips"], 100 * trained["batch norm"]),
                Region(0.0, float("inf"), "above 0"),
                "{:+.1f}",
            ),
        ),
        tables=(
            Table(
                "Growth of the squared gradient in a layer",
                ("arm", "growth", "95 % interval", "first layer ÷ last"),
                tuple(
                    (
                        arm,
                        f"{mean_interval(values).estimate:.3f}",
                        f"{mean_interval(values).low:.3f} to {mean_interval(values).high:.3f}",
                        f"{np.exp(np.log(gradients[arm][0] / gradients[arm][-1]).mean()):.3g}×",
                    )
                    for arm, values in growth.items()
                ),
            ),
            Table(
                f"Training at {_DEEP.depth} layers (mean over seeds)",
                ("arm", "learning rate", "test accuracy"),
                tuple((arm, f"{rates[arm]:g}", f"{accuracy.mean():.1%}") for arm, accuracy in trained.items()),
            ),
        ),
        charts=(
            Chart(
                "Squared gradient by layer, relative to the last",
                "layer",
                "squared length of the gradient",
                tuple(series(arm, np.arange(1, depth + 1), values / values[-1]) for arm, values in gradients.items()),
                y_log=True,
            ),
        ),
        caveats=(
            "The prediction is of infinite width and batch. Skip connections here go around the whole of a layer, "
            "h + φ(norm(h W + b)); other places behave alike, with other constants."
        ),
    )


#: What is trained: deep enough for the explosion to matter, narrow enough for a study.
_DEEP = Architecture(depth=40, width=32, norm="batch")


def _trained(lab: Laboratory) -> tuple[dict[str, NDArray[np.float64]], dict[str, float], Plan]:
    """Test accuracy (S,) after training with and without skip connections, and the learning rates."""
    arms = {"batch norm": _DEEP, "batch norm, skips": Architecture(_DEEP.depth, _DEEP.width, norm="batch", skip=True)}
    steps = lab.sized(200, 80)
    plan = Plan(steps=steps, batch=64, every=steps)
    rates = {arm: lab.tuned(architecture, plan, "last") for arm, architecture in arms.items()}
    return {arm: lab.curve(arms[arm], plan, rates[arm]).accuracy[-1] for arm in arms}, rates, plan


def _squared_gradients(architecture: Architecture, lab: Laboratory, batch: int) -> NDArray[np.float64]:
    """The squared length (layers, seeds) of the gradient with respect to each hidden layer's output."""
    columns = []
    for seed in lab.seeds:  # one after the other, since wide ones need memory
        ensemble = Ensemble(architecture, [seed], features=lab.task.features, classes=lab.task.classes)
        random = torch.Generator().manual_seed(seed)
        watched: list[Tensor] = []
        logits = ensemble.forward(torch.randn(batch, lab.task.features, generator=random), watch=watched)
        end = torch.randn(logits.shape, generator=random)
        gradients = torch.autograd.grad((logits * end).sum(), watched)
        columns.append([float(gradient.double().square().sum()) for gradient in gradients])
    return np.array(columns).T


def _growth(gradients: NDArray[np.float64], first: int = _MARGIN) -> NDArray[np.float64]:
    """The factor (seeds,) by layer, from a straight line through the logarithms from the layer ``first`` on."""
    middle = np.log(gradients[first:-_MARGIN])
    slopes = np.polyfit(np.arange(len(middle)), middle, 1)[0]
    return np.asarray(np.exp(-slopes))
