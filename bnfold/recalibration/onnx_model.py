"""Population statistics of an ONNX file, through ONNX Runtime: no torch, no training code, any exporter.

Batch norms whose inputs depend on no other batch norm come first; then those that depend on these alone, and so on.
Each such level is one pass over the samples, through the part of the model that leads to its inputs, with the
statistics of all levels before it already replaced. ONNX Runtime's optimizations are off, so that what is measured is
the model as it is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as common_passes

from bnfold.errors import DataError, InputError, ModelError, OutputError
from bnfold.files import StrPath
from bnfold.fold.sites import is_batch_norm
from bnfold.graph import ModelGraph, input_of, label
from bnfold.model_file import check_model_output, load_model, lost_on_saving, save_model, serialized
from bnfold.prediction.reader import Reader, with_labels_of
from bnfold.prediction.samples import Samples, load_samples
from bnfold.progress import Progress
from bnfold.recalibration.moments import Moments
from bnfold.recalibration.options import RecalibrateOptions
from bnfold.recalibration.result import Accuracy, Drift, Left, RecalibrateResult, recalibration_record
from bnfold.session import SessionOptions, create_session, run_session
from bnfold.sidecar import copy_sidecar
from bnfold.training.dataset import top1_accuracy

_MEAN, _VAR = 3, 4  # inputs of BatchNormalization


@dataclass(frozen=True, eq=False)
class _Target:
    """A batch norm to recalibrate.

    Attributes:
        node: the op.
        level: the longest chain of batch norms that its input depends on.
        mean: its running mean, as stored.
        var: its running variance likewise.
    """

    node: ir.Node
    level: int
    mean: NDArray[Any]
    var: NDArray[Any]


def recalibrate_onnx(
    source: Path, output: StrPath, options: RecalibrateOptions, progress: Progress
) -> RecalibrateResult:
    """See :func:`bnfold.recalibration.recalibrate`."""
    target = check_model_output(output)
    if target.exists() and source.exists() and target.samefile(source):
        raise OutputError(f"{target} is the input itself; write the recalibrated model elsewhere")
    model = load_model(source)
    if options.data is None:
        raise InputError("an ONNX file does not say what it was trained on; name the training data (--data)")
    data = Path(options.data.partition(":")[2] or options.data)
    if target.exists() and data.exists() and target.samefile(data):
        raise OutputError(f"{target} is the training data; write the recalibrated model elsewhere")
    graph = ModelGraph(model)
    targets, left = _targets(graph)
    if not targets:
        raise ModelError(_nothing_to_do(source, left))
    runtime = SessionOptions(provider=options.provider, level="disable", threads=options.threads)
    session = create_session(serialized(model), runtime)
    reader = Reader.of(session, str(source))
    train = load_samples(options.data, "train", reader.image_form())
    test = load_samples(options.data, "test", reader.image_form())
    before = _figures(session, reader, test, options)
    used = _usable(reader, train, options)
    drifts: list[Drift] = []
    levels = sorted({found.level for found in targets})
    total = len(levels) * used
    for number, level in enumerate(levels):
        chosen = [found for found in targets if found.level == level]
        names = {_probed(number): label(found.node) for number, found in enumerate(chosen)}
        probe = create_session(serialized(_probe(model, chosen)), runtime)

        def tell(done: int, number: int = number) -> None:
            progress("population statistics", number * used + done, total)

        for found, moments in zip(chosen, _moments(probe, names, reader, train, used, options, tell), strict=True):
            drifts.append(_set_statistics(graph, found, moments))
    after = _figures(create_session(serialized(model), runtime), reader, test, options)
    record = recalibration_record(options.data, used, len(drifts))
    model.metadata_props["bnfold.recalibrated"] = json.dumps(record)
    path = save_model(model, target)
    notes = (*lost_on_saving(model), *copy_sidecar(source, path))
    return RecalibrateResult(
        path=path,
        data=options.data,
        samples=used,
        skipped=len(train) - used,
        passes=len(levels),
        drifts=tuple(drifts),
        left=left,
        accuracy=_accuracy(before, after, train, test),
        notes=notes,
    )


def _targets(graph: ModelGraph) -> tuple[list[_Target], tuple[Left, ...]]:
    """The batch norms that can be recalibrated, and those that keep their statistics."""
    levels = _levels(graph.model.graph)
    targets, left = [], []
    for node in graph.nodes():
        if not is_batch_norm(node):
            continue
        mean = graph.constants.array(input_of(node, _MEAN))
        var = graph.constants.array(input_of(node, _VAR))
        if node.graph is not graph.model.graph:
            left.append(Left(label(node), "it is in the body of a loop or a branch"))
        elif node.attributes.get_int("training_mode", 0) or len(node.outputs) > 1:
            left.append(Left(label(node), "it is in training mode, and normalizes with the statistics of its batch"))
        elif node.attributes.get_int("spatial", 1) == 0:
            left.append(Left(label(node), "it has statistics of its own for each pixel (spatial=0)"))
        elif mean is None or var is None:
            left.append(Left(label(node), "its statistics are computed, or a caller may override them"))
        else:
            targets.append(_Target(node, levels[node], mean, var))
    for function in graph.model.functions.values():
        held = [node for node in function.all_nodes() if is_batch_norm(node)]
        left += [Left(label(node), f"it is inside the local function {function.name}") for node in held]
    return targets, tuple(left)


def _nothing_to_do(source: Path, left: Sequence[Left]) -> str:
    if left:
        return f"{source} holds no batch norm that can be recalibrated: {left[0].name} is left because {left[0].reason}"
    return (
        f"{source} holds no batch norm: they were folded already, or there never were any; "
        "recalibrate the file that `bnfold optimize` was given, then optimize again"
    )


def _levels(graph: ir.Graph) -> Mapping[ir.Node, int]:
    """For each node of the main graph, how many batch norms lie in a row before it at most."""
    of_value: dict[ir.Value, int] = {}
    of_node: dict[ir.Node, int] = {}
    for node in graph:
        level = max((of_value.get(value, 0) for value in _read_by(node)), default=0)
        of_node[node] = level
        for value in node.outputs:
            of_value[value] = level + is_batch_norm(node)
    return of_node


def _read_by(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads, those that its bodies take from outside included."""
    inner = (
        read
        for attribute in node.attributes.values()
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for body in ([attribute.as_graph()] if attribute.type is ir.AttributeType.GRAPH else attribute.as_graphs())
        for read in (value for member in body.all_nodes() for value in member.inputs)
    )
    yield from (value for value in (*node.inputs, *inner) if value is not None)


