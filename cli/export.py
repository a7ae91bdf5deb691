"""``bnfold export``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from bnfold.cli.options import parse_sizes
from bnfold.cli.render import Output, common_options, table

if TYPE_CHECKING:
    from bnfold.exporting import ExportResult


@click.command("export")
@click.argument("source")
@click.option("-o", "--output", required=True, metavar="MODEL.onnx", help="ONNX file to write.")
@click.option("--model", metavar="NAME", help="Network that a file of weights is for.")
@click.option("--model-args", metavar="KEY=VALUE", multiple=True,
              help="An argument of the network, such as widths=16,32,64; repeat for more.")  # fmt: skip
@click.option("--weights", metavar="FILE", help="Weights for a network that is given by name.")
@click.option("--input-shape", metavar="C,H,W", help="Shape of one input without the batch.  [from the run]")
@click.option("--opset", type=int, help="Version of the operator set.  [20]")
@click.option("--static", is_flag=True, help="Fix the batch size at 1.")
@click.option("--raw", is_flag=True, help="Keep constant sub-graphs and names as torch writes them.")
@click.option("--seed", type=int, default=0, help="Of the random inputs of the check.")
@common_options
def command(
    out: Output,
    source: str,
    output: str,
    model: str | None,
    model_args: Sequence[str],
    weights: str | None,
    input_shape: str | None,
    opset: int | None,
    static: bool,
    raw: bool,
    seed: int,
) -> None:
    """Export a trained network to ONNX, batch norm kept, and check the file against the network.

    SOURCE is the folder of a run; or a file of weights (.safetensors, or a torch file of plain tensors) with
    --model; or a network's name, such as package.module:factory.

    \b
    bnfold export runs/digits -o digits.onnx
    bnfold export weights.pt --model mynet:build --input-shape 3,224,224 -o mynet.onnx
    """
    from bnfold.cli.train import parse_arguments
    from bnfold.exporting import DEFAULT_OPSET, ExportOptions, export

    options = ExportOptions(
        model=model,
        model_args=parse_arguments(model_args),
        weights=weights,
        opset=DEFAULT_OPSET if opset is None else opset,
        input_shape=None if input_shape is None else _shape(input_shape),
        static=static,
        clean=not raw,
        seed=seed,
    )
    with out.progress() as progress:
        result = export(source, output, options, progress)
    _show(out, result)
    for note in result.notes:
        out.warn(note)
    out.document(result.to_json())


def _shape(text: str) -> tuple[int, ...]:
    sizes = parse_sizes(text.replace("x", ","))
    if sizes is None:
        raise click.BadParameter(f"{text!r} is not of the form 3,224,224", param_hint="--input-shape")
    return sizes


def _show(out: Output, result: ExportResult) -> None:
    check = result.check
    rows = [
        ("network", f"{result.network}, {result.parameters:,} values"),
        *((f"input {name}", _sizes(shape)) for name, shape in result.inputs.items()),
        *((f"output {name}", _sizes(shape)) for name, shape in result.outputs.items()),
        ("opset", result.opset),
        ("nodes", f"{result.nodes}, of which {result.batch_norms} BatchNormalization"),
        ("check", f"largest error {check.max_error:.2g} of {check.bound:.2g} allowed, against {check.reference}, "
                  f"{check.samples} random input{'s' if check.samples > 1 else ''} on {check.engine}"),
        ("file", f"{result.path}, {result.size:,} bytes"),
    ]  # fmt: skip
    out.show(table("", ("exported", ""), rows, fixed=("exported",)))


def _sizes(shape: Sequence[int | str]) -> str:
    return " × ".join(str(size) for size in shape)
