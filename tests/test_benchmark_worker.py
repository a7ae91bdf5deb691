"""The process of a candidate: what runs when, what it is told when it breaks, and that it never outlives its parent."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from benchmark_models import FAILS_SOMETIMES, RELU, processor_ns, running, write

from bnfold.benchmarking.process import Worker
from bnfold.benchmarking.runner import Runner
from bnfold.errors import ModelError, WorkerError
from bnfold.session import create_session

#: Large enough for ONNX Runtime to share its work among its threads, which then spin.
WIDE = RELU.replace("3, 4]", "300, 400]")


def opening(model: Path) -> dict[str, Any]:
    return {"do": "open", "model": str(model), "session": {"threads": 2}}


def first_run(shape: tuple[int, ...], *, binding: bool = False) -> dict[str, Any]:
    return {"do": "first run", "binding": binding, "feeds": [["x", "float32", list(shape)]], "seed": 0}


def block(samples: int, **more: Any) -> dict[str, Any]:
    return {"do": "run", "kind": "single-stream", "runs": 1, "samples": samples, "lead_in_ns": 0} | more


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Worker]]:
    """Two processes with a session each, whose idle threads spin."""
    model = write(tmp_path / "m.onnx", WIDE)
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(name)) for name in ("first.onnx", "second.onnx")]
        for worker in workers:
            worker.answer("starting")
            worker.ask("opening", opening(model))
            worker.ask("opening", first_run((4, 300, 400)))
        yield workers


def test_spinning_threads_of_one_candidate_take_nothing_from_the_next(pair: list[Worker]) -> None:
    first, second = pair
    for _ in range(5):
        first.ask("running", block(20))
        first.rest()
        before = processor_ns(first.pid)
        second.ask("running", block(200))
        assert processor_ns(first.pid) == before  # not a nanosecond, whatever its threads were about to do
        second.rest()


def test_without_rest_they_would(pair: list[Worker]) -> None:
    first, second = pair
    taken = []
    for _ in range(5):
        first.ask("running", block(20))
        before = processor_ns(first.pid)
        second.ask("running", block(200))
        taken.append(processor_ns(first.pid) - before)
    assert max(taken) > 0


@pytest.mark.parametrize("resting", [True, False])
def test_a_process_killed_between_its_blocks_is_named(resting: bool, pair: list[Worker]) -> None:
    first, second = pair
    first.ask("running", block(1))
    if resting:
        first.rest()
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"the process of first\.onnx was killed by SIGKILL while being measured"):
        first.ask("being measured", block(1))
    second.ask("being measured", block(1))


@pytest.mark.parametrize("doing", ["creating its session", "being measured"])
def test_a_process_that_does_not_answer_is_ended_and_named(doing: str, tmp_path: Path) -> None:
    with Worker("m.onnx", timeout=20) as worker:
        worker.answer("starting")
        if doing == "creating its session":
            os.mkfifo(tmp_path / "m.onnx")  # nobody writes it: the session waits for its file
            request = opening(tmp_path / "m.onnx")
        else:
            worker.ask("opening", opening(write(tmp_path / "m.onnx")))
            worker.ask("opening", first_run((1, 3, 4)))
            os.kill(worker.pid, signal.SIGSTOP)
            request = block(1)
        worker._timeout = 0.2
        with pytest.raises(WorkerError, match=rf"m\.onnx gave no answer within 0\.2 s while {doing}, .* --timeout"):
            worker.ask(doing, request)
    assert running([worker.pid]) == []


def test_time_spent_waiting_for_arrivals_is_not_counted(tmp_path: Path) -> None:
    with Worker("m.onnx", timeout=20) as worker:
        worker.answer("starting")
        worker.ask("opening", opening(write(tmp_path / "m.onnx")))
        worker.ask("opening", first_run((1, 3, 4)))
        worker._timeout = 0.01
        request = block(1, kind="poisson", rate=20.0, seed=[1], lead_in=9)
        assert len(worker.ask("being measured", request, idle=60)["samples_ns"]) == 1


def test_an_answer_longer_than_a_pipe_arrives_whole(pair: list[Worker]) -> None:
    assert len(pair[0].ask("running", block(50_000, runs=0))["samples_ns"]) == 50_000


def test_a_model_that_fails_halfway_is_named_with_the_reason(tmp_path: Path) -> None:
    with Worker("fails.onnx") as worker:
        worker.answer("starting")
        worker.ask("opening", opening(write(tmp_path / "fails.onnx", FAILS_SOMETIMES)))
        worker.ask("opening", first_run((1, 3, 4)))
        with pytest.raises(ModelError, match=r"fails\.onnx: ONNX Runtime failed while running the model: .*Gather"):
            worker.ask("being measured", block(10_000))


@pytest.mark.parametrize(
    "request_",
    [block(3), block(3, kind="offline", streams=2, runs=4), block(3, kind="poisson", rate=1e4, seed=[1], lead_in=2)],
)
@pytest.mark.parametrize("binding", [False, True])
def test_every_scenario_runs_plain_and_bound(request_: dict[str, Any], binding: bool, tmp_path: Path) -> None:
    with Worker("m.onnx") as worker:
        worker.answer("starting")
        assert worker.ask("opening", opening(write(tmp_path / "m.onnx")))["creation_ns"] > 0
        assert worker.ask("opening", first_run((2, 3, 4), binding=binding))["first_run_ns"] > 0
        answer = worker.ask("running", request_)
        assert len(answer["samples_ns"]) == 3
        assert all(sample > 0 for sample in answer["samples_ns"])
        if request_["kind"] == "poisson":
            assert 0 < answer["busy_ns"] <= answer["span_ns"]


def test_the_same_seed_gives_the_same_arrivals(tmp_path: Path) -> None:
    from bnfold.benchmarking import worker as module

    seen: list[list[int]] = []

    def spy(_run: object, gaps: list[int]) -> tuple[list[int], int, int]:
        seen.append(gaps)
        return [1] * len(gaps), 1, 1

    session = create_session(write(tmp_path / "m.onnx"))
    candidate = module.Candidate(session, Runner(session, {"x": np.zeros((1, 3, 4), np.float32)}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.blocks, "poisson", spy)
        for seed in ([0, 1], [0, 1], [0, 2]):
            answer = candidate.block(block(40, kind="poisson", rate=100.0, seed=seed, lead_in=10))
            assert len(answer["samples_ns"]) == 40
    assert seen[0] == seen[1] != seen[2]
    assert np.mean(seen[0]) == pytest.approx(1e7, rel=0.5)


OUTPUTS = """
<ir_version: 9, opset_import: ["" : 17]>
two (float[N, 3] x, bool[N] flag) => (float[N, 3] y, int64[K, 1] where) {
    y = Relu(x)
    found = NonZero(flag)
    where = Transpose(found)
}
"""


@pytest.mark.parametrize("text", [OUTPUTS])
def test_a_bound_run_computes_what_a_plain_one_does(text: str, tmp_path: Path) -> None:
    session = create_session(write(tmp_path / "m.onnx", text))
    inputs = {"x": np.array([[1, -2, 3], [-4, 5, -6]], np.float32), "flag": np.array([True, False])}
    plain, bound = Runner(session, inputs), Runner(session, inputs, binding=True)
    expected: Any = plain.run()
    for _ in range(3):  # the first run finds the outputs' buffers, which the others use
        bound.run()
        bound.keep_outputs()
    for array, value in zip(expected, bound._bound.get_outputs(), strict=True):
        np.testing.assert_array_equal(array, value.numpy())


def test_outputs_of_known_shape_can_be_bound_before_the_first_run(tmp_path: Path) -> None:
    session = create_session(write(tmp_path / "m.onnx"))
    array = np.full((2, 3, 4), -1.0, np.float32)
    array[0] = 2.0
    runner = Runner(session, {"x": array}, binding=True, output_shapes={"y": (2, 3, 4)})
    runner.run()
    np.testing.assert_array_equal(runner._bound.get_outputs()[0].numpy(), np.maximum(array, 0))


def test_later_bound_runs_write_where_the_first_one_did(tmp_path: Path) -> None:
    session = create_session(write(tmp_path / "m.onnx"))
    runner = Runner(session, {"x": np.ones((2, 3, 4), np.float32)}, binding=True)
    runner.run()
    runner.keep_outputs()
    kept = runner._bound.get_outputs()[0].data_ptr()
    runner.run()
    assert runner._bound.get_outputs()[0].data_ptr() == kept


def test_a_bound_output_that_is_no_tensor_is_left_to_the_runtime(tmp_path: Path) -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 17]>
    sequence (float[N, 3] x) => (seq(float[N, 3]) y) { y = SequenceConstruct(x, x) }
    """
    session = create_session(write(tmp_path / "m.onnx", text))
    runner = Runner(session, {"x": np.ones((2, 3), np.float32)}, binding=True)
    for _ in range(2):
        runner.run()
        runner.keep_outputs()
    (pieces,) = runner._bound.get_outputs()
    assert pieces.is_tensor_sequence()


