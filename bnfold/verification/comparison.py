"""Verify: run both models, in float64 and in ONNX Runtime, and decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.errors import ModelError, OptionError
from bnfold.extras import require
from bnfold.files import StrPath
from bnfold.progress import Progress, silent
from bnfold.session import LEVELS, provider_name
from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.folds import FoldsResult, prove_folds
from bnfold.verification.inputs import Feed, drawn_feeds, input_specs, user_feeds
from bnfold.verification.localization import Cause, Mismatch, find_cause
from bnfold.verification.measurement import Measurement
from bnfold.verification.metrics import UNIT_ROUNDOFF
from bnfold.verification.oracle import RANDOM, Oracle
from bnfold.verification.result import FeedResult, OutputResult, ReferenceKind, Verdict, VerifyResult, describe
from bnfold.verification.sameness import check_interfaces, same_graph
from bnfold.verification.subject import Subject
from bnfold.verification.verdict import Judgement, Observation, Rule, bound_of, judge, own_errors

Array = NDArray[Any]
Outputs = Mapping[str, Array]

#: Where float64 and ONNX Runtime differ by more than this of the scale (or this many roundoffs of the type), one of
#: the two computes another function, and the difference must not pass for the reference's own error.
_DISAGREEMENT = 1e-3
_DISAGREEMENT_ROUNDOFFS = 64


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify.

    Attributes:
        inputs: the user's inputs (``.npz``, ``.npy`` or a folder) in place of drawn ones.
        samples: random sets of inputs for each batch size.
        batches: what a dynamic first dimension is set to.
        shapes: shapes of inputs by name, for dynamic dimensions.
        seed: of the random inputs.
        provider: execution provider of the candidate's shipped run.
        level: ONNX Runtime's optimization level of that run: ``all``, ``extended``, ``basic`` or ``disable``.
        runtime: False compares in float64 only and does without ONNX Runtime.
        rtol: relative to the output's scale; it and ``atol`` replace the rule.
        atol: absolute.
        rule: factors of the rule.
        per_fold: prove each fold by itself too; see :mod:`bnfold.verification.folds`.
        localize: on a mismatch, find what causes it; see :mod:`bnfold.verification.localization`.
    """

    inputs: StrPath | None = None
    samples: int = 2
    batches: tuple[int, ...] = (1, 3)
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seed: int = 0
    provider: str = "cpu"
    level: str = "all"
    runtime: bool = True
    rtol: float | None = None
    atol: float | None = None
    rule: Rule = field(default_factory=Rule)
    per_fold: bool = False
    localize: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise OptionError(f"the number of samples must be at least 1, not {self.samples}")
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if value is not None and not (0 <= value < np.inf):
                raise OptionError(f"{name} must be a number from 0 on, not {value}")
        if self.level not in LEVELS:
            raise OptionError(f"unknown optimization level {self.level!r}; use one of {', '.join(LEVELS)}")
        provider_name(self.provider)


def verify(
    reference: StrPath | ir.Model,
    candidate: StrPath | ir.Model,
    options: VerifyOptions | None = None,
    progress: Progress = silent,
) -> VerifyResult:
    """Decide whether ``candidate`` computes the same function as ``reference``.

    Both are evaluated in float64, where only algebra and the rounding of weights tell them apart, and in ONNX
    Runtime: with every optimization off, and as shipped. The rule is told in the result, and in
    :mod:`bnfold.verification.verdict`.

    Args:
        reference: path of an ONNX file, or a model.
        candidate: the same; it must have the same inputs and outputs.
        options: see :class:`VerifyOptions`.
        progress: told of each set of inputs of each run.

    Raises:
        ModelError: a model cannot be loaded or run, the two have different inputs or outputs, or one draws random
            numbers.
        InputError: the options contradict the models.
        DataError: the user's inputs cannot be read or do not fit.
        ProviderError: the provider does not run here.
        MissingExtraError: onnxruntime is not installed and ``options.runtime`` is on.
    """
    options = options or VerifyOptions()
    if options.runtime:
        require("onnxruntime", "cpu" if provider_name(options.provider) == "CPUExecutionProvider" else "cuda")
    pair = Subject.of(reference, "reference"), Subject.of(candidate, "candidate")
    check_interfaces(pair[0].model, pair[1].model)
    for subject in pair:
        _refuse_random(subject)
    specs = input_specs(pair[0].model)
    feeds = (
        drawn_feeds(
            specs,
            samples=options.samples,
            seed=options.seed,
            batches=options.batches,
            shapes=options.shapes,
        )
        if options.inputs is None
        else user_feeds(options.inputs, specs)
    )
    rule = replace(options.rule, rtol=options.rtol, atol=options.atol)
    comparison = _Comparison(*pair, feeds, rule, options, progress)
    return comparison.vacuous() if same_graph(pair[0].model, pair[1].model) else comparison.result()


