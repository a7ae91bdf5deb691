"""What the reference computes, and how exactly: everything that a candidate is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import ModelError
from bnfold.progress import Progress
from bnfold.session import PROVIDERS
from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.inputs import Feed, drawn_feeds
from bnfold.verification.interface import Interface
from bnfold.verification.measurement import Measurement
from bnfold.verification.options import VerifyOptions
from bnfold.verification.oracle import Oracle
from bnfold.verification.randomness import undecided_output
from bnfold.verification.sameness import fingerprint
from bnfold.verification.sizes import USUAL, Sizes
from bnfold.verification.specs import RECURRENT, input_specs
from bnfold.verification.subject import Subject
from bnfold.verification.user_inputs import user_feeds
from bnfold.verification.verdict import ReferenceKind

Array = NDArray[Any]
Outputs = Mapping[str, Array]
Run = Callable[[Mapping[str, Array]], Outputs]

#: Where float64 and ONNX Runtime differ by more than this of the scale (or this many roundoffs of the type), one of
#: the two computes another function, and the difference must not pass for the reference's own error.
_DISAGREEMENT = 1e-3
_DISAGREEMENT_ROUNDOFFS = 64

#: How often the weights are moved for the large inputs, and for all of a network whose errors may grow over time.
_NUDGES = 3


@dataclass(frozen=True)
class Expectation:
    """What the reference computes.

    Attributes:
        measurement: the inputs, the true outputs, and the reference's own errors.
        kind: what computed the true outputs: ``float64``, or ``onnxruntime`` where float64 cannot run the model.
        why: why it is not float64; empty where it is.
        notes: what a reader should know.
        unoptimized: whether ONNX Runtime ran the reference as it is; False where its basic level stood in.
        interface: what the reference takes and gives.
        fingerprint: of the reference's graph.
        oracle: the reference ready to be evaluated in float64; None where it cannot be, or is not at hand.
    """

    measurement: Measurement
    kind: ReferenceKind
    why: str
    notes: tuple[str, ...]
    unoptimized: bool
    interface: Interface
    fingerprint: str
    oracle: Oracle | None = None

    @property
    def feeds(self) -> Sequence[Feed]:
        """The sets of inputs."""
        return self.measurement.feeds


def each(
    feeds: Sequence[Feed], stage: str, run: Callable[[Mapping[str, Array]], Any], progress: Progress
) -> Iterator[Any]:
    """Run something on each set of inputs, and tell how far it is."""
    for index, feed in enumerate(feeds):
        progress(stage, index, len(feeds))
        yield run(feed.values)
    progress(stage, len(feeds), len(feeds))


def expect(reference: Subject, options: VerifyOptions, progress: Progress) -> Expectation:
    """Run the reference.

    Args:
        reference: the model.
        options: which inputs, and whether ONNX Runtime is there.
        progress: told of each set of inputs of each run.

    Raises:
        ModelError: the model cannot be run, or not without ONNX Runtime where that is not to be used.
        InputError: the options contradict the model.
        DataError: the user's inputs cannot be read or do not fit.
        ProviderError: the provider does not run here.
    """
    return _Expecting(reference, options, progress).result()


class _Expecting:
    """The runs of one reference, in order."""

    def __init__(self, reference: Subject, options: VerifyOptions, progress: Progress) -> None:
        self._reference = reference
        self._options = options
        self._progress = progress
        self._notes: list[str] = []
        self._feeds: list[Feed] = []
        self._unoptimized = True

    def result(self) -> Expectation:
        """Run everything.

        Raises:
            ModelError: see :func:`expect`.
        """
        measurement, oracle, why = self._with_runtime() if self._options.runtime else self._without_runtime()
        return Expectation(
            measurement=measurement,
            kind="float64" if oracle is not None else "onnxruntime",
            why=why,
            notes=tuple(self._notes),
            unoptimized=self._unoptimized,
            interface=Interface.of(self._reference.model),
            fingerprint=fingerprint(self._reference.model),
            oracle=oracle,
        )

    def _without_runtime(self) -> tuple[Measurement, Oracle, str]:
        try:
            oracle = self._oracle()
            self._feeds = self._feeds_that_run(oracle.run)
            measurement = self._measured(self._reached("reference in float64", oracle.run))
            self._nudge(measurement, oracle)
        except NotInFloat64Error as refusal:
            raise ModelError(
                f"the models cannot be compared without ONNX Runtime: {refusal}; allow the runtime, or give --inputs"
            ) from refusal
        return measurement, oracle, ""

    def _with_runtime(self) -> tuple[Measurement, Oracle | None, str]:
        original = self._original()
        oracle, why = None, ""
        try:
            oracle = self._oracle()
            measurement = self._beside_runtime(oracle, original)
        except NotInFloat64Error as refusal:
            oracle, why = None, str(refusal)
            self._notes.append(f"the reference is ONNX Runtime, not float64, and the check less sharp: {why}")
            measurement = self._in_runtime(original)
        measurement.record("original_shipped", self._session_run("reference as shipped", self._options.level))
        self._on_provider(measurement)
        return measurement, oracle, why

    def _original(self) -> dict[str, Outputs]:
        """The reference in ONNX Runtime with optimizations off, whose session is then let go."""
        session, stands_in = self._reference.plain_session()
        if stands_in:
            self._unoptimized = False
            self._notes.append(
                "ONNX Runtime does not run the reference with optimizations off; its basic level stands in for it"
            )

        def run(values: Mapping[str, Array]) -> Outputs:
            return self._reference.run(session, values)

        self._feeds = self._feeds_that_run(run)
        return self._reached("reference, optimizations off", run)

    def _reached(self, stage: str, run: Run) -> dict[str, Outputs]:
        """The outputs by the name of each set of inputs; sets that may be left out, and do not run, are."""
        outputs: dict[str, Outputs] = {}
        for feed in self._feeds:
            self._progress(stage, len(outputs), len(self._feeds))
            try:
                outputs[feed.name] = run(feed.values)
            except ModelError as error:
                if not feed.optional:
                    raise ModelError(
                        f"{self._reference.label} does not run on the inputs {feed.name!r}; give other ones with "
                        f"--inputs, or compare in float64 only with --no-runtime ({error})"
                    ) from error
            except NotInFloat64Error:
                if not feed.optional:
                    raise
        first = self._feeds[0]
        undecided = undecided_output(outputs[first.name], run(first.values), list(outputs[first.name]))
        if undecided is not None:
            raise ModelError(
                f"{self._reference.label} gives another output {undecided!r} each time on the same inputs: "
                "it draws random numbers, so that no two runs of it agree"
            )
        refused = [feed.name for feed in self._feeds if feed.name not in outputs]
        if refused:
            self._notes.append(f"the reference itself does not run on these inputs, left out: {', '.join(refused)}")
            self._feeds = [feed for feed in self._feeds if feed.name in outputs]
        self._progress(stage, len(self._feeds), len(self._feeds))
        return outputs

    def _feeds_that_run(self, run: Run) -> list[Feed]:
        """The inputs; where sides or lengths are open, of the first ordinary sizes at which the reference runs."""
        options, model = self._options, self._reference.model
        specs = input_specs(model)
        if options.inputs is not None:
            return user_feeds(options.inputs, specs, model.metadata_props)
        drawn = partial(
            drawn_feeds,
            specs,
            samples=options.samples,
            seed=options.seed,
            batches=options.batches,
            shapes=options.shapes,
        )
        if not Sizes(specs, options.shapes).has_others:
            return drawn()
        failures = []
        for usual in USUAL:
            feeds = drawn(usual=usual)
            try:
                run(feeds[0].values)
            except (ModelError, NotInFloat64Error) as error:
                failures.append(error)
            else:
                return feeds
        sizes = ", ".join(f"{name} {value.shape}" for name, value in drawn()[0].values.items())
        raise ModelError(
            f"{self._reference.label} does not run at the sizes that bnfold tried, first {sizes}; "
            f"give one that it takes with --input-shape ({failures[0]})"
        ) from failures[0]

    def _measured(self, expected: Mapping[str, Outputs]) -> Measurement:
        outputs = [expected[feed.name] for feed in self._feeds]
        return Measurement(self._feeds, self._reference.output_types, outputs, self._reference.roundoff)

    def _beside_runtime(self, oracle: Oracle, original: Mapping[str, Outputs]) -> Measurement:
        measurement = self._measured(self._reached("reference in float64", oracle.run))
        measurement.record("original", (original[feed.name] for feed in self._feeds), excuse=True)
        gap = _disagreement(measurement)
        if gap:
            raise NotInFloat64Error(gap)
        self._nudge(measurement, oracle)
        if oracle.narrowed:
            self._notes.append(f"{', '.join(oracle.narrowed)} was evaluated in less than float64")
        return measurement

    def _in_runtime(self, original: Mapping[str, Outputs]) -> Measurement:
        measurement = self._measured(original)
        nudged = self._reference.nudged(self._options.seed)
        session, _ = nudged.plain_session()
        measurement.record("nudged", self._each("rounding of weights", lambda values: nudged.run(session, values)))
        return measurement

    def _nudge(self, measurement: Measurement, oracle: Oracle) -> None:
        seeds = iter(range(len(self._feeds)))
        measurement.record(
            "nudged", self._each("rounding of weights", lambda values: oracle.run_nudged(values, next(seeds)))
        )
        # Large inputs leave an output to few elements, where a saturated function has its step; and what grows from
        # step to step has in the end one direction, in which it went far or not: once is chance.
        grows = any(node.op_type in RECURRENT for node in self._reference.model.graph.all_nodes())
        for index, feed in enumerate(self._feeds):
            for seed in range(1, _NUDGES) if feed.kind == "large" or grows else ():
                nudged = oracle.run_nudged(feed.values, seed * len(self._feeds) + index)
                measurement.record_again("nudged", index, nudged)

    def _on_provider(self, measurement: Measurement) -> None:
        provider = self._options.extra_provider
        if provider is None:
            return
        stage = f"reference on {self._options.provider}"
        measurement.record("original_provider", self._session_run(stage, "disable", provider))
        if provider == PROVIDERS["cuda"]:
            measurement.record("original_tf32", self._session_run(f"{stage}, TF32", "disable", provider, tf32=True))

    def _session_run(self, stage: str, level: str, provider: str = "cpu", *, tf32: bool = False) -> Iterator[Outputs]:
        session = self._reference.session(level, provider, tf32=tf32)
        return self._each(stage, lambda values: self._reference.run(session, values))

    def _oracle(self) -> Oracle:
        try:
            return Oracle(self._reference.model)
        except NotInFloat64Error as error:
            raise NotInFloat64Error(f"the reference does not run in float64 ({error})") from error

    def _each(self, stage: str, run: Run) -> Iterator[Outputs]:
        return each(self._feeds, stage, run, self._progress)


def _disagreement(measurement: Measurement) -> str:
    """Why float64 and ONNX Runtime cannot both be right about the reference; empty where they can."""
    for name, observations in measurement.observations().items():
        for observation in observations:
            if "original" in observation.problems:
                return f"float64 and ONNX Runtime differ on output {name!r}: {observation.problems['original']}"
        errors = [o.metrics["original"].max_abs / o.scale for o in observations if o.scale > 0]
        limit = max(_DISAGREEMENT, _DISAGREEMENT_ROUNDOFFS * observations[0].roundoff)
        if errors and float(np.median(errors)) > limit:
            return (
                f"float64 and ONNX Runtime differ on the reference's output {name!r} "
                f"by {np.median(errors):.2g} of its scale"
            )
    return ""
