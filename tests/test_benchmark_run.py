"""Real benchmarks, as short as they can be: what is recorded, and what happens when something breaks."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from benchmark_models import FAILS_SOMETIMES, FAILS_TO_RUN, HANGS, RELU, children, running, write

from bnfold.benchmarking import BenchmarkOptions, BenchmarkResult, Kind, Scenario, benchmark
from bnfold.benchmarking.conclusions import conclude, machine_warnings
from bnfold.benchmarking.context import Disturbance
from bnfold.benchmarking.launches import LaunchRecord
from bnfold.benchmarking.options import Setting
from bnfold.benchmarking.process import Worker, thread_states
from bnfold.benchmarking.report import FORMATS, as_csv, as_html, as_json, as_markdown, write_report
from bnfold.benchmarking.statistics import Comparison, Interval, Verdict
from bnfold.benchmarking.tables import notes, tables
from bnfold.errors import BnfoldError, InputError, ModelError, OutputError, ProviderError, WorkerError

SHORT = BenchmarkOptions(seconds=0.1, launches=2, cold_starts=0, threads=(1,))

#: Long enough to be broken meanwhile.
LONG = ["--time", "60", "--threads", "1"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkResult:
    folder = tmp_path_factory.mktemp("models")
    first = write(folder / "first.onnx")
    copy = write(folder / "copy.onnx")
    options = BenchmarkOptions(seconds=0.1, launches=2, cold_starts=3, threads=(1,), batches=(1, 8), seed=7)
    return benchmark([first, copy], options)


def test_every_combination_compares_every_model_with_the_first(result: BenchmarkResult) -> None:
    assert [group.candidates[0].candidate.setting for group in result.groups] == [
        Setting("cpu", 1, 1, "all"),
        Setting("cpu", 8, 1, "all"),
    ]
    for group in result.groups:
        first, copy = group.candidates
        assert (first.label, copy.label) == ("first.onnx", "copy.onnx")
        assert first.comparison is None
        assert copy.comparison is not None
        assert [feed.shape for feed in group.group.feeds] == [(first.candidate.setting.batch, 3, 4)]


def test_figures_are_there_and_make_sense(result: BenchmarkResult) -> None:
    for group in result.groups:
        assert group.launches == 2
        for candidate in group.candidates:
            median = candidate.latency[50.0]
            assert median is not None
            assert 0 < median.low <= median.estimate <= median.high < 1
            assert candidate.throughput == pytest.approx(group.group.batch / candidate.mean_s)
            assert candidate.utilisation is None
            assert 0 < candidate.creation.least <= candidate.creation.median <= candidate.creation.greatest
            assert candidate.first_run.median > 0
            assert candidate.creation.count == 3  # two launches and one cold start
            assert 10e6 < candidate.idle_bytes < candidate.peak_bytes < 1e9
            assert candidate.runs_per_sample > 1  # one Relu is far shorter than a sample
            assert candidate.latency[90.0] is None  # nothing is known of single runs but their averages
            assert candidate.samples == sum(len(block) for record in candidate.records for block in record.rounds)
            assert [record.rounds for record in candidate.cold_records] == [()]
    first = result.subjects[0]
    assert first.size == first.path.stat().st_size
    assert first.nodes == 1
    assert len(first.sha256) == 64


def test_the_control_runs_in_every_launch_round_by_round(result: BenchmarkResult) -> None:
    for group in result.groups:
        assert group.control is not None
        for control, first in zip(group.control_records, group.candidates[0].records, strict=True):
            assert len(control.rounds) == len(first.rounds) >= 2


def test_the_context_names_the_machine_and_the_versions(result: BenchmarkResult) -> None:
    context = result.context
    assert context.cpu
    assert context.cores >= len(context.affinity) >= 1
    assert context.onnxruntime.count(".") == 2
    assert context.disturbance is None or context.disturbance.others >= 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"disturbance": Disturbance(1.2, 0.0)}, "other processes kept 1.2 of 4 cores at work"),
        ({"disturbance": Disturbance(0.0, 0.5)}, "denied 0.5 cores by its host"),
        ({"disturbance": Disturbance(0.0, 0.0, 0.7), "quota": 1.5}, "a quota of 1.5 cores on processor time stopped"),
        ({"affinity": (0,)}, "2 threads were asked for and 1 core is available"),
        ({"governor": "powersave"}, "the frequency governor is powersave"),
        ({"available_bytes": 1 << 20}, "may have been swapped"),
    ],
)
def test_what_disturbs_a_measurement_is_said_with_what_to_do(
    changes: dict[str, Any], said: str, result: BenchmarkResult
) -> None:
    quiet = replace(
        result.context, cores=4, affinity=(0, 1, 2, 3), governor="performance", available_bytes=1 << 40,
        disturbance=Disturbance(0.0, 0.0), quota=None,
    )  # fmt: skip
    options = BenchmarkOptions(threads=(2,))
    assert machine_warnings(quiet, options, result.groups) == ()
    warnings = machine_warnings(replace(quiet, **changes), options, result.groups)
    assert said in warnings[0]
    assert ";" in warnings[0]


def test_an_interval_that_is_wide_is_said_with_what_to_do(result: BenchmarkResult) -> None:
    group = result.groups[0]
    record = group.candidates[0].records[0]
    generator = np.random.default_rng(0)
    launches = [
        LaunchRecord(
            1.0,
            0.1,
            "1",
            tuple(
                replace(record, steady=False, runs_per_sample=1, rounds=((int(1e6 * factor),),) * 4)
                for factor in generator.lognormal(0, 0.2, 3)
            ),
        )
        for _ in range(3)
    ]
    warnings = " ".join(conclude(group.group, launches, (), None, BenchmarkOptions()).warnings)
    assert "only 3 of 5 launches fit into 10 s" in warnings
    assert "give --time 17 or more" in warnings
    assert "copy.onnx had not reached a steady latency after its warm-up in 3 of 3 launches" in warnings
    assert "the interval of copy.onnx is wide" in warnings


def test_a_session_that_is_created_faster_is_said_so_below_the_tables(result: BenchmarkResult) -> None:
    group = result.groups[0]
    faster = Comparison(Interval(0.5, 0.48, 0.52), 0.01)
    changed = replace(group, candidates=(group.candidates[0], replace(group.candidates[1], creation_comparison=faster)))
    said = "Session creation: copy.onnx is 2.00x faster than first.onnx (95 % interval 1.92 to 2.08)."
    assert said in list(notes(changed))


def test_files_tell_more_percentiles_than_the_terminal_and_their_intervals(result: BenchmarkResult) -> None:
    group = result.groups[0]
    latency = dict.fromkeys((50.0, 90.0, 99.0), Interval(1e-3, 0.9e-3, 1.1e-3)) | {99.9: None}
    told = replace(group, candidates=tuple(replace(c, latency=latency) for c in group.candidates))
    short, whole = (next(iter(tables(told, short=short))) for short in (True, False))
    assert short.columns[1:4] == whole.columns[1:4] == ("median", "p90", "p99")
    assert short.rows[0][1:4] == ("1.00 ms ±11 %", "1.00 ms", "1.00 ms")
    assert whole.rows[0][1:4] == ("1.00 ms ±11 %",) * 3


def test_a_server_that_falls_behind_is_said_with_what_to_do(result: BenchmarkResult) -> None:
    group = result.groups[0]
    record = replace(group.candidates[0].records[0], busy_s=0.99, span_s=1.0, runs_per_sample=1)
    setting = Setting(scenario=Scenario(Kind.POISSON, rate=100))
    candidates = tuple(replace(c.candidate, setting=setting) for c in group.candidates)
    launches = [LaunchRecord(1.0, 0.1, "1", (record,) * 3)] * 5
    found = conclude(replace(group.group, candidates=candidates), launches, (), None, BenchmarkOptions())
    assert found.candidates[0].utilisation == pytest.approx(0.99)
    assert found.candidates[0].throughput is None
    assert "busy for 99 % of the time" in " ".join(found.warnings)


def test_other_scenarios_come_out_of_the_same_benchmark(tmp_path: Path) -> None:
    scenarios = (Scenario(Kind.OFFLINE, streams=2), Scenario(Kind.POISSON, rate=400))
    options = replace(SHORT, scenarios=scenarios, bindings=(True,), spinnings=(False,))
    offline, poisson = benchmark([write(tmp_path / "m.onnx")], options).groups
    assert offline.candidates[0].throughput is not None
    assert offline.candidates[0].latency[99.0] is None  # of averages only the median is told
    assert poisson.candidates[0].throughput is None
    assert 0 < (poisson.candidates[0].utilisation or 0) <= 1
    assert poisson.candidates[0].samples == 2 * 2 * 100  # launches, rounds, a quarter of a second each
    texts = [next(iter(notes(group))) for group in (offline, poisson)]
    assert "empty a queue" in texts[0]
    assert "scheduled arrival" in texts[1]


def test_json_holds_every_sample_only_where_asked(result: BenchmarkResult) -> None:
    document = json.loads(as_json(result))
    for group, recorded in zip(document["groups"], result.groups, strict=True):
        assert [len(group[key]) for key in ("control_launches", "control_cold_starts")] == [2, 1]
        for candidate, record in zip(group["candidates"], recorded.candidates, strict=True):
            assert len(candidate["cold_starts"]) == 1
            rounds = [block for launch in candidate["launches"] for block in launch["rounds_ns"]]
            assert sum(map(len, rounds)) == candidate["samples"] == record.samples
            assert all(isinstance(sample, int) and sample > 0 for block in rounds for sample in block)
    assert document["options"]["seed"] == 7
    assert document["models"][0]["sha256"] == result.subjects[0].sha256
    summary = result.to_json()
    assert "launches" not in summary["groups"][0]["candidates"][0]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_csv_has_a_line_for_each_model_in_each_setting(result: BenchmarkResult) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(result))))
    assert [(row["model"], row["batch"]) for row in rows] == [
        ("first.onnx", "1"),
        ("copy.onnx", "1"),
        ("first.onnx", "8"),
        ("copy.onnx", "8"),
    ]
    assert all(float(row["p50_s"]) > 0 for row in rows)
    assert [row["verdict"] for row in rows[::2]] == ["", ""]
    assert {row["verdict"] for row in rows[1::2]} <= {verdict.value for verdict in Verdict}


def test_markdown_answers_before_it_shows_tables(result: BenchmarkResult) -> None:
    text = as_markdown(result)
    assert text.index("copy.onnx") < text.index("| candidate |")
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") in {6, 8}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_report_s_suffix_names_its_format(suffix: str, result: BenchmarkResult, tmp_path: Path) -> None:
    write_report(result, tmp_path / f"out{suffix}")
    assert (tmp_path / f"out{suffix}").read_text() == FORMATS[suffix](result)


def test_the_page_answers_first_and_loads_nothing_from_elsewhere(result: BenchmarkResult) -> None:
    text = as_html(result)
    assert text.index(result.sentences()[0]) < text.index("<table")
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!#)\w""", text)
    # Latency, speed-up and speed-up of the creation of each group, and all speed-ups together.
    assert text.count('<svg class="plot"') == 3 * len(result.groups) + 1
    assert result.subjects[0].sha256 in text


