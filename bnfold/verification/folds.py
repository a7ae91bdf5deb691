"""Prove each fold by itself, its algebra and its rounding apart.

Three networks are held against each other: the reference, its exact fold (:mod:`bnfold.verification.algebra`) and the
candidate (:mod:`bnfold.verification.rounding`). A fold is proven where the exact one computes what the reference
does, and the candidate is the exact one with each constant rounded once, or computes the same within the rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir

from bnfold.fold.report import FoldRecord, FoldReport, Kept, Kind, MergeRecord
from bnfold.graph import label
from bnfold.progress import Progress, silent
from bnfold.verification.algebra import TOLERANCE, Algebra, Step, exact_folds, prove_algebra
from bnfold.verification.inputs import Feed
from bnfold.verification.oracle import Oracle
from bnfold.verification.regions import Ground, Network
from bnfold.verification.rounding import Examination, Examiner, Piece
from bnfold.verification.twins import Twins
from bnfold.verification.verdict import Rule

FoldVerdict = Literal["ok", "algebra", "constants", "function", "unknown"]
ProofKind = Literal["batch_norm", "affine", "merge", "operator"]

#: What each verdict says, worst first.
VERDICTS: dict[FoldVerdict, str] = {
    "algebra": "the fold itself is wrong",
    "function": "computes something else",
    "constants": "wrong constants",
    "unknown": "not proven",
    "ok": "proven",
}

#: Regions are looked at with inputs of this many shapes.
_SHAPES = 2


@dataclass(frozen=True)
class FoldProof:
    """What was found of one fold, or of an operator outside of all folds that is not what it was.

    Attributes:
        node: name of the batch norm or affine, of the value that a merge computes, or of the operator.
        kind: which of these.
        what: what was done with it.
        value: the value at which its region ends.
        place: where that is in the order of the reference.
        algebra: the exact fold's largest error in float64, relative to scale; None for an operator.
        ulp: the candidate's constant that is furthest from the exact one, in units in the last place of its type;
            None where it has no constants to compare.
        rounding: the same, relative to the largest magnitude of that constant.
        error: the candidate's largest error in float64 relative to scale, where its region had to be run.
        allowed: how much the rule allows.
        verdict: see :data:`VERDICTS`.
        detail: what is wrong.
    """

    node: str
    kind: ProofKind
    what: str
    value: str
    place: int
    algebra: float | None
    ulp: float | None
    rounding: float | None
    error: float | None
    allowed: float | None
    verdict: FoldVerdict
    detail: str

    @property
    def wrong(self) -> bool:
        """Whether it was shown to be wrong."""
        return self.verdict not in ("ok", "unknown")

    @property
    def badness(self) -> tuple[int, float, float]:
        """A key by which the worst comes first."""
        ratio = self.error / self.allowed if self.error is not None and self.allowed else 0.0
        return list(VERDICTS).index(self.verdict), -ratio, -(self.ulp or 0.0)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; an infinite number is written as None."""
        return {
            "node": self.node,
            "kind": self.kind,
            "what": self.what,
            "value": self.value,
            "algebra": _finite(self.algebra),
            "ulp": _finite(self.ulp),
            "rounding": _finite(self.rounding),
            "error": _finite(self.error),
            "allowed": _finite(self.allowed),
            "verdict": self.verdict,
            "detail": self.detail,
        }


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


@dataclass(frozen=True)
class FoldsResult:
    """What :func:`prove_folds` found.

    Attributes:
        proofs: one for each fold, the worst first, and for each operator outside of all folds that changed.
        untouched: operators that the candidate has just as the reference has them.
        rounded_once: whether the candidate's constants are, on the whole, the exact ones rounded once.
        notes: what a reader should know.
    """

    proofs: tuple[FoldProof, ...]
    untouched: int
    rounded_once: bool
    notes: tuple[str, ...]

    @property
    def wrong(self) -> tuple[FoldProof, ...]:
        """What was shown to be wrong."""
        return tuple(proof for proof in self.proofs if proof.wrong)

    @property
    def proven(self) -> bool:
        """Whether every fold was proven, and nothing else is wrong either."""
        return all(proof.verdict == "ok" for proof in self.proofs)

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        folds = [proof for proof in self.proofs if proof.kind != "operator"]
        if self.wrong:
            worst = self.wrong[0]
            others = f", and {len(self.wrong) - 1} more" if len(self.wrong) > 1 else ""
            return f"{worst.node}: {VERDICTS[worst.verdict]}: {worst.detail}{others}"
        unknown = sum(proof.verdict == "unknown" for proof in self.proofs)
        if unknown:
            return f"{unknown} of {len(self.proofs)} folds could not be proven by themselves"
        if not folds:
            return "nothing was folded"
        algebra = max((proof.algebra or 0.0 for proof in folds), default=0.0)
        what = "1 fold is" if len(folds) == 1 else f"{len(folds)} folds are each"
        rounding = (
            f"and each constant is the exact one rounded once (at most {max(p.ulp or 0.0 for p in folds):.2g} "
            "units in the last place away)"
            if self.rounded_once
            else "and what the candidate computes differs by no more than rounding"
        )
        return f"{what} proven alone: the algebra holds to {algebra:.1e} of each region's scale, {rounding}"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {
            "proven": self.proven,
            "sentence": self.sentence,
            "tolerance": TOLERANCE,
            "rounded_once": self.rounded_once,
            "untouched": self.untouched,
            "notes": list(self.notes),
            "folds": [proof.to_json() for proof in self.proofs],
        }


