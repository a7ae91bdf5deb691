"""The candidate beside the exact fold: is it that, each constant rounded once?

Where the candidate has the operators of the exact fold and its constants are the exact ones rounded to the nearest
number of their type, it *is* the fold, and nothing needs to be run: one wrong bit in one weight shows, which no
comparison of outputs could tell. All else (other operators, constants rounded more than once) is judged by what it
computes: the region between the nearest values that both have is held against that of the reference, in float64,
under the rule of :mod:`bnfold.verification.verdict`, as if it were a model of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.progress import Progress
from bnfold.verification.algebra import Algebra
from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.measurement import Measurement
from bnfold.verification.metrics import UNIT_ROUNDOFF
from bnfold.verification.regions import Ground, Meeting, Network, Region, Trial, names_of
from bnfold.verification.twins import Twin, Twins
from bnfold.verification.verdict import Finding, Rule, judge

Array = NDArray[Any]
PieceVerdict = Literal["ok", "constants", "function", "unknown"]

#: A constant of so many elements that needed rounding tells how it was made, by the part of them that is not right:
#: damage to an element or two, or none; or the roundings of a fold in the file's own type, all over.
_TELLING = 8
_DAMAGE = 0.02

#: A file rounds its constants once if those that were made so hold at least this part of all elements, and so many.
_ROUNDED_ONCE = 0.25
_FEWEST = 32


@dataclass(frozen=True, eq=False)
class Piece:
    """A region of the candidate that is not the exact fold's, each constant rounded once.

    Attributes:
        before: the region in the reference.
        after: the same in the candidate.
        twins: the operators in it that are not what the exact fold has.
        strangers: those that have no counterpart there.
        verdict: whether it computes the same nevertheless; if not, whether ``constants`` are to blame, or more.
        finding: its largest error beside what is allowed; None where it was not, or could not be, run.
        problem: why it could not be run.
    """

    before: Region
    after: Region
    twins: tuple[Twin, ...]
    strangers: tuple[ir.Node, ...]
    verdict: PieceVerdict
    finding: Finding | None = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against it."""
        return self.verdict == "ok"


@dataclass(frozen=True, eq=False)
class Examination:
    """What was found of the candidate.

    Attributes:
        pieces: what is not plainly the exact fold, in order.
        twins: which node plays the part of which.
        rounded_once: whether the file's constants are, on the whole, the exact ones rounded once.
        common: how many inner values the candidate was cut at.
        missing: values of the exact fold that have no counterpart in the candidate.
    """

    pieces: tuple[Piece, ...]
    twins: Twins
    rounded_once: bool
    common: int
    missing: tuple[str, ...]