def test_what_a_file_is_called_is_no_part_of_the_page(tmp_path: Path) -> None:
    found = benchmark([write(tmp_path / "<b>&.onnx")], SHORT)
    text = as_html(found)
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;.onnx" in text


def test_a_report_of_an_unknown_format_is_refused(result: BenchmarkResult, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"use one of \.json, \.csv, \.md, \.html"):
        write_report(result, tmp_path / "out.xml")


def test_one_model_is_measured_without_comparison_or_control(tmp_path: Path) -> None:
    found = benchmark([write(tmp_path / "only.onnx")], SHORT)
    (group,) = found.groups
    assert group.control is None
    assert group.candidates[0].comparison is None
    assert found.sentences() == ()


def test_external_data_counts_into_size_and_hash(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(RELU)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 4), np.float32), "w"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    found = benchmark([tmp_path / "m.onnx"], SHORT)
    files = [tmp_path / "m.onnx", tmp_path / "m.data"]
    content = b"".join(file.read_bytes() for file in files)
    assert found.subjects[0].size == len(content)
    assert found.subjects[0].sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (FAILS_TO_RUN, ModelError, r"second\.onnx: ONNX Runtime failed while running the model"),
        (FAILS_SOMETIMES, ModelError, r"second\.onnx: ONNX Runtime failed while running the model: .*Gather"),
        (HANGS, WorkerError, r"second\.onnx gave no answer within 3 s while running for the first time"),
        (RELU.replace("3, 4] ", "3, 5] "), ModelError, r"second\.onnx takes the input x .* and first\.onnx"),
        (RELU.replace(" x)", " w)").replace("(x)", "(w)"), ModelError, r"second\.onnx takes the inputs w"),
    ],
)
def test_a_model_that_cannot_be_compared_is_named(
    text: str, kind: type[BnfoldError], said: str, tmp_path: Path
) -> None:
    models = [write(tmp_path / "first.onnx"), write(tmp_path / "second.onnx", text)]
    with pytest.raises(kind, match=said):
        benchmark(models, replace(SHORT, timeout=3))
    assert children(os.getpid()) == []


