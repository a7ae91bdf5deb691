"""Pieces of a model between named values, and inputs for them.

A *region* computes one value of a model from others. Cut out of two models at values that both have, it can be
compared by itself, on inputs of its own, whatever the rest of the models does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.graph import in_default_domain
from bnfold.verification.bodies import bodies_of
from bnfold.verification.double import LARGE, NotInFloat64Error
from bnfold.verification.inputs import Feed
from bnfold.verification.metrics import is_float
from bnfold.verification.oracle import Oracle
from bnfold.verification.sameness import attribute_lines
from bnfold.verification.schemas import implied_attributes, schema_of
from bnfold.verification.shrinking import small_sides

Array = NDArray[Any]

#: Values by name: the shapes of those that may be drawn, and the elements of all others.
Seen = Mapping[str, Array | tuple[int, ...]]

#: Inputs of a region, and what it computes of them.
Trial = tuple[Feed, Array]

#: The result of these depends on the shape of their input alone, not on its elements.
_SHAPE_OPS = frozenset({"Shape", "Size"})


@dataclass(frozen=True, eq=False)
class Region:
    """What computes one value of a model from others.

    Attributes:
        output: the value's name.
        inputs: names of the values that it is computed from.
        nodes: the nodes in between.
    """

    output: str
    inputs: tuple[str, ...]
    nodes: frozenset[ir.Node]


class Network:
    """A model in float64, as a graph of named values.

    Attributes:
        oracle: evaluates it.
        inputs: names of the inputs that a caller must feed.
        outputs: names of the outputs.
        nodes: what the outputs depend on and varies with the inputs, in order.
        producers: the one that computes each value; all other values are constants, or nobody needs them.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self._graph = graph = oracle.model.graph
        self._opset = oracle.model.opset_imports.get("", oracle.model.opset_imports.get("ai.onnx", 1))
        self.inputs = tuple(str(value.name) for value in graph.inputs if value.name not in graph.initializers)
        self.outputs = tuple(str(value.name) for value in graph.outputs)
        self.producers: dict[str, ir.Node] = {}
        for node in graph:
            read = list(_values_read(node, graph))
            if not read or any(self.varies(str(value.name)) for value in read):
                self.producers.update(dict.fromkeys(names_of(node), node))
        live = self.ancestors(self.outputs)
        self.nodes = tuple(node for node in graph if live.intersection(names_of(node)))
        self.producers = {name: node for node in self.nodes for name in names_of(node)}
        self._arrays: dict[str, Array] = {}
        self._keys: dict[ir.Node, bytes] = {}

    def varies(self, name: str) -> bool:
        """Whether a value changes with the inputs; all others are constants."""
        return name in self.producers or name in self.inputs

    def reads(self, node: ir.Node) -> tuple[str, ...]:
        """The values that a node reads and that vary, those that its subgraphs read included."""
        names = (str(value.name) for value in _values_read(node, self._graph))
        return tuple(dict.fromkeys(name for name in names if self.varies(name)))

    @cached_property
    def readers(self) -> Mapping[str, Sequence[ir.Node]]:
        """The nodes that read each value."""
        readers: dict[str, list[ir.Node]] = {}
        for node in self.nodes:
            for name in self.reads(node):
                readers.setdefault(name, []).append(node)
        return readers

    def ancestors(self, names: Iterable[str]) -> set[str]:
        """``names`` and all values that they are computed from and that vary."""
        found: set[str] = set()
        work = list(names)
        while work:
            name = work.pop()
            if name not in found:
                found.add(name)
                work += self.reads(self.producers[name]) if name in self.producers else ()
        return found

    def region(self, output: str, stops: AbstractSet[str], beyond: AbstractSet[str] = frozenset()) -> Region:
        """What computes ``output`` from the nearest of ``stops``, those in ``beyond`` left out, and the inputs."""
        inside: set[ir.Node] = set()
        inputs: dict[str, None] = {}
        work = [output]
        while work:
            name = work.pop()
            node = self.producers.get(name)
            if node is None or (name != output and name in stops and name not in beyond):
                if self.varies(name):
                    inputs[name] = None
            elif node not in inside:
                inside.add(node)
                work += self.reads(node)
        return Region(output, tuple(inputs), frozenset(inside))

    def constant(self, value: ir.Value) -> Array:
        """A value that does not vary, in float64 if it is a floating-point one.

        Raises:
            NotInFloat64Error: it cannot be computed.
        """
        name = str(value.name)
        if name in self._arrays:
            return self._arrays[name]
        array = self.oracle.values({}, [name])[name]
        if array.size < LARGE:
            self._arrays[name] = array
        return array

    def operator(self, node: ir.Node) -> bytes:
        """A node's operator and attributes as text, the same for any two nodes that do the same to their inputs.

        The version counts by which ONNX defines the operator; attributes do not that only say what holds anyway.
        """
        if node not in self._keys:
            around = {value: self._text(value) for value in _captured(node, self._graph)}
            domain = "" if in_default_domain(node) else node.domain
            schema = schema_of(node, self._opset)
            since = schema.since_version if schema else self._graph.opset_imports.get(node.domain)
            head = f"{domain} {node.op_type} {node.overload} {len(node.outputs)} {since}\n".encode()
            self._keys[node] = head + attribute_lines(node, around, implied_attributes(node, schema))
        return self._keys[node]

    def _text(self, value: ir.Value) -> str:
        if self.varies(str(value.name)):
            return str(value.name)
        array = self.constant(value)
        return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"

    def holds(self, node: ir.Node, of: Network) -> bool:
        """Whether a node of another network is here too: on values of the same names, and bit for bit the same."""
        names = names_of(node)
        twin = self.producers.get(names[0]) if names else None
        if twin is None or names_of(twin) != names or len(twin.inputs) != len(node.inputs):
            return False
        inputs = zip(twin.inputs, node.inputs, strict=True)
        return self.operator(twin) == of.operator(node) and all(self._same(ours, of, its) for ours, its in inputs)

    def _same(self, ours: ir.Value | None, of: Network, its: ir.Value | None) -> bool:
        if ours is None or its is None:
            return ours is its
        varies = self.varies(str(ours.name))
        if varies or of.varies(str(its.name)):
            return varies and ours.name == its.name
        one, other = self.constant(ours), of.constant(its)
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=is_float(one))


