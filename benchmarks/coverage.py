"""What bnfold folds in real exports, what it leaves, and why: a Markdown page.

Run: ``python benchmarks/coverage.py --out docs/coverage.md``; ``--quick`` takes one way to export each network. Each
network of bnfold is exported in every way of :mod:`zoo`, at several opsets, with the batch fixed and open; each export
is folded, and the result verified against the export in float64 and in ONNX Runtime. The exit code is 1 if a result
was wrong, or if anything was left that :data:`BY_ALGEBRA` does not explain.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from zoo import (
    NEWEST_OPSET,
    Exporter,
    ExportFailedError,
    Setting,
    Way,
    entries,
    entry,
    light_models,
    trained_looking,
    with_random_weights,
)

import bnfold
from bnfold.errors import BnfoldError, ModelError
from bnfold.fold.report import Collapsed, FoldRecord, FoldReport, Kept, Kind
from bnfold.session import SessionOptions, create_session, run_session
from bnfold.verification import VerifyOptions, verify
from bnfold.verification.inputs import drawn_feeds
from bnfold.verification.specs import input_specs

#: Opsets that torch's newer exporter writes itself, besides 20, which serves both batch forms.
_DYNAMO_OPSETS = (18, NEWEST_OPSET)
_SCRIPT_OPSETS = (9, 11, 13, 17, 18)
_OWN_OPSETS = (13, 17)

#: Why algebra leaves what is left of a network.
BY_ALGEBRA = {
    "convmixer": "Each batch norm follows a GELU, which nothing crosses, so it can only go forward. One that a padded "
    "depthwise convolution reads must stay for its shift, since the padding is zero before and after it. One that goes "
    "into a sum could leave if the other summand were divided by its scale, but ONNX Runtime computes it and the sum "
    "as one op, and was slower without it.",
    "convnext": "At opset 13, layer normalization is taken apart, and its scale and shift seen. Those of the stem go "
    "to a padded depthwise convolution and a shortcut.",
    "densenet": "The first batch norm of a layer reads a concatenation that later layers read too, each with a batch "
    "norm of its own: values cannot be scaled for one reader without being wrong for the others. A ReLU follows, "
    "which a shift does not cross. (One for each value could leave if all other readers took it back again, at a loss "
    "of precision where the shift is large; this is not done.)",
    "light_densenet121": "As `densenet`: 58 first batch norms of layers, 3 of transitions, and the last.",
    "preact_resnet": "The first batch norm of a block reads the sum that the shortcut carries on unscaled, and a ReLU "
    "follows, which a shift does not cross. (As with `densenet`, one of each row of blocks could leave.)",
    "resmlp": "Between an affine of the channels and its LayerScale lies a linear layer over the patches, with a bias "
    "for each patch. It would take a constant of patches × channels to move either past that bias.",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One model, folded.

    Attributes:
        setting: how it was exported; None for a graph of the onnx package.
        opset: of the model; 0 where there is none.
        report: what the engine did; None where there is no model.
        error: the largest error over what is allowed.
        problem: what went wrong; empty if nothing did.
        fault: whether the problem is bnfold's.
    """

    setting: Setting | None
    opset: int = 0
    report: FoldReport | None = None
    error: float = 0.0
    problem: str = ""
    fault: bool = False

    @property
    def left(self) -> tuple[FoldRecord, ...]:
        """The records of what is still there."""
        records = self.report.records if self.report else ()
        return tuple(record for record in records if isinstance(record.outcome, Kept | Collapsed))

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Batch norms before and left, other affines before and left."""
        if self.report is None:
            return 0, 0, 0, 0
        affines = [record for record in self.report.records if record.kind is Kind.AFFINE]
        left = sum(record.kind is Kind.AFFINE for record in self.left)
        return len(self.report.batch_norms), self.report.batch_norms_after, len(affines), left


def settings(*, quick: bool) -> list[Setting]:
    """The ways to export that are measured."""
    if quick:
        return [Setting(Way.RAW)]
    both = [Setting(way, 20, dynamic) for way in Way for dynamic in (False, True)]
    more = [(way, opset) for way in (Way.DEFAULT, Way.RAW) for opset in _DYNAMO_OPSETS]
    more += [(way, opset) for way in (Way.SCRIPT, Way.SCRIPT_KEPT) for opset in _SCRIPT_OPSETS]
    more += [(Way.BNFOLD, opset) for opset in _OWN_OPSETS]
    return both + [Setting(way, opset) for way, opset in more]


def measure_network(name: str, plan: Sequence[Setting]) -> list[Outcome]:
    """Export a network in each way, fold, and verify."""
    torch.set_num_threads(1)
    chosen = entry(name)
    exporter = Exporter(trained_looking(chosen), chosen.shape)
    outcomes = []
    for setting in plan:
        try:
            model = exporter.model(setting)
        except ExportFailedError as error:
            outcomes.append(Outcome(setting, problem=f"no export: {error}"))
            continue
        outcomes.append(measure(model, setting, VerifyOptions(samples=1)))
    return outcomes


def measure_light(path: Path, *, quick: bool) -> Outcome:
    """Fold a graph of the onnx package, with random weights; verify it in float64 where anything folded."""
    proto = onnx.load(path)
    if not any(node.op_type == "BatchNormalization" for node in proto.graph.node):
        return measure(ir.from_proto(proto), None, None)
    options = VerifyOptions(samples=1, runtime=False)
    return measure(ir.from_proto(with_random_weights(proto)), None, None if quick else options)


def measure(model: ir.Model, setting: Setting | None, options: VerifyOptions | None) -> Outcome:
    """Fold one model and, with options, verify the result against it."""
    opset = model.opset_imports[""]
    if options is not None and (invalid := _refused_by_runtime(model)):
        return Outcome(setting, opset, problem=f"no valid model: {invalid}")
    result = bnfold.optimize(model)
    outcome = Outcome(setting, opset, result.report)
    if options is None:
        return outcome
    try:
        verified = verify(model, result.model, options)
    except BnfoldError as error:
        return Outcome(setting, opset, result.report, problem=str(error), fault=True)
    if verified.verdict == "nothing proven" and result.report.unchanged:
        return outcome
    if verified.verdict != "equivalent":
        return Outcome(setting, opset, result.report, problem=verified.sentence, fault=True)
    error = max(feed.ratio for output in verified.outputs for feed in output.feeds)
    return Outcome(setting, opset, result.report, error)


def _refused_by_runtime(model: ir.Model) -> str:
    """What ONNX Runtime says of a model that it does not run; empty where it does."""
    (feed, *_) = drawn_feeds(input_specs(model), samples=1, seed=0)
    try:
        session = create_session(ir.to_proto(model).SerializeToString(), SessionOptions(level="disable", threads=1))
        run_session(session, feed.values)
    except ModelError as error:
        return " ".join(str(error).split())
    return ""


def main() -> None:
    """Measure everything and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one way to export each network")
    parser.add_argument("--out", type=Path, help="the page to write; printed if not given")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--networks", default="", help="only these, separated by commas")
    arguments = parser.parse_args()
    started = time.monotonic()
    chosen = arguments.networks.split(",") if arguments.networks else [e.name for e in entries()]
    networks = dict(_measured(chosen, settings(quick=arguments.quick), arguments.jobs))
    light = {}
    for path in light_models():
        _progress(f"{path.stem}, {time.monotonic() - started:.0f} s")
        light[path.stem] = measure_light(path, quick=arguments.quick)
    _progress("")
    page = "\n".join(_page({name: networks[name] for name in chosen}, light))
    if arguments.out:
        arguments.out.write_text(page)
    else:
        print(page)
    faults = list(_faults(networks, light))
    print(f"{time.monotonic() - started:.0f} s", *faults, sep="\n", file=sys.stderr)
    sys.exit(bool(faults))