def test_launches_and_cold_starts_without_number_end_when_time_is_up(tmp_path: Path) -> None:
    options = replace(SHORT, launches=10**12, cold_starts=2 * 10**12)
    (group,) = benchmark([write(tmp_path / "m.onnx")], options).groups
    assert 2 <= group.launches < 10


def test_a_missing_model_is_named_before_any_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(ModelError, match=r"absent\.onnx does not exist"):
        benchmark([write(tmp_path / "first.onnx"), tmp_path / "absent.onnx"], SHORT)


def test_no_model_is_refused() -> None:
    with pytest.raises(InputError, match="at least one model"):
        benchmark([], SHORT)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: BenchmarkOptions(providers=("abacus",)), ProviderError),
        (lambda: BenchmarkOptions(levels=("most",)), InputError),
        (lambda: BenchmarkOptions(batches=(0,)), InputError),
        (lambda: BenchmarkOptions(threads=(-1,)), InputError),
        (lambda: BenchmarkOptions(threads=(1, 1025)), InputError),
        (lambda: BenchmarkOptions(threads=()), InputError),
        (lambda: BenchmarkOptions(seconds=0.0), InputError),
        (lambda: BenchmarkOptions(seconds=float("nan")), InputError),
        (lambda: BenchmarkOptions(timeout=0.0), InputError),
        (lambda: BenchmarkOptions(timeout=float("nan")), InputError),
        (lambda: BenchmarkOptions(timeout=float("inf")), InputError),
        (lambda: BenchmarkOptions(launches=1), InputError),
        (lambda: BenchmarkOptions(seed=-1), InputError),
        (lambda: BenchmarkOptions(cold_starts=-1), InputError),
        (lambda: BenchmarkOptions(spinnings=()), InputError),
        (lambda: BenchmarkOptions(cuda_graphs=(True,), bindings=(True,)), InputError),
        (lambda: BenchmarkOptions(cuda_graphs=(True,), providers=("cuda",)), InputError),
        (lambda: Scenario(Kind.POISSON), InputError),
        (lambda: Scenario(Kind.POISSON, rate=0), InputError),
        (lambda: Scenario(Kind.POISSON, rate=float("inf")), InputError),
        (lambda: Scenario(Kind.POISSON, rate=float("nan")), InputError),
        (lambda: Scenario(Kind.POISSON, rate=1e7), InputError),
        (lambda: Scenario(Kind.POISSON, rate=1e-4), InputError),
        (lambda: Scenario(Kind.OFFLINE, streams=1025), InputError),
        (lambda: Scenario(Kind.OFFLINE, rate=1), InputError),
        (lambda: Scenario(Kind.OFFLINE, streams=0), InputError),
        (lambda: Scenario(streams=2), InputError),
        (lambda: BenchmarkOptions(input_shapes={"x": (-1,)}), InputError),
    ],
)
def test_options_out_of_range_are_refused(make: Callable[[], object], kind: type[BnfoldError]) -> None:
    with pytest.raises(kind):
        make()


