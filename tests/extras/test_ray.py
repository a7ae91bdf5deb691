"""Predict on a local Ray of two actors: the rows of the local engine, bit for bit, whoever is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import bnfold
from bnfold.cli.main import main
from bnfold.errors import BnfoldError, DataError, OptionError, WorkerError
from bnfold.prediction import PredictOptions
from bnfold.prediction.partial_output import partial_folder, skipped_file

pytestmark = [
    pytest.mark.extra,
    # Ray's own: sockets and processes that it leaves to the end of the interpreter, and what it will change one day.
    pytest.mark.filterwarnings("default"),
]

SAMPLES = 203
SETTINGS = ("mean=0.4,0.5,0.6", "std=0.2,0.2,0.3")


def classifier(file: Path, *, slow: bool = False) -> Path:
    """Two convolutions and a product; large sums, so that another order of adding would show."""
    random = np.random.default_rng(0)
    width = 256 if slow else 16
    weights = {
        "w1": random.normal(size=(width, 3, 3, 3)),
        "w2": random.normal(size=(width, width, 3, 3)) / width,
        "w3": random.normal(size=(width, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for the tests that start none of their own."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 18, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and labels in two Parquet files, two of the images damaged."""
    folder = tmp_path_factory.mktemp("table")
    images = [png(number) for number in range(SAMPLES)]
    images[50] = images[50][:100]
    images[-1] = b"no image"
    labels = [number % 5 for number in range(SAMPLES)]
    for name, rows in (("a", slice(0, 120)), ("b", slice(120, None))):
        structs = [{"bytes": content, "path": None} for content in images[rows]]
        pq.write_table(
            pa.table({"image": structs, "label": labels[rows]}), folder / f"{name}.parquet", row_group_size=50
        )
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("model") / "model.onnx")


def options(**changes: object) -> PredictOptions:
    values: dict[str, object] = {"batch": 8, "threads": 1, "top_k": 2, "logits": True, "on_error": "skip",
                                 "preprocess": SETTINGS}  # fmt: skip
    return PredictOptions(**values | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.usefixtures("cluster")
def test_rows_are_those_of_the_local_engine(suffix: str, model: Path, table: Path, tmp_path: Path) -> None:
    one, other = tmp_path / f"local.{suffix}", tmp_path / f"ray.{suffix}"
    mine = bnfold.predict(model, str(table), one, options())
    theirs = bnfold.predict(model, str(table), other, options(engine="ray", actors=2))
    assert other.read_bytes() == one.read_bytes()
    assert skipped_file(other).read_bytes() == skipped_file(one).read_bytes()
    assert mine.tally == theirs.tally
    assert (mine.tally.rows, mine.tally.skipped) == (SAMPLES - 2, 2)


@pytest.mark.usefixtures("cluster")
def test_job_is_resumed_by_the_other_engine(model: Path, table: Path, tmp_path: Path) -> None:
    def stop(_stage: str, done: int, _total: int) -> None:
        if done >= SAMPLES // 2:
            raise KeyboardInterrupt

    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    bnfold.predict(model, str(table), whole, options())
    with pytest.raises(KeyboardInterrupt):
        bnfold.predict(model, str(table), out, options(engine="ray"), stop)
    result = bnfold.predict(model, str(table), out, options(resume=True))
    assert result.resumed
    assert out.read_bytes() == whole.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        bnfold.predict(model, str(table), out, options(), stop)
    bnfold.predict(model, str(table), out, options(engine="ray", resume=True))
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.usefixtures("cluster")
def test_error_of_an_actor_is_the_error_of_the_local_engine(model: Path, table: Path) -> None:
    told = []
    for engine in ("local", "ray"):
        with pytest.raises(DataError) as caught:
            bnfold.predict(model, str(table), options=options(engine=engine, on_error="fail"))
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "row 50 of" in told[0]


@pytest.mark.usefixtures("cluster")
def test_more_actors_than_the_cluster_has_room_for_are_refused(model: Path, table: Path) -> None:
    with pytest.raises(OptionError, match="4 actors of 1 threads need 4 CPUs, and the cluster has 3"):
        bnfold.predict(model, str(table), options=options(engine="ray", actors=4))


@pytest.mark.usefixtures("cluster")
def test_actor_that_sees_another_file_refuses_to_work(
    model: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a node with an older copy of the model would do."""
    from bnfold.prediction.job import Job

    honest = Job.identity
    monkeypatch.setattr(Job, "identity", lambda job: {**honest(job), "model": {"sha256": "that of the driver"}})
    with pytest.raises(WorkerError, match="the model is another"):
        bnfold.predict(model, str(table), options=options(engine="ray"))


def workers_of(parent: int) -> list[int]:
    """The processes of actors below a process, from /proc."""
    parents: dict[int, int] = {}
    actors = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status, line = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
            if line.startswith(b"ray::") and b"_Actor" in line:
                actors.append(int(entry.name))

    def below(process: int) -> bool:
        while process > 1 and process != parent:
            process = parents.get(process, 0)
        return process == parent

    return [actor for actor in actors if below(actor)]


#: The program, which brings every batch to the disk, with a Ray that has held a line back until it ends, as it does when
#: it says the same of two tasks.
EVERY_BATCH = """
import sys
import ray
from bnfold.cli.main import main
from bnfold.prediction import partial_output
partial_output._COMMIT_SECONDS = 0.0
shutdown = ray.shutdown
ray.shutdown = lambda: (print("Task failed [repeated 2x]"), shutdown())
sys.exit(main(sys.argv[1:]))
"""


def test_killed_actor_loses_nothing(tmp_path: Path) -> None:
    """The real program, quiet on both streams; one of its actors gets SIGKILL while rows are being made."""
    model = classifier(tmp_path / "model.onnx", slow=True)
    random = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=random.random((SAMPLES * 3, 3, 16, 16)).astype(np.float32))
    arguments = ["predict", str(model), str(tmp_path / "data.npz"), "--batch", "4", "--threads", "1", "--logits"]
    out = tmp_path / "ray.csv"
    command = [sys.executable, "-P", "-c", EVERY_BATCH, *arguments, "--engine", "ray", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def rows() -> int:
        try:
            return int(json.loads((partial_folder(out) / "state.json").read_text())["tally"]["rows"])
        except (OSError, ValueError):
            return 0

    killed = []
    while process.poll() is None and not killed:
        if rows() >= 8:
            killed = workers_of(process.pid)[:1]
            for actor in killed:
                os.kill(actor, signal.SIGKILL)
        time.sleep(0.01)
    before = rows()
    said, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert killed
    assert before < SAMPLES * 3, "the actor was killed too late to show anything"
    assert told == ""
    assert said.count("\n") == 2
    assert main([*arguments, "--out", str(tmp_path / "local.csv"), "-q"]) == 0
    assert out.read_bytes() == (tmp_path / "local.csv").read_bytes()


def test_cluster_that_is_not_there_is_one_sentence(model: Path, table: Path) -> None:
    arguments = ["predict", str(model), str(table), "--preprocess", SETTINGS[0], "--preprocess", SETTINGS[1]]
    command = [sys.executable, "-P", "-m", "bnfold", *arguments, "--engine", "ray", "--address", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert done.stderr.startswith("bnfold: there is no Ray cluster at 127.0.0.1:1: ")
    assert done.stderr.count("\n") == 1


def test_no_torch_is_needed() -> None:
    program = (
        "import sys, bnfold.prediction.ray_engine, bnfold.prediction.run;"
        "sys.exit('torch was loaded' if 'torch' in sys.modules else 0)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False).returncode == 0
    assert issubclass(WorkerError, BnfoldError)
