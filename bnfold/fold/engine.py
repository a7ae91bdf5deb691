"""Run the planner over a model until nothing more folds, then write each changed constant once.

The order: sweep the sites from the inputs to the outputs, each backward if it can go there, else forward; sweep
again as long as something moved, since one fold can open the way for another; collapse what is left of chains into
one op; round. ``inspect`` runs the same on a copy, so that the two can never disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.affine import ChannelAffine
from bnfold.fold.linear import LINEAR_OPS, Linear, Rounded
from bnfold.fold.ort import ort_folds
from bnfold.fold.plan import Pending, Plan, plan_backward, plan_forward
from bnfold.fold.report import (
    Collapsed,
    Direction,
    Folded,
    FoldRecord,
    FoldReport,
    Kept,
    Kind,
    Outcome,
    Reason,
    Refusal,
)
from bnfold.fold.sites import Selection, Site, is_batch_norm, site_at
from bnfold.graph import ModelGraph, NewOp, attributes_of, label


@dataclass(frozen=True, eq=False)
class _Identity:
    """The name under which a node goes in the report, taken before anything is renamed."""

    node: str
    output: str
    channels: int
    ort_folds: bool
    order: int


@dataclass(eq=False)
class _Fate:
    """What became of the nodes of one site."""

    nodes: tuple[ir.Node, ...]
    kind: Kind
    affine: ChannelAffine | None
    outcome: Outcome
    linears: tuple[ir.Node, ...] = ()


@dataclass(eq=False)
class _Run:
    """The state of one run of the engine."""

    graph: ModelGraph
    selected: Selection
    pending: Pending = field(default_factory=Pending)
    fates: dict[ir.Node, _Fate] = field(default_factory=dict)
    ours: set[ir.Node] = field(default_factory=set)

    def note(self, nodes: tuple[ir.Node, ...], fate: _Fate) -> None:
        for node in nodes:
            self.fates[node] = fate


def fold(model: ir.Model, selected: Selection = lambda _node: True) -> FoldReport:
    """Fold every affine of ``model`` that algebra lets fold, in place.

    Args:
        model: a model without local functions that hold sites (inline them first).
        selected: which affine nodes may be touched.

    Returns:
        Exactly one record for each batch norm, and those of other affines.
    """
    graph = ModelGraph(model)
    nodes_before = sum(1 for _ in graph.nodes())
    identities = {
        node: _Identity(
            label(node),
            node.outputs[0].name or "",
            _channel_count(node, graph),
            ort_folds(node, graph),
            order,
        )
        for order, node in enumerate(graph.nodes())
    }
    norms = [node for node in identities if is_batch_norm(node)]
    run = _Run(graph, selected)
    while _sweep(run):
        pass
    _collapse_chains(run)
    errors = _write(run)
    records = _records(run, identities, errors)
    assert sum(r.kind is Kind.BATCH_NORM for r in records) == len(norms), "a batch norm without its record"
    return FoldReport(
        records=records,
        nodes_before=nodes_before,
        nodes_after=sum(1 for _ in graph.nodes()),
        batch_norms_after=sum(is_batch_norm(node) for node in graph.nodes()),
    )


def _channel_count(node: ir.Node, graph: ModelGraph) -> int:
    if not is_batch_norm(node) or len(node.inputs) < 2 or node.inputs[1] is None:
        return 0
    shape = graph.shapes.shape(node.inputs[1])
    return shape[0] if shape and isinstance(shape[0], int) else 0


def _sweep(run: _Run) -> bool:
    """Try every site once, inputs first; whether anything folded."""
    folded = False
    done: set[ir.Node] = set()
    for node in list(run.graph.nodes()):
        if node in done or node.graph is None:
            continue
        site = site_at(node, run.graph, run.pending.affines, run.selected)
        if isinstance(site, Refusal):
            if is_batch_norm(node):
                run.note((node,), _Fate((node,), Kind.BATCH_NORM, None, Kept(site)))
            continue
        if site is None:
            continue
        done.update(site.nodes)
        folded |= _fold_site(run, site)
    return folded


def _fold_site(run: _Run, site: Site) -> bool:
    if site.affine.is_identity and _drop_identity(run, site):
        return True
    backward = plan_backward(site, run.graph, run.pending)
    if isinstance(backward, Plan):
        _apply(run, backward)
        return True
    forward = plan_forward(site, run.graph, run.pending)
    if isinstance(forward, Plan):
        _apply(run, forward)
        return True
    run.note(site.nodes, _Fate(site.nodes, site.kind, site.affine, Kept(backward, forward)))
    return False


def _drop_identity(run: _Run, site: Site) -> bool:
    """Remove a site that changes nothing, unless it is all that tells an output from what it repeats."""
    source, output = site.source, site.output
    rename = output.is_graph_output()
    if rename and (source.producer() is None or source.is_graph_output() or source.is_initializer()):
        return False
    run.graph.bypass(site.nodes, source, output, rename=rename)
    run.note(site.nodes, _Fate(site.nodes, site.kind, site.affine, Folded(Direction.IDENTITY, (), ())))
    return True


def _apply(run: _Run, plan: Plan) -> None:
    """Carry out a plan: the one place where folding changes the graph."""
    site, graph = plan.site, run.graph
    absorbers = (*plan.linears, *plan.affines)
    outcome = Folded(
        plan.direction,
        path=tuple(label(node) for node in plan.path),
        into=tuple(label(node) for node in absorbers),
        remainder="Add" if plan.added or not plan.remainder.is_identity else None,
    )
    run.pending.linears.update(plan.linears)
    run.pending.affines.update(plan.affines)
    if plan.remainder.is_identity:
        rename = plan.direction is Direction.BACKWARD
        graph.bypass(site.nodes, site.source, site.output, rename=rename)
    else:
        add = _affine_op(run, plan.remainder, site.output)
        assert add is not None
        _remember(run, graph.replace(site.nodes, site.source, site.output, add), plan.remainder)
    for node, shift in plan.added.items():
        add = _affine_op(run, shift, node.outputs[0])
        assert add is not None
        _remember(run, graph.append(node.outputs[0], add), shift)
    run.note(site.nodes, _Fate(site.nodes, site.kind, site.affine, outcome, tuple(plan.linears)))


def _remember(run: _Run, node: ir.Node, affine: ChannelAffine) -> None:
    """A node of our own: its exact affine, so that a later fold does not start from rounded constants."""
    run.ours.add(node)
    run.pending.affines[node] = affine


def _collapse_chains(run: _Run) -> None:
    """Make one op of each chain of affines that could go nowhere."""
    for fate in dict.fromkeys(run.fates.values()):
        if not isinstance(fate.outcome, Kept) or fate.affine is None or fate.outcome.forward is None:
            continue
        site = site_at(fate.nodes[0], run.graph, run.pending.affines, run.selected)
        if not isinstance(site, Site) or len(site.nodes) < 2:
            continue
        new = _affine_op(run, site.affine, site.output)
        if new is None:
            continue
        outcome = Collapsed(
            tuple(label(node) for node in site.nodes),
            new.op_type,
            fate.outcome.backward,
            fate.outcome.forward,
        )
        kind = site.kind
        run.ours.add(run.graph.replace(site.nodes, site.source, site.output, new))
        run.note(site.nodes, _Fate(site.nodes, kind, site.affine, outcome))


def _affine_op(run: _Run, affine: ChannelAffine, like: ir.Value) -> NewOp | None:
    """The one op that computes an affine: Add, Mul, or a batch norm; None where one op cannot."""
    dtype = run.graph.shapes.dtype(like)
    rank = run.graph.shapes.rank(like)
    if dtype is None or (rank is None and affine.axis is not None):
        return None
    if not (affine.has_scale and affine.has_shift):
        op_type = "Mul" if affine.has_scale else "Add"
        vector = affine.scale if affine.has_scale else affine.shift
        constant = _broadcastable(vector, affine.axis, rank).astype(dtype.numpy())
        if not np.all(np.isfinite(constant.astype(np.float64))):
            return None
        return NewOp(op_type, (run.graph.add_constant(constant, f"{like.name}_{op_type.lower()}"),))
    return _batch_norm_op(run, affine, like, dtype)


def _batch_norm_op(run: _Run, affine: ChannelAffine, like: ir.Value, dtype: ir.DataType) -> NewOp | None:
    shape = run.graph.shapes.shape(like)
    if shape is None or len(shape) < 2 or not isinstance(shape[1], int) or affine.axis not in (1, None):
        return None
    spread = affine.spread(1, shape[1])
    arrays = _batch_norm_parameters(spread, 1e-5)
    wish = f"{like.name}_batchnorm"
    names = ("scale", "bias", "mean", "var")
    constants = tuple(
        run.graph.add_constant(array.astype(dtype.numpy()), f"{wish}_{name}")
        for name, array in zip(names, arrays, strict=True)
    )
    return NewOp("BatchNormalization", constants, {"epsilon": 1e-5})


def _batch_norm_parameters(affine: ChannelAffine, epsilon: float) -> tuple[NDArray[np.float64], ...]:
    """Scale, bias, mean and variance of the batch norm that computes ``affine``.

    The variance is not 1 − ε but 1, with its effect taken into the scale: the parameters stay what any
    runtime accepts, and nothing is lost, because the scale is computed in float64.
    """
    ones = np.ones(affine.size)
    scale = affine.scale * np.sqrt(1.0 + float(np.float32(epsilon)))
    return scale, affine.shift, np.zeros(affine.size), ones


def _broadcastable(vector: NDArray[np.float64], axis: int | None, rank: int | None) -> NDArray[np.float64]:
    """The vector in the shape that broadcasts along ``axis`` of a tensor of ``rank`` dimensions."""
    if axis is None or rank is None:
        return vector.reshape(())
    return vector.reshape(-1, *([1] * (rank - axis - 1)))


def _write(run: _Run) -> dict[ir.Node, float]:
    """Round what is pending into the graph's constants; the rounding error of each linear op."""
    made: dict[tuple[Any, ...], ir.Value] = {}
    errors = {node: _write_linear(run, node, linear, made) for node, linear in run.pending.linears.items()}
    for node, affine in run.pending.affines.items():
        if node.graph is not None:
            _write_affine(run, node, affine)
    return errors


