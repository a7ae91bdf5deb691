"""What became of each op of a model: its structures before and after laid over each other, with the report's records.

Folding edits a graph in place: an op that stays keeps its name, an op that absorbed what came behind it takes over the
name of that value, and a new op stands where an old one stood. From this follows which op is which.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bnfold.fold.report import Collapsed, Direction, Folded, FoldRecord, FoldReport, Kept, Merged, MergeRecord
from bnfold.reporting.structure import Op, Scope, Structure, is_end


class Role(StrEnum):
    """The part that an op has in what was done; what tells most comes first."""

    FOLDED = "folded"
    MERGED = "merged"
    COLLAPSED = "collapsed"
    KEPT = "kept"
    MADE = "made"
    ABSORBING = "absorbing"
    CROSSED = "crossed"
    GONE = "gone"


#: The roles of what a record is of.
FATES = (Role.FOLDED, Role.MERGED, Role.COLLAPSED, Role.KEPT)


@dataclass(frozen=True, slots=True)
class Box:
    """One place in the drawings: an op before, after, or both.

    Attributes:
        before: the op that stood here; None where there was none.
        after: the op that stands here now; None where it is gone.
        roles: what happened, most telling first; empty where nothing did.
        records: which records of the report tell of it, its own first.
    """

    before: Op | None
    after: Op | None
    roles: tuple[Role, ...] = ()
    records: tuple[int, ...] = ()

    @property
    def op(self) -> Op:
        """The op before, or the new one."""
        op = self.before or self.after
        assert op is not None
        return op

    @property
    def is_end(self) -> bool:
        """Whether it is no node, but an input or output of the graph."""
        return is_end(self.op)

    @property
    def has_fate(self) -> bool:
        """Whether a record is of this box, not only tells of it."""
        return bool(self.records) and any(role in FATES for role in self.roles)


@dataclass(frozen=True, slots=True)
class Changes:
    """One graph before and after.

    Attributes:
        owner: the node that the graph is a body of; empty for the main graph.
        attribute: under which attribute.
        boxes: all ops of both, in the order of the graph.
        before: which box reads which, as (source, reader).
        after: the same afterwards, as the places that the value passes: the source, places of ops that are gone,
            the reader.
    """

    owner: str
    attribute: str
    boxes: tuple[Box, ...]
    before: tuple[tuple[int, int], ...]
    after: tuple[tuple[int, ...], ...]

    @property
    def untouched(self) -> bool:
        """Whether nothing happened to any op."""
        return not any(box.roles for box in self.boxes)


def compare(before: Structure, after: Structure, report: FoldReport) -> tuple[Changes, ...]:
    """Lay the graphs of two structures over each other, the main graph first.

    Bodies of control flow are left out where both do not have the same, as nothing could be laid over anything.
    """
    pairs = zip(before.scopes, after.scopes, strict=False)
    if len(before.scopes) != len(after.scopes):
        pairs = zip(before.scopes[:1], after.scopes[:1], strict=True)
    return tuple(_changes(old, new, report) for old, new in pairs)


class _Side:
    """The visible ops of one scope, and how to find them."""

    def __init__(self, scope: Scope) -> None:
        self.ops = [op for op in scope.ops if not op.hidden]
        self.producer = {name: index for index, op in enumerate(self.ops) for name in op.outputs if name}
        self.by_label: dict[str, int] = {}
        self.readers: dict[str, list[int]] = defaultdict(list)
        for index, op in enumerate(self.ops):
            if not is_end(op):
                self.by_label.setdefault(op.name, index)
            for name in dict.fromkeys(op.inputs):
                self.readers[name].append(index)

    def sources(self, index: int) -> list[int]:
        """The ops that an op reads, each once."""
        found = (self.producer.get(name) for name in self.ops[index].inputs if name)
        return list(dict.fromkeys(source for source in found if source is not None))

    def edges(self) -> Iterator[tuple[int, int]]:
        for index in range(len(self.ops)):
            yield from ((source, index) for source in self.sources(index))


def _changes(old: Scope, new: Scope, report: FoldReport) -> Changes:
    before, after = _Side(old), _Side(new)
    twin = _twins(before, after)
    place = twin | _replaced(before, after, twin)
    occupied = set(place.values())
    order, position = _in_order(before, after, place)
    roles, records = _roles(before, after, place, twin, report)
    boxes = tuple(
        Box(
            before=None if b is None else before.ops[b],
            after=None if a is None else after.ops[a],
            roles=tuple(sorted(roles[b, a], key=list(Role).index)),
            records=tuple(dict.fromkeys(records[b, a])),
        )
        for b, a in order
    )
    at_before = {b: position[b, a] for b, a in order if b is not None}
    at_after = {a: position[b, a] for b, a in order if a is not None}
    return Changes(
        owner=old.owner,
        attribute=old.attribute,
        boxes=boxes,
        before=tuple((at_before[source], at_before[reader]) for source, reader in before.edges()),
        after=tuple(_passages(before, after, place, occupied, at_before, at_after)),
    )


def _twins(before: _Side, after: _Side) -> dict[int, int]:
    """For each op after, the same op before."""

    def unique(side: _Side) -> dict[tuple[str, str], int]:
        keys = [(_kind(op), op.name) for op in side.ops]
        counts = Counter(key for key, op in zip(keys, side.ops, strict=True) if op.named)
        return {key: index for index, key in enumerate(keys) if counts[key] == 1 and side.ops[index].named}

    old = unique(before)
    twin = {index: old[key] for key, index in unique(after).items() if key in old}
    taken = set(twin.values())
    for index, op in enumerate(after.ops):
        if index in twin or op.named:
            continue  # an op with a name of its own that was not there before is a new one
        found = _behind(before, _known_output(before, after, twin, index), taken, _kind(op))
        if found is not None:
            twin[index] = found
            taken.add(found)
    return twin


def _kind(op: Op) -> str:
    """Ops that may be each other's twin have one: a MatMul that took a bias in became a Gemm."""
    return "MatMul" if op.op_type == "Gemm" else op.op_type