def _probe(model: ir.Model, chosen: Sequence[_Target]) -> ir.Model:
    """The part of the model that computes the inputs of some batch norms, which are its outputs."""
    names = [found.node.inputs[0].name for found in chosen if found.node.inputs[0] is not None]
    probe = model.clone()
    values = {value.name: value for value in probe.graph.inputs}
    values |= {value.name: value for node in probe.graph for value in node.outputs}
    outputs = []
    for number, name in enumerate(names):
        read = ir.node("Identity", [values[name]])  # an input of the model is no output, and one value not two
        read.outputs[0].name = _probed(number)
        probe.graph.append(read)
        outputs.append(read.outputs[0])
    probe.graph.outputs[:] = outputs
    common_passes.RemoveUnusedNodesPass()(probe)
    return probe


def _probed(number: int) -> str:
    """The name of an output of a probe."""
    return f"bnfold/batch_norm_input/{number}"


def _usable(reader: Reader, samples: Samples, options: RecalibrateOptions) -> int:
    """How many samples fill whole batches, where the model's batch size is fixed; all of them where it is not."""
    size = reader.batch_size(options.batch)
    used = len(samples) // size * size if isinstance(reader.shape[0], int) else len(samples)
    if not used:
        raise DataError(
            f"{options.data} holds {len(samples)} samples, fewer than the batch of {size} that the model takes; "
            "export the model with an open batch size"
        )
    return used


def _moments(
    session: Any,
    names: Mapping[str, str],
    reader: Reader,
    samples: Samples,
    used: int,
    options: RecalibrateOptions,
    tell: Callable[[int], None],
) -> list[Moments]:
    """The moments of each output of ``session`` over the samples, in the order of ``names``: output and batch norm."""
    totals: dict[str, Moments] = {}
    size = reader.batch_size(options.batch)
    for start in range(0, used, size):
        batch = reader.prepare(_part(samples, start, min(start + size, used)))
        for output, value in run_session(session, {reader.name: batch}).items():
            part = Moments.of(value).finite(names[output])
            totals[output] = totals[output].merged(part) if output in totals else part
        tell(min(start + size, used))
    return [totals[output] for output in names]


def _part(samples: Samples, start: int, stop: int) -> Samples:
    return replace(samples, names=samples.names[start:stop], values=samples.values[start:stop])


def _set_statistics(graph: ModelGraph, found: _Target, population: Moments) -> Drift:
    name = label(found.node)
    statistics = {_MEAN: population.mean, _VAR: population.var}
    for index, (stored, wish) in {_MEAN: (found.mean, "running_mean"), _VAR: (found.var, "running_var")}.items():
        with np.errstate(over="ignore"):  # what overflows is told of in the next lines
            rounded = statistics[index].astype(stored.dtype)
        if not np.isfinite(rounded.astype(np.float64)).all():
            raise DataError(
                f"the input of the batch norm {name} has a {wish.removeprefix('running_')} over the data that is not "
                f"finite as {stored.dtype}; nothing was written"
            )
        graph.set_constant(found.node, index, rounded, f"{name}.{wish}")
    eps = found.node.attributes.get_float("epsilon", 1e-5)
    return Drift.between(name, found.mean, found.var, population, eps)


def _figures(session: Any, reader: Reader, samples: Samples, options: RecalibrateOptions) -> tuple[float, float] | None:
    """Mean cross-entropy and accuracy on labelled samples; None for what is no classifier of theirs."""
    shape = session.get_outputs()[0].shape
    classes = reader.classes or samples.classes
    if samples.labels is None or shape is None or len(shape) != 2:
        return None
    labels = with_labels_of(samples, classes).labels
    assert labels is not None
    if labels.min() < 0:  # some samples of a table have none
        return None
    size = reader.batch_size(options.batch)
    logits = np.concatenate([
        reader.scores(session, reader.prepare(_part(samples, start, min(start + size, len(samples)))))
        for start in range(0, len(samples), size)
    ])  # fmt: skip
    undecided = np.flatnonzero(np.isnan(logits).any(axis=1) | np.isposinf(logits).any(axis=1))
    if len(undecided):
        raise ModelError(f"{reader.model} yields logits that are not finite for sample {samples.names[undecided[0]]}")
    if labels.max() >= logits.shape[1]:
        raise DataError(f"{options.data} has label {labels.max()}, and the model tells {logits.shape[1]} classes apart")
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    losses = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(labels)), labels]
    return float(losses.mean()), top1_accuracy(logits, labels)


def _accuracy(
    before: tuple[float, float] | None, after: tuple[float, float] | None, train: Samples, test: Samples
) -> Accuracy | None:
    if before is None or after is None:
        return None
    held_out = len(train) != len(test) or not np.array_equal(train.values, test.values)
    return Accuracy(len(test), before[1], after[1], before[0], after[0], held_out)
