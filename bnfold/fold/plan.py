"""Search for a way to fold one site: backward to its producers, or forward to its consumers.

The planner only reads. A plan is a value that says what each op would absorb; it is whole or it is a refusal, and
nothing is edited on the way. Both searches are worklists, so their depth has no limit, and stop at the first thing
that stands in the way, because a fold that leaves one branch behind would change the function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from bnfold.affine import ChannelAffine
from bnfold.fold.absorb import Pending, absorb_after, absorb_before, absorb_constant, bias_index
from bnfold.fold.affine_ops import expressible, is_single_op
from bnfold.fold.commute import RULES, OpView
from bnfold.fold.commute.rule import Crossing
from bnfold.fold.linear_ops import LINEAR_OPS
from bnfold.fold.padding import exposes_pad
from bnfold.fold.recurrent import RECURRENT_OPS
from bnfold.fold.report import Direction, Reason, Refusal
from bnfold.fold.search import TOO_FAR, Carry, Plan, Search, Use, with_choices
from bnfold.fold.sites import Selection, Site, read_affine
from bnfold.graph import ModelGraph, attributes_of, in_default_domain, input_of, label, readers, sole_reader

#: Ops that carry values over in steps, which no affine crosses unchanged.
_ROUNDING = frozenset({"DequantizeLinear", "QuantizeLinear"})

#: Why what stands between a Pad and a pool stays.
EXPOSING = Refusal(
    Reason.PADDING, "without it, ONNX Runtime would take the Pad before it into the pool behind it, wrongly"
)

#: Why ops refuse a shift that may take a scale.
_REFUSING_SHIFTS = frozenset({Reason.NONZERO_SHIFT, Reason.NO_BIAS, Reason.PADDING})


@dataclass(frozen=True, eq=False)
class Planner:
    """Plans folds in one model.

    Attributes:
        graph: the model.
        pending: what ops have absorbed so far.
        selected: which affine nodes may be touched.
        spared: which nodes of any kind must stay as they are, and go on computing what they do.
        reach: how many ops a search may cross; beyond, its answer is :data:`TOO_FAR`.
    """

    graph: ModelGraph
    pending: Pending
    selected: Selection
    spared: Selection
    reach: int

    def backward(self, site: Site) -> Plan | Refusal:
        """Move the site into the ops that produce its input.

        A MatMul has no bias to take a shift: it takes the scale, and the shift stays as one Add, which is what
        MatMul and bias have always been. Worth it unless the site was no more than that Add.
        """
        if exposes_pad(site.source, site.output, self.graph):
            return EXPOSING
        plan = self._backward(site, site.affine, ChannelAffine.identity())
        if isinstance(plan, Refusal) and plan.reason is Reason.NO_BIAS and site.affine.has_scale:
            return self._backward(site, site.affine.scale_only(), site.affine.shift_only())
        return plan

    def forward(self, site: Site) -> Plan | Refusal:
        """Move the site into the ops that consume its output; all of them must accept.

        Where they refuse a shift, they may take the scale, and the shift stays as one Add before it:
        ``s·x + t = s·(x + t/s)``. Worth it where the site is two ops and cannot become one: a batch norm is no slower
        than an Add, and ONNX Runtime computes it among convolutions in the layout that it has there. Not in float16,
        whose range ``x + t/s`` may leave where ``s·x + t`` does not.
        """
        if exposes_pad(site.source, site.output, self.graph):
            return EXPOSING
        plan = self._forward(site, site.affine, ChannelAffine.identity())
        if not isinstance(plan, Refusal) or plan.reason not in _REFUSING_SHIFTS or len(site.nodes) < 2:
            return plan
        ahead = _shift_ahead_of_scale(site.affine)
        is_narrow = self.graph.shapes.dtype(site.output) is ir.DataType.FLOAT16
        if ahead is None or is_narrow or is_single_op(site.affine, site.output, self.graph):
            return plan
        scaled = self._forward(site, site.affine.scale_only(), ahead)
        return scaled if isinstance(scaled, Plan) else plan

    def _forward(self, site: Site, affine: ChannelAffine, remainder: ChannelAffine) -> Plan | Refusal:
        search = Search(site)
        work: list[Carry] = [(site.output, affine)]
        while work:
            if len(search.path) > self.reach:
                return TOO_FAR
            value, moving = work.pop()
            if moving.is_identity:
                continue
            uses = readers_to_change(value, site)
            if isinstance(uses, Refusal):
                return uses
            for consumer, index in uses:
                beyond = self.enter(search, consumer, index, value, moving)
                if isinstance(beyond, Refusal):
                    return beyond
                work += beyond
        return search.forward_plan(remainder)

    def _backward(self, site: Site, affine: ChannelAffine, remainder: ChannelAffine) -> Plan | Refusal:
        search = with_choices(site, lambda search: self._search_backward(search, affine))
        return search if isinstance(search, Refusal) else search.plan(Direction.BACKWARD, remainder)

    def _search_backward(self, search: Search, affine: ChannelAffine) -> Refusal | None:
        work: list[Carry] = [(search.site.source, affine)]
        while work:
            if len(search.path) > self.reach:
                return TOO_FAR
            value, moving = work.pop()
            if moving.is_identity:
                continue
            producer = self.producer_to_change(value, search.site)
            if isinstance(producer, Refusal):
                return producer
            refusal = _only_ours(value, producer)
            if refusal:
                return refusal
            beyond = self.leave(search, value, producer, moving)
            if isinstance(beyond, Refusal):
                return beyond
            work += beyond
        return None

    def producer_to_change(self, value: ir.Value, site: Site) -> ir.Node | Refusal:
        """The op that yields a value which is to carry something else, if that is for the site to decide."""
        producer = value.producer()
        if self.graph.constants.array(value) is not None:
            return Refusal(Reason.UNSUPPORTED_OP, f"its input {value.name} is a constant")
        if producer is None:
            if self.graph.constants.overridable(value):
                return Refusal(Reason.OVERRIDABLE_INPUT, f"{value.name} is an input that the caller may feed")
            return Refusal(Reason.GRAPH_INPUT, f"nothing in the graph produces its input {value.name}")
        if producer.graph is not site.nodes[0].graph:
            return Refusal(Reason.OTHER_SCOPE, f"{label(producer)} belongs to another scope of the model")
        if value.is_graph_output():
            return Refusal(Reason.GRAPH_OUTPUT, f"{value.name}, the value before it, is an output of the graph")
        return producer

    def leave(
        self, search: Search, value: ir.Value, producer: ir.Node, moving: ChannelAffine
    ) -> Sequence[Carry] | Refusal:
        """Let the producer of a value absorb the affine or pass it on; what its inputs are to carry then."""
        if search.met(producer):
            return _twice(producer)
        if self.spared(producer):
            return left_out(producer)
        reading = read_affine(producer, self.graph, self.pending.affines)
        if isinstance(reading, Site):
            return self._leave_affine(search, reading, moving)
        if self._is_linear(producer):
            absorbed = absorb_after(producer, moving, self.graph, self.pending)
            if isinstance(absorbed, Refusal):
                return absorbed
            search.linears[producer] = absorbed
            return ()
        if in_default_domain(producer) and producer.op_type in RULES:
            return self._leave_across(search, producer, value.index() or 0, moving)
        if producer.op_type in _ROUNDING:
            return Refusal(
                Reason.ROUNDED_BETWEEN, f"{label(producer)} ({producer.op_type}) rounds what comes before it"
            )
        return Refusal(Reason.PRODUCER_NOT_LINEAR, f"its input comes from {producer.op_type} ({label(producer)})")

    def _leave_affine(self, search: Search, producer: Site, moving: ChannelAffine) -> Sequence[Carry] | Refusal:
        """Let an affine op absorb what follows it, or the shift alone: ``s·(p·x + q) + t = p·(s·x) + (s·q + t)``."""
        (node,) = producer.nodes
        if not self.selected(node):
            return left_out(node)
        combined = producer.affine.then(moving)
        if combined is not None and expressible(node, combined, self.graph):
            search.affines[node] = combined
            return ()
        shifted = producer.affine.shift_only().then(moving)
        rest = None if shifted is None else producer.affine.scale_only().then(shifted.shift_only())
        if rest is None:
            return Refusal(Reason.AXIS_MISMATCH, f"it scales another axis than {label(node)} shifts")
        if rest.equals(producer.affine):
            search.path[node] = None
        elif expressible(node, rest, self.graph):
            search.affines[node] = rest
        else:
            return Refusal(Reason.NONZERO_SHIFT, f"{label(node)} ({node.op_type}) does not take the shift")
        return [(producer.source, moving.scale_only())]

    def _leave_across(
        self, search: Search, producer: ir.Node, index: int, moving: ChannelAffine
    ) -> Sequence[Carry] | Refusal:
        """Let an op with a rule pass the affine on to its inputs; those that are constants absorb it."""
        rule, view = RULES[producer.op_type], view_of(producer, self.graph, self.pending)
        choice = search.choices.setdefault(producer, rule.carriers(view, moving))
        if choice:
            view = replace(view, carrier=choice[0])
        crossing = rule.backward(view, index, moving)
        if isinstance(crossing, Refusal):
            return crossing
        search.path[producer] = None
        return self.give_to_inputs(search, producer, view, crossing)

    def give_to_inputs(
        self, search: Search, node: ir.Node, view: OpView, crossing: Crossing
    ) -> Sequence[Carry] | Refusal:
        """Let those inputs of an op that are constants absorb what its rule has for them; what is for the others."""
        beyond: list[Carry] = []
        for operand, affine in crossing.items():
            if operand not in view.constants:
                beyond.append((input_of(node, operand), affine))
            elif not affine.is_identity:
                refusal = self._absorb_constant(search, node, operand, affine)
                if refusal:
                    return refusal
        return beyond

    def _absorb_constant(self, search: Search, node: ir.Node, index: int, affine: ChannelAffine) -> Refusal | None:
        """Let a constant input of an op absorb what its rule has for it."""
        exact = RULES[node.op_type].constant(view_of(node, self.graph, self.pending), index, affine)
        if isinstance(exact, Refusal):
            return exact
        refusal = absorb_constant(input_of(node, index), exact, affine, self.graph)
        if refusal is None:
            search.constants[node, index] = exact
        return refusal

    def _is_linear(self, node: ir.Node) -> bool:
        """Whether a node is linear with a weight of its own; a MatMul of two activations has none."""
        if not in_default_domain(node) or node.op_type not in LINEAR_OPS:
            return False
        if node.op_type != "MatMul" or len(node.inputs) < 2:
            return True
        weight = input_of(node, 1)
        constants = self.graph.constants
        return constants.array(weight) is not None or constants.overridable(weight) or constants.quantized(weight)

    def _begins_linear(self, node: ir.Node) -> bool:
        """Whether the first that a node does to its data is linear, with a weight of its own."""
        return self._is_linear(node) or (in_default_domain(node) and node.op_type in RECURRENT_OPS)

    def enter(
        self, search: Search, consumer: ir.Node, index: int, value: ir.Value, moving: ChannelAffine
    ) -> Sequence[Carry] | Refusal:
        """Let one consumer of a value absorb the affine or pass it on; what is for the readers of its outputs."""
        if consumer.graph is not search.site.nodes[0].graph:
            return Refusal(Reason.OTHER_SCOPE, f"{label(consumer)} belongs to another scope of the model")
        if search.met(consumer):
            return _twice(consumer)
        if self.spared(consumer):
            return left_out(consumer)
        if self._begins_linear(consumer):
            if index in (1, bias_index(consumer)):
                return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"{label(consumer)} takes it as its weight or bias")
            if index == 0:
                return self._enter_linear(search, consumer, moving)
        combined = self._combined(consumer, value, moving)
        if combined is not None:
            search.affines[consumer] = combined
            return ()
        if in_default_domain(consumer) and consumer.op_type in RULES:
            return self._enter_across(search, consumer, index, moving)
        return Refusal(Reason.CONSUMER_NOT_LINEAR, f"its result goes to {consumer.op_type} ({label(consumer)})")

    def _enter_across(
        self, search: Search, consumer: ir.Node, index: int, moving: ChannelAffine
    ) -> Sequence[Carry] | Refusal:
        """Let a constant beside the affine absorb it, or else the op pass it on to its outputs."""
        rule, view = RULES[consumer.op_type], view_of(consumer, self.graph, self.pending)
        # Not of an affine op, whose constant may no longer be what it stands for.
        if not isinstance(read_affine(consumer, self.graph, self.pending.affines), Site):
            for operand, affine in rule.aside(view, index, moving).items():
                if self._absorb_constant(search, consumer, operand, affine) is None:
                    search.path[consumer] = None
                    return ()
        crossing = rule.forward(view, index, moving)
        if isinstance(crossing, Refusal):
            return crossing
        search.path[consumer] = None
        return [(consumer.outputs[i], affine) for i, affine in crossing.items()]

    def _enter_linear(self, search: Search, node: ir.Node, moving: ChannelAffine) -> Sequence[Carry] | Refusal:
        result = absorb_before(node, moving, self.graph, self.pending)
        if isinstance(result, Refusal):
            return result
        linear, left = result
        search.linears[node] = linear
        if left.is_identity:
            return ()
        # A MatMul has no bias: its shift goes into the Add behind it, or becomes one if that costs no more than
        # the op that goes away.
        output = node.outputs[0]
        following = sole_reader(output)
        if following is not None and following.graph is node.graph and not search.met(following):
            combined = self._combined(following, output, left)
            if combined is not None:
                search.affines[following] = combined
                return ()
        if linear.out_channels > linear.in_channels:
            return Refusal(Reason.NO_BIAS, f"{label(node)} has no bias, and adding one would cost more")
        search.added[node] = left
        return ()

    def _combined(self, node: ir.Node, source: ir.Value, moving: ChannelAffine) -> ChannelAffine | None:
        """The affine of an Add, Mul or batch norm that absorbs one before it; None where that one op cannot hold it."""
        if not self.selected(node):
            return None
        following = read_affine(node, self.graph, self.pending.affines)
        if not isinstance(following, Site) or following.source is not source:
            return None
        combined = moving.then(following.affine)
        if combined is None or not expressible(node, combined, self.graph):
            return None
        return combined


def _shift_ahead_of_scale(affine: ChannelAffine) -> ChannelAffine | None:
    """What is added to ``x`` where only the scale comes after it; None where there is no scale, or one is 0."""
    if not affine.has_scale or not affine.scale.all():
        return None
    return ChannelAffine.along(affine.axis, 1.0, affine.shift / affine.scale)


def left_out(node: ir.Node) -> Refusal:
    """A node takes nothing because the caller wants it as it is."""
    return Refusal(Reason.NOT_SELECTED, f"{label(node)} is left out by the choice of nodes")


def _twice(node: ir.Node) -> Refusal:
    return Refusal(Reason.UNSUPPORTED_OP, f"paths that part meet again at {label(node)}, which can change only once")


def readers_to_change(value: ir.Value, site: Site) -> Sequence[Use] | Refusal:
    """The readers of a value that are all to take an affine, if it is for the site to decide what they read."""
    if value.is_graph_output():
        if _leads_only_to(site.output, value):
            return Refusal(Reason.NO_CONSUMER, f"no op follows: {value.name} is an output of the graph")
        return Refusal(Reason.GRAPH_OUTPUT, f"its result {value.name} is an output of the graph")
    uses = readers(value)
    if not uses and value is site.output:
        return Refusal(Reason.UNSUPPORTED_OP, f"nothing reads the elements of {value.name}")
    return uses


def _leads_only_to(value: ir.Value, end: ir.Value) -> bool:
    """Whether nothing comes of a value but, perhaps after other ops, one at which the graph ends."""
    while value is not end:
        reader = sole_reader(value)
        if reader is None or len(reader.outputs) != 1:
            return False
        value = reader.outputs[0]
    return not readers(end, most=1)


def _only_ours(value: ir.Value, producer: ir.Node) -> Refusal | None:
    """A value may be rescaled only if nothing but the site's own path ever sees it."""
    first, *others = [label(node) for node, _ in readers(value, most=3)]
    if others:
        read_by = f"{first} and {others[0]}" if len(others) == 1 else f"{first}, {others[0]} and others"
        return Refusal(Reason.OTHER_CONSUMER, f"{value.name}, the output of {label(producer)}, is read by {read_by}")
    return None


def view_of(node: ir.Node, graph: ModelGraph, pending: Pending) -> OpView:
    """What the commuting rules may know of a node."""
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:  # an optional input given as "" is as good as absent
        inputs.pop()
    constants = {
        index: array
        for index, value in enumerate(inputs)
        if value is not None and (array := graph.constants.array(value)) is not None
    }
    constants |= {i: exact for i in constants if (exact := pending.constants.get(input_of(node, i))) is not None}
    return OpView(
        op_type=node.op_type,
        opset=graph.opset,
        attributes=attributes_of(node),
        input_shapes=tuple(None if v is None else graph.shapes.shape(v) for v in inputs),
        output_shapes=tuple(graph.shapes.shape(v) for v in node.outputs),
        present=frozenset(index for index, value in enumerate(inputs) if value is not None),
        constants=constants,
    )
