"""``bnfold benchmark``: compare the latency of models."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold.cli.options import LEVELS, input_shapes, report_files
from bnfold.cli.render import Output, common_options, table

if TYPE_CHECKING:
    from bnfold.benchmarking import BenchmarkResult, Scenario

#: Kept in step with bnfold.benchmarking.report.FORMATS by a test: --help must not import it.
SUFFIXES = (".json", ".csv", ".md", ".html")

#: Kept in step with bnfold.benchmarking.Kind and Compare by the same test.
SCENARIOS = ("single-stream", "offline", "poisson")
COMPARE = ("models", "settings")

_SWITCH = {"on": True, "off": False}


def _switches(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[bool, ...]:
    return tuple(_SWITCH[text] for text in _listed(click.Choice(list(_SWITCH)))(context, parameter, values))


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
@click.option("--spinning", "spinnings", multiple=True, default=["on"], metavar="on|off", callback=_switches,
              help="Whether ONNX Runtime's idle threads spin before they sleep, for example on,off.  "
                   "[default: on]")  # fmt: skip
@click.option("--io-binding", "bindings", multiple=True, default=["off"], metavar="on|off", callback=_switches,
              help="Whether inputs and outputs are bound in the provider's own memory.  [default: off]")  # fmt: skip
@click.option("--cuda-graph", "cuda_graphs", multiple=True, default=["off"], metavar="on|off", callback=_switches,
              help="Whether CUDA records the kernels once and replays them; with IO binding.  "
                   "[default: off]")  # fmt: skip
@click.option("--scenario", "kinds", multiple=True, default=["single-stream"], metavar="|".join(SCENARIOS),
              callback=_listed(click.Choice(SCENARIOS)),
              help="How requests arrive: one after the other, all at once, or at random times, where the latency "
                   "counts from the scheduled arrival.  [default: single-stream]")  # fmt: skip
@click.option("--streams", multiple=True, metavar="COUNTS", callback=_listed(click.IntRange(min=1)),
              help="Threads that share the work of --scenario offline.  [default: one a core]")  # fmt: skip
@click.option("--rate", "rates", multiple=True, metavar="RATES",
              callback=_listed(click.FloatRange(min=0, min_open=True)),
              help="Arrivals a second of --scenario poisson, for example 50,100.")  # fmt: skip
@click.option("--compare", type=click.Choice(COMPARE),
              help="Models in each setting, or settings of each model.  [default: models, if there are "
                   "several]")  # fmt: skip
@click.option("--time", "seconds", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="Time for each comparison.  [default: 5 a candidate]")  # fmt: skip
@click.option("--launches", type=click.IntRange(min=2), default=5, show_default=True,
              help="How many times to start fresh processes.")  # fmt: skip
@click.option("--cold-starts", type=click.IntRange(min=0), default=10, show_default=True,
              help="How many sessions to create in fresh processes, those of the launches included; takes up to half "
                   "of --time more.")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="The longest to wait for one answer of a candidate: its session, its first run, a block. One that "
                   "takes longer ends the run with exit code 3.  [default: 120 and --time]")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of the inputs and the order of the runs.")  # fmt: skip
@input_shapes
@click.option("--control/--no-control", default=True, show_default=True,
              help="Run the first candidate in a second process too, to see how much is noise.")  # fmt: skip
@click.option("--profile", is_flag=True,
              help="Show what each op takes and which fold paid, by ONNX Runtime's own profile.")  # fmt: skip
@click.option("--out", "reports", multiple=True, metavar="FILE", callback=report_files(*SUFFIXES),
              help=f"Write a report: {', '.join(SUFFIXES)} (every sample in .json); may be repeated.")  # fmt: skip
@click.option("--baseline", "earlier", type=click.Path(), metavar="FILE.json",
              help="Compare with an earlier run too, from the file that --out wrote.")  # fmt: skip
@click.option("--fail-if-slower", "limit", type=click.FloatRange(min=0), metavar="PCT",
              help="Exit with 1 if a candidate is shown to be slower than the first by more than PCT per cent: "
                   "if the whole interval lies beyond it. With --baseline: slower than it was then.")  # fmt: skip
@common_options
def command(
    out_: Output,
    models: tuple[str, ...],
    kinds: tuple[str, ...],
    streams: tuple[int, ...],
    rates: tuple[float, ...],
    compare: str | None,
    shapes: dict[str, tuple[int, ...]],
    earlier: str | None,
    reports: tuple[Path, ...],
    limit: float | None,
    **values: Any,
) -> None:
    """Compare the latency of models with that of the first, or of one model in several settings.

    Each candidate runs in processes of its own, turn by turn in random order, over several launches. A difference
    is reported only if neither its 95 % interval nor the difference between two processes of the first candidate
    leaves room for chance. Where an option takes several values, every combination is measured.
    """
    from bnfold.benchmarking import BenchmarkOptions, Compare, benchmark
    from bnfold.benchmarking.candidates import compares
    from bnfold.benchmarking.report import check_report, write_report

    options = BenchmarkOptions(
        scenarios=_scenarios(kinds, streams, rates),
        compare=None if compare is None else Compare(compare),
        input_shapes=shapes,
        **values,
    )
    if limit is not None and not math.isfinite(limit):
        raise click.UsageError("--fail-if-slower takes a number of per cent.")
    if limit is not None and earlier is None and not compares(len(models), options):
        raise click.UsageError(
            "--fail-if-slower needs two models or settings that are compared, of which the first is the baseline, or "
            "--baseline."
        )
    for report in reports:
        check_report(report)
    with out_.progress() as progress:
        result = benchmark(models, options, progress, earlier=earlier)
    for report in reports:
        write_report(result, report)
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


def _scenarios(kinds: tuple[str, ...], streams: tuple[int, ...], rates: tuple[float, ...]) -> tuple[Scenario, ...]:
    """Each kind with the numbers of streams, or the rates, that belong to it."""
    from bnfold.benchmarking import Kind, Scenario
    from bnfold.benchmarking.context import available_cores

    if streams and "offline" not in kinds:
        raise click.UsageError("--streams belongs to --scenario offline.")
    if bool(rates) != ("poisson" in kinds):
        raise click.UsageError("--scenario poisson needs --rate, the arrivals a second, and no other takes one.")
    found = []
    for kind in map(Kind, kinds):
        if kind is Kind.OFFLINE:
            found += [Scenario(kind, streams=count) for count in streams or (len(available_cores()),)]
        elif kind is Kind.POISSON:
            found += [Scenario(kind, rate=rate) for rate in rates]
        else:
            found.append(Scenario(kind))
    return tuple(found)


def _show(out: Output, result: BenchmarkResult) -> None:
    from bnfold.benchmarking.tables import context_sentence, notes, tables

    for answer in result.sentences():
        out.say(answer, "bold")
    for group in result.groups:
        out.say()
        title = group.group.title
        for shown in tables(group, short=not out.verbose):
            if shown.title or title:
                out.say(shown.title or title, "italic")
            out.show(table("", shown.columns, shown.rows, right=shown.right))
            title = ""
        for note in notes(group):
            out.say(note)
    if out.verbose:
        out.say(context_sentence(result))
