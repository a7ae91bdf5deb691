"""``bnfold predict``: run a classifier over data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bnfold.cli.render import Output, common_options, table

if TYPE_CHECKING:
    from bnfold.prediction import PredictResult

#: Predictions shown on a terminal; a file holds them all.
_SHOWN = 10


@click.command("predict")
@click.argument("model", type=click.Path())
@click.argument("data")
@click.option("--out", type=click.Path(), metavar="FILE",
              help="Write every prediction to FILE.csv, FILE.jsonl or FILE.parquet.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the rows that an interrupted run left in FILE.partial.")
@click.option("--overwrite", is_flag=True, help="Discard the rows that an interrupted run left in FILE.partial.")
@click.option("--top-k", type=click.IntRange(min=1), default=1, show_default=True, metavar="K",
              help="Tell the K best classes of each sample.")  # fmt: skip
@click.option("--logits", is_flag=True, help="Tell all scores of each sample.")
@click.option("--labels", type=click.Path(), metavar="FILE", help="File with the name of one class a line.")
@click.option("--on-error", type=click.Choice(["fail", "skip"]), default="fail", show_default=True,
              help="At a sample that cannot be read: end, or record it, go on and exit with 1.")  # fmt: skip
@click.option("--preprocess", multiple=True, metavar="KEY=VALUE",
              help="How images become the model's input, in place of what the model or its sidecar says: imagenet, "
                   "mean=…, std=…, size=…, resize=crop|stretch|none, shorter-side=…, interpolation=…, "
                   "channels=RGB|BGR|L, layout=NCHW|NHWC, scale=… (repeatable).")  # fmt: skip
@click.option("--save-preprocessing", is_flag=True,
              help="Write what was used to MODEL.preprocessing.json, where every later run finds it.")  # fmt: skip
@click.option("--column", metavar="NAME", help="Column of Parquet files that holds the samples.")
@click.option("--label-column", metavar="NAME", help="Column of Parquet files that holds the labels.  [label]")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True,
              help="Part of a data set that has parts.")  # fmt: skip
@click.option("--provider", default="cpu", show_default=True, help="cpu, cuda, or ONNX Runtime's name.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Samples a run.")
@click.option("--threads", type=click.IntRange(min=0), default=0,
              help="Threads of a session; 0 leaves it to ONNX Runtime, and is 1 for an actor of Ray.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=0), default=2, show_default=True,
              help="Threads that decode ahead of the session; 0 does one thing after the other.")  # fmt: skip
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="Where to work: in this process, or in actors of Ray, with the same rows.")  # fmt: skip
@click.option("--address", metavar="HOST:PORT", help="Ray cluster; without it, one is started on this machine.")
@click.option("--actors", type=click.IntRange(min=1), metavar="N", help="Actors of Ray.  [2]")
@common_options
def command(
    output: Output,
    model: str,
    data: str,
    out: str | None,
    resume: bool,
    overwrite: bool,
    top_k: int,
    logits: bool,
    labels: str | None,
    on_error: str,
    preprocess: tuple[str, ...],
    save_preprocessing: bool,
    column: str | None,
    label_column: str | None,
    split: str,
    provider: str,
    batch: int,
    threads: int,
    workers: int,
    engine: str,
    address: str | None,
    actors: int | None,
) -> None:
    """Classify the samples of DATA with MODEL.

    DATA is a folder of images, an .npz (x, and y for labels) or .npy, a .parquet file or a folder of such, or a data
    set: digits, cifar10:DIR, imagefolder:DIR, npz:FILE. How pixels become the model's input is read from
    MODEL.preprocessing.json, or from the model, if bnfold exported it.

    \b
    bnfold predict digits.onnx digits
    bnfold predict model.onnx photos/ --out photos.parquet --top-k 5 --on-error skip
    bnfold predict theirs.onnx photos/ --preprocess imagenet --save-preprocessing
    """
    if out is None and (resume or overwrite):
        raise click.BadParameter("there is nothing to resume or to overwrite without --out", param_hint="--out")
    from bnfold.prediction import PredictOptions, predict

    options = PredictOptions(
        provider=provider,
        batch=batch,
        split=split,
        labels=labels,
        threads=threads,
        workers=workers,
        top_k=top_k,
        logits=logits,
        on_error=on_error,
        resume=resume,
        overwrite=overwrite,
        preprocess=preprocess,
        save_preprocessing=save_preprocessing,
        column=column,
        label_column=label_column,
        engine=engine,
        address=address,
        actors=actors,
    )
    try:
        with output.progress(rate="samples/s") as progress:
            result = predict(model, data, out, options, progress)
    except KeyboardInterrupt:
        _tell_how_to_go_on(output, out)
        raise
    if out is None:
        _show_rows(output, result)
    _summarize(output, result, top_k)
    if result.tally.skipped:
        output.answer_no()
    output.document(result.to_json())


def _tell_how_to_go_on(output: Output, out: str | None) -> None:
    if out is not None:
        from pathlib import Path

        from bnfold.prediction.partial_output import partial_folder

        folder = partial_folder(Path(out))
        if folder.exists():
            output.warn(f"the rows so far are in {folder}; the same command with --resume goes on")


def _show_rows(output: Output, result: PredictResult) -> None:
    labelled = bool(result.tally.labelled)
    rows = [
        (row.sample, "\n".join(rank.name for rank in row.top) or row.name,
         "\n".join(f"{rank.probability:.4f}" for rank in row.top) or f"{row.probability:.4f}",
         *([row.label_name or ""] if labelled else []))
        for row in result.predictions[:_SHOWN]
    ]  # fmt: skip
    columns = ["sample", "predicted", "probability", *(["label"] if labelled else [])]
    output.show(table("", columns, rows, right=["probability"]))
    if len(result.predictions) > _SHOWN:
        output.say(f"… and {len(result.predictions) - _SHOWN:,} more; --out FILE.csv writes them all.")
    for failure in result.failures[:_SHOWN]:
        output.warn(failure.error)


def _summarize(output: Output, result: PredictResult, top_k: int) -> None:
    tally = result.tally
    if result.resumed:
        output.say(f"{result.resumed:,} samples were there already.")
    accuracy = ""
    if result.accuracy is not None:
        also = "" if top_k == 1 else f", {result.top_accuracy:.2%} among the best {top_k}"
        accuracy = f" Accuracy {result.accuracy:.2%}{also}."
    output.say(
        f"{tally.rows - result.resumed:,} samples in {result.seconds:.2f} s, {result.throughput:,.0f} a second "
        f"on {result.provider}.{accuracy}"
    )
    if tally.skipped:
        where = "" if result.skipped_path is None else f"; {result.skipped_path} says which and why"
        noun = "sample has" if tally.skipped == 1 else "samples have"
        output.warn(f"{tally.skipped:,} {noun} no prediction{where}")
    if result.path is not None:
        output.say(f"Wrote {result.path}.")
