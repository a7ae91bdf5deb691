"""What a training run came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        folder: the run's folder.
        model: name of the network.
        parameters: number of trained values.
        device: where it was trained.
        workers: number of processes.
        threads: CPU threads of each.
        epochs: epochs completed.
        test_accuracy: share of the test images that are classified right, from 0 to 1, after the last epoch.
        test_loss: mean cross-entropy on the test images, in nats.
        test_images: number of test images.
        seconds: wall-clock time of training, over all sittings.
        resumed_at: epochs that were complete when this call began; None if it began the run.
        history: the figures of each epoch: epoch, lr, train_loss, test_loss, test_accuracy, seconds.
        leads: whether this process is the one that reports; False in all but one worker of ``torchrun``.
    """

    folder: Path
    model: str
    parameters: int
    device: str
    workers: int
    threads: int
    epochs: int
    test_accuracy: float
    test_loss: float
    test_images: int
    seconds: float
    resumed_at: int | None
    history: tuple[Mapping[str, Any], ...]
    leads: bool = True

    def to_json(self) -> dict[str, Any]:
        """The result as a plain document."""
        return {
            "folder": str(self.folder),
            "model": self.model,
            "parameters": self.parameters,
            "device": self.device,
            "workers": self.workers,
            "threads": self.threads,
            "epochs": self.epochs,
            "test_accuracy": self.test_accuracy,
            "test_loss": self.test_loss,
            "test_images": self.test_images,
            "seconds": self.seconds,
            "resumed_at": self.resumed_at,
            "history": [dict(row) for row in self.history],
        }
