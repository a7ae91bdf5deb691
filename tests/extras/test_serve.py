"""Serving, seen by the real client over HTTP and gRPC, by curl-like sockets, and by whoever stops the process."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import served
import tritonclient.grpc
import tritonclient.http
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from tritonclient.utils import InferenceServerException

from bnfold.deployment.machine_format import this_machine
from bnfold.deployment.manifest import DATATYPES
from bnfold.deployment.repository import read_repository
from bnfold.serving import http_codec
from bnfold.serving.request import RequestError

pytestmark = [pytest.mark.extra, pytest.mark.filterwarnings("ignore")]  # the clients' own warnings

CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    path = tmp_path_factory.mktemp("serve") / "repository"
    served.deploy_classifier(path)
    served.deploy_every_type(path)
    served.deploy_lookup(path)
    served.deploy_slow(path)
    served.deploy_sums(path)
    return path


@pytest.fixture(scope="module")
def server(repository):
    with served.serving(repository, "--max-body", "1000000") as running:
        yield running


@pytest.fixture(params=sorted(CLIENTS))
def client(request, server):
    with _client(request.param, server) as made:
        yield made


class _Client:
    """tritonclient of either protocol under one face."""

    def __init__(self, protocol, address):
        self.module = CLIENTS[protocol]
        self.api = self.module.InferenceServerClient(address)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.api.close()

    def infer(self, model, feeds, outputs=(), **options):
        inputs = []
        for name, values in feeds.items():
            datatype = next(d for n, d in DATATYPES.values() if n == values.dtype.name)
            inputs.append(self.module.InferInput(name, values.shape, datatype))
            inputs[-1].set_data_from_numpy(values)
        wanted = [self.module.InferRequestedOutput(name) for name in outputs] or None
        return self.api.infer(model, inputs, outputs=wanted, **options)


def _client(protocol, server):
    return _Client(protocol, getattr(server, protocol))


def _ask(protocol, server, *arguments):
    """One request by a client of its own: tritonclient's HTTP is not to be shared between threads."""
    with _client(protocol, server) as client:
        return client.infer(*arguments)


def _images(rows, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, 1, 8, 8)).astype(np.float32)


def _post(server, path, body, headers=None):
    """Status and JSON of a request of which we make every byte."""
    request = urllib.request.Request(f"http://{server.http}{path}", body, headers or {}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def _get(server, path):
    try:
        with urllib.request.urlopen(f"http://{server.http}{path}", timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _code(error):
    return error.value.status().removeprefix("StatusCode.")


# What is right.


def test_answers_are_those_of_onnx_runtime_and_of_float64(client, repository):
    images = _images(5)
    got = client.infer("digits", {"x": images}).as_numpy("logits")
    file = repository / "digits" / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(got, session.run(None, {"x": images})[0])
    double = onnx.load(file)
    for constant in double.graph.initializer:
        constant.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(constant).astype(np.float64),
                                                       constant.name))  # fmt: skip
    exact = ReferenceEvaluator(double).run(None, {"x": images.astype(np.float64)})[0]
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-4)


def test_every_datatype_comes_back_bit_for_bit(client):
    feeds = {
        f"in_{datatype}": np.arange(4).astype(dtype) if dtype != "bool" else np.array([True, False, True])
        for dtype, datatype in DATATYPES.values()
    }
    feeds["in_FP32"] = np.array([np.nan, np.inf, -0.0], np.float32)
    result = client.infer("types", feeds)
    for name, values in feeds.items():
        back = result.as_numpy(name.replace("in_", "out_"))
        assert back.dtype == values.dtype
        assert back.tobytes() == values.tobytes()


def test_json_carries_every_datatype_both_ways(server):
    ranges = {"BOOL": [True, False], "INT64": [-(2**63), 2**63 - 1], "UINT64": [0, 2**64 - 1], "FP16": [0.5, -65504.0]}
    inputs = [
        {"name": f"in_{datatype}", "datatype": datatype, "shape": [2], "data": ranges.get(datatype, [0, 100])}
        for _, datatype in DATATYPES.values()
    ]
    status, answer = _post(server, "/v2/models/types/infer", json.dumps({"id": "7", "inputs": inputs}).encode())
    assert status == 200, answer
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "types", "1")
    got = {output["name"]: output["data"] for output in answer["outputs"]}
    assert got == {item["name"].replace("in_", "out_"): item["data"] for item in inputs}