class Examiner:
    """Holds one candidate against the reference and its exact fold.

    Args:
        reference: the reference.
        algebra: the exact fold, with what it has in common with the reference.
        candidate: the candidate.
        twins: which node of the exact fold is which of the candidate.
        ground: what to draw inputs in the likeness of.
        rule: how much error is allowed where a region is run.
    """

    def __init__(
        self, reference: Network, algebra: Algebra, candidate: Network, twins: Twins, ground: Ground, rule: Rule
    ) -> None:
        self._reference = reference
        self._candidate = candidate
        self._ground = ground
        self._rule = replace(rule, rtol=None, atol=None)
        self._twins = twins
        self._by_found: Mapping[ir.Node, Twin] = {twin.found: twin for twin in self._twins.pairs}
        self._once = _rounded_once(self._twins.pairs)
        self._wanted = [name for name in algebra.common if name not in reference.inputs]

    def examine(self, progress: Progress) -> Examination:
        """Go through all values that the reference and the exact fold share."""
        names = {name: self._twins.names.get(name, name) for name in self._wanted}
        names = {name: other for name, other in names.items() if other in self._candidate.producers}
        names |= {name: name for name in (*self._reference.inputs, *self._reference.outputs)}
        pieces = self._pieces(names, progress)
        doubtful = {piece.before.output for piece in pieces if not piece.ok} - self._firm()
        if doubtful:
            # A name may have come to mean another value. If all is well without those in doubt, that is so.
            fewer = {name: other for name, other in names.items() if name not in doubtful}
            again = self._pieces(fewer, progress)
            if all(piece.ok for piece in again):
                names, pieces = fewer, again
        return Examination(
            pieces=tuple(pieces),
            twins=self._twins,
            rounded_once=self._once,
            common=len(names.keys() - {*self._reference.inputs, *self._reference.outputs}),
            missing=tuple(name for name in self._wanted if name not in names),
        )

    def _firm(self) -> set[str]:
        """Values whose counterpart is not in doubt."""
        made = (name for twin in self._twins.pairs if twin.firm for name in names_of(twin.expected))
        return {*self._reference.outputs, *made}

    def _pieces(self, names: Mapping[str, str], progress: Progress) -> list[Piece]:
        meeting = Meeting(self._reference, self._candidate, names)
        stops = set(names.values())
        pieces = []
        wanted = [name for name in self._wanted if name in names]
        for done, name in enumerate(wanted):
            progress("the candidate's folds", done, len(wanted))
            region = self._candidate.region(names[name], stops)
            if not region.nodes or not all(self._sound(node) for node in region.nodes):
                pieces.append(self._judged(meeting, name))
        progress("the candidate's folds", len(wanted), len(wanted))
        return pieces

    def _sound(self, node: ir.Node) -> bool:
        twin = self._by_found.get(node)
        return twin is not None and twin.sound

    def _judged(self, meeting: Meeting, name: str) -> Piece:
        before, after = meeting.cut(name)
        own = [node for node in self._candidate.nodes if node in after.nodes]
        twins = tuple(twin for node in own if (twin := self._by_found.get(node)) is not None and not twin.sound)
        piece = Piece(before, after, twins, tuple(node for node in own if node not in self._by_found), "ok")
        piece = self._run(piece, meeting)
        if self._once and any(twin.damaged for twin in twins):
            return replace(piece, verdict="constants")
        return piece

    def _run(self, piece: Piece, meeting: Meeting) -> Piece:
        """Judge a region by what it computes."""
        names = meeting.inputs(piece.before, piece.after)
        try:
            for trials in self._ground.trials(piece.before, names, piece.after.nodes):
                piece = self._judgement(piece, meeting, trials)
                if piece.ok:
                    break
        except NotInFloat64Error as refusal:
            return replace(piece, verdict="unknown", problem=str(refusal))
        return piece

    def _judgement(self, piece: Piece, meeting: Meeting, trials: Sequence[Trial]) -> Piece:
        output, other = piece.before.output, piece.after.output
        reference, candidate = self._reference.oracle, self._candidate.oracle
        feeds = [feed for feed, _ in trials]
        try:
            found = [candidate.values(meeting.renamed(feed.values), [other])[other] for feed in feeds]
        except NotInFloat64Error as refusal:
            return replace(piece, verdict="function", problem=f"it cannot be evaluated: {refusal}")
        nudged = [reference.values(feed.values, [output], nudge=seed) for seed, feed in enumerate(feeds)]
        measurement = Measurement(feeds, {output: self._dtype(piece)}, [{output: wanted} for _, wanted in trials])
        measurement.record("nudged", nudged)
        measurement.record("candidate_float64", [{output: value} for value in found])
        judgement = judge(measurement.observations()[output], self._rule)
        verdict: PieceVerdict = "ok" if judgement.equivalent else "function"
        return replace(piece, verdict=verdict, finding=judgement.worst, problem="")

    def _dtype(self, piece: Piece) -> str:
        """The coarsest type in which the reference keeps a region's constants; that of all where it has none."""
        stored = self._reference.oracle.stored
        names = {value.name for node in piece.before.nodes for value in node.inputs if value is not None}
        types = [dtype for name, dtype in stored.items() if name in names] or list(stored.values()) or ["float32"]
        return max(types, key=UNIT_ROUNDOFF.__getitem__)


def _rounded_once(twins: Iterable[Twin]) -> bool:
    """Whether a file rounded its constants once; damage, even to the largest of them, does not hide it."""
    constants = [constant for twin in twins for constant in twin.constants if not constant.problem]
    if not any(constant.off for constant in constants):
        return True
    telling = [constant for constant in constants if constant.rounded >= _TELLING]
    once = sum(c.rounded for c in telling if c.off <= max(1.0, _DAMAGE * c.rounded))
    return once >= max(_FEWEST, _ROUNDED_ONCE * sum(c.rounded for c in telling))
