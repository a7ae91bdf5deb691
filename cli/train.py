"""``bnfold train``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold.cli.render import Output, common_options, table

if TYPE_CHECKING:
    from bnfold.training import TrainOptions, TrainResult


@click.command("train")
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="RUN", help="Folder of the run.")
@click.option("--model", metavar="NAME", help="Network: a name, or package.module:factory.  [resnet]")
@click.option("--model-args", metavar="KEY=VALUE", multiple=True,
              help="An argument of the network, such as widths=16,32,64; repeat for more.")  # fmt: skip
@click.option("--data", metavar="SPEC", help="digits, cifar10:DIR, imagefolder:DIR or npz:FILE.  [digits]")
@click.option("--image-size", type=int, metavar="PIXELS", help="Resize the images of an imagefolder to this side.")
@click.option("--epochs", type=int, help="Passes over the training images.  [15]")
@click.option("--batch-size", type=int, help="Images of one step, over all workers.  [64]")
@click.option("--accumulate", type=int, metavar="PARTS", help="Take a worker's share of a step in parts.  [1]")
@click.option("--optimizer", metavar="sgd|adamw", help="Optimizer.  [sgd, with Nesterov momentum]")
@click.option("--lr", type=float, help="Highest learning rate.  [0.1 for sgd, 0.002 for adamw]")
@click.option("--momentum", type=float, help="Momentum of sgd.  [0.9]")
@click.option("--weight-decay", type=float, help="Not on biases and norms.  [5e-4 for sgd, 0.05 for adamw]")
@click.option("--warmup-epochs", type=float, help="Epochs in which the learning rate rises.  [1]")
@click.option("--label-smoothing", type=float, help="Share of the target spread over all classes.  [0.1]")
@click.option("--ema", type=float, metavar="DECAY", help="Average the weights, such as 0.999.  [0, which is off]")
@click.option("--precision", metavar="float32|bfloat16", help="bfloat16 is mixed precision.  [float32]")
@click.option("--shift", type=int, metavar="PIXELS", help="Largest random shift.  [an eighth of the side]")
@click.option("--flip/--no-flip", default=None, help="Mirror images at random.  [where the data allows it]")
@click.option("--seed", type=int, help="Of weights, order, augmentation and dropout.  [0]")
@click.option("--device", metavar="auto|cpu|cuda", help="Where to train.  [auto]")
@click.option("--threads", type=int, help="CPU threads.  [1 for a small network, or else torch's choice]")
@click.option("--resume", is_flag=True, help="Go on from the run's checkpoint, with the run's own options.")
@click.option("--overwrite", is_flag=True, help="Start anew in a folder that holds a run.")
@common_options
def command(out: Output, recipe: Path | None, **given: Any) -> None:
    """Train a batch-normalized network and leave the run in a folder.

    RECIPE is a TOML file of options, spelled with underscores (batch_size = 64); an option on the command
    line goes before it. Ctrl-C writes a checkpoint, from which --resume goes on to the same weights, bit
    for bit.

    \b
    bnfold train -o runs/digits
    bnfold train --model vgg --data cifar10:data/cifar-10-batches-bin --epochs 30 -o runs/cifar
    bnfold train recipe.toml --seed 1 -o runs/seed1
    torchrun --nproc-per-node 2 -m bnfold train recipe.toml -o runs/both
    """
    from bnfold.training import train

    if os.environ.get("RANK", "0") != "0":  # another worker of torchrun speaks for all
        out.quiet, out.as_json = True, False
    options = _options(recipe, given)
    try:
        with out.progress() as progress:
            result = train(options, progress, _epoch_line(out, options.epochs))
    except KeyboardInterrupt:
        if (Path(options.output) / "checkpoint.safetensors").exists():
            out.warn(f"stopped after a checkpoint; go on with: bnfold train --resume -o {options.output}")
        raise
    _show(out, result)
    out.document(result.to_json())


def _epoch_line(out: Output, epochs: int) -> Callable[[Mapping[str, Any]], None]:
    """Tell of each epoch as it ends, on stderr: stdout is for what the run came to."""
    width = len(str(epochs))

    def tell(row: Mapping[str, Any]) -> None:
        out.remark(
            f"epoch {row['epoch']:{width}}/{epochs}   lr {row['lr']:.4f}   loss {row['train_loss']:.4f}   "
            f"test loss {row['test_loss']:.4f}   test accuracy {row['test_accuracy']:7.2%}   {row['seconds']:.1f} s"
        )

    return tell


def _options(recipe: Path | None, given: Mapping[str, Any]) -> TrainOptions:
    """The options of the command line, over those of the recipe or of the run to resume."""
    from dataclasses import replace

    from bnfold.training import TrainOptions, load_recipe, resume_options

    explicit = {
        key: value
        for key, value in given.items()
        if value is not None and key not in ("model_args", "resume", "overwrite")
    }
    arguments = parse_arguments(given["model_args"])
    values = load_recipe(recipe) if recipe is not None else {}
    if arguments:
        explicit["model_args"] = {**values.get("model_args", {}), **arguments}
    values = values | explicit
    if "output" not in values:
        raise click.UsageError("Missing option '-o' / '--output': the folder of the run.")
    if given["resume"]:
        if given["overwrite"]:
            raise click.UsageError("--resume and --overwrite contradict each other.")
        return replace(resume_options(values["output"]), **values)
    return TrainOptions(overwrite=given["overwrite"], **values)


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """A network's arguments from ``KEY=VALUE`` texts; ``1,2`` is a list, and what is not JSON is a text."""
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise click.BadParameter(f"{pair!r} is not of the form KEY=VALUE", param_hint="--model-args")
        arguments[key] = _value(text)
    return arguments


def _value(text: str) -> Any:
    for candidate in (text, f"[{text}]" if "," in text else text):
        try:
            return json.loads(candidate)
        except ValueError:
            continue
    return text


def _show(out: Output, result: TrainResult) -> None:
    rows = [
        (
            row["epoch"],
            f"{row['lr']:.4f}",
            f"{row['train_loss']:.4f}",
            f"{row['test_loss']:.4f}",
            f"{row['test_accuracy']:.2%}",
            f"{row['seconds']:.1f}",
        )
        for row in result.history
    ]
    headings = ("epoch", "lr", "training loss", "test loss", "test accuracy", "seconds")
    if out.verbose:
        out.show(table("", headings, rows, right=headings))
    right = round(result.test_accuracy * result.test_images)
    workers = f" by {result.workers} workers" if result.workers > 1 else ""
    resumed = "" if result.resumed_at is None else f" (resumed after epoch {result.resumed_at})"
    if result.resumed_at == result.epochs:
        resumed = " (it was complete already)"
    epochs = f"{result.epochs} epoch{'s' * (result.epochs != 1)}"
    out.say(
        f"{result.test_accuracy:.2%} of {result.test_images:,} held-out test images right ({right:,}), "
        f"after {epochs}{resumed} in {result.seconds:.1f} s on {result.device}{workers}."
    )
    out.say(f"{result.model}, {result.parameters:,} parameters, is in {result.folder}.")