def test_a_provider_that_is_not_there_is_an_error_not_a_fall_back(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has TensorRT")
    options = BenchmarkOptions(providers=("tensorrt",), seconds=0.1)
    with pytest.raises(ProviderError, match="TensorrtExecutionProvider is not part of"):
        benchmark([write(tmp_path / "m.onnx")], options)


def test_a_worker_killed_from_outside_is_named_and_none_is_left(tmp_path: Path) -> None:
    models = [write(tmp_path / "first.onnx"), write(tmp_path / "second.onnx")]
    killed: list[int] = []

    def kill_one() -> None:
        while not killed:
            for pid in children(os.getpid()):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        with pytest.raises(WorkerError, match=r"the process of (first|second)\.onnx was killed by SIGKILL"):
            benchmark(models, BenchmarkOptions(seconds=30, threads=(1,)))
    finally:
        killer.join()
    assert children(os.getpid()) == []


@pytest.mark.parametrize(("sent", "expected"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_worker_outlives_a_parent_that_is_interrupted_or_killed(
    sent: signal.Signals, expected: int, tmp_path: Path
) -> None:
    models = [str(write(tmp_path / "first.onnx")), str(write(tmp_path / "second.onnx"))]
    # A test run in the background of a shell inherits a SIGINT that is ignored.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from bnfold.cli.main import main; sys.exit(main())"
    )
    command = [sys.executable, "-P", "-c", code, "benchmark", *models, *LONG]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as parent:
        workers: list[int] = []
        deadline = time.monotonic() + 30
        # Until blocks are under way, so that some of the workers are stopped.
        while not any("T" in thread_states(pid) for pid in workers) and time.monotonic() < deadline:
            workers = children(parent.pid)
            time.sleep(0.02)
        assert len(workers) == 3
        parent.send_signal(sent)
        _, errors = parent.communicate(timeout=30)
    assert parent.returncode == expected
    assert "Traceback" not in errors
    deadline = time.monotonic() + 30
    while (left := running(workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def test_threads_of_a_resting_worker_do_not_spin(tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx", RELU.replace("3, 4]", "300, 400]"))
    opening = {"do": "open", "model": str(model), "session": {"threads": 2, "spinning": True}}
    first_run = {"do": "first run", "binding": False, "feeds": [["x", "float32", [1, 300, 400]]], "seed": 0}
    with Worker("m.onnx") as worker:
        worker.answer("starting")
        worker.ask("opening", opening)
        worker.ask("opening", first_run)
        for _ in range(5):
            worker.ask("running", {"do": "run", "kind": "single-stream", "runs": 1, "samples": 20, "lead_in_ns": 0})
            worker.rest()
            assert set(thread_states(worker.pid)) == {"T"}


def test_what_libraries_print_does_not_reach_the_protocol() -> None:
    with Worker("m.onnx") as worker:
        worker.answer("starting")
        target = Path(f"/proc/{worker.pid}/fd/1").resolve()
        assert target == Path(f"/proc/{worker.pid}/fd/2").resolve()


def test_the_worker_imports_no_more_than_it_needs() -> None:
    code = (
        "import sys, bnfold.benchmarking.worker\n"
        "heavy = {'onnx', 'onnx_ir', 'torch', 'scipy', 'rich', 'click', 'google'}\n"
        "print(*sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
