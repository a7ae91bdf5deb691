"""What bnfold's training step costs beyond a bare loop in torch.

Run: python benchmarks/training_overhead.py [--rounds N] [--threads N]. Prints the table in docs/training.md.

Both take steps with the same network, optimizer, batch size and labels, in turns. The bare loop is the least that
trains: batches are normalized and lie ready in memory, in a fixed order, and are not augmented. bnfold's step also
picks the images of the epoch's order, shifts and mirrors them at random, normalizes them, seeds dropout, and checks
that the loss is finite. The ratio is of the medians of a round; the interval is over rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bnfold.models import build, fitting_arguments
from bnfold.training import TrainOptions
from bnfold.training.dataset import DataSet, Normalization, Split
from bnfold.training.distributed import Team
from bnfold.training.preparation import Training, prepare
from bnfold.training.schedule import sample_order
from bnfold.training.step import take_step

CASES = (
    ("mlp", (1, 8, 8), 64),
    ("resnet", (1, 8, 8), 64),
    ("mobilenet_v2", (1, 8, 8), 64),
    ("resnet", (3, 32, 32), 64),
)
_IMAGES, _CLASSES = 640, 10


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| network | image | batch | bare loop, ms a step | bnfold, ms a step | ratio (95 % interval) |")
    print("|---|---|---|---|---|---|")
    for name, shape, batch in CASES:
        bare, ours = _loops(name, shape, batch)
        ratios, pairs = [], []
        for number in range(arguments.rounds + 1):
            first, second = (bare, ours) if number % 2 == 0 else (ours, bare)
            times = {loop: loop() for loop in (first, second)}
            if number:  # the first warms up
                pairs.append((times[bare], times[ours]))
                ratios.append(times[ours] / times[bare])
        medians = 1e3 * np.median(pairs, axis=0)
        half = 2.2 * np.std(ratios, ddof=1) / np.sqrt(len(ratios))  # t of 11 degrees of freedom
        sides = "×".join(map(str, shape))
        print(
            f"| `{name}` | {sides} | {batch} | {medians[0]:.2f} | {medians[1]:.2f} | "
            f"{np.mean(ratios):.2f} ({np.mean(ratios) - half:.2f} to {np.mean(ratios) + half:.2f}) |",
            flush=True,
        )


def _loops(name: str, shape: tuple[int, ...], batch: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """An epoch of the bare loop and one of bnfold's; each returns the median seconds of a step."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (_IMAGES, *shape), np.uint8)
    split = Split(images, np.arange(_IMAGES) % _CLASSES)
    classes = tuple(map(str, range(_CLASSES)))
    data = DataSet("random", split, split, classes, Normalization.of(images, 255.0), mirrored=True)
    options = TrainOptions(output="unused", model=name, batch_size=batch, device="cpu")
    arguments = fitting_arguments(name, shape, _CLASSES)
    return _bare(_training(options, data, arguments)), _ours(_training(options, data, arguments))


def _training(options: TrainOptions, data: DataSet, arguments: dict[str, object]) -> Training:
    torch.manual_seed(0)
    return prepare(options, data, Team(0, 1, torch.device("cpu")), build(options.model, **arguments))


def _bare(training: Training) -> Callable[[], float]:
    inputs = torch.from_numpy(training.data.inputs(training.data.train))
    labels = torch.from_numpy(training.data.train.labels)
    network: nn.Module = training.model

    def step(number: int, size: int) -> None:
        chosen = slice(number * size, (number + 1) * size)
        loss = F.cross_entropy(network(inputs[chosen]), labels[chosen], label_smoothing=0.1)
        training.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        training.optimizer.step()

    return _epoch(training, lambda number: step(number, training.batch_size))


def _ours(training: Training) -> Callable[[], float]:
    order = sample_order(0, 0, len(training.data.train))
    return _epoch(training, lambda number: take_step(training, 0, number, order))


def _epoch(training: Training, step: Callable[[int], object]) -> Callable[[], float]:
    def run() -> float:
        training.network.train()
        for group in training.optimizer.param_groups:
            group["lr"] = 0.001
        times = []
        for number in range(training.steps):
            began = time.perf_counter()
            step(number)
            times.append(time.perf_counter() - began)
        return float(np.median(times))

    return run


if __name__ == "__main__":
    main()
