"""The matrix of settings, and who is compared with whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnfold.benchmarking import BenchmarkOptions, Compare, Kind, Scenario
from bnfold.benchmarking.candidates import plan_groups
from bnfold.benchmarking.inputs import InputSpec
from bnfold.benchmarking.subjects import Subject

SPEC = InputSpec("x", "float32", (None, 3))


def subject(label: str) -> Subject:
    return Subject(Path(label), label, "0" * 64, 100, 3, (SPEC,))


A, B = subject("a.onnx"), subject("b.onnx")


def planned(subjects: list[Subject], options: BenchmarkOptions) -> list[tuple[str, list[str]]]:
    return [(group.title, [c.label for c in group.candidates]) for group in plan_groups(subjects, options)]


def test_several_models_are_compared_in_each_setting() -> None:
    assert planned([A, B], BenchmarkOptions(threads=(1, 2), spinnings=(False,))) == [
        ("cpu, 1 thread, level all, no spinning", ["a.onnx", "b.onnx"]),
        ("cpu, 2 threads, level all, no spinning", ["a.onnx", "b.onnx"]),
    ]


def test_the_settings_of_one_model_are_compared_with_each_other() -> None:
    options = BenchmarkOptions(threads=(1, 0), bindings=(False, True))
    assert planned([A], options) == [
        (
            "a.onnx, cpu, level all",
            [
                "1 thread + no IO binding",
                "1 thread + IO binding",
                "threads of ONNX Runtime's choice + no IO binding",
                "threads of ONNX Runtime's choice + IO binding",
            ],
        )
    ]


def test_one_model_in_one_setting_stands_alone() -> None:
    assert planned([A], BenchmarkOptions()) == [("cpu, level all", ["a.onnx"])]


def test_batches_and_rates_are_not_compared_but_streams_are() -> None:
    offline = tuple(Scenario(Kind.OFFLINE, streams=count) for count in (1, 2))
    assert planned([A], BenchmarkOptions(batches=(1, 8), scenarios=offline)) == [
        ("a.onnx, cpu, batch 1, level all", ["offline, 1 stream", "offline, 2 streams"]),
        ("a.onnx, cpu, batch 8, level all", ["offline, 1 stream", "offline, 2 streams"]),
    ]
    rates = tuple(Scenario(Kind.POISSON, rate=rate) for rate in (10, 20))
    assert planned([A], BenchmarkOptions(scenarios=rates)) == [
        ("cpu, level all, Poisson, 10 a second", ["a.onnx"]),
        ("cpu, level all, Poisson, 20 a second", ["a.onnx"]),
    ]


def test_settings_of_several_models_are_compared_where_asked() -> None:
    options = BenchmarkOptions(levels=("all", "basic"), compare=Compare.SETTINGS)
    assert planned([A, B], options) == [
        ("a.onnx, cpu", ["level all", "level basic"]),
        ("b.onnx, cpu", ["level all", "level basic"]),
    ]


def test_only_what_is_compared_has_a_control() -> None:
    (alone,) = plan_groups([A], BenchmarkOptions())
    (pair,) = plan_groups([A, B], BenchmarkOptions())
    (bare,) = plan_groups([A, B], BenchmarkOptions(control=False))
    assert [len(group.processes) for group in (alone, pair, bare)] == [1, 3, 2]
    assert pair.processes[0] == pair.processes[-1]


def test_the_matrix_is_every_combination_once() -> None:
    options = BenchmarkOptions(batches=(1, 8, 1), threads=(1, 2), levels=("all", "disable"), spinnings=(True, False))
    settings = options.settings()
    assert len(settings) == len(set(settings)) == 16


def test_cuda_graphs_are_left_out_where_they_do_not_exist() -> None:
    options = BenchmarkOptions(providers=("cpu", "cuda"), bindings=(False, True), cuda_graphs=(False, True))
    found = [(s.provider, s.binding, s.cuda_graph) for s in options.settings()]
    assert [cell for cell in found if cell[2]] == [("cuda", True, True)]
    assert len(found) == 5
    (graph,) = [setting for setting in options.settings() if setting.cuda_graph]
    assert graph.session_options().provider_options == {"enable_cuda_graph": "1"}


@pytest.mark.parametrize("shape", [(None, 3), (4, 3)])
def test_the_batch_is_the_first_dimension_that_inputs_share(shape: tuple[int | None, ...]) -> None:
    spec = InputSpec("x", "float32", shape)
    (group,) = plan_groups([Subject(Path("a"), "a", "", 1, 1, (spec,))], BenchmarkOptions(batches=(4,)))
    assert group.batch == 4