def _write_linear(run: _Run, node: ir.Node, linear: Linear, made: dict[tuple[Any, ...], ir.Value]) -> float:
    rounded = linear.rounded()
    assert isinstance(rounded, Rounded), "a plan was accepted whose weights cannot be written"
    weight = node.inputs[1]
    assert weight is not None
    attributes = attributes_of(node)
    if rounded.bias is not None:
        # First, because an exported bias is often computed from the shape of the weight, and so shares it.
        run.graph.set_constant(node, 2, rounded.bias, _bias_name(weight.name or label(node)))
    if np.any(linear.out_scale != 1.0) or np.any(linear.in_scale != 1.0):
        # Ops that shared a weight and absorbed the same go on sharing it.
        key = (weight, linear.out_scale.tobytes(), linear.in_scale.tobytes())
        if key in made:
            run.graph.use(node, 1, made[key])
        else:
            array = run.graph.constants.array(weight)
            assert array is not None
            stored = LINEAR_OPS[node.op_type].stored(rounded.kernel, attributes, array.shape)
            made[key] = run.graph.set_constant(node, 1, stored, weight.name or label(node))
    for name in ("alpha", "beta"):
        node.attributes.pop(name, None)
    return rounded.error


def _bias_name(weight: str) -> str:
    stem, dot, last = weight.rpartition(".")
    return f"{stem}.bias" if dot and last == "weight" else f"{weight}_bias"


