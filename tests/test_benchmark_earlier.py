"""A comparison with an earlier run: what is matched, what cancels, and what files are refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_models import write
from scipy.stats import ttest_ind

from bnfold.benchmarking import BenchmarkOptions, BenchmarkResult, benchmark
from bnfold.benchmarking.earlier import EarlierRun, load_earlier
from bnfold.benchmarking.report import as_html, as_json
from bnfold.benchmarking.results import CandidateResult
from bnfold.benchmarking.statistics import Verdict, welch
from bnfold.cli.main import main
from bnfold.errors import InputError

QUICK = BenchmarkOptions(seconds=0.1, launches=2, cold_starts=0, threads=(1,))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkResult:
    folder = tmp_path_factory.mktemp("pair")
    return benchmark([write(folder / "first.onnx"), write(folder / "second.onnx")], QUICK)


def simulated(result: BenchmarkResult, machine: float, second: float, seed: int) -> BenchmarkResult:
    """The same benchmark on a machine that takes ``machine`` times as long, where the second model takes ``second``."""
    generator = np.random.default_rng(seed)

    def records(factor: float) -> Any:
        record = result.groups[0].candidates[0].records[0]
        return tuple(
            replace(record, rounds=tuple((int(factor * 1e6 * generator.normal(1, 0.002)),) for _ in range(8)))
            for _ in range(5)
        )

    (group,) = result.groups
    candidates = tuple(
        replace(candidate, records=records(machine * factor))
        for candidate, factor in zip(group.candidates, (1.0, second), strict=True)
    )
    return replace(result, groups=(replace(group, candidates=candidates, control_records=records(machine)),))


def saved(result: BenchmarkResult, folder: Path) -> EarlierRun:
    (folder / "old.json").write_text(as_json(result))
    return load_earlier(folder / "old.json")


def test_a_machine_that_became_slower_cancels_where_both_runs_share_their_first_model(
    pair: BenchmarkResult, tmp_path: Path
) -> None:
    old = saved(simulated(pair, 1.0, 0.8, 1), tmp_path)
    (same,) = old.compare(simulated(pair, 1.5, 0.8, 2).groups)
    assert (same.label, same.yardstick, same.same_file) == ("second.onnx", "first.onnx", True)
    assert same.comparison.verdict is Verdict.NO_DIFFERENCE
    (slower,) = old.compare(simulated(pair, 1.5, 0.84, 3).groups)
    assert slower.comparison.verdict is Verdict.SLOWER
    assert slower.comparison.latency_ratio.estimate == pytest.approx(1.05, abs=0.005)
    assert slower.comparison.noise_floor is not None


def without_first(result: BenchmarkResult) -> BenchmarkResult:
    (group,) = result.groups
    alone: tuple[CandidateResult, ...] = group.candidates[1:]
    inner = replace(group.group, candidates=group.group.candidates[1:], has_control=False)
    return replace(result, groups=(replace(group, group=inner, candidates=alone, control_records=(), control=None),))


def test_without_a_yardstick_the_machine_is_in_the_ratio_and_a_warning_says_so(
    pair: BenchmarkResult, tmp_path: Path
) -> None:
    old = saved(without_first(simulated(pair, 1.0, 1.0, 1)), tmp_path)
    now = without_first(simulated(pair, 1.5, 1.0, 2))
    (found,) = old.compare(now.groups)
    assert found.yardstick is None
    assert found.comparison.latency_ratio.estimate == pytest.approx(1.5, rel=0.01)
    assert "without a yardstick" in " ".join(old.warnings(now.groups, now.context))


def test_a_first_model_whose_file_changed_is_no_yardstick(pair: BenchmarkResult, tmp_path: Path) -> None:
    old = saved(simulated(pair, 1.0, 1.0, 1), tmp_path)
    (group,) = pair.groups
    first = group.candidates[0]
    changed = replace(first.candidate, subject=replace(first.candidate.subject, sha256="1" * 64))
    now = replace(group, candidates=(replace(first, candidate=changed), *group.candidates[1:]))
    assert [(found.label, found.yardstick) for found in old.compare([now])] == [
        ("first.onnx", None),
        ("second.onnx", None),
    ]


def test_another_machine_or_another_runtime_is_warned_of(pair: BenchmarkResult, tmp_path: Path) -> None:
    other = replace(pair, context=replace(pair.context, cpu="Abacus", onnxruntime="0.1"))
    warnings = " ".join(saved(other, tmp_path).warnings(pair.groups, pair.context))
    assert "the processor of old.json was Abacus and is " in warnings
    assert "the onnxruntime of old.json was 0.1" in warnings
    assert list(saved(pair, tmp_path).warnings(pair.groups, pair.context)) == []


def test_only_a_slowdown_since_the_earlier_run_fails_where_one_is_given(pair: BenchmarkResult, tmp_path: Path) -> None:
    old = saved(simulated(pair, 1.0, 2.0, 1), tmp_path)
    now = simulated(pair, 1.0, 2.0, 2)  # twice as slow as the first, and no slower than it was
    result = replace(now, earlier=old.compare(now.groups))
    assert result.slower_than(5) == ()
    worse = simulated(pair, 1.0, 2.4, 3)
    (said,) = replace(worse, earlier=old.compare(worse.groups)).slower_than(5)
    assert said.startswith("second.onnx is slower than in old.json, relative to first.onnx, by more than 5 %")
    text = as_html(replace(worse, earlier=old.compare(worse.groups)))
    assert re.search(r"second.onnx is 1\.[12]\d+x slower than in old.json, relative to first.onnx,", text)


def test_the_command_compares_with_a_file_that_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, old = str(write(tmp_path / "m.onnx")), str(tmp_path / "old.json")
    quick = ["--time", "0.1", "--launches", "2", "--cold-starts", "0", "--threads", "1"]
    assert main(["benchmark", model, *quick, "--out", old]) == 0
    capsys.readouterr()
    assert main(["benchmark", model, *quick, "--baseline", old, "--fail-if-slower", "100000", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["earlier"]
    assert (found["label"], found["yardstick"], found["same_file"]) == ("m.onnx", None, True)


def emptied(document: dict[str, Any]) -> dict[str, Any]:
    document["groups"][0]["candidates"][0]["launches"][0]["rounds_ns"] = []
    return document


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"\x08\x07", "is not JSON"),
        (b"[]", "schema 2 is needed, none is there"),
        (b'{"schema": 1}', "schema 2 is needed, 1 is there"),
        (b'{"schema": 2}', "does not hold every sample"),
        (b'{"schema": 2, "context": {}, "groups": 3}', "does not hold every sample"),
        ("summary", "does not hold every sample"),
        ("emptied", "does not hold every sample"),
        ("renamed", "holds none of these models"),
    ],
)
def test_a_file_that_cannot_be_compared_with_is_refused_before_anything_runs(
    content: bytes | str | None,
    said: str,
    pair: BenchmarkResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bnfold.benchmarking.run.launch", lambda *_: pytest.fail("something ran"))
    made = {
        "summary": json.dumps(pair.to_json()),
        "emptied": json.dumps(emptied(pair.to_json(samples=True))),
        "renamed": as_json(pair),
    }
    old = tmp_path / "old.json"
    if content is not None:
        old.write_bytes(made[content].encode() if isinstance(content, str) else content)
    assert main(["benchmark", str(write(tmp_path / "other.onnx")), "--baseline", str(old)]) == 3
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_an_earlier_run_is_read_from_a_path_that_exists(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_earlier(tmp_path)


def test_welch_s_interval_is_that_of_scipy() -> None:
    ours, theirs = np.array([5.0, 7.0, 9.0, 11.0]), np.array([1.0, 2.0, 3.0])
    difference, half = welch(ours, theirs)
    expected = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert (difference - half, difference + half) == pytest.approx((expected.low, expected.high))
    assert welch(np.ones(3), np.ones(4)) == (0.0, 0.0)
