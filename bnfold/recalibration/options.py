"""What a recalibration is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from bnfold.errors import OptionError
from bnfold.session import check_threads
from bnfold.training.options import DEVICES


@dataclass(frozen=True)
class RecalibrateOptions:
    """How to recalibrate.

    Attributes:
        data: the data set, or for an ONNX file anything that :func:`bnfold.predict` takes; by default, the data that
            a run was trained on.
        batch: samples of one pass through the network; it changes speed and memory, not the result.
        provider: where an ONNX file runs, see :class:`bnfold.session.SessionOptions`.
        device: where a run's network runs: ``auto`` (CUDA if there is one), ``cpu`` or ``cuda``.
        threads: CPU threads; 0 leaves the choice to the runtime.

    Raises:
        OptionError: a value is out of range.
    """

    data: str | None = None
    batch: int = 64
    provider: str = "cpu"
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise OptionError(f"batch is {self.batch}; it must be at least 1")
        check_threads(self.threads)
        if self.device not in DEVICES:
            raise OptionError(f"device is {self.device!r}; it must be one of {', '.join(DEVICES)}")
