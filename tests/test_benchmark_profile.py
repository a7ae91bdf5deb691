"""Node times, what they are put down to, and that no time gets lost on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from benchmark_models import write

import bnfold
from bnfold.benchmarking import BenchmarkOptions, BenchmarkResult, benchmark
from bnfold.benchmarking.attribution import FoldTime, Profile, by_fold, by_op
from bnfold.benchmarking.kernels import Kernel, kernels_of
from bnfold.benchmarking.placement import nodes_of, owners
from bnfold.benchmarking.profiles import misplaced, timing_caveat
from bnfold.benchmarking.tables import tables
from bnfold.optimizer import OptimizeOptions, inspect

CPU = "CPUExecutionProvider"

#: Two Gemms with a batch norm behind each; no node has a name.
NORMS = """
<ir_version: 8, opset_import: ["" : 17]>
norms (float[N, 4] x) => (float[N, 4] y)
<float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}, float[4] s = {1,2,3,4}, float[4] b = {0,1,0,1},
 float[4] m = {1,1,1,1}, float[4] v = {1,2,1,2}> {
    a = Gemm(x, w)
    c = BatchNormalization(a, s, b, m, v)
    d = Relu(c)
    e = Gemm(d, w)
    y = BatchNormalization(e, s, b, m, v)
}
"""


def model(text: str) -> ir.Model:
    return ir.from_onnx_text(text)


def event(name: str, op: str, duration: int, **more: Any) -> dict[str, Any]:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "dur": duration,
        "args": {"op_name": op, "provider": CPU} | more,
    }


RUN = {"cat": "Session", "name": "model_run", "dur": 100, "args": {}}


def kernel(name: str, op: str, seconds: float = 1.0, provider: str = CPU) -> Kernel:
    return Kernel(name, op, provider, seconds, 10)


def test_a_kernel_takes_the_mean_of_its_runs_without_the_extremes() -> None:
    durations = [1000, *[3, 4] * 9, 0]
    events = [e for duration in durations for e in (event("a", "Relu", duration), RUN)]
    (found,) = kernels_of(events)
    assert (found.name, found.op, found.provider, found.runs) == ("a", "Relu", CPU, 20)
    assert found.seconds == pytest.approx(3.5e-6)


def test_what_a_loop_runs_again_and_again_is_summed_up_and_the_loop_itself_is_not_counted() -> None:
    body = [event("inner", "Add", 2)] * 5
    (found,) = kernels_of([*body, event("outer", "Loop", 40), RUN] * 3)
    assert found.name == "inner"
    assert found.seconds == pytest.approx(10e-6)


@pytest.mark.parametrize("events", [[], [RUN], [{"cat": "Session", "name": "load", "args": {}}]])
def test_a_profile_without_nodes_has_no_kernels(events: list[dict[str, Any]]) -> None:
    assert kernels_of(events) == ()


CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
chain (float[1, 4, 8, 8] x, float[4, 4, 1, 1] w) => (float[1, 4, 8, 8] y) {
    [conv] c = Conv(x, w)
    [bn] n = Identity(c)
    [relu] r = Relu(n)
    [conv2] d = Conv(r, w)
    [add] a = Add(d, r)
    [relu2] y = Relu(a)
}
"""


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        # each node by itself
        (
            ["conv Conv", "bn Identity", "relu Relu", "conv2 Conv", "add Add", "relu2 Relu"],
            {"conv": 0, "bn": 1, "relu": 2, "conv2": 3, "add": 4, "relu2": 5},
        ),
        # called after the value that the fused nodes compute: what lies before it is in it
        (["r_nchwc Conv", "y_nchwc Conv"], {"conv": 0, "bn": 0, "relu": 0, "conv2": 1, "add": 1, "relu2": 1}),
        (["n_bn_nchwc Conv", "d_nchwc Conv"], {"conv": 0, "bn": 0, "relu": 0, "conv2": 1, "add": 1, "relu2": 1}),
        # called after its first node: what lies behind it is in it
        (
            ["fused conv FusedConv", "conv2/ConvAddFusion/ Conv"],
            {"conv": 0, "bn": 0, "relu": 0, "conv2": 1, "add": 1, "relu2": 1},
        ),
        # what ONNX Runtime adds stands for no node
        (
            ["ReorderInput ReorderInput", "c_nchwc Conv"],
            {"conv": 1, "bn": 1, "relu": 1, "conv2": 1, "add": 1, "relu2": 1},
        ),
    ],
)
def test_every_node_belongs_to_the_kernel_it_was_fused_into(kernels: list[str], expected: dict[str, int]) -> None:
    made = [kernel(name, op) for name, op in (text.rsplit(" ", 1) for text in kernels)]
    assert owners(nodes_of(model(CHAIN)), made) == expected


def test_what_only_looks_at_a_shape_is_not_part_of_what_computes_the_value() -> None:
    text = CHAIN.replace("[conv2]", "[shape] s = Shape(r) [like] l = CastLike(w, r) [conv2]")
    found = owners(nodes_of(model(text)), [kernel("r_nchwc", "Conv"), kernel("conv2", "Conv")])
    assert not {"shape", "like"} & set(found)


def folded(text: str) -> tuple[ir.Model, ir.Model]:
    before = model(text)
    return before, bnfold.optimize(before, None, OptimizeOptions(verify=None)).model


