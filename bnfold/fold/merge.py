"""Linear ops that become one: branches of one value that meet in a sum, and ops in a row.

Structural re-parameterization, on a graph (Ding et al., *RepVGG*, 2021; Vasu et al., *MobileOne*, 2022)::

    Σᵢ ± convᵢ(x)  =  conv(x),   W = Σᵢ ± Wᵢ with the taps of each at their places,   b = Σᵢ ± bᵢ
    conv₂(conv₁(x))  =  conv(x),   W = W₂ · W₁ over the channels in between,   b = b₂ + Σ W₂ · b₁

where an identity, an affine and an average pool count as convolutions too. Two things are asked of every merge: it
must not need more multiply-adds than what it replaces, nor more weights, unless it saves as large a share of the
multiply-adds; and nobody else may see what goes away.

A merge is planned as a value by :func:`plan_merges`, which reads only; :mod:`bnfold.fold.engine` carries it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.affine import ChannelAffine
from bnfold.fold.absorb import Pending, bias_index, read_linear, takes_bias
from bnfold.fold.branches import Chain, Frame, Stage, chains_to, stage_before
from bnfold.fold.convolution import Convolution, Geometry, side_by_side, weighted_sum
from bnfold.fold.linear import Linear
from bnfold.fold.linear_ops import LINEAR_OPS
from bnfold.fold.report import Arrangement, MergeRecord, Reason, Refusal
from bnfold.fold.sites import Selection, Site, read_affine
from bnfold.fold.sums import Leaf, SumTree, sum_trees
from bnfold.fold.write import weight_key
from bnfold.graph import ModelGraph, input_of, label


@dataclass(frozen=True, eq=False)
class Merge:
    """Linear ops that can become one, all worked out.

    Attributes:
        record: what the report says.
        survivor: the op that stays, and takes the others in.
        source: what it reads from then on.
        linear: its new numbers.
        geometry: its new attributes.
        shift: what an Add behind it must add, where the op has no bias; else the identity.
        gone: the ops that go, in the order of flow; the tail left out.
        tail: the ops between the survivor and what it now yields by itself; they go too.
        tree: the sum in which the branches meet; None for ops in a row.
        dropped: the branches that are left out of the sum.
    """

    record: MergeRecord
    survivor: ir.Node
    source: ir.Value
    linear: Linear
    geometry: Geometry
    shift: ChannelAffine
    gone: tuple[ir.Node, ...]
    tail: tuple[ir.Node, ...] = ()
    tree: SumTree | None = None
    dropped: tuple[Leaf, ...] = ()

    def apply(self, graph: ModelGraph) -> None:
        """Take out of the graph what goes, and let the survivor stand for all."""
        graph.use(self.survivor, 0, self.source)
        if self.tree is not None:
            self.tree.prune(self.dropped, graph)
        graph.remove(self.gone)
        if self.tail:
            value, result = self.survivor.outputs[0], self.tail[-1].outputs[0]
            value.type, value.shape = result.type, result.shape
            graph.shapes.copy(result, value)
            graph.bypass(self.tail, value, result, rename=True)


@dataclass(frozen=True, eq=False)
class _Branch:
    """One summand that can be written as a convolution of the common source."""

    leaf: Leaf
    chain: Chain
    geometry: Geometry
    work: int

    @property
    def survivor(self) -> ir.Node | None:
        """The op that may take in the others: the branch's last that has weights, if only affines follow it."""
        last = next((stage for stage in reversed(self.chain.stages) if stage.affine is None), None)
        return last.node if last is not None and last.is_linear else None

    @property
    def tail(self) -> tuple[ir.Node, ...]:
        """The affines behind the survivor."""
        nodes = self.chain.nodes
        return nodes[nodes.index(self.survivor) + 1 :] if self.survivor is not None else ()


@dataclass(eq=False)
class _Cluster:
    """Branches that are cheaper as one.

    Attributes:
        branches: the first one leads.
        geometries: theirs, each once: a thousand alike are asked about as one.
        work: of all together.
    """

    branches: list[_Branch]
    geometries: set[Geometry]
    work: int

    @staticmethod
    def led_by(branch: _Branch) -> _Cluster:
        return _Cluster([branch], {branch.geometry}, branch.work)

    def refusal(self, branch: _Branch, lengths: Sequence[int | None]) -> Refusal | None:
        """Why a branch had better not join, if so."""
        common = side_by_side([*self.geometries, branch.geometry], lengths)
        if isinstance(common, Refusal):
            return common
        work = self.work + branch.work
        if common.weights > work:
            return Refusal(Reason.COST, f"one kernel would take {common.weights} multiply-adds instead of {work}")
        return None

    def add(self, branch: _Branch) -> None:
        self.branches.append(branch)
        self.geometries.add(branch.geometry)
        self.work += branch.work