def prove_folds(
    reference: Oracle,
    candidate: Oracle,
    feeds: Sequence[Feed],
    seed: int = 0,
    rule: Rule | None = None,
    progress: Progress = silent,
) -> FoldsResult:
    """Prove each fold of a candidate by itself.

    Args:
        reference: the model before.
        candidate: the model after.
        feeds: inputs, to learn from them the shapes of inner values.
        seed: of the values that are drawn for regions.
        rule: how much error is allowed to a region that is not the exact fold rounded once.
        progress: told of each operator.

    Raises:
        NotInFloat64Error: a model holds an operator that does not run in float64.
    """
    return FoldProver(reference, candidate, feeds, seed, rule or Rule(), progress).result()


class FoldProver:
    """One proof: the three networks, and what was found of them.

    Attributes:
        reference: the reference.
        candidate: the candidate.
        algebra: the exact fold beside the reference.
        examination: the candidate beside the exact fold.
    """

    def __init__(
        self, reference: Oracle, candidate: Oracle, feeds: Sequence[Feed], seed: int, rule: Rule, progress: Progress
    ) -> None:
        self.reference, self.candidate = Network(reference), Network(candidate)
        self._places = {name: place for place, name in enumerate(self.reference.producers)}
        ground = Ground(self.reference, _one_of_each_shape(feeds), seed)
        exact, report, twins = self._exact_fold()
        self.algebra: Algebra = prove_algebra(self.reference, exact, report, ground, progress)
        self.examination: Examination = Examiner(
            self.reference, self.algebra, self.candidate, twins, ground, rule
        ).examine(progress)

    def _exact_fold(self) -> tuple[Network, FoldReport, Twins]:
        """The exact fold that the candidate is most like."""
        best: tuple[Network, FoldReport, Twins] | None = None
        for exact, report in exact_folds(self.reference, self.candidate):
            twins = Twins(exact, self.candidate, self.reference.oracle.stored)
            if best is None or twins.agreeing > best[2].agreeing:
                best = exact, report, twins
            if twins.complete:
                break
        assert best is not None
        return best

    def result(self) -> FoldsResult:
        """What was found, fold by fold."""
        proofs: list[FoldProof] = []
        told: set[Step | Piece] = set()
        for record in self._records():
            node = self.reference.producers.get(record.output)
            steps = [step for step in self.algebra.steps if node in step.before.nodes]
            pieces = [piece for piece in self.examination.pieces if _concerns(piece, node, steps)]
            told.update(steps, pieces)
            if isinstance(record, MergeRecord):
                proofs.append(self._proof(record.output, "merge", record.sentence, steps, pieces))
            else:
                kind: ProofKind = "batch_norm" if record.kind is Kind.BATCH_NORM else "affine"
                proofs.append(self._proof(record.node, kind, record.sentence, steps, pieces))
        for step in self.algebra.steps:
            if step not in told:
                proofs.append(self._proof(step.before.output, "operator", "made simpler", [step], []))
        for piece in self.examination.pieces:
            if piece not in told:
                proofs.append(self._proof(_named(piece), "operator", "no part of a fold", [], [piece]))
        return FoldsResult(
            proofs=tuple(sorted(proofs, key=lambda proof: proof.badness)),
            untouched=sum(self.candidate.holds(node, self.reference) for node in self.reference.nodes),
            rounded_once=self.examination.rounded_once,
            notes=tuple(self._notes()),
        )

    def _records(self) -> list[FoldRecord | MergeRecord]:
        report = self.algebra.report
        folded = [record for record in report.records if not isinstance(record.outcome, Kept)]
        return [*folded, *(merge for merge in report.merges if merge.into is not None)]

    def _proof(
        self, node: str, kind: ProofKind, what: str, steps: Sequence[Step], pieces: Sequence[Piece]
    ) -> FoldProof:
        twins = [
            twin
            for step in steps
            for inner in step.after.nodes
            if (twin := self.examination.twins.of.get(inner)) is not None
        ]
        constants = [c for twin in (*twins, *(t for p in pieces for t in p.twins)) for c in twin.constants if c.rounded]
        worst = max((piece.finding for piece in pieces if piece.finding), key=lambda f: f.ratio, default=None)
        verdict, detail = _verdict(steps, pieces)
        blamed: list[Step | Piece] = [piece for piece in pieces if piece.verdict == verdict] or [*steps, *pieces]
        value = blamed[0].before.output if blamed else ""
        return FoldProof(
            node=node,
            kind=kind,
            what=what,
            value=value,
            place=self._places.get(value, len(self._places)),
            algebra=max((step.error for step in steps), default=None),
            ulp=max((c.ulp for c in constants), default=None),
            rounding=max((c.relative for c in constants), default=None),
            error=None if worst is None else worst.error / worst.scale if worst.scale > 0 else worst.error,
            allowed=None if worst is None else worst.bound / worst.scale if worst.scale > 0 else worst.bound,
            verdict=verdict,
            detail=detail,
        )

    def _notes(self) -> Iterator[str]:
        found = self.examination
        if found.missing and not found.common:
            yield (
                "the files have no inner value in common that computes the same, so that the folds could only be "
                "proven together"
            )
        elif found.missing:
            shown = ", ".join(found.missing[:3]) + (", …" if len(found.missing) > 3 else "")
            yield (
                f"{len(found.missing)} values of the reference have no counterpart in the candidate ({shown}); "
                "the folds around them were proven together"
            )


