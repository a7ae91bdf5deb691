"""``bnfold inspect``: each batch norm, foldable or not, how and why not."""

from __future__ import annotations

import click

from bnfold.cli.render import Output, common_options


@click.command("inspect")
@click.argument("model", type=click.Path())
@click.option("--no-merge", is_flag=True, help="Leave parallel branches and linear ops in a row as they are.")
@click.option("--freeze-inputs", is_flag=True, help="Treat initializers that callers could override as constants.")
@common_options
def command(output: Output, model: str, no_merge: bool, freeze_inputs: bool) -> None:
    """List each batch norm of MODEL: whether it folds, into what, or why not.

    Nothing is written. What is listed is what `bnfold optimize` would do, by the same code. The last column tells
    what ONNX Runtime would do by itself while loading the model.
    """
    from bnfold.cli.folds import show_folds
    from bnfold.optimizer import OptimizeOptions, inspect

    report = inspect(model, OptimizeOptions(freeze_inputs=freeze_inputs, merge=not no_merge))
    show_folds(output, report, tense="would")
    output.document(report.to_json())
