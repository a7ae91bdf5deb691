"""What decoding ahead of the session is worth: rows a second of `bnfold predict`, with decoding threads and without.

Run: python benchmarks/prediction.py [--pairs N | --memory]. Images are JPEG files of 320×240 pixels, written for the
purpose. A pair is the same job with --workers 0 and with another number, one right after the other, in an order that
turns around from pair to pair; what is told is the median of the ratios with its 95 % interval, and how large a part of
the time the session was running.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper
from peers import median_interval
from PIL import Image

from bnfold.prediction import PredictOptions, predict
from bnfold.prediction.reader import Reader

_IMAGES = 256
_SETTINGS = ("imagenet", "size=160", "shorter-side=182")


def write_images(folder: Path) -> Path:
    """Smooth pictures with some noise, so that a JPEG of them is as large as one of a photograph."""
    random = np.random.default_rng(0)
    for number in range(_IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3)).astype(np.uint8)).resize((320, 240))
        noisy = np.asarray(coarse).astype(np.int16) + random.integers(-12, 13, (240, 320, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04}.jpg", quality=90)
    return folder


def write_model(file: Path, width: int) -> Path:
    """Four convolutions with strides, for images of 160×160."""
    random = np.random.default_rng(0)
    nodes, weights, value, channels = [], [], "input", 3
    for layer in range(4):
        made = width * 2**layer
        weight = random.normal(size=(made, channels, 3, 3)) / np.sqrt(9 * channels)
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{layer}"))
        nodes += [
            helper.make_node("Conv", [value, f"w{layer}"], [f"c{layer}"], pads=[1] * 4, strides=[2, 2]),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        value, channels = f"r{layer}", made
    weights.append(numpy_helper.from_array(random.normal(size=(channels, 100)).astype(np.float32), "w"))
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 160, 160])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 100])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def measure(model: Path, images: Path, output: Path, workers: int) -> tuple[float, float]:
    """Rows a second of one job, and the share of its time in which the session was running."""
    busy = 0.0
    honest = Reader.scores

    def timed(*arguments: Any) -> Any:
        nonlocal busy
        started = time.perf_counter()
        scores = honest(*arguments)
        busy += time.perf_counter() - started
        return scores

    options = PredictOptions(batch=16, threads=1, workers=workers, preprocess=_SETTINGS)
    with patch.object(Reader, "scores", timed):
        result = predict(model, str(images), output, options)
    return result.throughput, busy / result.seconds


def compare(model: Path, images: Path, folder: Path, workers: int, pairs: int) -> Sequence[str]:
    """One row of the table."""
    ratios: list[float] = []
    shares: dict[int, list[float]] = {0: [], workers: []}
    rates: dict[int, list[float]] = {0: [], workers: []}
    for pair in range(pairs):
        for one in (0, workers) if pair % 2 else (workers, 0):
            rate, share = measure(model, images, folder / "out.csv", one)
            rates[one].append(rate)
            shares[one].append(share)
        ratios.append(rates[workers][-1] / rates[0][-1])
    found = median_interval(np.array(ratios))
    return [
        str(workers),
        f"{statistics.median(shares[0]):.0%} → {statistics.median(shares[workers]):.0%}",
        f"{found.estimate:.2f}× ({found.low:.2f}–{found.high:.2f})",
    ]


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--memory", action="store_true", help="tell the peak memory for two sizes of data instead")
    arguments = parser.parse_args()
    if arguments.memory:
        tell_memory()
    else:
        tell_rates(arguments.pairs)


_PEAK = """
import sys
from pathlib import Path
from bnfold.cli.main import main
assert main(["predict", *sys.argv[1:], "--batch", "256", "-q"]) == 0
# Not getrusage, whose peak begins with that of the process that started this one.
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


def tell_memory() -> None:
    """The peak memory of whole processes, for data of 1 and of 20 times a size."""
    block = np.random.default_rng(0).random((20_000, 3, 8, 8), np.float32)
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[N,3,8,8] x) => (float[N,3] y) '
    model = onnx.parser.parse_model(text + "{ p = GlobalAveragePool(x) y = Flatten(p) }")
    print("| data | peak memory, 20,000 samples (15 MB) | 400,000 samples (307 MB) |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        onnx.save(model, folder / "model.onnx")
        for name in ("data.npz", "data.parquet"):
            peaks = []
            for times in (1, 20):
                write_blocks(folder / name, block, times)
                command = [sys.executable, "-P", "-c", _PEAK, folder / "model.onnx", folder / name]
                done = subprocess.run(
                    [*command, "--out", folder / "out.csv"], capture_output=True, text=True, check=True
                )
                peaks.append(f"{int(done.stdout):,} MB")
            print(f"| `.{name.partition('.')[2]}` | {' | '.join(peaks)} |", flush=True)


def write_blocks(file: Path, block: np.ndarray, times: int) -> None:
    """The same samples several times, an ``.npz`` or a Parquet file with a row group for each."""
    if file.suffix == ".npz":
        np.savez(file, x=np.tile(block, (times, 1, 1, 1)))
        return
    column = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), block[0].size)
    table = pa.table({"x": column})
    with pq.ParquetWriter(file, table.schema) as writer:
        for _ in range(times):
            writer.write_table(table, row_group_size=len(block))


def tell_rates(pairs: int) -> None:
    """The table of pairs."""
    print(
        f"{len(os.sched_getaffinity(0))} cores, {pairs} pairs a row, {_IMAGES} images, batch 16, one thread a session"
    )
    print("\n| model | workers | session busy, without → with | rows a second, with / without |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "images").mkdir()
        images = write_images(folder / "images")
        for name, width in (("small", 8), ("medium", 24)):
            model = write_model(folder / f"{name}.onnx", width)
            measure(model, images, folder / "out.csv", 0)  # the files are in the page cache from here on
            for workers in (1, 2):
                print(f"| {name} | {' | '.join(compare(model, images, folder, workers, pairs))} |", flush=True)


if __name__ == "__main__":
    main()
