"""What a fold report says, as values: sentences, figures, drawings. The templates only arrange them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bnfold.fold.report import Collapsed, FoldRecord, FoldReport, Kept, Kind, MergeRecord, Reason, Refusal
from bnfold.reporting.changes import FATES, Changes, Role
from bnfold.reporting.drawing import Drawing, anchor, draw, used_roles
from bnfold.reporting.parts import Part, cut, runs
from bnfold.reporting.structure import Structure

#: So many boxes are drawn at most, which keeps the page below three megabytes; what is left is in the table.
DRAWN = 1500

#: The table has so many rows at most.
TOLD = 2500


@dataclass(frozen=True)
class Figure:
    """One number before and after."""

    what: str
    before: str
    after: str
    note: str = ""


@dataclass(frozen=True)
class Twin:
    """A part that looks like the one drawn above it."""

    title: str
    drawing: Drawing | None


@dataclass(frozen=True)
class Region:
    """Neighbouring parts that look the same, the first of them drawn.

    Attributes:
        title: what to call the first.
        nodes: how many nodes it has.
        fates: how many ops of each role it has, for those that tell of a fate.
        drawing: None where nothing happened, or where the page is full.
        twins: the others.
        untouched: whether nothing happened in it.
        is_open: whether a reader should see it at once.
    """

    title: str
    nodes: int
    fates: tuple[tuple[Role, int], ...]
    drawing: Drawing | None
    twins: tuple[Twin, ...]
    untouched: bool
    is_open: bool


@dataclass(frozen=True)
class Graph:
    """One graph of the model.

    Attributes:
        owner: the node that it is a body of; empty for the main graph.
        attribute: under which attribute.
        regions: what is drawn of it.
        roles: those that occur, for a legend.
        anchors: the number of each record with the anchor of its box, where that is drawn.
    """

    owner: str
    attribute: str
    regions: tuple[Region, ...]
    roles: tuple[Role, ...]
    anchors: Mapping[int, str]

    @property
    def is_whole(self) -> bool:
        """Whether it is drawn in one piece."""
        return len(self.regions) == 1 and not self.regions[0].twins


def verdict(report: FoldReport) -> str:
    """What became of the batch norms, in a sentence."""
    norms = report.batch_norms
    if not norms:
        others = sum(record.fate != "kept" for record in report.records)
        went = f", and {others} other affine{'s' * (others != 1)} went" if others else ""
        return f"This model has no batch norm{went}."
    if report.unchanged:
        which = f"None of {len(norms)} batch norms could" if len(norms) > 1 else "The one batch norm could not"
        return f"{which} be folded."
    counts = report.counts(Kind.BATCH_NORM)
    total, left = len(norms), report.batch_norms_after
    folded, merged, collapsed = (counts[fate] for fate in ("folded", "merged", "collapsed"))
    parts = []
    if folded:
        parts.append(f"{_were(folded)} folded into the ops around {'it' if folded == 1 else 'them'}")
    if merged:
        parts.append(f"{_were(merged)} merged with what stands beside {'it' if merged == 1 else 'them'}")
    simplified = total - folded - merged - left
    if simplified > 0:
        parts.append(f"{_were(simplified)} turned into a simpler op")
    if not parts:
        sentence = f"None of {total} batch norm{'s' * (total != 1)} could be folded"
    else:
        first, _, rest = ", ".join(parts).partition(" ")
        of = f"{first} of {total} batch norms" if str(total) != first else f"All {total} batch norms"
        sentence = f"{of if total > 1 else 'The one batch norm'} {rest}"
        sentence += f"; {left or 'none'} {'is' if left == 1 else 'are'} left" if total > 1 or left else ""
    stays = collapsed - max(simplified, 0)
    if stays > 0:
        sentence += f", {stays} of them as one op with {'its' if stays == 1 else 'their'} neighbours"
    return f"{sentence}."


def _were(count: int) -> str:
    return f"{count} {'was' if count == 1 else 'were'}"


def alone(report: FoldReport) -> str:
    """What ONNX Runtime would have done without bnfold; empty where there was nothing to do."""
    norms = report.batch_norms
    if not norms:
        return ""
    folds = sum(record.ort_folds for record in norms)
    here = sum(record.fate in ("folded", "merged") for record in norms)
    if len(norms) == 1:
        return f"ONNX Runtime alone would {'fold' if folds else 'keep'} it while it loads the model."
    return f"ONNX Runtime alone would fold {folds or 'none'} of them while it loads the model; bnfold folded {here}."


def left(report: FoldReport) -> tuple[tuple[Reason, int], ...]:
    """The reasons why batch norms could not be folded, with how many they concern, the most frequent first."""
    outcomes = [record.outcome for record in report.batch_norms]
    refusals = [decisive(outcome) for outcome in outcomes if isinstance(outcome, Kept | Collapsed)]
    return tuple(Counter(refusal.reason for refusal in refusals).most_common())


def decisive(outcome: Kept | Collapsed) -> Refusal:
    """Of why an affine went neither way, what a user should read first."""
    return Kept(outcome.backward, outcome.forward).decisive


def reasons(report: FoldReport) -> tuple[Reason, ...]:
    """The reasons that occur, in the order of their definition."""
    found: set[Reason] = {merge.refusal.reason for merge in report.merges if merge.refusal is not None}
    for record in report.records:
        outcome = record.outcome
        for refusal in (getattr(outcome, "backward", None), getattr(outcome, "forward", None)):
            if refusal is not None:
                found.add(refusal.reason)
    return tuple(why for why in Reason if why in found)


def figures(report: FoldReport, before: Structure, after: Structure) -> Iterator[Figure]:
    """The model's size before and after."""
    yield Figure("batch norms", f"{len(report.batch_norms):,}", f"{report.batch_norms_after:,}")
    yield Figure("nodes", f"{report.nodes_before:,}", f"{report.nodes_after:,}")
    yield Figure("parameters", short_count(before.parameters), short_count(after.parameters), "stored numbers")
    if before.work is not None and after.work is not None:
        yield Figure("multiply-adds", short_count(before.work), short_count(after.work), "for one sample")
    if before.size is not None and after.size is not None:
        yield Figure("file", short_size(before.size), short_size(after.size))


