"""Search for a way to fold one site: backward to its producers, else forward to its consumers.

The planner only reads. A plan is a value that says what each op would absorb; it is whole or it is a refusal, and
nothing is edited on the way. Both searches are worklists, so their depth has no limit, and stop at the first thing
that stands in the way, because a fold that leaves one branch behind would change the function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from bnfold.affine import ChannelAffine
from bnfold.fold.affine_ops import expressible
from bnfold.fold.commute import RULES, OpView
from bnfold.fold.linear import LINEAR_OPS, Linear
from bnfold.fold.report import Direction, Reason, Refusal
from bnfold.fold.sites import Site, read_affine
from bnfold.graph import ModelGraph, attributes_of, in_default_domain, label, sole_user


@dataclass(frozen=True, eq=False)
class Pending:
    """What earlier plans put into the graph's ops, exact and not yet written to its constants.

    Attributes:
        linears: linear ops with all that they have absorbed.
        affines: Add, Mul and BatchNormalization nodes with the affine that they now stand for.
    """

    linears: dict[ir.Node, Linear] = field(default_factory=dict)
    affines: dict[ir.Node, ChannelAffine] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Plan:
    """How one site folds.

    Attributes:
        site: what folds.
        direction: to the producers or the consumers.
        linears: each absorbing linear op, with the affine in it.
        affines: each Add, Mul or batch norm that absorbs the affine, with its new affine.
        path: the ops crossed.
        remainder: what stays in the place of the site; the identity where nothing does.
        added: linear ops without a bias, with the shift that an Add must put behind them.
    """

    site: Site
    direction: Direction
    linears: Mapping[ir.Node, Linear]
    affines: Mapping[ir.Node, ChannelAffine]
    added: Mapping[ir.Node, ChannelAffine]
    path: tuple[ir.Node, ...]
    remainder: ChannelAffine


@dataclass
class _Search:
    """What a search has found so far."""

    linears: dict[ir.Node, Linear] = field(default_factory=dict)
    affines: dict[ir.Node, ChannelAffine] = field(default_factory=dict)
    added: dict[ir.Node, ChannelAffine] = field(default_factory=dict)
    path: list[ir.Node] = field(default_factory=list)
    work: list[tuple[ir.Value, ChannelAffine]] = field(default_factory=list)

    def met(self, node: ir.Node) -> bool:
        """Whether the search has been at ``node`` before, along another branch."""
        return node in self.linears or node in self.affines or node in self.path

    def plan(self, site: Site, direction: Direction, remainder: ChannelAffine) -> Plan:
        return Plan(site, direction, self.linears, self.affines, self.added, tuple(self.path), remainder)


def plan_backward(site: Site, graph: ModelGraph, pending: Pending) -> Plan | Refusal:
    """Move the site into the ops that produce its input.

    A MatMul has no bias to take a shift: it takes the scale, and the shift stays as one Add, which is what
    MatMul and bias have always been. Worth it unless the site was no more than that Add.
    """
    plan = _search_backward(site, site.affine, ChannelAffine.identity(), graph, pending)
    if isinstance(plan, Refusal) and plan.reason is Reason.NONZERO_SHIFT and site.affine.has_scale:
        remainder = site.affine.shift_only()
        return _search_backward(site, site.affine.scale_only(), remainder, graph, pending)
    return plan


def _search_backward(
    site: Site, affine: ChannelAffine, remainder: ChannelAffine, graph: ModelGraph, pending: Pending
) -> Plan | Refusal:
    found = _Search()
    work = [(site.source, affine)]
    while work:
        value, moving = work.pop()
        producer = value.producer()
        if producer is None:
            return _no_producer(value, graph)
        refusal = _only_ours(value, producer, site)
        if refusal:
            return refusal
        if found.met(producer):
            return Refusal(Reason.OTHER_CONSUMER, f"{label(producer)} is reached along two paths")
        if not in_default_domain(producer):
            return _not_linear(producer)
        if producer.op_type in LINEAR_OPS:
            absorbed = _absorb_after(producer, moving, graph, pending)
            if isinstance(absorbed, Refusal):
                return absorbed
            found.linears[producer] = absorbed
        elif producer.op_type in RULES:
            crossing = RULES[producer.op_type].backward(view_of(producer, graph), moving)
            if isinstance(crossing, Refusal):
                return crossing
            found.path.append(producer)
            work += [(_operand(producer, index), a) for index, a in crossing.items()]
        else:
            return _not_linear(producer)
    return found.plan(site, Direction.BACKWARD, remainder)


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _no_producer(value: ir.Value, graph: ModelGraph) -> Refusal:
    if graph.constants.array(value) is not None:
        return Refusal(Reason.UNSUPPORTED_OP, f"it would have to change the constant {value.name}")
    return Refusal(Reason.GRAPH_INPUT, f"nothing in the graph produces its input {value.name}")


def _only_ours(value: ir.Value, producer: ir.Node, site: Site) -> Refusal | None:
    """A value may be rescaled only if nothing but the site's own path ever sees it."""
    if producer.graph is not site.nodes[0].graph:
        return Refusal(Reason.OTHER_SCOPE, f"{label(producer)} belongs to another scope of the model")
    if value.is_graph_output():
        return Refusal(Reason.GRAPH_OUTPUT, f"{value.name}, the value before it, is an output of the graph")
    others = len(value.uses()) - 1
    if others > 0:
        return Refusal(
            Reason.OTHER_CONSUMER,
            f"{value.name}, the output of {label(producer)}, has {others} other consumer{'s' * (others > 1)}",
        )
    return None


