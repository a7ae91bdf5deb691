"""The workers of one run: a single process, or those that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed as dist

from bnfold.errors import InputError, SetupError, WorkerError, one_line


@dataclass(frozen=True)
class Team:
    """The workers of a run, seen from one of them.

    Attributes:
        rank: this worker's number.
        size: number of workers.
        device: where this worker computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this worker is the one that writes files and reports."""
        return self.rank == 0

    def sums(self, *values: float) -> list[float]:
        """Each value summed over the workers; all workers get the same answer.

        Raises:
            WorkerError: another worker is gone.
        """
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            raise WorkerError(
                "another worker of this run failed or was killed; go on from the last checkpoint (--resume): "
                f"{one_line(error)}"
            ) from error
        return [float(value) for value in tensor]

    def wait(self) -> None:
        """Return once every worker has come here."""
        self.sums(0.0)


def choose_device(device: str, local_rank: int) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` means here.

    Raises:
        SetupError: CUDA was asked for and cannot be used.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SetupError("device cuda was asked for, and torch finds no CUDA device; use device cpu")
    if local_rank >= torch.cuda.device_count():
        raise SetupError(
            f"worker {local_rank} has no CUDA device of its own (there are {torch.cuda.device_count()}); "
            "start as many workers as there are devices"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def joined_team(device: str) -> Iterator[Team]:
    """Join the workers that ``torchrun`` started, or be alone.

    ``torchrun`` sets WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Workers talk over gloo on
    the CPU and over NCCL on CUDA.

    Raises:
        InputError: the environment names several workers and is not complete.
        SetupError: CUDA was asked for and cannot be used, or the workers cannot reach each other.
    """
    size = _environment_number("WORLD_SIZE", 1)
    rank = _environment_number("RANK", 0) if size > 1 else 0
    chosen = choose_device(device, _environment_number("LOCAL_RANK", 0) if size > 1 else 0)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Team(0, 1, chosen)
        return
    ours = not dist.is_initialized()
    if ours:
        try:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:
            raise SetupError(f"the workers cannot reach each other: {one_line(error)}") from error
    try:
        yield Team(rank, size, chosen)
    finally:
        if ours:
            dist.destroy_process_group()


def _environment_number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"the environment variable {name} is {text!r}; it must be a whole number")
    return int(text)