def _measured(names: Sequence[str], plan: Sequence[Setting], jobs: int) -> Iterator[tuple[str, list[Outcome]]]:
    started = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(measure_network, name, plan): name for name in names}
        for number, done in enumerate(as_completed(running), 1):
            _progress(f"{number} of {len(names)} networks, {time.monotonic() - started:.0f} s: {running[done]}")
            yield running[done], done.result()


def _progress(text: str) -> None:
    print(f"\r\033[K{text}" if sys.stderr.isatty() else text, end="" if sys.stderr.isatty() else "\n", file=sys.stderr)


def _faults(networks: dict[str, list[Outcome]], light: dict[str, Outcome]) -> Iterator[str]:
    """What must not be: a wrong result, or something left without an explanation."""
    for name, outcomes in [*networks.items(), *((name, [outcome]) for name, outcome in light.items())]:
        for outcome in outcomes:
            where = f"{name}, {_spelled([outcome])}"
            if outcome.fault:
                yield f"{where}: {outcome.problem}"
            elif outcome.left and name not in BY_ALGEBRA:
                yield f"{where}: {len(outcome.left)} left without an explanation, such as: {_why(outcome.left[0])}"


def _page(networks: dict[str, list[Outcome]], light: dict[str, Outcome]) -> Iterator[str]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxscript", "onnx", "onnxruntime"))
    checked = [o for outcomes in networks.values() for o in outcomes if o.report is not None]
    worst = max((outcome.error for outcome in checked), default=0.0)
    yield f"""# What folds in real exports, and what is left

Written by `python benchmarks/coverage.py --out docs/coverage.md` with {packages}.

Each network of `models/` is built small, its statistics, scales and shifts drawn at random with one scale in eight
negative, then exported in five ways, folded, and the result verified against the export in float64 and in ONNX
Runtime. Of the {len(checked)} exports here {"every one" if not any(o.fault for o in checked) else "not every one"}
computes the same function after as before; the largest error was {worst:.2g} of what the rounding of weights allows
(see [verification](verification.md)).

| way | the call | batch norms in it |
|---|---|---|
| default | `torch.onnx.export(net, x)` | those that torch does not fold itself |
| raw | `… optimize=False` | all, among sub-graphs that compute constants |
| TorchScript | `… dynamo=False` | those that do not follow a convolution |
| TorchScript, kept | `… dynamo=False, training=TrainingMode.PRESERVE` | all |
| `bnfold export` | `bnfold export NAME` | all |

An affine is any other scale and shift of each channel: LayerScale, ResMLP's affine, a decomposed norm; one on a value
of unknown rank is not counted. Nodes are those of the whole graph, constants included. Where a way has several lines,
or a range, its opsets or its open batch differ.

## Networks

| network | way | batch norms | affines | nodes | opsets |
|---|---|---|---|---|---|"""
    for name, outcomes in networks.items():
        yield from _rows(name, outcomes)
    yield from _section("## What is left, and why", networks)
    yield from _missing(networks)
    yield """
## Graphs of the onnx package

`onnx/backend/test/data/light` holds nine graphs that other frameworks exported years ago (IR version 3, opset 9; each
weight a `ConstantOfShape`). Their weights are all one number, which makes folding too easy; here they are drawn at
random. Results are verified in float64.

| graph | batch norms | nodes |
|---|---|---|"""
    for name, outcome in light.items():
        before, left, *_ = outcome.counts
        assert outcome.report is not None
        yield f"| {name} | {before} → {left} | {outcome.report.nodes_before} → {outcome.report.nodes_after} |"
    yield from _section("", {name: [outcome] for name, outcome in light.items()})
    yield ""