def _concerns(piece: Piece, node: ir.Node | None, steps: Sequence[Step]) -> bool:
    """Whether what is odd in a region of the candidate is a matter of the fold of ``node``."""
    if piece.strangers or not piece.twins:
        return node in piece.before.nodes
    return any(twin.expected in step.after.nodes for twin in piece.twins for step in steps)


def _named(piece: Piece) -> str:
    nodes = [twin.found for twin in piece.twins] + list(piece.strangers)
    return label(nodes[0]) if nodes else piece.before.output


def _verdict(steps: Sequence[Step], pieces: Sequence[Piece]) -> tuple[FoldVerdict, str]:
    """The worst of what was found, in words."""
    for step in steps:
        if not step.ok and not step.problem:
            return "algebra", (
                f"{step.before.output} is off by {step.error:.2g} of its scale, and {TOLERANCE:g} is allowed in float64"
            )
    for verdict in VERDICTS:
        for piece in pieces:
            if piece.verdict == verdict != "ok":
                return piece.verdict, "; ".join(_complaints(piece))
    problem = next((step.problem for step in steps if step.problem), "")
    return ("unknown", problem) if problem else ("ok", "")


def _complaints(piece: Piece) -> Iterator[str]:
    if piece.problem:
        yield piece.problem
    constants = [c for twin in piece.twins for c in twin.constants if not c.sound]
    for twin in piece.twins:
        for difference in twin.differences:
            yield f"{label(twin.found)}: {difference}"
    if piece.verdict == "constants":
        yield from (constant.sentence for constant in constants)
    elif constants:
        yield f"most of all, {max(constants, key=lambda c: c.relative).sentence}"
    for node in piece.strangers:
        yield f"{label(node)} ({node.op_type}) has no counterpart in the exact fold"
    if piece.finding is not None and piece.finding.ratio > 1:
        finding = piece.finding
        if finding.problem:
            yield f"{piece.before.output}: {finding.problem}"
        else:
            size = finding.error / finding.scale if finding.scale > 0 else finding.error
            yield f"{piece.before.output} is off by {size:.2g} of its scale, {finding.ratio:.3g} times what is allowed"


def _one_of_each_shape(feeds: Sequence[Feed]) -> list[Feed]:
    chosen: dict[tuple[tuple[int, ...], ...], Feed] = {}
    for feed in feeds:
        chosen.setdefault(tuple(value.shape for value in feed.values.values()), feed)
    return list(chosen.values())[:_SHAPES]
