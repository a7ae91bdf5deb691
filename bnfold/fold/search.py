"""A search for a way to fold a site, and the plan that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.fold.linear import Linear
from bnfold.fold.report import Direction, Reason, Refusal
from bnfold.fold.sites import Site

#: One input of one node, by index.
Use = tuple[ir.Node, int]

#: A value that is to carry an affine of what it carried, or whose readers are to take one.
Carry = tuple[ir.Value, ChannelAffine]

#: How often a search begins anew, with another choice of which input of an op takes an affine.
_ATTEMPTS = 8

#: The answer of a search that went as far as it may without an end.
TOO_FAR = Refusal(Reason.UNSUPPORTED_OP, "not searched any further")


@dataclass(frozen=True, eq=False)
class Plan:
    """How one site folds.

    Attributes:
        site: what folds.
        direction: to the producers or the consumers.
        linears: each absorbing linear op, with the affine in it.
        affines: each Add, Mul or batch norm that absorbs the affine, with its new affine.
        constants: each constant input of an op crossed that absorbs the affine, with its new value.
        added: linear ops without a bias, with the shift that an Add must put behind them.
        path: the ops crossed.
        remainder: what stays in the place of the site; the identity where nothing does.
    """

    site: Site
    direction: Direction
    linears: Mapping[ir.Node, Linear]
    affines: Mapping[ir.Node, ChannelAffine]
    constants: Mapping[Use, Float64Array]
    added: Mapping[ir.Node, ChannelAffine]
    path: tuple[ir.Node, ...]
    remainder: ChannelAffine


@dataclass
class Search:
    """One search: what it has found so far.

    The choices are the inputs that are still to be tried of each op that leaves a choice, the present one first.
    """

    site: Site
    choices: dict[ir.Node, Sequence[int]] = field(default_factory=dict)
    linears: dict[ir.Node, Linear] = field(default_factory=dict)
    affines: dict[ir.Node, ChannelAffine] = field(default_factory=dict)
    constants: dict[Use, Float64Array] = field(default_factory=dict)
    added: dict[ir.Node, ChannelAffine] = field(default_factory=dict)
    path: dict[ir.Node, None] = field(default_factory=dict)  # in order, and quick to look up

    def met(self, node: ir.Node) -> bool:
        """Whether the search has been at ``node`` before, along another branch."""
        return node in self.linears or node in self.affines or node in self.path or node in self.site.nodes

    def forward_plan(self, remainder: ChannelAffine) -> Plan | Refusal:
        """The plan, once all consumers have accepted, with what stays in the place of the site."""
        if len(self.added) > len(self.site.nodes):
            return Refusal(Reason.NO_BIAS, f"{len(self.added)} ops without a bias would need an Add each")
        return self.plan(Direction.FORWARD, remainder)

    def plan(self, direction: Direction, remainder: ChannelAffine) -> Plan:
        """The plan, with what stays in the place of the site."""
        return Plan(
            self.site,
            direction,
            linears=self.linears,
            affines=self.affines,
            constants=self.constants,
            added=self.added,
            path=tuple(self.path),
            remainder=remainder,
        )


def with_choices(site: Site, attempt: Callable[[Search], Refusal | None]) -> Search | Refusal:
    """Search again with another choice, the last one first, as long as there is one and it fails.

    Args:
        site: what is to fold.
        attempt: goes as far as it can, and says why it was not far enough, if so.

    Returns:
        The search that arrived, or why the first did not.
    """
    choices: dict[ir.Node, Sequence[int]] = {}
    refusals: list[Refusal] = []
    while len(refusals) < _ATTEMPTS:
        search = Search(site, choices)
        refusal = attempt(search)
        if refusal is None:
            return search
        refusals.append(refusal)
        while choices:
            node, left = choices.popitem()
            if len(left) > 1:
                choices[node] = left[1:]
                break
        if not choices:
            break
    return TOO_FAR if TOO_FAR in refusals else refusals[0]
