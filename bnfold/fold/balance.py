"""Fold a site forward past sums, whose other summands are divided by its scale to keep the balance.

A batch norm behind an activation, and before the sum of a residual block, can go neither way by itself. But::

    (s·x + t) + o = s·(x + o/s) + t

so what reads the sum takes ``s`` and ``t``, what yields ``o`` takes ``1/s``, and whatever else reads ``o`` takes ``s``
back; and so on, until all of it has ended in ops that absorb it, or one refuses and nothing is done.

No precision is lost to it: floating-point numbers are as precise at one scale as at another, and a shift, which would
cancel, is never taken back. What could be lost is range: of values that the model never had, ``o/s``. So the scales are
limited, and half precision, whose range is narrow, is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnfold.affine import ChannelAffine
from bnfold.fold.affine_ops import expressible
from bnfold.fold.commute import RULES
from bnfold.fold.padding import exposes_pad
from bnfold.fold.plan import Planner, readers_to_change, view_of
from bnfold.fold.report import Kind, Reason, Refusal
from bnfold.fold.search import TOO_FAR, Plan, Search, with_choices
from bnfold.fold.sites import Site, read_affine
from bnfold.graph import ModelGraph, in_default_domain, label, readers

#: Types whose range leaves room for values that are larger or smaller than the model's own.
_WIDE = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})

#: The largest scale, and the inverse of the smallest, by which a value is divided.
_LARGEST = 2.0**16

#: How many ops may absorb a part of it: a value that hundreds read would be looked at for each site beside it.
_MOST_ENDS = 32


@dataclass(frozen=True, eq=False)
class _Ahead:
    """The readers of a value are to take an affine, all but the one that asked for it."""

    value: ir.Value
    affine: ChannelAffine
    asked_by: ir.Node | None


@dataclass(frozen=True, eq=False)
class _Behind:
    """A value is to carry a scale of what it carried, because one of its readers asks for it."""

    value: ir.Value
    scale: ChannelAffine
    asked_by: ir.Node


_Step = _Ahead | _Behind


def balanced(planner: Planner, site: Site) -> Plan | None:
    """Move a site into the ops that consume its output, and its inverse scale into the other summands on the way.

    None where that cannot be: the report tells why the site could go neither backward nor forward by itself.
    """
    if not _may_divide(site, planner.graph) or exposes_pad(site.source, site.output, planner.graph):
        return None
    search = with_choices(site, lambda search: _search(planner, search))
    plan = search if isinstance(search, Refusal) else search.forward_plan(ChannelAffine.identity())
    return plan if isinstance(plan, Plan) else None


def _search(planner: Planner, search: Search) -> Refusal | None:
    work: list[_Step] = [_Ahead(search.site.output, search.site.affine, None)]
    while work:
        if _too_far(planner, search):
            return TOO_FAR
        step = work.pop()
        more = _go_ahead(planner, search, step) if isinstance(step, _Ahead) else _go_back(planner, search, step)
        if isinstance(more, Refusal):
            return more
        work += more
    return None


def _too_far(planner: Planner, search: Search) -> bool:
    return len(search.path) > planner.reach or len(search.linears) + len(search.affines) > _MOST_ENDS


def _may_divide(site: Site, graph: ModelGraph) -> bool:
    """Whether values may be divided by the scale of a site: within their range, and for more than a shift's sake."""
    size = np.abs(site.affine.scale)
    return (
        site.affine.has_scale
        and not _ort_sums_it_too(site, graph)
        and graph.shapes.dtype(site.output) in _WIDE
        and not np.any(size > _LARGEST)
        and not np.any(size < 1 / _LARGEST)
    )


def _ort_sums_it_too(site: Site, graph: ModelGraph) -> bool:
    """Whether ONNX Runtime's CPU provider may compute a batch norm together with the sum behind it.

    In its blocked layout, which takes float32 images, a batch norm is a convolution, and that adds what it is summed
    with. Without it the Add is an op of its own: ConvMixer was up to 8 % slower.
    """
    is_image = graph.shapes.dtype(site.output) is ir.DataType.FLOAT and graph.shapes.rank(site.output) in (4, None)
    return is_image and site.kind is Kind.BATCH_NORM


def _go_ahead(planner: Planner, search: Search, step: _Ahead) -> Sequence[_Step] | Refusal:
    """Let the readers of a value absorb an affine or pass it on."""
    if step.affine.is_identity:
        return ()
    uses = readers_to_change(step.value, search.site)
    if isinstance(uses, Refusal):
        return uses
    more: list[_Step] = []
    for consumer, index in uses:
        if consumer is step.asked_by:
            continue
        if _too_far(planner, search):
            return TOO_FAR
        beyond = planner.enter(search, consumer, index, step.value, step.affine)
        if isinstance(beyond, Refusal):
            past = _past_sum(planner, search, consumer, index, step.affine)
            if past is None:
                return beyond
            more += past
        else:
            more += (_Ahead(value, affine, None) for value, affine in beyond)
    return more


def _past_sum(
    planner: Planner, search: Search, node: ir.Node, index: int, affine: ChannelAffine
) -> Sequence[_Step] | None:
    """Let a sum that takes nothing by itself pass an affine on, its other summands divided by the scale."""
    if search.met(node) or not in_default_domain(node) or node.op_type not in RULES:
        return None
    if node.graph is not search.site.nodes[0].graph or planner.spared(node):
        return None
    reading = read_affine(node, planner.graph, planner.pending.affines)
    if isinstance(reading, Site):
        return _past_affine(planner, search, reading, affine)
    view = view_of(node, planner.graph, planner.pending)
    crossing = RULES[node.op_type].balanced(view, index, affine)
    if isinstance(crossing, Refusal):
        return None
    outputs, others = crossing
    behind = planner.give_to_inputs(search, node, view, others)
    if isinstance(behind, Refusal):
        return None
    search.path[node] = None
    return [
        *(_Ahead(node.outputs[i], after, None) for i, after in outputs.items()),
        *(_Behind(value, scale, node) for value, scale in behind),
    ]


def _past_affine(planner: Planner, search: Search, following: Site, affine: ChannelAffine) -> Sequence[_Step] | None:
    """Let an affine op take the shift and pass on the scale: ``p·(s·x + t) + q = s·(p·x + (p·t + q)/s)``.

    It goes by what the op stands for, not by its constant, which may not have been written yet.
    """
    (node,) = following.nodes
    if not planner.selected(node):
        return None
    both, back = affine.then(following.affine), affine.scale_only().inverse()
    whole = None if both is None else both.shift_only().then(back)
    rest = None if whole is None else following.affine.scale_only().then(whole.shift_only())
    if rest is None or not expressible(node, rest, planner.graph):
        return None
    search.affines[node] = rest
    return [_Ahead(following.output, affine.scale_only(), None)]


def _go_back(planner: Planner, search: Search, step: _Behind) -> Sequence[_Step] | Refusal:
    """Let the producer of a value absorb a scale or pass it on, and let the value's other readers take it back."""
    if step.scale.is_identity:
        return ()
    producer = planner.producer_to_change(step.value, search.site)
    if isinstance(producer, Refusal):
        return producer
    if [node for node, _ in readers(step.value)].count(step.asked_by) != 1:
        return Refusal(Reason.OTHER_CONSUMER, f"{label(step.asked_by)} reads {step.value.name} more than once")
    beyond = planner.leave(search, step.value, producer, step.scale)
    if isinstance(beyond, Refusal):
        return beyond
    return [
        _Ahead(step.value, step.scale.inverse(), step.asked_by),
        *(_Behind(value, scale, producer) for value, scale in beyond),
    ]