def _refuse_random(subject: Subject) -> None:
    for graph in (subject.model.graph, *subject.model.graph.subgraphs()):
        for node in graph:
            if node.op_type in RANDOM and node.domain == "":
                raise ModelError(
                    f"{subject.label} draws random numbers ({node.op_type}), so that no two runs of it agree"
                )


class _Comparison:
    """One verification: the two models, the inputs, and the order of the runs."""

    def __init__(
        self,
        reference: Subject,
        candidate: Subject,
        feeds: Sequence[Feed],
        rule: Rule,
        options: VerifyOptions,
        progress: Progress,
    ) -> None:
        self._reference = reference
        self._candidate = candidate
        self._feeds = feeds
        self._rule = rule
        self._options = options
        self._progress = progress
        self._notes: list[str] = []
        self._oracles: tuple[Oracle, Oracle] | None = None

    def vacuous(self) -> VerifyResult:
        """The result for two files that hold the same graph."""
        return self._make(
            "nothing proven",
            "nothing was proven: both files hold the same graph, so that comparing them cannot fail; "
            "check that the right files were given",
            "none",
            "",
            (),
        )

    def result(self) -> VerifyResult:
        """Run everything and decide."""
        try:
            measurement, kind, why = self._in_float64(), "float64", ""
        except NotInFloat64Error as refusal:
            if not self._options.runtime:
                raise ModelError(
                    f"the models cannot be compared without ONNX Runtime: {refusal}; allow the runtime"
                ) from refusal
            measurement, kind, why = self._in_runtime(), "onnxruntime", str(refusal)
        reference: ReferenceKind = "float64" if kind == "float64" else "onnxruntime"
        if why:
            self._notes.append(f"the reference is ONNX Runtime, not float64, and the check less sharp: {why}")
        result = self._decide(measurement, reference, why)
        if self._options.per_fold:
            result = self._with_folds(result)
        if self._options.localize and result.verdict == "mismatch":
            result = replace(result, cause=self._cause(result, measurement))
        return result

    def _with_folds(self, result: VerifyResult) -> VerifyResult:
        """The result with the proof of each fold, which may tell what the outputs do not."""
        try:
            folds = self._folds(result)
        except NotInFloat64Error as refusal:
            return replace(result, notes=(*result.notes, f"the folds could not be proven by themselves: {refusal}"))
        result = replace(result, folds=folds, notes=(*result.notes, *folds.notes))
        if folds.wrong and result.verdict != "mismatch":
            return replace(result, verdict="mismatch", sentence=f"the candidate holds a wrong fold: {folds.sentence}")
        return result

    def _folds(self, result: VerifyResult) -> FoldsResult:
        if result.folds is not None:
            return result.folds
        if self._oracles is None:
            raise NotInFloat64Error(result.reference_note)
        return prove_folds(*self._oracles, self._feeds, self._options.seed, self._rule, self._progress)

    def _cause(self, result: VerifyResult, measurement: Measurement) -> Cause:
        """Where the mismatch comes from."""
        by_name = {feed.name: feed for feed in self._feeds}
        worst = max((output.judgement.worst for output in result.outputs), key=lambda finding: finding.ratio)
        roundoffs = [UNIT_ROUNDOFF[dtype] for dtype in measurement.types.values() if dtype in UNIT_ROUNDOFF]

        def agrees(without: Sequence[str]) -> bool:
            trial = measurement.copy()
            trial.record("candidate_shipped", self._shipped(self._candidate, without))
            judgements = [judge(observations, self._rule) for observations in trial.observations().values()]
            return not any(f.run == "candidate_shipped" and f.ratio > 1 for j in judgements for f in j.findings)

        mismatch = Mismatch(
            reference=self._reference,
            candidate=self._candidate,
            oracles=self._oracles if result.reference == "float64" else None,
            feed=by_name.get(worst.feed, self._feeds[0]),
            failed=frozenset(f.run for o in result.outputs for f in o.judgement.findings if f.ratio > 1),
            level=self._options.level,
            roundoff=max(roundoffs, default=UNIT_ROUNDOFF["float32"]),
            folds=lambda: self._folds(result),
            agrees=agrees,
        )
        return find_cause(mismatch, self._progress)

    def _in_float64(self) -> Measurement:
        reference, candidate = self._oracle(self._reference), self._oracle(self._candidate)
        self._oracles = reference, candidate
        expected = list(self._each("reference in float64", reference.run))
        measurement = Measurement(self._feeds, self._reference.output_types, expected)
        if self._options.runtime:
            measurement.record("original", self._plain(self._reference), excuse=True)
            gap = _disagreement(measurement)
            if gap:
                raise NotInFloat64Error(gap)
        measurement.record("candidate_float64", self._each("candidate in float64", candidate.run))
        seeds = iter(range(len(self._feeds)))
        measurement.record(
            "nudged",
            self._each("rounding of weights", lambda values: reference.run_nudged(values, next(seeds))),
        )
        narrowed = sorted({*reference.narrowed, *candidate.narrowed})
        if narrowed:
            self._notes.append(f"{', '.join(narrowed)} was evaluated in less than float64")
        if self._options.runtime:
            self._record_runtime(measurement)
        return measurement

    def _in_runtime(self) -> Measurement:
        expected = list(self._plain(self._reference))
        measurement = Measurement(self._feeds, self._reference.output_types, expected)
        measurement.record("nudged", self._plain(self._reference.nudged(self._options.seed)))
        self._record_runtime(measurement)
        return measurement

    def _record_runtime(self, measurement: Measurement) -> None:
        measurement.record("original_shipped", self._shipped(self._reference))
        measurement.record("candidate_plain", self._plain(self._candidate))
        measurement.record("candidate_shipped", self._shipped(self._candidate))

    def _oracle(self, subject: Subject) -> Oracle:
        try:
            return Oracle(subject.model)
        except NotInFloat64Error as error:
            raise NotInFloat64Error(f"the {subject.role} does not run in float64 ({error})") from error

    def _plain(self, subject: Subject) -> Iterable[Outputs]:
        session, note = subject.plain_session()
        if note and note not in self._notes:
            self._notes.append(note)
        return self._each(f"{subject.role}, optimizations off", lambda values: subject.run(session, values))

    def _shipped(self, subject: Subject, without: Sequence[str] = ()) -> Iterable[Outputs]:
        session = subject.session(self._options.level, self._options.provider, without)
        return self._each(f"{subject.role} as shipped", lambda values: subject.run(session, values))

    def _each(self, stage: str, run: Callable[[Mapping[str, Array]], Outputs]) -> Iterable[Outputs]:
        total = len(self._feeds)
        for index, feed in enumerate(self._feeds):
            self._progress(stage, index, total)
            yield run(feed.values)
        self._progress(stage, total, total)

    def _decide(self, measurement: Measurement, kind: ReferenceKind, why: str) -> VerifyResult:
        outputs = []
        for name, observations in measurement.observations().items():
            judgement = judge(observations, self._rule)
            feeds = _feed_results(observations, self._rule)
            outputs.append(OutputResult(name, measurement.types[name], judgement, feeds))
        judgements = [output.judgement for output in outputs]
        silent_outputs = measurement.silent_outputs()
        if not all(judgement.equivalent for judgement in judgements):
            self._notes += _explanations(judgements, self._options.level)
            return self._make("mismatch", _mismatch_sentence(judgements), kind, why, tuple(outputs))
        if len(silent_outputs) == len(outputs):
            sentence = f"nothing was proven: {'; '.join(silent_outputs.values())}; give inputs with --inputs"
            return self._make("nothing proven", sentence, kind, why, tuple(outputs))
        self._notes += [f"{reason}: nothing was proven of it" for reason in silent_outputs.values()]
        return self._make("equivalent", _agreement_sentence(judgements, len(self._feeds)), kind, why, tuple(outputs))

    def _make(
        self,
        verdict: Verdict,
        sentence: str,
        kind: ReferenceKind,
        why: str,
        outputs: tuple[OutputResult, ...],
    ) -> VerifyResult:
        return VerifyResult(
            verdict=verdict,
            sentence=sentence,
            reference=kind,
            reference_note=why,
            rule=self._rule.text(kind),
            outputs=outputs,
            notes=tuple(self._notes),
            feeds=tuple(feed.name for feed in self._feeds),
            provider=self._options.provider,
            level=self._options.level,
            seed=self._options.seed,
            runtime=self._options.runtime,
        )


