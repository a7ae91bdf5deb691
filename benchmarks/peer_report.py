"""What the comparison with other optimizers found, as plain data, and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from peer_tools import TOOLS, UNCHANGED, USAGE

from bnfold.benchmarking.context import Context
from bnfold.benchmarking.statistics import Comparison, Interval, Verdict

Kind = Literal["graph", "network"]


class Fate(StrEnum):
    """What became of a model in the hands of an optimizer, best first."""

    SMALLEST = "the smallest exact graph"
    LARGER = "exact, but larger"
    WRONG = "wrong numbers"
    INVALID = "invalid, or another interface"
    REFUSED = "refuses it"
    CRASHED = "crashes"
    HUNG = "hangs"


@dataclass(frozen=True)
class Subject:
    """A model that every optimizer gets.

    Attributes:
        kind: a small graph or a network.
        group: the claim that a graph belongs to, or how a network was exported.
        name: within its group.
        path: of the file.
        nodes: before.
        norms: batch norms before.
        smallest: nodes and batch norms of the smallest exact graph that is known beforehand; None where none is.
        override: an input that has a default value, and of which a caller feeds another.
        large: it takes long to compute in float64, so that one input must do, and no proof is timed.
        run: its latency is measured.
    """

    kind: Kind
    group: str
    name: str
    path: Path
    nodes: int
    norms: int
    smallest: tuple[int, int] | None = None
    override: str = ""
    large: bool = False
    run: bool = False

    @property
    def title(self) -> str:
        """Group and name."""
        return f"{self.group}: {self.name}"


@dataclass(frozen=True)
class Outcome:
    """One model in the hands of one optimizer.

    Attributes:
        fate: what became of it.
        seconds: that the first fold took.
        nodes: after.
        norms: batch norms after.
        detail: what is wrong.
        path: of the file that it wrote, if it did.
    """

    fate: Fate
    seconds: float = 0.0
    nodes: int = 0
    norms: int = 0
    detail: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class FoldTime:
    """How long one optimizer takes for one model.

    Attributes:
        seconds: the median.
        ratio: to bnfold's, in the same rounds.
    """

    seconds: float
    ratio: Interval


@dataclass(frozen=True)
class Row:
    """Everything about one model, by optimizer.

    Attributes:
        subject: the model.
        outcomes: of each optimizer.
        fold_times: of those that wrote a file; of a network, also of load and save alone.
        latency: of the original, in seconds; None where it was not measured.
        latencies: of the exact files, against the original's.
        proof: seconds of a fold with its proof; None where it was not measured.
    """

    subject: Subject
    outcomes: Mapping[str, Outcome]
    fold_times: Mapping[str, FoldTime]
    latency: float | None = None
    latencies: Mapping[str, Comparison] | None = None
    proof: float | None = None

    @property
    def smallest(self) -> tuple[int, int]:
        """Nodes and batch norms of the smallest exact graph that is known."""
        exact = [(o.nodes, o.norms) for o in self.outcomes.values() if o.fate in (Fate.SMALLEST, Fate.LARGER)]
        known = self.subject.smallest
        return min([*exact, known] if known else exact, default=(self.subject.nodes, self.subject.norms))


@dataclass(frozen=True)
class Results:
    """One run.

    Attributes:
        versions: of each optimizer.
        rows: one for each model.
        cold: seconds of a process that imports an optimizer and folds one network, by optimizer.
        cold_subject: that network.
        skipped: networks that could not be exported, and why.
        context: the machine, and who else used it.
        seconds: the run took.
        option: how much was done, as the command was told.
    """

    versions: Mapping[str, str]
    rows: Sequence[Row]
    cold: Mapping[str, float]
    cold_subject: str
    skipped: Mapping[str, str]
    context: Context
    seconds: float
    option: str = ""

    def of(self, kind: Kind) -> list[Row]:
        """The rows of a kind."""
        return [row for row in self.rows if row.subject.kind == kind]


def document(results: Results) -> str:
    """The run as Markdown."""
    parts = [
        "# bnfold beside other optimizers",
        _introduction(results),
        "## Summary",
        table(["", *results.versions], list(_summary(results))),
        _reading(results),
        "## Where bnfold is not the best",
        _lines(_weak_points(results)),
        "## Wrong files and failures",
        _lines(_faults(results)),
        "## Small graphs",
        "✓ is the smallest exact graph that is known, +2 an exact one with two nodes more; BN counts batch norms left "
        "beyond those that have to stay. `Constant` is no node here; what computes constants is one.",
        table(["graph", "nodes", "smallest", *results.versions], list(_graph_rows(results))),
        "## Networks: nodes",
        "Nodes after, and batch norms left. ✓ is the fewest nodes of all exact files.",
        table(["network", "nodes", *results.versions], list(_network_rows(results))),
        "## Networks: fold time",
        "Of bnfold in milliseconds; of the others as a multiple of it, with its 95 % interval. Below 1 is faster than "
        f"bnfold. *{UNCHANGED}* is `onnx_ir.save(onnx_ir.load(source), target)`, which changes nothing; "
        "bnfold's graphs are onnx-ir's.",
        table(["network", *results.versions, UNCHANGED], list(_time_rows(results))),
    ]
    if any(row.latencies for row in results.rows):
        parts += [
            "## Networks: latency",
            "Of the original in microseconds; of the others as a multiple of it, with its 95 % interval. Below 1 is "
            "faster than the original; only an interval that leaves out 1 shows a difference.",
            table(["network", "original", *results.versions], list(_latency_rows(results))),
        ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads well in a terminal, too."""
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (head, *rows)
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _lines(found: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in found) or "None."