def _known_output(before: _Side, after: _Side, twin: dict[int, int], index: int) -> str | None:
    """The first value at or after an op that was there before, past ops that were not."""
    for _ in range(_REACH):
        outputs = after.ops[index].outputs
        if not outputs or outputs[0] in before.producer:
            return outputs[0] if outputs else None
        following = [reader for reader in after.readers[outputs[0]] if reader not in twin]
        if not following:
            return None
        index = following[0]
    return None


#: How far to look for an op that took another name: chains of affines are short.
_REACH = 100


def _behind(before: _Side, value: str | None, taken: set[int], kind: str) -> int | None:
    """The nearest op of a kind at or before a value, past ops that have no twin."""
    queue = deque([before.producer[value]] if value is not None else [])
    seen: set[int] = set()
    while queue and len(seen) < _REACH:
        index = queue.popleft()
        if index in taken or index in seen:
            continue
        if _kind(before.ops[index]) == kind:
            return index
        seen.add(index)
        queue.extend(before.sources(index))
    return None


def _replaced(before: _Side, after: _Side, twin: dict[int, int]) -> dict[int, int]:
    """For each new op, the op whose value it computes, if that op is gone."""
    taken = set(twin.values())
    found: dict[int, int] = {}
    for index, op in enumerate(after.ops):
        old = before.producer.get(op.outputs[0]) if op.outputs and index not in twin else None
        if old is not None and old not in taken:
            found[index] = old
            taken.add(old)
    return found


#: An op before and an op after that share a box; one of them may be None.
_Pair = tuple[int | None, int | None]


def _in_order(before: _Side, after: _Side, place: dict[int, int]) -> tuple[list[_Pair], dict[_Pair, int]]:
    """All boxes in the order of the graph, new ops after what comes before them."""
    now = {b: a for a, b in place.items()}
    followed_by: dict[int, list[int]] = defaultdict(list)
    last = -1
    for index in range(len(after.ops)):
        last = place.get(index, last)
        if index not in place:
            followed_by[last].append(index)
    order: list[_Pair] = [(None, index) for index in followed_by[-1]]
    for index in range(len(before.ops)):
        order.append((index, now.get(index)))
        order += [(None, new) for new in followed_by[index]]
    return order, {pair: position for position, pair in enumerate(order)}


def _passages(
    before: _Side,
    after: _Side,
    place: dict[int, int],
    occupied: set[int],
    at_before: dict[int, int],
    at_after: dict[int, int],
) -> Iterator[tuple[int, ...]]:
    """Which op reads which after, by way of the places of ops that are gone."""
    for reader in range(len(after.ops)):
        came_from: dict[int, int] = {}
        if reader in place:
            stack = [place[reader]]
            while stack:
                index = stack.pop()
                for source in before.sources(index):
                    if source not in came_from:
                        came_from[source] = index
                        if source not in occupied:
                            stack.append(source)
        for source in after.sources(reader):
            path = [at_after[source]]
            step = place.get(source)
            while step is not None and step in came_from and step != place[reader]:
                step = came_from[step]
                path.append(at_before[step])
            yield tuple(path) if len(path) > 1 else (at_after[source], at_after[reader])


