"""The reference evaluator with bnfold's fast operators, watched for any operator that leaves float64.

Importing this module imports :mod:`onnx.reference`, which takes a noticeable part of a second: import it late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.operators import OPERATORS

#: Types that carry less than float64 and must not appear while a model runs in float64.
_NARROW = frozenset(np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16))

#: What operators of onnx.reference raise on input that they do not support; they have no class of their own.
#: MemoryError, KeyboardInterrupt and the like are not among them.
_FAILURES = (
    NotInFloat64Error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,  # includes NotImplementedError
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Late:
    """A value that is made when it is first read, and let go after it was last read: weights of which there are two.

    Attributes:
        make: makes it.
    """

    make: Callable[[], Any]


class Evaluator64(ReferenceEvaluator):
    """Evaluates a graph whose floating-point values are all float64.

    It differs from its parent in three ways: :data:`OPERATORS` replace slow and wrong implementations, also in
    subgraphs; a value is dropped after its last use; a floating-point result of an operator that is narrower than
    float64 is widened and the operator noted in :attr:`narrow`.

    Raises:
        NotInFloat64Error: (on construction and in :meth:`run`) an operator is unknown, or does not run in float64.
    """

    def __init__(self, proto: Any, **settings: Any) -> None:
        self.narrow: set[str] = set()
        # The parent hands its operators on to the evaluators of subgraphs; these arrive here in ``settings``.
        settings["new_ops"] = settings.get("new_ops") or list(OPERATORS)
        try:
            super().__init__(proto, **settings)
        except _FAILURES as error:
            raise NotInFloat64Error(_first_line(error)) from error
        self._dead_after = _dead_after(self.rt_nodes_)
        self._reads = [list(_reads(node.onnx_node)) for node in self.rt_nodes_]
        self._producers = {name: index for index, node in enumerate(self.rt_nodes_) for name in node.output if name}

    def run(  # type: ignore[override]  # the parent's signature, of which only these three are used
        self,
        output_names: list[str] | None,
        feed_inputs: dict[str, Any],
        attributes: dict[str, Any] | None = None,
        **_settings: Any,
    ) -> list[Any]:
        """The values of ``output_names`` (any value of the graph; None for its outputs).

        Among ``feed_inputs`` there may be values that are :class:`Late`.
        """
        wanted = list(self.output_names if output_names is None else output_names)
        return self._execute(range(len(self.rt_nodes_)), wanted, feed_inputs, attributes)

    def between(
        self, feeds: Mapping[str, Any], names: Iterable[str], see: Callable[[str, Any], None] | None = None
    ) -> list[Any]:
        """Values of the graph from other values of it: only the nodes on the way are run.

        Args:
            feeds: values by name, inner ones as well as inputs.
            names: what is wanted.
            see: told of each value that is computed.
        """
        wanted = list(names)
        way = self._on_the_way(feeds, wanted)
        read = {*wanted, *(name for index in way for name in self._reads[index])}
        return self._execute(way, wanted, {name: feeds[name] for name in read if name in feeds}, None, see)

    def reads_between(self, feeds: Mapping[str, Any], names: Iterable[str]) -> set[str]:
        """Every value that the nodes on the way from ``feeds`` to ``names`` read."""
        way = self._on_the_way(feeds, names)
        return {name for index in way for name in self._reads[index]}

    def _on_the_way(self, feeds: Mapping[str, Any], names: Iterable[str]) -> list[int]:
        """The nodes that compute ``names`` from ``feeds``, in order."""
        way: set[int] = set()
        work = [name for name in names if name not in feeds]
        while work:
            index = self._producers.get(work.pop())
            if index is not None and index not in way:
                way.add(index)
                work += [name for name in self._reads[index] if name not in feeds]
        return sorted(way)

    def _execute(
        self,
        way: Iterable[int],
        wanted: Sequence[str],
        feeds: Mapping[str, Any],
        attributes: dict[str, Any] | None,
        see: Callable[[str, Any], None] | None = None,
    ) -> list[Any]:
        kept = set(wanted)
        values: dict[str, Any] = {"": None, **self.rt_inits_, **feeds}
        for index in way:
            node = self.rt_nodes_[index]
            _make_late(values, self._reads[index])
            results = self._run_node(node, values, attributes)
            for name, result in zip(node.output, results, strict=False):
                if not name:
                    continue  # an output left out must not become the input left out of a later node
                values[name] = result
                if see is not None:
                    see(name, result)
            for name in self._dead_after[index] - kept:
                values.pop(name, None)
        _make_late(values, wanted)
        return [values[name] for name in wanted]

    def narrowed(self) -> set[str]:
        """The operators, subgraphs included, that computed in less than float64."""
        found = set(self.narrow)
        for node in self.rt_nodes_:
            for attribute in node.attributes_names_:
                body = getattr(node, attribute)
                if isinstance(body, Evaluator64):
                    found |= body.narrowed()
        return found

    def _run_node(self, node: OpRun, values: dict[str, Any], attributes: dict[str, Any] | None) -> list[Any]:
        settings: dict[str, Any] = {}
        if node.has_linked_attribute and attributes:
            settings["linked_attributes"] = attributes
        if node.need_context():
            settings["context"] = values
        try:
            results: Sequence[Any] = node.run(  # type: ignore[no-untyped-call]
                *(values[name] for name in node.input), **settings
            )
        except _FAILURES as error:
            raise NotInFloat64Error(f"{_label(node.onnx_node)}: {_first_line(error)}") from error
        return [self._widened(result, node) for result in results]

    def _widened(self, result: Any, node: OpRun) -> Any:
        if isinstance(result, list):
            return [self._widened(item, node) for item in result]
        if isinstance(result, np.ndarray) and result.dtype in _NARROW:
            self.narrow.add(node.op_type)
            return result.astype(np.float64)
        return result


def _make_late(values: dict[str, Any], names: Iterable[str]) -> None:
    """Make those of ``names`` that are late."""
    for name in names:
        value = values.get(name)
        if isinstance(value, Late):
            values[name] = value.make()


def _dead_after(nodes: list[OpRun]) -> list[set[str]]:
    """For each node, the values that no later node reads."""
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        last.update((name, index) for name in node.output)  # an output that nobody reads dies at once
        last.update((name, index) for name in _reads(node.onnx_node))
    dead: list[set[str]] = [set() for _ in nodes]
    for name, index in last.items():
        if name:
            dead[index].add(name)
    return dead


def _reads(node: NodeProto) -> Iterator[str]:
    """The values that a node reads, those of the outer scope in its subgraphs included."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield from _graph_reads(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            for graph in attribute.graphs:
                yield from _graph_reads(graph)


def _graph_reads(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from _reads(node)
    for output in graph.output:
        yield output.name


def _label(node: NodeProto) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else f"{node.op_type} → {', '.join(node.output)}"


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, TypeError) and error.__cause__ else error
    line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return line if len(line) <= 200 else line[:197] + "..."
