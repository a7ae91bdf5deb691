"""``bnfold predict``: run a classifier over data."""

from __future__ import annotations

import click

from bnfold.cli.render import Output, common_options, table

#: Predictions shown on a terminal; a file holds them all.
_SHOWN = 10


@click.command("predict")
@click.argument("model", type=click.Path())
@click.argument("data")
@click.option("--labels", type=click.Path(), help="File with the name of one class a line.")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True,
              help="Part of a data set that has parts.")  # fmt: skip
@click.option("--provider", default="cpu", show_default=True, help="cpu, cuda, or ONNX Runtime's name.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Samples a run.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0 leaves it to ONNX Runtime.")
@click.option("--out", type=click.Path(), help="Write every prediction to FILE.csv or FILE.jsonl.")
@common_options
def command(
    output: Output,
    model: str,
    data: str,
    labels: str | None,
    split: str,
    provider: str,
    batch: int,
    threads: int,
    out: str | None,
) -> None:
    """Classify the samples of DATA with MODEL.

    DATA is a folder of images, an .npz (x, and y for labels) or .npy, or a data set: digits, cifar10:DIR,
    imagefolder:DIR, npz:FILE. How pixels become the model's input is read from the model, if bnfold exported it.
    """
    from bnfold.deployment import PredictOptions, predict

    options = PredictOptions(provider=provider, batch=batch, split=split, labels=labels, threads=threads)
    with output.progress() as progress:
        result = predict(model, data, out, options, progress)
    if out is None:
        rows = [(p.sample, p.name, f"{p.probability:.4f}", p.label_name or "")
                for p in result.predictions[:_SHOWN]]  # fmt: skip
        output.show(table("", ["sample", "predicted", "probability", "label"], rows, right=["probability"]))
        if len(result.predictions) > _SHOWN:
            output.say(f"… and {len(result.predictions) - _SHOWN} more; --out FILE.csv writes them all.")
    accuracy = "" if result.accuracy is None else f" Accuracy {result.accuracy:.2%}."
    output.say(
        f"{len(result.predictions)} samples in {result.seconds:.2f} s, {result.throughput:,.0f} a second "
        f"on {result.provider}.{accuracy}"
    )
    if result.path is not None:
        output.say(f"Wrote {result.path}.")
    output.document(result.to_json())
