"""The comparison with other optimizers: its graphs are valid, its processes may die, and its judge sees what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from peer_cases import CASES, Case
from peer_judge import fault, size
from peer_process import Failure, RequestFailedError, Worker
from peer_report import Fate, FoldTime, Outcome, Row, Subject, _out_of_reach, table
from peer_tools import UNCHANGED
from peers import _ranked, median_interval

import bnfold
from bnfold.benchmarking.statistics import Interval

READY = "import peer_process as p; p.serve"


def worker(answer: str, **choices: float) -> Worker:
    """A process that answers with what a line of Python says about ``r``, the request."""
    path = str(Path(__file__).parent.parent / "benchmarks")
    program = f"import os, sys, time; sys.path.insert(0, {path!r}); {READY}(lambda r: {answer})"
    return Worker([sys.executable, "-c", program], **choices)


def saved(folder: Path, name: str, case: Case) -> Path:
    path = folder / f"{name}.onnx"
    onnx.save(case.model(), path)
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.group}: {case.name}")
def test_graphs_are_valid_and_at_least_as_large_as_the_smallest(case: Case, tmp_path: Path) -> None:
    path = saved(tmp_path, "model", case)
    onnx.checker.check_model(path, full_check=True)
    nodes, norms = size(path)
    assert nodes >= case.nodes
    assert norms >= case.norms
    assert not case.override or case.override in {value.name for value in onnx.load(path).graph.input}


def test_graphs_have_names_of_their_own() -> None:
    assert len({(case.group, case.name) for case in CASES}) == len(CASES)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.group}: {case.name}")
def test_no_graph_comes_out_wrong(case: Case, tmp_path: Path) -> None:
    source, target = saved(tmp_path, "source", case), tmp_path / "target.onnx"
    bnfold.optimize(source, target)
    assert fault(source, target, case.override) is None
    assert size(target)[0] <= size(source)[0]


def test_process_answers_and_what_it_prints_is_no_answer() -> None:
    asked = worker("(print('noise'), os.system('echo noise'), {'sum': r['a'] + 1})[2]")
    assert [asked.ask({"a": a}, 60)["sum"] for a in (1, 2)] == [2, 3]
    asked.close()


@pytest.mark.parametrize(
    ("failure", "detail", "answer", "limit_s"),
    [
        (Failure.REFUSED, "ZeroDivisionError: ", "1 // r['a']", 60),
        (Failure.CRASHED, "SIGABRT", "{} if r['a'] else os.abort()", 60),
        (Failure.CRASHED, "exit code 3: so long", "{} if r['a'] else (os.write(2, b'so long'), os._exit(3))", 60),
        (Failure.HUNG, "no answer within 0.5 s", "{} if r['a'] else time.sleep(60)", 0.5),
    ],
)
def test_process_that_fails_says_how_and_answers_again(
    failure: Failure, detail: str, answer: str, limit_s: float
) -> None:
    asked = worker(f"{{'none': {answer}}}")
    with pytest.raises(RequestFailedError) as raised:
        asked.ask({"a": 0}, limit_s)
    assert raised.value.failure is failure
    assert raised.value.detail.startswith(detail)
    assert "none" in asked.ask({"a": 1}, 60)
    asked.close()


CONV = Case("", "", "c = Conv(x, w_4x4x3x3) y = BN(c)", 1, signature="float[N,4,8,8] x) => (float[N,4,6,6] y")


@pytest.mark.parametrize(
    ("numbers", "detail", "body", "signature"),
    [
        (True, "does not compute the same", "c = Conv(x, w_4x4x3x3) y = BNb(c)", CONV.signature),
        (False, "its inputs are u", "c = Conv(u, w_4x4x3x3) y = BN(c)", "float[N,4,8,8] u) => (float[N,4,6,6] y"),
        (False, "its outputs are z", "c = Conv(x, w_4x4x3x3) z = BN(c)", "float[N,4,8,8] x) => (float[N,4,6,6] z"),
        (False, "has the shape", "c = Conv(x, w_4x4x3x3) y = BN(c)", "float[1,4,8,8] x) => (float[1,4,6,6] y"),
    ],
)
def test_judge_names_what_is_wrong(numbers: bool, detail: str, body: str, signature: str, tmp_path: Path) -> None:
    found = fault(saved(tmp_path, "a", CONV), saved(tmp_path, "b", Case("", "", body, 1, signature=signature)))
    assert found is not None
    assert found.numbers is numbers
    assert detail in found.detail


def test_judge_finds_an_invalid_file(tmp_path: Path) -> None:
    original = saved(tmp_path, "original", CONV)
    broken = onnx.load(original)
    broken.graph.node[1].input[1] = "nobody"
    onnx.save(broken, tmp_path / "broken.onnx")
    found = fault(original, tmp_path / "broken.onnx")
    assert found is not None
    assert not found.numbers


def test_judge_passes_what_bnfold_makes_of_it(tmp_path: Path) -> None:
    original = saved(tmp_path, "original", CONV)
    bnfold.optimize(original, tmp_path / "folded.onnx")
    assert fault(original, tmp_path / "folded.onnx") is None
    assert size(tmp_path / "folded.onnx") == (1, 0)


def test_judge_feeds_what_a_caller_may_feed(tmp_path: Path) -> None:
    signature = CONV.signature.replace("x)", "x, float[4] g_4)")
    original = saved(tmp_path, "original", Case("", "", CONV.body, 1, signature=signature))
    frozen = onnx.load(original)
    (copied,) = (tensor for tensor in frozen.graph.initializer if tensor.name == "g_4")
    frozen.graph.initializer.add().CopyFrom(copied)
    frozen.graph.initializer[-1].name = frozen.graph.node[1].input[1] = "g"
    onnx.save(frozen, tmp_path / "frozen.onnx")
    assert fault(original, tmp_path / "frozen.onnx") is None
    found = fault(original, tmp_path / "frozen.onnx", "g_4")
    assert found is not None
    assert found.numbers
    assert "with another g_4" in found.detail


def test_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    for count in (6, 9, 25):
        intervals = [median_interval(np.exp(random.normal(size=count))) for _ in range(2000)]
        assert np.mean([i.low <= 1 <= i.high for i in intervals]) > 0.94
        assert all(i.low <= i.estimate <= i.high for i in intervals)


@pytest.mark.parametrize(
    ("known", "nodes", "fates"),
    [
        ((3, 0), {"a": 3, "b": 4}, "smallest larger"),
        ((2, 0), {"a": 3, "b": 4}, "larger larger"),
        ((3, 0), {"a": 3, "b": 2}, "larger smallest"),
        (None, {"a": 3, "b": 3}, "smallest smallest"),
    ],
)
def test_smallest_is_the_fewest_nodes_that_are_known(
    known: tuple[int, int] | None, nodes: dict[str, int], fates: str
) -> None:
    subject = Subject("graph", "", "", Path(), 9, 0, known)
    row = _ranked(Row(subject, {tool: Outcome(Fate.LARGER, nodes=count) for tool, count in nodes.items()}, {}))
    assert [outcome.fate.name.lower() for outcome in row.outcomes.values()] == fates.split()


def test_file_that_is_wrong_is_never_the_smallest() -> None:
    outcomes = {"a": Outcome(Fate.WRONG, nodes=1), "b": Outcome(Fate.LARGER, nodes=5)}
    row = _ranked(Row(Subject("graph", "", "", Path(), 9, 0), outcomes, {}))
    assert [outcome.fate for outcome in row.outcomes.values()] == [Fate.WRONG, Fate.SMALLEST]


def test_table_is_aligned() -> None:
    assert table(["a", "b"], [["1", "long"]]) == "| a | b    |\n|---|------|\n| 1 | long |"


def test_who_is_done_before_the_model_has_been_read_and_written_is_counted() -> None:
    def row(**ratios: float) -> Row:
        subject = Subject("network", "group", "name", Path("model.onnx"), 2, 1)
        times = {name: FoldTime(0.01, Interval(ratio, ratio, ratio)) for name, ratio in ratios.items()}
        return Row(subject, {}, {UNCHANGED if name == "unchanged" else name: time for name, time in times.items()})

    rows = [row(other=0.2, unchanged=0.3), row(other=0.4, unchanged=0.3), row(other=0.1)]
    assert _out_of_reach(rows, "other") == ", 1 of them in less than onnx-ir takes to load and save them"
    assert _out_of_reach(rows[1:], "other") == ""
