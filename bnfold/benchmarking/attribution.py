"""Which fold paid: node times before and after, put together by what became of what. Pure.

Two models of which one was folded from the other share most of their names. A *region* is what is joined by

1. a record of the fold report: an affine and the ops that absorbed it, linear ops and what they were merged into;
2. a value that both models compute, by different nodes: a batch norm's output keeps its name;
3. a kernel of ONNX Runtime in which several nodes were fused, in either model;
4. a constant that is computed anew in each run of one model only, and the node that reads it.

Whatever time moves from one node to another by a fold thus stays in its region, and the difference of a region's times
is what its folds gained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnfold.benchmarking.kernels import Kernel
from bnfold.benchmarking.placement import NodeInfo, owners
from bnfold.fold.report import Collapsed, Folded, FoldRecord, FoldReport, Merged, MergeRecord


@dataclass(frozen=True)
class Profile:
    """What one candidate's kernels took.

    Attributes:
        label: the candidate's.
        nodes: of its model.
        kernels: as ONNX Runtime executed them.
    """

    label: str
    nodes: tuple[NodeInfo, ...]
    kernels: tuple[Kernel, ...]

    @property
    def seconds(self) -> float:
        """What all kernels take in one run, in seconds."""
        return sum(kernel.seconds for kernel in self.kernels)

    def ops(self) -> tuple[OpTime, ...]:
        """The times by op type, the longest first; before and after are the same."""
        return tuple(sorted(by_op(self.kernels, self.kernels), key=lambda row: -row.before))

    def providers(self) -> Counter[str]:
        """How many kernels were placed on each provider."""
        return Counter(kernel.provider for kernel in self.kernels)


@dataclass(frozen=True)
class OpTime:
    """The kernels of one op type, before and after; times in seconds a run."""

    op: str
    kernels_before: int
    kernels_after: int
    before: float
    after: float

    def to_json(self) -> dict[str, Any]:
        """The row as plain data."""
        return {
            "op": self.op,
            "kernels_before": self.kernels_before,
            "kernels_after": self.kernels_after,
            "before_s": self.before,
            "after_s": self.after,
        }


@dataclass(frozen=True)
class FoldTime:
    """One region, before and after; times in seconds a run.

    Attributes:
        folds: the affines that were folded in it, by their names in the fold report.
        merges: how many times ops were merged in it.
        into: the ops that took them up.
        before: what its kernels took.
        after: what they take now.
    """

    folds: tuple[str, ...]
    merges: int
    into: tuple[str, ...]
    before: float
    after: float

    @property
    def gain(self) -> float:
        """How much less it takes, in seconds a run."""
        return self.before - self.after

    def to_json(self) -> dict[str, Any]:
        """The row as plain data."""
        return {
            "folds": list(self.folds),
            "merges": self.merges,
            "into": list(self.into),
            "before_s": self.before,
            "after_s": self.after,
            "gain_s": self.gain,
        }


def by_op(before: Sequence[Kernel], after: Sequence[Kernel]) -> tuple[OpTime, ...]:
    """The times by op type, that with the largest change first."""
    rows = [
        OpTime(
            op,
            sum(kernel.op == op for kernel in before),
            sum(kernel.op == op for kernel in after),
            sum(kernel.seconds for kernel in before if kernel.op == op),
            sum(kernel.seconds for kernel in after if kernel.op == op),
        )
        for op in {kernel.op for kernel in (*before, *after)}
    ]
    return tuple(sorted(rows, key=lambda row: (-abs(row.before - row.after), row.op)))


def by_fold(before: Profile, after: Profile, report: FoldReport) -> tuple[FoldTime, ...]:
    """The times of each region in which something was folded, that with the largest gain first.

    Args:
        before: of the model that the report is about.
        after: of a model folded from it. Records that do not fit it, since it was folded with other options, are
            left out.
        report: what folds, by the engine.
    """
    links = _Links()
    owned = [owners(profile.nodes, profile.kernels) for profile in (before, after)]
    names_before, names_after = ({node.name for node in profile.nodes} for profile in (before, after))
    folds = {record.node: record for record in report.records if _went(record, before.nodes, after.nodes)}
    merges = [merge for merge in report.merges if _merged(merge, names_before, names_after)]
    for name, record in folds.items():
        links.join([name, *_touched(record)])
    for merge in merges:
        links.join([merge.into or "", *merge.nodes])
    _join_values(links, before.nodes, after.nodes)
    for owner in owned:
        _join_kernels(links, owner)
    _join_constants(links, before.nodes, names_after, set(folds))

    times = [_times(links, profile, owner) for profile, owner in zip((before, after), owned, strict=True)]
    rows = _rows(links, folds, merges, times[0], times[1])
    return tuple(sorted(rows, key=lambda row: -row.gain))


def _went(record: FoldRecord, before: Sequence[NodeInfo], after: Sequence[NodeInfo]) -> bool:
    """Whether a record's node has gone, and as the record says.

    A node without a name is called after its output, which may be computed by an op that absorbed the node: what has
    gone is a name together with an op type.
    """
    ops = {node.op for node in before if node.name == record.node}
    gone = bool(ops) and not any(node.name == record.node and node.op in ops for node in after)
    names = {node.name for node in after}
    arrived = all(name in names for name in _into(record)) or any(node.output == record.output for node in after)
    return gone and arrived


def _merged(merge: MergeRecord, before: set[str], after: set[str]) -> bool:
    """Whether the ops of a merge have gone as it says."""
    return merge.into in after and any(name in before and name not in after for name in merge.nodes)


def _into(record: FoldRecord) -> tuple[str, ...]:
    match record.outcome:
        case Folded(into=into):
            return into
        case Merged(into=into):
            return (into,)
        case _:
            return ()


def _touched(record: FoldRecord) -> tuple[str, ...]:
    """The names of all nodes that a record is about, beside its own."""
    match record.outcome:
        case Merged(into=into, through=through):
            return (into, *through)
        case Collapsed(nodes=nodes):
            return nodes
        case _:
            return _into(record)


class _Links:
    """Names that belong together: a union-find."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        parent = self._parent.setdefault(name, name)
        while parent != name:
            self._parent[name] = self._parent[parent]
            name, parent = parent, self._parent[parent]
        return name

    def join(self, names: Sequence[str]) -> None:
        for name in names[1:]:
            self._parent[self.root(name)] = self.root(names[0])


