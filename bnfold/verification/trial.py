"""Run a candidate on the inputs of an expectation, in every way in which it is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from bnfold.errors import ModelError
from bnfold.progress import Progress
from bnfold.session import PROVIDERS
from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.expectation import Expectation, each
from bnfold.verification.measurement import Failure, Measurement, Outcome
from bnfold.verification.options import VerifyOptions
from bnfold.verification.oracle import Oracle
from bnfold.verification.subject import Subject

Outputs = Mapping[str, NDArray[Any]]
Run = Callable[[Mapping[str, NDArray[Any]]], Outputs]


class Trial:
    """The runs of one candidate.

    A candidate that fails on inputs on which the reference runs computes another function: such a failure is recorded,
    not raised. An operator that float64 cannot run is no such failure where ONNX Runtime is there to judge by.

    Args:
        candidate: the model.
        expectation: what it is held against.
        options: which runs.
        progress: told of each set of inputs of each run.

    Attributes:
        candidate: the model.
        measurement: the expectation's, with the candidate's runs.
        oracle: the candidate ready to be evaluated in float64; None where it cannot be.
        notes: what a reader should know.

    Raises:
        ModelError: the candidate cannot be loaded by ONNX Runtime, or does not run in float64 and nothing else is
            there to judge it by.
        ProviderError: the provider does not run here.
    """

    def __init__(
        self, candidate: Subject, expectation: Expectation, options: VerifyOptions, progress: Progress
    ) -> None:
        self.candidate = candidate
        self._expectation = expectation
        self._options = options
        self._progress = progress
        self.measurement: Measurement = expectation.measurement.copy()
        self.oracle: Oracle | None = None
        self.notes: list[str] = []
        if expectation.kind == "float64":
            self._run_in_float64()
        if options.runtime:
            self._run_in_runtime()

    def _run_in_float64(self) -> None:
        try:
            oracle = Oracle(self.candidate.model)
            outcomes = list(self._outcomes("candidate in float64", oracle.run))
            failures = [outcome.message for outcome in outcomes if isinstance(outcome, Failure)]
            if len(failures) == len(outcomes):
                raise NotInFloat64Error(failures[0])
        except NotInFloat64Error as refusal:
            if not self._options.runtime:
                raise ModelError(
                    f"the models cannot be compared without ONNX Runtime: the candidate does not run in float64 "
                    f"({refusal}); allow the runtime"
                ) from refusal
            self.notes.append(
                "the candidate does not run in float64 and was judged by its runs in ONNX Runtime, "
                f"which are less sharp: {refusal}"
            )
            return
        self.oracle = oracle
        self.measurement.record("candidate_float64", outcomes)
        if oracle.narrowed:
            self.notes.append(f"{', '.join(oracle.narrowed)} was evaluated in less than float64")

    def _run_in_runtime(self) -> None:
        session, stands_in = self.candidate.plain_session()
        if stands_in:
            self.notes.append(
                "ONNX Runtime does not run the candidate with optimizations off; its basic level stands in for it"
            )
        record = self.measurement.record
        record("candidate_plain", self._in_session(session, "candidate, optimizations off"))
        record("candidate_shipped", self._as_shipped())
        provider = self._options.extra_provider
        if provider is None:
            return
        stage = f"candidate on {self._options.provider}"
        session = self.candidate.session(self._options.level, provider)
        record("candidate_provider", self._in_session(session, stage))
        if provider == PROVIDERS["cuda"]:
            session = self.candidate.session(self._options.level, provider, tf32=True)
            record("candidate_tf32", self._in_session(session, f"{stage}, TF32"))

    def shipped(self, without: Sequence[str]) -> Measurement:
        """The measurement with a run as shipped that leaves some of ONNX Runtime's optimizations out."""
        measurement = self.measurement.copy()
        measurement.record("candidate_shipped", self._as_shipped(without))
        return measurement

    def _as_shipped(self, without: Sequence[str] = ()) -> Iterator[Outcome]:
        return self._in_session(self.candidate.session(self._options.level, without=without), "candidate as shipped")

    def _in_session(self, session: Any, stage: str) -> Iterator[Outcome]:
        return self._outcomes(stage, lambda values: self.candidate.run(session, values))

    def _outcomes(self, stage: str, run: Run) -> Iterator[Outcome]:
        def outcome(values: Mapping[str, NDArray[Any]]) -> Outcome:
            try:
                return run(values)
            except (ModelError, NotInFloat64Error) as error:
                return Failure(f"the candidate fails where the reference runs: {error}")

        return each(self._expectation.feeds, stage, outcome, self._progress)
