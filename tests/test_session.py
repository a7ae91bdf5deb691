"""Running a session: signals end a run, and nothing else changes by that; what its errors are quoted as."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import benchmark_models
import numpy as np
import pytest

from bnfold.errors import ModelError, one_line, root_cause
from bnfold.session import create_session, run_options, run_session


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
            run_session(session, {"x": np.zeros((1, 3, 4), np.float32)})
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_run_gives_the_outputs_and_refuses_what_the_model_does_not_take(tmp_path: Path) -> None:
    session = create_session(benchmark_models.write(tmp_path / "relu.onnx"))
    feeds = {"x": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)}
    np.testing.assert_array_equal(run_session(session, feeds)["y"], np.maximum(feeds["x"], 0))
    with pytest.raises(ModelError, match="ONNX Runtime failed while running the model"):
        run_session(session, {"x": np.zeros((1, 2), np.float32)})


def test_a_name_that_is_no_text_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = benchmark_models.write(tmp_path / "relu.onnx").rename(tmp_path / os.fsdecode(b"bad\xff.onnx"))
    with pytest.raises(ModelError, match=r"name is not UTF-8.*bad\\udcff\.onnx"):
        create_session(path)


def test_another_thread_ends_a_run_that_would_not_end_by_itself(tmp_path: Path) -> None:
    session = create_session(benchmark_models.write(tmp_path / "hangs.onnx", benchmark_models.HANGS))
    options = run_options()
    timer = threading.Timer(0.3, setattr, (options, "terminate", True))
    timer.start()
    with pytest.raises(ModelError, match="terminate"):
        run_session(session, {"x": np.zeros((1, 3, 4), np.float32)}, options)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("one\n  two\tthree", "one two three"),
        ("a" * 300, "a" * 300),
        ("a" * 301, "a" * 299 + "…"),
        (ValueError("far\n off"), "far off"),
        (AssertionError(), "AssertionError"),
        (RuntimeError("no memory\nException raised from f at x.cpp\nframe #0"), "no memory"),
    ],
)
def test_messages_of_others_are_quoted_as_one_bounded_line(message: Exception | str, line: str) -> None:
    assert one_line(message) == line


def test_root_cause_is_the_error_that_began_it_all() -> None:
    outer = RuntimeError("outer")
    outer.__cause__ = ValueError("in\nner")
    assert root_cause(outer) == "in ner"