def _disagreement(measurement: Measurement) -> str:
    """Why float64 and ONNX Runtime cannot both be right about the reference; empty where they can."""
    for name, observations in measurement.observations().items():
        for observation in observations:
            if "original" in observation.shapes:
                return f"float64 and ONNX Runtime give output {name!r} {observation.shapes['original']}"
        errors = [o.metrics["original"].max_abs / o.scale for o in observations if o.scale > 0]
        limit = max(_DISAGREEMENT, _DISAGREEMENT_ROUNDOFFS * observations[0].roundoff)
        if errors and float(np.median(errors)) > limit:
            return (
                f"float64 and ONNX Runtime differ on the reference's output {name!r} "
                f"by {np.median(errors):.2g} of its scale"
            )
    return ""


def _feed_results(observations: Sequence[Observation], rule: Rule) -> tuple[FeedResult, ...]:
    in_float64 = own_errors(observations, rule, "candidate_float64")
    in_runtime = own_errors(observations, rule, "candidate_shipped")
    return tuple(
        FeedResult(
            feed=observation.feed,
            kind=observation.kind,
            scale=observation.scale,
            bound_float64=bound_of(observation, one, "candidate_float64", rule),
            bound_runtime=bound_of(observation, other, "candidate_shipped", rule),
            metrics=observation.metrics,
        )
        for observation, one, other in zip(observations, in_float64, in_runtime, strict=True)
    )


