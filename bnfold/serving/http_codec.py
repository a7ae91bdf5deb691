"""The protocol's HTTP bodies: a JSON document, and with the binary extension tensors behind it.

KServe's own decoder turns each binary tensor into a Python list and back, and trusts sizes; this one does neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bnfold.deployment.manifest import TensorSpec
from bnfold.deployment.repository import DeployedModel
from bnfold.serving.request import (
    Request,
    RequestedOutput,
    RequestError,
    TooLargeError,
    checked,
    from_buffer,
    from_values,
    known_input,
)

#: Bytes of JSON at most: parsed, a document takes up to 24 times as much memory. Binary tensors take their size.
MAX_JSON = 16 << 20

#: Parameters of tensors that ask for what this server does not offer; ignoring them would give another answer.
_NOT_OFFERED = ("shared_memory_region", "classification")


@dataclass(frozen=True, eq=False)
class Body:
    """An answer's body.

    Attributes:
        content: the bytes.
        json_length: how many of them are JSON; None where all are.
    """

    content: bytes
    json_length: int | None


def decode(model: DeployedModel, body: bytes, json_length: str | None) -> Request:
    """The request in an HTTP body.

    Args:
        model: the one that is asked.
        body: all of it.
        json_length: the header ``Inference-Header-Content-Length``, if there is one.

    Raises:
        RequestError: the body is no request that the model can answer.
        TooLargeError: the JSON part is longer than :data:`MAX_JSON`.
    """
    split = _split(body, json_length)
    document, rest = _document(body[:split]), memoryview(body)[split:]
    feeds = []
    for item in _list_of_objects(document, "inputs"):
        tensor = known_input(model, item.get("name"))
        values, rest = _input(tensor, item, rest)
        feeds.append((tensor.name, values))
    if len(rest):
        raise RequestError(f"{len(rest)} bytes are left behind the last tensor")
    request_id = document.get("id", "")
    if not isinstance(request_id, str):
        raise RequestError("id must be a string")
    return checked(model, request_id, feeds, _outputs(model, document))


def _split(body: bytes, json_length: str | None) -> int:
    if json_length is None:
        split = len(body)
    elif json_length.isascii() and json_length.isdigit() and len(json_length) < 20 and int(json_length) <= len(body):
        split = int(json_length)
    else:
        raise RequestError("Inference-Header-Content-Length must be how many bytes of the body are JSON")
    if split > MAX_JSON:
        raise TooLargeError(f"the request holds {split} bytes of JSON, more than {MAX_JSON}; use binary tensors")
    return split


def _document(text: bytes) -> Mapping[str, Any]:
    try:
        document = orjson.loads(text)
    except ValueError as error:
        raise RequestError(f"the request is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RequestError("the request must be a JSON object")
    return document


def _list_of_objects(document: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    items = document.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RequestError(f"{key} must be a list of JSON objects")
    return items


def _parameters(item: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    parameters = item.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError(f"{what}: parameters must be a JSON object")
    unknown = next((name for name in _NOT_OFFERED if name in parameters), None)
    if unknown is not None:
        raise RequestError(f"{what}: this server does not offer {unknown}")
    return parameters


def _input(tensor: TensorSpec, item: Mapping[str, Any], rest: memoryview) -> tuple[NDArray[Any], memoryview]:
    size = _parameters(item, f"input {tensor.name!r}").get("binary_data_size")
    datatype, shape = item.get("datatype"), item.get("shape")
    if size is None:
        if "data" not in item:
            raise RequestError(f"input {tensor.name!r} has no data")
        return from_values(tensor, datatype, shape, item["data"]), rest
    if "data" in item:
        raise RequestError(f"input {tensor.name!r} has data in JSON and binary data; give one")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
        raise RequestError(f"input {tensor.name!r}: {len(rest)} bytes are left, binary_data_size says {size!r:.40}")
    return from_buffer(tensor, datatype, shape, rest[:size]), rest[size:]


def _outputs(model: DeployedModel, document: Mapping[str, Any]) -> list[RequestedOutput]:
    everything = _flag(_parameters(document, "the request"), "binary_data_output")
    if document.get("outputs") in (None, []):
        return [RequestedOutput(output.name, everything) for output in model.outputs]
    found = []
    for item in _list_of_objects(document, "outputs"):
        if not isinstance(item.get("name"), str):
            raise RequestError("each output that is asked for needs a name")
        own = _flag(_parameters(item, f"output {item['name']!r:.80}"), "binary_data")
        found.append(RequestedOutput(item["name"], everything if own is None else own))
    return found


def _flag(parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false")
    return value


def encode(model: DeployedModel, request: Request, values: Mapping[str, NDArray[Any]]) -> Body:
    """The body of an answer.

    Raises:
        RequestError: JSON was asked for, and an output holds NaN or infinity, which JSON has no numbers for.
    """
    datatypes = {output.name: output.datatype for output in model.outputs}
    described: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for output in request.outputs:
        array = values[output.name]
        entry: dict[str, Any] = {"name": output.name, "datatype": datatypes[output.name], "shape": list(array.shape)}
        if output.binary:
            tensors.append(array.tobytes())
            entry["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            entry["data"] = _json_values(output.name, array)
        described.append(entry)
    document = {"model_name": model.name, "model_version": str(model.version), "outputs": described}
    if request.id:
        document["id"] = request.id
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return Body(b"".join([text, *tensors]), len(text) if tensors else None)


def _json_values(name: str, array: NDArray[Any]) -> Any:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(
            f"output {name!r} holds NaN or infinity, for which JSON has no number; ask for it with binary_data"
        )
    return np.ascontiguousarray(array).ravel()
