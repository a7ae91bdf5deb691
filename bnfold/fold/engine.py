"""Run the planner over a model until nothing more folds or merges, then write each changed constant once.

The order: write out constants that tie up what they are computed from; sweep the sites from the inputs to the
outputs, each backward if it can go there, else forward; sweep again as long as something moved, since one fold can
open the way for another; collapse what is left of chains into one op; merge linear ops; all of it again as long as
anything happened, since a merge opens ways too; write. ``inspect`` runs the same on a copy, so that the two can never
disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.fold.absorb import Pending
from bnfold.fold.affine_ops import single_op
from bnfold.fold.constant_folding import fold_constants
from bnfold.fold.fusions import part_of_fusions
from bnfold.fold.merge import Merge, Merger, attributes_for
from bnfold.fold.ort import ort_folds
from bnfold.fold.plan import TOO_FAR, Plan, Planner
from bnfold.fold.report import (
    Collapsed,
    Direction,
    Folded,
    FoldRecord,
    FoldReport,
    Kept,
    Kind,
    Merged,
    MergeRecord,
    Outcome,
    Reason,
    Refusal,
)
from bnfold.fold.rows import lay_out_before
from bnfold.fold.sites import Selection, Site, is_batch_norm, read_affine, site_at
from bnfold.fold.tidying import take_idle_ops_away
from bnfold.fold.write import write
from bnfold.graph import ModelGraph, input_of, label

#: How many nodes of a chain are tried as a part of it: all, but in chains that nobody writes.
_LONGEST_PART = 16


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


#: How many ops a search crosses at first, and how many times as many when that did not suffice.
_NEAR, _FARTHER = 32, 8


@dataclass(eq=False)
class _Run:
    """The state of one run of the engine.

    Attributes:
        graph: the model.
        selected: which nodes may be touched.
        pending: what ops have absorbed, not yet written.
        fates: of each affine node so far.
        heirs: for each node that the engine made, the nodes whose affine, or the rest of it, it carries.
        successors: for each linear op that was merged into another, that other.
        merges: what was merged.
        unmerged: what could not be, as of now.
        reach: how many ops a search may cross.
        cut_short: whether a search of the present sweep wanted to cross more.
    """

    graph: ModelGraph
    selected: Selection
    pending: Pending = field(default_factory=Pending)
    fates: dict[ir.Node, _Fate] = field(default_factory=dict)
    heirs: dict[ir.Node, tuple[ir.Node, ...]] = field(default_factory=dict)
    successors: dict[ir.Node, ir.Node] = field(default_factory=dict)
    merges: list[MergeRecord] = field(default_factory=list)
    unmerged: list[MergeRecord] = field(default_factory=list)
    reach: int = _NEAR
    cut_short: bool = False

    @property
    def planner(self) -> Planner:
        """Plans over the present state."""
        return Planner(self.graph, self.pending, self.selected, self.reach)

    def note(self, fate: _Fate) -> None:
        """Record a fate for the nodes of a site, and for those whose heirs they are."""
        for node in fate.nodes:
            self.fates[node] = fate
            if isinstance(fate.outcome, Folded | Merged):
                for ancestor in self.heirs.get(node, ()):
                    self.fates[ancestor] = _moved_on(self.fates[ancestor], fate)


def fold(
    model: ir.Model, selected: Selection = lambda _node: True, *, merge: bool = True, tidy: bool = False
) -> FoldReport:
    """Fold every affine of ``model`` that algebra lets fold, in place.

    Args:
        model: a model without local functions that hold sites (inline them first).
        selected: which nodes may be touched: affines, and for merges the linear ops and sums too.
        merge: whether linear ops that can be one become one.
        tidy: whether ops that compute nothing go first.

    Returns:
        Exactly one record for each batch norm, and those of other affines.
    """
    graph = ModelGraph(model)
    with _names(graph):
        return _fold(graph, selected, merge=merge, tidy=tidy)


@contextmanager
def _names(graph: ModelGraph) -> Iterator[None]:
    """Let nodes without a name go by that of their first output meanwhile, since outputs are renamed on the way."""
    nameless = {node: node.name for node in graph.nodes() if not node.name}
    for node in nameless:
        node.name = label(node)
    try:
        yield
    finally:
        for node, name in nameless.items():
            node.name = name


def _fold(graph: ModelGraph, selected: Selection, *, merge: bool, tidy: bool) -> FoldReport:
    identities = {node: _identity(node, graph) for node in graph.nodes()}
    graph = _prepared(graph, selected, tidy=tidy)
    fused = part_of_fusions(graph)
    run = _Run(graph, lambda node: node not in fused and selected(node))
    progress = True
    while progress:
        _sweep_all(run)
        progress = _collapse_chains(run) | _lay_out_rows(run)
        if merge:
            progress |= _merge_linears(run)
        if tidy:
            progress |= take_idle_ops_away(graph, run.selected)
    records = _records(run, identities, write(run.pending, graph))
    norms = sum(is_batch_norm(node) for node in identities)
    assert sum(r.kind is Kind.BATCH_NORM for r in records) == norms, "a batch norm without its record"
    return FoldReport(
        records=records,
        nodes_before=len(identities),
        nodes_after=sum(1 for _ in graph.nodes()),
        batch_norms_after=sum(is_batch_norm(node) for node in graph.nodes()),
        merges=(*run.merges, *run.unmerged),
    )


def _prepared(graph: ModelGraph, selected: Selection, *, tidy: bool) -> ModelGraph:
    """The model without ops that compute nothing, if they may go, and with its constants written out."""
    while True:
        gone = tidy and take_idle_ops_away(graph, selected)
        if not fold_constants(graph, selected) and not gone:
            return graph
        graph = ModelGraph(graph.model)  # of which more is known now


def _identity(node: ir.Node, graph: ModelGraph) -> _Identity:
    channels = 0
    if is_batch_norm(node) and len(node.inputs) > 1 and node.inputs[1] is not None:
        shape = graph.shapes.shape(node.inputs[1])
        channels = shape[0] if shape and isinstance(shape[0], int) else 0
    output = node.outputs[0].name if node.outputs else None
    return _Identity(label(node), output or "", channels, ort_folds(node, graph))


def _sweep_all(run: _Run) -> None:
    """Sweep until nothing folds: near first, and farther only as long as searches are cut short.

    A run of ops with many affines in between would be crossed from end to end for each of them. Near first, they
    gather in one, and that one goes the whole way.
    """
    run.reach = _NEAR
    while _sweep(run):
        pass
    while run.cut_short:
        run.reach *= _FARTHER
        while _sweep(run):
            pass


def _sweep(run: _Run) -> bool:
    """Try every site once, inputs first; whether anything folded."""
    folded = run.cut_short = False
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
    run.cut_short |= backward is TOO_FAR or forward is TOO_FAR
    if _fold_part(run, site):
        return True
    own = tuple(node for node in site.nodes if node not in run.heirs)
    if own:
        run.note(replace(_Fate.of(site, Kept(_refusal(backward), _refusal(forward))), nodes=own))
    return False


def _fold_part(run: _Run, site: Site) -> bool:
    """Fold a part of a chain that cannot go as a whole: as much of its beginning or end as can go.

    The beginning goes backward, the end forward; the rest is a site of its own in the next sweep.
    """
    for count in range(min(len(site.nodes) - 1, _LONGEST_PART), 0, -1):
        for first, search in ((0, run.planner.backward), (len(site.nodes) - count, run.planner.forward)):
            part = site_at(site.nodes[first], run.graph, run.pending.affines, run.selected, count)
            if isinstance(part, Site) and not part.affine.is_identity:
                plan = search(part)
                run.cut_short |= plan is TOO_FAR
                if isinstance(plan, Plan) and _apply(run, plan):
                    return True
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
        into=(
            *(label(node) for node in (*plan.linears, *plan.affines)),
            *(str(input_of(node, index).name) for node, index in plan.constants),
        ),
        remainder="Add" if remainder or added else None,
    )
    run.note(_Fate.of(site, outcome, tuple(plan.linears)))
    run.pending.linears.update(plan.linears)
    run.pending.affines.update(plan.affines)
    for (node, index), exact in plan.constants.items():
        _set_constant(run, node, index, exact)
    if remainder is None:
        graph.bypass(site.nodes, site.source, site.output, rename=plan.direction is Direction.BACKWARD)
    else:
        _inherit(run, graph.replace(site.nodes, site.source, site.output, remainder), site, plan.remainder)
    for node, op in added.items():
        assert op is not None
        _inherit(run, graph.append(node.outputs[0], op), site, plan.added[node])
    return True


def _set_constant(run: _Run, node: ir.Node, index: int, exact: Float64Array) -> None:
    """Round a constant of an op crossed; a later plan starts from the exact one, and rounds anew."""
    old = input_of(node, index)
    stored = run.graph.constants.array(old)
    assert stored is not None
    new = run.graph.set_constant(node, index, exact.astype(stored.dtype), old.name or label(node))
    run.pending.constants[new] = exact


def _inherit(run: _Run, node: ir.Node, site: Site, affine: ChannelAffine) -> None:
    """A node of our own: its exact affine, so that a later fold does not start from rounded constants."""
    ancestors = (run.heirs.get(member, (member,)) for member in site.nodes)
    run.heirs[node] = tuple(dict.fromkeys(ancestor for group in ancestors for ancestor in group))
    run.pending.affines[node] = affine


def _moved_on(before: _Fate, after: _Fate) -> _Fate:
    """The fate of an affine whose rest, which an op of our own carried, has folded as well."""
    if not (isinstance(before.outcome, Folded) and isinstance(after.outcome, Folded)):
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


def _lay_out_rows(run: _Run) -> bool:
    """Make room for the shifts that wait behind a product and a Reshape; whether there was one."""
    found = False
    for _, site in _walk(run):
        found |= isinstance(site, Site) and lay_out_before(site, run.graph, run.selected)
    return found


def _merge_linears(run: _Run) -> bool:
    """Make one op of linear ops wherever that saves work; whether there was such a place."""
    merger = Merger(run.graph, run.pending, run.selected)
    run.unmerged.clear()
    merged = False
    for found in (*_carried_out(run, merger.consecutive()), *_carried_out(run, merger.parallel())):
        merged |= found
    return merged


def _carried_out(run: _Run, found: Iterator[Merge | MergeRecord]) -> Iterator[bool]:
    """Carry out merges one by one, since each changes what the next one finds."""
    for merge in found:
        if isinstance(merge, Merge):
            yield _merge(run, merge)
        else:
            run.unmerged.append(merge)
            yield False


def _merge(run: _Run, merge: Merge) -> bool:
    """Carry out a merge, the one place where merging changes the graph; False, and no change, if it cannot."""
    graph, survivor = run.graph, merge.survivor
    output = survivor.outputs[0]
    added = None
    if not merge.shift.is_identity:
        added = single_op(merge.shift, output, graph)
        if added is None:
            return False
    for node in (*merge.gone, *merge.tail):
        affine = read_affine(node, graph, run.pending.affines)
        if isinstance(affine, Site):
            run.note(_Fate.of(affine, Merged(label(survivor)), (survivor,)))
        run.successors[node] = survivor
        run.pending.linears.pop(node, None)
    run.pending.linears[survivor] = merge.linear
    run.merges.append(merge.record)
    graph.set_attributes(survivor, attributes_for(survivor, merge.geometry))
    merge.apply(graph)
    if added is not None:
        run.pending.affines[graph.append(output, added)] = merge.shift
    return True


def _records(run: _Run, identities: dict[ir.Node, _Identity], errors: dict[ir.Node, float]) -> tuple[FoldRecord, ...]:
    """One record for each batch norm of the input, and those of other affines, in the order of the graph."""
    records: list[FoldRecord] = []
    for node, identity in identities.items():
        fate = run.fates.get(node)
        if fate is None or not (is_batch_norm(node) or _leads_a_notable_affine(node, fate)):
            continue
        outcome = _settled(run, fate)
        if isinstance(outcome, Folded | Merged):
            error = max((errors.get(_last(run, linear), 0.0) for linear in fate.linears), default=0.0)
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


def _last(run: _Run, linear: ir.Node) -> ir.Node:
    """The op into which a linear op was merged in the end; itself where it was not."""
    while linear in run.successors:
        linear = run.successors[linear]
    return linear


def _settled(run: _Run, fate: _Fate) -> Outcome:
    """The outcome, once it is known which of the ops that absorbed the affine were merged with others."""
    outcome = fate.outcome
    if not any(linear in run.successors for linear in fate.linears):
        return outcome
    into = ", ".join(dict.fromkeys(label(_last(run, linear)) for linear in fate.linears))
    through = outcome.into if isinstance(outcome, Folded) else (outcome.into,) if isinstance(outcome, Merged) else ()
    return Merged(into, through)


def _leads_a_notable_affine(node: ir.Node, fate: _Fate) -> bool:
    """Whether a person would want to read of this affine: not of each bias and each scalar that stayed."""
    if node is not fate.nodes[0] or fate.kind is not Kind.AFFINE:
        return False
    if not isinstance(fate.outcome, Kept):
        return True
    return fate.affine is not None and fate.affine.axis is not None and fate.affine.has_scale