def _missing(networks: dict[str, list[Outcome]]) -> Iterator[str]:
    """The exports that there are not, those for the same cause in one line."""
    found: dict[tuple[str, str], dict[str, set[int]]] = {}
    for name, outcomes in networks.items():
        for outcome in outcomes:
            if outcome.problem and outcome.setting is not None:
                cause = (_SHORT[outcome.setting.way], _brief(outcome.problem))
                found.setdefault(cause, {}).setdefault(name, set()).add(outcome.setting.opset)
    if not found:
        return
    yield "\n## Exports that there are not\n"
    for (way, cause), where in sorted(found.items()):
        opsets = (f"{name} at {', '.join(map(str, sorted(asked)))}" for name, asked in where.items())
        yield f"- {way}: {cause} ({'; '.join(opsets)})"


def _brief(problem: str) -> str:
    """The part of a message that is the same for every network."""
    for before in ("Status Message: ", " is a ", "no export: "):
        problem = problem.rpartition(before)[2]
    for after in ("; ask for", ". Support for"):
        problem = problem.partition(after)[0]
    return problem


_SHORT = {
    Way.DEFAULT: "default",
    Way.RAW: "raw",
    Way.SCRIPT: "TorchScript",
    Way.SCRIPT_KEPT: "TorchScript, kept",
    Way.BNFOLD: "`bnfold export`",
}


