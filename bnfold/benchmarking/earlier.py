"""Compare with an earlier run, from the JSON file that it left.

The two runs were not interleaved, so whatever the machine changed by in between would be taken for the candidate's
doing. Where both runs have the same first model, its file unchanged, it is the yardstick: the effect of a candidate is
its log latency minus the yardstick's in the same rounds, in either run, and the machine cancels. Without one, log
latencies themselves are compared, and a warning says so.

The interval is Welch's: with means ``m``, variances ``s²`` and numbers of launches ``L`` of the launches' effects,
``m₁ - m₀ ± t(ν)·√(s₁²/L₁ + s₀²/L₀)``, with Satterthwaite's degrees of freedom ``ν``; with a yardstick and controls in
both runs never narrower than what the two floors of :mod:`bnfold.benchmarking.statistics` make together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.benchmarking.candidates import Candidate, Group
from bnfold.benchmarking.context import Context
from bnfold.benchmarking.launches import ProcessRecord
from bnfold.benchmarking.results import SCHEMA, CandidateResult, EarlierComparison, GroupResult
from bnfold.benchmarking.statistics import (
    Comparison,
    Floats,
    Interval,
    launch_levels,
    noise_floor,
    paired_effects,
    round_medians,
    welch,
)
from bnfold.errors import InputError
from bnfold.files import StrPath

#: What of the context makes latencies of two runs differ, and what to call it.
_CONTEXT = {"cpu": "processor", "affinity": "cores", "governor": "governor", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class _EarlierCandidate:
    """One candidate of an earlier run: its round medians by launch."""

    key: str
    sha256: str
    launches: list[Floats]


@dataclass(frozen=True)
class _EarlierGroup:
    candidates: tuple[_EarlierCandidate, ...]
    control: list[Floats] | None


@dataclass(frozen=True, eq=False)
class EarlierRun:
    """What an earlier run measured.

    Attributes:
        name: of its file.
    """

    name: str
    _context: Mapping[str, Any]
    _groups: tuple[_EarlierGroup, ...]

    def check(self, groups: Sequence[Group]) -> None:
        """Find out before a long measurement whether there is anything to compare.

        Raises:
            InputError: no candidate of the groups was in the earlier run.
        """
        known = {candidate.key for group in self._groups for candidate in group.candidates}
        if not any(_key(group, candidate) in known for group in groups for candidate in group.candidates):
            raise InputError(
                f"{self.name} holds none of these models with these inputs and settings; "
                "give the models the names, and the options, that they had then"
            )

    def compare(self, groups: Sequence[GroupResult]) -> tuple[EarlierComparison, ...]:
        """Every candidate that was in the earlier run too, against itself; a yardstick is not measured."""
        return tuple(comparison for group in groups for comparison in self._compare(group))

    def _compare(self, group: GroupResult) -> Iterator[EarlierComparison]:
        for index, candidate in enumerate(group.candidates):
            found = self._find(_key(group.group, candidate.candidate))
            if found is None:
                continue
            before, position = found
            same_first = len(group.candidates) > 1 and len(before.candidates) > 1 and _same_first(group, before)
            if same_first and index == 0:
                continue
            yardstick = same_first and position > 0
            old = before.candidates[position]
            yield EarlierComparison(
                label=candidate.candidate.name,
                title=group.group.title,
                earlier=self.name,
                yardstick=group.candidates[0].candidate.name if yardstick else None,
                same_file=old.sha256 == candidate.candidate.subject.sha256,
                comparison=(
                    _through_yardstick(group, index, before, position) if yardstick else _direct(candidate, old)
                ),
            )

    def _find(self, key: str) -> tuple[_EarlierGroup, int] | None:
        """Where a candidate is in the earlier run: its group, and its number there."""
        for group in self._groups:
            for position, candidate in enumerate(group.candidates):
                if candidate.key == key:
                    return group, position
        return None

    def warnings(self, groups: Sequence[GroupResult], context: Context) -> Iterator[str]:
        """What makes the comparison with the earlier run less certain."""
        now = context.to_json()
        for key, name in _CONTEXT.items():
            then = self._context.get(key)
            if then != now[key]:
                yield f"the {name} of {self.name} was {then} and is {now[key]} now, which may be all of a difference"
        if any(comparison.yardstick is None for comparison in self.compare(groups)):
            yield (
                f"without a yardstick, a comparison with {self.name} holds what the machine itself changed by between "
                "the runs; put a model that stays the same first, in both runs"
            )
        lost = {
            candidate.candidate.name: None
            for group in groups
            for candidate in group.candidates
            if self._find(_key(group.group, candidate.candidate)) is None
        }
        if lost:
            yield f"{self.name} does not hold {', '.join(lost)} with these inputs and settings"


def load_earlier(path: StrPath) -> EarlierRun:
    """Read the JSON file of an earlier run.

    Raises:
        InputError: the file is missing, is no such file, is of another version, or holds no samples.
    """
    source = Path(path)
    try:
        document = json.loads(source.read_bytes())
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is not JSON; give the file that --out FILE.json wrote") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        found = "none" if schema is None else schema
        raise InputError(
            f"{source} is not a benchmark of this version (schema {SCHEMA} is needed, {found} is there); "
            "measure anew with --out FILE.json"
        )
    try:
        groups = tuple(_read_group(group) for group in document["groups"])
        return EarlierRun(source.name, dict(document["context"]), groups)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{source} does not hold every sample of a benchmark; give the file that --out FILE.json wrote"
        ) from error


def _read_group(document: Mapping[str, Any]) -> _EarlierGroup:
    candidates = tuple(
        _EarlierCandidate(
            key=_key_of(candidate["model"], candidate["setting"], document["inputs"]),
            sha256=str(candidate["sha256"]),
            launches=_read_launches(candidate["launches"]),
        )
        for candidate in document["candidates"]
    )
    control = document["control_launches"]
    return _EarlierGroup(candidates, _read_launches(control) if control else None)


def _read_launches(launches: Sequence[Mapping[str, Any]]) -> list[Floats]:
    read = [round_medians(launch["rounds_ns"]) for launch in launches]
    if len(read) < 2 or not all(len(medians) and np.isfinite(medians).all() for medians in read):
        raise ValueError("a run has at least two launches with rounds")
    return read


def _key(group: Group, candidate: Candidate) -> str:
    inputs = [{"name": feed.name, "dtype": feed.dtype, "shape": list(feed.shape)} for feed in group.feeds]
    return _key_of(candidate.subject.label, candidate.setting.to_json(), inputs)


def _key_of(model: str, setting: object, inputs: object) -> str:
    """What is the same in two runs of one candidate."""
    return json.dumps([model, setting, inputs], sort_keys=True)


def _same_first(group: GroupResult, before: _EarlierGroup) -> bool:
    first, old = group.candidates[0], before.candidates[0]
    return old.key == _key(group.group, first.candidate) and old.sha256 == first.candidate.subject.sha256


def _levels(records: Sequence[ProcessRecord]) -> list[Floats]:
    return [round_medians(record.rounds) for record in records]


def _direct(candidate: CandidateResult, old: _EarlierCandidate) -> Comparison:
    estimate, half = welch(launch_levels(_levels(candidate.records)), launch_levels(old.launches))
    return Comparison(_ratio(estimate, half), None)


def _through_yardstick(group: GroupResult, index: int, before: _EarlierGroup, position: int) -> Comparison:
    first = _levels(group.candidates[0].records)
    control = _levels(group.control_records) if group.control_records else None
    now = paired_effects(_levels(group.candidates[index].records), first, control)
    old_first = before.candidates[0].launches
    then = paired_effects(before.candidates[position].launches, old_first, before.control)
    estimate, half = welch(now, then)
    floor = None
    if control is not None and before.control is not None:
        floors = (noise_floor(_self_effects(control, first)), noise_floor(_self_effects(before.control, old_first)))
        floor = float(np.hypot(*floors))
    return Comparison(_ratio(estimate, max(half, floor or 0.0)), None if floor is None else float(np.expm1(floor)))


def _self_effects(control: list[Floats], first: list[Floats]) -> Floats:
    return paired_effects(control, first, None)


def _ratio(estimate: float, half: float) -> Interval:
    return Interval(*(float(np.exp(value)) for value in (estimate, estimate - half, estimate + half)))
