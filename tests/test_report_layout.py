"""The layout of a drawing: properties of random graphs, and what a person expects of the plain shapes."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.reporting.layout import Layout, Track, lay_out


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """Nodes in order, each but the first ones reading some before it: mostly the last few."""
    count = draw(st.integers(1, 25))
    edges = []
    for reader in range(1, count):
        near = st.integers(max(0, reader - 3), reader - 1)
        sources = draw(st.sets(st.one_of(near, st.integers(0, reader - 1)), max_size=3))
        edges += [(source, reader) for source in sources]
    return count, edges


def passed_rows(layout: Layout, source: int, reader: int) -> range:
    return range(layout.rows[source] + 1, layout.rows[reader])


@given(graphs())
def test_edges_lead_down_and_no_two_nodes_share_a_place(graph: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = graph
    layout = lay_out(count, edges)
    assert len(set(zip(layout.rows, layout.lanes, strict=True))) == count
    assert all(layout.rows[source] < layout.rows[reader] for source, reader in edges)


@given(graphs())
def test_lines_pass_no_box(graph: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = graph
    layout = lay_out(count, edges)
    taken = set(zip(layout.rows, layout.lanes, strict=True))
    for source, reader in edges:
        rows = passed_rows(layout, source, reader)
        way = layout.ways.get((source, reader))
        assert (way is not None) == bool(rows), "an edge that passes over rows has a way, and only that"
        if isinstance(way, int):
            assert not taken & {(row, way) for row in rows}


@given(graphs())
def test_lines_of_different_values_do_not_share_a_track(graph: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = graph
    layout = lay_out(count, edges)
    sources: dict[tuple[Track, int], set[int]] = defaultdict(set)
    for (source, reader), way in layout.ways.items():
        if isinstance(way, Track):
            assert way.index < layout.tracks[way.lane]
            for row in passed_rows(layout, source, reader):
                sources[way, row].add(source)
    assert all(len(found) == 1 for found in sources.values())


@given(graphs())
def test_lines_that_share_a_lane_share_an_end(graph: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = graph
    layout = lay_out(count, edges)
    lines: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for edge, way in layout.ways.items():
        if isinstance(way, int):
            for row in passed_rows(layout, *edge):
                lines[way, row].append(edge)
    for found in lines.values():
        assert len({source for source, _ in found}) == 1 or len({reader for _, reader in found}) == 1


CHAIN = list(pairwise(range(6)))


@pytest.mark.parametrize(
    ("edges", "rows", "lanes"),
    [
        (CHAIN, (0, 1, 2, 3, 4, 5), (0, 0, 0, 0, 0, 0)),
        ([*CHAIN, (1, 4)], (0, 1, 2, 3, 4, 5), (0, 0, 0, 0, 0, 0)),  # a skip leaves the path straight
        ([(0, 1), (1, 2), (2, 4), (0, 3), (3, 4), (4, 5)], (0, 1, 2, 1, 3, 4), (0, 0, 0, 1, 0, 0)),  # a short branch
        ([(0, 2), (1, 4), (2, 3), (3, 4), (4, 5)], (0, 2, 1, 2, 3, 4), (0, 1, 0, 0, 0, 0)),  # inputs near their reader
        ([], (0, 0, 0, 0, 0, 0), (0, 1, 2, 3, 4, 5)),
    ],
)
def test_plain_shapes(edges: list[tuple[int, int]], rows: tuple[int, ...], lanes: tuple[int, ...]) -> None:
    layout = lay_out(6, edges)
    assert (layout.rows, layout.lanes) == (rows, lanes)


def test_a_skip_runs_on_a_track_beside_its_lane() -> None:
    assert lay_out(6, [*CHAIN, (1, 4)]).ways == {(1, 4): Track(0, 0)}


def test_nested_skips_run_inside_each_other() -> None:
    layout = lay_out(6, [*CHAIN, (0, 5), (1, 4)])
    assert layout.ways == {(1, 4): Track(0, 0), (0, 5): Track(0, 1)}


def test_edge_against_the_order_places_nothing() -> None:
    assert lay_out(3, [(0, 1), (1, 2), (2, 0), (1, 1)]) == lay_out(3, [(0, 1), (1, 2)])


def test_nothing_is_a_layout_too() -> None:
    assert lay_out(0, []) == Layout((), (), {}, ())
