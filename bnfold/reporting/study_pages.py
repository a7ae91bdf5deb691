"""A study's pages: HTML that stands alone, Markdown with PNG beside it, and the figures as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bnfold.files import json_text, publish, staging_folder
from bnfold.reporting import study_plots
from bnfold.reporting.html import render
from bnfold.studies.result import Finding, Outcome, StudyResult


def write_study(result: StudyResult) -> None:
    """Write all pages of a study into its folder, or none.

    Raises:
        OutputError: they cannot be written.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    with staging_folder(result.folder / "index.html") as staged:
        for name, content in _pages(result):
            (staged / name).write_bytes(content)
        for page in sorted(staged.iterdir()):
            publish(page, result.folder / page.name)


def _pages(result: StudyResult) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file."""
    for outcome in result.outcomes:
        title = f"{outcome.title} · bnfold study"
        page = render(
            "study.html.jinja", title=title, outcome=outcome, plot=study_plots.svg(outcome.charts), result=result
        )
        yield f"{outcome.name}.png", study_plots.png(outcome.charts)
        yield f"{outcome.name}.md", _markdown(outcome, result).encode()
        yield f"{outcome.name}.html", page.encode()
    yield "README.md", _summary(result).encode()
    yield "index.html", render("study_index.html.jinja", title="bnfold study", result=result).encode()
    yield "study.json", json_text(result.to_json()).encode()


def _summary(result: StudyResult) -> str:
    lines = ["# The claims made for batch norm, measured again", "", _provenance(result), ""]
    headings = ("experiment", "claim", "measured", "seen", "interval", "allowed", "verdict")
    lines += _rows(headings, _summary_cells(result))
    return "\n".join(lines) + "\n"


def _summary_cells(result: StudyResult) -> Iterator[tuple[str, ...]]:
    for outcome in result.outcomes:
        for number, finding in enumerate(outcome.findings):
            name = f"[{outcome.name}]({outcome.name}.md)" if not number else ""
            yield (name, *_finding_cells(finding))


def _markdown(outcome: Outcome, result: StudyResult) -> str:
    lines = [f"# {outcome.title}", "", f"**{outcome.verdict.capitalize()}.** {_provenance(result, outcome.name)}", ""]
    lines += [outcome.setup, ""]
    headings = ("claim", "measured", "seen", "interval", "allowed", "verdict")
    lines += _rows(headings, (_finding_cells(finding) for finding in outcome.findings))
    lines += ["", f"![{', '.join(chart.title for chart in outcome.charts)}]({outcome.name}.png)", ""]
    for table in outcome.tables:
        lines += [f"**{table.title}**", "", *_rows(table.columns, table.rows), ""]
    lines += [f"What this cannot show: {outcome.caveats}"]
    return "\n".join(lines) + "\n"


def _finding_cells(finding: Finding) -> tuple[str, ...]:
    source = f"[{finding.source.authors}]({finding.source.url})"
    return (
        f"{finding.claim} ({source})",
        finding.quantity,
        finding.estimate,
        finding.interval,
        finding.region.words,
        f"**{finding.verdict}**",
    )


def _provenance(result: StudyResult, name: str = "") -> str:
    """How a page came to be, and the command that makes it again."""
    command = ["bnfold study", *([name] if name else []), *(["--quick"] if result.quick else [])]
    return f"{result.seeds} seeds an arm; `{' '.join(command)} --seeds {result.seeds}` measures it anew."


def _rows(headings: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> list[str]:
    """A Markdown table; a bar inside a cell is text."""
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return lines
