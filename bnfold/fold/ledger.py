"""What became of each affine of a model while it was folded, and the report of it in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from bnfold.affine import ChannelAffine
from bnfold.fold.ort import ort_folds
from bnfold.fold.report import Folded, FoldRecord, Kept, Kind, Merged, Outcome
from bnfold.fold.sites import Site, is_batch_norm
from bnfold.graph import ModelGraph, label


@dataclass(frozen=True, eq=False)
class Identity:
    """The name under which a node goes in the report, taken before anything is renamed."""

    node: str
    output: str
    channels: int
    ort_folds: bool


@dataclass(frozen=True, eq=False)
class Fate:
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
    def of(site: Site, outcome: Outcome, linears: tuple[ir.Node, ...] = ()) -> Fate:
        """What became of a site."""
        return Fate(site.nodes, site.kind, site.affine, outcome, linears)


@dataclass(eq=False)
class Ledger:
    """What became of the affines of one model so far.

    Attributes:
        identities: of each node that the model came with.
        fates: of each affine node so far.
        heirs: for each node that the engine made, the nodes whose affine, or the rest of it, it carries.
        successors: for each linear op that was merged into another, that other.
    """

    identities: Mapping[ir.Node, Identity]
    fates: dict[ir.Node, Fate] = field(default_factory=dict)
    heirs: dict[ir.Node, tuple[ir.Node, ...]] = field(default_factory=dict)
    successors: dict[ir.Node, ir.Node] = field(default_factory=dict)

    @staticmethod
    def of(graph: ModelGraph) -> Ledger:
        """An empty ledger of a model that nothing has been done to yet."""
        return Ledger({node: _identity(node, graph) for node in graph.nodes()})

    def note(self, fate: Fate) -> None:
        """Record a fate for the nodes of a site, and for those whose heirs they are."""
        for node in fate.nodes:
            self.fates[node] = fate
            if isinstance(fate.outcome, Folded | Merged):
                for ancestor in self.heirs.get(node, ()):
                    self.fates[ancestor] = _moved_on(self.fates[ancestor], fate)

    def inherit(self, node: ir.Node, site: Site) -> None:
        """Record a node that the engine made as the heir of a site, and of those whose heirs its nodes are."""
        ancestors = (self.heirs.get(member, (member,)) for member in site.nodes)
        self.heirs[node] = tuple(dict.fromkeys(ancestor for group in ancestors for ancestor in group))

    def kept(self, site: Site) -> Kept | None:
        """Why a site stayed so far, if that was recorded of one of its nodes."""
        outcomes = (self.fates[node].outcome for node in site.nodes if node in self.fates)
        return next((outcome for outcome in outcomes if isinstance(outcome, Kept)), None)

    def records(self, errors: Mapping[ir.Node, float]) -> tuple[FoldRecord, ...]:
        """One record for each batch norm of the input, and those of other affines, in the order of the graph.

        Args:
            errors: the largest rounding error of each linear op that was written.
        """
        records = tuple(
            self._record(identity, node, fate, errors)
            for node, identity in self.identities.items()
            if (fate := self.fates.get(node)) and (is_batch_norm(node) or _leads_a_notable_affine(node, fate))
        )
        norms = sum(is_batch_norm(node) for node in self.identities)
        assert sum(r.kind is Kind.BATCH_NORM for r in records) == norms, "a batch norm without its record"
        return records

    def _record(self, identity: Identity, node: ir.Node, fate: Fate, errors: Mapping[ir.Node, float]) -> FoldRecord:
        outcome = self._settled(fate)
        if isinstance(outcome, Folded | Merged):
            error = max((errors.get(self._last(linear), 0.0) for linear in fate.linears), default=0.0)
            outcome = replace(outcome, rounding_error=error)
        return FoldRecord(
            node=identity.node,
            op="+".join(member.op_type for member in fate.nodes),
            output=identity.output,
            kind=Kind.BATCH_NORM if is_batch_norm(node) else Kind.AFFINE,
            channels=identity.channels or (fate.affine.size if fate.affine else 0),
            outcome=outcome,
            ort_folds=identity.ort_folds,
        )

    def _settled(self, fate: Fate) -> Outcome:
        """The outcome, once it is known which of the ops that absorbed the affine were merged with others."""
        outcome = fate.outcome
        if not any(linear in self.successors for linear in fate.linears):
            return outcome
        into = ", ".join(dict.fromkeys(label(self._last(linear)) for linear in fate.linears))
        through = outcome.into if isinstance(outcome, Folded) else ()
        return Merged(into, (outcome.into,) if isinstance(outcome, Merged) else through)

    def _last(self, linear: ir.Node) -> ir.Node:
        """The op into which a linear op was merged in the end; itself where it was not."""
        while linear in self.successors:
            linear = self.successors[linear]
        return linear


def _identity(node: ir.Node, graph: ModelGraph) -> Identity:
    channels = 0
    if is_batch_norm(node) and len(node.inputs) > 1 and node.inputs[1] is not None:
        shape = graph.shapes.shape(node.inputs[1])
        channels = shape[0] if shape and isinstance(shape[0], int) else 0
    output = node.outputs[0].name if node.outputs else None
    return Identity(label(node), output or "", channels, ort_folds(node, graph))


def _moved_on(before: Fate, after: Fate) -> Fate:
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


def _leads_a_notable_affine(node: ir.Node, fate: Fate) -> bool:
    """Whether a person would want to read of this affine: not of each bias and each scalar that stayed."""
    if node is not fate.nodes[0] or fate.kind is not Kind.AFFINE:
        return False
    if not isinstance(fate.outcome, Kept):
        return True
    return fate.affine is not None and fate.affine.axis is not None and fate.affine.has_scale