def _join_values(links: _Links, before: Sequence[NodeInfo], after: Sequence[NodeInfo]) -> None:
    computed = {node.output: node.name for node in before}
    for node in after:
        if node.output in computed:
            links.join([computed[node.output], node.name])


def _join_kernels(links: _Links, owner: Mapping[str, int]) -> None:
    parts: dict[int, list[str]] = {}
    for name, index in owner.items():
        parts.setdefault(index, []).append(name)
    for names in parts.values():
        links.join(names)


def _join_constants(links: _Links, nodes: Sequence[NodeInfo], names_after: set[str], folded: set[str]) -> None:
    readers: dict[str, list[str]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node.name)
    for node in nodes:
        if node.name not in names_after and node.name not in folded and len(readers.get(node.name, ())) == 1:
            links.join([*readers[node.name], node.name])


def _times(links: _Links, profile: Profile, owner: Mapping[str, int]) -> dict[str, float]:
    """The time of each region."""
    regions = {index: links.root(name) for name, index in owner.items()}
    found: dict[str, float] = {}
    for index, region in regions.items():
        found[region] = found.get(region, 0.0) + profile.kernels[index].seconds
    return found


def _rows(
    links: _Links,
    folds: Mapping[str, FoldRecord],
    merges: Sequence[MergeRecord],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> Iterator[FoldTime]:
    named = {links.root(name) for name in folds} | {links.root(merge.into or "") for merge in merges}
    for region in sorted(named):
        inside = [name for name in folds if links.root(name) == region]
        merged = [merge for merge in merges if links.root(merge.into or "") == region]
        into = [name for fold in inside for name in _into(folds[fold])] + [merge.into or "" for merge in merged]
        yield FoldTime(
            folds=tuple(inside),
            merges=len(merged),
            into=tuple(dict.fromkeys(into)),
            before=before.get(region, 0.0),
            after=after.get(region, 0.0),
        )
