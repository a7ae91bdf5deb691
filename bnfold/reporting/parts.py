"""Cut a large graph into parts that a person can read, where few values pass from one to the next.

A network is blocks in a row, and between two blocks there is one value: cut there. Where blocks are larger than a
drawing should be, cut where the fewest values pass. Equal neighbours are told once, with their number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise, takewhile

from bnfold.reporting.changes import Box, Changes
from bnfold.reporting.structure import ENDS, Op

#: A graph of so many boxes is drawn whole.
WHOLE = 90
#: The largest part of a graph that is not.
LARGE = 40
#: No part is cut smaller than this for the sake of its neighbours.
SMALL = 12


@dataclass(frozen=True, slots=True)
class Port:
    """Where lines leave a part: the name of what is at their other end, before and after."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Part:
    """Some boxes of a graph, in its order, with the lines between them.

    Attributes:
        start: position of the first box in the graph.
        nodes: the boxes, and ports where lines come in or go out.
        before: edges between the nodes, as in :class:`Changes`.
        after: the same afterwards.
    """

    start: int
    nodes: tuple[Box | Port, ...]
    before: tuple[tuple[int, int], ...]
    after: tuple[tuple[int, ...], ...]

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The nodes that are no ports."""
        return tuple(node for node in self.nodes if isinstance(node, Box))

    @property
    def untouched(self) -> bool:
        """Whether nothing happened here."""
        return not any(box.roles for box in self.boxes)

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for parts that look the same but for their names."""
        look = tuple(
            (node.before and node.before.op_type, node.after and node.after.op_type, node.roles)
            if isinstance(node, Box)
            else None
            for node in self.nodes
        )
        return look, self.before, self.after

    @property
    def title(self) -> str:
        """What the weights of its ops have in common by name, or its first and last op."""
        computed = {name for box in self.boxes for name in box.op.outputs}
        scope = _common_scope([name for box in self.boxes for name in _stored(box, computed)])
        if scope:
            return scope
        return " … ".join(dict.fromkeys(f"{op.op_type} {op.name}" for op in self.ends))

    @property
    def ends(self) -> tuple[Op, Op]:
        """The first and the last op."""
        nodes = [box.op for box in self.boxes if not box.is_end] or [box.op for box in self.boxes]
        return nodes[0], nodes[-1]


def _stored(box: Box, computed: set[str]) -> Iterator[str]:
    """The names of an op's weights: what it reads beside its data."""
    return (name for name in box.op.inputs[1:] if name and name not in computed and "." in name)


def _common_scope(names: Sequence[str]) -> str:
    """``layer1.0`` for ``layer1.0.conv1.weight`` and ``layer1.0.bn1.bias``; empty where they have nothing in common."""
    if len(names) < 2:
        return ""
    paths = [re.split(r"[./]", name) for name in names]
    same = takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))
    return ".".join(level[0] for level in same)


def cut(changes: Changes) -> tuple[Part, ...]:
    """The parts of a graph in its order; one part where it is small."""
    total = len(changes.boxes)
    starts = [0] if total <= WHOLE else _starts([box.op.op_type for box in changes.boxes], _passing(changes))
    ends = [*starts[1:], total]
    home = [0] * total
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        home[start:end] = [number] * (end - start)
    before: list[list[tuple[int, ...]]] = [[] for _ in starts]
    after: list[list[tuple[int, ...]]] = [[] for _ in starts]
    for lines, collected in ((changes.before, before), (changes.after, after)):
        for line in lines:
            for number in dict.fromkeys(home[place] for place in line):
                collected[number].append(line)
    return tuple(
        _part(changes, range(start, end), before[number], after[number])
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    )


def runs(parts: Sequence[Part]) -> tuple[tuple[Part, ...], ...]:
    """Neighbours that look the same, together; so are neighbours in which nothing happened."""
    groups = groupby(parts, key=lambda part: "untouched" if part.untouched else part.signature)
    return tuple(tuple(group) for _, group in groups)


def _passing(changes: Changes) -> list[int]:
    """For each position in the order, how many values pass from before it to it or beyond, then or now."""
    sides: tuple[Sequence[tuple[int, ...]], ...] = (changes.before, changes.after)
    return [max(both) for both in zip(*(_crossing(len(changes.boxes), lines) for lines in sides), strict=True)]