def _introduction(results: Results) -> str:
    context = results.context
    others = f"; other programs kept {context.disturbance.others:.1f} cores busy" if context.disturbance else ""
    usage = "\n".join(f"- **{name}** {version}: {USAGE[name]}" for name, version in results.versions.items())
    absent = [name for name in TOOLS if name not in results.versions]
    minutes = max(1, round(results.seconds / 60))
    command = f"python benchmarks/peers.py {results.option}".rstrip()
    return (
        f"Made by `{command}`, which took {minutes} minutes "
        "(`pip install -c constraints.txt -e '.[demo,peers]'` installs the others). "
        f"Seen on {context.cores} cores of {context.cpu}, {context.system}, Python {context.python}{others}.\n\n"
        f"Each is used as its documentation says:\n\n{usage}"
        + (f"\n\nNot installed, and left out: {', '.join(absent)}." if absent else "")
        + "".join(f"\n\nNot exported: {name} ({why})." for name, why in results.skipped.items())
    )


def _reading(results: Results) -> str:
    proofs = [row.proof / row.fold_times["bnfold"].seconds for row in results.rows if row.proof is not None]
    proof = f" The proof is left out; with it a fold takes {_spread(proofs)} times as long." if proofs else ""
    return (
        "*Exact*: `bnfold verify` finds no difference in float64 and in ONNX Runtime with its optimizations off, but "
        "what rounding the weights explains; the file passes ONNX's checker with full shape inference, has the same "
        "inputs and outputs in the same order, and an input that had a default value can still be fed. *Smallest*: "
        "the fewest nodes that are known, by the algebra of [architecture.md](architecture.md) or because some "
        "optimizer got there. *Refuses*: raises an exception.\n\n"
        "*Fold time*: load, fold and save in a process that has done it once before; imports do not count. All "
        "optimizers take turns. Given is the median over models of the multiple of bnfold's time, with the least and "
        f"the greatest.{proof} *Cold*: a new process that imports the optimizer and folds one network "
        f"({results.cold_subject}).\n\n"
        "*Latency*: ONNX Runtime at its default level, one thread, batch 1, all files of a network by turns in one "
        "process, several processes. Given is the median over networks of the multiple of the original's."
    )


def _summary(results: Results) -> Iterator[list[str]]:
    tools = list(results.versions)
    yield ["version", *results.versions.values()]
    for kind, label in (("graph", "small graphs"), ("network", "networks")):
        rows = results.of(kind)
        if not rows:
            continue
        yield [f"**{len(rows)} {label}**", *("" for _ in tools)]
        for fate in Fate:
            counts = [sum(row.outcomes[tool].fate is fate for row in rows) for tool in tools]
            if any(counts):
                yield [str(fate), *(str(count) if count else "–" for count in counts)]
        yield [
            "fold time",
            *(_spread([r.fold_times[t].ratio.estimate for r in rows if t in r.fold_times]) for t in tools),
        ]
    yield ["cold, in seconds", *(f"{results.cold[tool]:.2f}" if tool in results.cold else "–" for tool in tools)]
    measured = [row.latencies for row in results.rows if row.latencies]
    if measured:
        ratios = {tool: [m[tool] for m in measured if tool in m] for tool in tools}
        yield ["latency", *(_spread([c.latency_ratio.estimate for c in ratios[tool]]) for tool in tools)]
        for verdict in (Verdict.FASTER, Verdict.SLOWER):
            counts = [sum(c.verdict is verdict for c in ratios[tool]) for tool in tools]
            yield [f"shown {verdict}", *(f"{n} of {len(ratios[t])}" for n, t in zip(counts, tools, strict=True))]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{_short(statistics.median(values))} ({_short(min(values))}–{_short(max(values))})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 3 else f"{value:.2f}"


