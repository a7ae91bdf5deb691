"""How a fold report looks on a terminal; shared by `inspect` and `optimize`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.cli.render import Output, table

if TYPE_CHECKING:
    from bnfold.fold.report import FoldRecord, FoldReport

#: How each fate is shown: a word for those who see no colour, a colour for those who do.
_COLOURS = {"folded": "green", "merged": "magenta", "collapsed": "yellow", "kept": "red"}
_WOULD = {"folded": "folds", "merged": "merges", "collapsed": "collapses", "kept": "stays"}


def show_folds(output: Output, report: FoldReport, *, tense: str) -> None:
    """Print the table of records, that of merges, and the summary.

    Args:
        output: where to; ``verbose`` lists the merges that were refused as well.
        report: what to show.
        tense: ``would`` before the fact, ``did`` after it.
    """
    from rich.text import Text

    def fate(record: FoldRecord) -> Text:
        word = _WOULD[record.fate] if tense == "would" else record.fate
        return Text(word, style=_COLOURS[record.fate])

    if report.records:
        columns = ["node", "op", "channels", "fate", "how, or why not", "ORT alone"]
        rows = [
            (
                record.node,
                _abbreviated(record.op),
                record.channels or "?",
                fate(record),
                record.sentence + (f"; {record.hint}" if record.hint else ""),
                "folds" if record.ort_folds else "keeps",
            )
            for record in report.records
        ]
        output.show(table("", columns, rows, right=["channels"], fixed=["fate", "ORT alone"]))
    _show_merges(output, report, tense=tense)
    output.say(summary(report, tense=tense))


def _show_merges(output: Output, report: FoldReport, *, tense: str) -> None:
    done = [merge for merge in report.merges if merge.refusal is None]
    stay = [merge for merge in report.merges if merge.refusal is not None]
    shown = [*done, *stay] if output.verbose else done
    if shown:
        what = f"linear ops that {'become' if tense == 'would' else 'became'} one"
        columns = [what, "into, or why not" if output.verbose else "into", "multiply-adds"]
        rows = [
            (
                ", ".join(merge.nodes),
                merge.into if merge.refusal is None else merge.refusal.detail,
                f"{merge.work_before:,} → {merge.work_after:,}",
            )
            for merge in shown
        ]
        output.show(table("", columns, rows, right=["multiply-adds"]))
    if stay and not output.verbose:
        more = " more" if done else ""
        places = f"1{more} place holds" if len(stay) == 1 else f"{len(stay)}{more} places hold"
        output.say(f"{places} linear ops side by side or in a row that stay: see --verbose or --json.")


def _abbreviated(op: str) -> str:
    return op.replace("BatchNormalization", "BatchNorm")


def summary(report: FoldReport, *, tense: str) -> str:
    """One or two sentences: how many batch norms go, how many are left, what else was folded."""
    norms = report.batch_norms
    if not norms:
        sentence = "No batch norm in this model."
    else:
        counts = {fate: sum(record.fate == fate for record in norms) for fate in ("folded", "merged")}
        first, *others = [fate for fate, count in counts.items() if count] or ["folded"]
        which = f"{counts[first]} of {len(norms)} batch norm{'s' * (len(norms) > 1)}"
        sentence = f"{which} {_verb(first, counts[first], tense)}"
        sentence += "".join(f", {counts[fate]} {_verb(fate, counts[fate], tense)}" for fate in others)
        sentence += f"; {report.batch_norms_after} left."
    affines = sum(record.fate != "kept" for record in report.records) - sum(r.fate != "kept" for r in norms)
    if affines:
        verb = "went" if tense != "would" else "goes" if affines == 1 else "go"
        sentence += f" {affines} other affine{'s' * (affines > 1)} {verb} as well."
    return f"{sentence} Nodes: {report.nodes_before} → {report.nodes_after}."


def _verb(fate: str, count: int, tense: str) -> str:
    if tense != "would":
        return fate
    return _WOULD[fate] if count == 1 else _WOULD[fate].removesuffix("s")
