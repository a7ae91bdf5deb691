"""bnfold beside other optimizers: how far each folds, what it gets wrong, how long it takes, and what the result gains.

Run: pip install -c constraints.txt -e '.[demo,peers]', then python benchmarks/peers.py [--quick | --brief]
[--out docs/peers.md].
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from peer_cases import CASES
from peer_judge import runs, size
from peer_process import Failure, RequestFailedError, Worker
from peer_report import Fate, FoldTime, Outcome, Results, Row, Subject, document
from peer_tools import PROVEN, REFERENCES, UNCHANGED, installed
from rich.console import Console
from rich.progress import track

from bnfold.benchmarking.context import disturbance, load_average, read_context, read_cpu_time
from bnfold.benchmarking.statistics import Comparison, Interval, compare

HERE = Path(__file__).parent
CONSOLE = Console(stderr=True)
T = TypeVar("T")

FATES = {Failure.REFUSED: Fate.REFUSED, Failure.CRASHED: Fate.CRASHED, Failure.HUNG: Fate.HUNG}

#: An optimizer gets so many seconds for a file, and the judge for what it wrote.
FOLD_LIMIT_S = 60.0
JUDGE_LIMIT_S = 300.0


@dataclass(frozen=True)
class Plan:
    """How much to do.

    Attributes:
        every: of the small graphs, one in so many.
        networks: names of bnfold's networks; None for all.
        light: names of graphs inside onnx.
        fold_s: about how long to measure the fold time of one model, all optimizers together.
        rounds: the fewest and the most rounds of that.
        launches: processes for the latencies of one model.
        latency_s: how long each of them measures.
    """

    every: int = 1
    networks: tuple[str, ...] | None = None
    light: tuple[str, ...] = ("densenet121", "inception_v2", "resnet50", "shufflenet")
    fold_s: float = 4.0
    rounds: tuple[int, int] = (5, 9)
    launches: int = 4
    latency_s: float = 1.0


BRIEF = Plan(fold_s=1.5, rounds=(3, 5), launches=3, latency_s=0.4)
QUICK = Plan(every=4, networks=("mlp", "repvgg", "resnet"), light=(), rounds=(3, 5), launches=3, latency_s=0.3)


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a part of it, in two minutes")
    parser.add_argument("--brief", action="store_true", help="all of it, each measured for less long")
    parser.add_argument("--out", type=Path, help="the Markdown file to write; standard output without it")
    parser.add_argument("--models", type=Path, help="a folder that keeps the exported networks for the next run")
    choice = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # exports and judges run two at a time
    with tempfile.TemporaryDirectory() as folder:
        option = "--quick" if choice.quick else "--brief" if choice.brief else ""
        plan = {"--quick": QUICK, "--brief": BRIEF}.get(option, Plan())
        results = replace(measured(plan, Path(folder), choice.models or Path(folder)), option=option)
    text = document(results)
    if choice.out is None:
        print(text)
    else:
        choice.out.write_text(text, encoding="utf-8")


def measured(plan: Plan, folder: Path, models: Path) -> Results:
    """Everything that the tables tell.

    Args:
        plan: how much to do.
        folder: for what the optimizers write.
        models: for exported networks.
    """
    start, load, before = time.monotonic(), load_average(), read_cpu_time()
    versions = installed()
    if not {"bnfold", "onnxruntime"} <= versions.keys():
        sys.exit("the judge needs bnfold and onnxruntime: pip install -c constraints.txt -e '.[demo,peers]'")
    exported, skipped = _networks(plan, models)
    subjects = [*_graphs(plan, folder), *exported, *_light(plan, models)]
    rows = _with_latencies(_with_fold_times(_rows(subjects, tuple(versions), folder), plan, folder), plan)
    example = exported[-1]
    cold = {tool: _cold(tool, example, folder) for tool in versions}
    return Results(
        versions=versions,
        rows=rows,
        cold=cold,
        cold_subject=example.title,
        skipped=skipped,
        context=read_context(load, disturbance(before, read_cpu_time()), versions["onnxruntime"]),
        seconds=time.monotonic() - start,
    )


def _progress(items: Iterable[T], label: str, total: int) -> Iterable[T]:
    return track(items, label.ljust(12), total=total, console=CONSOLE)


def _graphs(plan: Plan, folder: Path) -> Iterator[Subject]:
    for index, case in enumerate(CASES):
        if index % plan.every == 0:
            path = folder / f"graph{index}.onnx"
            onnx.save(case.model(), path)
            yield Subject("graph", case.group, case.name, path, *size(path), (case.nodes, case.norms), case.override)


def _networks(plan: Plan, folder: Path) -> tuple[list[Subject], dict[str, str]]:
    """bnfold's networks in two exports of torch, and those that cannot be exported, with the reason."""
    from zoo import entries

    folder.mkdir(parents=True, exist_ok=True)
    names = [entry.name for entry in entries() if plan.networks is None or entry.name in plan.networks]
    subjects, skipped = [], {}
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        exports = pool.map(_exported, names, [folder] * len(names))
        for name, found in _progress(zip(names, exports, strict=True), "exporting", len(names)):
            for way, result in found.items():
                if isinstance(result, Path) and not runs(result):
                    skipped[f"{way}: {name}"] = "ONNX Runtime does not run the file"
                elif isinstance(result, Path):
                    subjects.append(Subject("network", way, name, result, *size(result), run=True))
                else:
                    skipped[f"{way}: {name}"] = result
    return sorted(subjects, key=lambda subject: subject.group), skipped


