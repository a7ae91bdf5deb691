"""Reports of a verification: JSON, Markdown, JUnit XML."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import onnx_ir as ir
import pytest
from verify_networks import DAMAGES, random_network

from bnfold.errors import OutputError
from bnfold.verification import VerifyOptions, verify
from bnfold.verification.report import as_junit, as_markdown, write_report
from bnfold.verification.tables import (
    decisions,
    feed_columns,
    feed_rows,
    metric_columns,
    metric_rows,
    verdict_rows,
)


@pytest.fixture(scope="module")
def results():
    network = random_network(3)
    damage = DAMAGES["bias dropped"](network, np.random.default_rng(0))
    models = [ir.from_proto(m) for m in (network.model(False), network.model(True), network.model(True, damage))]
    options = VerifyOptions(per_fold=True)
    return {
        "equivalent": verify(models[0], models[1], options),
        "mismatch": verify(models[0], models[2], options),
        "nothing proven": verify(models[0], models[0]),
    }


VERDICTS = ["equivalent", "mismatch", "nothing proven"]


@pytest.mark.parametrize("verdict", VERDICTS)
def test_junit_is_what_continuous_integration_reads(results, verdict):
    root = ElementTree.fromstring(as_junit(results[verdict]))
    assert root.tag == "testsuites"
    (suite,) = root
    assert [child.tag for child in suite if child.tag != "testcase"] == ["properties", "system-out"]
    cases = suite.findall("testcase")
    failures = [case for case in cases if case.find("failure") is not None]
    for element in (root, suite):
        assert int(element.get("tests")) == len(cases) > 0
        assert int(element.get("failures")) == len(failures)
        assert int(element.get("errors")) == 0
    assert all(case.get("classname") and case.get("name") and case.get("time") for case in cases)
    assert bool(failures) == (verdict != "equivalent")
    assert all(case.find("failure").get("message") and case.find("failure").get("type") for case in failures)


def test_a_mismatch_fails_the_case_of_its_run(results):
    root = ElementTree.fromstring(as_junit(results["mismatch"]))
    failed = {case.get("name") for case in root.iter("testcase") if case.find("failure") is not None}
    assert {"float64", "ORT plain", "ORT shipped"} <= failed


def test_names_that_xml_cannot_hold_do_not_break_it(results):
    odd = replace(results["equivalent"], models=("a\x00\ud800<&\"'", "b\uffff"), notes=("note \x1b[0m",))
    assert ElementTree.fromstring(as_junit(odd)).tag == "testsuites"
    assert as_markdown(odd).encode()


@pytest.mark.parametrize("verdict", VERDICTS)
def test_markdown_tables_are_whole(results, verdict):
    lines = as_markdown(results[verdict]).splitlines()
    assert lines[0] == "# Verification"
    assert results[verdict].sentence[1:40] in lines[2].replace("\\", "")
    for index, line in enumerate(lines):
        if line.startswith("|---"):
            rows = [line]
            while index + len(rows) < len(lines) and lines[index + len(rows)].startswith("|"):
                rows.append(lines[index + len(rows)])
            assert {row.count("|") - row.count("\\|") for row in [lines[index - 1], *rows]} == {line.count("|")}


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("suffix", [".json", ".md", ".xml", ".XML"])
def test_the_suffix_chooses_the_format(results, tmp_path, verdict, suffix):
    write_report(results[verdict], tmp_path / f"report{suffix}")
    text = (tmp_path / f"report{suffix}").read_text()
    if suffix == ".json":
        assert json.loads(text)["verdict"] == verdict
    else:
        assert text.startswith("#" if suffix == ".md" else "<?xml")


def test_an_unknown_suffix_is_refused(results, tmp_path):
    with pytest.raises(OutputError, match="unknown suffix"):
        write_report(results["equivalent"], tmp_path / "report.txt")


def test_tables_have_a_cell_for_each_column(results):
    for output in results["mismatch"].outputs:
        assert {len(row) for row in verdict_rows(output)} == {6}
        assert {len(row) for row in metric_rows(output)} == {len(metric_columns(output))}
        assert {len(row) for row in feed_rows(output)} == {len(feed_columns(output))}


def test_every_metric_is_in_the_table_of_a_classifier(results):
    (output,) = results["equivalent"].outputs
    names = [row[0] for row in metric_rows(output)]
    assert names == [
        "max abs", "mean abs", "max / scale", "max ULP", "1 − cosine", "SNR (dB)", "top-1", "top-5", "near ties",
    ]  # fmt: skip


def test_decisions_are_counted(results):
    (sentence,) = decisions(results["equivalent"])
    assert "decides 24 times, all alike; 0 of these" in sentence
