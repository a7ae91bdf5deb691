"""benchmarks/aa_rate.py: what it plants is what it says, and it goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aa_rate
import numpy as np
import onnx
import onnxruntime
import pytest

from bnfold.benchmarking.statistics import Verdict

SETUP = {"threads": 1, "time": 0.1, "launches": 2, "channels": 2, "size": 4}


def record(planted: int, seed: int, verdict: Verdict = Verdict.NO_DIFFERENCE) -> dict[str, Any]:
    return {
        "planted": planted,
        "seed": seed,
        "verdict": verdict.value,
        "verdict_without_control": verdict.value,
        "ratio": {"estimate": 1.0, "low": 0.99, "high": 1.01},
        "fast_ratio": 1 + planted / 100,
        "others_busy_cores": 0.1,
        "setup": SETUP,
    }


def test_the_planted_rounds_are_the_only_difference_between_the_files(tmp_path: Path) -> None:
    paths = [aa_rate.loop_model(tmp_path / f"{rounds}.onnx", rounds, 2, 4) for rounds in (1, 3)]
    one, three = (onnx.load(path) for path in paths)
    assert one.graph.initializer[0].name == "rounds"
    three.graph.initializer[0].CopyFrom(one.graph.initializer[0])
    assert three == one
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
    sessions = [onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in paths]
    thrice = x
    for _ in range(3):
        (thrice,) = sessions[0].run(None, {"x": thrice})
    np.testing.assert_allclose(sessions[1].run(None, {"x": x})[0], thrice, rtol=1e-5, atol=1e-6)


def test_runs_that_are_in_the_file_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "aa.jsonl"
    made: list[int] = []
    monkeypatch.setattr(aa_rate, "benchmark", lambda _models, options: made.append(options.seed))
    monkeypatch.setattr(aa_rate, "_record", lambda _result, percent, seed, _setup: record(percent, seed))
    monkeypatch.setattr(aa_rate, "_line", lambda _record: "")
    records = aa_rate.read_records(out, SETUP)
    aa_rate.measure(records, out, SETUP, 2, [0, 3])
    assert made == [0, 0, 0, 1, 1]  # the calibration, then both kinds in turn
    out.write_text(out.read_text() + '{"planted": 0, "se')  # as an interruption leaves it
    again = aa_rate.read_records(out, SETUP)
    assert again == records
    aa_rate.measure(again, out, SETUP, 3, [0, 3])
    assert made[5:] == [2, 2]
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 7


def test_runs_with_other_settings_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "aa.jsonl").write_text(json.dumps(record(0, 0)) + "\n")
    with pytest.raises(SystemExit, match="other settings"):
        aa_rate.read_records(tmp_path / "aa.jsonl", {**SETUP, "threads": 2})


def test_the_summary_tells_rates_with_exact_intervals() -> None:
    records = [record(0, seed) for seed in range(98)] + [record(0, seed, Verdict.FASTER) for seed in (98, 99)]
    records += [record(3, seed, Verdict.SLOWER) for seed in range(10)] + [record(100, 0)]
    lines = aa_rate.summary(records).splitlines()
    assert lines[2].startswith("| 0 % | 100 | 0 (0–4 %) | 2 (0–7 %) | 2 called different |")
    assert lines[3].startswith("| 3 % | 10 | 10 (69–100 %) | 0 (0–31 %) |")
    assert lines[-1] == "100 % planted were measured as 100.0 %: 3 % planted are 3.00 %."
