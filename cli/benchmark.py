"""``bnfold benchmark``: compare the latency of models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold.cli.options import LEVELS, input_shapes, report_file
from bnfold.cli.render import Output, common_options, table

if TYPE_CHECKING:
    from bnfold.benchmarking import BenchmarkResult

#: Kept in step with bnfold.benchmarking.report.FORMATS by a test: --help must not import it.
SUFFIXES = (".json", ".csv", ".md")


def _listed(
    item: click.ParamType[Any],
) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], tuple[Any, ...]]:
    """A callback that takes values separated by commas, in an option that may be repeated."""

    def parse(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[Any, ...]:
        parts = [part.strip() for value in values for part in value.split(",")]
        return tuple(item.convert(part, parameter, context) for part in parts)

    return parse


@click.command(name="benchmark")
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL...]")
@click.option("--provider", "providers", multiple=True, default=["cpu"], metavar="cpu|cuda",
              callback=_listed(click.STRING),
              help="Execution provider; may be repeated.  [default: cpu]")  # fmt: skip
@click.option("--batch", "batches", multiple=True, metavar="SIZES", callback=_listed(click.IntRange(min=1)),
              help="Sizes of a dynamic first dimension, for example 1,8.")  # fmt: skip
@click.option("--threads", multiple=True, default=["0"], metavar="COUNTS",
              callback=_listed(click.IntRange(min=0)),
              help="Intra-op threads, for example 1,2.  [default: 0, ONNX Runtime's choice]")  # fmt: skip
@click.option("--level", "levels", multiple=True, default=["all"], metavar="|".join(LEVELS),
              callback=_listed(click.Choice(LEVELS)),
              help="ONNX Runtime's graph optimization level; may be repeated.  [default: all]")  # fmt: skip
@click.option("--time", "seconds", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="Time for each combination of the above.  [default: 5 a model]")  # fmt: skip
@click.option("--launches", type=click.IntRange(min=2), default=5, show_default=True,
              help="How many times to start fresh processes.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of the inputs and the order of the runs.")  # fmt: skip
@input_shapes
@click.option("--spinning/--no-spinning", default=True, show_default=True,
              help="Let ONNX Runtime's idle threads spin before they sleep.")  # fmt: skip
@click.option("--control/--no-control", default=True, show_default=True,
              help="Run the first model in a second process too, to see how much is noise.")  # fmt: skip
@click.option("--out", metavar="FILE", callback=report_file(*SUFFIXES),
              help=f"Write a report: {', '.join(SUFFIXES)} (every sample in .json).")  # fmt: skip
@click.option("--fail-if-slower", "limit", type=click.FloatRange(min=0), metavar="PCT",
              help="Exit with 1 if a model is shown to be slower than the first by more than PCT per cent: "
                   "if the whole interval lies beyond it.")  # fmt: skip
@common_options
def command(
    out_: Output,
    models: tuple[str, ...],
    providers: tuple[str, ...],
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    levels: tuple[str, ...],
    seconds: float | None,
    launches: int,
    seed: int,
    shapes: dict[str, tuple[int, ...]],
    spinning: bool,
    control: bool,
    out: Path | None,
    limit: float | None,
) -> None:
    """Compare the latency of models with that of the first.

    Each model runs in processes of its own, turn by turn in random order, over several launches. A difference
    is reported only if neither its 95 % interval nor the difference between two processes of the first model
    leaves room for chance.
    """
    if limit is not None and len(models) < 2:
        raise click.UsageError("--fail-if-slower needs two models or more: the first is the baseline.")
    from bnfold.benchmarking import BenchmarkOptions, benchmark
    from bnfold.benchmarking.report import write_report
    from bnfold.files import check_output_file

    options = BenchmarkOptions(
        providers=providers,
        batches=batches,
        threads=threads,
        levels=levels,
        seconds=seconds,
        launches=launches,
        seed=seed,
        input_shapes=shapes,
        spinning=spinning,
        control=control,
    )
    if out is not None:
        check_output_file(out)
    with out_.progress() as progress:
        result = benchmark(models, options, progress)
    if out is not None:
        write_report(result, out)
    _show(out_, result)
    for warning in result.all_warnings:
        out_.warn(warning)
    if limit is not None:
        for slowdown in result.slower_than(limit):
            out_.say(slowdown, "red")
            out_.answer_no()
        for doubt in result.maybe_slower_than(limit):
            out_.warn(f"{doubt}; give more --time to find out")
    out_.document(result.to_json())


def _show(out: Output, result: BenchmarkResult) -> None:
    from bnfold.benchmarking.report import (
        FIGURE_COLUMNS,
        LATENCY_COLUMNS,
        context_sentence,
        control_sentence,
        figure_rows,
        latency_rows,
    )

    for answer in result.sentences():
        out.say(answer, "bold")
    for cell in result.settings:
        out.say()
        out.show(table(cell.setting.label(), LATENCY_COLUMNS, latency_rows(cell), right=LATENCY_COLUMNS[1:-1]))
        out.show(table("", FIGURE_COLUMNS, figure_rows(result, cell), right=FIGURE_COLUMNS[1:]))
        if cell.control is not None:
            out.say(control_sentence(result, cell))
    if out.verbose:
        out.say(context_sentence(result))
