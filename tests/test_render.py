"""What is printed fits the terminal, and no number loses its end."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.cli.render import Output, table
from bnfold.reporting.plots import latency_distributions, training_curve

ROWS = [("original-with-a-long-name.onnx", "28,616", "1.01x (0.94–1.07)"), ("folded.onnx", "1,029,350", "–")]


@pytest.mark.parametrize("width", [24, 40, 60, 80, 200])
def test_no_number_is_cut_however_narrow_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    headings = ("candidate", "infer/s", "speed-up (95 %)")
    Output().show(table("Latency", headings, ROWS, right=headings[1:]))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out
    for number in ("28,616", "1,029,350", "(0.94–1.07)"):
        assert number in out


@pytest.mark.parametrize(("milliseconds", "unit"), [(0.0174, "µs"), (17.4, "ms"), (17400.0, "s")])
def test_latencies_are_drawn_in_a_unit_that_people_read(milliseconds: float, unit: str) -> None:
    samples = milliseconds * np.linspace(0.9, 1.1, 50)
    assert f"latency of one run ({unit})" in latency_distributions({"m.onnx": samples})


@pytest.mark.parametrize("accuracies", [[0.9], [0.4, 0.9], [0.9, 0.4]])
def test_a_training_curve_is_drawn_from_the_first_epoch_on(accuracies: list[float]) -> None:
    history = [
        {"epoch": number + 1, "train_loss": 1.0, "test_loss": 1.0, "test_accuracy": accuracy}
        for number, accuracy in enumerate(accuracies)
    ]
    assert f"{100 * accuracies[-1]:.2f} %" in training_curve(history)
