"""What a report tells and draws of a model: its ops, which reads what, and its size. Weights are not kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from bnfold.graph import in_default_domain, label
from bnfold.model_file import external_tensors
from bnfold.reporting.work import multiply_adds, samples_dimensions
from bnfold.shapes import ShapeTable, infer_shapes

#: What the drawing calls the ends of a graph; no operator of ONNX has such a name.
INPUT, OUTPUT, OUTER = ENDS = "input", "output", "outer value"


@dataclass(frozen=True, slots=True)
class Op:
    """One node of a graph, or one of the graph's own inputs and outputs.

    Attributes:
        name: the node's name; its first output's where it has none.
        named: whether it has a name of its own.
        op_type: its ONNX name, or :data:`INPUT`, :data:`OUTPUT`, :data:`OUTER`.
        inputs: names of the values that it reads, those read in its bodies included; "" where one is left out.
        outputs: names of the values that it computes.
        shape: of its first output, ready to print; empty where nothing is known.
        hidden: whether it computes only constants and shapes, which a drawing leaves out.
        bodies: the attributes under which it has graphs of its own, as an If has.
    """

    name: str
    named: bool
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shape: str = ""
    hidden: bool = False
    bodies: tuple[str, ...] = ()


def is_end(op: Op) -> bool:
    """Whether this is no node, but an input or output of the graph."""
    return op.op_type in ENDS


@dataclass(frozen=True, slots=True)
class Scope:
    """One graph: the main one, or a body of an If, a Loop or a Scan.

    Attributes:
        owner: name of the node that it is a body of; empty for the main graph.
        attribute: under which attribute.
        ops: inputs first, outputs last, the nodes in between in the graph's order.
    """

    owner: str
    attribute: str
    ops: tuple[Op, ...]


@dataclass(frozen=True, slots=True)
class Structure:
    """A model without its weights.

    Attributes:
        scopes: the main graph, then the bodies.
        op_counts: nodes of each kind, constants left out.
        parameters: stored numbers, those of shapes and indices left out.
        work: multiply-adds of one sample; None where shapes are missing.
        size: bytes of the file and of its external data; None for a model in memory.
    """

    scopes: tuple[Scope, ...]
    op_counts: Mapping[str, int]
    parameters: int
    work: int | None
    size: int | None = None


def inlined_like(result: ir.Model, model: ir.Model) -> ir.Model:
    """A model without the local functions that its folded ``result`` has inlined, so that both can be compared."""
    gone = set(model.functions) - set(result.functions)
    if not gone:
        return model
    copy = model.clone()
    common_passes.InlinePass(lambda function: function.identifier() in gone)(copy)
    return copy


def size_of(path: Path, model: ir.Model) -> int:
    """Bytes of the file that ``model`` was loaded from, and of those that hold its external data."""
    return sum(file.stat().st_size for file in {path, *(Path(tensor.path) for tensor in external_tensors(model))})


def structure_of(model: ir.Model) -> Structure:
    """The structure of a model in memory, which stays as it is."""
    shapes = infer_shapes(model)
    samples = samples_dimensions(model)
    works = [multiply_adds(node, shapes, samples) for graph in model.graphs() for node in graph]
    counts = Counter(node.op_type for graph in model.graphs() for node in graph if node.op_type != "Constant")
    return Structure(
        scopes=tuple(_scopes(model, shapes)),
        op_counts=counts,
        parameters=sum(tensor.size for tensor in _tensors(model) if tensor.dtype not in _INDICES),
        work=None if None in works else sum(work for work in works if work is not None),
    )


_INDICES = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.STRING)


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
        for node in graph:
            if node.op_type == "Constant" and node.outputs:
                tensor = ir.convenience.get_const_tensor(node.outputs[0])
                if tensor is not None:
                    yield tensor


def _scopes(model: ir.Model, shapes: ShapeTable) -> Iterator[Scope]:
    constant: set[ir.Value] = set()
    yield _scope(model.graph, "", "", shapes, constant)
    for graph in model.graphs():
        for node in graph:
            for attribute, body in _bodies(node):
                yield _scope(body, label(node), attribute, shapes, constant)


def _bodies(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    for name, attribute in node.attributes.items():
        if attribute.type is ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type is ir.AttributeType.GRAPHS:
            yield from ((f"{name}[{index}]", body) for index, body in enumerate(attribute.as_graphs()))


def _scope(graph: ir.Graph, owner: str, attribute: str, shapes: ShapeTable, constant: set[ir.Value]) -> Scope:
    """One graph; ``constant`` learns which values its hidden nodes compute."""
    ops: list[Op] = []
    constant |= {value for value in graph.initializers.values() if not value.is_graph_input()}
    if owner == "":
        constant |= {value for value in graph.inputs if value.is_initializer()}  # defaults: a drawing needs no line
    inputs = [value for value in graph.inputs if value not in constant]
    ops += [_end(INPUT, value, shapes) for value in inputs]
    outer = [value for node in graph for value in _reads(node) if _is_outer(value, graph) and value not in constant]
    ops += [_end(OUTER, value, shapes) for value in dict.fromkeys(outer)]
    for node in graph:
        hidden = _computes_constants(node, constant)
        if hidden:
            constant |= set(node.outputs)
        ops.append(
            Op(
                name=label(node),
                named=bool(node.name),
                op_type=node.op_type,
                inputs=tuple((value.name or "") if value is not None else "" for value in _inputs(node)),
                outputs=tuple(value.name or "" for value in node.outputs),
                shape=_shape(node.outputs[0], shapes) if node.outputs else "",
                hidden=hidden,
                bodies=tuple(attribute for attribute, _ in _bodies(node)),
            )
        )
    ops += [_end(OUTPUT, value, shapes) for value in graph.outputs]
    return Scope(owner, attribute, tuple(ops))


def _end(op_type: str, value: ir.Value, shapes: ShapeTable) -> Op:
    names = (value.name or "",)
    inside, outside = (names, ()) if op_type == OUTPUT else ((), names)
    return Op(names[0], True, op_type, inside, outside, _shape(value, shapes))


def _inputs(node: ir.Node) -> list[ir.Value | None]:
    """What a node reads; for one with bodies, also what they read from around it."""
    bodies = [body for _, body in _bodies(node)]
    if not bodies:
        return list(node.inputs)
    inner = [value for body in bodies for value in _captured(body)]
    return [*node.inputs, *(value for value in dict.fromkeys(inner) if value not in node.inputs)]


def _captured(body: ir.Graph) -> list[ir.Value]:
    """The values that a body, or a body inside it, reads from around it."""
    own = {value for node in body.all_nodes() for value in node.outputs}
    for graph in (body, *body.subgraphs()):
        own |= {*graph.inputs, *graph.initializers.values()}
    read = [value for node in body.all_nodes() for value in node.inputs if value is not None]
    return [value for value in (*read, *body.outputs) if value not in own]


def _reads(node: ir.Node) -> list[ir.Value]:
    return [value for value in _inputs(node) if value is not None]


def _is_outer(value: ir.Value, graph: ir.Graph) -> bool:
    return value.graph is not None and value.graph is not graph


def _computes_constants(node: ir.Node, constant: set[ir.Value]) -> bool:
    """Whether no data of the caller's reach the node: it works on weights, or on shapes."""
    if node.op_type.startswith("Random") or not node.outputs or next(_bodies(node), None) is not None:
        return False
    if in_default_domain(node):
        if node.op_type in ("Shape", "Size"):
            return True
        if node.op_type == "CastLike":
            return node.inputs[0] in constant
    return all(value is None or value in constant for value in node.inputs)


def _shape(value: ir.Value, shapes: ShapeTable) -> str:
    dims = shapes.shape(value)
    # A dimension that the inference itself gave a name is as good as unknown.
    known = [dim if isinstance(dim, int) or (dim and not dim.startswith("unk__")) else "?" for dim in dims or ()]
    return "" if dims is None else "×".join(map(str, known)) or "scalar"
