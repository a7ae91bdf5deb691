"""Look at a model that is to be deployed, and run it: what it takes and gives is what a run shows, not what it says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.deployment.manifest import DynamicBatching, Serving, TensorSpec
from bnfold.deployment.options import DEFAULT_BATCH, DeployOptions
from bnfold.errors import DataError, InputError, ModelError, OptionError
from bnfold.files import StrPath
from bnfold.model_file import external_tensors, write_model
from bnfold.prediction.preprocessing import Preprocessing, from_metadata, read_class_names, read_sidecar
from bnfold.session import create_session, run_session
from bnfold.verification.inputs import Feed, drawn_feeds
from bnfold.verification.sizes import USUAL, Sizes
from bnfold.verification.specs import input_specs

MODEL_FILE = "model.onnx"

#: ONNX Runtime's name of each type that can be deployed, as the Open Inference Protocol spells it. Triton's backend
#: for ONNX Runtime takes no bfloat16 and no sequences; text cannot be verified.
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}

#: How many samples are run alone and together.
_ROWS = 3

#: How far off a sample may be together with others, as a share of its output's largest value, by the bytes of the
#: output's type: products of another size are summed in another order.
_ROUNDING = {2: 2.0**-6, 4: 2.0**-10, 8: 2.0**-20}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model that runs.

    Attributes:
        model: as loaded.
        source: the file that it was loaded from.
        path: a copy of it, which is what is proven and deployed; its external data lies beside it.
        inputs: with their whole shapes.
        outputs: the same.
        unbatched: why requests cannot be joined in a batch, as the end of a sentence; None where the first dimension of
            each input and output is one and the same batch, of any size, and no sample of it changes another's result.
        sizes: the shape of each input in a run of one sample.
    """

    model: ir.Model
    source: Path
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    unbatched: str | None
    sizes: Mapping[str, tuple[int, ...]]


def prepare(model: ir.Model, source: Path, work: Path, shapes: Mapping[str, Sequence[int]]) -> Prepared:
    """Copy a model into a folder of one's own, and run it on the CPU.

    Args:
        model: the model.
        source: the file that it was loaded from.
        work: an empty folder.
        shapes: of inputs by name, for sizes that the model leaves open.

    Raises:
        ModelError: it cannot be run, or takes or gives what cannot be deployed.
        InputError: the shapes contradict the model.
        MissingExtraError: onnxruntime is not installed.
    """
    path = work / MODEL_FILE
    if any(True for _ in external_tensors(model)):
        write_model(model, path, external_data="always")  # under a name of ours, beside the model
    else:
        shutil.copyfile(source, path)  # byte for byte
    session = create_session(path)
    _check_ports((*session.get_inputs(), *session.get_outputs()), source)
    if not session.get_inputs():
        raise ModelError(f"{source} takes no input, so that a server would have nothing to answer")
    feeds, results = _runs(session, model, source, shapes)
    inputs = tuple(_specs(session.get_inputs(), feeds[0].values))
    outputs = tuple(_specs(session.get_outputs(), results[0]))
    sizes = {name: value.shape for name, value in feeds[0].values.items()}
    unbatched = _no_batch(inputs, outputs, feeds, results) or _coupled(session, feeds)
    return Prepared(model, source, path, inputs, outputs, unbatched, sizes)


def _runs(
    session: Any, model: ir.Model, source: Path, shapes: Mapping[str, Sequence[int]]
) -> tuple[list[Feed], list[Mapping[str, Any]]]:
    """The model at the first ordinary sizes that it takes: one sample, and two where it takes any number."""
    specs = input_specs(model)
    draw = partial(drawn_feeds, specs, samples=1, seed=0, batches=(1, 2), shapes=shapes)
    failures: list[ModelError] = []
    for usual in USUAL if Sizes(specs, shapes).has_others else USUAL[:1]:
        feeds = [feed for feed in draw(usual=usual) if feed.kind == "random" and not feed.optional]
        try:
            return feeds, [run_session(session, feed.values) for feed in feeds]
        except ModelError as error:
            failures.append(error)
    raise ModelError(f"{source} does not run, so it is not deployed ({failures[0]}); "
                     "give a size that it takes with --input-shape, if that is why")  # fmt: skip


def _check_ports(ports: Sequence[Any], source: Path) -> None:
    for port in ports:
        if port.type not in _DATATYPES:
            raise ModelError(
                f"{source}: {port.name} is a {port.type}, which bnfold does not deploy; "
                f"give it a model on tensors of {', '.join(_DATATYPES.values())}"
            )
        if not port.name.isprintable():
            raise ModelError(
                f"{source}: the name {port.name!r} holds characters that cannot be printed, which not every server and "
                "client takes; rename it"
            )
        if 0 in (port.shape or ()):
            raise ModelError(f"{source}: {port.name} has a dimension of size 0, which Triton does not load; remove it")


def _specs(ports: Sequence[Any], values: Mapping[str, Any]) -> Iterator[TensorSpec]:
    for port in ports:
        rank = values[port.name].ndim
        shape = tuple(size if isinstance(size, int) else None for size in port.shape or ())
        yield TensorSpec(port.name, _DATATYPES[port.type], shape if len(shape) == rank else (None,) * rank)