def _roles(
    before: _Side, after: _Side, place: dict[int, int], twin: dict[int, int], report: FoldReport
) -> tuple[dict[_Pair, set[Role]], dict[_Pair, list[int]]]:
    """What each box has to do with the report's records."""
    now = {b: a for a, b in place.items()}
    roles: dict[_Pair, set[Role]] = defaultdict(set)
    records: dict[_Pair, list[int]] = defaultdict(list)

    def tell(indices: Iterable[int], role: Role, record: int | None = None) -> None:
        for index in indices:
            pair = (index, now.get(index))
            roles[pair].add(role)
            if record is not None:
                records[pair].append(record)

    def tell_after(name: str, role: Role, record: int | None = None) -> None:
        index = after.by_label.get(name)
        if index is not None:
            pair = (place.get(index), index)
            roles[pair].add(role)
            if record is not None:
                records[pair].append(record)

    find = _Finder(before, set(now))
    sites = {number: find.site(record) for number, record in enumerate(report.records)}
    find.folded_back = {
        index for number, site in sites.items() for index in site if not _is_branch(report.records[number])
    }
    for number, record in enumerate(report.records):  # a box leads to its own record first
        tell(sites[number][:1], Role(record.fate), number)
    for number, record in enumerate(report.records):
        tell(sites[number][1:], Role(record.fate), number)
    for number, record in enumerate(report.records):
        match record.outcome:
            case Folded(direction=direction, path=path, into=into):
                tell(find.all(path, direction), Role.CROSSED, number)
                tell(find.all(into, direction), Role.ABSORBING, number)
            case Merged(into=merged, through=through):
                tell(find.all(through, Direction.BACKWARD), Role.MERGED, number)
                tell_after(merged, Role.ABSORBING, number)
            case Collapsed(nodes=nodes):
                tell(find.all(nodes, Direction.FORWARD), Role.COLLAPSED, number)
            case Kept():
                pass
    for merge in _done(report.merges):
        tell(find.all(merge.nodes, Direction.BACKWARD), Role.MERGED)
        if merge.into is not None:
            tell_after(merge.into, Role.ABSORBING)
    for index in range(len(before.ops)):
        if index not in now and not roles[index, None]:
            roles[index, None].add(Role.GONE)
    for index in range(len(after.ops)):
        if index not in twin:
            roles[place.get(index), index].add(Role.MADE)
    return roles, records


def _is_branch(record: FoldRecord) -> bool:
    return isinstance(record.outcome, Merged) and not record.outcome.through


def _done(merges: Sequence[MergeRecord]) -> list[MergeRecord]:
    return [merge for merge in merges if merge.refusal is None]


class _Finder:
    """Finds the ops before that a record names; some had taken over another's name by then."""

    def __init__(self, before: _Side, occupied: set[int]) -> None:
        self._side = before
        self._occupied = occupied
        self.folded_back: set[int] = set()

    def site(self, record: FoldRecord) -> list[int]:
        """The op that a record is of, then the others of its chain: with ``Mul+Add``, the Add that reads a Mul."""
        start = self._side.by_label.get(record.node)
        if start is None or record.output not in self._side.ops[start].outputs:
            start = self._side.producer.get(record.output)
        if start is None or is_end(self._side.ops[start]):
            return []
        kinds = record.op.split("+")
        for offset in (i for i, kind in enumerate(kinds) if kind == self._side.ops[start].op_type):
            back = self._chain(start, reversed(kinds[:offset]), backward=True)
            ahead = self._chain(start, kinds[offset + 1 :], backward=False)
            if back is not None and ahead is not None:
                return [start, *back, *ahead]
        return [start]

    def _chain(self, start: int, kinds: Iterable[str], *, backward: bool) -> list[int] | None:
        """The neighbours of the kinds given, one after the other."""
        found: list[int] = []
        for kind in kinds:
            here = found[-1] if found else start
            near = self._side.sources(here) if backward else self._side.readers[self._side.ops[here].outputs[0]]
            fitting = [index for index in near if self._side.ops[index].op_type == kind]
            if not fitting:
                return None
            found.append(fitting[0])
        return found

    def all(self, names: Iterable[str], direction: Direction) -> Iterator[int]:
        """The ops of the names given, as far as they are in this scope."""
        for name in names:
            index = self._side.by_label.get(name)
            if index is None:
                index = self._side.producer.get(name)
            # Nothing folds back into an affine: an op before it went by the name of its output by then.
            while index is not None and direction is Direction.BACKWARD and self._gave_its_name(index):
                index = next(iter(self._side.sources(index)), None)
            if index is not None and not is_end(self._side.ops[index]):
                yield index

    def _gave_its_name(self, index: int) -> bool:
        is_gone = index in self.folded_back and index not in self._occupied
        return is_gone and not self._side.ops[index].named
