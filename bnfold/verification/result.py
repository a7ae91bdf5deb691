"""What a verification found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bnfold.verification.folds import FoldsResult
from bnfold.verification.inputs import FeedKind
from bnfold.verification.localization import Cause
from bnfold.verification.metrics import Metrics
from bnfold.verification.verdict import JUDGED, Finding, Judgement, Run

Verdict = Literal["equivalent", "mismatch", "nothing proven"]
ReferenceKind = Literal["float64", "onnxruntime", "none"]


@dataclass(frozen=True)
class FeedResult:
    """One output for one set of inputs.

    Attributes:
        feed: the name of the set of inputs.
        kind: its kind.
        scale: the largest magnitude expected.
        bound_float64: largest absolute difference allowed to the candidate in float64.
        bound_runtime: the same in ONNX Runtime.
        metrics: of each run against what was expected.
    """

    feed: str
    kind: FeedKind
    scale: float
    bound_float64: float
    bound_runtime: float
    metrics: Mapping[Run, Metrics]

    @property
    def ratio(self) -> float:
        """The largest error over its bound among the candidate's runs; 0 where nothing differs."""
        ratios = [0.0]
        for run in JUDGED:
            if run in self.metrics:
                bound = self.bound_float64 if run == "candidate_float64" else self.bound_runtime
                error = math.inf if self.metrics[run].non_finite else self.metrics[run].max_abs
                ratios.append(error / bound if bound > 0 else math.inf if error > 0 else 0.0)
        return max(ratios)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {
            "feed": self.feed,
            "kind": self.kind,
            "scale": self.scale,
            "bound_float64": self.bound_float64,
            "bound_runtime": self.bound_runtime,
            "metrics": {run: metrics.to_json() for run, metrics in self.metrics.items()},
        }


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
    def worst_feed(self) -> FeedResult:
        """The set of inputs on which the candidate comes nearest to its bound, or furthest beyond it."""
        return max(self.feeds, key=lambda feed: feed.ratio)

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
            "findings": [_finding_json(finding) for finding in self.judgement.findings],
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

    @property
    def ok(self) -> bool:
        """Whether the models were shown to be equivalent; False as well where nothing was proven."""
        return self.verdict == "equivalent"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; an infinite ratio is written as None."""
        return {
            "verdict": self.verdict,
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


def describe(output: str, finding: Finding) -> str:
    """A finding as the end of a sentence."""
    where = f"output {output!r} {JUDGED[finding.run]}"
    if finding.problem:
        return f"{where}: {finding.problem} (inputs: {finding.feed})"
    relative = finding.error / finding.scale if finding.scale > 0 else math.inf
    place = f" at {finding.place}" if finding.place else ""
    whose = "that slice's" if finding.place else "its"
    size = f"{relative:.2g} of {whose} scale" if math.isfinite(relative) else f"{finding.error:.2g} where 0 is expected"
    return f"{where} is off by {size}{place}, {finding.ratio:.3g} times what is allowed (inputs: {finding.feed})"
