"""``bnfold verify``: decide whether two models compute the same function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold.cli.options import LEVELS, input_shapes
from bnfold.cli.render import Output, common_options, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bnfold.verification.folds import FoldsResult
    from bnfold.verification.localization import Cause
    from bnfold.verification.result import FeedResult, OutputResult, VerifyResult
    from bnfold.verification.verdict import Run

_STYLE = {"equivalent": "green", "mismatch": "red", "nothing proven": "yellow"}


@click.command("verify", epilog="Exit code: 0 equivalent; 1 a mismatch, or nothing was proven; 3 bad input.")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="Your own inputs: .npz keyed by input name, .npy, or a folder of those or of ONNX test data.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Random sets of inputs for each batch size.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random inputs.")
@input_shapes
@click.option(
    "--provider",
    default="cpu",
    show_default=True,
    help="Execution provider of the run as shipped: cpu, cuda, or ONNX Runtime's name.",
)
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default="all",
    show_default=True,
    help="Optimization level of the run as shipped.",
)
@click.option("--rtol", type=click.FloatRange(min=0), help="Tolerance relative to the output's scale, not the rule.")
@click.option("--atol", type=click.FloatRange(min=0), help="Absolute tolerance, not the rule.")
@click.option(
    "--runtime/--no-runtime", default=True, show_default=True, help="Run ONNX Runtime too, or compare in float64 only."
)
@click.option("--per-fold", is_flag=True, help="Prove each fold by itself, its algebra and its rounding apart.")
@click.option("--localize", is_flag=True, help="On a mismatch, find the fold, operator or optimization that causes it.")
@common_options  # fmt: skip
def command(
    out: Output,
    reference: Path,
    candidate: Path,
    inputs: Path | None,
    samples: int,
    seed: int,
    shapes: dict[str, tuple[int, ...]],
    provider: str,
    level: str,
    rtol: float | None,
    atol: float | None,
    runtime: bool,
    per_fold: bool,
    localize: bool,
) -> None:
    """Decide whether CANDIDATE computes the same function as REFERENCE.

    Both run in float64, where only algebra and the rounding of weights tell them apart, and in ONNX Runtime, with its
    optimizations off and as shipped. The tolerance comes from the models' own precision; the rule is printed.
    """
    from bnfold.verification import VerifyOptions, verify

    options = VerifyOptions(
        inputs=inputs,
        samples=samples,
        shapes=shapes,
        seed=seed,
        provider=provider,
        level=level,
        runtime=runtime,
        rtol=rtol,
        atol=atol,
        per_fold=per_fold,
        localize=localize,
    )
    with out.progress() as progress:
        result = verify(reference, candidate, options, progress)
    _show(out, result)
    out.document(result.to_json())
    if not result.ok:
        out.answer_no()


def _show(out: Output, result: VerifyResult) -> None:
    out.say(f"{result.sentence[0].upper()}{result.sentence[1:]}.", _STYLE[result.verdict])
    if result.outputs:
        rows = [_row(output, output.worst_feed, [_verdict(output)]) for output in result.outputs]
        title = "Largest error over the output's scale, on the inputs that come nearest to a bound"
        out.show(_table(title, [*_COLUMNS, "verdict"], rows))
        every = [_row(output, feed, [feed.kind]) for output in result.outputs for feed in output.feeds]
        if out.verbose:
            out.show(_table("All inputs", [*_COLUMNS, "kind"], every))
        out.say(f"Rule: {result.rule}")
    if result.folds is not None:
        _show_folds(out, result.folds)
    if result.cause is not None:
        _show_cause(out, result.cause)
    for note in result.notes:
        out.say(f"note: {note[0].upper()}{note[1:]}.", "yellow")


#: So many folds are shown unless more are asked for; those that are wrong, always.
_FEW = 10


def _show_folds(out: Output, folds: FoldsResult) -> None:
    out.say(f"Fold by fold: {folds.sentence}.", "red" if folds.wrong else "green" if folds.proven else "yellow")
    shown = folds.proofs if out.verbose else folds.proofs[: max(_FEW, len(folds.wrong))]
    rows = [
        [
            proof.node,
            "-" if proof.algebra is None else f"{proof.algebra:.1e}",
            "-" if proof.ulp is None else f"{proof.ulp:.3g}",
            "-" if proof.error is None else f"{proof.error:.1e}",
            "-" if proof.allowed is None else f"{proof.allowed:.1e}",
            "ok" if proof.verdict == "ok" else proof.verdict.upper(),
            proof.detail if proof.wrong else proof.what,
        ]
        for proof in shown
    ]
    if rows:
        columns = ["fold", "algebra", "ulp", "error", "allowed", "verdict", ""]
        title = "Each fold alone, worst first: the exact fold's error, and the candidate's"
        out.show(table(title, columns, rows, right=columns[1:5], fixed=["verdict"]))
    if len(shown) < len(folds.proofs):
        out.say(f"{len(folds.proofs) - len(shown)} more with --verbose.")


def _show_cause(out: Output, cause: Cause) -> None:
    out.say(f"Cause: {cause.sentence}.", "red")
    rows = [[evidence.name, evidence.what, evidence.detail] for evidence in cause.evidence]
    if rows:
        shown = rows if out.verbose else rows[:_FEW]
        out.show(table("What was found, in the order of the graph", ["name", "what", "finding"], shown))


_COLUMNS = ["output", "inputs", "scale", "original", "float64", "allowed", "ORT", "shipped", "allowed in ORT"]


def _table(title: str, columns: list[str], rows: list[list[str]]) -> RenderableType:
    return table(title, columns, rows, right=_COLUMNS[2:], fixed=["output", "verdict"])


def _row(output: OutputResult, feed: FeedResult, end: list[str]) -> list[str]:
    def relative(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value / feed.scale:.1e}" if feed.scale > 0 else f"{value:.1e} abs"

    def error(run: Run) -> str:
        return relative(feed.metrics[run].max_abs if run in feed.metrics else None)

    return [
        output.name,
        feed.feed,
        f"{feed.scale:.3g}",
        error("original"),
        error("candidate_float64"),
        relative(feed.bound_float64) if "candidate_float64" in feed.metrics else "-",
        error("candidate_plain"),
        error("candidate_shipped"),
        relative(feed.bound_runtime) if "candidate_shipped" in feed.metrics else "-",
        *end,
    ]


def _verdict(output: OutputResult) -> str:
    return "ok" if output.judgement.equivalent else "MISMATCH"
