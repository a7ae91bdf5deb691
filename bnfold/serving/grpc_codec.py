"""The protocol's gRPC messages, with tensors as raw bytes or as lists of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from numpy.typing import NDArray

from bnfold.deployment.manifest import TensorSpec
from bnfold.deployment.repository import DeployedModel
from bnfold.serving.request import (
    Request,
    RequestedOutput,
    RequestError,
    checked,
    from_buffer,
    from_values,
    known_input,
)

#: Where a message holds the numbers of each datatype; FP16 has no list of its own.
_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def decode(model: DeployedModel, message: messages.ModelInferRequest) -> Request:
    """The request in a ``ModelInferRequest``.

    Raises:
        RequestError: it is no request that the model can answer.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise RequestError(f"raw_input_contents holds {len(raw)} tensors for {len(message.inputs)} inputs")
    feeds = []
    for position, item in enumerate(message.inputs):
        tensor = known_input(model, item.name)
        _refuse_extensions(item, f"input {tensor.name!r}")
        if raw and item.HasField("contents"):
            raise RequestError(f"input {tensor.name!r} has contents and raw_input_contents; give one")
        shape = list(item.shape)
        values = (
            from_buffer(tensor, item.datatype, shape, raw[position]) if raw else _from_contents(tensor, item, shape)
        )
        feeds.append((tensor.name, values))
    for output in message.outputs:
        _refuse_extensions(output, f"output {output.name!r:.80}")
    # Lists are answered with lists, raw bytes with raw bytes.
    outputs = [RequestedOutput(output.name, bool(raw)) for output in message.outputs]
    return checked(model, message.id, feeds, outputs or [RequestedOutput(o.name, bool(raw)) for o in model.outputs])


def _refuse_extensions(item: Any, what: str) -> None:
    for name in ("shared_memory_region", "classification"):
        if name in item.parameters:
            raise RequestError(f"{what}: this server does not offer {name}")


def _from_contents(tensor: TensorSpec, item: Any, shape: list[int]) -> NDArray[Any]:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise RequestError(f"input {tensor.name!r}: {tensor.datatype} goes in raw_input_contents")
    values = list(getattr(item.contents, field))
    if tensor.datatype in ("FP32", "FP64"):  # the wire carries NaN and infinities, which JSON cannot
        return from_buffer(tensor, item.datatype, shape, np.array(values, tensor.dtype).tobytes())
    return from_values(tensor, item.datatype, shape, values)


def encode(model: DeployedModel, request: Request, values: Mapping[str, NDArray[Any]]) -> messages.ModelInferResponse:
    """The ``ModelInferResponse`` of an answer."""
    response = messages.ModelInferResponse(model_name=model.name, model_version=str(model.version), id=request.id)
    datatypes = {output.name: output.datatype for output in model.outputs}
    # A message is all raw or all lists.
    raw = any(output.binary or values[output.name].dtype == np.float16 for output in request.outputs)
    for output in request.outputs:
        array, datatype = values[output.name], datatypes[output.name]
        entry = response.outputs.add(name=output.name, datatype=datatype, shape=array.shape)
        if raw:
            response.raw_output_contents.append(array.tobytes())
        else:
            getattr(entry.contents, _CONTENTS[datatype]).extend(array.ravel().tolist())
    return response