def _exported(name: str, folder: Path) -> dict[str, Path | str]:
    """The file of each export of a network, or why there is none. Runs in a process of its own."""
    import torch
    from zoo import Exporter, ExportFailedError, Setting, Way, entry, trained_looking

    torch.set_num_threads(1)
    made: dict[str, Path | str] = {}
    chosen = entry(name)
    exporter = Exporter(trained_looking(chosen), chosen.shape)
    for way, label in ((Way.RAW, "optimize=False"), (Way.DEFAULT, "default export")):
        path = folder / f"{name}-{way.name.lower()}.onnx"
        if not path.exists():
            try:
                ir.save(exporter.model(Setting(way)), path)
            except ExportFailedError as error:
                made[label] = str(error)
                continue
        made[label] = path
    return made


def _light(plan: Plan, folder: Path) -> Iterator[Subject]:
    """The graphs inside onnx, as they are and with weights drawn at random."""
    from zoo import light_models, with_random_weights

    for path in light_models():
        name = path.stem.removeprefix("light_")
        if name not in plan.light:
            continue
        drawn = folder / f"{name}-drawn.onnx"
        if not drawn.exists():
            onnx.save(with_random_weights(onnx.load(path)), drawn)
        yield Subject("network", "onnx light", name, path, *size(path), large=True)
        yield Subject("network", "onnx, weights drawn", name, drawn, *size(drawn), large=True, run=True)


def _rows(subjects: Sequence[Subject], tools: Sequence[str], folder: Path) -> list[Row]:
    """What each optimizer makes of each model, and how it is judged."""
    judges: SimpleQueue[Worker] = SimpleQueue()
    for _ in range(2):
        judges.put(Worker([sys.executable, str(HERE / "peer_judge.py")]))

    def judged(subject: Subject, outcome: Outcome) -> Outcome:
        judge = judges.get()
        try:
            return _judged(subject, outcome, judge)
        finally:
            judges.put(judge)

    workers = _workers(tools, subjects[0], folder)
    pending: list[dict[str, Future[Outcome]]] = []
    with ThreadPoolExecutor(2) as pool:
        for number, subject in enumerate(_progress(subjects, "folding", len(subjects))):
            written = {
                tool: _written(workers[tool], subject, folder / f"{number}-{tool}.onnx", FOLD_LIMIT_S) for tool in tools
            }
            pending.append({tool: pool.submit(judged, subject, outcome) for tool, outcome in written.items()})
        rows = [
            _ranked(Row(subject, {tool: future.result() for tool, future in futures.items()}, {}))
            for subject, futures in _progress(zip(subjects, pending, strict=True), "judging", len(subjects))
        ]
    for worker in (*workers.values(), judges.get(), judges.get()):
        worker.close()
    return rows


def _workers(tools: Iterable[str], warm_up: Subject, folder: Path) -> dict[str, Worker]:
    return {
        tool: Worker(
            [sys.executable, str(HERE / "peer_tools.py"), tool],
            {"source": str(warm_up.path), "target": str(folder / f"warm-{tool}.onnx")},
        )
        for tool in tools
    }


def _written(worker: Worker, subject: Subject, target: Path, limit_s: float) -> Outcome:
    try:
        answer = worker.ask({"source": str(subject.path), "target": str(target)}, limit_s)
    except RequestFailedError as error:
        return Outcome(FATES[error.failure], detail=_without(error.detail, subject.path, target))
    return Outcome(Fate.LARGER, answer["seconds"], path=target)


def _judged(subject: Subject, outcome: Outcome, judge: Worker) -> Outcome:
    """The outcome with its size, and with what is wrong if anything is."""
    if outcome.path is None:
        return outcome
    request = {
        "original": str(subject.path),
        "candidate": str(outcome.path),
        "override": subject.override,
        "brief": subject.large,
    }
    try:
        answer = judge.ask(request, JUDGE_LIMIT_S)
    except RequestFailedError as error:  # the file is such that reading or running it fails in an unforeseen way
        detail = f"whoever loads it {error.failure}: {error.detail}"
        return replace(outcome, fate=Fate.INVALID, detail=_without(detail, subject.path, outcome.path))
    if answer["fault"]:
        fate = Fate.WRONG if answer["numbers"] else Fate.INVALID
        return replace(outcome, fate=fate, detail=_without(answer["fault"], subject.path, outcome.path))
    return replace(outcome, nodes=answer["nodes"], norms=answer["norms"])


