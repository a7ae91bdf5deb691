"""A part of a graph before and after as SVG: the same layout for both, so that an op keeps its place.

Everything is text, rectangles and lines with classes; colours are the page's business. A fate has a symbol as well as
a colour. Names are escaped here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from bnfold.fold.report import FoldReport
from bnfold.reporting.changes import Box, Role
from bnfold.reporting.layout import Layout, Track, lay_out
from bnfold.reporting.parts import Part, Port
from bnfold.reporting.structure import Op

#: Sizes in pixels: a box, the space between rows, between lanes, and of a track; the margin around all.
_WIDTH, _HEIGHT, _ROW_GAP, _LANE_GAP, _TRACK, _MARGIN = 138, 38, 20, 16, 10, 10
_PORT_HEIGHT = 18
#: A drawing of this width is not shrunk.
_NARROW = 480
#: How many characters fit into a box.
_CHARACTERS = 22


@dataclass(frozen=True)
class Drawing:
    """A part, drawn twice."""

    before: str
    after: str


def anchor(scope: int, place: int) -> str:
    """The name of the anchor of a box: the graph's number, and the box's place in it."""
    return f"n{scope}-{place}"


def draw(part: Part, scope: int, report: FoldReport) -> Drawing:
    """Draw a part of the graph number ``scope``, with the words of ``report`` behind each box."""
    edges = {*part.before, *(pair for path in part.after for pair in pairwise(path))}
    plan = _Plan(part, lay_out(len(part.nodes), edges))
    ports = next((index for index, node in enumerate(part.nodes) if isinstance(node, Box)), 0)
    sides = []
    for after in (False, True):
        paths: Sequence[tuple[int, ...]] = part.after if after else part.before
        lines = "".join(f'<path d="{plan.line(path)}"/>' for path in paths)
        boxes = "".join(
            _port(node, plan.corner(index), after)
            if isinstance(node, Port)
            else _box(node, anchor(scope, part.start + index - ports), plan.corner(index), report, after)
            for index, node in enumerate(part.nodes)
        )
        sides.append(
            f'<svg viewBox="0 0 {plan.width} {plan.height}" width="{plan.width}" height="{plan.height}" '
            f'style="min-width:{plan.least_width}px" role="img" '
            f'aria-label="the graph {"after" if after else "before"}"><g class="l">{lines}</g>{boxes}</svg>'
        )
    return Drawing(*sides)


class _Plan:
    """Pixels for a layout."""

    def __init__(self, part: Part, layout: Layout) -> None:
        self._nodes = part.nodes
        self._layout = layout
        self._left = [_MARGIN]
        for tracks in layout.tracks:
            self._left.append(self._left[-1] + _WIDTH + _LANE_GAP + tracks * _TRACK)
        self.width = self._left[-1] - _LANE_GAP + _MARGIN + (_TRACK if layout.tracks and layout.tracks[-1] else 0)
        self.height = 2 * _MARGIN + (max(layout.rows, default=0) + 1) * (_HEIGHT + _ROW_GAP) - _ROW_GAP

    @property
    def least_width(self) -> int:
        """How far the drawing may shrink so that both sides can be seen at once."""
        return min(self.width, max(_NARROW, self.width * 7 // 10))

    def corner(self, index: int) -> tuple[int, int]:
        """The left upper corner of a node's place."""
        return self._left[self._layout.lanes[index]], self._top(self._layout.rows[index])

    def _top(self, row: int) -> int:
        return _MARGIN + row * (_HEIGHT + _ROW_GAP)

    def _middle(self, index: int) -> int:
        return self.corner(index)[0] + _WIDTH // 2

    def _lower_edge(self, index: int) -> int:
        return self.corner(index)[1] + (_PORT_HEIGHT if isinstance(self._nodes[index], Port) else _HEIGHT)

    def line(self, path: Sequence[int]) -> str:
        """The SVG path of a line that leads from the first node to the last, through the places between them."""
        x, y = self._middle(path[0]), self._lower_edge(path[0])
        steps = [f"M{x} {y}"]

        def go(to_x: int, to_y: int) -> None:
            nonlocal x, y
            if to_x == x:
                steps.append(f"V{to_y}")
            else:
                half = (y + to_y) // 2
                steps.append(f"C{x} {half} {to_x} {half} {to_x} {to_y}")
            x, y = to_x, to_y

        for source, reader in pairwise(path):
            way = self._layout.ways.get((source, reader))
            above, below = self._layout.rows[source], self._layout.rows[reader]
            if way is not None:
                if isinstance(way, Track):
                    aside = self._left[way.lane] + _WIDTH + _TRACK * (way.index + 1)
                else:
                    aside = self._left[way] + _WIDTH // 2
                go(aside, self._top(above + 1))
                go(aside, self._top(below - 1) + _HEIGHT)
            go(self._middle(reader), self.corner(reader)[1])
            if reader != path[-1]:
                go(x, y + _HEIGHT)
        # Straight lines through many places are one line.
        return "".join(step for step, following in zip(steps, [*steps[1:], ""], strict=True)
                       if not (step[0] == following[:1] == "V"))  # fmt: skip


