"""Verify: run both models, in float64 and in ONNX Runtime, and decide."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from bnfold.errors import InputError, ModelError, OptionError, OutputError
from bnfold.extras import require
from bnfold.files import StrPath, check_output_file
from bnfold.progress import Progress, silent
from bnfold.verification import wording
from bnfold.verification.expectation import Expectation, expect
from bnfold.verification.golden import Golden, load_golden, save_golden
from bnfold.verification.inquiry import Inquiry
from bnfold.verification.interface import Interface, check_interfaces
from bnfold.verification.measurement import Measurement
from bnfold.verification.options import VerifyOptions
from bnfold.verification.randomness import random_operator
from bnfold.verification.result import FeedResult, OutputResult, Verdict, VerifyResult
from bnfold.verification.sameness import fingerprint, same_graph
from bnfold.verification.subject import Role, Subject
from bnfold.verification.trial import Trial
from bnfold.verification.verdict import JUDGED, Observation, ReferenceKind, Rule, Run, bound_of, judge, own_errors


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
        OutputError: the golden file cannot be written.
        ProviderError: the provider does not run here.
        MissingExtraError: onnxruntime is not installed and ``options.runtime`` is on.
    """
    started = time.monotonic()
    options = options or VerifyOptions()
    _require_runtime(options)
    first, second = _subject(reference, "reference"), _subject(candidate, "candidate")
    names = first.name, second.name
    check_interfaces(Interface.of(first.model), Interface.of(second.model))
    if same_graph(first.model, second.model):
        if options.save_golden is not None:
            record_golden(reference, options.save_golden, options, progress)
        return _named(_vacuous(options), names, started)
    if options.save_golden is not None:
        _check_golden_file(options.save_golden, reference, candidate, options.inputs)
    expectation = expect(first, options, progress)
    if options.save_golden is not None:
        save_golden(expectation, first, options, options.save_golden)
    if options.per_fold is False and not options.localize:
        expectation = replace(expectation, oracle=None)  # large, and not needed any more
    trial = Trial(second, expectation, options, progress)
    result = Inquiry(first, expectation, trial, options, progress).answer(_decide(trial, expectation, options))
    return _named(result, names, started)


def record_golden(
    reference: StrPath | ir.Model, path: StrPath, options: VerifyOptions | None = None, progress: Progress = silent
) -> Golden:
    """Keep what a model computes in a file that :func:`verify_golden` holds candidates against.

    Raises:
        OutputError: the file cannot be written.
        BnfoldError: see :func:`verify`.
    """
    options = options or VerifyOptions()
    _require_runtime(options)
    _check_golden_file(path, reference, options.inputs)
    subject = _subject(reference, "reference")
    return save_golden(expect(subject, options, progress), subject, options, path)


def _check_golden_file(path: StrPath, *read: StrPath | ir.Model | None) -> None:
    """Refuse to write a golden file where none can be, or over what is read for it.

    Raises:
        OutputError: that is so.
    """
    target = check_output_file(path)
    for source in read:
        file = Path(source) if isinstance(source, str | os.PathLike) else None
        if file is not None and file.exists() and target.exists() and target.samefile(file):
            raise OutputError(f"{target} is an input itself; keep the golden file elsewhere")


def verify_golden(
    golden: StrPath,
    candidate: StrPath | ir.Model,
    options: VerifyOptions | None = None,
    progress: Progress = silent,
) -> VerifyResult:
    """Decide whether ``candidate`` computes what a golden file says, on a machine without the reference.

    The inputs are those of the golden file; options that choose inputs are of no effect, and no fold is proven by
    itself, which takes the reference.

    Raises:
        DataError: the golden file is missing, damaged, or none.
        OptionError: what was asked for needs the reference itself.
        BnfoldError: see :func:`verify`.
    """
    started = time.monotonic()
    options = options or VerifyOptions()
    if options.localize or options.save_golden is not None:
        raise OptionError("a golden file does not hold the reference itself, which is needed for that")
    _require_runtime(options)
    kept = load_golden(golden)
    subject = _subject(candidate, "candidate")
    check_interfaces(kept.expectation.interface, Interface.of(subject.model))
    if kept.expectation.kind != "float64" and not options.runtime:
        raise InputError(f"{golden} was made by ONNX Runtime, and is of no use without it; allow the runtime")
    itself = fingerprint(subject.model) == kept.expectation.fingerprint
    if itself and not options.runtime:
        return _named(_vacuous(options), (kept.summary, subject.name), started)
    trial = Trial(subject, kept.expectation, options, progress)
    if itself:
        trial.notes.append(
            "the candidate is the very model that the golden file was made from: what is shown is that this machine "
            "runs it right, and nothing of a transformation"
        )
    if options.extra_provider is not None:
        trial.notes.append(
            f"the golden file does not tell the reference's own error on {options.provider}; its error on the CPU "
            "stands in for it"
        )
    return _named(_decide(trial, kept.expectation, options), (kept.summary, subject.name), started)


