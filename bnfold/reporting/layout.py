"""Place the nodes of a directed graph in rows and lanes, as on a railway map. Pure: numbers in, numbers out.

A network is a few long paths with branches and skips, so it is drawn as such: the longest path runs straight down the
first lane, each branch gets a lane of its own to the right for as many rows as it needs, and an edge that passes over
rows runs straight down a narrow track beside the lanes. No line crosses a box. The order is linear in nodes and edges
but for the search for a free lane, which is linear in lanes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Track:
    """A narrow vertical line right of a lane.

    Attributes:
        lane: the lane that it runs beside.
        index: counts the tracks of that lane from the left.
    """

    lane: int
    index: int


#: Where a line is in the rows that it passes: in a lane that has no box there, or on a track.
Way = int | Track


@dataclass(frozen=True)
class Layout:
    """Where everything is.

    Attributes:
        rows: of each node, from the top.
        lanes: of each node, from the left.
        ways: for each edge that passes over rows, where it does.
        tracks: how many tracks run right of each lane.
    """

    rows: tuple[int, ...]
    lanes: tuple[int, ...]
    ways: dict[tuple[int, int], Way]
    tracks: tuple[int, ...]


def lay_out(count: int, edges: Iterable[tuple[int, int]]) -> Layout:
    """Place ``count`` nodes.

    Args:
        count: the nodes are 0, 1, …, in an order in which sources come before readers.
        edges: from source to reader; one that goes against that order places nothing.
    """
    down = sorted({(source, reader) for source, reader in edges if 0 <= source < reader < count})
    readers: list[list[int]] = [[] for _ in range(count)]
    sources: list[list[int]] = [[] for _ in range(count)]
    for source, reader in down:
        readers[source].append(reader)
        sources[reader].append(source)
    rows = _rows(sources, readers)
    paths = _paths(rows, sources, readers)
    path_of = {node: path for path in paths for node in path}
    along = {pair for path in paths for pair in pairwise(path)}
    spans = {path[0]: _span(path, rows, path_of, sources, readers) for path in paths}
    lane_of_path = _pack([(path[0], *spans[path[0]]) for path in paths])
    lanes = [lane_of_path[path_of[node][0]] for node in range(count)]
    ways: dict[tuple[int, int], Way] = {}
    skips: dict[tuple[int, int], list[int]] = defaultdict(list)
    for source, reader in down:
        if rows[reader] - rows[source] == 1:
            continue
        upper, lower = spans[path_of[source][0]], spans[path_of[reader][0]]
        if (source, reader) in along or (path_of[source][-1] == source and upper[1] >= rows[reader] - 1):
            ways[source, reader] = lanes[source]
        elif path_of[reader][0] == reader and lower[0] <= rows[source] + 1:
            ways[source, reader] = lanes[reader]
        else:
            skips[source, min(lanes[source], lanes[reader])].append(reader)
    tracks = _tracks(skips, rows)
    for (source, lane), group in skips.items():
        for reader in group:
            ways[source, reader] = Track(lane, tracks[source, lane])
    width = [0] * (max(lanes, default=-1) + 1)
    for (_, lane), index in tracks.items():
        width[lane] = max(width[lane], index + 1)
    return Layout(tuple(rows), tuple(lanes), ways, tuple(width))


def _rows(sources: Sequence[Sequence[int]], readers: Sequence[Sequence[int]]) -> list[int]:
    """Each node one row below the lowest of its sources; one without sources right above its first reader."""
    rows = [0] * len(sources)
    for node, above in enumerate(sources):
        rows[node] = max((rows[source] + 1 for source in above), default=0)
    for node in reversed(range(len(rows))):
        if not sources[node] and readers[node]:
            rows[node] = max(0, min(rows[reader] for reader in readers[node]) - 1)
    return rows


def _paths(
    rows: Sequence[int], sources: Sequence[Sequence[int]], readers: Sequence[Sequence[int]]
) -> list[tuple[int, ...]]:
    """Every node in one path: each continues to the reader from which it is farthest to the end."""
    height = [0] * len(rows)
    for node in reversed(range(len(rows))):
        height[node] = max((height[reader] + 1 for reader in readers[node]), default=0)
    depth = [0] * len(rows)  # not the row: a source that was moved down has nothing above it
    for node in range(len(rows)):
        depth[node] = max((depth[source] + 1 for source in sources[node]), default=0)
    wish = [min(found, key=lambda r: (-height[r], r)) if found else None for found in readers]
    following: dict[int, int] = {}
    for node, above in enumerate(sources):
        willing = [source for source in above if wish[source] == node]
        if willing:
            following[min(willing, key=lambda s: (-depth[s], s))] = node
    begun = set(following.values())
    paths = []
    for node in range(len(rows)):
        if node in begun:
            continue
        path = [node]
        while path[-1] in following:
            path.append(following[path[-1]])
        paths.append(tuple(path))
    return sorted(paths, key=lambda path: (-len(path), path[0])) if paths else []


def _span(
    path: tuple[int, ...],
    rows: Sequence[int],
    path_of: dict[int, tuple[int, ...]],
    sources: Sequence[Sequence[int]],
    readers: Sequence[Sequence[int]],
) -> tuple[int, int]:
    """The rows in which a path needs its lane: those of its nodes, and of the lines to its ends."""
    first, last = path[0], path[-1]
    begin = min((rows[source] + 1 for source in sources[first]), default=rows[first])
    end = max((rows[reader] - 1 for reader in readers[last]), default=rows[last])
    # A source whose own path ends there brings its line down in its own lane.
    if all(path_of[source][-1] == source for source in sources[first]):
        begin = rows[first]
    return min(begin, rows[first]), max(end, rows[last])


def _pack(intervals: Sequence[tuple[int, int, int]]) -> dict[int, int]:
    """Give each interval, in the order given, the first lane in which it meets no other.

    Args:
        intervals: key, first row and last row of each.
    """
    lanes: list[list[tuple[int, int]]] = []
    found: dict[int, int] = {}
    for key, begin, end in intervals:
        free = (
            index
            for index, taken in enumerate(lanes)
            if all(end < other_begin or other_end < begin for other_begin, other_end in taken)
        )
        found[key] = next(free, len(lanes))
        if found[key] == len(lanes):
            lanes.append([])
        lanes[found[key]].append((begin, end))
    return found


def _tracks(skips: dict[tuple[int, int], list[int]], rows: Sequence[int]) -> dict[tuple[int, int], int]:
    """The track of each bundle of edges that share a source and run beside the same lane; short ones inside."""
    by_lane: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for (source, lane), group in skips.items():
        by_lane[lane].append((source, rows[source] + 1, max(rows[reader] for reader in group) - 1))
    found: dict[tuple[int, int], int] = {}
    for lane, intervals in by_lane.items():
        packed = _pack(sorted(intervals, key=lambda i: (i[2] - i[1], i[1], i[0])))
        found |= {(source, lane): index for source, index in packed.items()}
    return found
