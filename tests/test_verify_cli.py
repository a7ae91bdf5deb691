"""``bnfold verify`` as a user meets it: sentences, JSON, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from verify_networks import DAMAGES, random_network

from bnfold.cli.main import main
from bnfold.cli.verify import SUFFIXES


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    network = random_network(3)
    damage = DAMAGES["one channel of one weight off by 1 %"](network, np.random.default_rng(1))
    onnx.save(network.model(False), folder / "original.onnx")
    onnx.save(network.model(True), folder / "folded.onnx")
    onnx.save(network.model(True, damage), folder / "damaged.onnx")
    (folder / "text.onnx").write_text("not a model")
    (folder / "cut.onnx").write_bytes((folder / "folded.onnx").read_bytes()[:-500])
    np.save(folder / "wide.npy", np.zeros((1, 3, 12, 12)))
    return folder


def _run(files, *arguments):
    return main(["verify", *(str(files / a) if a.endswith((".onnx", ".npy")) else a for a in arguments)])


def test_an_honest_fold_exits_with_0_and_says_why(files, capsys):
    assert _run(files, "original.onnx", "folded.onnx") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("The candidate computes the same function: 1 output agrees on 10 sets of inputs")
    assert "Rule: In float64" in shown
    assert " ok" in shown


def test_a_damaged_fold_exits_with_1_and_says_where(files, capsys):
    assert _run(files, "original.onnx", "damaged.onnx") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("The candidate does not compute the same function: output 'y' in float64 is off by")
    assert "MISMATCH" in shown


def test_the_same_file_twice_exits_with_1(files, capsys):
    assert _run(files, "folded.onnx", "folded.onnx") == 1
    assert capsys.readouterr().out.startswith("Nothing was proven")


@pytest.mark.parametrize(
    ("candidate", "code", "verdict"), [("folded.onnx", 0, "equivalent"), ("damaged.onnx", 1, "mismatch")]
)
def test_json_is_one_document(files, capsys, candidate, code, verdict):
    assert _run(files, "original.onnx", candidate, "--json") == code
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert document["verdict"] == verdict
    assert document["reference"] == "float64"
    assert {"original", "candidate_float64", "candidate_plain", "candidate_shipped"} <= set(
        document["outputs"][0]["feeds"][0]["metrics"]
    )
    assert "candidate" in streams.err


def test_quiet_answers_with_the_exit_code_alone(files, capsys):
    assert _run(files, "original.onnx", "damaged.onnx", "-q") == 1
    assert capsys.readouterr() == ("", "")


def test_verbose_lists_every_set_of_inputs(files, capsys):
    assert _run(files, "original.onnx", "folded.onnx", "-v", "--samples", "1", "--no-runtime") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("zeros", "constant", "large", "random 1 batch 3"))


def test_tolerances_replace_the_rule(files, capsys):
    assert _run(files, "original.onnx", "damaged.onnx", "--rtol", "0.1") == 0
    assert "as asked for" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("original.onnx", "none.onnx"), "none.onnx does not exist"),
        (("text.onnx", "folded.onnx"), "text.onnx is not"),
        (("original.onnx", "cut.onnx"), "cut.onnx is not"),
        (("original.onnx", "folded.onnx", "--inputs", "wide.npy"), "float64"),
        (("original.onnx", "folded.onnx", "--inputs", "none.npy"), "none.npy does not exist"),
        (("original.onnx", "folded.onnx", "--input-shape", "z=1"), "no input 'z'"),
        (("original.onnx", "folded.onnx", "--input-shape", "x=1,4,12,12"), "does not fit input 'x'"),
        (("original.onnx", "folded.onnx", "--provider", "tpu"), "unknown provider 'tpu'"),
        (("original.onnx", "folded.onnx", "--provider", "NoSuchExecutionProvider"), "not part of this onnxruntime"),
    ],
)  # fmt: skip
def test_bad_input_exits_with_3_and_one_sentence(files, capsys, arguments, message):
    assert _run(files, *arguments) == 3
    streams = capsys.readouterr()
    assert streams.out == ""
    assert message in streams.err
    assert streams.err.count("\n") == 1
    assert "Traceback" not in streams.err


@pytest.mark.parametrize(
    "arguments",
    [("original.onnx",), ("original.onnx", "folded.onnx", "--input-shape", "x"),
     ("original.onnx", "folded.onnx", "--input-shape", "x=0"),
     ("original.onnx", "folded.onnx", "--samples", "0"),
     ("original.onnx", "folded.onnx", "damaged.onnx"),
     ("original.onnx", "folded.onnx", "--golden", "g.npz"), ("--golden", "g.npz"),
     ("--golden", "g.npz", "folded.onnx", "--seed", "0"), ("--golden", "g.npz", "folded.onnx", "--inputs", "in.npz"),
     ("--golden", "g.npz", "folded.onnx", "--per-fold"),
     ("--golden", "g.npz", "folded.onnx", "--save-golden", "h.npz"),
     ("original.onnx", "folded.onnx", "--out", "report.txt"),
     ("original.onnx", "folded.onnx", "--level", "most"), ("original.onnx", "folded.onnx", "--rtol", "-1")],
)  # fmt: skip
def test_wrong_usage_exits_with_2(files, capsys, arguments):
    assert _run(files, *arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from bnfold.cli.main import main; main(['verify', '--help']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'onnxruntime', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing was proven" in done.stdout


def test_each_fold_is_shown_and_a_wrong_one_is_named(files, capsys):
    assert _run(files, "original.onnx", "folded.onnx", "--per-fold") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "5 folds are each proven alone" in shown
    assert "back into l0" in shown
    assert _run(files, "original.onnx", "folded.onnx") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "5 folds are each proven alone" in shown
    assert "back into l0" not in shown
    assert _run(files, "original.onnx", "folded.onnx", "--no-per-fold") == 0
    assert "Fold by fold" not in capsys.readouterr().out
    assert _run(files, "original.onnx", "damaged.onnx", "--no-runtime") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "CONSTANTS" in shown
    assert "units in the last place away" in shown


def test_golden_files_stand_for_the_reference(files, capsys, tmp_path):
    golden = str(tmp_path / "g.npz")
    assert _run(files, "original.onnx", "--save-golden", golden) == 0
    assert capsys.readouterr().out == f"Wrote {golden}.\n"
    assert _run(files, "--golden", golden, "folded.onnx", "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"]["reference"].startswith(golden)
    assert _run(files, "--golden", golden, "damaged.onnx") == 1


def test_a_golden_file_can_be_made_beside_a_verdict(files, capsys, tmp_path):
    golden = tmp_path / "g.npz"
    assert _run(files, "original.onnx", "damaged.onnx", "--save-golden", str(golden)) == 1
    assert f"Wrote {golden}" in capsys.readouterr().out
    assert golden.exists()


def test_a_foreign_golden_file_exits_with_3(files, capsys, tmp_path):
    (tmp_path / "g.npz").write_text("no")
    assert _run(files, "--golden", str(tmp_path / "g.npz"), "folded.onnx") == 3
    assert "no golden file" in capsys.readouterr().err


def test_reports_are_written_in_every_format(files, tmp_path, capsys):
    names = [str(tmp_path / f"report{suffix}") for suffix in SUFFIXES]
    arguments = [argument for name in names for argument in ("--out", name)]
    assert _run(files, "original.onnx", "damaged.onnx", "-q", *arguments) == 1
    assert all((tmp_path / f"report{suffix}").stat().st_size for suffix in SUFFIXES)
    assert capsys.readouterr() == ("", "")


def test_the_formats_that_help_names_are_those_there_are():
    from bnfold.verification.report import FORMATS

    assert tuple(FORMATS) == SUFFIXES


def test_verbose_shows_every_metric(files, capsys):
    assert _run(files, "original.onnx", "folded.onnx", "-v", "--samples", "1") == 0
    shown = capsys.readouterr().out
    for name in ("max abs", "mean abs", "max / scale", "max ULP", "1 − cosine", "SNR", "top-1", "top-5", "near ties"):
        assert name in shown
    assert "all alike" in shown


def test_tables_fit_eighty_columns(files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert _run(files, "original.onnx", "folded.onnx", "-v") == 0
    tables = [line for line in capsys.readouterr().out.splitlines() if not line[:1].isalpha() or "  " in line.strip()]
    assert max(map(len, tables)) <= 80
    assert "…" not in "".join(tables)