def names_of(node: ir.Node) -> tuple[str, ...]:
    """The names of a node's results."""
    return tuple(value.name for value in node.outputs if value.name)


def _values_read(node: ir.Node, graph: ir.Graph) -> Iterator[ir.Value]:
    """The values of ``graph`` that a node reads, itself or in its subgraphs."""
    yield from (value for value in node.inputs if value is not None and value.name)
    yield from _captured(node, graph)


def _captured(node: ir.Node, graph: ir.Graph) -> Iterator[ir.Value]:
    for body in bodies_of(node):
        read = (value for inner in body.all_nodes() for value in inner.inputs)
        yield from (value for value in (*read, *body.outputs) if value is not None and value.graph is graph)


class Meeting:
    """Values that two networks both have, one to one; each may go by another name in the second.

    Attributes:
        names: the value of the second for each of the first.
    """

    def __init__(self, before: Network, after: Network, names: Mapping[str, str] | None = None) -> None:
        self._before = before
        self._after = after
        self.names = dict(names or {})
        self._back = {other: name for name, other in self.names.items()}

    def add(self, name: str, other: str | None = None) -> None:
        """Let both have a value in common."""
        self.names[name] = other or name
        self._back[other or name] = name

    def drop(self, name: str) -> None:
        """Forget a value."""
        self._back.pop(self.names.pop(name))

    def cut(self, output: str, other: str | None = None) -> tuple[Region, Region]:
        """The regions that compute one value in both, between the same values.

        Where one region reads a value that the other passes by, both go on to what that value is made of: drawn
        independently of each other, the two would contradict.

        Args:
            output: the value in the first network.
            other: the same in the second, if it is not one of :attr:`names`.
        """
        beyond: set[str] = set()
        while True:
            before = self._before.region(output, self.names.keys(), beyond)
            after = self._after.region(
                other or self.names.get(output, output), self._back.keys(), {self.names[name] for name in beyond}
            )
            ours, theirs = set(before.inputs), {self._back.get(name, name) for name in after.inputs}
            odd = {
                name
                for name in ours ^ theirs
                if name in self.names and len(self._before.ancestors([name]) & (ours | theirs)) > 1
            }
            if not odd:
                return before, after
            beyond |= odd

    def inputs(self, before: Region, after: Region) -> tuple[str, ...]:
        """What two regions that were :meth:`cut` read together, under its names in the first network."""
        return tuple(dict.fromkeys((*before.inputs, *(self._back.get(name, name) for name in after.inputs))))

    def renamed(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Values of the first network under their names in the second."""
        return {self.names.get(name, name): value for name, value in values.items()}


class Ground:
    """What the values of a network look like on some inputs of it, so that others can be drawn in their likeness.

    Floating-point values are free: any numbers of the same shape will do for a region. Integers, booleans, and what
    is computed from shapes alone, keep the elements that they have.

    Args:
        network: the network.
        feeds: inputs to look at; one of each shape is enough.
        seed: of the values drawn.

    Raises:
        NotInFloat64Error: the network cannot be run.
    """

    def __init__(self, network: Network, feeds: Sequence[Feed], seed: int) -> None:
        self._network = network
        self._feeds = feeds
        self._seed = seed
        self._free = _free_values(network)
        self._seen = [self._look(feed) for feed in feeds]

    def _look(self, feed: Feed) -> Seen:
        seen: dict[str, Array | tuple[int, ...]] = {}

        def see(name: str, value: Any) -> None:
            if isinstance(value, np.ndarray | np.generic):
                array = np.asarray(value)
                seen[name] = array.shape if is_float(array) and name in self._free else array

        self._network.oracle.watch(feed.values, see)
        return seen

    def trials(self, region: Region, names: Sequence[str], others: Iterable[ir.Node] = ()) -> Iterator[list[Trial]]:
        """Inputs for a region of the network, with what it computes of them: sets to be tried in turn.

        First on images no larger than need be. Who finds fault on them should look at the next set, of full size,
        before he says so. Where drawn values lead nowhere (a negative variance, say) they are the network's own.

        Args:
            region: a region of the network.
            names: what to draw: its inputs, and perhaps more.
            others: operators that will have to do with the same inputs.

        Raises:
            NotInFloat64Error: the region cannot be evaluated, or an input of it was not seen or is no tensor.
        """
        for name in names:
            if name not in self._seen[0]:
                raise NotInFloat64Error(f"{name} is no tensor, or was not computed")
        nodes = {*region.nodes, *others}
        small = [self._small(seen, names, nodes) for seen in self._seen]
        if small != self._seen:
            with suppress(NotInFloat64Error):
                trials = self._results(region, self._drawn(names, small))
                if _finite(trials):
                    yield trials
        trials = self._results(region, self._drawn(names, self._seen))
        yield trials if _finite(trials) else self._results(region, self._own(names))

    def _results(self, region: Region, feeds: Iterable[Feed]) -> list[Trial]:
        values = self._network.oracle.values
        return [(feed, values(feed.values, [region.output])[region.output]) for feed in feeds]

    def _small(self, seen: Seen, names: Sequence[str], nodes: Iterable[ir.Node]) -> Seen:
        """What was seen, with smaller images where they are all of one size."""
        sides = {shape[2:] for name in names if isinstance(shape := seen[name], tuple) and len(shape) > 2}
        if len(sides) != 1 or not all(isinstance(shape := seen[n], tuple) and len(shape) > 2 for n in names):
            return seen
        small = small_sides(nodes, sides.pop())
        return {**seen, **{name: (*shape[:2], *small) for name in names if isinstance(shape := seen[name], tuple)}}

    def _drawn(self, names: Sequence[str], shapes: Sequence[Seen]) -> Iterator[Feed]:
        """Random values in each of the shapes seen, zeros, and values of unlike magnitudes."""
        for index, seen in enumerate(shapes):
            random = np.random.default_rng((self._seed, index))
            yield Feed(f"random {index + 1}", "random", {n: _filled(seen[n], random.standard_normal) for n in names})
        random = np.random.default_rng((self._seed, len(shapes)))
        yield Feed("zeros", "zeros", {n: _filled(shapes[0][n], np.zeros) for n in names})
        yield Feed(
            "unlike magnitudes", "large", {n: _filled(shapes[0][n], lambda s: _uneven(random, s)) for n in names}
        )

    def _own(self, names: Sequence[str]) -> Iterator[Feed]:
        """The values that ``names`` have in the network itself."""
        for feed in self._feeds:
            yield Feed(feed.name, feed.kind, self._network.oracle.values(feed.values, names))


def _finite(trials: Iterable[Trial]) -> bool:
    return all(np.isfinite(result).all() for _, result in trials if is_float(result))


def _filled(seen: Array | tuple[int, ...], fill: Callable[[tuple[int, ...]], Array]) -> Array:
    return fill(seen) if isinstance(seen, tuple) else seen


def _free_values(network: Network) -> set[str]:
    """Values that depend on the elements of the inputs, not on their shapes alone."""
    free = set(network.inputs)
    for node in network.nodes:
        if node.op_type not in _SHAPE_OPS and free.intersection(network.reads(node)):
            free.update(names_of(node))
    return free


def _uneven(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Normal numbers of another magnitude, 0.001 to 1000, in each index of axis 1."""
    across = tuple(size if axis == 1 else 1 for axis, size in enumerate(shape))
    return random.standard_normal(shape) * 10.0 ** random.uniform(-3, 3, across)
