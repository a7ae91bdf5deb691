"""A result as rows of text, for the terminal and for reports. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from bnfold.verification.fold_proofs import FoldProof
from bnfold.verification.result import FeedResult, OutputResult, Summary, VerifyResult
from bnfold.verification.verdict import JUDGED, POOLED, Finding, Run

Row = tuple[str, ...]

#: What each run is called in a table; the others are the candidate's. Plain is with optimizations off.
RUNS: Mapping[Run, str] = {
    "nudged": "rounding",
    "original": "original",
    "original_shipped": "original shipped",
    "original_provider": "original on provider",
    "original_tf32": "original TF32",
    "candidate_float64": "float64",
    "candidate_plain": "ORT plain",
    "candidate_shipped": "ORT shipped",
    "candidate_provider": "provider",
    "candidate_tf32": "TF32",
}

#: The headings of :func:`verdict_rows`; the second to fourth are numbers.
VERDICT_COLUMNS = ("run", "error", "allowed", "used", "worst on", "verdict")


def verdict_rows(output: OutputResult) -> list[Row]:
    """Each run of the candidate where it comes nearest to its bound; errors are relative to the output's scale."""
    return [_verdict_row(finding) for finding in output.judgement.findings]


def _verdict_row(finding: Finding) -> Row:
    feed = "random" if finding.feed == POOLED else finding.feed
    place = f": {finding.place}" if finding.place else ""
    if finding.problem:
        return (RUNS[finding.run], "–", "–", "–", finding.feed, "MISMATCH")
    return (
        RUNS[finding.run],
        relative(finding.error, finding.scale),
        relative(finding.bound, finding.scale),
        used(finding.ratio),
        f"{feed}{place}" if finding.error else "–",
        "ok" if finding.ratio <= 1 else "MISMATCH",
    )


def relative(value: float, scale: float) -> str:
    """A difference over the scale; absolute where that is 0."""
    if value == 0:
        return "0"
    return f"{value / scale:.1e}" if scale > 0 else f"{value:.1e} abs"


def used(ratio: float) -> str:
    """How much of what is allowed is used."""
    if not math.isfinite(ratio):
        return "∞"
    return f"{100 * ratio:.0f} %" if ratio < 10 else f"{ratio:,.0f} ×"


_METRICS: Mapping[str, Callable[[Summary], float | None]] = {
    "max abs": lambda s: s.max_abs,
    "mean abs": lambda s: s.mean_abs,
    "max / scale": lambda s: s.relative,
    "max ULP": lambda s: s.ulp_max,
    "1 − cosine": lambda s: None if s.cosine is None else 1 - s.cosine,
    "SNR (dB)": lambda s: s.snr_db,
    "top-1": lambda s: s.top1,
    "top-5": lambda s: s.top5,
    "near ties": lambda s: s.near_ties,
    "not finite": lambda s: s.non_finite or None,
}


def metric_columns(output: OutputResult) -> Row:
    """The headings of :func:`metric_rows`: a column for each run but those of the reference as shipped."""
    return ("", *(RUNS[run] for run, _ in _summaries(output)))


def metric_rows(output: OutputResult) -> list[Row]:
    """Each metric that an output has, over the random inputs and the user's together."""
    summaries = [summary for _, summary in _summaries(output)]
    rows = []
    for name, value in _METRICS.items():
        values = [value(summary) for summary in summaries]
        if any(found is not None for found in values):
            rows.append((name, *(_metric(name, found) for found in values)))
    return rows


def _summaries(output: OutputResult) -> Iterator[tuple[Run, Summary]]:
    for run in ("nudged", "original", *JUDGED):
        summary = output.summary(run)
        if summary is not None:
            yield run, summary


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name.startswith("top"):
        return f"{100 * value:.4g} %"
    return f"{value:.3g}" if name in ("max ULP", "SNR (dB)", "near ties", "not finite") else f"{value:.1e}"


def feed_columns(output: OutputResult) -> Row:
    """The headings of :func:`feed_rows`; all but the first are numbers."""
    return ("inputs", "scale", *(RUNS[run] for run in _feed_runs(output)), "used")


def feed_rows(output: OutputResult) -> list[Row]:
    """Each set of inputs: the largest difference of each run over the output's scale."""
    return [_feed_row(feed, list(_feed_runs(output))) for feed in output.feeds]


def _feed_runs(output: OutputResult) -> Iterator[Run]:
    present = {run for feed in output.feeds for run in (*feed.metrics, *feed.problems)}
    return (run for run in ("original", *JUDGED) if run in present)


def _feed_row(feed: FeedResult, runs: list[Run]) -> Row:
    def error(run: Run) -> str:
        if run in feed.problems:
            return "fails"
        return relative(feed.metrics[run].max_abs, feed.scale) if run in feed.metrics else "–"

    return (feed.feed, f"{feed.scale:.3g}", *(error(run) for run in runs), used(feed.ratio))


def decisions(result: VerifyResult) -> list[str]:
    """What can be said of each output that decides between classes."""
    sentences = []
    for output in result.outputs:
        if not output.decisions:
            continue
        agreed = min(
            (s.top1 for run in JUDGED if (s := output.summary(run)) is not None and s.top1 is not None), default=1
        )
        same = "all" if agreed == 1 else f"{100 * agreed:.4g} %"
        sentences.append(
            f"Output {output.name!r} decides {output.decisions} times, {same} alike; {output.close_decisions} of these "
            "are so close to a tie that an error within what is allowed could turn them."
        )
    return sentences


FOLD_COLUMNS = ("fold", "algebra", "ulp", "error", "allowed", "verdict", "")


def fold_row(proof: FoldProof) -> Row:
    """One fold: the exact fold's error, and the candidate's; all but ``ulp`` relative to the region's scale."""
    return (
        proof.node,
        _short(proof.algebra, ".1e"),
        _short(proof.ulp, ".3g"),
        _short(proof.error, ".1e"),
        _short(proof.allowed, ".1e"),
        "ok" if proof.verdict == "ok" else proof.verdict.upper(),
        proof.what if proof.verdict == "ok" else proof.detail,
    )


def _short(number: float | None, style: str) -> str:
    return "-" if number is None else format(number, style)