def _named(result: VerifyResult, models: tuple[str, str], started: float) -> VerifyResult:
    return replace(result, models=models, seconds=time.monotonic() - started)


def _require_runtime(options: VerifyOptions) -> None:
    if options.runtime:
        require("onnxruntime", "cpu" if options.extra_provider is None else "cuda")


def _subject(source: StrPath | ir.Model, role: Role) -> Subject:
    """Load a model.

    Raises:
        ModelError: it cannot be loaded, or no two runs of it agree.
    """
    subject = Subject.of(source, role)
    operator = random_operator(subject.model)
    if operator is not None:
        raise ModelError(f"{subject.label} draws random numbers ({operator}), so that no two runs of it agree")
    return subject


def _vacuous(options: VerifyOptions) -> VerifyResult:
    """The result for two files that hold the same graph."""
    return _result(
        options,
        verdict="nothing proven",
        sentence="nothing was proven: both files hold the same graph, so that comparing them cannot fail; "
        "check that the right files were given",
    )


def _decide(trial: Trial, expectation: Expectation, options: VerifyOptions) -> VerifyResult:
    rule, measurement = options.effective_rule, trial.measurement
    outputs = tuple(_output(name, measurement, rule) for name in measurement.types)
    judgements = [output.judgement for output in outputs]
    notes = [*expectation.notes, *trial.notes]
    silent_outputs = measurement.silent_outputs() | ({} if rule.overridden else wording.blind(outputs))
    verdict: Verdict
    if not all(judgement.equivalent for judgement in judgements):
        verdict, sentence = "mismatch", wording.mismatch(judgements)
        notes += wording.explanations(judgements, options.level)
    elif len(silent_outputs) == len(outputs):
        verdict = "nothing proven"
        sentence = f"nothing was proven: {'; '.join(silent_outputs.values())}; give inputs with --inputs"
    elif expectation.kind == "onnxruntime" and not expectation.unoptimized:
        verdict = "nothing proven"
        sentence = (
            "nothing was proven: neither float64 nor ONNX Runtime without its optimizations runs the reference, and "
            "an optimized one may hold the very fold that is to be proven"
        )
    else:
        verdict, sentence = "equivalent", wording.agreement(judgements, len(measurement.feeds))
        notes += [f"{reason}: nothing was proven of it" for reason in silent_outputs.values()]
        notes += [] if rule.overridden else wording.coarse(outputs)
        notes += measurement.strange_outputs()
    notes += wording.close_decisions(outputs)
    return _result(
        options,
        verdict=verdict,
        sentence=sentence,
        reference=expectation.kind,
        reference_note=expectation.why,
        rule=rule.text(expectation.kind),
        outputs=outputs,
        notes=tuple(dict.fromkeys(notes)),
        feeds=tuple(feed.name for feed in measurement.feeds),
    )


def _output(name: str, measurement: Measurement, rule: Rule) -> OutputResult:
    observations = measurement.observations_of(name)
    return OutputResult(name, measurement.types[name], judge(observations, rule), _feed_results(observations, rule))


def _feed_results(observations: Sequence[Observation], rule: Rule) -> tuple[FeedResult, ...]:
    bounds: list[dict[Run, float]] = [{} for _ in observations]
    for run in JUDGED:
        for index, own in enumerate(own_errors(observations, rule, run)):
            bounds[index][run] = bound_of(observations[index], own, run, rule)
    return tuple(
        FeedResult(
            feed=observation.feed,
            kind=observation.kind,
            scale=observation.scale,
            bounds=bound,
            metrics=observation.metrics,
            problems=observation.problems,
            margins=observation.margins,
        )
        for observation, bound in zip(observations, bounds, strict=True)
    )


def _result(
    options: VerifyOptions,
    *,
    verdict: Verdict,
    sentence: str,
    reference: ReferenceKind = "none",
    reference_note: str = "",
    rule: str = "",
    outputs: tuple[OutputResult, ...] = (),
    notes: tuple[str, ...] = (),
    feeds: tuple[str, ...] = (),
) -> VerifyResult:
    return VerifyResult(
        verdict=verdict,
        sentence=sentence,
        reference=reference,
        reference_note=reference_note,
        rule=rule,
        outputs=outputs,
        notes=notes,
        feeds=feeds,
        provider=options.provider,
        level=options.level,
        seed=options.seed,
        runtime=options.runtime,
    )