def _rows(name: str, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """One line for each way, or more where its settings differ in what folds."""
    for way in Way:
        mine = [o for o in outcomes if o.setting is not None and o.setting.way is way]
        mine.sort(key=lambda o: (o.problem, o.counts))
        for (problem, counts), group in groupby(mine, key=lambda o: (o.problem, o.counts)):
            same = list(group)
            norms, norms_left, affines, affines_left = counts
            cells = [name, _SHORT[way], f"{norms} → {norms_left}" if norms else "–"]
            cells += [f"{affines} → {affines_left}" if affines else "–", _nodes(same), _spelled(same, way=False)]
            if not problem:
                yield f"| {' | '.join(cells)} |"


def _nodes(outcomes: Iterable[Outcome]) -> str:
    reports = [outcome.report for outcome in outcomes if outcome.report is not None]
    spans = ([r.nodes_before for r in reports], [r.nodes_after for r in reports])
    return " → ".join(f"{min(s)}–{max(s)}" if min(s) != max(s) else f"{min(s)}" for s in spans if s)


def _spelled(outcomes: Sequence[Outcome], *, way: bool = True) -> str:
    """The settings of some outcomes in words."""
    found = [outcome.setting for outcome in outcomes if outcome.setting is not None]
    if not found:
        return "onnx"
    opsets = ", ".join(str(opset) for opset in sorted({setting.opset for setting in found}))
    forms = {setting.dynamic for setting in found}
    form = "" if len(forms) == 2 else " open batch" if forms == {True} else " fixed batch"
    return (f"{_SHORT[found[0].way]} " if way else "") + opsets + form


def _section(title: str, networks: dict[str, list[Outcome]]) -> Iterator[str]:
    """For each network of which something is left: how much of what, its reasons, and the algebra."""
    held = {name: max(outcomes, key=lambda o: len(o.left)) for name, outcomes in networks.items()}
    if not any(outcome.left for outcome in held.values()):
        return
    yield f"\n{title}\n" if title else ""
    for name, outcome in held.items():
        if not outcome.left:
            continue
        yield f"**{name}.** {BY_ALGEBRA.get(name, 'Not explained.')} As reported:\n"
        examples = {_reasons(record): record for record in reversed(outcome.left)}
        for reasons, count in Counter(_reasons(record) for record in outcome.left).items():
            yield f"- {count} × {examples[reasons].op}, such as `{examples[reasons].node}`: {_why(examples[reasons])}"
        yield ""


def _reasons(record: FoldRecord) -> tuple[str, ...]:
    """What is left alike: the op, and the reason in each direction."""
    outcome = record.outcome
    assert isinstance(outcome, Kept | Collapsed)
    forward = outcome.forward.reason if outcome.forward else ""
    return record.op, type(outcome).__name__, outcome.backward.reason, forward


def _why(record: FoldRecord) -> str:
    outcome = record.outcome
    assert isinstance(outcome, Kept | Collapsed)
    refusals = [("backward", outcome.backward), ("forward", outcome.forward)]
    said = [f"{way}, {refusal.detail} (`{refusal.reason}`)" for way, refusal in refusals if refusal is not None]
    return "; ".join(said)


if __name__ == "__main__":
    main()