def test_what_a_bound_run_raises_is_named(tmp_path: Path) -> None:
    session = create_session(write(tmp_path / "m.onnx"))
    runner = Runner(session, {"x": np.ones((2, 5, 4), np.float32)}, binding=True)
    with pytest.raises(ModelError, match="failed while running"), runner.failures_named():
        runner.run()


@pytest.mark.cuda
@pytest.mark.parametrize("graph", [False, True])
def test_inputs_and_outputs_lie_on_the_device_and_a_run_is_finished_when_it_returns(
    graph: bool, tmp_path: Path
) -> None:
    from bnfold.session import SessionOptions

    options = SessionOptions(provider="cuda", provider_options={"enable_cuda_graph": "1"} if graph else {})
    session = create_session(write(tmp_path / "m.onnx", WIDE), options)
    array = np.random.default_rng(0).standard_normal((4, 300, 400)).astype(np.float32)
    shapes = {"y": array.shape} if graph else {}
    runner = Runner(session, {"x": array}, provider="cuda", binding=True, output_shapes=shapes)
    for _ in range(3):
        runner.run()
        runner.keep_outputs()
    (value,) = runner._bound.get_outputs()
    assert value.device_name() == "cuda"
    np.testing.assert_array_equal(value.numpy(), np.maximum(array, 0))


@pytest.mark.cuda
def test_a_benchmark_on_cuda_tells_where_every_node_ran(tmp_path: Path) -> None:
    from bnfold.benchmarking import BenchmarkOptions, benchmark

    assert "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    options = BenchmarkOptions(
        providers=("cuda",), bindings=(False, True), cuda_graphs=(False, True), seconds=2, launches=2, cold_starts=0
    )
    found = benchmark([write(tmp_path / "m.onnx", WIDE.replace("N,", "4,"))], options)
    (group,) = found.groups
    assert len(group.candidates) == 3
    assert group.profile is not None
    for profile in group.profile.profiles:
        assert set(profile.providers()) == {"CUDAExecutionProvider"}
