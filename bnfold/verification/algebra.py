"""The fold without its rounding: made anew in float64, and held region by region against the reference.

bnfold's engine folds the reference in float64, where it rounds nothing to speak of. Values that both graphs have cut
both into regions; a region must compute the same before and after, to :data:`TOLERANCE` of its scale, on random
inputs (times what it makes of a rounding, where that grows over time: :mod:`bnfold.verification.growth`). A value may
have kept its name and lost its meaning, because an affine now crosses it later: such a value is no boundary, and the
region goes on to the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from bnfold.fold import fold
from bnfold.fold.report import FoldReport
from bnfold.progress import Progress
from bnfold.verification.bodies import Holder, bodies_of, holder
from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.growth import growth
from bnfold.verification.metrics import deviation, scale_of
from bnfold.verification.oracle import Oracle
from bnfold.verification.regions import Ground, Meeting, Network, Region, Trial, names_of

Array = NDArray[Any]

#: How far a region may be off, relative to its scale: some thousand roundings of float64.
TOLERANCE = 1e-12

#: Where rounding alone may make more than this of a region's scale, nothing can be told.
_MOST_ALLOWED = 0.1

#: Where an operator takes its scales; Resize of opset 10 takes them where later ones take a region.
_SCALES = {"Resize": 2, "Upsample": 1}

#: A channel may be off by this many times more, relative to its own scale, so that a small one cannot hide.
_CHANNEL_FACTOR = 1000.0

#: No channel counts as smaller than this part of the whole.
_SMALLEST_CHANNEL = 1e-4

#: Operators that may stand for an affine.
_AFFINES = frozenset({"Add", "BatchNormalization", "Div", "Mul", "Sub"})

#: So many values that do not agree in a row are no affine on its way, but a wrong fold.
_LONGEST_WAY = 64


@dataclass(frozen=True, eq=False)
class Step:
    """One region of the reference that the exact fold changed.

    Attributes:
        before: the region in the reference.
        after: the same in the exact fold.
        error: the largest difference relative to scale, over all inputs.
        problem: why it could not be compared, if so.
        allowed: how large it may be.
        telling: whether each channel of the result was other than 0 at least once. Where one never is, behind a Relu
            perhaps, a scale of it would not show.
    """

    before: Region
    after: Region
    error: float
    problem: str = ""
    allowed: float = TOLERANCE
    telling: bool = True

    @property
    def ok(self) -> bool:
        """Whether both compute the same."""
        return self.error <= self.allowed and not self.problem


@dataclass(frozen=True, eq=False)
class Algebra:
    """What was found of the exact fold.

    Attributes:
        exact: the exact fold.
        report: of the engine that made it.
        steps: the regions that it changed.
        common: the values that the reference and the exact fold share.
    """

    exact: Network
    report: FoldReport
    steps: tuple[Step, ...]
    common: tuple[str, ...]


def exact_folds(
    source: Oracle, reference: Network, candidate: Network, opened: AbstractSet[Holder] = frozenset()
) -> Iterator[tuple[Network, FoldReport]]:
    """What the engine makes of the reference in float64, the likeliest first.

    Everything folded, and without the ops that compute nothing, as bnfold does it: a fold may go one way with them and
    another without. Then wherever the candidate was, so that what it still has is left alone; both again with those
    ops, and all of it again without merges.

    Args:
        source: the reference as it is, to be folded.
        reference: the reference, subgraphs laid open.
        candidate: the candidate, likewise.
        opened: which ones; those of the result are.
    """
    left = {names_of(node) for node in _left(reference, candidate)}
    for merge, tidy in product((True, False), repeat=2):
        for spared in (set[tuple[str, ...]](), left) if left else (set[tuple[str, ...]](),):
            yield _exact_fold(source, candidate, spared, opened, merge=merge, tidy=tidy)


def _exact_fold(
    source: Oracle,
    candidate: Network,
    left: AbstractSet[tuple[str, ...]],
    opened: AbstractSet[Holder],
    *,
    merge: bool,
    tidy: bool,
) -> tuple[Network, FoldReport]:
    model = source.model.clone()
    kept = set()
    for node in model.graph.all_nodes():
        if names_of(node) in left:
            kept.add(node)
            if holder(node) not in opened:
                kept.update(inner for body in bodies_of(node) for inner in body.all_nodes())
    offered = {value.name for value in candidate.oracle.model.graph.inputs}
    if model.ir_version >= 4 and any(
        value.name in model.graph.initializers and value.name not in offered for value in model.graph.inputs
    ):
        RemoveInitializersFromInputsPass()(model)  # as the candidate has it
    _narrow_scales(model)
    report = fold(model, lambda node: node not in kept, merge=merge, tidy=tidy)
    return Network(Oracle(model).laid_open(opened)), report


def _left(reference: Network, candidate: Network) -> Iterator[ir.Node]:
    """The nodes that the candidate still has: under their names, or else, for affines, by their parameters."""
    affines = Counter(key for node in candidate.nodes if (key := _affine_key(node, candidate)))
    renamed = []
    for node in reference.nodes:
        key = _affine_key(node, reference)
        if candidate.holds(node, reference):
            affines[key] -= 1
            yield node
        elif key:
            renamed.append((node, key))
    for node, key in renamed:
        if affines[key] > 0:
            affines[key] -= 1
            yield node


def _affine_key(node: ir.Node, network: Network) -> bytes:
    """What tells an affine from others, whatever it is called: its operator and its parameters."""
    if node.op_type not in _AFFINES:
        return b""
    constants = [network.constant(value) for value in node.inputs if value and not network.varies(str(value.name))]
    if not any(array.size > 1 for array in constants):
        return b""
    return network.operator(node) + b"".join(array.tobytes() for array in constants)


def _narrow_scales(model: ir.Model) -> None:
    """Give the scales of each Resize back the one type that ONNX's shape inference takes them in."""
    for node in model.graph.all_nodes():
        index = _SCALES.get(node.op_type)
        scales = node.inputs[min(index, len(node.inputs) - 1)] if index is not None else None
        if scales is not None and scales.const_value is not None and scales.dtype == ir.DataType.DOUBLE:
            scales.const_value = ir.tensor(scales.const_value.numpy().astype(np.float32), name=scales.name)
            scales.type = ir.TensorType(ir.DataType.FLOAT)


