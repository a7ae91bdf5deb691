"""The words of a report that need an explanation, explained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bnfold.fold.report import HINTS, Reason
from bnfold.reporting.changes import Role


@dataclass(frozen=True)
class Entry:
    """A word, what it stands for in a few words, and in a sentence or two."""

    short: str
    meaning: str


ROLES: Mapping[Role, Entry] = {
    Role.FOLDED: Entry("folded", "Its scale and shift are in the weights of other ops now, and it is gone."),
    Role.MERGED: Entry("merged", "It belonged to one of several linear branches or ops in a row that became one op."),
    Role.COLLAPSED: Entry(
        "collapsed", "It could go nowhere, so it and its neighbours became one op that does the same."
    ),
    Role.KEPT: Entry("kept", "It stays as it was; the table says why."),
    Role.MADE: Entry("new", "This op was made by bnfold; it stands for what is left of others."),
    Role.ABSORBING: Entry("absorbs", "Its weights took in the scale and shift of a batch norm or of another affine."),
    Role.CROSSED: Entry("crossed", "A scale and shift moved across this op, which gives the same either way."),
    Role.GONE: Entry("gone", "It is no longer needed."),
}

REASONS: Mapping[Reason, Entry] = {
    Reason.PRODUCER_NOT_LINEAR: Entry(
        "what comes before it is not linear",
        "The op before it neither absorbs a scale and a shift nor lets them pass: an activation, for example.",
    ),
    Reason.CONSUMER_NOT_LINEAR: Entry(
        "what comes after it is not linear",
        "An op that reads it neither absorbs a scale and a shift nor lets them pass: an activation, for example.",
    ),
    Reason.OTHER_CONSUMER: Entry(
        "a value on its way is used elsewhere as well",
        "To fold would change that value for its other readers, too.",
    ),
    Reason.GRAPH_INPUT: Entry(
        "it stands at an input of the model", "What comes before it is the caller's, so nothing there can absorb it."
    ),
    Reason.GRAPH_OUTPUT: Entry(
        "a value on its way is an output of the model", "Callers see that value, so it must stay as it is."
    ),
    Reason.NO_CONSUMER: Entry(
        "nothing comes after it", "It stands at an output of the model, so no op behind it can absorb it."
    ),
    Reason.OTHER_SCOPE: Entry(
        "its neighbour is inside or outside of a branch or loop",
        "What stands in the body of an If, a Loop or a Scan runs at other times than what stands around it.",
    ),
    Reason.WEIGHT_NOT_CONSTANT: Entry(
        "the weight beside it is computed while the model runs", "Only a weight that never changes can absorb anything."
    ),
    Reason.WEIGHT_QUANTIZED: Entry(
        "the weight beside it is quantized", "A quantized weight cannot hold the product exactly."
    ),
    Reason.ROUNDED_BETWEEN: Entry(
        "what it reads was quantized first", "The values in between are rounded to few steps, which a fold would move."
    ),
    Reason.PARAMETERS_NOT_CONSTANT: Entry(
        "its own parameters are computed while the model runs", "What it does is not known before the model runs."
    ),
    Reason.PARAMETERS_INVALID: Entry(
        "its own parameters are broken", "They are not numbers, do not fit its channels, or give a negative variance."
    ),
    Reason.OVERRIDABLE_INPUT: Entry(
        "a caller may replace a constant that it needs",
        "The model lists that constant among its inputs too, so that the stored one is only a default.",
    ),
    Reason.TRAINING_MODE: Entry(
        "it was exported in training mode", "It uses the statistics of the batch at hand, which are no constants."
    ),
    Reason.SPATIAL: Entry("it has statistics for each pixel", "This old form of the op scales pixels, not channels."),
    Reason.AXIS_MISMATCH: Entry(
        "it works along another axis", "The op beside it mixes other dimensions than the one that is scaled here."
    ),
    Reason.PADDING: Entry(
        "padding with zeros is in the way",
        "At the border the op beside it sees zeros that the shift has not reached, so the border would change.",
    ),
    Reason.NEGATIVE_SCALE: Entry(
        "a negative scale cannot pass", "A maximum or a Relu keeps its meaning only where no scale changes the sign."
    ),
    Reason.NONZERO_SHIFT: Entry(
        "a shift cannot pass", "Relu and its kin bend at zero, and a shift would move that point."
    ),
    Reason.NO_BIAS: Entry(
        "the op beside it has no bias", "There is no place for the shift that would cost less than what is there."
    ),
    Reason.BROADCAST_CHANGES_SHAPE: Entry(
        "it changes the shape of its input", "An op that also repeats its input cannot be part of a weight."
    ),
    Reason.UNKNOWN_SHAPE: Entry(
        "a shape is not known", "Without it nobody can tell which dimension holds the channels."
    ),
    Reason.OVERFLOW: Entry("the result would be too large", "The new weight would not fit its number format."),
    Reason.UNDERFLOW: Entry("the result would be too small", "The new weight would be rounded to zero."),
    Reason.UNSUPPORTED_OP: Entry(
        "no rule is known for the op beside it", "Nothing is folded across an op whose algebra is not known for sure."
    ),
    Reason.COST: Entry(
        "it would cost more", "The result would do more multiply-adds, or hold more weights, than the original."
    ),
    Reason.NOT_SELECTED: Entry("it was left out on request", "The choice of nodes (--only, --keep) leaves it alone."),
}


def reason(name: Reason) -> Entry:
    """The entry of a reason; its own name where it has none."""
    return REASONS.get(name) or Entry(str(name).replace("-", " "), "")


def hint(name: Reason) -> str | None:
    """What a user can do about it."""
    return HINTS.get(name)