def short_count(number: int) -> str:
    """Three digits that count, with a unit: ``4.09 G``."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 10 * size or (number >= size and size > 1e3):
            return f"{number / size:#.4g} {unit}"
    return f"{number:,}"


def short_size(number: int) -> str:
    """Bytes with a unit that a person reads."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:#.4g} {unit}"
    return f"{number} bytes"


def op_rows(before: Structure, after: Structure) -> tuple[tuple[str, int, int], ...]:
    """Nodes of each kind before and after; those that changed come first."""
    old, new = before.op_counts, after.op_counts
    names = sorted({*old, *new}, key=lambda op: (old.get(op, 0) == new.get(op, 0), -old.get(op, 0), op))
    return tuple((name, old.get(name, 0), new.get(name, 0)) for name in names)


def told(report: FoldReport) -> tuple[tuple[int, FoldRecord], ...]:
    """The records that get a row, with their numbers; where there are too many, some that were folded do not."""
    numbered = list(enumerate(report.records))
    return tuple(sorted(sorted(numbered, key=lambda row: row[1].fate == "folded")[:TOLD], key=lambda row: row[0]))


def done(report: FoldReport) -> tuple[MergeRecord, ...]:
    """The merges that were made."""
    return tuple(merge for merge in report.merges if merge.refusal is None)


def merged(report: FoldReport) -> str:
    """How many ops became how many, in a sentence; empty where nothing merged."""
    merges = done(report)
    ops = sum(len(merge.nodes) for merge in merges)
    return f"{ops} ops that stood side by side or in a row became {len(merges)}." if merges else ""


def refused(report: FoldReport) -> tuple[MergeRecord, ...]:
    """The merges that were not."""
    return tuple(merge for merge in report.merges if merge.refusal is not None)


def graphs(changes: Sequence[Changes], report: FoldReport) -> tuple[Graph, ...]:
    """Every graph of the model that is worth a drawing: the main one, and bodies in which something happened."""
    budget = DRAWN
    found = []
    for number, one in enumerate(changes):
        if number and one.untouched:
            continue
        regions, drawn, budget = _regions(one, number, report, budget)
        places = {place: box for start, end in drawn for place, box in enumerate(one.boxes[start:end], start)}
        anchors = {box.records[0]: anchor(number, place) for place, box in places.items() if box.has_fate}
        found.append(Graph(one.owner, one.attribute, tuple(regions), tuple(used_roles(one.boxes)), anchors))
    return tuple(found)


def _regions(
    one: Changes, scope: int, report: FoldReport, budget: int
) -> tuple[list[Region], list[tuple[int, int]], int]:
    """The regions of one graph, which stretches of it are drawn, and how many boxes may still be."""
    groups = runs(cut(one))
    shown: set[Role] = set()
    drawn: dict[int, Drawing] = {}
    stretches: list[tuple[int, int]] = []
    # The first of each group comes before any repetition.
    order = [group[0] for group in groups] + [part for group in groups for part in group[1:]]
    for part in order:
        if budget >= len(part.nodes) and (len(groups) == 1 or not part.untouched):
            drawn[part.start] = draw(part, scope, report)
            stretches.append((part.start, part.start + len(part.boxes)))
            budget -= len(part.nodes)
    regions = []
    for group in groups:
        first = group[0]
        fates = _fates(first)
        is_new = bool({role for role, _ in fates} - shown)
        shown |= {role for role, _ in fates} if first.start in drawn else set()
        untouched = first.untouched
        regions.append(
            Region(
                title=_title(group) if untouched else first.title,
                nodes=sum(_nodes(part) for part in group) if untouched else _nodes(first),
                fates=fates,
                drawing=drawn.get(first.start),
                twins=() if untouched else tuple(Twin(part.title, drawn.get(part.start)) for part in group[1:]),
                untouched=untouched,
                is_open=is_new or len(groups) == 1,
            )
        )
    return regions, stretches, budget


def _title(group: Sequence[Part]) -> str:
    """Of neighbours that need no drawing: from where to where."""
    ops = (group[0].ends[0], group[-1].ends[1])
    return " … ".join(dict.fromkeys(f"{op.op_type} {op.name}" for op in ops))


def _nodes(part: Part) -> int:
    return sum(not box.is_end for box in part.boxes)


def _fates(part: Part) -> tuple[tuple[Role, int], ...]:
    counts = Counter(role for box in part.boxes for role in box.roles if role in FATES)
    return tuple((role, counts[role]) for role in FATES if counts[role])
