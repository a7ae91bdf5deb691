from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_models import FAILS_TO_RUN, write

import bnfold.benchmarking
from bnfold.benchmarking import BenchmarkOptions, BenchmarkResult, Compare, Kind, Scenario, benchmark
from bnfold.benchmarking.report import FORMATS
from bnfold.benchmarking.results import Spread, sentence
from bnfold.benchmarking.statistics import Comparison, Interval
from bnfold.benchmarking.tables import duration, size
from bnfold.cli.benchmark import COMPARE, LEVELS, SCENARIOS, SUFFIXES
from bnfold.cli.main import main
from bnfold.session import LEVELS as KNOWN_LEVELS

QUICK = ["--time", "0.1", "--launches", "2", "--cold-starts", "0", "--threads", "1"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkResult:
    folder = tmp_path_factory.mktemp("models")
    models = [write(folder / "first.onnx"), write(folder / "second.onnx")]
    return benchmark(models, BenchmarkOptions(seconds=0.1, launches=2, cold_starts=0, threads=(1,)))


def planted(result: BenchmarkResult, estimate: float, low: float, high: float) -> BenchmarkResult:
    """The same result with another ratio of the second model's latency to the first's."""
    (group,) = result.groups
    first, second = group.candidates
    second = replace(second, comparison=Comparison(Interval(estimate, low, high), 0.001))
    return replace(result, groups=(replace(group, candidates=(first, second)),))


def test_the_answer_comes_first_and_everything_fits_100_columns(
    measured: BenchmarkResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ratio = Comparison(Interval(0.804, 0.71, 0.95), 0.012)
    latency = dict.fromkeys((50.0, 90.0, 99.0, 99.9), Interval(123e-6, 110e-6, 137e-6))
    (group,) = measured.groups
    first, second = group.candidates
    start = Spread(0.0123, 0.011, 0.0137, 10, Interval(0.0123, 0.0111, 0.0135))
    first = replace(first, candidate=replace(first.candidate, label="original.onnx"))
    second = replace(
        second, candidate=replace(second.candidate, label="folded.onnx"), comparison=ratio, creation_comparison=ratio
    )
    candidates = tuple(replace(c, latency=latency, creation=start, first_run=start) for c in (first, second))
    result = replace(measured, groups=(replace(group, candidates=candidates),))
    monkeypatch.setattr(bnfold.benchmarking, "benchmark", lambda *_, **__: result)
    assert main(["benchmark", "original.onnx", "folded.onnx"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "folded.onnx is 1.24x faster than original.onnx (95 % interval 1.05 to 1.41)"
    assert max(map(len, lines)) <= 100


def test_every_sample_is_in_the_json_file(tmp_path: Path) -> None:
    models = [str(write(tmp_path / name)) for name in ("original.onnx", "folded.onnx")]
    out, page = tmp_path / "result.json", tmp_path / "result.html"
    assert main(["benchmark", *models, *QUICK, "--out", str(out), "--out", str(page)]) == 0
    assert page.exists()
    for candidate in json.loads(out.read_text())["groups"][0]["candidates"]:
        assert candidate["samples"] == sum(
            len(block) for launch in candidate["launches"] for block in launch["rounds_ns"]
        )


def test_json_is_one_document_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(write(tmp_path / "m.onnx")), *QUICK, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 2
    assert document["models"][0]["label"] == "m.onnx"


def test_options_reach_the_library(monkeypatch: pytest.MonkeyPatch, measured: BenchmarkResult) -> None:
    seen: list[BenchmarkOptions] = []

    def spy(_models: object, options: BenchmarkOptions, _progress: object, *, earlier: object) -> BenchmarkResult:
        seen.append(options)
        assert earlier == "old.json"
        return measured

    monkeypatch.setattr(bnfold.benchmarking, "benchmark", spy)
    arguments = "--provider cpu,cuda --provider tensorrt --batch 1,8 --threads 1 --threads 2 --level all,basic"
    arguments += " --time 3 --timeout 9 --launches 4 --cold-starts 7 --seed 5 --input-shape a=b=1,2 --input-shape s="
    arguments += (
        " --no-control --spinning on,off --io-binding on --cuda-graph off,on --compare settings --baseline old.json"
    )
    arguments += " --scenario single-stream,offline --scenario poisson --streams 1,2 --rate 50 --rate 0.5"
    assert main(["benchmark", "m.onnx", *arguments.split()]) == 0
    assert seen == [
        BenchmarkOptions(
            providers=("cpu", "cuda", "tensorrt"),
            batches=(1, 8),
            threads=(1, 2),
            levels=("all", "basic"),
            seconds=3,
            timeout=9,
            launches=4,
            seed=5,
            input_shapes={"a=b": (1, 2), "s": ()},
            control=False,
            cold_starts=7,
            spinnings=(True, False),
            bindings=(True,),
            cuda_graphs=(False, True),
            compare=Compare.SETTINGS,
            scenarios=(
                Scenario(),
                Scenario(Kind.OFFLINE, streams=1),
                Scenario(Kind.OFFLINE, streams=2),
                Scenario(Kind.POISSON, rate=50),
                Scenario(Kind.POISSON, rate=0.5),
            ),
        )
    ]


@pytest.mark.parametrize(
    ("ratio", "limit", "code", "said"),
    [
        ((1.08, 1.06, 1.10), "5", 1, "second.onnx is slower than first.onnx by more than 5 %"),
        ((1.08, 1.04, 1.12), "5", 0, "second.onnx may be slower than first.onnx by more than 5 %"),
        ((1.02, 1.01, 1.03), "5", 0, None),
        ((1.02, 1.01, 1.03), "0", 1, "is slower"),
        ((0.80, 0.79, 0.81), "0", 0, None),
        ((1.00, 0.99, 1.01), "0", 0, "may be slower"),
    ],
)
def test_fail_if_slower_fails_only_where_the_whole_interval_is_beyond(
    ratio: tuple[float, float, float],
    limit: str,
    code: int,
    said: str | None,
    measured: BenchmarkResult,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = planted(measured, *ratio)
    monkeypatch.setattr(bnfold.benchmarking, "benchmark", lambda *_, **__: result)
    assert main(["benchmark", "a.onnx", "b.onnx", "--fail-if-slower", limit]) == code
    captured = capsys.readouterr()
    text = " ".join((captured.out + captured.err).split())
    if said is None:
        assert "by more than" not in text
    else:
        assert said in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("m.onnx --out result.xml", ".json, .csv, .md"),
        ("m.onnx --out result", "no known suffix"),
        ("m.onnx --fail-if-slower 5", "needs two models"),
        ("m.onnx n.onnx --fail-if-slower nan", "a number of per cent"),
        ("m.onnx n.onnx --fail-if-slower inf", "a number of per cent"),
        ("m.onnx --fail-if-slower 5 --batch 1,8", "needs two models"),
        ("m.onnx n.onnx --fail-if-slower 5 --compare settings", "needs two models"),
        ("m.onnx --spinning maybe", "--spinning"),
        ("m.onnx --io-binding", "requires an argument"),
        ("m.onnx --cuda-graph on", "CUDA graphs need the provider cuda and IO binding"),
        ("m.onnx --cuda-graph on --provider cuda", "CUDA graphs need the provider cuda and IO binding"),
        ("m.onnx --scenario server", "--scenario"),
        ("m.onnx --scenario poisson", "needs --rate"),
        ("m.onnx --rate 5", "--scenario poisson"),
        ("m.onnx --scenario poisson --rate 0", "--rate"),
        ("m.onnx --streams 2", "--scenario offline"),
        ("m.onnx --scenario offline --streams 0", "--streams"),
        ("m.onnx --compare tables", "--compare"),
        ("m.onnx --cold-starts -1", "--cold-starts"),
        ("m.onnx --batch 0", "--batch"),
        ("m.onnx --batch 1,x", "--batch"),
        ("m.onnx --threads -1", "--threads"),
        ("m.onnx --level most", "--level"),
        ("m.onnx --time 0", "--time"),
        ("m.onnx --timeout 0", "--timeout"),
        ("m.onnx --launches 1", "--launches"),
        ("m.onnx --input-shape 1,2", "NAME=1,3,224,224"),
        ("m.onnx --input-shape x=1,-2", "NAME=1,3,224,224"),
        ("", "Missing argument"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("absent.onnx", "absent.onnx does not exist"),
        ("text.onnx", "text.onnx is not an ONNX model"),
        ("good.onnx fails.onnx --threads 1", "fails.onnx: ONNX Runtime failed while running"),
        ("good.onnx --provider abacus", "unknown provider 'abacus'"),
        ("good.onnx --out nowhere/result.json", "nowhere does not exist"),
        ("good.onnx --input-shape z=1", "the inputs are x"),
        ("good.onnx --batch 999999999", "the input x of shape 999999999,3,4 is too large"),
        ("good.onnx --baseline deep.json", "deep.json is not JSON"),
        ("good.onnx --timeout 0.001", "good.onnx gave no answer within 0.001 s while starting"),
    ],
)
def test_bad_input_exits_with_3_and_one_sentence(
    arguments: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("good.onnx"))
    write(Path("fails.onnx"), FAILS_TO_RUN)
    Path("text.onnx").write_text("not a model")
    Path("deep.json").write_text("[" * 100_000)
    before = sorted(tmp_path.iterdir())
    assert main(["benchmark", *arguments.split(), "--time", "0.1"]) == 3
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ((1 / 1.31, 1 / 1.34, 1 / 1.28), "b is 1.31x faster than a (95 % interval 1.28 to 1.34)"),
        ((1.5, 1.4, 1.6), "b is 1.50x slower than a (95 % interval 1.40 to 1.60)"),
        ((1.004, 1.002, 1.006), "b is 1.004x slower than a (95 % interval 1.002 to 1.006)"),
        (
            (1.0, 0.95, 1.05),
            "no difference shown: b ran 0.95 to 1.05 times as fast as a (95 % interval)",
        ),
        ((1.02, 1.001, 1.04), "b is 1.020x slower than a (95 % interval 1.001 to 1.040)"),
    ],
)
def test_the_answer_in_words(ratio: tuple[float, float, float], expected: str) -> None:
    assert sentence("b", "a", Comparison(Interval(*ratio), None)) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234, "1.23 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 µs"), (5e-7, "500 ns"), (123.4, "123 s")],
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (29_800, "29.1 KiB"), (64_200_000, "61.2 MiB"), (3 << 30, "3.00 GiB")]
)
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert size(count) == text


def test_what_the_command_line_repeats_agrees_with_the_library() -> None:
    assert tuple(FORMATS) == SUFFIXES
    assert set(LEVELS) == set(KNOWN_LEVELS)
    assert tuple(Kind) == SCENARIOS
    assert tuple(Compare) == COMPARE


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from bnfold.cli.main import main\n"
        "main(['benchmark', '--help'])\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'rich'}\n"
        "print(*sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert "--fail-if-slower" in found.stdout
    assert found.stderr.strip() == ""
