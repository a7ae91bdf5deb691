"""``bnfold models``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bnfold.cli.options import parse_sizes
from bnfold.cli.render import Output, common_options, table
from bnfold.cli.train import parse_arguments


def _input_shape(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    sizes = None if value is None else parse_sizes(value)
    if value is not None and sizes is None:
        raise click.BadParameter(f"{value!r} is not of the form 3,224,224", context, parameter)
    return sizes


@click.command("models")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--input-shape", metavar="C,H,W", callback=_input_shape,
              help="Shape of one input.  [3,224,224 for the published sizes, 3,32,32 for all others]")  # fmt: skip
@click.option("--classes", type=click.IntRange(1), metavar="N", help="Number of classes.  [1000 and 10 likewise]")
@click.option("--model-args", metavar="KEY=VALUE", multiple=True,
              help="An argument of the networks named, such as widths=16,32,64; repeat for more.")  # fmt: skip
@common_options
def command(
    out: Output,
    names: Sequence[str],
    input_shape: tuple[int, ...] | None,
    classes: int | None,
    model_args: Sequence[str],
) -> None:
    """List the networks with their parameters, batch norms and multiply-adds for one input.

    Without a NAME, all that `bnfold train --model` knows: first the networks at their default size, then the
    sizes at which they were published. A NAME may also be torchvision:NAME, timm:NAME or package.module:factory. Of a
    single one, -v shows its arguments.

    \b
    bnfold models
    bnfold models resnet vgg --input-shape 1,8,8
    bnfold models resnet --model-args widths=64,128,256,512 --model-args blocks=2 -v
    """
    arguments = parse_arguments(model_args)
    if arguments and not names:
        raise click.UsageError("--model-args needs the NAME of the network that takes them.")
    from bnfold.models import description
    from bnfold.models.size import network_sizes

    sizes = network_sizes(names, input_shape, classes, arguments)
    rows = [
        (
            size.name,
            "×".join(str(side) for side in size.input_shape),
            f"{size.num_classes:,}",
            f"{size.parameters:,}",
            size.batch_norms,
            _rounded(size.multiply_adds),
        )
        for size in sizes
    ]
    headings = ("network", "input", "classes", "parameters", "batch norms", "multiply-adds")
    out.show(table("", headings, rows, right=headings[2:], fixed=headings[:2]))
    if out.verbose and len(names) == 1:
        out.say(description(names[0]).replace("``", "`"))
    out.document([size.to_json() for size in sizes])


def _rounded(count: int) -> str:
    """Four digits and a unit: 1.814 G."""
    for power, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= power:
            return f"{count / power:#.4g} {unit}"
    return f"{count:,}"
