"""A result as the text of a file: JSON, Markdown, or the XML that continuous integration reads test results from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from bnfold.errors import OutputError
from bnfold.files import StrPath, write_text
from bnfold.verification.result import OutputResult, VerifyResult
from bnfold.verification.tables import (
    FOLD_COLUMNS,
    RUNS,
    VERDICT_COLUMNS,
    decisions,
    feed_columns,
    feed_rows,
    fold_row,
    metric_columns,
    metric_rows,
    verdict_rows,
)
from bnfold.verification.verdict import Finding
from bnfold.verification.versions import versions
from bnfold.verification.wording import describe


def as_json(result: VerifyResult) -> str:
    """Every figure, as indented JSON."""
    return json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n"


def as_markdown(result: VerifyResult) -> str:
    """The verdict, the tables, the rule, the notes, and with what it was made."""
    return _printable("\n".join(_markdown(result))) + "\n"


def _markdown(result: VerifyResult) -> Iterator[str]:
    yield "# Verification"
    yield ""
    yield f"**{_escape(_sentence(result.sentence))}**"
    yield ""
    yield f"- Reference: {_escape(result.models[0])}"
    yield f"- Candidate: {_escape(result.models[1])}"
    yield from (f"- Note: {_escape(_sentence(note))}" for note in result.notes)
    yield from (f"- {_escape(sentence)}" for sentence in decisions(result))
    for output in result.outputs:
        yield ""
        yield f"## Output {_escape(output.name)} ({output.dtype})"
        yield ""
        yield from _table(VERDICT_COLUMNS, verdict_rows(output))
        yield ""
        yield from _table(metric_columns(output), metric_rows(output))
        yield ""
        yield from _table(feed_columns(output), feed_rows(output))
    if result.folds is not None:
        yield ""
        yield f"Fold by fold: {_escape(result.folds.sentence)}."
        if result.folds.proofs:
            yield ""
            yield from _table(FOLD_COLUMNS, [fold_row(proof) for proof in result.folds.proofs])
    if result.cause is not None:
        yield ""
        yield f"Cause: {_escape(result.cause.sentence)}."
    yield ""
    if result.rule:
        yield f"Errors are relative to the output's scale. {_escape(result.rule)}"
        yield ""
    yield _escape(context_sentence(result))


def context_sentence(result: VerifyResult) -> str:
    """With what, and how, it was verified."""
    made_with = ", ".join(f"{package} {version}" for package, version in versions().items())
    ran = f"level {result.level}, provider {result.provider}" if result.runtime else "without ONNX Runtime"
    return f"{made_with}; {ran}; seed {result.seed}; {result.seconds:.1f} s."


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|---|" + "---:|" * (len(columns) - 1)
    yield from ("| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows)


def _escape(text: str) -> str:
    for letter in "\\|_*`<[":
        text = text.replace(letter, f"\\{letter}")
    return text


def as_junit(result: VerifyResult) -> str:
    """One test case for each output and way in which the candidate was run, and for each fold that was proven.

    The dialect is the one of Jenkins, GitLab and GitHub's actions: ``testsuites``, ``testsuite``, ``testcase``, and a
    ``failure`` or ``skipped`` inside.
    """
    cases = list(_cases(result))
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": "0",
        "time": f"{result.seconds:.3f}",
    }
    skipped = str(sum(case.find("skipped") is not None for case in cases))
    root = ElementTree.Element("testsuites", {"name": "bnfold verify", **counts})
    name = _printable(f"{result.models[1]} against {result.models[0]}")
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, "skipped": skipped, **counts})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(result):
        ElementTree.SubElement(properties, "property", {"name": name, "value": _printable(value)})
    suite.extend(cases)
    cause = [] if result.cause is None else [f"Cause: {result.cause.sentence}."]
    notes = [_sentence(result.sentence), *cause, *(_sentence(note) for note in result.notes), result.rule]
    ElementTree.SubElement(suite, "system-out").text = _printable("\n".join(notes))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _properties(result: VerifyResult) -> Iterator[tuple[str, str]]:
    yield "verdict", result.verdict
    yield "reference", result.reference
    yield from (("provider", result.provider), ("level", result.level), ("seed", str(result.seed)))
    yield from versions().items()


def _cases(result: VerifyResult) -> Iterator[ElementTree.Element]:
    for output in result.outputs:
        for finding in output.judgement.findings:
            yield _case(output, finding)
    if result.verdict == "nothing proven":
        yield _with("failure", _element("bnfold.verify", "something is proven"), result.sentence, "nothing proven")
    for proof in result.folds.proofs if result.folds is not None else ():
        case = _element("bnfold.verify.folds", proof.node)
        if proof.wrong and not result.ok:
            _with("failure", case, proof.detail or proof.verdict, proof.verdict)
        elif proof.verdict != "ok":
            _with("skipped", case, proof.detail or "not proven")
        yield case


def _case(output: OutputResult, finding: Finding) -> ElementTree.Element:
    case = _element(f"bnfold.verify.{output.name}", RUNS[finding.run])
    if not finding.ratio <= 1:
        _with("failure", case, describe(output.name, finding), "mismatch")
    return case


def _element(group: str, name: str) -> ElementTree.Element:
    return ElementTree.Element("testcase", {"classname": _printable(group), "name": _printable(name), "time": "0"})


def _with(tag: str, case: ElementTree.Element, message: str, kind: str = "") -> ElementTree.Element:
    attributes = {"message": _printable(message), **({"type": kind} if kind else {})}
    ElementTree.SubElement(case, tag, attributes).text = _printable(message)
    return case


#: What XML 1.0 cannot hold, and UTF-8 partly neither; names of files and in a model may be anything.
_UNPRINTABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


#: What each suffix of an output file stands for.
FORMATS: Mapping[str, Callable[[VerifyResult], str]] = {".json": as_json, ".md": as_markdown, ".xml": as_junit}


def write_report(result: VerifyResult, path: StrPath) -> None:
    """Write the result in the format that the path's suffix names, a key of :data:`FORMATS`.

    Raises:
        OutputError: the suffix is unknown or the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise OutputError(f"{path}: unknown suffix {suffix!r}; use one of {', '.join(FORMATS)}")
    write_text(path, FORMATS[suffix](result))