def _crossing(total: int, lines: Sequence[tuple[int, ...]]) -> list[int]:
    last = list(range(total))
    for line in lines:
        last[line[0]] = max(last[line[0]], *line)
    steps = [0] * (total + 1)
    for source, reader in enumerate(last):
        steps[min(source, reader) + 1] += 1
        steps[reader + 1] -= 1
    return list(accumulate(steps[:total]))


def _starts(kinds: Sequence[str], passing: Sequence[int]) -> list[int]:
    """Where parts begin: a block with the single ops that follow it makes one, unless it is too large."""
    total = len(kinds)
    joints = [0, *(place for place in range(1, total) if passing[place] <= 1), total]
    starts = [0]
    for here, there in pairwise(joints):
        is_block = there - here > 1
        if is_block and starts[-1] < here:
            starts.append(here)
        while there - starts[-1] > LARGE:
            starts.append(_place_to_cut(starts[-1], there - 1, kinds, passing))
    return starts


def _place_to_cut(start: int, last: int, kinds: Sequence[str], passing: Sequence[int]) -> int:
    """Where to cut what begins at ``start`` and is too large.

    Where the fewest values pass, and best at an op of the kind that it begins with: then a pattern that repeats is
    cut into equal parts.
    """
    first = next((kind for kind in kinds[start:last] if kind not in ENDS), "")
    window = range(start + SMALL, min(start + LARGE, last) + 1)
    same = [place for place in window if kinds[place] == first]
    fewest = min(passing[place] for place in window)
    return next((place for place in same if passing[place] == fewest), None) or max(
        place for place in window if passing[place] == fewest
    )


def _part(changes: Changes, places: range, before: Sequence[tuple[int, ...]], after: Sequence[tuple[int, ...]]) -> Part:
    incoming = _ends_outside(changes, places, before, after, -1)
    outgoing = _ends_outside(changes, places, before, after, 1)
    inside = [changes.boxes[place] for place in places]
    nodes: list[Box | Port] = [*incoming.values(), *inside, *outgoing.values()]
    arriving = {key: index for index, key in enumerate(incoming)}
    leaving = {key: len(incoming) + len(inside) + index for index, key in enumerate(outgoing)}

    def local(line: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The stretches of a line that lie inside, with the ports where they come in and go out."""
        for is_inside, stretch in groupby(range(len(line)), key=lambda index: line[index] in places):
            if not is_inside:
                continue
            indices = list(stretch)
            path = [len(incoming) + line[index] - places.start for index in indices]
            if indices[0] > 0:
                path.insert(0, arriving[line[indices[0] - 1]])
            if indices[-1] < len(line) - 1:
                path.append(leaving[line[indices[-1]]])
            if len(path) > 1:
                yield tuple(path)

    return Part(
        start=places.start,
        nodes=tuple(nodes),
        before=tuple(dict.fromkeys((path[0], path[1]) for line in before for path in local(line))),
        after=tuple(dict.fromkeys(path for line in after for path in local(line))),
    )


def _ends_outside(
    changes: Changes,
    places: range,
    before: Sequence[tuple[int, ...]],
    after: Sequence[tuple[int, ...]],
    side: int,
) -> dict[int, Port]:
    """The ports on one side: by the place outside for what comes in, by the place inside for what goes out."""
    found: dict[int, tuple[dict[int, None], dict[int, None]]] = {}
    for which, lines in enumerate((before, after)):
        for line in lines:
            for source, reader in pairwise(line):
                near, far = (source, reader) if side > 0 else (reader, source)
                if near in places and far not in places:
                    key = near if side > 0 else far
                    found.setdefault(key, ({}, {}))[which][line[-1] if side > 0 else line[0]] = None
    names = {key: [_port_name(changes, ends) for ends in both] for key, both in sorted(found.items())}
    return {key: Port(before, after) for key, (before, after) in names.items()}


def _port_name(changes: Changes, places: dict[int, None]) -> str:
    ops = [changes.boxes[place].op for place in places]
    if len(ops) > 1:
        return f"{len(ops)} ops"
    return f"{ops[0].op_type} {ops[0].name}" if ops else ""
