"""A verdict in words. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bnfold.verification.result import OutputResult
from bnfold.verification.verdict import JUDGED, Finding, Judgement


def mismatch(judgements: Sequence[Judgement]) -> str:
    """That the candidate computes something else, with the worst finding."""
    worst = max(judgements, key=lambda judgement: judgement.worst.ratio)
    return f"the candidate does not compute the same function: {describe(worst.output, worst.worst)}"


def agreement(judgements: Sequence[Judgement], feeds: int) -> str:
    """That the candidate computes the same, with the finding nearest to its bound."""
    worst = max(judgements, key=lambda judgement: judgement.worst.ratio)
    outputs = "1 output agrees" if len(judgements) == 1 else f"{len(judgements)} outputs agree"
    sets = "1 set of inputs" if feeds == 1 else f"{feeds} sets of inputs"
    return (
        f"the candidate computes the same function: {outputs} on {sets}; the largest error is "
        f"{worst.worst.ratio:.2g} of what is allowed"
    )


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


def explanations(judgements: Sequence[Judgement], level: str) -> list[str]:
    """What the pattern of failures says about their cause."""
    failed = {f.run for judgement in judgements for f in judgement.findings if not f.ratio <= 1}
    ran = {f.run for judgement in judgements for f in judgement.findings}
    if failed == {"candidate_shipped"}:
        return [
            f"only the run at optimization level {level!r} is off: ONNX Runtime's own optimizations change the "
            "result of this file, not the transformation that made it"
        ]
    if failed <= {"candidate_provider", "candidate_tf32"}:
        return ["the CPU agrees: what is off is the other provider's own arithmetic, or its optimizations"]
    if "candidate_float64" in ran - failed:
        return ["float64 agrees, so that the algebra holds; the candidate is less exact, or overflows, in its own type"]
    return []


#: An output of which every bound allows this much of its scale could as well be another function's.
_BLIND = 0.5

#: From here on a reader should know.
_COARSE = 0.1


def blind(outputs: Sequence[OutputResult]) -> dict[str, str]:
    """The outputs that are too inexact themselves to be told from those of another function, with the reason."""
    return {
        output.name: (
            f"the reference's own error on output {output.name!r} is so large that errors of "
            f"{100 * output.allowance:.0f} % of its scale would be allowed"
        )
        for output in outputs
        if output.allowance is not None and output.allowance >= _BLIND
    }


def coarse(outputs: Sequence[OutputResult]) -> list[str]:
    """Which outputs are so inexact themselves that the check is."""
    return [
        f"the check of output {output.name!r} is coarse: the reference's own error is such that errors of "
        f"{100 * output.allowance:.0f} % of its scale are allowed"
        for output in outputs
        if output.allowance is not None and _COARSE <= output.allowance < _BLIND
    ]


def close_decisions(outputs: Sequence[OutputResult]) -> list[str]:
    """Which outputs decide so narrowly that even an allowed error could turn them."""
    notes = []
    for output in outputs:
        rows, close = output.decisions, output.close_decisions
        if close:
            notes.append(
                f"{close} of {rows} decisions of output {output.name!r} are so close to a tie that an error within "
                "what is allowed could turn them"
            )
    return notes
