"""``bnfold optimize``: fold, prove, write."""

from __future__ import annotations

from pathlib import Path

import click

from bnfold.cli.options import input_shapes
from bnfold.cli.render import Output, common_options


@click.command("optimize")
@click.argument("model", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--report", type=click.Path(), help="Write the fate of each batch norm to FILE.json or FILE.html.")
@click.option("--strict", is_flag=True, help="Exit with 1 if a batch norm is left.")
@click.option("--no-merge", is_flag=True, help="Leave parallel branches and linear ops in a row as they are.")
@click.option("--freeze-inputs", is_flag=True, help="Treat initializers that callers could override as constants.")
@click.option("--only", multiple=True, metavar="GLOB", help="Touch only nodes named like GLOB (repeatable).")
@click.option("--keep", multiple=True, metavar="GLOB", help="Leave nodes named like GLOB alone (repeatable).")
@click.option("--verify/--no-verify", default=True, show_default=True,
              help="Prove that OUT computes the same function before it is written.")  # fmt: skip
@input_shapes
@click.option("--external-data", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True,
              help="Where the weights go; auto moves them out of the file from 1 GiB on.")  # fmt: skip
@click.option("--in-place", is_flag=True, help="Allow OUT to be MODEL itself.")
@common_options
def command(
    output: Output,
    model: str,
    out: str,
    report: str | None,
    strict: bool,
    no_merge: bool,
    freeze_inputs: bool,
    only: tuple[str, ...],
    keep: tuple[str, ...],
    verify: bool,
    shapes: dict[str, tuple[int, ...]],
    external_data: str,
    in_place: bool,
) -> None:
    """Fold every batch norm of MODEL that algebra lets fold, and write the result to OUT.

    OUT appears only after it was shown to compute the same function as MODEL (see `bnfold verify`); if it does
    not, nothing is written and the exit code is 1.
    """
    if report is not None and Path(report).suffix not in (".json", ".html"):
        raise click.BadParameter("give a file that ends in .json or .html", param_hint="--report")
    if report is not None and Path(report).resolve() == Path(out).resolve():
        raise click.BadParameter("the report would replace the model", param_hint="--report")
    from typing import Literal, cast

    from bnfold.cli.folds import show_folds
    from bnfold.files import check_output_file
    from bnfold.model_file import load_model
    from bnfold.optimizer import OptimizeOptions, optimize
    from bnfold.reporting import write_fold_report
    from bnfold.verification import VerifyOptions

    if report is not None:
        check_output_file(report)
    options = OptimizeOptions(
        freeze_inputs=freeze_inputs,
        only=only,
        keep=keep,
        merge=not no_merge,
        external_data=cast("Literal['auto', 'always', 'never']", external_data),
        in_place=in_place,
        verify=VerifyOptions(shapes=shapes) if verify else None,
    )
    # The report shows the model as it was, which the result is about to replace.
    before = load_model(model) if in_place and report is not None else None
    with output.progress() as progress:
        result = optimize(model, out, options, progress)
    show_folds(output, result.report, tense="did")
    if report is not None:
        write_fold_report(result, Path(model), Path(report), before=before)
    if result.verification is not None and result.verification.verdict == "nothing proven":
        output.say("Nothing was folded, so that there was nothing to prove." if result.report.unchanged
                    else f"Not proven: {result.verification.sentence}.")  # fmt: skip
    elif result.verification is not None:
        output.say(f"Verified: {result.verification.sentence}.")
    if result.path is None:
        output.say(f"{out} was not written: it does not compute the same function.", "red")
        output.answer_no()
    else:
        output.say(f"Wrote {result.path}.")
    for note in result.notes:
        output.warn(note)
    if strict and result.report.batch_norms_after:
        output.answer_no()
    output.document(result.to_json())
