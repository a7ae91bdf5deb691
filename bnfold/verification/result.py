"""What a verification found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bnfold.verification.fold_proofs import FoldsResult
from bnfold.verification.inputs import FeedKind
from bnfold.verification.localization import Cause
from bnfold.verification.metrics import UNIT_ROUNDOFF, Metrics, finite
from bnfold.verification.verdict import JUDGED, POOLED_KINDS, Finding, Judgement, ReferenceKind, Run
from bnfold.verification.versions import versions

Verdict = Literal["equivalent", "mismatch", "nothing proven"]


@dataclass(frozen=True)
class FeedResult:
    """One output for one set of inputs.

    Attributes:
        feed: the name of the set of inputs.
        kind: its kind.
        scale: the largest magnitude expected.
        bounds: the largest absolute difference allowed to each run of the candidate.
        metrics: of each run against what was expected.
        problems: by run, why there is nothing to compare.
        margins: by how much the largest element of each row leads the next, for scores of classes.
    """

    feed: str
    kind: FeedKind
    scale: float
    bounds: Mapping[Run, float]
    metrics: Mapping[Run, Metrics]
    problems: Mapping[Run, str] = field(default_factory=dict)
    margins: NDArray[np.float64] | None = field(default=None, compare=False)

    @property
    def close_decisions(self) -> int | None:
        """Rows whose largest element an error within the bounds could change; None where there are no rows."""
        if self.margins is None:
            return None
        bound = max((self.bounds[run] for run in JUDGED if run in self.metrics and run != "candidate_tf32"), default=0)
        return int((self.margins <= 2 * bound).sum())

    @property
    def ratio(self) -> float:
        """The largest error over its bound among the candidate's runs; 0 where nothing differs."""
        ratios = [0.0]
        for run in JUDGED:
            if run in self.problems:
                return math.inf
            if run in self.metrics:
                error = math.inf if self.metrics[run].non_finite else self.metrics[run].max_abs
                bound = self.bounds[run]
                ratios.append(error / bound if bound > 0 else math.inf if error > 0 else 0.0)
        return max(ratios)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {
            "feed": self.feed,
            "kind": self.kind,
            "scale": self.scale,
            "bounds": {run: bound for run, bound in self.bounds.items() if run in self.metrics},
            "metrics": {run: metrics.to_json() for run, metrics in self.metrics.items()},
            "problems": dict(self.problems),
            "close_decisions": self.close_decisions,
        }


@dataclass(frozen=True)
class Summary:
    """One run of one output over several sets of inputs; see :class:`~bnfold.verification.metrics.Metrics`.

    The largest or the smallest of each metric, whichever is worse; mean, top-1 and top-5 are averages, near ties and
    what is not finite sums.
    """

    max_abs: float
    mean_abs: float
    relative: float | None
    ulp_max: float | None
    cosine: float | None
    snr_db: float | None
    top1: float | None
    top5: float | None
    near_ties: int | None
    non_finite: int

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; a number that is not finite is written as None."""
        return finite(asdict(self))


def _mean(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


@dataclass(frozen=True)
class OutputResult:
    """One output.

    Attributes:
        name: the output's name.
        dtype: its type in the model.
        judgement: what was decided of it.
        feeds: what was measured, for each set of inputs.
    """

    name: str
    dtype: str
    judgement: Judgement
    feeds: tuple[FeedResult, ...]

    @property
    def decisions(self) -> int:
        """How many rows of scores there are in the random inputs and the user's; 0 for outputs of another kind."""
        return sum(feed.margins.size for feed in self.feeds if feed.kind in POOLED_KINDS and feed.margins is not None)

    @property
    def close_decisions(self) -> int:
        """How many of them an error within the bounds could turn."""
        return sum(feed.close_decisions or 0 for feed in self.feeds if feed.kind in POOLED_KINDS)

    @property
    def allowance(self) -> float | None:
        """The smallest error relative to scale that any bound allows; None where the scale is always 0."""
        return min(
            (
                self._allowed(feed.bounds[run] / feed.scale, feed.metrics[run].size)
                for feed in self.feeds
                for run in JUDGED
                if run in feed.metrics and feed.scale > 0
            ),
            default=None,
        )

    def _allowed(self, fraction: float, size: int) -> float:
        """What a bound truly lets pass: of integers and booleans, whole elements."""
        return fraction if self.dtype in UNIT_ROUNDOFF else math.floor(fraction * size) / max(size, 1)

    def summary(self, run: Run) -> Summary | None:
        """A run against what was expected, on the random inputs and the user's together; None if it was not run."""
        found = [(feed, feed.metrics[run]) for feed in self.feeds if feed.kind in POOLED_KINDS and run in feed.metrics]
        if not found:
            return None
        weights = [0 if feed.margins is None else feed.margins.size for feed, _ in found]
        every = [metrics for _, metrics in found]
        return Summary(
            max_abs=max(m.max_abs for m in every),
            mean_abs=sum(m.mean_abs * m.size for m in every) / max(sum(m.size for m in every), 1),
            relative=max((m.relative for m in every if m.relative is not None), default=None),
            ulp_max=max((m.ulp_max for m in every if m.ulp_max is not None), default=None),
            cosine=min((m.cosine for m in every if m.cosine is not None), default=None),
            snr_db=min((m.snr_db for m in every if m.snr_db is not None), default=None),
            top1=_mean([m.top1 for m in every], weights),
            top5=_mean([m.top5 for m in every], weights),
            near_ties=sum(m.near_ties for m in every if m.near_ties is not None) if any(weights) else None,
            non_finite=sum(m.non_finite for m in every),
        )

    def relative(self, run: Run) -> float | None:
        """The largest error of a run relative to the output's scale, over all sets of inputs; None if not run."""
        found = [
            feed.metrics[run].max_abs / feed.scale for feed in self.feeds if run in feed.metrics and feed.scale > 0
        ]
        return max(found, default=None)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "equivalent": self.judgement.equivalent,
            "decisions": self.decisions,
            "close_decisions": self.close_decisions,
            "findings": [_finding_json(finding) for finding in self.judgement.findings],
            "summary": {run: found.to_json() for run in get_args(Run) if (found := self.summary(run)) is not None},
            "feeds": [feed.to_json() for feed in self.feeds],
        }


