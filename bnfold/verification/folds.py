"""Prove each fold by itself, its algebra and its rounding apart.

Three networks are held against each other: the reference, its exact fold (:mod:`bnfold.verification.algebra`) and the
candidate (:mod:`bnfold.verification.rounding`). A fold is proven where the exact one computes what the reference
does, and the candidate is the exact one with each constant rounded once, or computes the same within the rule.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

import onnx_ir as ir

from bnfold.fold.report import FoldRecord, FoldReport, Kept, Kind, MergeRecord
from bnfold.graph import label
from bnfold.progress import Progress, silent
from bnfold.verification.algebra import Algebra, Step, exact_folds, prove_algebra
from bnfold.verification.bodies import Holder, bodies_of, holder, holders
from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.fold_proofs import VERDICTS, FoldProof, FoldsResult, FoldVerdict, ProofKind
from bnfold.verification.inputs import Feed
from bnfold.verification.oracle import Oracle
from bnfold.verification.regions import Ground, Network, Region
from bnfold.verification.rounding import Examination, Examiner, Piece
from bnfold.verification.twins import Twins
from bnfold.verification.verdict import Rule

#: Regions are looked at with inputs of this many shapes.
_SHAPES = 2


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
    opened = holders(reference.model) & holders(candidate.model)
    try:
        return FoldProver(reference, candidate, feeds, seed, rule or Rule(), progress, opened).result()
    except NotInFloat64Error:  # a branch that is not taken need not run
        if not opened:
            raise
        return FoldProver(reference, candidate, feeds, seed, rule or Rule(), progress).result()


class FoldProver:
    """One proof: the three networks, and what was found of them.

    Args:
        reference: the model before.
        candidate: the model after.
        feeds: inputs, to learn from them the shapes of inner values.
        seed: of the values that are drawn for regions.
        rule: how much error is allowed to a region that is not the exact fold rounded once.
        progress: told of each operator.
        opened: nodes of both whose subgraphs are laid open.

    Attributes:
        reference: the reference.
        candidate: the candidate.
        algebra: the exact fold beside the reference.
        examination: the candidate beside the exact fold.
    """

    def __init__(
        self,
        reference: Oracle,
        candidate: Oracle,
        feeds: Sequence[Feed],
        seed: int,
        rule: Rule,
        progress: Progress,
        opened: frozenset[Holder] = frozenset(),
    ) -> None:
        self._source, self._opened = reference, opened
        self.reference, self.candidate = (Network(oracle.laid_open(opened)) for oracle in (reference, candidate))
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
        for exact, report in exact_folds(self._source, self.reference, self.candidate, self._opened):
            twins = Twins(exact, self.candidate, self.reference.oracle.stored)
            if best is None or twins.agreeing > best[2].agreeing:
                best = exact, report, twins
            if twins.complete:
                break
            gc.collect()  # graphs refer to themselves, and hold weights in float64
        assert best is not None
        return best

    def result(self) -> FoldsResult:
        """What was found, fold by fold."""
        proofs: list[FoldProof] = []
        told: set[Step | Piece] = set()
        hidden = set(_inner_values(self.reference))
        for record in self._records():
            if record.output in hidden:
                proofs.append(_not_seen(record))
                continue
            node = self.reference.producers.get(record.output)
            steps = [step for step in self.algebra.steps if node in step.before.nodes]
            pieces = [piece for piece in self.examination.pieces if _concerns(piece, node, steps)]
            told.update(steps, pieces)
            proofs.append(self._proof(*_told(record), record.sentence, steps, pieces))
        proofs += self._rest(told)
        return FoldsResult(
            proofs=tuple(sorted(proofs, key=lambda proof: proof.badness)),
            untouched=sum(self.candidate.holds(node, self.reference) for node in self.reference.nodes),
            rounded_once=self.examination.rounded_once,
            notes=tuple(self._notes()),
        )

    def _rest(self, told: AbstractSet[Step | Piece]) -> Iterator[FoldProof]:
        """What is no part of a fold."""
        for step in self.algebra.steps:
            if step not in told and not (step.ok and self._is_opened(step.before)):
                what = self._what(step.before, "made simpler")
                yield self._proof(step.before.output, "operator", what, [step], [])
        for piece in self.examination.pieces:
            if piece not in told and not (piece.ok and self._is_opened(piece.before)):
                what = self._what(piece.before, "no part of a fold")
                yield self._proof(_named(piece), "operator", what, [], [piece])

    def _is_opened(self, region: Region) -> bool:
        """Whether it is a node whose subgraphs were looked at by themselves."""
        producer = self.reference.producers.get(region.output)
        return producer is not None and holder(producer) in self._opened

    def _what(self, region: Region, usual: str) -> str:
        """What to call a region that is no fold."""
        producer = self.reference.producers.get(region.output)
        if producer is not None and any(bodies_of(producer)):
            return "its subgraphs, run as a whole"
        return usual

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


def _inner_values(network: Network) -> Iterator[str]:
    """The names of the values inside of subgraphs."""
    for node in network.nodes:
        for body in bodies_of(node):
            yield from (str(value.name) for inner in body.all_nodes() for value in inner.outputs)


def _not_seen(record: FoldRecord | MergeRecord) -> FoldProof:
    node, kind = _told(record)
    return FoldProof(
        node=node,
        kind=kind,
        what=record.sentence,
        value=record.output,
        place=0,
        algebra=None,
        ulp=None,
        rounding=None,
        error=None,
        allowed=None,
        verdict="unknown",
        detail="it is inside of a subgraph, which could only be run as a whole",
    )


def _told(record: FoldRecord | MergeRecord) -> tuple[str, ProofKind]:
    """What a fold is called, and its kind."""
    if isinstance(record, MergeRecord):
        return record.output, "merge"
    return record.node, "batch_norm" if record.kind is Kind.BATCH_NORM else "affine"


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
                f"{step.before.output} is off by {step.error:.2g} of its scale, "
                f"and {step.allowed:.2g} is allowed in float64"
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
