"""How long folding takes and how much memory it needs, by the size of the model.

Run on Linux: python benchmarks/scaling.py [--quick] [--out docs/performance.md]. The external data need 9 GB of disk,
a tenth of that with --quick.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import networks
import numpy as np
import onnx
import onnx_ir as ir
from peers import median_interval
from rich.console import Console
from rich.progress import track

import bnfold
from bnfold import graph as graph_module
from bnfold import model_file, optimizer
from bnfold.benchmarking.context import Context, disturbance, load_average, read_context, read_cpu_time
from bnfold.benchmarking.statistics import Interval
from bnfold.fold import fold

CONSOLE = Console(stderr=True)

GIB = 1 << 30


@dataclass(frozen=True)
class Plan:
    """How much to do.

    Attributes:
        pairs: repeats of the comparison with onnx's own load and save.
        profiles: repeats of the profile.
        nodes: sizes of the residual network.
        worst: repeats of each worst case's pattern; then twice as many.
        layers: Gemms of 100 MiB with external data.
    """

    pairs: int = 25
    profiles: int = 9
    nodes: tuple[int, ...] = (1250, 2500, 5000, 10_000, 20_000)
    worst: int = 1000
    layers: int = 29


QUICK = Plan(pairs=9, profiles=3, nodes=(1250, 2500), worst=200, layers=3)


@dataclass(frozen=True)
class Pairs:
    """bnfold beside onnx, in turns.

    Attributes:
        size: of the file, in bytes.
        onnx: seconds of ``onnx.load`` and ``onnx.save``, the median.
        bnfold: seconds of ``bnfold.optimize``, the median.
        wall: the ratio of a pair.
        processor: the same for processor time.
    """

    size: int
    onnx: float
    bnfold: float
    wall: Interval
    processor: Interval


@dataclass(frozen=True)
class Growth:
    """Processor time of folding a kind of graph, by its nodes."""

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Memory:
    """A process that folds a model with external data.

    Attributes:
        name: how much of the model folds.
        weights: in bytes.
        peak: of its memory, beyond what it takes to import bnfold, in bytes.
        anonymous: of that, what is not a file's.
        seconds: that the fold took.
        copy: seconds that ``cp`` takes for the same weights.
    """

    name: str
    weights: int
    peak: int
    anonymous: int
    seconds: float
    copy: float


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller models and fewer repeats, in a minute")
    parser.add_argument("--out", type=Path, help="the Markdown file to write; standard output without it")
    choice = parser.parse_args()
    plan = QUICK if choice.quick else Plan()
    load, before = load_average(), read_cpu_time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "resnet50.onnx"
        onnx.save(networks.resnet50(), model)
        pairs, profile = measure_pairs(model, plan.pairs), measure_profile(model, plan.profiles)
        growths = [measure_growth("residual network", networks.residual, plan.nodes)]
        growths += [measure_growth(name, build, (plan.worst, 2 * plan.worst)) for name, build in WORST.items()]
        memories = [measure_memory(name, folder, plan.layers, norms) for name, norms in FOLDED.items()]
    context = read_context(load, disturbance(before, read_cpu_time()), "not used")
    text = document(plan, context, pairs, profile, growths, memories)
    if choice.out is None:
        print(text)
    else:
        choice.out.write_text(text, encoding="utf-8")


# Load, fold, save


def measure_pairs(model: Path, count: int) -> Pairs:
    """``bnfold.optimize`` and onnx's own load and save, one after the other, each first in half of the pairs."""
    target = model.with_name("target.onnx")
    actions: Mapping[str, Callable[[], object]] = {
        "onnx": lambda: onnx.save(onnx.load(model), target),
        "bnfold": lambda: bnfold.optimize(model, target),
    }
    for action in actions.values():
        action()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for index in track(range(count), "resnet-50".ljust(12), console=CONSOLE):
        for name in sorted(actions, reverse=index % 2 == 0):
            wall, processor = time.perf_counter(), time.process_time()
            actions[name]()
            taken[name].append((time.perf_counter() - wall, time.process_time() - processor))
    ours, theirs = np.array(taken["bnfold"]), np.array(taken["onnx"])
    ratios = ours / theirs
    return Pairs(
        size=model.stat().st_size,
        onnx=float(np.median(theirs[:, 0])),
        bnfold=float(np.median(ours[:, 0])),
        wall=median_interval(ratios[:, 0]),
        processor=median_interval(ratios[:, 1]),
    )


