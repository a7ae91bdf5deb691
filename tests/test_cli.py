"""The program as a user meets it: exit codes, one sentence for each mistake, nothing left behind, light help."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folding import constants, model_of, norm

from bnfold.cli.main import COMMANDS, main
from bnfold.errors import OutputError
from bnfold.files import staging_folder
from bnfold.model_file import save_model

TEXT = (
    "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, w) d = BatchNormalization(c, scale, bias, mean, var) "
    "e = Relu(d) y = BatchNormalization(e, scale2, bias2, mean2, var2) }"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    arrays = constants(w=(4, 3, 3, 3)) | norm(4) | norm(4, "2")
    return save_model(
        model_of(TEXT, {name: array.astype(np.float32) for name, array in arrays.items()}), tmp_path / "model.onnx"
    )


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_inspect_shows_each_batch_norm_and_its_fate(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", model) == 0
    out = capsys.readouterr().out
    assert "back into c" in out
    assert "1 of 2 batch norms folds; 1 left." in out
    assert max(map(len, out.splitlines())) <= 110


def test_json_is_one_document_and_nothing_else_on_stdout(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", model, "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["batch_norms_after"] == 1
    assert "batch norms fold" in captured.err


def test_quiet_prints_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("optimize", model, tmp_path / "out.onnx", "-q") == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_optimize_writes_what_it_proved(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("optimize", model, tmp_path / "out.onnx", "--report", tmp_path / "folds.json") == 0
    out = capsys.readouterr().out
    assert "Verified" in out
    assert "Wrote" in out
    assert json.loads((tmp_path / "folds.json").read_text())["verification"]["verdict"] == "equivalent"


def test_html_report_stands_alone(model: Path, tmp_path: Path) -> None:
    assert run("optimize", model, tmp_path / "out.onnx", "--report", tmp_path / "folds.html", "-q") == 0
    page = (tmp_path / "folds.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "<svg" in page
    assert "back into c" in page
    assert "src=" not in page
    assert "https://" not in page.replace("http://www.w3.org", "")


def test_names_from_a_model_are_text_in_the_report(model: Path, tmp_path: Path) -> None:
    loaded = ir.load(model)
    for node in loaded.graph:
        node.name = f"<script>alert({node.outputs[0].name!r})</script>"
    ir.save(loaded, model)
    assert run("optimize", model, tmp_path / "out.onnx", "--report", tmp_path / "folds.html", "-q") == 0
    assert "<script>" not in (tmp_path / "folds.html").read_text()


def test_names_from_a_model_are_text_on_the_terminal(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = ir.load(model)
    for node in loaded.graph:
        node.name = f"[bold]{node.op_type}[/nonsense]"
    ir.save(loaded, model)
    assert run("inspect", model) == 0
    assert "[/nonsense]" in capsys.readouterr().out.replace("\n", "").replace(" ", "")


def test_brackets_in_a_path_are_part_of_it(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "[red]odd[/blue]"
    folder.mkdir(parents=True)
    assert run("optimize", model, folder / "out.onnx") == 0
    assert f"Wrote {folder / 'out.onnx'}." in capsys.readouterr().out


def test_strict_says_no_where_a_batch_norm_is_left(model: Path, tmp_path: Path) -> None:
    assert run("optimize", model, tmp_path / "out.onnx", "-q", "--strict") == 1
    assert run("optimize", model, tmp_path / "out2.onnx", "-q", "--strict", "--keep", "y") == 1


def test_wrong_usage_is_2(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("optimize", model) == 2
    assert run("optimise", model) == 2
    assert run("optimize", model, tmp_path / "o.onnx", "--report", tmp_path / "r.docx") == 2
    assert run("inspect", model, "--nope") == 2
    assert "Traceback" not in capsys.readouterr().err


def bad_inputs(folder: Path, model: Path) -> dict[str, tuple[list[object], str]]:
    text = folder / "text.onnx"
    text.write_text("not a model")
    cut = folder / "cut.onnx"
    cut.write_bytes(model.read_bytes()[:300])
    outside = folder / "outside.onnx"
    onnx.save(onnx.load(model), outside, save_as_external_data=True, location="w.bin", size_threshold=0)
    missing = folder / "missing.onnx"
    proto = onnx.load(outside, load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = "../w.bin"
    outside.write_bytes(proto.SerializeToString())
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = "gone.bin"
    missing.write_bytes(proto.SerializeToString())
    out = folder / "result.onnx"
    return {
        "missing file": (["optimize", folder / "nope.onnx", out], "does not exist"),
        "text file": (["optimize", text, out], "not an ONNX model"),
        "truncated model": (["optimize", cut, out], "not an ONNX model"),
        "folder as model": (["inspect", folder], "is a folder"),
        "external data outside": (["optimize", outside, out], "outside the model's folder"),
        "external data missing": (["optimize", missing, out], "is missing"),
        "output is a folder": (["optimize", model, folder], "is a folder"),
        "output in no folder": (["optimize", model, folder / "a" / "b.onnx"], "does not exist"),
        "output is the input": (["optimize", model, model], "--in-place"),
        "pattern without a match": (["optimize", model, out, "--only", "nothing*"], "is named like"),
        "unknown provider": (["predict", model, "digits", "--provider", "abacus"], "unknown provider"),
        "absent provider": (["predict", model, "digits", "--provider", "cuda"], "not part of this onnxruntime"),
        "model that does not classify": (["predict", model, "digits"], "is no classifier"),
        "unknown data": (["predict", model, "numbers"], "there is no data set"),
        "predictions as spreadsheet": (
            ["predict", model, "digits", "--out", folder / "p.xlsx"],
            ".csv, .jsonl or .parquet",
        ),
        "verify a text file": (["verify", model, text], "not an ONNX model"),
        "benchmark a missing file": (["benchmark", folder / "nope.onnx"], "nope.onnx"),
        "train on unknown data": (["train", "--data", "numbers", "-o", folder / "run"], "there is no data set"),
        "export from nothing": (["export", folder / "no-run", "-o", out], "no-run"),
    }


NAMES = [
    "missing file", "text file", "truncated model", "folder as model", "external data outside",
    "external data missing", "output is a folder", "output in no folder", "output is the input",
    "pattern without a match", "unknown provider", "absent provider", "model that does not classify", "unknown data",
    "predictions as spreadsheet", "verify a text file", "benchmark a missing file", "train on unknown data",
    "export from nothing",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_3_and_one_sentence_and_leaves_nothing(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = bad_inputs(tmp_path, model)[name]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert run(*arguments) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.startswith("bnfold: ")
    assert captured.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_table_of_bad_input_is_all_tested(model: Path, tmp_path: Path) -> None:
    assert sorted(bad_inputs(tmp_path, model)) == sorted(NAMES)


def test_provider_that_is_installed_but_cannot_run_is_an_error(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ort = pytest.importorskip("onnxruntime")
    # What onnxruntime-gpu says on a machine without a GPU: listed, and not there when a session asks.
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert run("predict", model, "digits", "--provider", "cuda") == 3
    assert "installed but cannot run" in capsys.readouterr().err


def test_output_that_is_no_regular_file_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert run("optimize", model, tmp_path / "pipe", "--no-verify") == 3
    assert run("optimize", model, "/dev/null", "--no-verify") == 3
    assert capsys.readouterr().err.count("is not a regular file") == 2
    assert Path("/dev/null").is_char_device()


def test_link_is_followed_and_stays_a_link(model: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link, target = tmp_path / "link.onnx", tmp_path / "real" / "target.onnx"
    link.symlink_to(target)
    assert run("optimize", model, link, "-q") == 0
    assert link.is_symlink()
    assert onnx.load(target).graph.node


def test_suffix_of_a_text_format_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("optimize", model, tmp_path / "out.json") == 3
    assert "end the name in .onnx" in capsys.readouterr().err


def test_report_in_the_place_of_the_model_is_wrong_usage(model: Path, tmp_path: Path) -> None:
    assert run("optimize", model, tmp_path / "out.html", "--report", tmp_path / "out.html") == 2
    assert not (tmp_path / "out.html").exists()


def test_option_out_of_range_is_wrong_usage(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", model, model, "--rtol", "nan") == 2
    assert run("train", "--epochs", "0", "-o", tmp_path / "run") == 2
    assert "Traceback" not in capsys.readouterr().err


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-P", "-m", "bnfold", *map(str, arguments)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("option", ["--json -q", "--verbose"])
def test_full_disk_under_the_output_is_one_sentence(model: Path, option: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            program("inspect", model, *option.split()), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 3
    assert done.stderr == "bnfold: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("arguments", "code"), [(["inspect", "nope.onnx"], 3), (["nope"], 2)])
def test_exit_code_tells_what_stderr_has_no_place_for(arguments: list[str], code: int) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(program(*arguments), stdout=subprocess.PIPE, stderr=full, check=False)
    assert done.returncode == code


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8:strict"])
def test_terminal_that_lacks_a_character_shows_something_else(model: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(program("inspect", model), capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Nodes: 4 " + ("→" if "utf" in encoding else "?").encode() + b" 3." in done.stdout
    done = subprocess.run(
        [*map(os.fsencode, program("inspect")), b"bad\xff"], capture_output=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr == (
        b"bnfold: bad\\udcff does not exist\n" if "utf" in encoding else b"bnfold: bad? does not exist\n"
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_not_an_error(model: Path, tmp_path: Path, closed: str) -> None:
    command = " ".join(shlex.quote(part) for part in program("optimize", model, tmp_path / "out.onnx"))
    done = subprocess.run(f"{command} {closed}", shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "out.onnx"]


@pytest.mark.parametrize("option", ["--json -q", "--verbose"])
def test_reader_that_goes_away_is_not_an_answer(model: Path, option: str) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        program("inspect", model, *option.split()), stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.parametrize(
    "raising",
    [
        "import builtins; real = builtins.__import__\n"
        "def spy(name, *rest):\n"
        "    if name == 'click': raise KeyboardInterrupt\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = spy",
        "import bnfold.cli.main as program\n"
        "def load(*_): raise ImportError('initialization failed') from KeyboardInterrupt()\n"
        "program.import_module = load",
    ],
    ids=["while click is imported", "while a compiled module is loaded"],
)
def test_ctrl_c_while_modules_are_imported_is_orderly(raising: str) -> None:
    code = f"{raising}\nimport sys; sys.argv = ['bnfold', 'doctor']\nfrom bnfold.__main__ import run; run()"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "bnfold: interrupted\n")


def test_sigterm_cleans_up(model: Path, tmp_path: Path) -> None:
    """Stopped while it writes, the program leaves no hidden folder behind."""
    stop = (
        "import os, signal, sys; from bnfold import model_file; join = model_file.join;"
        "model_file.join = lambda *a: (join(*a), os.kill(os.getpid(), signal.SIGTERM))[0];"
        "from bnfold.cli import main; sys.argv[0] = 'bnfold'; main.run()"
    )
    arguments = ["optimize", str(model), str(tmp_path / "out.onnx"), "--no-verify"]
    done = subprocess.run([sys.executable, "-P", "-c", stop, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_model_in_which_nothing_folds_is_copied_with_a_word(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("optimize", model, tmp_path / "a.onnx", "-q") == 0
    assert run("optimize", tmp_path / "a.onnx", tmp_path / "b.onnx", "--report", tmp_path / "b.html") == 0
    assert "Nothing was folded" in capsys.readouterr().out
    assert "Does it compute the same" not in (tmp_path / "b.html").read_text()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="does not exist"):
        run("inspect", tmp_path / "nope.onnx", "--debug")


def test_full_disk_is_one_sentence_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    """The kernel refuses to let any file grow past 300 bytes: what a full disk looks like to a program."""
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300));"
        "from bnfold.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["optimize", str(model), str(tmp_path / "out.onnx"), "--no-verify", "-q"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr.startswith("bnfold: ")
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_light(command: str) -> None:
    """``--help`` of every command loads neither torch, onnx, onnxruntime nor numpy."""
    program = (
        "import sys; from bnfold.cli.main import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'onnx_ir', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    arguments = [*([command] if command else []), "--help"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: bnfold" in done.stdout


def test_module_runs_as_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bnfold", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("bnfold ")


def test_a_write_that_numpy_cut_short_says_that_the_disk_is_full(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"a\.onnx cannot be written: the disk is full"),
        staging_folder(tmp_path / "a.onnx"),
    ):
        raise OSError("36864 requested and 9745 written")