def _without(text: str, *paths: Path) -> str:
    """A message without the places of this run's files."""
    for path in paths:
        text = text.replace(f" {path}", "").replace(str(path), path.name)
    return text


def _ranked(row: Row) -> Row:
    """The same, those marked that reach the smallest exact graph that is known."""
    smallest, _ = row.smallest
    marked = {
        tool: replace(outcome, fate=Fate.SMALLEST)
        if outcome.fate is Fate.LARGER and outcome.nodes == smallest
        else outcome
        for tool, outcome in row.outcomes.items()
    }
    return replace(row, outcomes=marked)


def _with_fold_times(rows: Sequence[Row], plan: Plan, folder: Path) -> list[Row]:
    """The rows with fold times: all optimizers take turns, in an order drawn anew each round.

    With networks, load and save alone take a turn, too.
    """
    workers = _workers([*rows[0].outcomes, *REFERENCES], rows[0].subject, folder)
    random = np.random.default_rng(0)
    found = []
    for row in _progress(rows, "fold time", len(rows)):
        tools = [tool for tool, outcome in row.outcomes.items() if outcome.path is not None]
        expected = sum(row.outcomes[tool].seconds for tool in tools)
        rounds = int(np.clip(plan.fold_s / max(expected, 1e-3), *plan.rounds))
        if row.subject.kind == "network":
            tools.append(UNCHANGED)
        seconds: dict[str, list[float]] = {tool: [] for tool in tools}
        for _ in range(rounds):
            for tool in random.permutation(tools):
                outcome = _written(workers[tool], row.subject, folder / f"timed-{tool}.onnx", FOLD_LIMIT_S)
                seconds[tool].append(outcome.seconds if outcome.path is not None else math.nan)
        own = np.array(seconds["bnfold"])
        times = {
            tool: FoldTime(float(np.median(taken)), median_interval(np.array(taken) / own))
            for tool, taken in seconds.items()
            if not np.isnan(taken).any()
        }
        proof = None
        if row.subject.run and not row.subject.large:
            proof = _written(workers[PROVEN], row.subject, folder / "proven.onnx", JUDGE_LIMIT_S).seconds or None
        found.append(replace(row, fold_times=times, proof=proof))
    for worker in workers.values():
        worker.close()
    return found


def median_interval(values: NDArray[np.float64]) -> Interval:
    """The median with its 95 % interval between two of the values; the whole range where there are fewer than nine.

    The median of what n values are drawn from lies below the k-th smallest with probability ``P(Binomial(n, ½) < k)``,
    whatever their distribution: that may be 2.5 % on either side.
    """
    ordered, count = np.sort(values), len(values)
    below = np.cumsum([math.comb(count, k) / 2**count for k in range(count)])
    skip = max(0, int((below <= 0.025).sum()) - 1)
    return Interval(float(np.median(ordered)), float(ordered[skip]), float(ordered[-1 - skip]))


def _with_latencies(rows: Sequence[Row], plan: Plan) -> list[Row]:
    """The rows with the latencies of the original and of every exact file, each launch in a process of its own."""
    random = np.random.default_rng(1)
    found = []
    for row in _progress(rows, "latency", len(rows)):
        exact = {t: o.path for t, o in row.outcomes.items() if o.fate in (Fate.SMALLEST, Fate.LARGER)}
        if not row.subject.run or not exact:
            found.append(row)
            continue
        # The original stands twice: what the two differ by is noise.
        models = [str(path) for path in (row.subject.path, *exact.values(), row.subject.path)]
        launches = []
        for _ in range(plan.launches):
            with closing(Worker([sys.executable, str(HERE / "peer_latency.py")])) as worker:
                request = {"models": models, "seconds": plan.latency_s, "seed": int(random.integers(1 << 30))}
                launches.append(np.array(worker.ask(request, JUDGE_LIMIT_S)["rounds"]))
        columns = [[launch[:, column] for launch in launches] for column in range(len(models))]
        compared: dict[str, Comparison] = {
            tool: compare(columns[1 + index], columns[0], columns[-1]) for index, tool in enumerate(exact)
        }
        original = float(np.median(np.concatenate(columns[0])))
        found.append(replace(row, latency=original, latencies=compared))
    return found


def _cold(tool: str, subject: Subject, folder: Path) -> float:
    """The median seconds of three new processes that import an optimizer and fold one file."""
    command = [sys.executable, str(HERE / "peer_tools.py"), tool, str(subject.path), str(folder / "cold.onnx")]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=False)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


if __name__ == "__main__":
    main()