@dataclass(frozen=True, eq=False)
class Merger:
    """Plans merges in one model.

    Attributes:
        graph: the model.
        pending: what ops have absorbed so far.
        selected: which nodes may be touched.
    """

    graph: ModelGraph
    pending: Pending
    selected: Selection

    def parallel(self) -> Iterator[Merge | MergeRecord]:
        """At most one merge of branches for each sum, or else why there is none.

        A merge must be carried out before the next one is asked for.
        """
        for tree in sum_trees(self.graph, self._is_sum):
            yield from self._of_tree(tree)

    def consecutive(self) -> Iterator[Merge | MergeRecord]:
        """Merges of ops in a row, and why there are none, in the same way."""
        for node in list(self.graph.nodes()):
            if node.graph is not None and node.op_type in LINEAR_OPS and self.selected(node):
                found = self._with_op_before(node)
                if found is not None:
                    yield found

    # Branches

    def _is_sum(self, node: ir.Node) -> bool:
        if not self.selected(node) or self.graph.opset < 7:
            return False
        return not isinstance(read_affine(node, self.graph, self.pending.affines), Site)

    def _of_tree(self, tree: SumTree) -> list[Merge] | list[MergeRecord]:
        refused: list[MergeRecord] = []
        for source, frame, members in self._groups(tree):
            branches, without_form = self._branches(members, frame, source)
            refused += without_form
            for cluster in self._clusters(branches, frame, source, tree):
                merge = cluster if isinstance(cluster, MergeRecord) else self._merge_of(cluster, frame, source, tree)
                if isinstance(merge, Merge):
                    return [merge]
                refused.append(merge)
        return refused

    def _groups(self, tree: SumTree) -> list[tuple[ir.Value, Frame, list[tuple[Leaf, Chain]]]]:
        """The values of which several summands are linear functions, those of most summands first."""
        by_source: dict[ir.Value, list[tuple[Leaf, Chain]]] = {}
        for leaf in tree.leaves:
            if self.graph.constants.array(leaf.value) is None:
                for chain in self._chains_to(leaf.value, tree.root):
                    by_source.setdefault(chain.source, []).append((leaf, chain))
        groups = []
        for source, members in by_source.items():
            frame = next((f for _, chain in members if isinstance(f := chain.frame(), Frame) and chain.linears), None)
            if len(members) > 1 and frame is not None:
                groups.append((source, frame, members))
        return sorted(groups, key=lambda group: (-len(group[2]), sum(len(chain.stages) for _, chain in group[2])))

    def _chains_to(self, value: ir.Value, reader: ir.Node) -> Iterator[Chain]:
        return chains_to(value, reader.graph, self.graph, self.pending, self.selected)

    def _branches(
        self, members: Sequence[tuple[Leaf, Chain]], frame: Frame, source: ir.Value
    ) -> tuple[list[_Branch], list[MergeRecord]]:
        shape = self.graph.shapes.shape(source)
        channels = shape[frame.axis] if shape is not None and frame.axis < len(shape) else None
        if not isinstance(channels, int):
            return [], []
        branches: list[_Branch] = []
        refused: list[MergeRecord] = []
        for leaf, chain in members:
            own = chain.frame()
            geometry = own if isinstance(own, Refusal) else chain.geometry(frame, channels)
            if own is not None and own != frame and not isinstance(own, Refusal):
                geometry = Refusal(Reason.AXIS_MISMATCH, "the branches do not act on the same axis")
            if isinstance(geometry, Refusal):
                refused.append(_record(Arrangement.PARALLEL, chain.nodes, leaf.value, geometry))
            else:
                branches.append(_Branch(leaf, chain, geometry, chain.work(frame, channels)))
        return branches, refused

    def _clusters(
        self, branches: list[_Branch], frame: Frame, source: ir.Value, tree: SumTree
    ) -> Iterator[list[_Branch] | MergeRecord]:
        """Branches that are cheaper as one, each led by one that can take the others in; the largest lead."""
        lengths = self._lengths(source, frame)
        leaders = sorted((b for b in branches if b.survivor is not None), key=self._seniority)
        others = [b for b in branches if b.survivor is None]
        clusters: list[_Cluster] = []
        for branch in (*leaders, *others):
            refusal: Refusal | None = None
            for cluster in clusters:
                refusal = cluster.refusal(branch, lengths)
                if refusal is None:
                    cluster.add(branch)
                    break
            else:
                if branch.survivor is not None:
                    clusters.append(_Cluster.led_by(branch))
                if refusal is not None:
                    parts = [*clusters[0].branches, branch]
                    yield self._parallel_record(parts, tree, refusal, lengths)
        yield from (cluster.branches for cluster in clusters if len(cluster.branches) > 1)

    def _seniority(self, branch: _Branch) -> tuple[bool, int]:
        """Who leads: ops that take a bias before those that take none, then larger kernels before smaller ones."""
        assert branch.survivor is not None
        return not takes_bias(branch.survivor, self.graph), -branch.geometry.weights

    def _too_large(self, common: Geometry, work: int, stages: Sequence[Stage]) -> Refusal | None:
        """Why one kernel does not pay: it may hold more weights only where it saves as large a share of the work."""
        stored = self._weights_freed(stages)
        if common.weights > work:
            return Refusal(Reason.COST, f"one kernel would take {common.weights} multiply-adds instead of {work}")
        if common.weights**2 > work * stored:
            return Refusal(Reason.COST, f"one kernel would hold {common.weights} weights instead of {stored}")
        return None

    def _weights_freed(self, stages: Sequence[Stage]) -> int:
        """How many weights only these ops will use."""
        nodes = {stage.node for stage in stages}
        total = 0
        counted: set[ir.Node] = set()
        for stage in stages:
            weight = input_of(stage.node, 1)
            users = (use for use in weight.uses() if use.node in counted or use.node not in nodes)
            kept = any(self._go_on_sharing(stage.node, use.node, use.idx) for use in users)
            if not kept and isinstance(stage.geometry, Geometry):
                total += stage.geometry.weights
            counted.add(stage.node)
        return total

    def _go_on_sharing(self, node: ir.Node, other: ir.Node, index: int) -> bool:
        """Whether another op will still read the weight of ``node`` once what both have absorbed is written."""
        if node is other:
            return True
        own, others = (self.pending.linears.get(op) for op in (node, other))
        as_new_bias = index == bias_index(other) and others is not None and others.bias is not None
        if as_new_bias or other in self.pending.affines:
            return False  # what it reads the weight as will be a constant of its own
        own_key = weight_key(node, own) if own is not None and own.changed else None
        others_key = weight_key(other, others) if others is not None and others.changed else None
        return own_key == others_key

    def _lengths(self, source: ir.Value, frame: Frame) -> list[int | None]:
        shape = self.graph.shapes.shape(source) or ()
        spatial = shape[frame.axis + 1 : frame.axis + 1 + frame.spatial]
        return (
            [dim if isinstance(dim, int) else None for dim in spatial]
            if len(spatial) == frame.spatial
            else [None] * frame.spatial
        )

    def _merge_of(
        self, cluster: Sequence[_Branch], frame: Frame, source: ir.Value, tree: SumTree
    ) -> Merge | MergeRecord:
        lengths = self._lengths(source, frame)
        geometry = side_by_side([branch.geometry for branch in cluster], lengths)
        assert isinstance(geometry, Geometry)
        survivor = cluster[0].survivor
        assert survivor is not None
        dropped = tuple(branch.leaf for branch in cluster[1:])

        def refused(refusal: Refusal) -> MergeRecord:
            return self._parallel_record(cluster, tree, refusal, lengths)

        stages = [stage for branch in cluster for stage in branch.chain.linears]
        too_large = self._too_large(geometry, sum(branch.work for branch in cluster), stages)
        if too_large is not None:
            return refused(too_large)
        sign = tree.sign_without(cluster[0].leaf, dropped, self.graph)
        if isinstance(sign, Refusal):
            return refused(sign)
        parts: list[tuple[float, Convolution]] = []
        for branch in cluster:
            numbers = branch.chain.convolution(frame, geometry.in_channels, self.graph, self.pending)
            if isinstance(numbers, Refusal):
                return refused(numbers)
            parts.append((sign * branch.leaf.sign, numbers))
        linear = self._linear(survivor, weighted_sum(parts, geometry), frame)
        if isinstance(linear, Refusal):
            return refused(linear)
        tail = cluster[0].tail
        gone = [node for branch in cluster for node in branch.chain.nodes if node not in (survivor, *tail)]
        record = self._parallel_record(cluster, tree, None, lengths)
        return Merge(record, survivor, source, *linear, tuple(gone), tail, tree, dropped)

    def _parallel_record(
        self, parts: Sequence[_Branch], tree: SumTree, refusal: Refusal | None, lengths: Sequence[int | None]
    ) -> MergeRecord:
        common = side_by_side([part.geometry for part in parts], lengths)
        survivor = parts[0].survivor
        return MergeRecord(
            arrangement=Arrangement.PARALLEL,
            parts=len(parts),
            nodes=tuple(label(node) for part in parts for node in part.chain.nodes),
            output=tree.root.outputs[0].name or "",
            into=label(survivor) if survivor is not None and refusal is None else None,
            refusal=refusal,
            work_before=sum(part.work for part in parts),
            work_after=common.weights if isinstance(common, Geometry) else 0,
        )

    # Ops in a row

    def _with_op_before(self, second: ir.Node) -> Merge | MergeRecord | None:
        """The merge of a linear op with the one before it, with nothing but affines in between."""
        output = second.outputs[0]
        last = stage_before(output, self.graph, self.pending, self.selected)
        if last is None or not last.is_linear or last.frame is None:
            return None
        chains = self._chains_to(last.source, second)
        chain = next((c for c in chains if c.stages and c.stages[0].affine is None), None)
        if chain is None or not chain.stages[0].is_linear:
            return None
        first, whole = chain.stages[0], Chain(chain.source, (*chain.stages, last))
        frame = whole.frame()
        channels = first.geometry.in_channels if isinstance(first.geometry, Geometry) else 0
        geometry = frame if isinstance(frame, Refusal) else whole.geometry(last.frame, channels)
        if isinstance(geometry, Refusal):
            return _record(Arrangement.CONSECUTIVE, whole.nodes, output, geometry)
        work = whole.work(last.frame, channels)
        record = replace(
            _record(Arrangement.CONSECUTIVE, whole.nodes, output, None), work_before=work, work_after=geometry.weights
        )
        too_large = self._too_large(geometry, work, [first, last])
        if too_large is not None:
            return replace(record, refusal=too_large)
        numbers = whole.convolution(last.frame, channels, self.graph, self.pending)
        # A transposed convolution stays one; else the second op does, whose output has the shape of the result.
        survivor = first.node if geometry.transposed and first.node.op_type == "ConvTranspose" else second
        linear = numbers if isinstance(numbers, Refusal) else self._linear(survivor, numbers, last.frame)
        if isinstance(linear, Refusal):
            return replace(record, refusal=linear)
        place = whole.nodes.index(survivor)
        gone, tail = whole.nodes[:place], whole.nodes[place + 1 :]
        return Merge(replace(record, into=label(survivor)), survivor, whole.source, *linear, gone, tail)

    # Both

    def _linear(
        self, survivor: ir.Node, numbers: Convolution, frame: Frame
    ) -> tuple[Linear, Geometry, ChannelAffine] | Refusal:
        """The survivor's new numbers, and what it has no bias for; or why they cannot be stored."""
        present = read_linear(survivor, self.graph, self.pending, bias_matters=True)
        if isinstance(present, Refusal):
            return present
        needs_bias = bool(np.any(numbers.bias != 0)) or present.bias is not None
        has_bias = takes_bias(survivor, self.graph)
        bias = numbers.bias if needs_bias and has_bias else None
        linear = Linear.computed(numbers.kernel, bias, present.dtype)
        left = ChannelAffine.identity()
        if needs_bias and not has_bias:
            left = ChannelAffine.along(frame.axis, 1.0, numbers.bias)
        return linear.problem() or (linear, numbers.geometry, left)


def _record(
    arrangement: Arrangement, nodes: Iterable[ir.Node], output: ir.Value, refusal: Refusal | None
) -> MergeRecord:
    names = tuple(label(node) for node in nodes)
    return MergeRecord(arrangement, len(names), names, output.name or "", None, refusal, 0, 0)


def attributes_for(node: ir.Node, geometry: Geometry) -> dict[str, Any]:
    """The attributes by which an op gets a geometry; None for one that must go."""
    match node.op_type:
        case "Conv":
            return {
                "group": geometry.group,
                "kernel_shape": list(geometry.sizes),
                "strides": list(geometry.strides),
                "dilations": list(geometry.dilations),
                "pads": [*geometry.begins, *geometry.ends],
                "auto_pad": None,
            }
        case "ConvTranspose":  # its window stays as it is
            return {"group": geometry.group}
        case _:
            return {}
