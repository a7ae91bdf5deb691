"""Run the planner over a model until nothing more folds, then write each changed constant once.

The order: sweep the sites from the inputs to the outputs, each backward if it can go there, else forward; sweep again
as long as something moved, since one fold can open the way for another; collapse what is left of chains into one op;
write. ``inspect`` runs the same on a copy, so that the two can never disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from bnfold.affine import ChannelAffine
from bnfold.fold.absorb import Pending, has_runtime_bias
from bnfold.fold.affine_ops import rewrite, single_op
from bnfold.fold.linear import LINEAR_OPS, Linear
from bnfold.fold.ort import ort_folds
from bnfold.fold.plan import Plan, Planner
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
from bnfold.graph import ModelGraph, attributes_of, label


@dataclass(frozen=True, eq=False)
class _Identity:
    """The name under which a node goes in the report, taken before anything is renamed."""

    node: str
    output: str
    channels: int
    ort_folds: bool


@dataclass(frozen=True, eq=False)
class _Fate:
    """What became of the nodes of one site.

    Attributes:
        nodes: the site's nodes.
        kind: of the site.
        affine: of the site; None where a batch norm was no site.
        outcome: what the report says.
        linears: the linear ops that absorbed it, for their rounding error.
    """

    nodes: tuple[ir.Node, ...]
    kind: Kind
    affine: ChannelAffine | None
    outcome: Outcome
    linears: tuple[ir.Node, ...] = ()

    @staticmethod
    def of(site: Site, outcome: Outcome, linears: tuple[ir.Node, ...] = ()) -> _Fate:
        return _Fate(site.nodes, site.kind, site.affine, outcome, linears)


@dataclass(eq=False)
class _Run:
    """The state of one run of the engine.

    Attributes:
        graph: the model.
        selected: which nodes may be touched.
        pending: what ops have absorbed, not yet written.
        fates: of each affine node so far.
        heirs: for each node that the engine made, the nodes whose affine, or the rest of it, it carries.
    """

    graph: ModelGraph
    selected: Selection
    pending: Pending = field(default_factory=Pending)
    fates: dict[ir.Node, _Fate] = field(default_factory=dict)
    heirs: dict[ir.Node, tuple[ir.Node, ...]] = field(default_factory=dict)

    @property
    def planner(self) -> Planner:
        """Plans over the present state."""
        return Planner(self.graph, self.pending, self.selected)

    def note(self, fate: _Fate) -> None:
        """Record a fate for the nodes of a site, and for those whose heirs they are."""
        for node in fate.nodes:
            self.fates[node] = fate
            if isinstance(fate.outcome, Folded):
                for ancestor in self.heirs.get(node, ()):
                    self.fates[ancestor] = _moved_on(self.fates[ancestor], fate)


def fold(model: ir.Model, selected: Selection = lambda _node: True) -> FoldReport:
    """Fold every affine of ``model`` that algebra lets fold, in place.

    Args:
        model: a model without local functions that hold sites (inline them first).
        selected: which affine nodes may be touched.

    Returns:
        Exactly one record for each batch norm, and those of other affines.
    """
    graph = ModelGraph(model)
    identities = {node: _identity(node, graph) for node in graph.nodes()}
    run = _Run(graph, selected)
    progress = True
    while progress:
        while _sweep(run):
            pass
        progress = _collapse_chains(run)
    records = _records(run, identities, _write(run))
    norms = sum(is_batch_norm(node) for node in identities)
    assert sum(r.kind is Kind.BATCH_NORM for r in records) == norms, "a batch norm without its record"
    return FoldReport(
        records=records,
        nodes_before=len(identities),
        nodes_after=sum(1 for _ in graph.nodes()),
        batch_norms_after=sum(is_batch_norm(node) for node in graph.nodes()),
    )


def _identity(node: ir.Node, graph: ModelGraph) -> _Identity:
    channels = 0
    if is_batch_norm(node) and len(node.inputs) > 1 and node.inputs[1] is not None:
        shape = graph.shapes.shape(node.inputs[1])
        channels = shape[0] if shape and isinstance(shape[0], int) else 0
    output = node.outputs[0].name if node.outputs else None
    return _Identity(label(node), output or "", channels, ort_folds(node, graph))


def _sweep(run: _Run) -> bool:
    """Try every site once, inputs first; whether anything folded."""
    folded = False
    for node, site in _walk(run):
        if isinstance(site, Site):
            folded |= _fold_site(run, site)
        elif is_batch_norm(node):
            run.note(_Fate((node,), Kind.BATCH_NORM, None, Kept(site)))
    return folded


def _walk(run: _Run) -> Iterator[tuple[ir.Node, Site | Refusal]]:
    """Each site, and each node that is none for a reason, inputs first; the graph may be edited meanwhile."""
    done: set[ir.Node] = set()
    for node in list(run.graph.nodes()):
        if node in done or node.graph is None:
            continue
        site = site_at(node, run.graph, run.pending.affines, run.selected)
        if isinstance(site, Site):
            done.update(site.nodes)
        if site is not None:
            yield node, site


def _fold_site(run: _Run, site: Site) -> bool:
    if site.affine.is_identity:
        return _drop_identity(run, site)
    backward = run.planner.backward(site)
    if isinstance(backward, Plan) and _apply(run, backward):
        return True
    forward = run.planner.forward(site)
    if isinstance(forward, Plan) and _apply(run, forward):
        return True
    if not any(node in run.heirs for node in site.nodes):
        run.note(_Fate.of(site, Kept(_refusal(backward), _refusal(forward))))
    return False


def _refusal(plan: Plan | Refusal) -> Refusal:
    if isinstance(plan, Refusal):
        return plan
    return Refusal(Reason.OVERFLOW, "what would be left of it cannot be written")


def _drop_identity(run: _Run, site: Site) -> bool:
    """Remove a site that changes nothing, unless it is all that tells an output from what it repeats."""
    source, output = site.source, site.output
    rename = output.is_graph_output()
    same_scope = source.producer() is not None and source.graph is output.graph
    if rename and (not same_scope or source.is_graph_output()):
        alone = Refusal(Reason.GRAPH_OUTPUT, f"it changes nothing, and gives {source.name} its name as an output")
        run.note(_Fate.of(site, Kept(alone)))
        return False
    run.graph.bypass(site.nodes, source, output, rename=rename)
    run.note(_Fate.of(site, Folded(Direction.IDENTITY, (), ())))
    return True


def _apply(run: _Run, plan: Plan) -> bool:
    """Carry out a plan, the one place where folding changes the graph; False, and no change, if it cannot."""
    site, graph = plan.site, run.graph
    remainder = None
    if not plan.remainder.is_identity:
        remainder = single_op(plan.remainder, site.output, graph)
        if remainder is None:
            return False
    added = {node: single_op(shift, node.outputs[0], graph) for node, shift in plan.added.items()}
    if any(op is None for op in added.values()):
        for constant in (c for op in added.values() if op is not None for c in op.constants):
            graph.release(constant)
        return False
    outcome = Folded(
        plan.direction,
        path=tuple(label(node) for node in plan.path),
        into=tuple(label(node) for node in (*plan.linears, *plan.affines)),
        remainder="Add" if remainder or added else None,
    )
    run.note(_Fate.of(site, outcome, tuple(plan.linears)))
    run.pending.linears.update(plan.linears)
    run.pending.affines.update(plan.affines)
    if remainder is None:
        graph.bypass(site.nodes, site.source, site.output, rename=plan.direction is Direction.BACKWARD)
    else:
        _inherit(run, graph.replace(site.nodes, site.source, site.output, remainder), site, plan.remainder)
    for node, op in added.items():
        assert op is not None
        _inherit(run, graph.append(node.outputs[0], op), site, plan.added[node])
    return True


def _inherit(run: _Run, node: ir.Node, site: Site, affine: ChannelAffine) -> None:
    """A node of our own: its exact affine, so that a later fold does not start from rounded constants."""
    ancestors = (run.heirs.get(member, (member,)) for member in site.nodes)
    run.heirs[node] = tuple(dict.fromkeys(ancestor for group in ancestors for ancestor in group))
    run.pending.affines[node] = affine


def _moved_on(before: _Fate, after: _Fate) -> _Fate:
    """The fate of an affine whose rest, which an op of our own carried, has folded as well."""
    assert isinstance(after.outcome, Folded)
    if not isinstance(before.outcome, Folded):
        return replace(before, outcome=after.outcome, linears=after.linears)
    outcome = replace(
        before.outcome,
        path=before.outcome.path + after.outcome.path,
        into=before.outcome.into + after.outcome.into,
        remainder=after.outcome.remainder,
    )
    return replace(before, outcome=outcome, linears=before.linears + after.linears)


def _collapse_chains(run: _Run) -> bool:
    """Make one op of each chain of affines that could go nowhere; whether there was one."""
    collapsed = False
    for _, site in _walk(run):
        if isinstance(site, Refusal) or len(site.nodes) < 2:
            continue
        new = single_op(site.affine, site.output, run.graph)
        if new is None:
            continue
        kept = next((f.outcome for n in site.nodes if (f := run.fates.get(n)) and isinstance(f.outcome, Kept)), None)
        if kept is not None and kept.forward is not None:
            names = tuple(label(member) for member in site.nodes)
            run.note(_Fate.of(site, Collapsed(names, new.op_type, kept.backward, kept.forward)))
        _inherit(run, run.graph.replace(site.nodes, site.source, site.output, new), site, site.affine)
        collapsed = True
    return collapsed


def _write(run: _Run) -> dict[ir.Node, float]:
    """Round what is pending into the graph's constants; the rounding error of each linear op."""
    shared: dict[_WeightKey, ir.Value] = {}
    errors = {node: _write_linear(run.graph, node, linear, shared) for node, linear in run.pending.linears.items()}
    for node, affine in run.pending.affines.items():
        if node.graph is not None:
            rewrite(node, affine, run.graph)
    return errors


