"""How often does ``bnfold benchmark`` cry wolf, and how often does it see one?

Compares a network with a copy of itself (A/A), and with one that takes 3 % longer by construction, many times over,
and prints how often a difference was reported, with the binomial interval of each rate. Claimed in
docs/benchmarking.md; run it as

    python benchmarks/aa_rate.py --runs 100 --out aa.jsonl

on a machine that does nothing else, or beside other work to see that a busy machine makes intervals wide and not
answers wrong. Each run takes the benchmark's default time, 10 s, so that 100 of each kind take 35 minutes. Every run is
a line of the file; started again, the script goes on where it was stopped (Ctrl-C is safe), and ``--summary`` only
reads what is there.

What is planted: the network is a Loop that runs its body, a 3x3 convolution and a ReLU, 100 times; the slower one runs
the same body 103 times. The files differ in one number, and so do their weights, caches and kernels in nothing. What a
run costs beside the body makes 3 % a little less; how much less is measured by planting 100 %, once for each file:
with ``o`` the overhead and ``b`` the body, the ratio of 200 to 100 rounds is ``r = (o + 200·b) / (o + 100·b)``, and
103 rounds take ``3 %·(r - 1)`` longer. The ratio is that of the 10th percentiles, which other work moves least.

Each run is judged twice from the same samples: as bnfold does, and as if the control had not run; the difference is
what the control is worth.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import binomtest

from bnfold.benchmarking import BenchmarkOptions, BenchmarkResult, benchmark
from bnfold.benchmarking.results import CandidateResult
from bnfold.benchmarking.statistics import Comparison, Verdict, compare, round_medians

ROUNDS = 100

#: What is planted to see how much of a run is the body's, in per cent.
CALIBRATION = 100

Record = dict[str, Any]


def loop_model(path: Path, rounds: int, channels: int, size: int) -> Path:
    """Write a network that runs a convolution and a ReLU so many times, one on the result of the other."""
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((channels, channels, 3, 3)).astype(np.float32)
    kernel /= np.float32(np.sqrt(9 * channels / 2))  # what comes out is about as large as what goes in
    shape = [1, channels, size, size]
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["state", "kernel"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["next"]),
            helper.make_node("Identity", ["go_on"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, shape),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, shape),
        ],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["rounds", "", "x"], ["y"], body=body)],
        "loop",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.array(rounds, np.int64), "rounds")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def main() -> None:
    """Run what is missing in the file, then print the rates."""
    arguments = _parser().parse_args()
    out = Path(arguments.out)
    setup = {
        "threads": arguments.threads,
        "time": arguments.time,
        "launches": arguments.launches,
        "channels": arguments.channels,
        "size": arguments.size,
    }
    records = read_records(out, setup)
    if not arguments.summary:
        measure(records, out, setup, arguments.runs, [0, *arguments.planted])
    print(summary(records))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", default="aa.jsonl", help="a line for each run; read first, then added to")
    parser.add_argument("--runs", type=int, default=100, help="comparisons of each kind")
    parser.add_argument("--planted", type=int, nargs="*", default=[3], help="per cent; A/A runs are made besides")
    parser.add_argument("--threads", type=int, default=0, help="intra-op threads; 0 is ONNX Runtime's choice")
    parser.add_argument("--time", type=float, default=10.0, help="seconds a comparison")
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--size", type=int, default=16, help="height and width of the image")
    parser.add_argument("--summary", action="store_true", help="only read the file")
    return parser


def read_records(path: Path, setup: Mapping[str, object]) -> list[Record]:
    """The runs that a file holds; a line that was cut off by an interruption is left out, and removed."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines = lines[:-1]
        path.write_text("".join(lines))
    records: list[Record] = [json.loads(line) for line in lines]
    if any(record["setup"] != setup for record in records):
        sys.exit(f"{path} holds runs with other settings: {records[0]['setup']}; give another --out")
    return records


