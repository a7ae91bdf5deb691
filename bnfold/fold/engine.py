"""Run the planner over a model until nothing more folds or merges, then write each changed constant once.

The order: write out constants that tie up what they are computed from; sweep the sites from the inputs to the
outputs, each backward if it can go there, else forward; sweep again as long as something moved, since one fold can
open the way for another; collapse what is left of chains into one op; merge linear ops; all of it again as long as
anything happened, since a merge opens ways too; then fold past sums what is left, and all of it again; write; write
out what is computed of constants that are shared no longer.
``inspect`` runs the same on a copy, so that the two can never disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.fold.absorb import Pending
from bnfold.fold.affine_ops import single_op
from bnfold.fold.balance import balanced
from bnfold.fold.constant_folding import fold_constants
from bnfold.fold.fusions import part_of_fusions
from bnfold.fold.ledger import Fate, Ledger
from bnfold.fold.merge import Merge, Merger, attributes_for
from bnfold.fold.padding import exposes_pad
from bnfold.fold.plan import EXPOSING, Planner
from bnfold.fold.report import (
    Collapsed,
    Direction,
    Folded,
    FoldReport,
    Kept,
    Kind,
    Merged,
    MergeRecord,
    Reason,
    Refusal,
)
from bnfold.fold.rows import lay_out_before
from bnfold.fold.search import TOO_FAR, Plan
from bnfold.fold.sites import Selection, Site, is_batch_norm, read_affine, site_at
from bnfold.fold.tidying import take_idle_ops_away
from bnfold.fold.write import write
from bnfold.graph import ModelGraph, input_of, label

#: How many nodes of a chain are tried as a part of it: all, but in chains that nobody writes.
_LONGEST_PART = 16

#: How many ops a search crosses at first, and how many times as many when that did not suffice.
_NEAR, _FARTHER = 32, 8

#: How many ops a search past sums crosses: what it rescales on the way grows with each, and so does what may refuse.
_BALANCED = 8


@dataclass(eq=False)
class _Run:
    """The state of one run of the engine.

    Attributes:
        graph: the model.
        selected: which nodes may be touched.
        spared: which nodes must stay as they are, and go on computing what they do.
        pending: what ops have absorbed, not yet written.
        ledger: what became of each affine so far.
        merges: what was merged.
        unmerged: what could not be, as of now.
        reach: how many ops a search may cross.
        cut_short: whether a search of the present sweep wanted to cross more.
    """

    graph: ModelGraph
    selected: Selection
    spared: Selection
    ledger: Ledger
    pending: Pending = field(default_factory=Pending)
    merges: list[MergeRecord] = field(default_factory=list)
    unmerged: list[MergeRecord] = field(default_factory=list)
    reach: int = _NEAR
    cut_short: bool = False

    @property
    def planner(self) -> Planner:
        """Plans over the present state."""
        return Planner(self.graph, self.pending, self.selected, self.spared, self.reach)

    def inherit(self, node: ir.Node, site: Site, affine: ChannelAffine) -> None:
        """A node of our own: its exact affine, so that a later fold does not start from rounded constants."""
        self.ledger.inherit(node, site)
        self.pending.affines[node] = affine


def fold(
    model: ir.Model,
    selected: Selection = lambda _node: True,
    *,
    spared: Selection = lambda _node: False,
    merge: bool = True,
    tidy: bool = False,
) -> FoldReport:
    """Fold every affine of ``model`` that algebra lets fold, in place.

    Args:
        model: a model without local functions that hold sites (inline them first).
        selected: which nodes may be touched: affines, and for merges the linear ops and sums too.
        spared: which nodes must stay as they are, and go on computing what they do; none of them is selected.
        merge: whether linear ops that can be one become one.
        tidy: whether ops that compute nothing go first.

    Returns:
        Exactly one record for each batch norm, and those of other affines.
    """
    graph = ModelGraph(model, spared)
    with _names(graph):
        return _fold(graph, selected, spared, merge=merge, tidy=tidy)


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


def _fold(graph: ModelGraph, selected: Selection, spared: Selection, *, merge: bool, tidy: bool) -> FoldReport:
    ledger = Ledger.of(graph)
    graph = _prepared(graph, selected, tidy=tidy)
    fused = part_of_fusions(graph)
    run = _Run(graph, lambda node: node not in fused and selected(node), spared, ledger)
    progress = True
    while progress:
        _sweep_all(run)
        progress = _collapse_chains(run) | _lay_out_rows(run)
        if merge:
            progress |= _merge_linears(run)
        if tidy:
            progress |= take_idle_ops_away(graph, run.selected)
        progress = progress or _balance(run)
    errors = write(run.pending, graph)
    graph.constants.reconsider()
    fold_constants(graph, selected)  # a stored one that ops shared, each through a Transpose, may have one reader now
    records = ledger.records(errors)
    return FoldReport(
        records=records,
        nodes_before=len(ledger.identities),
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
        graph = ModelGraph(graph.model, spared=graph.spared)  # of which more is known now


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
            run.ledger.note(Fate((node,), Kind.BATCH_NORM, None, Kept(site)))
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
    own = tuple(node for node in site.nodes if node not in run.ledger.heirs)
    if own:
        run.ledger.note(replace(Fate.of(site, Kept(_refusal(backward), _refusal(forward))), nodes=own))
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
        run.ledger.note(Fate.of(site, Kept(alone)))
        return False
    if exposes_pad(source, output, run.graph):
        run.ledger.note(Fate.of(site, Kept(EXPOSING)))
        return False
    run.graph.bypass(site.nodes, source, output, rename=rename)
    run.ledger.note(Fate.of(site, Folded(Direction.IDENTITY, (), ())))
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
    run.ledger.note(Fate.of(site, outcome, tuple(plan.linears)))
    run.pending.linears.update(plan.linears)
    run.pending.affines.update(plan.affines)
    for (node, index), exact in plan.constants.items():
        _set_constant(run, node, index, exact)
    if remainder is None:
        graph.bypass(site.nodes, site.source, site.output, rename=plan.direction is Direction.BACKWARD)
    else:
        run.inherit(graph.replace(site.nodes, site.source, site.output, remainder), site, plan.remainder)
    for node, op in added.items():
        assert op is not None
        run.inherit(graph.append(node.outputs[0], op), site, plan.added[node])
    return True


def _set_constant(run: _Run, node: ir.Node, index: int, exact: Float64Array) -> None:
    """Round a constant of an op crossed; a later plan starts from the exact one, and rounds anew."""
    old = input_of(node, index)
    stored = run.graph.constants.array(old)
    assert stored is not None
    new = run.graph.set_constant(node, index, exact.astype(stored.dtype), old.name or label(node))
    run.pending.constants[new] = exact


def _balance(run: _Run) -> bool:
    """Fold past sums what nothing else could; whether anything folded.

    Last, because it rescales what is not the site's own: a merge may have opened a way that does not.
    """
    found = False
    for _, site in _walk(run):
        if isinstance(site, Site):
            plan = balanced(replace(run.planner, reach=_BALANCED), site)
            found |= plan is not None and _apply(run, plan)
    return found


def _collapse_chains(run: _Run) -> bool:
    """Make one op of each chain of affines that could go nowhere; whether there was one."""
    collapsed = False
    for _, site in _walk(run):
        if isinstance(site, Refusal) or len(site.nodes) < 2 or site.affine.is_identity:
            continue
        new = single_op(site.affine, site.output, run.graph)
        if new is None:
            continue
        kept = run.ledger.kept(site)
        if kept is not None and kept.forward is not None:
            names = tuple(label(member) for member in site.nodes)
            run.ledger.note(Fate.of(site, Collapsed(names, new.op_type, kept.backward, kept.forward)))
        run.inherit(run.graph.replace(site.nodes, site.source, site.output, new), site, site.affine)
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
            run.ledger.note(Fate.of(affine, Merged(label(survivor)), (survivor,)))
        run.ledger.successors[node] = survivor
        run.pending.linears.pop(node, None)
    run.pending.linears[survivor] = merge.linear
    run.merges.append(merge.record)
    graph.set_attributes(survivor, attributes_for(survivor, merge.geometry))
    merge.apply(graph)
    if added is not None:
        run.pending.affines[graph.append(output, added)] = merge.shift
    return True
