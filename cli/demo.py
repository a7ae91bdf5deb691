"""``bnfold demo``: the main job on real data, start to end."""

from __future__ import annotations

import click

from bnfold.cli.render import Output, common_options, table


@click.command("demo")
@click.option("--out", type=click.Path(), default="bnfold-demo", show_default=True, help="Folder for every artefact.")
@click.option("--epochs", type=click.IntRange(min=1), default=15, show_default=True, help="Epochs of training.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything random.")
@click.option("--time", "seconds", type=click.FloatRange(min=1), default=10.0, show_default=True,
              help="Seconds for the benchmark.")  # fmt: skip
@common_options
def command(output: Output, out: str, epochs: int, seed: int, seconds: float) -> None:
    """Train a residual network on scikit-learn's digits, export, fold, prove and measure it.

    Nothing is downloaded. Every artefact and report.html are left in the folder given by --out.
    """
    from bnfold.demonstration import DemoOptions, demo

    with output.progress() as progress:
        result = demo(out, DemoOptions(epochs=epochs, seed=seed, seconds=seconds), progress)
    training, report = result.training, result.report
    passes = f"{training.epochs} epoch{'s' * (training.epochs != 1)}"
    output.say(
        f"Trained     {training.model}, {training.parameters:,} parameters, {passes} on {training.device} in "
        f"{training.seconds:.0f} s"
    )
    output.say(f"Folded      {len(report.batch_norms)} batch norms, {report.batch_norms_after} left; "
                f"{report.nodes_before} → {report.nodes_after} nodes")  # fmt: skip
    output.say(f"Proven      {result.verification.sentence}")
    for sentence in result.benchmark.sentences():
        output.say(f"Measured    {sentence}")
    names = {"torch": "torch checkpoint", "original": "original.onnx", "optimized": "optimized.onnx"}
    rows = [(names[key], f"{accuracy:.2%}") for key, accuracy in result.accuracies.items()]
    output.show(table("", ["", f"accuracy on {training.test_images} held-out images"], rows))
    for warning in result.benchmark.all_warnings:
        output.warn(warning)
    output.say(f"Report      {result.folder / 'report.html'}")
    if not result.ok:
        output.answer_no()
    output.document(result.to_json())