def measure(records: list[Record], out: Path, setup: Mapping[str, Any], runs: int, planted: Sequence[int]) -> None:
    """Make the runs that are missing, kinds in turn, and add each to the file at once."""
    done = {(record["planted"], record["seed"]) for record in records}
    wanted = [(CALIBRATION, 0), *((percent, seed) for seed in range(runs) for percent in planted)]
    with tempfile.TemporaryDirectory() as name, out.open("a") as stream:
        folder = Path(name)
        size = (setup["channels"], setup["size"])
        original = loop_model(folder / "original.onnx", ROUNDS, *size)
        models = {
            percent: loop_model(folder / f"planted-{percent}.onnx", ROUNDS + percent, *size) for percent, _ in wanted
        }
        for percent, seed in wanted:
            if (percent, seed) in done:
                continue
            options = BenchmarkOptions(
                threads=(setup["threads"],),
                seconds=setup["time"],
                launches=setup["launches"],
                cold_starts=0,
                seed=seed,
            )
            record = _record(benchmark([original, models[percent]], options), percent, seed, setup)
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            records.append(record)
            print(_line(record), flush=True)


def _record(result: BenchmarkResult, percent: int, seed: int, setup: Mapping[str, Any]) -> Record:
    (group,) = result.groups
    baseline, candidate = group.candidates
    assert candidate.comparison is not None
    median, disturbance = baseline.latency[50.0], result.context.disturbance
    return {
        "planted": percent,
        "seed": seed,
        "verdict": candidate.comparison.verdict.value,
        "verdict_without_control": _without_control(result).verdict.value,
        "ratio": candidate.comparison.latency_ratio.to_json(),
        "noise_floor": candidate.comparison.noise_floor,
        "fast_ratio": _tenth_percentile(candidate) / _tenth_percentile(baseline),
        "latency_s": None if median is None else median.estimate,
        "launches": group.launches,
        "seconds": group.seconds,
        "others_busy_cores": None if disturbance is None else disturbance.others,
        "context": result.context.to_json(),
        "setup": dict(setup),
    }


def _tenth_percentile(candidate: CandidateResult) -> float:
    samples = [np.asarray(block) for record in candidate.records for block in record.rounds]
    return float(np.percentile(np.concatenate(samples), 10))


def _without_control(result: BenchmarkResult) -> Comparison:
    """The comparison as it would be if the control had not run (its time is lost all the same)."""
    (group,) = result.groups
    baseline, candidate = ([round_medians(r.rounds) for r in c.records] for c in group.candidates)
    return compare(candidate, baseline, None)


def _line(record: Record) -> str:
    ratio = record["ratio"]
    estimate, low, high = (100 * (ratio[key] - 1) for key in ("estimate", "low", "high"))
    return (
        f"planted {record['planted']} %, seed {record['seed']}: {estimate:+.2f} % ({low:+.2f} to {high:+.2f}), "
        f"{record['verdict']}; others kept {record['others_busy_cores'] or 0:.2f} cores busy"
    )


def summary(records: Sequence[Record]) -> str:
    """The rates as a Markdown table, and what was truly planted."""
    rows = [
        "| planted | runs | called slower | called faster | without the control | median estimate | median interval "
        "| cores kept busy by others |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for percent in sorted({record["planted"] for record in records} - {CALIBRATION}):
        rows.append(_row(percent, [record for record in records if record["planted"] == percent]))
    calibrations = [record["fast_ratio"] - 1 for record in records if record["planted"] == CALIBRATION]
    if calibrations:
        share = float(np.mean(calibrations)) / (CALIBRATION / 100)
        rows += ["", f"100 % planted were measured as {100 * share:.1f} %: 3 % planted are {3 * share:.2f} %."]
    return "\n".join(rows)


def _row(percent: int, records: Sequence[Record]) -> str:
    ratios = [record["ratio"] for record in records]
    told = [record["verdict_without_control"] != Verdict.NO_DIFFERENCE for record in records]
    return (
        f"| {percent} % | {len(records)} | {_rate(records, Verdict.SLOWER)} | {_rate(records, Verdict.FASTER)} "
        f"| {sum(told)} called different "
        f"| {100 * float(np.median([ratio['estimate'] for ratio in ratios]) - 1):+.2f} % "
        f"| ±{100 * float(np.median([ratio['high'] / ratio['estimate'] for ratio in ratios]) - 1):.2f} % "
        f"| {np.mean([record['others_busy_cores'] or 0.0 for record in records]):.2f} |"
    )


def _rate(records: Sequence[Record], verdict: Verdict) -> str:
    """How often a verdict was given, with the exact (Clopper-Pearson) 95 % interval of its probability."""
    count = sum(record["verdict"] == verdict for record in records)
    interval = binomtest(count, len(records)).proportion_ci(0.95)
    return f"{count} ({100 * interval.low:.0f}–{100 * interval.high:.0f} %)"


if __name__ == "__main__":
    main()