def test_the_time_of_a_batch_norm_and_of_the_op_that_absorbed_it_is_one_row() -> None:
    before, after = folded(NORMS)
    old = [
        ("a", "Gemm", 5),
        ("c", "BatchNormalization", 2),
        ("d", "Relu", 1),
        ("e", "Gemm", 7),
        ("y", "BatchNormalization", 3),
    ]
    # After the fold, a Gemm computes what the batch norm did, under its name; one is fused with the Relu.
    new = [("d", "FusedGemm", 6), ("y", "Gemm", 7.5)]
    profiles = [
        Profile("m", nodes_of(graph), tuple(kernel(name, op, seconds) for name, op, seconds in made))
        for graph, made in ((before, old), (after, new))
    ]
    rows = by_fold(*profiles, inspect(before))
    assert [(row.folds, row.before, row.after) for row in rows] == [(("y",), 10, 7.5), (("c",), 8, 6)]
    assert sum(row.before for row in rows) == profiles[0].seconds
    assert sum(row.after for row in rows) == profiles[1].seconds


def test_a_fold_that_the_second_model_does_not_have_gets_no_row() -> None:
    before = model(NORMS)
    after = bnfold.optimize(before, None, OptimizeOptions(verify=None, keep=("y",))).model
    profiles = [Profile("m", nodes_of(graph), ()) for graph in (before, after)]
    assert [row.folds for row in by_fold(*profiles, inspect(before))] == [("c",)]
    assert by_fold(profiles[0], profiles[0], inspect(before)) == ()


def test_times_by_op_are_those_of_all_its_kernels_and_the_largest_change_comes_first() -> None:
    rows = by_op([kernel("a", "Conv", 3), kernel("b", "Conv", 4), kernel("c", "Relu", 1)], [kernel("a", "Conv", 6)])
    assert [(row.op, row.kernels_before, row.kernels_after, row.before, row.after) for row in rows] == [
        ("Conv", 2, 1, 7, 6),
        ("Relu", 1, 0, 1, 0),
    ]


def test_nodes_on_another_provider_than_was_asked_for_are_named() -> None:
    found = Profile("m.onnx", (), (kernel("a", "Conv", 1, "CUDAExecutionProvider"), kernel("b", "NonZero")))
    said = misplaced(found, "cuda")
    assert said is not None
    assert "1 of 2 nodes of m.onnx run on CPUExecutionProvider and not on CUDAExecutionProvider (NonZero)" in said
    assert misplaced(Profile("m", (), (kernel("a", "Conv"),)), "cpu") is None
    assert list(timing_caveat("cpu")) == []
    assert "queue" in next(timing_caveat("cuda"))


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkResult:
    folder = tmp_path_factory.mktemp("profiled")
    source = write(folder / "norms.onnx", NORMS)
    bnfold.optimize(source, folder / "folded.onnx", OptimizeOptions(verify=None))
    options = BenchmarkOptions(seconds=0.1, launches=2, cold_starts=0, threads=(1,), profile=True)
    return benchmark([source, folder / "folded.onnx"], options)


def test_a_real_profile_finds_every_node_and_what_each_fold_gained(profiled: BenchmarkResult) -> None:
    (group,) = profiled.groups
    assert group.profile is not None
    before, after = group.profile.profiles
    assert sorted(kernel.op for kernel in before.kernels) == ["BatchNormalization"] * 2 + ["Gemm"] * 2 + ["Relu"]
    assert before.providers() == {CPU: 5}
    assert all(kernel.runs >= 24 and kernel.seconds >= 0 for kernel in (*before.kernels, *after.kernels))
    (comparison,) = group.profile.comparisons
    assert {row.folds for row in comparison.folds} == {("c",), ("y",)}
    assert sum(row.before for row in comparison.folds) == pytest.approx(before.seconds)
    assert sum(row.after for row in comparison.folds) == pytest.approx(after.seconds)


def test_a_profile_is_told_by_op_and_by_fold(profiled: BenchmarkResult) -> None:
    (group,) = profiled.groups
    titles = {table.title: table for table in tables(group)}
    folds = titles["Which fold paid, from norms.onnx to folded.onnx"]
    assert [row[0] for row in folds.rows][-2:] == ["all folds", "everything else"]
    assert ("BatchNormalization", "2 → 0") in [
        row[:2] for row in titles["Where the time goes, from norms.onnx to folded.onnx"].rows
    ]
    document = profiled.to_json()["groups"][0]["profile"]
    assert [c["label"] for c in document["candidates"]] == ["norms.onnx", "folded.onnx"]


def test_many_folds_are_summed_up_where_space_is_short(profiled: BenchmarkResult) -> None:
    from dataclasses import replace

    (group,) = profiled.groups
    assert group.profile is not None
    (comparison,) = group.profile.comparisons
    many = tuple(FoldTime((f"bn{index}",), 0, ("conv",), 2e-6, 1e-6) for index in range(40))
    crowded = replace(group, profile=replace(group.profile, comparisons=(replace(comparison, folds=many),)))
    short, whole = (list(tables(crowded, short=short))[-1].rows for short in (True, False))
    assert len(whole) == 42
    assert short[-3] == ("28 more", "", "56.0 µs", "28.0 µs", "+28.0 µs")
    assert short[-2] == whole[-2] == ("all folds", "", "80.0 µs", "40.0 µs", "+40.0 µs")


def test_nothing_of_a_profile_is_left_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    options = BenchmarkOptions(seconds=0.05, launches=2, cold_starts=0, threads=(1,), profile=True)
    benchmark([write(tmp_path / "m.onnx")], options)
    left = {path.name for path in tmp_path.iterdir()} - {".ses"}  # which ONNX Runtime writes by itself
    assert left == {"m.onnx"}