def _write_affine(run: _Run, node: ir.Node, affine: ChannelAffine) -> None:
    graph = run.graph
    dtype = graph.shapes.dtype(node.outputs[0])
    assert dtype is not None
    if is_batch_norm(node):
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        size = run.graph.constants.array(_input(node, 1))
        assert size is not None
        arrays = _batch_norm_parameters(affine.spread(1, size.size), epsilon)
        for index, array in enumerate(arrays, start=1):
            old = _input(node, index)
            kept_dtype = graph.shapes.dtype(old) or dtype
            graph.set_constant(node, index, array.astype(kept_dtype.numpy()), old.name or label(node))
        return
    index = 0 if graph.constants.array(_input(node, 0)) is not None else 1
    vector = affine.scale if node.op_type == "Mul" else affine.shift
    constant = _broadcastable(vector, affine.axis, graph.shapes.rank(node.outputs[0]))
    graph.set_constant(node, index, constant.astype(dtype.numpy()), _input(node, index).name or label(node))


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _records(run: _Run, identities: dict[ir.Node, _Identity], errors: dict[ir.Node, float]) -> tuple[FoldRecord, ...]:
    records: list[tuple[int, FoldRecord]] = []
    for node, fate in run.fates.items():
        leads = node is fate.nodes[0] and fate.kind is Kind.AFFINE and _worth_a_record(run, fate)
        if not (is_batch_norm(node) or leads) or node in run.ours:
            continue
        outcome = fate.outcome
        if isinstance(outcome, Folded):
            error = max((errors.get(linear, 0.0) for linear in fate.linears), default=0.0)
            outcome = replace(outcome, rounding_error=error)
        identity = identities[node]
        record = FoldRecord(
            node=identity.node,
            op="+".join(member.op_type for member in fate.nodes),
            output=identity.output,
            kind=Kind.BATCH_NORM if is_batch_norm(node) else Kind.AFFINE,
            channels=identity.channels or (fate.affine.size if fate.affine else 0),
            outcome=outcome,
            ort_folds=identity.ort_folds,
        )
        records.append((identity.order, record))
    return tuple(record for _, record in sorted(records, key=lambda pair: pair[0]))


def _worth_a_record(run: _Run, fate: _Fate) -> bool:
    """Whether a person would want to read of it: not of our own ops, nor of each bias and scalar that stayed."""
    if any(node in run.ours for node in fate.nodes):
        return False
    if not isinstance(fate.outcome, Kept):
        return True
    affine = fate.affine
    return (
        affine is not None
        and affine.axis is not None
        and affine.has_scale
        and fate.outcome.backward.reason is not Reason.NOT_SELECTED
    )