def _weak_points(results: Results) -> Iterator[str]:
    """Where bnfold is not exact, not smallest, not fastest, or slower than the original."""
    for row in results.rows:
        own = row.outcomes["bnfold"]
        if own.fate is not Fate.SMALLEST:
            better = [tool for tool, o in row.outcomes.items() if o.fate is Fate.SMALLEST]
            known = f"{_counted(row.smallest)} would do ({', '.join(better) or 'by hand'})"
            what = own.detail if own.fate is not Fate.LARGER else f"{_counted((own.nodes, own.norms))}, where {known}"
            yield f"{row.subject.title}: {what}"
    for kind, label in (("graph", "small graphs"), ("network", "networks")):
        for tool in results.versions:
            rows = [row for row in results.of(kind) if tool in row.fold_times]
            faster = sum(row.fold_times[tool].ratio.high < 1 for row in rows)
            if faster and tool != "bnfold":
                yield f"{tool} folds {faster} of {len(rows)} {label} in less time{_out_of_reach(rows, tool)}"
    for row in results.rows:
        latencies = {tool: comparison.latency_ratio for tool, comparison in (row.latencies or {}).items()}
        if "bnfold" not in latencies:
            continue
        own = latencies["bnfold"]
        if own.low > 1:
            yield f"{row.subject.title}: runs {_interval(own)} times as long as the original"
        better = [f"{tool} {_interval(ratio)}" for tool, ratio in latencies.items() if ratio.high < own.low]
        if better:
            yield f"{row.subject.title}: runs {_interval(own)} times as long as the original, of {', '.join(better)}"


def _out_of_reach(rows: Sequence[Row], tool: str) -> str:
    """Of how many models an optimizer is done before onnx-ir has read and written them."""
    times = [row.fold_times for row in rows if UNCHANGED in row.fold_times]
    count = sum(taken[tool].ratio.estimate < taken[UNCHANGED].ratio.estimate for taken in times)
    return f", {count} of them in less than onnx-ir takes to load and save them" if count else ""


def _counted(size: tuple[int, int]) -> str:
    nodes, norms = size
    return f"{nodes} node{'s' if nodes > 1 else ''}" + (f" with {norms} BN" if norms else "")


def _faults(results: Results) -> Iterator[str]:
    for tool in results.versions:
        for row in results.rows:
            outcome = row.outcomes[tool]
            if outcome.fate not in (Fate.SMALLEST, Fate.LARGER):
                yield f"**{tool}**, {row.subject.title}, *{_word(outcome.fate)}*: {_shortened(outcome.detail)}"


def _word(fate: Fate) -> str:
    return fate.replace(",", "").partition(" ")[0]


def _shortened(detail: str) -> str:
    return detail if len(detail) <= 200 else detail[:197].rstrip() + "…"


def _verdict_cell(row: Row, tool: str, exact: Callable[[Outcome], str]) -> str:
    outcome = row.outcomes[tool]
    if outcome.fate in (Fate.SMALLEST, Fate.LARGER):
        return exact(outcome)
    return f"**{_word(outcome.fate)}**"


def _graph_rows(results: Results) -> Iterator[list[str]]:
    for row in results.of("graph"):
        nodes, norms = row.smallest

        def cell(outcome: Outcome, nodes: int = nodes, norms: int = norms) -> str:
            if outcome.fate is Fate.SMALLEST:
                return "✓"
            left = f", {outcome.norms - norms} BN" if outcome.norms > norms else ""
            return f"+{outcome.nodes - nodes}{left}"

        cells = [_verdict_cell(row, tool, cell) for tool in results.versions]
        yield [row.subject.title, str(row.subject.nodes), str(nodes), *cells]


def _network_rows(results: Results) -> Iterator[list[str]]:
    for row in results.of("network"):

        def cell(outcome: Outcome) -> str:
            mark = "✓ " if outcome.fate is Fate.SMALLEST else ""
            return f"{mark}{outcome.nodes}" + (f", {outcome.norms} BN" if outcome.norms else "")

        before = f"{row.subject.nodes}" + (f", {row.subject.norms} BN" if row.subject.norms else "")
        yield [row.subject.title, before, *(_verdict_cell(row, tool, cell) for tool in results.versions)]


def _time_rows(results: Results) -> Iterator[list[str]]:
    for row in results.of("network"):
        cells = [
            "–"
            if tool not in row.fold_times
            else f"{1000 * row.fold_times[tool].seconds:.0f} ms"
            if tool == "bnfold"
            else _interval(row.fold_times[tool].ratio)
            for tool in (*results.versions, UNCHANGED)
        ]
        yield [row.subject.title, *cells]


def _latency_rows(results: Results) -> Iterator[list[str]]:
    for row in results.rows:
        if row.latencies and row.latency is not None:
            cells = [_interval(row.latencies[t].latency_ratio) if t in row.latencies else "–" for t in results.versions]
            yield [row.subject.title, f"{1e6 * row.latency:.0f} µs", *cells]


def _interval(value: Interval) -> str:
    return f"{_short(value.estimate)} ({_short(value.low)}–{_short(value.high)})"
