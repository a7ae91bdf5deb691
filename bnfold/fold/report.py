"""What happened to each batch norm, and why: pure data, in the terms of a user.

Exactly one record stands for each batch norm of the input. Other per-channel affines (LayerScale, input
normalization, …) have one where they were folded, or where one that scales its channels had to stay.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Reason(StrEnum):
    """Why an affine could not move; the value is what JSON carries."""

    PRODUCER_NOT_LINEAR = "producer-not-linear"
    CONSUMER_NOT_LINEAR = "consumer-not-linear"
    OTHER_CONSUMER = "other-consumer"
    GRAPH_INPUT = "graph-input"
    GRAPH_OUTPUT = "graph-output"
    NO_CONSUMER = "no-consumer"
    OTHER_SCOPE = "other-scope"
    WEIGHT_NOT_CONSTANT = "weight-not-constant"
    WEIGHT_QUANTIZED = "weight-quantized"
    ROUNDED_BETWEEN = "rounded-between"
    PARAMETERS_NOT_CONSTANT = "parameters-not-constant"
    PARAMETERS_INVALID = "parameters-invalid"
    OVERRIDABLE_INPUT = "overridable-input"
    TRAINING_MODE = "training-mode"
    SPATIAL = "per-activation-statistics"
    AXIS_MISMATCH = "axis-mismatch"
    PADDING = "padding"
    NEGATIVE_SCALE = "negative-scale"
    NONZERO_SHIFT = "nonzero-shift"
    NO_BIAS = "no-bias"
    BROADCAST_CHANGES_SHAPE = "broadcast-changes-shape"
    UNKNOWN_SHAPE = "unknown-shape"
    OVERFLOW = "overflow"
    UNDERFLOW = "underflow"
    UNSUPPORTED_OP = "unsupported-op"
    COST = "more-work"
    NOT_SELECTED = "not-selected"


#: What would let the batch norm go, where a user can do something about it.
HINTS: dict[Reason, str] = {
    Reason.OTHER_CONSUMER: "a value that is used raw elsewhere cannot be rescaled in place",
    Reason.GRAPH_OUTPUT: "drop that output from the graph, if nobody reads it",
    Reason.OVERRIDABLE_INPUT: "pass --freeze-inputs if no caller feeds that input",
    Reason.TRAINING_MODE: "export the network in eval() mode",
    Reason.WEIGHT_QUANTIZED: "fold before quantizing",
    Reason.ROUNDED_BETWEEN: "fold before quantizing",
    Reason.PADDING: "move the padding ahead of the batch norm, or train with the batch norm after the convolution",
    Reason.UNKNOWN_SHAPE: "run shape inference, or export with static shapes",
    Reason.OVERFLOW: "keep this layer in a wider dtype",
    Reason.UNDERFLOW: "keep this layer in a wider dtype",
    Reason.PARAMETERS_INVALID: "correct these numbers: export the network again, or retrain it",
    Reason.NOT_SELECTED: "change --only or --keep",
}


#: Reasons with a hint that an affine could still go that way: what a user reads first.
_WITHIN_REACH = frozenset(HINTS) - {Reason.OTHER_CONSUMER, Reason.PARAMETERS_INVALID}

#: Reasons that name no obstacle: there the graph ends, and nothing that a user could change stands there.
_ENDS = frozenset({Reason.GRAPH_INPUT, Reason.NO_CONSUMER})


@dataclass(frozen=True)
class Refusal:
    """An affine that cannot move, as a value: what stands in the way, in one clause."""

    reason: Reason
    detail: str


class Kind(StrEnum):
    """What stood in the graph."""

    BATCH_NORM = "batch_norm"
    AFFINE = "affine"


class Direction(StrEnum):
    """Which way an affine went."""

    BACKWARD = "backward"
    FORWARD = "forward"
    IDENTITY = "identity"  # it changed nothing, and was dropped


@dataclass(frozen=True)
class Folded:
    """The affine became part of other ops' constants.

    Attributes:
        direction: towards the producers or the consumers.
        path: names of the ops crossed, nearest first.
        into: names of the ops that absorbed it.
        remainder: op type of what is left in its place (an ``Add`` after a MatMul), or None.
        rounding_error: largest rounding error of an absorbing weight or bias, relative to the largest
            magnitude in its output channel.
    """

    direction: Direction
    path: tuple[str, ...]
    into: tuple[str, ...]
    remainder: str | None = None
    rounding_error: float = 0.0


@dataclass(frozen=True)
class Merged:
    """The affine is part of a branch that became one op with others.

    Attributes:
        into: name of the op that took the place of the branches.
        through: names of the ops that had absorbed it before, and are gone; none where it was a branch by itself.
        rounding_error: as in :class:`Folded`.
    """

    into: str
    through: tuple[str, ...] = ()
    rounding_error: float = 0.0


@dataclass(frozen=True)
class Collapsed:
    """A chain of affines became one op.

    Attributes:
        nodes: names of the chain's ops.
        into: the op type that took their place.
        backward: why the chain could not move to its producers.
        forward: why it could not move to its consumers.
    """

    nodes: tuple[str, ...]
    into: str
    backward: Refusal
    forward: Refusal


@dataclass(frozen=True)
class Kept:
    """The affine stayed.

    Attributes:
        backward: why it could not move to its producers.
        forward: why it could not move to its consumers; None where direction plays no part.
    """

    backward: Refusal
    forward: Refusal | None = None

    @property
    def decisive(self) -> Refusal:
        """The refusal that a user should read first: the one nearest to a fold.

        First what a user can do something about; then what an op on the way does not allow; then an op that nothing
        could ever be folded into; last where the graph ends. Of two alike the way back, where folds cost nothing.
        """
        return self.backward if self.forward is None else min(self.backward, self.forward, key=_distance)


def _distance(refusal: Refusal) -> int:
    """How far an affine is from going that way."""
    if refusal.reason in _WITHIN_REACH:
        return 0
    if refusal.reason in _ENDS:
        return 3
    return 2 if refusal.reason is Reason.PRODUCER_NOT_LINEAR else 1


Outcome = Folded | Merged | Collapsed | Kept


@dataclass(frozen=True)
class FoldRecord:
    """One batch norm, or one other affine, and its fate.

    Attributes:
        node: the node's name; its output's name where it has none.
        op: op types of the site, for example ``BatchNormalization`` or ``Mul+Add``.
        output: name of the value that it computed.
        kind: batch norm or other affine.
        channels: the number of channels, 0 where unknown.
        outcome: what became of it.
        ort_folds: whether ONNX Runtime would have folded it by itself while loading.
    """

    node: str
    op: str
    output: str
    kind: Kind
    channels: int
    outcome: Outcome
    ort_folds: bool

    @property
    def fate(self) -> str:
        """``folded``, ``merged``, ``collapsed`` or ``kept``."""
        return type(self.outcome).__name__.lower()

    @property
    def sentence(self) -> str:
        """The fate and its reason for a person to read."""
        match self.outcome:
            case Folded(direction=Direction.IDENTITY):
                return "changed nothing; dropped"
            case Folded(direction=direction, path=path, into=into, remainder=remainder):
                way = "back into" if direction is Direction.BACKWARD else "forward into"
                across = f" across {', '.join(path)}" if path else ""
                left = f", leaving one {remainder}" if remainder else ""
                return f"{way} {', '.join(into)}{across}{left}"
            case Merged(into=into, through=through):
                by_way = f"back into {', '.join(through)}, which" if through else "a branch that"
                return f"{by_way} was merged into {into}"
            case Collapsed(nodes=nodes, into=into):
                return f"{len(nodes)} ops became one {into}"
            case Kept() as kept:
                return kept.decisive.detail

    @property
    def hint(self) -> str | None:
        """What would let a kept one go, if a user can do something about it."""
        return HINTS.get(self.outcome.decisive.reason) if isinstance(self.outcome, Kept) else None

    def to_json(self) -> dict[str, Any]:
        """The record as plain data."""
        document: dict[str, Any] = {
            "node": self.node,
            "op": self.op,
            "output": self.output,
            "kind": str(self.kind),
            "channels": self.channels,
            "fate": self.fate,
            "sentence": self.sentence,
            "ort_folds": self.ort_folds,
        }
        match self.outcome:
            case Folded() as folded:
                document |= {
                    "direction": str(folded.direction),
                    "path": list(folded.path),
                    "into": list(folded.into),
                    "remainder": folded.remainder,
                    "rounding_error": folded.rounding_error,
                }
            case Merged() as merged:
                document |= {
                    "into": merged.into,
                    "through": list(merged.through),
                    "rounding_error": merged.rounding_error,
                }
            case Collapsed() as collapsed:
                document |= {
                    "nodes": list(collapsed.nodes),
                    "into": collapsed.into,
                    "backward": _refusal_json(collapsed.backward),
                    "forward": _refusal_json(collapsed.forward),
                }
            case Kept() as kept:
                document |= {
                    "reason": str(kept.decisive.reason),
                    "hint": self.hint,
                    "backward": _refusal_json(kept.backward),
                    "forward": _refusal_json(kept.forward),
                }
        return document


def _refusal_json(refusal: Refusal | None) -> dict[str, str] | None:
    return {"reason": str(refusal.reason), "detail": refusal.detail} if refusal else None


class Arrangement(StrEnum):
    """How linear ops stand to each other that may become one."""

    PARALLEL = "parallel"  # branches of one value that meet in a sum
    CONSECUTIVE = "consecutive"  # one reads the other


@dataclass(frozen=True)
class MergeRecord:
    """Linear ops that became one, or might have.

    Attributes:
        arrangement: branches that meet in a sum, or ops in a row.
        parts: how many branches, an identity among them, or how many ops in a row.
        nodes: names of the ops concerned, in the order of the flow; the sums in between are left out.
        output: name of the value that they compute together.
        into: name of the op that is left; None where they stayed.
        refusal: why they stayed; None where they became one.
        work_before: multiply-adds for one output position, before.
        work_after: the same for the one op; the number that it would be where they stayed.
    """

    arrangement: Arrangement
    parts: int
    nodes: tuple[str, ...]
    output: str
    into: str | None
    refusal: Refusal | None
    work_before: int
    work_after: int

    @property
    def sentence(self) -> str:
        """What was done, or why not, for a person to read."""
        if self.refusal is not None:
            return self.refusal.detail
        what = "branches" if self.arrangement is Arrangement.PARALLEL else "ops in a row"
        return f"{self.parts} {what} became {self.into}"

    def to_json(self) -> dict[str, Any]:
        """The record as plain data."""
        return {
            "arrangement": str(self.arrangement),
            "parts": self.parts,
            "nodes": list(self.nodes),
            "output": self.output,
            "into": self.into,
            "refusal": _refusal_json(self.refusal),
            "sentence": self.sentence,
            "work_before": self.work_before,
            "work_after": self.work_after,
        }


@dataclass(frozen=True)
class FoldReport:
    """What the engine did to one model.

    Attributes:
        records: one for each batch norm, in the order of the graph, and those of other affines.
        merges: linear ops that became one, and those that could not.
        nodes_before: nodes of all graphs before.
        nodes_after: and after.
        batch_norms_after: BatchNormalization nodes that are left.
    """

    records: tuple[FoldRecord, ...]
    nodes_before: int
    nodes_after: int
    batch_norms_after: int
    merges: tuple[MergeRecord, ...] = ()

    @property
    def batch_norms(self) -> tuple[FoldRecord, ...]:
        """The records of batch norms."""
        return tuple(r for r in self.records if r.kind is Kind.BATCH_NORM)

    @property
    def unchanged(self) -> bool:
        """Whether nothing was folded at all."""
        return self.nodes_before == self.nodes_after and all(isinstance(r.outcome, Kept) for r in self.records)

    def counts(self, kind: Kind) -> Counter[str]:
        """How many of a kind were folded, merged, collapsed and kept."""
        return Counter(record.fate for record in self.records if record.kind is kind)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "batch_norms_before": len(self.batch_norms),
            "batch_norms_after": self.batch_norms_after,
            "batch_norms": dict(self.counts(Kind.BATCH_NORM)),
            "affines": dict(self.counts(Kind.AFFINE)),
            "records": [record.to_json() for record in self.records],
            "merges": [merge.to_json() for merge in self.merges],
        }
