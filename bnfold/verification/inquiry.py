"""What is asked beyond the verdict: each fold by itself, and where a mismatch comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bnfold.progress import Progress
from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.expectation import Expectation
from bnfold.verification.fold_proofs import FoldsResult
from bnfold.verification.folds import prove_folds
from bnfold.verification.localization import Cause, Mismatch, find_cause
from bnfold.verification.metrics import UNIT_ROUNDOFF
from bnfold.verification.options import VerifyOptions
from bnfold.verification.result import VerifyResult
from bnfold.verification.subject import Subject
from bnfold.verification.trial import Trial
from bnfold.verification.verdict import judge

#: Folds are proven without being asked for where the weights are no more than this: the proof holds several times as
#: many numbers in float64, which are 2 GiB.
_MOST_WEIGHTS = 1 << 28


class Inquiry:
    """Both models of a verification that is through.

    Args:
        reference: the reference.
        expectation: what it computes.
        trial: the candidate's runs.
        options: how to verify.
        progress: told of each trial.
    """

    def __init__(
        self, reference: Subject, expectation: Expectation, trial: Trial, options: VerifyOptions, progress: Progress
    ) -> None:
        self._reference = reference
        self._expectation = expectation
        self._trial = trial
        self._options = options
        self._progress = progress
        both = expectation.oracle, trial.oracle
        self._oracles = None if both[0] is None or both[1] is None else (both[0], both[1])

    def answer(self, result: VerifyResult) -> VerifyResult:
        """The result with what the options ask for."""
        if self._options.per_fold or (self._options.per_fold is None and self._is_small()):
            result = self._with_folds(result)
        elif self._options.per_fold is None:
            note = "the weights are large, and the folds were not proven by themselves; --per-fold does it"
            result = replace(result, notes=(*result.notes, note))
        if self._options.localize and result.verdict == "mismatch":
            result = replace(result, cause=self._cause(result))
        return result

    def _is_small(self) -> bool:
        """Whether the proof of the folds takes no more memory than most machines have."""
        tensors = (value.const_value for value in self._reference.model.graph.initializers.values())
        return sum(tensor.size for tensor in tensors if tensor is not None) <= _MOST_WEIGHTS

    def _with_folds(self, result: VerifyResult) -> VerifyResult:
        """The result with the proof of each fold, which may tell what the outputs do not."""
        try:
            folds = self._folds(result)
        except NotInFloat64Error as refusal:
            return replace(result, notes=(*result.notes, f"the folds could not be proven by themselves: {refusal}"))
        result = replace(result, folds=folds, notes=(*result.notes, *folds.notes))
        if folds.wrong and result.verdict != "mismatch" and not self._options.effective_rule.overridden:
            return replace(result, verdict="mismatch", sentence=f"the candidate holds a wrong fold: {folds.sentence}")
        return result

    def _folds(self, result: VerifyResult) -> FoldsResult:
        if result.folds is not None:
            return result.folds
        if self._oracles is None:
            raise NotInFloat64Error(result.reference_note or "the candidate does not run in float64")
        rule, feeds = self._options.effective_rule, self._expectation.feeds
        return prove_folds(*self._oracles, feeds, self._options.seed, rule, self._progress)

    def _cause(self, result: VerifyResult) -> Cause:
        """Where the mismatch comes from."""
        feeds, types = self._expectation.feeds, self._expectation.measurement.types
        by_name = {feed.name: feed for feed in feeds}
        worst = max((output.judgement.worst for output in result.outputs), key=lambda finding: finding.ratio)
        roundoffs = [UNIT_ROUNDOFF[dtype] for dtype in types.values() if dtype in UNIT_ROUNDOFF]
        mismatch = Mismatch(
            reference=self._reference,
            candidate=self._trial.candidate,
            oracles=self._oracles,
            feed=by_name.get(worst.feed, feeds[0]),
            failed=frozenset(f.run for o in result.outputs for f in o.judgement.findings if f.ratio > 1),
            level=self._options.level,
            roundoff=max(roundoffs, default=UNIT_ROUNDOFF["float32"]),
            folds=lambda: self._folds(result),
            agrees=self._agrees,
        )
        return find_cause(mismatch, self._progress)

    def _agrees(self, without: Sequence[str]) -> bool:
        """Whether the candidate is right as shipped without some of ONNX Runtime's optimizations."""
        measurement = self._trial.shipped(without)
        judgements = [
            judge(measurement.observations_of(name), self._options.effective_rule) for name in measurement.types
        ]
        return not any(f.run == "candidate_shipped" and f.ratio > 1 for j in judgements for f in j.findings)
