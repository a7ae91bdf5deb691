"""Running a session: signals end a run, and nothing else changes by that."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import benchmark_models
import numpy as np
import pytest

from bnfold.errors import ModelError
from bnfold.session import create_session, run_interruptibly, run_session


class InterruptedRunError(Exception):
    """What a signal's handler raises."""


def test_a_signal_ends_a_run_that_would_not_end_by_itself(tmp_path: Path) -> None:
    session = create_session(benchmark_models.write(tmp_path / "hangs.onnx", benchmark_models.HANGS))

    def interrupt(*_: object) -> None:
        raise InterruptedRunError

    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        timer.start()
        with pytest.raises(InterruptedRunError):
            run_interruptibly(session, {"x": np.zeros((1, 3, 4), np.float32)})
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_run_that_can_be_interrupted_gives_and_refuses_the_same(tmp_path: Path) -> None:
    session = create_session(benchmark_models.write(tmp_path / "relu.onnx"))
    feeds = {"x": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)}
    for run in (run_session, run_interruptibly):
        np.testing.assert_array_equal(run(session, feeds)["y"], np.maximum(feeds["x"], 0))
        with pytest.raises(ModelError, match="ONNX Runtime failed while running the model"):
            run(session, {"x": np.zeros((1, 2), np.float32)})
