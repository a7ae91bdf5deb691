"""How a fold report looks on a terminal; shared by `inspect` and `optimize`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.cli.render import Output, table

if TYPE_CHECKING:
    from bnfold.fold.report import FoldRecord, FoldReport

#: How each fate is shown: a word for those who see no colour, a colour for those who do.
_COLOURS = {"folded": "green", "collapsed": "yellow", "kept": "red"}
_WOULD = {"folded": "folds", "collapsed": "collapses", "kept": "stays"}


def show_folds(output: Output, report: FoldReport, *, tense: str) -> None:
    """Print the table of records and the summary.

    Args:
        output: where to.
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
    output.say(summary(report, tense=tense))


def _abbreviated(op: str) -> str:
    return op.replace("BatchNormalization", "BatchNorm")


def summary(report: FoldReport, *, tense: str) -> str:
    """One or two sentences: how many batch norms go, how many are left, what else was folded."""
    norms = report.batch_norms
    if not norms:
        sentence = "No batch norm in this model."
    else:
        gone = sum(record.fate == "folded" for record in norms)
        verb = "folded" if tense != "would" else "folds" if gone == 1 else "fold"
        sentence = f"{gone} of {len(norms)} batch norm{'s' * (len(norms) > 1)} {verb}; {report.batch_norms_after} left."
    others = sum(record.fate != "kept" for record in report.records) - sum(r.fate != "kept" for r in norms)
    if others:
        sentence += f" {others} other affine{'s' * (others > 1)} {'go' if tense == 'would' else 'went'} as well."
    return f"{sentence} Nodes: {report.nodes_before} → {report.nodes_after}."
