"""An output survives a kill at any moment, is byte for byte that of a run that was not killed, and is never mixed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folding import model_of

import bnfold
from bnfold.cli.main import main
from bnfold.errors import InputError, OutputError
from bnfold.model_file import save_model
from bnfold.prediction import PredictOptions, partial_output, reader
from bnfold.prediction.partial_output import PartialOutput, partial_folder, skipped_file
from bnfold.session import run_session

pytest.importorskip("onnxruntime")

SUFFIXES = ["csv", "jsonl", "parquet"]
TEXT = "g (float[N,3,2,2] input) => (float[N,3] logits) { p = GlobalAveragePool(input) logits = Flatten(p) }"
SAMPLES = 600


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(model_of(TEXT, {}), tmp_path / "model.onnx")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).standard_normal((SAMPLES, 3, 2, 2)).astype(np.float32)
    x[7] = np.nan
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(SAMPLES) % 3)
    return tmp_path / "data.npz"


OPTIONS = PredictOptions(batch=4, top_k=2, logits=True, on_error="skip")
ARGUMENTS = ["--batch", "4", "--top-k", "2", "--logits", "--on-error", "skip", "-q"]

#: Runs the program slowly, so that there is time to kill it, and brings every batch to the disk.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from bnfold.prediction import partial_output, reader
partial_output._COMMIT_SECONDS = 0.0
scores = reader.Reader.scores
def slow(*arguments):
    time.sleep(0.004)
    return scores(*arguments)
reader.Reader.scores = slow
from bnfold.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def killed(arguments: list[str], seconds: float, kind: signal.Signals = signal.SIGKILL) -> int:
    """Run the program, and send it a signal once the first rows are there and some time has passed."""
    out = Path(arguments[arguments.index("--out") + 1])
    process = subprocess.Popen([sys.executable, "-P", "-c", SLOW, *arguments], stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not (partial_folder(out) / "state.json").exists():
            time.sleep(0.005)
        time.sleep(seconds)
        process.send_signal(kind)
    finally:
        process.wait(60)
    return process.returncode


def finished(folder: Path, model: Path, data: Path, suffix: str) -> Path:
    """The output of a run that nobody disturbed."""
    whole = folder / f"whole.{suffix}"
    bnfold.predict(model, str(data), whole, OPTIONS)
    return whole


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_output_after_kills_is_that_of_a_run_without(suffix: str, tmp_path: Path, model: Path, data: Path) -> None:
    whole = finished(tmp_path, model, data, suffix)
    out = tmp_path / f"out.{suffix}"
    arguments = ["predict", str(model), str(data), "--out", str(out), "--resume", *ARGUMENTS]
    moments = random.Random(suffix)
    kills = 0
    for _ in range(3):
        code = killed(arguments, moments.uniform(0.0, 0.25))
        kills += code == -signal.SIGKILL
        assert out.exists() == (code != -signal.SIGKILL)
    assert kills
    assert main(arguments) == 1  # a sample was skipped
    assert out.read_bytes() == whole.read_bytes()
    assert skipped_file(out).read_bytes() == skipped_file(whole).read_bytes()
    assert not partial_folder(out).exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_state_of_the_files_can_be_resumed(
    suffix: str, tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files as a kill before any of the writes would leave them, one after the other."""
    whole = finished(tmp_path, model, data, suffix)
    out = tmp_path / f"out.{suffix}"
    folder = partial_folder(out)
    monkeypatch.setattr(partial_output, "_COMMIT_SECONDS", 0.0)
    states: list[tuple[dict[str, bytes], bytes | None, bytes | None]] = []

    def keep() -> None:
        files = {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {}
        states.append((files, *(file.read_bytes() if file.exists() else None for file in (out, skipped_file(out)))))

    def watched(name: str, place: object) -> None:
        honest = getattr(place, name)

        def call(*arguments: object, **named: object) -> object:
            keep()
            result = honest(*arguments, **named)
            keep()
            return result

        monkeypatch.setattr(place, name, call)

    with monkeypatch.context() as patched:
        patched.setattr(partial_output.os, "fsync", lambda _file: keep())
        for name in ("publish", "finished_file"):
            watched(name, partial_output)
        watched("_remove", PartialOutput)
        bnfold.predict(model, str(data), out, OPTIONS)
    monkeypatch.undo()
    chosen = [*states[:6], *states[6:-12:97], *states[-12:]]
    assert any(shown is None for _files, shown, _skipped in chosen)
    for files, shown, skipped in chosen:
        for file in (out, skipped_file(out)):
            file.unlink(missing_ok=True)
        if files:
            folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        for file, held in ((out, shown), (skipped_file(out), skipped)):
            if held is not None:
                file.write_bytes(held)
        bnfold.predict(model, str(data), out, PredictOptions(**{**vars(OPTIONS), "resume": True}))
        assert out.read_bytes() == whole.read_bytes()
        assert skipped_file(out).read_bytes() == skipped_file(whole).read_bytes()
        assert not folder.exists()


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_a_state_to_resume(
    kind: signal.Signals, code: int, tmp_path: Path, model: Path, data: Path
) -> None:
    out = tmp_path / "out.csv"
    arguments = ["predict", str(model), str(data), "--out", str(out), *ARGUMENTS]
    program = SLOW.replace(
        "from bnfold.cli.main import main\nsys.exit(main(sys.argv[1:]))", "from bnfold.cli.main import run\nrun()"
    ).replace("0.004", "0.1")  # so slowly that it is never through before the signal, however busy the machine
    process = subprocess.Popen([sys.executable, "-P", "-c", program, *arguments], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (partial_folder(out) / "state.json").exists():
        time.sleep(0.005)
    time.sleep(0.2)
    process.send_signal(kind)
    _none, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in told
    assert json.loads((partial_folder(out) / "state.json").read_text())["tally"]["batches"]
    assert main([*arguments, "--resume"]) == 1
    assert out.read_bytes() == finished(tmp_path, model, data, "csv").read_bytes()


@pytest.fixture
def interrupted(tmp_path: Path, model: Path, data: Path) -> Path:
    """The output of a run that was interrupted half way."""

    def stop(_stage: str, done: int, _total: int) -> None:
        if done >= SAMPLES // 2:
            raise KeyboardInterrupt

    out = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        bnfold.predict(model, str(data), out, OPTIONS, stop)
    return out


def test_partial_output_is_not_touched_without_being_told(interrupted: Path, model: Path, data: Path) -> None:
    before = {file.name: file.read_bytes() for file in partial_folder(interrupted).iterdir()}
    with pytest.raises(OutputError, match=r"--resume.*--overwrite"):
        bnfold.predict(model, str(data), interrupted, OPTIONS)
    assert {file.name: file.read_bytes() for file in partial_folder(interrupted).iterdir()} == before


def test_partial_output_is_discarded_where_that_is_asked_for(interrupted: Path, model: Path, data: Path) -> None:
    options = PredictOptions(**{**vars(OPTIONS), "overwrite": True, "logits": False})
    result = bnfold.predict(model, str(data), interrupted, options)
    assert (result.resumed, result.tally.rows) == (0, SAMPLES - 1)
    assert not partial_folder(interrupted).exists()


def test_rows_that_are_there_are_counted_and_not_made_again(interrupted: Path, model: Path, data: Path) -> None:
    seen: list[int] = []
    options = PredictOptions(**{**vars(OPTIONS), "resume": True})
    result = bnfold.predict(model, str(data), interrupted, options, lambda _s, done, _t: seen.append(done))
    assert result.resumed == SAMPLES // 2 - 1
    assert result.tally.rows == SAMPLES - 1
    assert min(seen) == SAMPLES // 2
    assert result.accuracy == bnfold.predict(model, str(data), options=OPTIONS).accuracy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": 8}, "the option batch was 4 and is 8"),
        ({"top_k": 3}, "the option top_k was 2 and is 3"),
        ({"logits": False}, "the option logits was true and is false"),
        ({"on_error": "fail"}, 'the option on_error was "skip" and is "fail"'),
        ({"threads": 1}, "the option threads was 0 and is 1"),
        ({"preprocess": ("mean=0,0,0", "std=1,1,1")}, "the option preprocessing was null and is"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_other_options_are_not_resumed(
    change: dict[str, object], words: str, interrupted: Path, model: Path, data: Path
) -> None:
    with pytest.raises(InputError, match=words):
        bnfold.predict(model, str(data), interrupted, PredictOptions(**{**vars(OPTIONS), "resume": True, **change}))
    assert (partial_folder(interrupted) / "rows").exists()


def test_other_workers_may_go_on(interrupted: Path, model: Path, data: Path, tmp_path: Path) -> None:
    bnfold.predict(model, str(data), interrupted, PredictOptions(**{**vars(OPTIONS), "resume": True, "workers": 0}))
    assert interrupted.read_bytes() == finished(tmp_path, model, data, "csv").read_bytes()


def test_other_data_and_another_model_are_not_resumed(interrupted: Path, model: Path, data: Path) -> None:
    resume = PredictOptions(**{**vars(OPTIONS), "resume": True})
    content, times = data.read_bytes(), data.stat()
    np.savez(data, x=np.zeros((9, 3, 2, 2), np.float32))
    with pytest.raises(InputError, match=r"the data is another \(600 samples then, 9 now\)"):
        bnfold.predict(model, str(data), interrupted, resume)
    data.write_bytes(content)
    os.utime(data, ns=(times.st_atime_ns, times.st_mtime_ns))
    save_model(model_of(TEXT.replace("p = Gl", "q = Relu(input) p = Gl").replace("Pool(input)", "Pool(q)"), {}), model)
    with pytest.raises(InputError, match="the model is another"):
        bnfold.predict(model, str(data), interrupted, resume)


def test_weights_beside_the_model_are_part_of_it(tmp_path: Path) -> None:
    from bnfold.prediction.reader import ModelFacts

    text = "g (float[N,3,2,2] input) => (float[N,900] logits) { p = GlobalAveragePool(input) f = Flatten(p) logits = MatMul(f, w) }"
    path = save_model(model_of(text, {"w": np.ones((3, 900), np.float32)}), tmp_path / "w.onnx", external_data="always")
    before = ModelFacts.of(path).sha256
    weights = tmp_path / "w.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert ModelFacts.of(path).sha256 != before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("job.json", b"{", "is damaged"), ("state.json", b"{}", "is damaged"), ("rows", b"", "is shorter than it was")],
)
def test_partial_output_that_is_damaged_is_refused(
    name: str, content: bytes, words: str, interrupted: Path, model: Path, data: Path
) -> None:
    (partial_folder(interrupted) / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        bnfold.predict(model, str(data), interrupted, PredictOptions(**{**vars(OPTIONS), "resume": True}))


def test_folder_of_somebody_else_is_left_alone(tmp_path: Path, model: Path, data: Path) -> None:
    folder = partial_folder(tmp_path / "out.csv")
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    partial_folder(tmp_path / "other.csv").write_text("a file")
    for overwrite in (False, True):
        for out in ("out.csv", "other.csv"):
            with pytest.raises(OutputError, match="is in the way"):
                bnfold.predict(model, str(data), tmp_path / out, PredictOptions(overwrite=overwrite))
    assert (folder / "thesis.tex").read_text() == "years of work"
    assert partial_folder(tmp_path / "other.csv").read_text() == "a file"


def test_two_processes_never_write_one_output(tmp_path: Path, model: Path, data: Path) -> None:
    def meanwhile(_stage: str, done: int, _total: int) -> None:
        if done == SAMPLES:
            with pytest.raises(OutputError, match="being written by another process"):
                bnfold.predict(
                    model, str(data), tmp_path / "out.csv", PredictOptions(**{**vars(OPTIONS), "resume": True})
                )

    bnfold.predict(model, str(data), tmp_path / "out.csv", OPTIONS, meanwhile)
    assert (tmp_path / "out.csv").read_bytes() == finished(tmp_path, model, data, "csv").read_bytes()


def test_finished_output_is_replaced_whole(tmp_path: Path, model: Path, data: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("old")
    seen: list[str] = []
    bnfold.predict(model, str(data), out, OPTIONS, lambda *_: seen.append(out.read_text()))
    assert set(seen) == {"old"}
    assert out.read_text().startswith("sample,")


def test_list_of_skipped_samples_goes_with_the_output_it_belonged_to(tmp_path: Path, model: Path, data: Path) -> None:
    out = tmp_path / "out.csv"
    bnfold.predict(model, str(data), out, OPTIONS)
    (skipped,) = [json.loads(line) for line in skipped_file(out).read_text().splitlines()]
    assert skipped["sample"] == "7"
    assert "not finite" in skipped["error"]
    np.savez(data, x=np.zeros((9, 3, 2, 2), np.float32))
    bnfold.predict(model, str(data), out.with_suffix(".jsonl"), OPTIONS)
    assert skipped_file(out).exists(), "of the same name with another suffix"
    bnfold.predict(model, str(data), out, OPTIONS)
    assert not skipped_file(out).exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk_is_one_sentence_and_can_be_resumed(suffix: str, tmp_path: Path, model: Path, data: Path) -> None:
    """The kernel lets no file grow past 12 kB: what a full disk looks like to a program."""
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000));"
        "from bnfold.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / f"out.{suffix}"
    arguments = ["predict", str(model), str(data), "--out", str(out), *ARGUMENTS]
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr.startswith("bnfold: ")
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr
    assert "--resume" in done.stderr
    assert not out.exists()
    assert main([*arguments, "--resume"]) == 1
    assert out.read_bytes() == finished(tmp_path, model, data, suffix).read_bytes()


ENDLESS = """
g (float[N, 3] x) => (float[N, 3] y)
<int64 turns = {4611686018427387904}, bool go = {1}> {
    y = Loop(turns, go, x) <body = step (int64 turn, bool on, float[N, 3] a) => (bool further, float[N, 3] b) {
        further = Identity(on)
        b = Relu(a)
    }>
}
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_ends_a_model_that_would_not_end_by_itself(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_model(model_of(ENDLESS, {}), tmp_path / "endless.onnx")
    np.savez(tmp_path / "rows.npz", x=np.zeros((4, 3), np.float32))
    timers: list[threading.Timer] = []

    def signalled(*arguments: Any) -> Any:
        timers.append(threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)))
        timers[-1].start()
        return run_session(*arguments)

    monkeypatch.setattr(reader, "run_session", signalled)
    options = PredictOptions(batch=4, workers=workers)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            bnfold.predict(model, str(tmp_path / "rows.npz"), tmp_path / "out.csv", options)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(timers) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["endless.onnx", "rows.npz"]