def _not_linear(node: ir.Node) -> Refusal:
    return Refusal(Reason.PRODUCER_NOT_LINEAR, f"its input comes from {node.op_type} ({label(node)})")


def plan_forward(site: Site, graph: ModelGraph, pending: Pending) -> Plan | Refusal:
    """Move the site into the ops that consume its output; all of them must accept."""
    found = _Search(work=[(site.output, site.affine)])
    while found.work:
        value, moving = found.work.pop()
        if value.is_graph_output():
            return Refusal(Reason.GRAPH_OUTPUT, f"its result {value.name} is an output of the graph")
        if not value.uses():
            return Refusal(Reason.UNSUPPORTED_OP, f"nothing consumes {value.name}")
        for consumer, index in value.uses():
            refusal = _step_forward(consumer, index, value, moving, site, found, graph, pending)
            if refusal:
                return refusal
    if len(found.added) > len(site.nodes):
        return Refusal(Reason.NONZERO_SHIFT, f"{len(found.added)} ops without a bias would need an Add each")
    return found.plan(site, Direction.FORWARD, ChannelAffine.identity())


def _step_forward(
    consumer: ir.Node,
    index: int,
    value: ir.Value,
    moving: ChannelAffine,
    site: Site,
    found: _Search,
    graph: ModelGraph,
    pending: Pending,
) -> Refusal | None:
    """Let one consumer absorb the affine or pass it on."""
    if consumer.graph is not site.nodes[0].graph:
        return Refusal(Reason.OTHER_SCOPE, f"{label(consumer)} belongs to another scope of the model")
    if found.met(consumer):
        return Refusal(Reason.OTHER_CONSUMER, f"{label(consumer)} is reached along two paths")
    if not in_default_domain(consumer):
        return _consumer_not_linear(consumer)
    if consumer.op_type in LINEAR_OPS:
        if index != 0:
            return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"{label(consumer)} takes it as its weight or bias")
        return _enter_linear(consumer, moving, found, graph, pending)
    if consumer.op_type in RULES:
        crossing = RULES[consumer.op_type].forward(view_of(consumer, graph), index, moving)
        if isinstance(crossing, Refusal):
            return crossing
        found.path.append(consumer)
        found.work += [(consumer.outputs[i], a) for i, a in crossing.items()]
        return None
    combined = _combined(consumer, value, moving, graph, pending)
    if combined is None:
        return _consumer_not_linear(consumer)
    found.affines[consumer] = combined
    return None


def _enter_linear(
    node: ir.Node, moving: ChannelAffine, found: _Search, graph: ModelGraph, pending: Pending
) -> Refusal | None:
    result = _absorb_before(node, moving, graph, pending)
    if isinstance(result, Refusal):
        return result
    linear, left = result
    found.linears[node] = linear
    if left.is_identity:
        return None
    # A MatMul has no bias: its shift goes into the Add behind it, or becomes one if that costs no more than
    # the op that goes away.
    output = node.outputs[0]
    following = sole_user(output)
    if following is not None and not found.met(following):
        combined = _combined(following, output, left, graph, pending)
        if combined is not None:
            found.affines[following] = combined
            return None
    if linear.out_channels > linear.in_channels:
        return Refusal(Reason.NONZERO_SHIFT, f"{label(node)} has no bias, and adding one would cost more")
    found.added[node] = left
    return None


def _combined(
    node: ir.Node, source: ir.Value, moving: ChannelAffine, graph: ModelGraph, pending: Pending
) -> ChannelAffine | None:
    """The affine of an Add, Mul or batch norm that has absorbed one before it; None where one op cannot hold it."""
    following = read_affine(node, graph, pending.affines)
    if not isinstance(following, Site) or following.source is not source:
        return None
    combined = moving.then(following.affine)
    if combined is None or not combined.is_finite or not expressible(node.op_type, combined):
        return None
    return combined


def _consumer_not_linear(node: ir.Node) -> Refusal:
    return Refusal(Reason.CONSUMER_NOT_LINEAR, f"its result goes to {node.op_type} ({label(node)})")


def view_of(node: ir.Node, graph: ModelGraph) -> OpView:
    """What the commuting rules may know of a node."""
    constants = {
        index: array
        for index, value in enumerate(node.inputs)
        if value is not None and (array := graph.constants.array(value)) is not None
    }
    return OpView(
        op_type=node.op_type,
        opset=graph.opset,
        attributes=attributes_of(node),
        input_shapes=tuple(None if v is None else graph.shapes.shape(v) for v in node.inputs),
        output_shapes=tuple(graph.shapes.shape(v) for v in node.outputs),
        constants=constants,
    )


