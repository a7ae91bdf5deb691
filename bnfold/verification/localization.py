"""Where a mismatch comes from: the first tensor that differs, and which fold, operator or optimization is to blame.

* The *file* is wrong: fold by fold, on inputs of their own, so that one wrong operator does not hide the next. If the
  fold itself is wrong, the engine is run again up to the n-th affine, and n found by bisection.
* *ONNX Runtime's optimizations* are wrong: sessions without some of them, by bisection over their names.
* *ONNX Runtime computes* something else than float64: the first tensor that overflows, or departs from float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.errors import ModelError
from bnfold.fold import fold
from bnfold.fold.report import FoldReport, Kept
from bnfold.graph import label
from bnfold.progress import Progress, silent
from bnfold.verification.bisection import OPTIMIZERS, first_culprit, smallest_cure
from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.fold_proofs import VERDICTS, FoldProof, FoldsResult
from bnfold.verification.inputs import Feed
from bnfold.verification.metrics import deviation, scale_of
from bnfold.verification.oracle import Oracle
from bnfold.verification.subject import Subject
from bnfold.verification.tensors import all_in_float64, all_in_runtime, first_departure
from bnfold.verification.verdict import Run

Array = NDArray[Any]
CauseKind = Literal["fold", "operator", "engine", "optimization", "tensor", "unknown"]

#: A tensor departs where it is off by more than this many unit roundoffs of its scale.
_ROUNDOFFS = 64

#: An engine that folds rightly is off by far less in float64, over a whole network.
_ENGINE_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Evidence:
    """One line of what was found: a name, what it is, and what was seen of it."""

    name: str
    what: str
    detail: str


@dataclass(frozen=True)
class Cause:
    """Where a mismatch comes from.

    Attributes:
        kind: a ``fold`` or an ``operator`` of the candidate; a rule of bnfold's ``engine``; an ``optimization`` of
            ONNX Runtime; a ``tensor`` that ONNX Runtime computes otherwise; or ``unknown``.
        culprits: their names.
        sentence: the finding in words.
        evidence: all that was found, in the order of the graph.
    """

    kind: CauseKind
    culprits: tuple[str, ...]
    sentence: str
    evidence: tuple[Evidence, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {
            "kind": self.kind,
            "culprits": list(self.culprits),
            "sentence": self.sentence,
            "evidence": [{"name": e.name, "what": e.what, "detail": e.detail} for e in self.evidence],
        }


@dataclass(frozen=True)
class Mismatch:
    """What is known when the cause of a mismatch is looked for.

    Attributes:
        reference: the reference.
        candidate: the candidate.
        oracles: both in float64, where that is possible.
        feed: inputs on which the mismatch shows.
        failed: the runs of the candidate that are off; none where only the proof of a fold is.
        level: ONNX Runtime's optimization level of the shipped run.
        roundoff: unit roundoff of the outputs' type.
        folds: proves each fold by itself; raises NotInFloat64Error where that is not possible.
        agrees: whether the shipped run is right without some of ONNX Runtime's optimizations.
    """

    reference: Subject
    candidate: Subject
    oracles: tuple[Oracle, Oracle] | None
    feed: Feed
    failed: frozenset[Run]
    level: str
    roundoff: float
    folds: Callable[[], FoldsResult]
    agrees: Callable[[Sequence[str]], bool]


def find_cause(mismatch: Mismatch, progress: Progress = silent) -> Cause:
    """Where a mismatch comes from.

    Args:
        mismatch: what is known.
        progress: told of each trial.
    """
    if mismatch.failed == {"candidate_shipped"}:
        return cause_in_optimizations(mismatch.agrees, mismatch.level, progress)
    model, feed = mismatch.candidate.model, mismatch.feed
    try:
        if mismatch.oracles is None:
            expected, found = all_in_runtime(mismatch.reference, feed), all_in_runtime(mismatch.candidate, feed)
            where = "from the reference in ONNX Runtime with optimizations off"
        elif mismatch.failed and "candidate_float64" not in mismatch.failed:
            expected, found = all_in_float64(mismatch.oracles[1], feed), all_in_runtime(mismatch.candidate, feed)
            where = "from float64 in ONNX Runtime with optimizations off"
        else:
            with suppress(NotInFloat64Error):
                cause = cause_in_file(mismatch.folds(), mismatch.oracles[0], feed, progress)
                if cause is not None:
                    return cause
            expected, found = (all_in_float64(oracle, feed) for oracle in mismatch.oracles)
            model, where = mismatch.oracles[1].model, "from the reference in float64"
    except ModelError as error:
        return Cause("unknown", (), f"the tensors cannot be looked at one by one: {error}")
    return cause_in_tensors(model, expected, found, mismatch.roundoff, where)


def cause_in_file(folds: FoldsResult, reference: Oracle, feed: Feed, progress: Progress = silent) -> Cause | None:
    """The first fold or operator of the candidate that is wrong; None where none is.

    Args:
        folds: the proof of each fold.
        reference: the reference.
        feed: inputs on which a wrong engine shows.
        progress: told of each trial.
    """
    wrong = sorted(folds.wrong, key=lambda proof: proof.place)
    if not wrong:
        return None
    first = wrong[0]
    evidence = tuple(
        Evidence(proof.node, _what(proof), f"{VERDICTS[proof.verdict]}: {proof.detail}") for proof in wrong
    )
    if any(proof.verdict == "algebra" for proof in wrong):
        node = wrong_engine_fold(reference, feed, progress) or first.node
        return Cause(
            "engine",
            (node,),
            f"the fold of {node} is wrong by itself, before any rounding: please report it, and leave it out with "
            f"--keep {node}",
            evidence,
        )
    more = f"; {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
    kind: CauseKind = "operator" if first.kind == "operator" else "fold"
    sentence = f"the first tensor that differs is {first.value}, {_belonging(first)}: {first.detail}{more}"
    return Cause(kind, tuple(dict.fromkeys(proof.node for proof in wrong)), sentence, evidence)


def _what(proof: FoldProof) -> str:
    names = {"batch_norm": "batch norm", "affine": "affine", "merge": "merge", "operator": "operator"}
    return f"{names[proof.kind]}, {proof.what}"


def _belonging(proof: FoldProof) -> str:
    if proof.kind == "operator":
        return f"the result of {proof.node}, which is no part of a fold"
    return f"where the {_what(proof).partition(',')[0]} {proof.node} went ({proof.what})"


def wrong_engine_fold(reference: Oracle, feed: Feed, progress: Progress = silent) -> str | None:
    """The first affine whose fold makes the engine's result wrong, by folding only the first n of the graph."""
    nodes = list(reference.model.graph)
    report = _fold_up_to(reference, len(nodes))[1]
    named = {record.output: record.node for record in report.records if not isinstance(record.outcome, Kept)}
    sites = [index for index, node in enumerate(nodes) if node.outputs and node.outputs[0].name in named]
    expected = reference.run(feed.values)
    trials = 0

    def fails(count: int) -> bool:
        nonlocal trials
        trials += 1
        progress("bisecting the folds", trials, 0)
        last = sites[count - 1] if count else -1
        found = Oracle(_fold_up_to(reference, last + 1)[0]).run(feed.values)
        return any(_departs(expected[name], found[name], _ENGINE_TOLERANCE) for name in expected)

    culprit = first_culprit(len(sites), fails) if sites else None
    return None if culprit is None else named[str(nodes[sites[culprit - 1]].outputs[0].name)]