def test_only_the_outputs_that_are_asked_for_come_in_that_order(client):
    feeds = {"x": np.ones((2, 3), np.float32), "by": np.full((2, 1), 3, np.float32)}
    assert client.infer("sums", feeds, ["log"]).as_numpy("sum") is None
    both = client.infer("sums", feeds, ["log", "sum"], request_id="abc")
    np.testing.assert_array_equal(both.as_numpy("sum"), [[1], [1]])
    np.testing.assert_array_equal(both.as_numpy("log"), [[0], [0]])
    response = both.get_response()
    if isinstance(response, dict):
        assert [output["name"] for output in response["outputs"]] == ["log", "sum"]
        assert response["id"] == "abc"
    else:
        assert [output.name for output in response.outputs] == ["log", "sum"]
        assert response.id == "abc"


def test_http_answers_in_binary_or_json_as_each_output_asks(server):
    with _client("http", server) as client:
        item = tritonclient.http.InferInput("x", [1, 3], "FP32")
        item.set_data_from_numpy(np.ones((1, 3), np.float32), binary_data=False)
        by = tritonclient.http.InferInput("by", [1, 1], "FP32")
        by.set_data_from_numpy(np.ones((1, 1), np.float32))
        wanted = [tritonclient.http.InferRequestedOutput("sum", binary_data=False),
                  tritonclient.http.InferRequestedOutput("log", binary_data=True)]  # fmt: skip
        result = client.api.infer("sums", [item, by], outputs=wanted)
    assert ["data" in output for output in result.get_response()["outputs"]] == [True, False]
    np.testing.assert_allclose(result.as_numpy("sum"), [[3]])
    np.testing.assert_allclose(result.as_numpy("log"), np.log([[3]]), rtol=1e-6)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_taken(client, algorithm):
    option = "request_compression_algorithm" if client.module is tritonclient.http else "compression_algorithm"
    got = client.infer("digits", {"x": _images(3)}, **{option: algorithm}).as_numpy("logits")
    np.testing.assert_array_equal(got, client.infer("digits", {"x": _images(3)}).as_numpy("logits"))


def test_grpc_lists_of_numbers_are_answered_with_lists(server):
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    with tritonclient.grpc.grpc.insecure_channel(server.grpc) as channel:
        request = service_pb2.ModelInferRequest(model_name="types", id="q")
        fields = {"BOOL": "bool", "UINT64": "uint64", "INT64": "int64", "FP32": "fp32", "FP64": "fp64"}
        for _, datatype in DATATYPES.values():
            item = request.inputs.add(name=f"in_{datatype}", datatype=datatype, shape=[1])
            field = fields.get(datatype, "uint" if datatype[0] == "U" else "int")
            getattr(item.contents, f"{field}_contents").append(1)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(tritonclient.grpc.grpc.RpcError, match="FP16 goes in raw_input_contents"):
            stub.ModelInfer(request)
        lists = service_pb2.ModelInferRequest(model_name="lookup")
        lists.inputs.add(name="index", datatype="INT64", shape=[2]).contents.int64_contents.extend([1, 2])
        answer = stub.ModelInfer(lists)
    assert list(answer.outputs[0].contents.fp32_contents) == [3, 4, 5, 6, 7, 8]
    assert not answer.raw_output_contents


@pytest.mark.parametrize(
    ("raw", "contents", "words"),
    [(1, 0, "1 tensors for 2 inputs"), (3, 0, "3 tensors for 2 inputs"), (2, 1, "give one"), (0, 0, "are 8 bytes")],
)
def test_a_grpc_message_that_contradicts_itself_is_an_invalid_argument(server, raw, contents, words):
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    request = service_pb2.ModelInferRequest(model_name="sums", raw_input_contents=[bytes(8)] * raw)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.inputs.add(name="by", datatype="FP32", shape=[1, 1])
    if contents:
        request.inputs[0].contents.fp32_contents.extend([1, 2])
    with tritonclient.grpc.grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(tritonclient.grpc.grpc.RpcError, match=words) as error:
            stub.ModelInfer(request)
    assert error.value.code().name == "INVALID_ARGUMENT"


def test_metadata_tell_versions_types_and_open_sizes(server):
    with _client("http", server) as http, _client("grpc", server) as grpc:
        told = http.api.get_model_metadata("sums", "1")
        assert told == grpc.api.get_model_metadata("sums", as_json=True) | {
            "inputs": told["inputs"],
            "outputs": told["outputs"],
        }
        assert told["versions"] == ["1"]
        assert told["platform"] == "onnxruntime_onnx"
        assert told["inputs"] == [
            {"name": "x", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "by", "datatype": "FP32", "shape": [-1, 1]},
        ]
        names = [entry["name"] for entry in http.api.get_model_repository_index()]
        assert names == ["digits", "lookup", "slow", "sums", "types"]
        assert http.api.get_server_metadata()["name"] == grpc.api.get_server_metadata().name == "bnfold"


