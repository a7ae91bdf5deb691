"""``bnfold study``: the claims made for batch norm, measured again."""

from __future__ import annotations

import click

from bnfold.cli.render import Output, common_options, table


@click.command("study")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-o", "--out", "folder", type=click.Path(), default="bnfold-study", show_default=True, metavar="DIR",
              help="Folder for the pages.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=5), help="Runs of each arm.  [10, or 5 with --quick]")
@click.option("--quick", is_flag=True, help="Shorter training and coarser grids: under two minutes for all.")
@common_options
def command(output: Output, names: tuple[str, ...], folder: str, seeds: int | None, quick: bool) -> None:
    """Re-run the claims made for batch norm: table, plots, 95 % intervals, and a verdict for each claim.

    NAME is one or more of speed, learning_rates, initialization, covariate_shift, smoothness, explosion,
    generalization, scale_invariance, small_batches; all of them by default. Small networks on scikit-learn's digits;
    each arm at a learning rate that is tuned on other seeds. DIR gets index.html, and a page, a Markdown file and a
    PNG for each experiment.

    \b
    bnfold study --quick
    bnfold study explosion scale_invariance -o deep
    """
    from bnfold.studies import StudyOptions, study

    options = StudyOptions(names, seeds, quick)
    with output.progress() as progress:
        result = study(folder, options, progress)
    headings = ["experiment", "measured", "seen", "interval", "verdict"]
    rows = [
        ("" if number else outcome.name, finding.quantity, finding.estimate, finding.interval, finding.verdict)
        for outcome in result.outcomes
        for number, finding in enumerate(outcome.findings)
    ]
    output.show(table("", headings, rows, right=["seen", "interval"], fixed=["experiment", "verdict"]))
    findings = [finding for outcome in result.outcomes for finding in outcome.findings]
    counts = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in
              ("agrees", "disagrees", "not decided")}  # fmt: skip
    output.say(
        f"Of {len(findings)} claims {counts['agrees']} agree{'s' * (counts['agrees'] == 1)} with what was seen, "
        f"{counts['disagrees']} do{'es' * (counts['disagrees'] == 1)} not, {counts['not decided']} "
        f"{'is' if counts['not decided'] == 1 else 'are'} not decided; {result.seeds} seeds an arm."
    )
    output.say(f"Wrote {result.folder / 'index.html'}.")
    output.document(result.to_json())