def _fold_up_to(reference: Oracle, count: int) -> tuple[ir.Model, FoldReport]:
    model = reference.model.clone()
    late = set(list(model.graph)[count:])
    return model, fold(model, lambda node: node not in late)


def _departs(expected: Array, found: Array, tolerance: float) -> bool:
    if expected.shape != found.shape:
        return True
    difference, strange = deviation(expected, found)
    return bool(strange) or float(difference.max(initial=0.0)) > tolerance * scale_of(expected)


def cause_in_optimizations(agrees: Callable[[Sequence[str]], bool], level: str, progress: Progress = silent) -> Cause:
    """Which of ONNX Runtime's optimizations changes the result of the candidate.

    Args:
        agrees: whether a session without some optimizations computes what it should.
        level: the optimization level of that session.
        progress: told of each session.
    """
    trials = 0

    def heals(names: Sequence[str]) -> bool:
        nonlocal trials
        trials += 1
        progress("bisecting ONNX Runtime's optimizations", trials, 0)
        return agrees(names)

    found = smallest_cure(OPTIMIZERS, heals)
    if found is None:
        return Cause(
            "unknown",
            (),
            f"the mismatch is ONNX Runtime's at level {level!r}, and stays without any of the {len(OPTIMIZERS)} "
            "optimizations that bnfold knows by name; try a lower level",
        )
    if not found:
        return Cause("unknown", (), "the mismatch does not show a second time; ONNX Runtime may be undecided")
    names = " and ".join(found)
    return Cause(
        "optimization",
        tuple(found),
        f"ONNX Runtime's {names} changes the result of this file: without {'it' if len(found) == 1 else 'them'} "
        f"(disabled_optimizers) level {level!r} computes the same function",
        tuple(
            Evidence(name, "optimization of ONNX Runtime", f"found in {trials} sessions without some of them")
            for name in found
        ),
    )


def cause_in_tensors(
    model: ir.Model, expected: Mapping[str, Array], found: Mapping[str, Array], roundoff: float, where: str
) -> Cause:
    """The first tensor that is not what it should be.

    Args:
        model: whose tensors they are.
        expected: tensors by name.
        found: the same.
        roundoff: unit roundoff of their type; many of it are allowed.
        where: what is compared, as the end of a sentence.
    """
    first = first_departure(model, expected, found, _ROUNDOFFS * roundoff)
    if first is None:
        return Cause("unknown", (), f"no single tensor departs {where}: the error grows little by little")
    value, error = first
    name, producer = str(value.name), value.producer()
    maker = f"{producer.op_type} {label(producer)}" if producer is not None else "an input"
    if math.isfinite(error):
        detail = f"off by {error:.2g} of its scale"
    else:
        largest = scale_of(expected[name])
        detail = f"not finite, or of another shape, where numbers up to {largest:.3g} belong"
    sentence = f"the first tensor that departs {where} is {name}, the result of {maker}: {detail}"
    return Cause("tensor", (name,), sentence, (Evidence(name, maker, detail),))
