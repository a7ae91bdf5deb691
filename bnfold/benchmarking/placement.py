"""Which node of a model each kernel of ONNX Runtime's profile stands for: pure.

ONNX Runtime renames what it fuses. A kernel carries

* the name of a node, as it is or in one of ``fused NAME``, ``NAME_nchwc``, ``NAME/MatMulAddFusion``; or
* the name of the value that the fused nodes compute together, as ``VALUE_nchwc`` or ``VALUE_bn_nchwc``.

The nodes that have no kernel of their own are part of another one. If a kernel is called after a value, and its op
type is not that of the node which computes this value (a ``Conv`` called after the output of a ``Relu``), then the
nodes on the way up to the next one of its op type are in it. What is left belongs to the kernel that it reads last,
unless it reads no more than a shape or a type.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bnfold.benchmarking.kernels import Kernel
from bnfold.graph import label

_DECORATION = re.compile(r"^fused |_nchwc$|_bn$|/\w*Fusion\w*/?$|_token_\d+$|/duplicated$")


#: Op types that see the shape or the type of what they read, and no element of it.
_READ_NO_DATA = frozenset({"Shape", "Size", "CastLike"})


@dataclass(frozen=True)
class NodeInfo:
    """A node of a model file.

    Attributes:
        name: its name; its first output's where it has none.
        op: its op type.
        inputs: names of the nodes whose values it reads.
        output: name of its first output.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    output: str


def nodes_of(model: ir.Model) -> tuple[NodeInfo, ...]:
    """The nodes of a model and its subgraphs, constants left out."""
    return tuple(
        NodeInfo(
            name=label(node),
            op=node.op_type,
            inputs=tuple(label(producer) for value in node.inputs if value and (producer := value.producer())),
            output=next((value.name for value in node.outputs if value.name), ""),
        )
        for node in model.graph.all_nodes()
        if node.op_type != "Constant"
    )


def owners(nodes: Sequence[NodeInfo], kernels: Sequence[Kernel]) -> dict[str, int]:
    """For each node that is part of a kernel, which one: its index. Kernels that stand for no node are left out."""
    by_name = {node.name: node for node in nodes}
    by_output = {node.output: node for node in nodes}
    found: dict[str, int] = {}
    anchors: list[tuple[NodeInfo, int]] = []
    for index, kernel in enumerate(kernels):
        anchor = _anchor(kernel, by_name, by_output)
        if anchor is not None and anchor.name not in found:
            found[anchor.name] = index
            anchors.append((anchor, index))
    for anchor, index in anchors:
        for name in _way_up(anchor, kernels[index].op.removeprefix("Fused"), by_name, found):
            found[name] = index
    for node in nodes:
        read = [found[name] for name in node.inputs if name in found]
        if node.name not in found and read and node.op not in _READ_NO_DATA:
            found[node.name] = max(read)
    return found


def _anchor(kernel: Kernel, by_name: Mapping[str, NodeInfo], by_output: Mapping[str, NodeInfo]) -> NodeInfo | None:
    """The node that a kernel is called after."""
    for name in _undecorated(kernel.name):
        node = by_name.get(name) or by_output.get(name)
        if node is not None:
            return node
    return None


def _undecorated(name: str) -> Iterator[str]:
    """The name, and what is left of it without one thing after another that ONNX Runtime adds."""
    yield name
    while (shorter := _DECORATION.sub("", name, count=1)) != name:
        yield shorter
        name = shorter


def _way_up(anchor: NodeInfo, op: str, by_name: Mapping[str, NodeInfo], taken: Mapping[str, int]) -> list[str]:
    """The nodes from an anchor up to the nearest of an op type that has no kernel, that one included."""
    if anchor.op == op:
        return []
    came_from = {anchor.name: ""}
    queue = deque([anchor])
    while queue:
        node = queue.popleft()
        for name in node.inputs:
            if name in came_from or name in taken or name not in by_name:
                continue
            came_from[name] = node.name
            if by_name[name].op == op:
                return _trail(name, came_from)
            queue.append(by_name[name])
    return []


def _trail(name: str, came_from: Mapping[str, str]) -> list[str]:
    trail = []
    while came_from[name]:
        trail.append(name)
        name = came_from[name]
    return trail