#: A stored weight, how an op reads it, and what the op multiplies its channels with.
_WeightKey = tuple[ir.Value, tuple[object, ...], bytes, bytes]


def _write_linear(graph: ModelGraph, node: ir.Node, linear: Linear, shared: dict[_WeightKey, ir.Value]) -> float:
    rounded = linear.rounded()
    weight = node.inputs[1]
    assert weight is not None
    attributes = attributes_of(node)
    name = weight.name or label(node)
    if rounded.bias is not None:
        # First, because an exported bias is often computed from the shape of the weight, and so shares it.
        graph.set_constant(node, 2, rounded.bias, _bias_name(name))
    if np.any(linear.out_scale != 1.0) or np.any(linear.in_scale != 1.0):
        # Ops that shared a weight, read it alike and absorbed the same go on sharing it.
        layout = (node.op_type, attributes.get("group", 1), attributes.get("transB", 0))
        key = (weight, layout, linear.out_scale.tobytes(), linear.in_scale.tobytes())
        if key in shared:
            graph.use(node, 1, shared[key])
        else:
            array = graph.constants.array(weight)
            assert array is not None
            stored = LINEAR_OPS[node.op_type].stored(rounded.kernel, attributes, array.shape)
            shared[key] = graph.set_constant(node, 1, stored, name)
    node.attributes.pop("alpha", None)  # it is in the weight now, and beta in the bias
    if not has_runtime_bias(node, graph):
        node.attributes.pop("beta", None)
    return rounded.error


