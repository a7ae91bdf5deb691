"""The fold without its rounding: made anew in float64, and held region by region against the reference.

bnfold's engine folds the reference in float64, where it rounds nothing to speak of. Values that both graphs have cut
both into regions; a region must compute the same before and after, to :data:`TOLERANCE` of its scale, on random
inputs. A value may have kept its name and lost its meaning, because an affine now crosses it later: such a value is
no boundary, and the region goes on to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from bnfold.fold import fold
from bnfold.fold.report import FoldReport
from bnfold.progress import Progress
from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.metrics import deviation, scale_of
from bnfold.verification.oracle import Oracle
from bnfold.verification.regions import Ground, Meeting, Network, Region, bodies_of, names_of

Array = NDArray[Any]

#: How far a region may be off, relative to its scale: some thousand roundings of float64.
TOLERANCE = 1e-12

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
    """

    before: Region
    after: Region
    error: float
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether both compute the same."""
        return self.error <= TOLERANCE and not self.problem


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


def exact_fold(reference: Network, candidate: Network) -> tuple[Network, FoldReport]:
    """The reference folded in float64 wherever the candidate was; what the candidate still has is left alone."""
    model = reference.oracle.model.clone()
    left = {names_of(node) for node in reference.nodes if candidate.holds(node, reference)}
    kept = set()
    for node in model.graph:
        if names_of(node) in left:
            kept.add(node)
            kept.update(inner for body in bodies_of(node) for inner in body.all_nodes())
    offered = {value.name for value in candidate.oracle.model.graph.inputs}
    if model.ir_version >= 4 and any(
        value.name in model.graph.initializers and value.name not in offered for value in model.graph.inputs
    ):
        RemoveInitializersFromInputsPass()(model)  # as the candidate has it
    report = fold(model, lambda node: node not in kept)
    return Network(Oracle(model)), report


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
            if step.ok or name in reference.outputs:
                meeting.add(name)
                steps.append(step)
                waiting = 0
    progress("algebra of the folds", len(exact.nodes), len(exact.nodes))
    return Algebra(exact, report, tuple(steps), tuple(meeting.names))


def _compared(reference: Network, exact: Network, meeting: Meeting, name: str, ground: Ground) -> Step:
    before, after = meeting.cut(name)
    worst, usual = 0.0, 0.0
    try:
        for feed, wanted in ground.trials(before, meeting.inputs(before, after)):
            found = exact.oracle.values(feed.values, [after.output])[after.output]
            error, scale = _error(wanted, found)
            usual = max(usual, scale)  # the random ones come first; with zeros, all may cancel
            worst = max(worst, error / usual if usual > 0 else np.inf if error > 0 else 0.0)
            if worst > TOLERANCE:
                break
    except NotInFloat64Error as refusal:
        return Step(before, after, np.inf, str(refusal))
    return Step(before, after, worst)


def _error(wanted: Array, found: Array) -> tuple[float, float]:
    if wanted.shape != found.shape:
        return np.inf, 1.0
    difference, strange = deviation(wanted, found)
    return np.inf if strange else float(difference.max(initial=0.0)), scale_of(wanted)