def test_health_is_told_by_both_protocols(client):
    assert client.api.is_server_live()
    assert client.api.is_server_ready()
    assert client.api.is_model_ready("digits")
    assert client.api.is_model_ready("digits", "1")
    if client.module is tritonclient.http:
        assert not client.api.is_model_ready("digits", "2")
        assert not client.api.is_model_ready("nonsense")


# Batching.


@pytest.mark.parametrize("protocol", sorted(CLIENTS))
def test_requests_of_several_clients_are_joined_and_get_what_they_get_alone(server, protocol):
    def ask(index):
        return _ask(protocol, server, "lookup", {"index": np.array([index])}).as_numpy("row")

    with ThreadPoolExecutor(8) as pool:
        alone = [ask(n) for n in range(8)]
        before = _metric(server, "bnfold_batch_rows_count", "lookup")
        joined = list(pool.map(ask, range(8)))
        runs = _metric(server, "bnfold_batch_rows_count", "lookup") - before
    np.testing.assert_array_equal(joined, alone)
    assert runs <= 3  # the delay of a tenth of a second is long enough for nearly all to come


def test_a_request_that_fails_does_not_fail_those_it_was_joined_with(server):
    def ask(index):
        try:
            return _ask("http", server, "lookup", {"index": np.array([index])}).as_numpy("row").tolist()
        except InferenceServerException as error:
            return error.status()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [0, 1, 99, 3, 4]))
    assert answers[:2] + answers[3:] == [[[0, 1, 2]], [[3, 4, 5]], [[9, 10, 11]], [[12, 13, 14]]]
    assert answers[2] in ("400", "500")


def test_requests_of_other_sizes_are_not_joined(server):
    lengths = [1, 2, 3, 1, 2, 3]
    feeds = [{"x": np.ones((1, n), np.float32), "by": np.ones((1, 1), np.float32)} for n in lengths]
    with ThreadPoolExecutor(6) as pool:
        sums = list(pool.map(lambda feed: _ask("grpc", server, "sums", feed).as_numpy("sum").item(), feeds))
    assert sums == lengths


def test_many_clients_at_once_all_get_their_own_answer(server, repository):
    session = onnxruntime.InferenceSession(repository / "digits/1/model.onnx", providers=["CPUExecutionProvider"])

    def ask(first):
        with _client("http" if first % 2 else "grpc", server) as client:
            for seed in range(first, 200, 16):
                images = _images(1 + seed % 3, seed)
                got = client.infer("digits", {"x": images}).as_numpy("logits")
                np.testing.assert_allclose(got, session.run(None, {"x": images})[0], rtol=0, atol=1e-4)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))


# What is wrong: the server says so and goes on.


def _metric(server, name, model):
    _, text = _get(server, "/metrics")
    return sum(float(line.split()[-1]) for line in text.splitlines()
               if line.startswith(f"{name}{{") and f'model="{model}"' in line)  # fmt: skip


