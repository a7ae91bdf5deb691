"""Find the network to export: in a run, in a file of weights, or by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata as distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bnfold.errors import CheckpointError, InputError, one_line
from bnfold.files import StrPath
from bnfold.models import build, is_network_name
from bnfold.prediction.preprocessing import Preprocessing, of_training
from bnfold.training.checkpoint import apply_weights, load_weights
from bnfold.training.run import CHECKPOINT_FILE, RUN_FILE, WEIGHTS_FILE, Run, read_run

if TYPE_CHECKING:
    from bnfold.exporting.options import ExportOptions


@dataclass(frozen=True, eq=False)
class Network:
    """A network with its weights, and what its input looks like.

    Attributes:
        name: as :func:`bnfold.models.build` takes it.
        module: the network, in evaluation mode, on the CPU; nobody else's.
        input_shape: shape of one sample.
        metadata: texts for the ONNX file.
        preprocessing: how raw images become its input, where that is known.
        note: what is to be said of the weights, if anything.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    metadata: Mapping[str, str]
    preprocessing: Preprocessing | None = None
    note: str = ""


def load_source(source: StrPath, options: ExportOptions) -> Network:
    """The network that ``source`` and ``options`` name; see :func:`bnfold.exporting.export`.

    Raises:
        CheckpointError: weights are missing, damaged or for another architecture.
        InputError: the source or the options do not say which network on which input.
    """
    path = Path(source)
    text = str(source)
    if path.is_dir():
        return _from_run(path, options)
    if path.is_file():
        if options.weights is not None:
            raise InputError(f"{path} is a file of weights itself; leave out the other weights")
        beside = path.parent / RUN_FILE
        if options.model is None and path.suffix == ".safetensors" and beside.is_file():
            return _of_run(read_run(path.parent), path, options)
        if path.suffix == ".onnx":
            raise InputError(f"{path} is an ONNX file already; give a run's folder, or a file of weights with --model")
        if options.model is None:
            raise InputError(f"{path} holds weights; name the network that they are for (--model)")
        return _by_name(options.model, path, options)
    if is_network_name(text):
        if options.model is not None:
            raise InputError(f"{text} names a network itself; leave out the model {options.model}")
        return _by_name(text, None if options.weights is None else Path(options.weights), options)
    raise CheckpointError(f"{text} does not exist; give a run's folder, a file of weights, or package.module:factory")


def _from_run(folder: Path, options: ExportOptions) -> Network:
    run = read_run(folder)
    if options.weights is not None:
        raise InputError(f"{folder} has weights of its own; leave out the other weights")
    weights = folder / WEIGHTS_FILE
    if weights.exists():
        return _of_run(run, weights, options)
    found = _of_run(run, folder / CHECKPOINT_FILE, options)
    return replace(found, note=f"the run in {folder} is not complete: these are the weights of its last checkpoint")


def _of_run(run: Run, weights: Path, options: ExportOptions) -> Network:
    if options.model is not None or options.model_args:
        raise InputError(f"{weights.parent} says itself which network it holds; leave out model and model_args")
    documents = {
        "bnfold.classes": list(run.classes),
        "bnfold.normalization": run.normalization.to_json(),
        "bnfold.run": {
            "model": run.model,
            "model_args": dict(run.model_args),
            "data": run.data.partition(":")[0],
            "result": None if run.result is None else dict(run.result),
        },
    }
    network = _network(run.model, run.model_args, weights, options.input_shape or run.input_shape, documents, options)
    size = network.input_shape[-2:] if len(network.input_shape) == 3 else None
    if size is None:
        return network
    return replace(network, preprocessing=of_training(run.normalization, run.classes, (size[0], size[1]), str(weights)))


def _by_name(name: str, weights: Path | None, options: ExportOptions) -> Network:
    if options.input_shape is None:
        raise InputError(f"the shape of one input of {name} is not known; give it, such as --input-shape 3,224,224")
    return _network(name, options.model_args, weights, options.input_shape, {}, options)


def _network(
    name: str,
    arguments: Mapping[str, Any],
    weights: Path | None,
    input_shape: tuple[int, ...],
    documents: Mapping[str, Any],
    options: ExportOptions,
) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        built = build(name, **arguments)
    if any(nn.parameter.is_lazy(parameter) for parameter in built.parameters()):
        raise InputError(f"{name} has lazy modules, whose weights have no shape yet; build it with all shapes given")
    try:
        module = copy.deepcopy(built)  # a factory may hand out a network of the caller's
    except (RuntimeError, TypeError) as error:
        raise InputError(f"the network {name} cannot be copied: {one_line(error)}") from error
    if weights is not None:
        apply_weights(module, load_weights(weights), weights)
    metadata = {key: json.dumps(document, allow_nan=False) for key, document in documents.items()}
    metadata["bnfold.version"] = json.dumps(distribution.version("bnfold"))
    return Network(name, module.cpu().eval(), input_shape, metadata)
