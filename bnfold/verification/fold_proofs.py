"""What was found of each fold by itself: pure data, with sentences for persons and JSON for programs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from bnfold.verification.algebra import TOLERANCE

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
