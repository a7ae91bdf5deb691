"""What serving does before and after any protocol: read tensors, join requests, split answers. No server is needed."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.cli.main import main
from bnfold.deployment.manifest import DATATYPES, Manifest, Serving, TensorSpec
from bnfold.deployment.repository import DeployedModel
from bnfold.errors import MissingExtraError, OptionError
from bnfold.serving import ServeOptions, serve
from bnfold.serving.batching import Batcher
from bnfold.serving.request import (
    Request,
    RequestError,
    UnavailableError,
    checked,
    from_buffer,
    from_values,
)


def _spec(datatype="FP32", shape=(None, None)):
    return TensorSpec("x", datatype, shape)


@given(st.data())
def test_a_tensor_is_read_back_from_bytes_and_from_values(data):
    datatype = data.draw(st.sampled_from([datatype for _, datatype in DATATYPES.values()]))
    spec = _spec(datatype)
    dtype = np.dtype(spec.dtype)
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = draw.integers(0, 2 if datatype == "BOOL" else 100, shape).astype(dtype)
    behind = data.draw(st.integers(0, 3))  # tensors behind JSON begin at any byte
    body = memoryview(bytes(behind) + values.tobytes())[behind:]
    for found in (
        from_buffer(spec, datatype, list(shape), body),
        from_values(spec, datatype, list(shape), values.tolist()),
        from_values(spec, datatype, list(shape), values.ravel().tolist()),
    ):
        assert found.dtype == dtype
        assert found.flags.aligned
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT8", [128]),
        ("INT8", [-129]),
        ("UINT8", [-1]),
        ("UINT64", [2**64]),
        ("UINT64", [2**63, 0.5]),
        ("UINT64", [2**63, -1]),
        ("INT64", [2**63]),
        ("INT32", [1.0]),
        ("INT32", [True]),
        ("INT32", ["1"]),
        ("BOOL", [1]),
        ("FP16", [70000]),
        ("FP32", [1e39]),
        ("FP32", [True]),
        ("FP32", [None]),
        ("FP32", [{}]),
        ("FP32", [[1, 2], [3]]),
        ("FP32", "12"),
        ("FP32", {"0": 1}),
    ],
)
def test_values_that_are_none_of_the_datatype_are_refused(datatype, data):
    with pytest.raises(RequestError):
        from_values(_spec(datatype, (None,)), datatype, [len(data)], data)


@given(st.binary(max_size=40), st.lists(st.integers(-2, 10**30), max_size=4))
def test_shapes_and_bytes_that_disagree_are_refused_and_nothing_else_happens(body, shape):
    spec = _spec("UINT16")
    try:
        values = from_buffer(spec, "UINT16", shape, body)
    except RequestError:
        return
    assert list(values.shape) == shape
    assert values.tobytes() == body


def _model(max_batch=4):
    manifest = Manifest(
        "net", 1, "", "model.onnx", (_spec("FP32", (None, None)),), (TensorSpec("y", "FP32", (None, None)),),
        Serving(max_batch=max_batch), {},
    )  # fmt: skip
    return DeployedModel(Path("net/1"), manifest, (), "")


def _request(rows, value, width=2):
    return checked(_model(), "", [("x", np.full((rows, width), value, np.float32))], [])


class _Double:
    """A model that doubles, and remembers what it was given."""

    def __init__(self, fails=lambda _x: False):
        self.batches = []
        self.fails = fails

    def __call__(self, feeds):
        self.batches.append(feeds["x"].shape)
        if self.fails(feeds["x"]):
            raise RequestError("no")
        return {"y": feeds["x"] * 2}


def _submit(run, requests, **options):
    """The answers to requests that come at once, in their order; exceptions as values."""
    settings = {"max_rows": 4, "delay": 0.05, "preferred": (), "observe": lambda *_: None} | options

    async def main():
        batcher = Batcher([run], **settings)
        answers = await asyncio.gather(*(batcher.submit(request) for request in requests), return_exceptions=True)
        await batcher.close()
        return answers

    return asyncio.run(main())


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 2)), min_size=1, max_size=12))
def test_each_request_gets_its_own_rows_and_no_batch_is_too_large_or_mixed(sizes):
    run = _Double()
    answers = _submit(run, [_request(rows, n, width) for n, (rows, width) in enumerate(sizes)], delay=0.001)
    for n, ((rows, width), answer) in enumerate(zip(sizes, answers, strict=True)):
        np.testing.assert_array_equal(answer.values["y"], np.full((rows, width), 2 * n))
    assert all(rows <= 4 for rows, _ in run.batches)
    assert sum(rows for rows, _ in run.batches) == sum(rows for rows, _ in sizes)


def test_requests_are_joined_up_to_the_rows_of_a_batch():
    run = _Double()
    answers = _submit(run, [_request(1, n) for n in range(8)])
    assert run.batches == [(4, 2), (4, 2)]
    assert [answer.rows for answer in answers] == [4] * 8


def test_a_preferred_batch_goes_without_waiting():
    run = _Double()
    _submit(run, [_request(1, 0), _request(1, 1)], delay=3600, preferred=(2,))
    assert run.batches == [(2, 2)]


def test_a_model_that_does_not_batch_runs_each_alone():
    run = _Double()
    _submit(run, [_request(1, n) for n in range(3)], max_rows=1, delay=0)
    assert run.batches == [(1, 2)] * 3


def test_sessions_run_side_by_side():
    meeting = threading.Barrier(2, timeout=30)

    def run(feeds):
        meeting.wait()  # passes only if another session runs at the same time
        return {"y": feeds["x"]}

    async def main():
        batcher = Batcher([run, run], 1, 0.0, (), lambda *_: None)
        answers = await asyncio.gather(*(batcher.submit(_request(1, n)) for n in range(4)))
        await batcher.close()
        return [answer.values["y"][0, 0] for answer in answers]

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_a_request_that_fails_fails_alone():
    run = _Double(fails=lambda x: bool((x == 1).any()))
    good, bad, other = _submit(run, [_request(1, n) for n in range(3)])
    assert isinstance(bad, RequestError)
    np.testing.assert_array_equal(good.values["y"], [[0, 0]])
    np.testing.assert_array_equal(other.values["y"], [[4, 4]])


def test_outputs_that_are_not_one_row_for_one_row_are_not_split():
    answers = _submit(lambda feeds: {"y": feeds["x"].sum(keepdims=True)}, [_request(1, 1), _request(1, 2)])
    assert [answer.values["y"].item() for answer in answers] == [2, 4]


def test_a_request_whose_client_has_gone_is_not_run():
    async def main():
        run = _Double()
        batcher = Batcher([run], 1, 0.0, (), lambda *_: None)
        tasks = [asyncio.create_task(batcher.submit(_request(1, n))) for n in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()
        with pytest.raises(UnavailableError):
            await batcher.submit(_request(1, 0))
        return run.batches, done

    batches, done = asyncio.run(main())
    assert len(batches) == 2
    assert isinstance(done[1], asyncio.CancelledError)


def test_a_request_for_too_many_rows_or_uneven_inputs_is_refused():
    with pytest.raises(RequestError, match="a batch of 5 is more than the 4"):
        _request(5, 0)
    assert isinstance(_request(4, 0), Request)
    assert checked(_model(max_batch=0), "", [("x", np.ones((9, 2), np.float32))], []).rows == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"http_port": 70000}, "between 0 and 65535"),
        ({"http_port": 9000, "grpc_port": 9000}, "cannot share"),
        ({"max_body": 0}, "at least 1"),
        ({"drain": -1}, "seconds"),
        ({"watch": float("nan")}, "seconds"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        ServeOptions(**options)


def test_without_the_extra_serving_names_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "kserve", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bnfold\[serve\]'"):
        serve(tmp_path, None, lambda _: None)
    assert main(["serve", str(tmp_path)]) == 3
    assert "pip install 'bnfold[serve]'" in capsys.readouterr().err