def _mismatch_sentence(judgements: Sequence[Judgement]) -> str:
    worst = max(judgements, key=lambda judgement: judgement.worst.ratio)
    return f"the candidate does not compute the same function: {describe(worst.output, worst.worst)}"


def _agreement_sentence(judgements: Sequence[Judgement], feeds: int) -> str:
    worst = max(judgements, key=lambda judgement: judgement.worst.ratio)
    outputs = "1 output agrees" if len(judgements) == 1 else f"{len(judgements)} outputs agree"
    return (
        f"the candidate computes the same function: {outputs} on {feeds} sets of inputs; the largest error is "
        f"{worst.worst.ratio:.2g} of what is allowed"
    )


def _explanations(judgements: Sequence[Judgement], level: str) -> list[str]:
    """What the pattern of failures says about their cause."""
    failed = {f.run for judgement in judgements for f in judgement.findings if not f.ratio <= 1}
    ran = {f.run for judgement in judgements for f in judgement.findings}
    if failed == {"candidate_shipped"}:
        return [
            f"only the run at optimization level {level!r} is off: ONNX Runtime's own optimizations change the "
            "result of this file, not the transformation that made it"
        ]
    if "candidate_float64" in ran - failed:
        return ["float64 agrees, so that the algebra holds; the candidate is less exact, or overflows, in its own type"]
    return []
