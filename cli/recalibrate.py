"""``bnfold recalibrate``: statistics of the training set in place of moving averages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bnfold.cli.render import Output, common_options, table

if TYPE_CHECKING:
    from bnfold.recalibration import Accuracy, RecalibrateResult


@click.command("recalibrate")
@click.argument("source", type=click.Path(), metavar="RUN|MODEL.onnx")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="OUT",
              help="Folder of the new run, or the ONNX file to write.")  # fmt: skip
@click.option("--data", metavar="SPEC", help="Training data; what a run was trained on by default.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True,
              help="Samples of one pass; the result does not depend on it.")  # fmt: skip
@click.option("--provider", default="cpu", show_default=True, help="For an ONNX file: cpu, cuda, or the full name.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
              help="For a run.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0 leaves it to the runtime.")
@common_options
def command(
    out: Output,
    source: str,
    output: str,
    data: str | None,
    batch: int,
    provider: str,
    device: str,
    threads: int,
) -> None:
    """Re-estimate each batch norm's mean and variance over the whole training set.

    Moving averages hold what the last batches happened to be. Here each batch norm gets the mean and variance that
    its input has over the training set, in one sweep along the network: those before it already have theirs. Says how
    far the moving averages were off, and what it did to the accuracy on held-out samples.

    SPEC is digits, cifar10:DIR, imagefolder:DIR or npz:FILE; for an ONNX file also what `bnfold predict` takes.

    \b
    bnfold recalibrate runs/digits -o runs/digits-population
    bnfold recalibrate model.onnx --data digits -o population.onnx
    """
    from bnfold.recalibration import RecalibrateOptions, recalibrate

    options = RecalibrateOptions(data, batch, provider, device, threads)
    with out.progress() as progress:
        result = recalibrate(source, output, options, progress)
    _show(out, result)
    out.document(result.to_json())


def _show(out: Output, result: RecalibrateResult) -> None:
    headings = ["batch norm", "channels", "mean off by", "worst channel", "variance ÷ true one"]
    rows = [
        (
            drift.name,
            drift.channels,
            f"{drift.mean_rms:.3f} σ",
            f"{drift.mean_worst:.3f} σ",
            f"{drift.var_lowest:.2f} to {drift.var_highest:.2f}",
        )
        for drift in result.drifts
    ]
    out.show(table("How far the moving averages were off", headings, rows, right=headings[1:]))
    for left in result.left:
        out.warn(f"{left.name} keeps its statistics: {left.reason}")
    for note in result.notes:
        out.warn(note)
    if result.skipped:
        out.warn(f"{result.skipped} samples do not fill a batch of the model's fixed size and were left out")
    count = len(result.drifts)
    norms = "batch norm" if count == 1 else "batch norms"
    passes = "pass" if result.passes == 1 else "passes"
    seen = f"{result.samples:,} samples of {result.data}"
    out.say(f"Re-estimated {count} {norms} from {seen} in {result.passes} {passes}.")
    if result.accuracy is not None:
        out.say(_accuracy_sentence(result.accuracy))
    out.say(f"Wrote {result.path}.")


def _accuracy_sentence(accuracy: Accuracy) -> str:
    right = [round(share * accuracy.samples) for share in (accuracy.before, accuracy.after)]
    change = right[1] - right[0]
    told = "as many right" if not change else f"{abs(change):,} {'more' if change > 0 else 'fewer'} right"
    where = "held-out samples" if accuracy.held_out else "of the same samples (no others were given)"
    return (
        f"Accuracy {accuracy.before:.2%} → {accuracy.after:.2%} on {accuracy.samples:,} {where}: {told}; "
        f"loss {accuracy.loss_before:.4f} → {accuracy.loss_after:.4f}."
    )
