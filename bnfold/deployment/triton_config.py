"""``config.pbtxt``: how Triton is to run a model, as the official protobuf message writes it.

Source: triton-inference-server/common, protobuf/model_config.proto, and the README of
triton-inference-server/onnxruntime_backend, whose spellings of parameters these are.

* With ``max_batch_size`` above 0, ``dims`` leave out the batch; at 0 they are the model's whole shapes.
* ``version_policy`` names one version: the file alone decides which is served.
* ``label_filename`` is looked for from the model's folder on, so that each version has labels of its own.
* ``optimization.graph.level`` is left out, which is every optimization; 2 would be none.
* Triton knows no empty ``dims``: a scalar has ``dims: 1``. One number for each sample is reshaped to none; where there
  is no batch, Triton refuses an empty ``reshape``, and its backend takes ``dims: 1`` for a scalar.
* The warm-up feeds zeros. Triton's random data are random bytes, which hold NaN and numbers of any size: a model that
  makes an index of one would fail, and with it the loading of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bnfold.deployment.manifest import Serving, TensorSpec
from bnfold.extras import require

_HEADER = """\
# Written by `bnfold deploy`. A server reads this file, and bnfold compares it with the copy in the version's folder:
# give other settings to `bnfold deploy` as options, which makes a new version, rather than change them here.
"""

_Size = TypeVar("_Size")

#: What the file is called in a version's folder.
LABELS_FILE = "labels.txt"


@dataclass(frozen=True)
class TritonModel:
    """What a configuration is written from.

    Attributes:
        name: the model's.
        version: the one that is served.
        model_file: in the version's folder.
        inputs: with their whole shapes.
        outputs: the same.
        serving: how to run it.
        has_labels: whether the first output has names for its classes.
        sizes: a shape of each input at which the model runs, the batch included, for the warm-up.
        engine_cache: a folder on the server for TensorRT's engines of this model alone; empty for none.
    """

    name: str
    version: int
    model_file: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    serving: Serving
    has_labels: bool
    sizes: Mapping[str, Sequence[int]]
    engine_cache: str = ""


def require_triton() -> None:
    """Import what the configuration is written with.

    Raises:
        MissingExtraError: the extra ``triton`` is not installed.
    """
    for module in ("google.protobuf", "grpc", "yaml", "tritonclient", "tritonclient.grpc"):
        require(module, "triton")


def config_text(model: TritonModel) -> str:
    """The configuration as text, which parses back to the very message that was meant.

    Raises:
        MissingExtraError: the extra ``triton`` is not installed.
    """
    require_triton()
    from google.protobuf import text_format

    message = _message(model)
    text: str = _HEADER + text_format.MessageToString(message)
    again = type(message)()
    text_format.Parse(text, again)
    assert again == message, "the configuration does not read as it was written"
    return text


def parse_config(text: str) -> Any:
    """A configuration as ``tritonclient.grpc.model_config_pb2.ModelConfig``.

    Raises:
        MissingExtraError: the extra ``triton`` is not installed.
        google.protobuf.text_format.ParseError: it is none.
    """
    require_triton()
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _message(model: TritonModel) -> Any:
    from tritonclient.grpc import model_config_pb2 as pb

    serving = model.serving
    config = pb.ModelConfig(
        name=model.name,
        backend="onnxruntime",
        default_model_filename=model.model_file,
        max_batch_size=serving.max_batch,
    )
    config.version_policy.specific.versions.append(model.version)
    for spec in model.inputs:
        _describe(config.input.add(), spec, serving)
    for index, spec in enumerate(model.outputs):
        output = config.output.add()
        _describe(output, spec, serving)
        if index == 0 and model.has_labels:
            output.label_filename = f"{model.version}/{LABELS_FILE}"
    kind = pb.ModelInstanceGroup.KIND_CPU if serving.target == "cpu" else pb.ModelInstanceGroup.KIND_GPU
    config.instance_group.add(count=serving.instances, kind=kind)
    if serving.batching is not None:
        config.dynamic_batching.SetInParent()
        config.dynamic_batching.preferred_batch_size.extend(serving.batching.preferred)
        config.dynamic_batching.max_queue_delay_microseconds = serving.batching.queue_delay_us
    for key, value in _parameters(serving).items():
        config.parameters[key].string_value = value
    _accelerate(config, model)
    _warm_up(config, model)
    return config


def _describe(port: Any, spec: TensorSpec, serving: Serving) -> None:
    from tritonclient.grpc import model_config_pb2 as pb

    port.name = spec.name
    port.data_type = pb.DataType.Value(f"TYPE_{spec.datatype}")
    dims = [-1 if size is None else size for size in _without_batch(spec.shape, serving)]
    port.dims.extend(dims or [1])
    if not dims and serving.max_batch > 0:
        port.reshape.SetInParent()


def _without_batch(shape: Sequence[_Size], serving: Serving) -> Sequence[_Size]:
    return shape[1:] if serving.max_batch > 0 else shape


def _parameters(serving: Serving) -> dict[str, str]:
    return {
        "intra_op_thread_count": str(serving.threads),
        "inter_op_thread_count": "1",
        "execution_mode": "0",  # one op after another; threads share the work inside an op
        "enable_mem_arena": str(int(serving.arena)),
        "enable_mem_pattern": str(int(serving.arena)),
    }


def _accelerate(config: Any, model: TritonModel) -> None:
    """On the CPU nothing; on CUDA the provider is there by the kind of instance, and is told not to round to TF32."""
    serving = model.serving
    if serving.target == "cpu":
        return
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    if serving.target == "tensorrt":
        tensorrt = accelerators.add(name="tensorrt")
        tensorrt.parameters["precision_mode"] = serving.precision
        if model.engine_cache:
            tensorrt.parameters["trt_engine_cache_enable"] = "true"
            tensorrt.parameters["trt_engine_cache_path"] = model.engine_cache
            tensorrt.parameters["trt_timing_cache_enable"] = "true"
            tensorrt.parameters["trt_timing_cache_path"] = model.engine_cache
        for key, value in _profiles(model).items():
            tensorrt.parameters[key] = value
    accelerators.add(name="cuda").parameters["use_tf32"] = "0"  # of what TensorRT leaves over, where it comes first


def _profiles(model: TritonModel) -> dict[str, str]:
    """The sizes that one engine is built for; without them each new batch size would build it anew."""
    open_sizes = [size for spec in model.inputs for size in _without_batch(spec.shape, model.serving) if size is None]
    odd_name = any(mark in spec.name for spec in model.inputs for mark in ":,")
    if model.serving.max_batch == 0 or open_sizes or odd_name:
        return {}
    preferred = model.serving.batching.preferred if model.serving.batching is not None else ()
    best = max(preferred, default=model.serving.max_batch)
    return {
        f"trt_profile_{which}_shapes": ",".join(
            f"{spec.name}:{'x'.join(map(str, (batch, *spec.shape[1:])))}" for spec in model.inputs
        )
        for which, batch in (("min", 1), ("opt", best), ("max", model.serving.max_batch))
    }


def _warm_up(config: Any, model: TritonModel) -> None:
    """Run once at the smallest batch and once at the largest, before any client is answered."""
    most = model.serving.max_batch
    for batch in dict.fromkeys((1, max(most, 1))):
        warm_up = config.model_warmup.add(name=f"batch {batch}", batch_size=batch)
        for spec, port in zip(model.inputs, config.input, strict=True):
            data = warm_up.inputs[spec.name]
            data.data_type = port.data_type
            data.dims.extend(_without_batch(tuple(model.sizes[spec.name]), model.serving) or [1])
            data.zero_data = True
