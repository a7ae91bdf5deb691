"""How often does ``bnfold benchmark`` cry wolf, and how often does it see one?

Compares a network with a copy of itself (A/A) and with versions that have a few per cent more layers, many times
over, and prints the share of runs that reported a difference. Claimed in docs/benchmarking.md; run it as

    python benchmarks/aa_rate.py --runs 100

on a machine that does nothing else for the figures of a quiet one, or beside other work to see that a busy machine
makes intervals wide and not answers wrong. 100 runs at the default time take 17 minutes a row.

The network is a chain of equal 3x3 convolutions and ReLUs, so that n % more layers cost n % more time. Each run
is judged twice from the same samples: as bnfold does, and as if the control had not run; the difference is what the
control is worth.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bnfold.benchmarking import BenchmarkOptions, BenchmarkResult, benchmark
from bnfold.benchmarking.conclusions import round_medians
from bnfold.benchmarking.statistics import Comparison, compare


def chain(path: Path, layers: int, channels: int, size: int) -> Path:
    """Write a network of ``layers`` equal convolutions, each followed by a ReLU."""
    generator = np.random.default_rng(0)
    nodes, weights = [], []
    for layer in range(layers):
        kernel = generator.standard_normal((channels, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel / np.float32(np.sqrt(9 * channels)), f"w{layer}"))
        nodes.append(helper.make_node("Conv", [f"x{layer}", f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"x{layer + 1}"]))
    shape = [1, channels, size, size]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, shape)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def without_control(result: BenchmarkResult) -> Comparison:
    """The comparison as it would be if the control had not run (its time is lost all the same)."""
    (cell,) = result.groups
    baseline, candidate = (round_medians(candidate.records) for candidate in cell.candidates)
    return compare(candidate, baseline, None)


def main() -> None:
    """Run the comparisons and print one line for each planted slowdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20, help="comparisons in each row")
    parser.add_argument("--slowdowns", default="0,3,5", help="per cent of layers added; 0 is an A/A run")
    parser.add_argument("--threads", type=int, default=0, help="intra-op threads; 0 is ONNX Runtime's choice")
    parser.add_argument("--time", type=float, default=10.0, help="seconds a comparison")
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--size", type=int, default=16, help="height and width of the image")
    parser.add_argument("--each", action="store_true", help="print a line for every run")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        original = chain(Path(folder, "original.onnx"), 100, arguments.channels, arguments.size)
        for percent in (int(text) for text in arguments.slowdowns.split(",")):
            slower = chain(Path(folder, f"slower-{percent}.onnx"), 100 + percent, arguments.channels, arguments.size)
            row(original, slower, percent, arguments)


def row(original: Path, slower: Path, percent: int, arguments: argparse.Namespace) -> None:
    """Compare one pair of networks many times and print what share was told apart."""
    told = {"bnfold": [0, 0], "no control": [0, 0]}
    reaches, estimates, others, latencies = [], [], [], []
    started = time.monotonic()
    for run in range(arguments.runs):
        options = BenchmarkOptions(
            threads=(arguments.threads,), seconds=arguments.time, launches=arguments.launches, seed=run
        )
        result = benchmark([original, slower], options)
        comparison = result.groups[0].candidates[1].comparison
        assert comparison is not None
        ratio = comparison.latency_ratio
        alone = without_control(result).latency_ratio
        for name, low, high in (
            ("bnfold", ratio.low, ratio.high),
            ("no control", alone.low, alone.high),
        ):
            told[name][0] += high < 1
            told[name][1] += low > 1
        reaches.append(ratio.high / ratio.estimate - 1)
        estimates.append(ratio.estimate - 1)
        median = result.groups[0].candidates[0].latency[50.0]
        latencies.append(0.0 if median is None else median.estimate)
        disturbance = result.context.disturbance
        others.append(0.0 if disturbance is None else disturbance.others)
        if arguments.each:
            print(
                f"  seed {run}: {100 * (ratio.estimate - 1):+.2f} % "
                f"({100 * (ratio.low - 1):+.2f} to {100 * (ratio.high - 1):+.2f}), {comparison.verdict}, "
                f"others {others[-1]:.2f} cores",
                flush=True,
            )
    print(
        f"planted {percent} %, {arguments.runs} runs, {time.monotonic() - started:.0f} s: "
        + "; ".join(f"{name} {fast} faster {slow} slower" for name, (fast, slow) in told.items())
    )
    print(
        f"    estimate median {100 * np.median(estimates):+.2f} %, spread {100 * np.std(estimates):.2f} %; "
        f"interval median ±{100 * np.median(reaches):.2f} %; latency {1e6 * np.median(latencies):.0f} µs; "
        f"others kept {np.mean(others):.2f} cores busy",
        flush=True,
    )


if __name__ == "__main__":
    main()