def _bias_name(weight: str) -> str:
    stem, dot, last = weight.rpartition(".")
    return f"{stem}.bias" if dot and last == "weight" else f"{weight}_bias"


def _records(run: _Run, identities: dict[ir.Node, _Identity], errors: dict[ir.Node, float]) -> tuple[FoldRecord, ...]:
    """One record for each batch norm of the input, and those of other affines, in the order of the graph."""
    records: list[FoldRecord] = []
    for node, identity in identities.items():
        fate = run.fates.get(node)
        if fate is None or not (is_batch_norm(node) or _leads_a_notable_affine(node, fate)):
            continue
        outcome = fate.outcome
        if isinstance(outcome, Folded):
            error = max((errors.get(linear, 0.0) for linear in fate.linears), default=0.0)
            outcome = replace(outcome, rounding_error=error)
        record = FoldRecord(
            node=identity.node,
            op="+".join(member.op_type for member in fate.nodes),
            output=identity.output,
            kind=Kind.BATCH_NORM if is_batch_norm(node) else Kind.AFFINE,
            channels=identity.channels or (fate.affine.size if fate.affine else 0),
            outcome=outcome,
            ort_folds=identity.ort_folds,
        )
        records.append(record)
    return tuple(records)


def _leads_a_notable_affine(node: ir.Node, fate: _Fate) -> bool:
    """Whether a person would want to read of this affine: not of each bias and each scalar that stayed."""
    if node is not fate.nodes[0] or fate.kind is not Kind.AFFINE:
        return False
    if not isinstance(fate.outcome, Kept):
        return True
    return fate.affine is not None and fate.affine.axis is not None and fate.affine.has_scale