@dataclass(frozen=True)
class VerifyResult:
    """The outcome of :func:`bnfold.verify`.

    Attributes:
        verdict: ``equivalent``, ``mismatch`` or ``nothing proven``.
        sentence: the verdict in words, with the reason.
        reference: what the numbers were held against: ``float64``, ``onnxruntime`` where float64 could not run the
            model, ``none`` where nothing was run.
        reference_note: why it is not float64; empty where it is.
        rule: how the verdict was reached, in words.
        outputs: one for each output of the model.
        notes: what a reader should know about the verdict.
        feeds: the names of the sets of inputs.
        provider: the execution provider of the shipped run.
        level: the optimization level of the shipped run.
        seed: of the random inputs.
        runtime: whether ONNX Runtime was run at all.
        folds: the proof of each fold by itself, where it was asked for.
        cause: where a mismatch comes from, where that was asked for.
        models: what the reference and the candidate are called; the golden file where one stood for the reference.
        seconds: how long it took.
    """

    verdict: Verdict
    sentence: str
    reference: ReferenceKind
    reference_note: str
    rule: str
    outputs: tuple[OutputResult, ...]
    notes: tuple[str, ...]
    feeds: tuple[str, ...]
    provider: str
    level: str
    seed: int
    runtime: bool
    folds: FoldsResult | None = None
    cause: Cause | None = None
    models: tuple[str, str] = ("", "")
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the models were shown to be equivalent; False as well where nothing was proven."""
        return self.verdict == "equivalent"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; an infinite ratio is written as None."""
        return {
            "verdict": self.verdict,
            "models": {"reference": self.models[0], "candidate": self.models[1]},
            "versions": versions(),
            "seconds": self.seconds,
            "sentence": self.sentence,
            "reference": self.reference,
            "reference_note": self.reference_note,
            "rule": self.rule,
            "provider": self.provider,
            "level": self.level,
            "seed": self.seed,
            "runtime": self.runtime,
            "feeds": list(self.feeds),
            "notes": list(self.notes),
            "outputs": [output.to_json() for output in self.outputs],
            "folds": None if self.folds is None else self.folds.to_json(),
            "cause": None if self.cause is None else self.cause.to_json(),
        }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "run": finding.run,
        "ok": finding.ratio <= 1,
        "error": finding.error if math.isfinite(finding.error) else None,
        "bound": finding.bound,
        "ratio": finding.ratio if math.isfinite(finding.ratio) else None,
        "scale": finding.scale,
        "feed": finding.feed,
        "place": finding.place,
        "problem": finding.problem,
    }