def prove_algebra(
    reference: Network, exact: Network, report: FoldReport, ground: Ground, progress: Progress
) -> Algebra:
    """Hold the exact fold against the reference, region by region."""
    meeting = Meeting(reference, exact, {name: name for name in reference.inputs})
    steps: list[Step] = []
    waiting = 0
    for done, node in enumerate(exact.nodes):
        progress("algebra of the folds", done, len(exact.nodes))
        if reference.holds(node, exact) and all(name in meeting.names for name in exact.reads(node)):
            for name in names_of(node):
                meeting.add(name)
            continue
        for name in names_of(node):
            if name not in reference.producers or (waiting > _LONGEST_WAY and name not in reference.outputs):
                continue
            step = _compared(reference, exact, meeting, name, ground)
            waiting += 1
            if (step.ok and step.telling) or name in reference.outputs:
                meeting.add(name)
                steps.append(step)
                waiting = 0
    progress("algebra of the folds", len(exact.nodes), len(exact.nodes))
    return Algebra(exact, report, tuple(steps), tuple(meeting.names))


def _compared(reference: Network, exact: Network, meeting: Meeting, name: str, ground: Ground) -> Step:
    before, after = meeting.cut(name)
    step = Step(before, after, np.inf)
    try:
        for trials in ground.trials(before, meeting.inputs(before, after), after.nodes):
            allowed = TOLERANCE * growth(reference, before, trials)
            if allowed > _MOST_ALLOWED:
                return Step(
                    before, after, np.inf, "a rounding grows over its steps until nothing is left of the result"
                )
            error = _worst(exact, after, trials, allowed)
            step = Step(before, after, error, allowed=allowed, telling=_telling(trials))
            if step.ok:
                break
    except NotInFloat64Error as refusal:
        return Step(before, after, np.inf, str(refusal))
    return step


def _worst(exact: Network, after: Region, trials: Sequence[Trial], allowed: float) -> float:
    """The largest error relative to scale; not looked for any further once it is more than allowed."""
    worst, usual = 0.0, 0.0
    for feed, wanted in trials:
        found = exact.oracle.values(feed.values, [after.output])[after.output]
        if wanted.shape != found.shape:
            return np.inf
        difference, strange = deviation(wanted, found)
        if strange:
            return np.inf
        usual = max(usual, scale_of(wanted))  # the random ones come first; with zeros, all may cancel
        error = max(float(difference.max(initial=0.0)), _channel_error(wanted, difference, usual))
        worst = max(worst, error / usual if usual > 0 else np.inf if error > 0 else 0.0)
        if worst > allowed:
            break
    return worst


def _telling(trials: Sequence[Trial]) -> bool:
    """Whether no slice along the axes of channels, the second and the last, is 0 on all random inputs."""
    results = [wanted for feed, wanted in trials if feed.kind != "zeros" and wanted.size]
    for axis in {1, results[0].ndim - 1} if results and results[0].ndim > 1 else ():
        others = tuple(a for a in range(results[0].ndim) if a != axis)
        alive = [(wanted != 0).any(axis=others) for wanted in results]
        if not all(np.logical_or.reduce([a for a in alive if a.shape == alive[0].shape])):
            return False
    return True


def _channel_error(wanted: Array, difference: Array, scale: float) -> float:
    """What the error of a small channel would be in one of full scale, divided by what a channel is allowed more."""
    if wanted.ndim < 2 or not wanted.size:
        return 0.0
    axes = tuple(axis for axis in range(wanted.ndim) if axis != 1)
    magnitude = np.abs(np.where(np.isfinite(wanted), wanted, 0.0)).max(axis=axes)
    own = np.maximum(magnitude, _SMALLEST_CHANNEL * scale)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(own > 0, difference.max(axis=axes) / own, 0.0)
    return float(relative.max()) * scale / _CHANNEL_FACTOR