def _no_batch(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    feeds: Sequence[Feed],
    results: Sequence[Mapping[str, Any]],
) -> str | None:
    """Why the first dimensions are no batch; None where they look like one."""
    ports = (*inputs, *outputs)
    fixed = next((spec for spec in ports if spec.shape[:1] != (None,)), None)
    if fixed is not None:
        return f"the first dimension of {fixed} is not open"
    for feed, result in zip(feeds, results, strict=True):
        if len({value.shape[0] for value in (*feed.values.values(), *result.values())}) > 1:
            return f"the first dimensions of {', '.join(map(str, ports))} are not the same"
    return None


def _coupled(session: Any, feeds: Sequence[Feed]) -> str | None:
    """Why samples cannot share a run although their first dimension is open; None where they can.

    That dimension may be another axis, as the steps of a sequence are, or samples may have a part in each other's
    result, as in a batch norm in training mode. A few samples are run alone and together.
    """
    alone = [_row(feed.values, index) for feed in feeds for index in range(len(next(iter(feed.values.values()))))]
    alone = alone[:_ROWS] if len(alone) > 1 else [*alone, _mirrored(alone[0])]
    try:
        results = [run_session(session, sample) for sample in alone]
        together = run_session(session, {name: np.concatenate([each[name] for each in alone]) for name in alone[0]})
    except ModelError:
        return "it does not run on any number of samples"
    for index, result in enumerate(results):
        for name, values in result.items():
            if not _alike(values, together[name][index : index + 1]):
                return f"a sample gives another {name} together with others than alone"
    return None


def _row(values: Mapping[str, Any], index: int) -> dict[str, Any]:
    return {name: value[index : index + 1] for name, value in values.items()}


def _mirrored(values: Mapping[str, Any]) -> dict[str, Any]:
    """Another sample out of the same numbers."""
    return {name: np.flip(value, tuple(range(1, value.ndim))) for name, value in values.items()}


def _alike(one: Any, other: Any) -> bool:
    """Whether two results differ by no more than rounding, of which a run of another size has its own."""
    if one.shape != other.shape:
        return False
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        off = np.abs(a - b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    allowed = _ROUNDING[one.dtype.itemsize] if one.dtype.kind == "f" else 0.0
    largest = np.max(np.abs(a), initial=0.0, where=np.isfinite(a))
    return bool((same | (off <= allowed * largest)).all())


def serving_of(prepared: Prepared, options: DeployOptions) -> Serving:
    """How the model is to be run.

    Raises:
        OptionError: the options need a batch of any size, and the model has none; or they contradict each other.
    """
    if prepared.unbatched is not None:
        for what, asked in (("--max-batch", options.max_batch is not None), ("--preferred-batch", options.preferred)):
            if asked:
                raise OptionError(f"{what} needs a model with a batch of any size, and {prepared.unbatched}")
    most = (options.max_batch or DEFAULT_BATCH) if prepared.unbatched is None else 0
    beyond = [size for size in options.preferred if size > most]
    if beyond:
        raise OptionError(f"a preferred batch of {beyond[0]} is larger than the largest, which is {most}")
    return Serving(
        max_batch=most,
        target=options.target,
        precision=options.precision,
        instances=options.instances,
        threads=options.threads,
        arena=options.arena,
        batching=DynamicBatching(options.queue_delay_us, tuple(sorted(set(options.preferred)))) if most > 1 else None,
    )


def preprocessing_of(model: ir.Model, source: Path) -> Preprocessing | None:
    """How an image becomes the model's input: what its sidecar says, or else its metadata; None where neither does.

    Raises:
        DataError: the sidecar is damaged.
        ModelError: the metadata is.
    """
    sidecar = read_sidecar(source)
    return from_metadata(model.metadata_props, str(source))[0] if sidecar is None else sidecar


def labels_of(prepared: Prepared, source: Path, file: StrPath | None) -> tuple[str, ...]:
    """The name of each class of the first output: from a file, the sidecar or the metadata; empty where none has them.

    Raises:
        DataError: the file cannot be read, or has another number of names than the output has classes.
        ModelError: the metadata is damaged.
    """
    sidecar = read_sidecar(source)
    if file is not None:
        where, names = str(file), read_class_names(file)
    elif sidecar is not None and sidecar.labels:
        where, names = sidecar.origin, sidecar.labels
    else:
        where, names = f"the metadata of {source}", from_metadata(prepared.model.metadata_props, str(source))[1]
    classes = prepared.outputs[0].shape[-1] if prepared.outputs and prepared.outputs[0].shape else None
    if names and classes is not None and len(names) != classes:
        raise DataError(f"{where} names {len(names)} classes, and the output {prepared.outputs[0]} has {classes}")
    if any(len(name.splitlines()) != 1 for name in names):
        raise DataError(f"{where} has a class name that is empty or more than one line, which servers do not take")
    return names


def default_name(source: Path) -> str:
    """The file's name without its suffix.

    Raises:
        InputError: it has none.
    """
    name = source.name.removesuffix(source.suffix)
    if not name:
        raise InputError(f"{source} has no name to deploy it under; give one with --name")
    return name
