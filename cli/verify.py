"""``bnfold verify``: decide whether two models compute the same function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold.cli.options import LEVELS, input_shapes, report_files
from bnfold.cli.render import Output, common_options, table

if TYPE_CHECKING:
    from bnfold.verification.fold_proofs import FoldsResult
    from bnfold.verification.localization import Cause
    from bnfold.verification.result import VerifyResult

#: Kept in step with bnfold.verification.report.FORMATS by a test: --help must not import it.
SUFFIXES = (".json", ".md", ".xml")

_STYLE = {"equivalent": "green", "mismatch": "red", "nothing proven": "yellow"}

#: Options that choose inputs; a golden file brings its own.
_OF_INPUTS = {"inputs": "--inputs", "samples": "--samples", "seed": "--seed", "shapes": "--input-shape"}


@click.command(
    "verify",
    epilog="Exit code: 0 equivalent; 1 a mismatch, or nothing was proven; 3 bad input.",
)
@click.argument("models", nargs=-1, required=True, metavar="REFERENCE CANDIDATE", type=click.Path(path_type=Path))
@click.option("--inputs", type=click.Path(path_type=Path), metavar="FILE|DIR",
              help="Your own inputs: .npz keyed by input name, .npy, .pb, an image, or a folder of those or of ONNX "
                   "test data.")  # fmt: skip
@click.option("--samples", type=click.IntRange(min=1), default=2, show_default=True,
              help="Random sets of inputs for each batch size.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Seed of the random inputs.")  # fmt: skip
@input_shapes
@click.option("--provider", default="cpu", show_default=True,
              help="Execution provider to run on beside the CPU: cuda, or ONNX Runtime's name.")  # fmt: skip
@click.option("--level", type=click.Choice(LEVELS), default="all", show_default=True,
              help="Optimization level of the run as shipped.")  # fmt: skip
@click.option("--rtol", type=click.FloatRange(min=0), help="Tolerance relative to the output's scale, not the rule.")
@click.option("--atol", type=click.FloatRange(min=0), help="Absolute tolerance, not the rule.")
@click.option("--runtime/--no-runtime", default=True, show_default=True,
              help="Run ONNX Runtime too, or compare in float64 only.")  # fmt: skip
@click.option("--per-fold/--no-per-fold", default=None,
              help="Show the proof of each fold by itself, its algebra and its rounding apart; or make do without "
                   "one.")  # fmt: skip
@click.option("--localize", is_flag=True, help="On a mismatch, find the fold, operator or optimization that causes it.")
@click.option("--out", "reports", multiple=True, metavar="FILE", callback=report_files(*SUFFIXES),
              help=f"Write a report: {', '.join(SUFFIXES)} (JUnit); may be repeated.")  # fmt: skip
@click.option("--save-golden", type=click.Path(path_type=Path), metavar="FILE.npz",
              help="Keep what REFERENCE computes; CANDIDATE may be left out.")  # fmt: skip
@click.option("--golden", type=click.Path(path_type=Path), metavar="FILE.npz",
              help="Compare CANDIDATE alone with a file that --save-golden made.")  # fmt: skip
@common_options
def command(
    out: Output,
    models: tuple[Path, ...],
    inputs: Path | None,
    samples: int,
    seed: int,
    shapes: dict[str, tuple[int, ...]],
    provider: str,
    level: str,
    rtol: float | None,
    atol: float | None,
    runtime: bool,
    per_fold: bool | None,
    localize: bool,
    reports: tuple[Path, ...],
    save_golden: Path | None,
    golden: Path | None,
) -> None:
    """Decide whether CANDIDATE computes the same function as REFERENCE.

    Both run in float64, where only algebra and the rounding of weights tell them apart, and in ONNX Runtime, with its
    optimizations off and as shipped. The tolerance comes from the models' own precision; the rule is printed.

    A machine that does not have REFERENCE can check with a golden file: `bnfold verify REFERENCE --save-golden
    FILE.npz` makes it, and `bnfold verify --golden FILE.npz CANDIDATE` uses it.
    """
    _check_usage(len(models), golden, save_golden, deeper=bool(per_fold) or localize)
    from bnfold.files import check_output_file
    from bnfold.verification import VerifyOptions, record_golden, verify, verify_golden
    from bnfold.verification.report import write_report

    for report in reports:
        check_output_file(report)
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
        save_golden=save_golden if len(models) > 1 else None,
    )
    with out.progress() as progress:
        if golden is not None:
            result = verify_golden(golden, models[0], options, progress)
        elif len(models) > 1:
            result = verify(models[0], models[1], options, progress)
        else:
            assert save_golden is not None
            record_golden(models[0], save_golden, options, progress)
    if save_golden is not None:
        out.say(f"Wrote {save_golden}.")
    if golden is None and len(models) == 1:
        out.document({"golden": str(save_golden)})
        return
    for report in reports:
        write_report(result, report)
    _show(out, result, each_fold=bool(per_fold))
    out.document(result.to_json())
    if not result.ok:
        out.answer_no()


def _check_usage(count: int, golden: Path | None, save_golden: Path | None, *, deeper: bool) -> None:
    """Refuse what cannot be meant."""
    if golden is None:
        if count != 2 and not (count == 1 and save_golden is not None):
            raise click.UsageError("give REFERENCE and CANDIDATE; with --golden or --save-golden one model will do.")
        return
    if count != 1:
        raise click.UsageError("--golden stands for the reference: give CANDIDATE alone.")
    if save_golden is not None or deeper:
        raise click.UsageError(
            "a golden file does not hold the reference, which --save-golden, --per-fold and --localize need."
        )
    context = click.get_current_context()
    for name, option in _OF_INPUTS.items():
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"a golden file brings its own inputs: leave {option} out.")


def _show(out: Output, result: VerifyResult, *, each_fold: bool) -> None:
    from bnfold.verification.tables import (
        VERDICT_COLUMNS,
        decisions,
        feed_columns,
        feed_rows,
        metric_columns,
        metric_rows,
        verdict_rows,
    )

    out.say(f"{result.sentence[0].upper()}{result.sentence[1:]}.", _STYLE[result.verdict])
    if result.outputs:
        rows = [(output.name, *row) for output in result.outputs for row in verdict_rows(output)]
        title = "Errors over the output's scale, where nearest to the bound"
        out.show(table(title, ["output", *VERDICT_COLUMNS], rows, right=VERDICT_COLUMNS[1:4], fixed=["run", "verdict"]))
    for output in result.outputs if out.verbose else ():
        columns = metric_columns(output)
        title = f"Output {output.name} ({output.dtype}): the random inputs together"
        out.show(table(title, columns, metric_rows(output), right=columns[1:], fixed=columns[:1]))
        columns = feed_columns(output)
        title = f"Output {output.name}: largest difference over scale, on each set of inputs"
        out.show(table(title, columns, feed_rows(output), right=columns[1:], fixed=columns[:1]))
    if out.verbose:
        for sentence in decisions(result):
            out.say(sentence)
    if result.rule:
        out.say(f"Rule: {result.rule}")
    if result.folds is not None:
        _show_folds(out, result.folds, each_fold=each_fold)
    if result.cause is not None:
        _show_cause(out, result.cause)
    for note in result.notes:
        out.say(f"note: {note[0].upper()}{note[1:]}.", "yellow")


#: So many folds are shown unless more are asked for; those that are wrong, always.
_FEW = 10


def _show_folds(out: Output, folds: FoldsResult, *, each_fold: bool) -> None:
    from bnfold.verification.tables import FOLD_COLUMNS, fold_row

    out.say(f"Fold by fold: {folds.sentence}.", "red" if folds.wrong else "green" if folds.proven else "yellow")
    if folds.proven and not (each_fold or out.verbose):
        return
    shown = folds.proofs if out.verbose else folds.proofs[: max(_FEW, len(folds.wrong))]
    rows = [fold_row(proof) for proof in shown]
    if rows:
        title = "Each fold alone, worst first: the exact fold's error, and the candidate's"
        out.show(table(title, FOLD_COLUMNS, rows, right=FOLD_COLUMNS[1:5], fixed=["verdict"]))
    if len(shown) < len(folds.proofs):
        out.say(f"{len(folds.proofs) - len(shown)} more with --verbose.")


def _show_cause(out: Output, cause: Cause) -> None:
    out.say(f"Cause: {cause.sentence}.", "red")
    rows = [[evidence.name, evidence.what, evidence.detail] for evidence in cause.evidence]
    if rows:
        shown = rows if out.verbose else rows[:_FEW]
        out.show(table("What was found, in the order of the graph", ["name", "what", "finding"], shown))
