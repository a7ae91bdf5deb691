"""Is a target accuracy reached in fewer steps, and in less time?"""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray

from bnfold.benchmarking.statistics import Interval
from bnfold.studies.ensemble import Architecture, Ensemble, losses
from bnfold.studies.intervals import mean_interval, ratio, series
from bnfold.studies.laboratory import Curve, Laboratory, Plan
from bnfold.studies.result import Chart, Finding, Outcome, Region, Table
from bnfold.studies.sources import IOFFE_SZEGEDY

TARGET = 0.93

#: The network of the paper's first experiment, in little, and one as people train today.
NETWORKS = {"sigmoid": Architecture(depth=3, activation="sigmoid"), "ReLU": Architecture(depth=4)}


def run(lab: Laboratory) -> Outcome:
    """Steps to :data:`TARGET`, with and without batch norm, each at its own best learning rate."""
    plan = Plan(steps=lab.sized(1200, 400), every=lab.sized(10, 10))
    findings, charts, rows = [], [], []
    for kind, plain in NETWORKS.items():
        arms = {"no norm": plain, "batch norm": _with_norm(plain)}
        rates = {arm: lab.tuned(architecture, plan, grid=lab.rates(high=6)) for arm, architecture in arms.items()}
        curves = {arm: lab.curve(architecture, plan, rates[arm]) for arm, architecture in arms.items()}
        fewer = ratio(curves["no norm"].steps_to(TARGET), curves["batch norm"].steps_to(TARGET))
        cost = _cost_ratio(arms["batch norm"], arms["no norm"], lab)
        findings += _findings(kind, fewer, cost)
        rows += [_row(kind, arm, rates[arm], curve) for arm, curve in curves.items()]
        charts.append(
            Chart(
                f"Test accuracy, {kind}",
                "steps",
                "test accuracy",
                tuple(series(arm, curve.steps, curve.accuracy) for arm, curve in curves.items()),
                reference=(TARGET, "target"),
            )
        )
    return Outcome(
        name="speed",
        title="Is a target accuracy reached faster?",
        setup=(
            "Perceptrons on the digits, with 3 hidden layers of 64 sigmoid units, and with 4 of 64 ReLU units, each "
            "arm at the learning rate whose validation accuracy is best as the mean over training. Counted are the "
            f"steps of 32 images until the test accuracy, in inference mode, first is {TARGET:.0%}. A run that does "
            f"not get there counts as {plan.steps} steps, which favours its arm. The cost of a step is processor "
            "time, both arms in turns."
        ),
        findings=tuple(findings),
        tables=(
            Table(
                f"Steps to {TARGET:.0%} test accuracy (geometric mean over seeds)",
                ("network", "learning rate", "steps", "runs that get there", "accuracy at the end"),
                tuple(rows),
            ),
        ),
        charts=tuple(charts),
        caveats=(
            "Both networks are small, well initialised and on easy data, where there is little to speed up; the 14 "
            "times of the paper are of Inception on ImageNet. What a step costs depends on the runtime: here the norm "
            "is several ops on small tensors, where a fused kernel would cost less."
        ),
    )


def _with_norm(architecture: Architecture) -> Architecture:
    return Architecture(architecture.depth, architecture.width, architecture.activation, "batch")


def _findings(kind: str, fewer: Interval, cost: Interval) -> list[Finding]:
    more = Region(1.0, float("inf"), "above 1")
    time_ratio = Interval(fewer.estimate / cost.estimate, fewer.low / cost.high, fewer.high / cost.low)
    return [
        Finding(
            "A batch-normalized network reaches the same accuracy in fewer steps.",
            IOFFE_SZEGEDY,
            f"steps without ÷ steps with batch norm, {kind}",
            fewer,
            more,
            "{:.2f}×",
        ),
        Finding(
            "Training is accelerated: the gain is more than the norm costs.",
            IOFFE_SZEGEDY,
            f"processor time without ÷ with batch norm, {kind}",
            time_ratio,
            more,
            "{:.2f}×",
        ),
    ]


def _row(kind: str, arm: str, rate: float, curve: Curve) -> tuple[str, ...]:
    steps = curve.steps_to(TARGET)
    return (
        f"{kind}, {arm}",
        f"{rate:g}",
        f"{np.exp(np.log(steps).mean()):.0f}",
        f"{int(curve.reaches(TARGET).sum())} of {len(steps)}",
        f"{mean_interval(curve.accuracy[-1]).estimate:.1%}",
    )


def _cost_ratio(one: Architecture, other: Architecture, lab: Laboratory) -> Interval:
    """Processor time of a step of ``one`` over that of ``other``, measured in turns."""
    times: dict[Architecture, list[float]] = {one: [], other: []}
    for _ in range(lab.sized(12, 8)):
        for architecture in (one, other):
            times[architecture].append(_step_seconds(architecture, lab))
    return ratio(_settled(times[one]), _settled(times[other]))


def _settled(times: list[float]) -> NDArray[np.float64]:
    """Without the first, which warms caches up."""
    return np.array(times[1:])


def _step_seconds(architecture: Architecture, lab: Laboratory, members: int = 10, steps: int = 20) -> float:
    ensemble = Ensemble(architecture, range(members), features=lab.task.features, classes=lab.task.classes)
    batch = lab.task.fit.first(32)
    started = time.process_time()
    for _ in range(steps):
        torch.autograd.grad(losses(ensemble.forward(batch.x), batch.y).sum(), ensemble.parameters())
    return (time.process_time() - started) / steps / members