#: The functions in which the time is spent, with what they do. Time in one that another calls is its own.
PHASES: Sequence[tuple[str, ModuleType, str]] = (
    ("read the file", model_file, "_read"),
    ("parse it and what is written, without the weights", model_file, "split"),
    ("make it onnx-ir's", model_file, "_deserialize"),
    ("hold it against the specification", model_file, "check_model"),
    ("infer shapes", graph_module, "infer_shapes"),
    ("fold", optimizer, "fold"),
    ("round weights and write them", optimizer, "write_model"),
    ("hold what is written against it", optimizer, "check_file"),
    ("move it into place, on disk", optimizer, "publish_model"),
)


def measure_profile(model: Path, count: int) -> Mapping[str, float]:
    """The seconds of each phase, medians."""
    runs = []
    for _ in track(range(count), "profile".ljust(12), console=CONSOLE):
        with clocks() as seconds:
            start = time.perf_counter()
            bnfold.optimize(model, model.with_name("target.onnx"))
            whole = time.perf_counter() - start
        runs.append(seconds | {"the rest": whole - sum(seconds.values())})
    return {label: float(np.median([run[label] for run in runs])) for label in runs[0]}


@contextmanager
def clocks() -> Iterator[dict[str, float]]:
    """Time each phase while the block runs, less the phases inside it."""
    seconds = {label: 0.0 for label, _, _ in PHASES}
    inside = [0.0]

    def timed(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            inside.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.perf_counter() - start
                seconds[label] += taken - inside.pop()
                inside[-1] += taken

        return run

    with ExitStack() as stack:
        for label, module, name in PHASES:
            stack.enter_context(patch.object(module, name, timed(label, getattr(module, name))))
        yield seconds


# Nodes

#: Graphs on which a careless engine takes time that grows with the square, by the repeats of their pattern.
WORST: Mapping[str, Callable[[int], onnx.ModelProto]] = {
    "Mul, Identity, … between two Convs": lambda n: networks.chain(n, "Mul", "Identity"),
    "Mul, Relu, … between two Convs": lambda n: networks.chain(n, "Mul", "Relu"),
    "Mul, Identity, … and no Conv": lambda n: networks.chain(n, "Mul", "Identity", conv=False),
    "BatchNormalization, Relu, … and no Conv": lambda n: networks.chain(n, "BatchNormalization", "Relu", conv=False),
    "Add, Identity, Relu, … and no Conv": lambda n: networks.chain(n, "Add", "Identity", "Relu", conv=False),
    "BatchNormalization, Conv, …": lambda n: networks.chain(n, "BatchNormalization", "Conv"),
    "a batch norm that many Convs read": networks.fan_of_convs,
    "a Conv that many batch norms read": networks.fan_of_norms,
    "a batch norm behind a wide Concat": networks.wide_concat,
    "DenseNet, whose Concats grow": lambda n: networks.dense(n // 10),
}


def measure_growth(name: str, build: Callable[[int], onnx.ModelProto], sizes: Sequence[int]) -> Growth:
    """Fold graphs of several sizes, each twice, of which the quicker counts."""
    points = []
    for size in sizes:
        proto = build(size)
        taken = []
        for _ in range(2):
            model = ir.from_proto(proto)
            gc.collect()
            start = time.process_time()
            fold(model)
            taken.append(time.process_time() - start)
        points.append((len(proto.graph.node), min(taken)))
    CONSOLE.print(f"{name}: " + ", ".join(f"{nodes} nodes {seconds:.2f} s" for nodes, seconds in points))
    return Growth(name, tuple(points))


# Memory

#: One Gemm in so many is followed by a batch norm.
FOLDED: Mapping[str, int] = {"half of it": 2, "all of it": 1}

_FOLD = (
    "import sys, time, bnfold, bnfold.optimizer; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
)


def measure_memory(name: str, folder: Path, layers: int, norms: int) -> Memory:
    """Fold a model with external data in a process of its own, and look at its memory meanwhile."""
    model = networks.perceptron(folder, layers, 5120, norms=norms)
    weights = model.with_name(f"{model.name}.data")
    target = folder / "folded.onnx"
    base_peak, base_anonymous, _ = watched(_FOLD.format("pass"))
    peak, anonymous, seconds = watched(_FOLD.format(f"bnfold.optimize({str(model)!r}, {str(target)!r})"))
    start = time.perf_counter()
    subprocess.run(["cp", weights, folder / "copy.data"], check=True)
    copy = time.perf_counter() - start
    size = weights.stat().st_size
    for path in (target, target.with_name(f"{target.name}.data"), folder / "copy.data"):
        path.unlink(missing_ok=True)
    CONSOLE.print(f"external data, {name} folds: {(peak - base_peak) / size:.2f} × its weights, {seconds:.1f} s")
    return Memory(name, size, peak - base_peak, anonymous - base_anonymous, seconds, copy)


def watched(program: str) -> tuple[int, int, float]:
    """Run a program that prints seconds; its peak of memory, that of what is not a file's, and the seconds."""
    peak = anonymous = 0
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            if "RssAnon" in fields:  # it is gone once the process is a zombie
                peak = max(peak, _bytes(fields["VmHWM"]))
                anonymous = max(anonymous, _bytes(fields["RssAnon"]))
            time.sleep(0.005)
        assert process.stdout is not None
        seconds = float(process.stdout.read())
    return peak, anonymous, seconds


def _bytes(field: str) -> int:
    return int(field.split()[0]) << 10


# The document


def document(
    plan: Plan,
    context: Context,
    pairs: Pairs,
    profile: Mapping[str, float],
    growths: Sequence[Growth],
    memories: Sequence[Memory],
) -> str:
    """Everything as Markdown."""
    command = "python benchmarks/scaling.py" + (" --quick" if plan is QUICK else "")
    noise = context.disturbance
    others = "" if noise is None else f"; others kept {noise.others:.1f} cores busy"
    whole = sum(profile.values())
    parts = [
        "# Speed and memory",
        f"Measured by `{command}` on {len(context.affinity)} of {os.cpu_count()} cores of {context.cpu}, "
        f"Python {context.python}, "
        f"bnfold {context.bnfold}{others}. An interval is the median's, at 95 %.",
        "## Load, fold, check, save",
        f"ResNet-50 with 53 batch norms in one file of {pairs.size / 1e6:.0f} MB. `bnfold.optimize(path, out)` without "
        f"the proof, and onnx's own `load` and `save`, which change nothing, in turns, {plan.pairs} times each.",
        _table(
            ("", "seconds", "to onnx's"),
            [
                ("`onnx.load`, `onnx.save`", f"{pairs.onnx:.3f}", "1"),
                ("`bnfold.optimize`", f"{pairs.bnfold:.3f}", _interval(pairs.wall)),
                ("the same in processor time", "", _interval(pairs.processor)),
            ],
        ),
        "Where the time goes:",
        _table(
            ("", "milliseconds", "share"),
            [(label, f"{1e3 * taken:.1f}", f"{100 * taken / whole:.0f} %") for label, taken in profile.items()],
        ),
        "Weights are never inside a protobuf message: they go from the file that is read to the one that is written, "
        "those that fold through one rounding, and everything else (parsing, the checker, shape inference) works on "
        "what is left of the model.",
        "## Nodes",
        "A residual network of 1×1 and 3×3 convolutions with four channels, in processor time of the fold alone:",
        _table(
            ("nodes", "seconds", "ms a node"),
            [(f"{n:,}", f"{s:.2f}", f"{1e3 * s / n:.2f}") for n, s in growths[0].points],
        ),
        "Graphs on which a careless search takes the square, and twice of each: 2 is linear, 4 would be the square. "
        "A DenseNet has four times as many inputs with twice as many layers.",
        _table(
            ("graph", "nodes", "seconds", "nodes", "seconds", "ratio"),
            [
                (growth.name, f"{n:,}", f"{s:.2f}", f"{m:,}", f"{t:.2f}", f"{t / s:.1f}")
                for growth in growths[1:]
                for (n, s), (m, t) in [growth.points]
            ],
        ),
        "## Memory",
        f"{plan.layers} Gemms of 100 MiB, their weights in external data, in a process of its own. The peak is that "
        "of resident memory beyond what the imports take; most of it is the input file, mapped, which the system "
        "takes back when it must. What is not a file's is in the next column.",
        _table(
            ("folds", "weights, GiB", "peak, GiB", "× weights", "not a file's, GiB", "seconds", "`cp`, seconds"),
            [
                (
                    m.name,
                    f"{m.weights / GIB:.2f}",
                    f"{m.peak / GIB:.2f}",
                    f"{m.peak / m.weights:.2f}",
                    f"{m.anonymous / GIB:.2f}",
                    f"{m.seconds:.1f}",
                    f"{m.copy:.1f}",
                )
                for m in memories
            ],
        ),
        "Weights that nothing folds into are copied from file to file by the system, and are never in the process's "
        "memory; the others are there one at a time.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _interval(value: Interval) -> str:
    return f"{value.estimate:.2f} ({value.low:.2f}–{value.high:.2f})"


if __name__ == "__main__":
    main()