def read_linear(node: ir.Node, graph: ModelGraph, pending: Pending) -> Linear | Refusal:
    """The constants of a linear op, with all that it has absorbed already.

    Raises no error for a weight that is not constant: that is a refusal.
    """
    if node in pending.linears:
        return pending.linears[node]
    weight_value = node.inputs[1] if len(node.inputs) > 1 else None
    if weight_value is None:
        return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"{label(node)} has no weight")
    if graph.constants.quantized(weight_value):
        return Refusal(Reason.WEIGHT_QUANTIZED, f"the weight of {label(node)} is quantized")
    weight = graph.constants.array(weight_value)
    if weight is None:
        if graph.constants.overridable(weight_value):
            return Refusal(
                Reason.OVERRIDABLE_INPUT,
                f"the weight {weight_value.name} of {label(node)} is an input that the caller may feed",
            )
        return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"the weight of {label(node)} is computed at run time")
    attributes = attributes_of(node)
    kernel = LINEAR_OPS[node.op_type].kernel(weight, attributes)
    if isinstance(kernel, Refusal):
        return kernel
    bias_value = node.inputs[2] if LINEAR_OPS[node.op_type].has_bias and len(node.inputs) > 2 else None
    bias = None
    if bias_value is not None:
        bias = graph.constants.array(bias_value)
        if bias is None:
            return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"the bias {bias_value.name} of {label(node)} is not a constant")
        if bias.ndim and bias.shape[-1] not in (1, kernel.shape[0] * kernel.shape[1]):
            return Refusal(Reason.PARAMETERS_INVALID, f"a bias of shape {bias.shape} in {label(node)}")
    linear = Linear.of(kernel, None if bias is None else bias * np.float64(attributes.get("beta", 1.0)))
    alpha = float(attributes.get("alpha", 1.0)) if node.op_type == "Gemm" else 1.0
    if alpha == 1.0:
        return linear
    return replace(linear, out_scale=np.full(linear.out_channels, alpha))


def _absorb_after(node: ir.Node, affine: ChannelAffine, graph: ModelGraph, pending: Pending) -> Linear | Refusal:
    op = LINEAR_OPS[node.op_type]
    linear = read_linear(node, graph, pending)
    if isinstance(linear, Refusal):
        return linear
    axis = op.output_axis(graph.shapes.rank(node.outputs[0]))
    fitted = _fit(affine, axis, linear.out_channels, node)
    if isinstance(fitted, Refusal):
        return fitted
    if fitted.has_shift and not op.has_bias:
        return Refusal(Reason.NONZERO_SHIFT, f"{label(node)} has no bias to take the shift")
    result = linear.after(fitted)
    return result.problem() or result


def _absorb_before(
    node: ir.Node, affine: ChannelAffine, graph: ModelGraph, pending: Pending
) -> tuple[Linear, ChannelAffine] | Refusal:
    """The linear op with the affine in it, and the shift that it has no bias for, on its output."""
    op = LINEAR_OPS[node.op_type]
    linear = read_linear(node, graph, pending)
    if isinstance(linear, Refusal):
        return linear
    attributes = attributes_of(node)
    axis = op.input_axis(graph.shapes.rank(_operand(node, 0)), attributes)
    fitted = _fit(affine, axis, linear.in_channels, node)
    if isinstance(fitted, Refusal):
        return fitted
    if fitted.has_shift:
        weight = graph.constants.array(_operand(node, 1))
        assert weight is not None
        refusal = op.shift_before(attributes, weight.shape)
        if refusal:
            return refusal
    result = linear.before(fitted)
    left = ChannelAffine.identity()
    if not op.has_bias and result.bias is not None:
        output_axis = op.output_axis(graph.shapes.rank(node.outputs[0]))
        if output_axis is None:
            return Refusal(Reason.UNKNOWN_SHAPE, f"the rank of the output of {label(node)} is not known")
        left = ChannelAffine.along(output_axis, 1.0, result.bias)
        result = replace(result, bias=None)
    return result.problem() or (result, left)


def _fit(affine: ChannelAffine, axis: int | None, channels: int, node: ir.Node) -> ChannelAffine | Refusal:
    """The affine with one entry a channel, if it lies on the axis of the op's channels."""
    if affine.axis is None:
        return affine.spread(0, channels)
    if axis is None:
        return Refusal(Reason.UNKNOWN_SHAPE, f"the rank of a value at {label(node)} is not known")
    if affine.axis != axis:
        return Refusal(
            Reason.AXIS_MISMATCH,
            f"it scales axis {affine.axis}, and the channels of {label(node)} lie on axis {axis}",
        )
    if affine.size != channels:
        return Refusal(Reason.PARAMETERS_INVALID, f"{affine.size} scales for the {channels} channels of {label(node)}")
    return affine