BAD_DOCUMENTS = {
    "no JSON": (b'{"inputs": [', "not JSON"),
    "nothing": (b"", "not JSON"),
    "no object": (b"[]", "must be a JSON object"),
    "no inputs": (b"{}", "inputs must be a list"),
    "inputs of numbers": (b'{"inputs": [1]}', "inputs must be a list"),
    "no input": (b'{"inputs": []}', "needs the input 'x', 'by'"),
    "deep": (b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", "not JSON"),
    "deep data": ("DATA", "[" * 500 + "]" * 500, "data must be"),
    "NaN": ("DATA", "[NaN, 1]", "not JSON"),
    "Infinity": ("DATA", "[Infinity, 1]", "not JSON"),
    "too large a number": ("DATA", "[1e39, 1]", "out of the range"),
    "larger than double": ("DATA", "[1e999, 1]", "not JSON"),
    "text": ("DATA", '["a", "b"]', "must be numbers"),
    "null": ("DATA", "[null, 1]", "must be numbers"),
    "truth values": ("DATA", "[true, false]", "must be numbers"),
    "no list": ("DATA", "1", "data must be a list"),
    "ragged": ("DATA", "[[1], [2, 3]]", "data must be a list of numbers"),
    "too few": ("DATA", "[1]", "does not fit"),
    "too many": ("DATA", "[1, 2, 3]", "does not fit"),
    "nested otherwise": ("DATA", "[[1], [2]]", "does not fit"),
    "other rank": ("SHAPE", "[2]", "the model takes [-1, -1]"),
    "negative size": ("SHAPE", "[-1, -2]", "integers above 0"),
    "zero size": ("SHAPE", "[1, 0]", "integers above 0"),
    "no integer": ("SHAPE", "[1, 2.0]", "integers above 0"),
    "truth as a size": ("SHAPE", "[true, 2]", "integers above 0"),
    "text as a shape": ("SHAPE", '"12"', "list of integers"),
    "huge": ("SHAPE", "[1, 1000000000000]", "does not fit"),
    "beyond 64 bits": ("SHAPE", "[8, 10000000000000000000000]", "integers above 0"),
    "other type": ("TYPE", '"INT32"', "given as 'INT32'"),
    "type of no kind": ("TYPE", "{}", "given as {}"),
}


@pytest.mark.parametrize("case", BAD_DOCUMENTS)
def test_a_bad_json_request_is_told_what_is_wrong_with_it(server, case):
    body, *rest = BAD_DOCUMENTS[case]
    if isinstance(body, str):
        parts = {"DATA": "[1, 2]", "SHAPE": "[1, 2]", "TYPE": '"FP32"'} | {body: rest[0]}
        body = (
            f'{{"inputs": [{{"name": "x", "datatype": {parts["TYPE"]}, "shape": {parts["SHAPE"]}, '
            f'"data": {parts["DATA"]}}}]}}'
        ).encode()
    status, answer = _post(server, "/v2/models/sums/infer", body)
    assert status == 400, answer
    assert rest[-1] in answer["error"]


def _document(**changes):
    by = {"name": "by", "datatype": "FP32", "shape": [1, 1], "data": [1]}
    x = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    return {"inputs": [x, by], **changes}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (_document(inputs=[*_document()["inputs"], _document()["inputs"][0]]), "'x' is given twice"),
        (_document(inputs=_document()["inputs"][:1]), "needs the input 'by' as well"),
        (_document(inputs=[{"name": "z" * 500}]), "has no input"),
        (_document(outputs=[{"name": "nonsense"}]), "has no output 'nonsense'"),
        (_document(outputs=[{"name": "sum"}, {"name": "sum"}]), "asked for twice"),
        (_document(outputs=[{}]), "needs a name"),
        (_document(outputs="sum"), "outputs must be a list"),
        (_document(outputs=[{"name": "sum", "parameters": {"binary_data": 1}}]), "binary_data must be true or false"),
        (_document(outputs=[{"name": "sum", "parameters": {"classification": 1}}]), "does not offer classification"),
        (_document(inputs=[{"name": "x", "parameters": {"shared_memory_region": "r"}}]), "does not offer"),
        (_document(inputs=[{"name": "x", "parameters": []}]) | {"parameters": []}, "has no data"),
        (_document(inputs=[{"name": "x", "parameters": [1]}]), "parameters must be"),
        (_document(id=1), "id must be a string"),
    ],
)  # fmt: skip
def test_a_request_for_what_there_is_not_is_told_so(server, document, words):
    status, answer = _post(server, "/v2/models/sums/infer", json.dumps(document).encode())
    assert status == 400, answer
    assert words in answer["error"]
    assert len(answer["error"]) < 300


@pytest.mark.parametrize(
    ("length", "size", "tail", "words"),
    [
        ("x", 8, 8, "Inference-Header-Content-Length"),
        ("-1", 8, 8, "Inference-Header-Content-Length"),
        ("1" * 30, 8, 8, "Inference-Header-Content-Length"),
        ("99999", 8, 8, "Inference-Header-Content-Length"),
        (None, 4, 4, "are 8 bytes"),
        (None, 12, 12, "are 8 bytes"),
        (None, 8, 4, "4 bytes are left"),
        (None, 8, 9, "1 bytes are left behind"),
        (None, -8, 8, "8 bytes are left"),
        (None, "8", 8, "8 bytes are left"),
        (None, True, 8, "8 bytes are left"),
    ],
)
def test_binary_tensors_whose_sizes_lie_are_refused(server, length, size, tail, words):
    x = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": size}}
    by = {"name": "by", "datatype": "FP32", "shape": [1, 1], "data": [1]}
    document = json.dumps({"inputs": [x, by]}).encode()
    header = {"Inference-Header-Content-Length": str(len(document)) if length is None else length}
    status, answer = _post(server, "/v2/models/sums/infer", document + bytes(tail), header)
    assert status == 400
    assert words in answer["error"]


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"x": np.ones((1, 3), np.float64), "by": np.ones((1, 1), np.float32)}, "takes FP32"),
        ({"x": np.ones((1, 3, 1), np.float32), "by": np.ones((1, 1), np.float32)}, "the model takes"),
        ({"x": np.ones((1, 3), np.float32), "by": np.ones((1, 2), np.float32)}, "the model takes"),
        ({"x": np.ones((2, 3), np.float32), "by": np.ones((1, 1), np.float32)}, "batches of 1, 2"),
        ({"x": np.ones((9, 3), np.float32), "by": np.ones((9, 1), np.float32)}, "a batch of 9 is more than the 8"),
        ({"x": np.ones((1, 3), np.float32)}, "needs the input 'by'"),
        ({"other": np.ones((1, 3), np.float32)}, "no input 'other'"),
    ],
)
def test_a_wrong_tensor_is_an_invalid_argument_for_both_protocols(client, feeds, words):
    with pytest.raises(InferenceServerException, match="") as error:
        client.infer("sums", feeds)
    assert _code(error) in ("400", "INVALID_ARGUMENT")
    assert words in error.value.message()