def _port(port: Port, corner: tuple[int, int], after: bool) -> str:
    name = port.after if after else port.before
    if not name:
        return ""
    x, y = corner
    return (
        f'<g class="p"><title>{escape(name)}</title><rect x="{x}" y="{y}" width="{_WIDTH}" height="{_PORT_HEIGHT}" '
        f'rx="9"/><text x="{x + _WIDTH // 2}" y="{y + 13}">{escape(shortened(name, 24))}</text></g>'
    )


def _box(box: Box, key: str, corner: tuple[int, int], report: FoldReport, after: bool) -> str:
    op = box.after if after else box.before
    x, y = corner
    link = f' href="#r{box.records[0]}"' if box.records else ""
    tag = "a" if link else "g"
    linked = f' data-r="{" ".join(map(str, box.records))}"' if box.records else ""
    identity = "" if after else f' id="{key}"'
    if op is None:
        if not after:
            return ""
        mark = _symbols(box.roles[:1], x, y)
        return (
            f'<{tag}{link} class="n ghost" data-k="{key}"{linked}><title>{escape(_words(box, report, after))}</title>'
            f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>{mark}</{tag}>'
        )
    roles = _roles_of(box, after)
    kind = "end" if box.is_end else roles[0] if roles else ""
    centre = x + _WIDTH // 2
    # An op without a name of its own goes by its output's, which may have changed.
    name = op.name if op.named or box.before is None or Role.MADE in box.roles else box.before.name
    behind = f'<rect x="{x + 4}" y="{y + 4}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>' if op.bodies else ""
    return (
        f'<{tag}{link}{identity} class="n {kind}" data-k="{key}"{linked}>'
        f"<title>{escape(_words(box, report, after))}</title>"
        f'{behind}<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="{19 if box.is_end else 6}"/>'
        f'<text x="{centre}" y="{y + 16}">{escape(shortened(_abbreviated(op.op_type), 18))}</text>'
        f'<text class="s" x="{centre}" y="{y + 30}">{escape(shortened(name, _CHARACTERS))}</text>'
        f"{_symbols(roles, x, y)}</{tag}>"
    )


def _roles_of(box: Box, after: bool) -> list[Role]:
    """What to show of a box on one side: a new op was not there before, and a fold is over afterwards."""
    if not after:
        return [role for role in box.roles if role is not Role.MADE]
    past = (Role.FOLDED, Role.MERGED) if Role.MADE in box.roles or Role.ABSORBING in box.roles else ()
    return [role for role in box.roles if role not in past]


def _symbols(roles: Sequence[Role], x: int, y: int) -> str:
    """The symbols of the roles, across the upper edge of the box."""
    return "".join(
        f'<use href="#i-{role}" class="i {role}" x="{x - 6 + 18 * index}" y="{y - 7}" width="16" height="16"/>'
        for index, role in enumerate(roles)
    )


def _words(box: Box, report: FoldReport, after: bool) -> str:
    """All that is known of a box, for a pointer that rests on it."""
    op: Op = (box.after if after else None) or box.op
    lines = [f"{op.op_type}  {op.name}"]
    if op.shape:
        lines.append(f"gives {op.shape}")
    if op.bodies:
        lines.append(f"with graphs of its own: {', '.join(op.bodies)}")
    if after and box.before is not None and box.after is None:
        lines.append("is gone")
    for index in box.records[:4]:
        record = report.records[index]
        lines.append(f"{record.node}: {record.fate}, {record.sentence}")
    if len(box.records) > 4:
        lines.append(f"and {len(box.records) - 4} more")
    return "\n".join(lines)


def shortened(name: str, length: int) -> str:
    """A name that fits: its end, which tells most, after an ellipsis."""
    return name if len(name) <= length else "…" + name[-(length - 1) :]


def _abbreviated(op_type: str) -> str:
    return op_type.replace("BatchNormalization", "BatchNorm")


def used_roles(boxes: Sequence[Box]) -> Iterator[Role]:
    """The roles that occur, for a legend."""
    found = {role for box in boxes for role in box.roles}
    return (role for role in Role if role in found)