@pytest.mark.parametrize(("model", "version"), [("nonsense", ""), ("digits", "2"), ("digits", "x"), ("..", "")])
def test_a_model_or_version_that_is_not_served_is_not_found(client, model, version):
    with pytest.raises(InferenceServerException) as error:
        client.infer(model, {"x": _images(1)}, model_version=version)
    assert _code(error) in ("404", "NOT_FOUND")


@pytest.mark.parametrize(
    "path", ["/v2/models/%2e%2e%2f%2e%2e/infer", "/v1/models", "/v2/models/digits/versions//infer"]
)
def test_other_paths_are_an_error_document(server, path):
    status, answer = _post(server, path, b"{}")
    assert status in (404, 405)
    assert set(answer) == {"error"}


def test_models_are_not_loaded_or_unloaded_by_clients(client):
    for call in (client.api.load_model, client.api.unload_model):
        with pytest.raises(InferenceServerException) as error:
            call("digits")
        assert _code(error) in ("404", "UNIMPLEMENTED")
    assert client.api.is_model_ready("digits")


def test_an_oversized_body_is_refused_by_both_protocols(client):
    with pytest.raises(InferenceServerException) as error:
        client.infer("sums", {"x": np.zeros((8, 40_000), np.float32), "by": np.ones((8, 1), np.float32)})
    assert _code(error) in ("413", "RESOURCE_EXHAUSTED")


def test_a_body_that_grows_when_it_is_decompressed_is_refused(client):
    option = "request_compression_algorithm" if client.module is tritonclient.http else "compression_algorithm"
    with pytest.raises(InferenceServerException) as error:
        client.infer("sums", {"x": np.zeros((8, 40_000), np.float32), "by": np.ones((8, 1), np.float32)},
                     **{option: "gzip"})  # fmt: skip
    assert _code(error) in ("413", "RESOURCE_EXHAUSTED")


def test_a_chunked_body_without_a_length_is_refused_once_it_is_too_large(server):
    host, port = server.http.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /v2/models/sums/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        answer = b""
        try:
            for _ in range(100):
                connection.sendall(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            answer = connection.recv(1000)
        except ConnectionResetError:
            pytest.skip("the answer was lost with the connection")
    assert b" 413 " in answer


def test_numbers_that_json_cannot_carry_are_an_error_there_and_come_in_binary(server):
    document = _document()
    document["inputs"][0]["data"] = [-1, 0]
    status, answer = _post(server, "/v2/models/sums/infer", json.dumps(document).encode())
    assert status == 400
    assert "ask for it with binary_data" in answer["error"]
    with _client("http", server) as client:
        feeds = {"x": np.array([[-1]], np.float32), "by": np.ones((1, 1), np.float32)}
        assert np.isnan(client.infer("sums", feeds).as_numpy("log")).all()


def test_clients_that_vanish_leave_nothing_behind(server):
    host, port = server.http.split(":")
    head = b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
    whole = json.dumps({"inputs": [{"name": "turns", "datatype": "INT64", "shape": [1], "data": [2000]}]}).encode()
    for sent in (head, head + b"{", head.replace(b"1000", str(len(whole)).encode()) + whole):
        for _ in range(5):
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                connection.sendall(sent)
    _eventually(lambda: "bnfold_requests_in_flight 0.0" in _get(server, "/metrics")[1])
    assert _metric(server, "bnfold_requests_total", "slow") >= 1


def test_a_grpc_call_that_is_cancelled_is_not_run(server):
    with _client("grpc", server) as client:
        item = tritonclient.grpc.InferInput("turns", [1], "INT64")
        item.set_data_from_numpy(np.array([_turns(server, 2)]))
        before = _metric(server, "bnfold_run_seconds_count", "slow")
        calls = [client.api.async_infer("slow", [item], lambda *_: None) for _ in range(4)]
        _eventually(lambda: "bnfold_requests_in_flight 4.0" in _get(server, "/metrics")[1])
        for call in calls:
            call.cancel()
        _eventually(lambda: "bnfold_requests_in_flight 0.0" in _get(server, "/metrics")[1])
        client.infer("slow", {"turns": np.array([1])})
        assert _metric(server, "bnfold_run_seconds_count", "slow") - before <= 2


def _eventually(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def sums(repository):
    return next(model for model in read_repository(repository) if model.name == "sums")


@given(data=st.data())
def test_whatever_a_body_holds_it_is_a_request_or_a_bad_one(sums, data):
    document = _document(parameters={}, outputs=[{"name": "sum", "parameters": {"binary_data": True}}], id="1")
    places = [(document, key) for key in document]
    places += [(item, key) for item in document["inputs"] for key in (*item, "parameters")]
    places += [(document["outputs"][0], key) for key in document["outputs"][0]]
    for holder, key in data.draw(st.lists(st.sampled_from(places), max_size=2)):
        holder[key] = data.draw(JSON)
    body = json.dumps(document).encode() + data.draw(st.binary(max_size=8))
    length = data.draw(st.none() | st.text(max_size=5) | st.integers(-1, len(body) + 1).map(str))
    with contextlib.suppress(RequestError):
        request = http_codec.decode(sums, body, length)
        assert {name: values.dtype for name, values in request.feeds.items()} == {"x": np.float32, "by": np.float32}
        assert all(1 <= len(values) <= 8 for values in request.feeds.values())


# The server's life.


@pytest.fixture
def own(tmp_path):
    """A repository that a test may change."""
    path = tmp_path / "repository"
    served.deploy_classifier(path)
    served.deploy_slow(path)
    return path


ENDLESS = 50_000_000  # turns of the slow model: minutes, for what is to be cut off


def _slow(protocol, server, turns):
    return _ask(protocol, server, "slow", {"turns": np.array([turns])}).as_numpy("y")


def _turns(server, seconds):
    """How many turns of the slow model take about so long on this machine, however fast it is."""

    def duration(turns):
        start = time.perf_counter()
        _slow("http", server, turns)
        return time.perf_counter() - start

    return int(10_000 * seconds / min(duration(10_000) for _ in range(3)))


@pytest.mark.parametrize(("protocol", "number"), [("http", signal.SIGTERM), ("grpc", signal.SIGINT)])
def test_what_is_in_flight_is_finished_and_what_comes_later_is_refused(own, protocol, number):
    with served.serving(own) as server, ThreadPoolExecutor(3) as pool:
        turns = _turns(server, 3)
        running = [pool.submit(_slow, protocol, server, turns) for _ in range(3)]
        _eventually(lambda: "bnfold_requests_in_flight 3.0" in _get(server, "/metrics")[1])
        server.stop(number)
        _eventually(lambda: _get(server, "/v2/health/ready")[0] == 503)
        assert _get(server, "/v2/health/live")[0] == 200
        with pytest.raises(InferenceServerException) as error:
            _slow(protocol, server, 1)
        assert _code(error) in ("503", "UNAVAILABLE")
        for answer in running:
            np.testing.assert_array_equal(answer.result(30), np.eye(64))
        code, errors = server.end()
        assert code == 0
        assert errors.endswith("Stop with Ctrl-C.\nStopped; nothing was in flight any more.\n")


def test_a_signal_while_models_are_loaded_ends_it(own):
    process = subprocess.Popen(served.command(own), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 143)
    assert "Traceback" not in errors
    assert out == "" or process.returncode == 0


def test_a_signal_ends_it_while_a_model_takes_forever_to_load(own):
    endless = (
        "import sys, threading; from bnfold.serving import following;"
        "following.load = lambda *_: (print('loading', flush=True), threading.Event().wait());"
        "from bnfold.cli.main import run; sys.argv[0] = 'bnfold'; run()"
    )
    arguments = served.command(own)[served.command(own).index("serve") :]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", endless, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr.readline() == "loading\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "nothing was in flight" in errors


def test_each_request_is_logged_if_that_is_asked_for(own):
    with served.serving(own, "--access-log", "--quiet") as server:
        for protocol in CLIENTS:
            _slow(protocol, server, 1)
        server.stop()
        _, errors = server.end()
    assert "POST '/v2/models/slow/infer' 200" in errors
    assert "ModelInfer 'slow' OK" in errors


def test_what_takes_longer_than_the_drain_is_cut_off_and_told(own):
    with served.serving(own, "--drain", "0.2") as server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(_slow, "grpc", server, ENDLESS)
        _eventually(lambda: "bnfold_requests_in_flight 1.0" in _get(server, "/metrics")[1])
        server.stop()
        code, errors = server.end()
        assert code == 1
        assert "1 request took longer than 0.2 s and was cut off" in errors
        with pytest.raises(InferenceServerException):
            running.result(30)


def test_a_second_signal_ends_it_at_once(own):
    with served.serving(own) as server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(_slow, "http", server, ENDLESS)
        _eventually(lambda: "bnfold_requests_in_flight 1.0" in _get(server, "/metrics")[1])
        server.stop()
        _eventually(lambda: _get(server, "/v2/health/ready")[0] == 503)
        server.stop()
        assert server.end(10)[0] == 128 + signal.SIGTERM
        with pytest.raises((InferenceServerException, OSError, http.client.HTTPException)):
            running.result(30)


def test_more_requests_than_it_takes_are_refused(own):
    with served.serving(own, "--max-requests", "2") as server, ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(_slow, "http", server, ENDLESS)
        _eventually(lambda: "bnfold_requests_in_flight 2.0" in _get(server, "/metrics")[1])
        for protocol in CLIENTS:
            with pytest.raises(InferenceServerException) as error:
                _slow(protocol, server, 1)
            assert _code(error) in ("503", "RESOURCE_EXHAUSTED")
        server.process.kill()


def test_one_request_after_the_other_is_never_too_many(own):
    with served.serving(own, "--max-requests", "1") as server:
        for protocol in (*CLIENTS, *CLIENTS):
            np.testing.assert_array_equal(_slow(protocol, server, 1), np.eye(64))


def test_a_new_version_takes_over_while_requests_are_answered(own):
    images = _images(2)
    with served.serving(own, "--watch", "0.1") as server, ThreadPoolExecutor(1) as pool:
        stop = threading.Event()

        def ask_on():
            seen = []
            with _client("http", server) as client:
                while not stop.is_set():
                    result = client.infer("digits", {"x": images})
                    seen.append((result.get_response()["model_version"], result.as_numpy("logits").tobytes()))
            return seen

        asking = pool.submit(ask_on)
        served.deploy_classifier(own, seed=1)
        _eventually(lambda: '"versions":["2"]' in _get(server, "/v2/models/digits")[1])
        time.sleep(0.2)
        stop.set()
        shutil.rmtree(own / "slow")
        _eventually(lambda: _get(server, "/v2/models/slow")[0] == 404)
        seen = asking.result(30)
        assert [version for version, _ in seen] == sorted(version for version, _ in seen)
        assert {version for version, _ in seen} == {"1", "2"}
        assert len(set(seen)) == 2  # each version gives its own logits, and never those of the other


def test_a_new_version_that_cannot_be_served_leaves_the_old_one_in_place(own):
    with served.serving(own, "--watch", "0.1") as server:
        watchdog = threading.Timer(60, server.process.kill)
        watchdog.daemon = True
        watchdog.start()
        model, other = served.classifier(1), served.classifier(2)
        served.deploy_model(own, "digits", model, *served.CLASSIFIER, served.BATCHED, golden=other)
        told = next(line for line in server.process.stderr if "is not served" in line)
        assert "digits version 2 is not served" in told
        assert "does not give here what" in told
        assert '"versions":["1"]' in _get(server, "/v2/models/digits")[1]
        time.sleep(0.5)
        server.stop()
        code, errors = server.end()
    assert code == 0
    assert "is not served" not in errors  # it is looked at again, and told once


def test_ports_are_told_and_bound_to_this_machine_only(own):
    with served.serving(own) as server:
        assert server.announced["models"] == [
            {"name": "digits", "version": 1, "provider": "cpu"},
            {"name": "slow", "version": 1, "provider": "cpu"},
        ]
        assert server.http.startswith("127.0.0.1:")
        assert server.grpc.startswith("127.0.0.1:")
        assert server.announced["warnings"] == ["slow version 1 was deployed without proof and is served unchecked"]
        assert 0 < int(server.http.split(":")[1]) != int(server.grpc.split(":")[1]) > 0


# What cannot be served: exit code 3, and one sentence.


# KServe and tritonclient register the same protobuf messages, so that one process cannot hold both.
RUNNER = """
import contextlib, io, json, sys
from bnfold.cli.main import main
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def fails():
    """Run `bnfold serve`, which must fail; give its exit code and its one sentence."""
    program = [sys.executable, "-P", "-c", RUNNER]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def run(repository, *options):
            ports = [] if "--http-port" in options else ["--http-port", "0", "--grpc-port", "0"]
            process.stdin.write(json.dumps(["serve", str(repository), *ports, *options]) + "\n")
            process.stdin.flush()
            code, out, errors = json.loads(process.stdout.readline())
            assert out == ""
            assert errors.count("\n") == 1, errors
            return code, errors

        yield run
        process.stdin.close()


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port"])
def test_a_port_in_use_is_told_before_any_model_is_read(tmp_path, option, fails):
    other = {"--http-port": "--grpc-port", "--grpc-port": "--http-port"}[option]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "nothing").mkdir()
        code, sentence = fails(tmp_path / "nothing", other, "0", option, str(port))
    assert code == 3
    assert f"port {port} on 127.0.0.1" in sentence
    assert option in sentence


def test_two_servers_do_not_share_a_port(server, repository, fails):
    for option, other in (("--http-port", "--grpc-port"), ("--grpc-port", "--http-port")):
        port = getattr(server, option[2:6]).split(":")[1]
        code, sentence = fails(repository, option, port, other, "0")
        assert code == 3
        assert f"port {port} on 127.0.0.1" in sentence


def test_a_tampered_model_is_not_served(own, fails):
    with (own / "digits/1/model.onnx").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"tampered")
    code, sentence = fails(own)
    assert code == 3
    assert "digits/1/model.onnx is not the file that was deployed" in sentence


def test_a_model_that_does_not_give_what_its_golden_file_says_is_not_served(tmp_path, fails):
    path = tmp_path / "repository"
    served.deploy_model(path, "digits", served.classifier(0), *served.CLASSIFIER, served.BATCHED,
                        golden=served.classifier(1))  # fmt: skip
    code, sentence = fails(path)
    assert code == 3
    assert "does not give here what" in sentence


def test_a_model_whose_rows_influence_each_other_is_not_batched(tmp_path, fails):
    path = tmp_path / "repository"
    model = served.centred()
    served.deploy_model(path, "digits", model, *served.CLASSIFIER, served.BATCHED, golden=model)
    code, sentence = fails(path)
    assert code == 3
    assert "joined in a batch" in sentence
    served.deploy_model(path, "digits", model, *served.CLASSIFIER, replace(served.BATCHED, batching=None), golden=model)
    with served.serving(path) as server:
        assert _ask("grpc", server, "digits", {"x": _images(2)}).as_numpy("logits").shape == (2, 10)


@pytest.mark.cuda
@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="needs a CUDA device")
def test_models_are_served_on_cuda(own):
    with served.serving(own, "--provider", "cuda") as cuda, served.serving(own) as cpu:
        assert {model["provider"] for model in cuda.announced["models"]} == {"cuda"}
        on_cuda, on_cpu = (_ask("grpc", server, "digits", {"x": _images(4)}) for server in (cuda, cpu))
        np.testing.assert_allclose(on_cuda.as_numpy("logits"), on_cpu.as_numpy("logits"), rtol=0, atol=0.05)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it is here")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--provider", "cuda"), "CUDAExecutionProvider is not part of this onnxruntime"),
        (("--provider", "tensorrt"), "TensorrtExecutionProvider is not part of this onnxruntime"),
        (("--host", "no.such.host.invalid"), "this machine knows no such address"),
        (("--host", "192.0.2.1"), "cannot be served on port"),
    ],
)
def test_a_provider_or_address_that_is_not_here_is_an_error(repository, options, words, fails):
    code, sentence = fails(repository, *options)
    assert code == 3
    assert words in sentence


def test_a_file_in_onnx_runtimes_own_format_is_served_on_its_machine_and_nowhere_else(tmp_path, fails):
    path = tmp_path / "repository"
    served.deploy_classifier(path)
    code, sentence = fails(path, "--ort-format")
    assert code == 3
    assert "has no file in ONNX Runtime's own format" in sentence
    here, model = this_machine(), served.classifier()
    served.deploy_model(path, "digits", model, *served.CLASSIFIER, served.BATCHED, golden=model, machine=here)
    with served.serving(path, "--ort-format") as server:
        assert _ask("grpc", server, "digits", {"x": _images(2)}).as_numpy("logits").shape == (2, 10)
    there = replace(here, cpu="abacus")
    served.deploy_model(path, "digits", model, *served.CLASSIFIER, served.BATCHED, golden=model, machine=there)
    code, sentence = fails(path, "--ort-format")
    assert code == 3
    assert "abacus" in sentence


def test_a_repository_without_models_is_an_error(tmp_path, fails):
    (tmp_path / "empty").mkdir()
    assert fails(tmp_path / "empty")[0] == 3
    assert "does not exist" in fails(tmp_path / "nothing")[1]
