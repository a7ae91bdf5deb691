"""The process of one candidate: it does what its parent asks, one JSON object a line.

::

    → (start)                              ← {"tick_ns": …, "onnxruntime": "…", "threads": …}
    → {"do": "open", "model": …, "session": {…}, "feeds": [[name, dtype, shape], …], "seed": …}
                                           ← {"creation_ns": …, "first_run_ns": …}
    → {"do": "run", "group": k, "samples": n, "lead_in_ns": t}
                                           ← {"samples_ns": [total of k runs, …]}
    → {"do": "memory"}                     ← {"peak_bytes": …}

An answer of ``{"error": kind, "message": …}`` is one of bnfold's own exceptions; after anything worse the
process is gone, and what it wrote on stderr tells why. It also ends when its stdin does, so it cannot outlive
its parent. Whatever libraries print on file descriptor 1 goes to stderr; the answers travel over a private
copy of it.

Run as ``python -P -m bnfold.benchmarking.worker``. Only what a session needs is imported here.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from time import perf_counter_ns
from typing import Any, TextIO

from bnfold.benchmarking.inputs import Feed, random_inputs
from bnfold.errors import BnfoldError, ModelError
from bnfold.extras import require
from bnfold.session import SessionOptions, create_session, one_line, runtime_errors

Message = dict[str, Any]


class Candidate:
    """A session with its inputs, ready to be timed."""

    def __init__(self, session: Any, feeds: Mapping[str, Any]) -> None:
        self._session = session
        self._feeds = dict(feeds)
        self._outputs = [output.name for output in session.get_outputs()]
        self._failures: tuple[type[Exception], ...] = (*runtime_errors(), ValueError)

    def sample(self, group: int) -> int:
        """The time of ``group`` runs, in ns.

        Raises:
            ModelError: ONNX Runtime failed while running the model.
        """
        run, outputs, feeds = self._session.run, self._outputs, self._feeds
        started = perf_counter_ns()
        try:
            for _ in range(group):
                run(outputs, feeds)
        except self._failures as error:
            raise ModelError(f"ONNX Runtime failed while running the model: {one_line(error)}") from error
        return perf_counter_ns() - started


def open_candidate(request: Message) -> tuple[Candidate, Message]:
    """Create the session cold, make its inputs, run it for the first time; each is timed on its own."""
    options = SessionOptions(**request["session"])
    started = perf_counter_ns()
    session = create_session(request["model"], options)
    creation = perf_counter_ns() - started
    feeds = [Feed(name, dtype, tuple(shape)) for name, dtype, shape in request["feeds"]]
    candidate = Candidate(session, random_inputs(feeds, request["seed"]))
    return candidate, {"creation_ns": creation, "first_run_ns": candidate.sample(1)}


def run_block(candidate: Candidate, request: Message) -> Message:
    """A block: at least one run and ``lead_in_ns`` uncounted, then the samples; no garbage collection."""
    gc.collect()
    gc.disable()
    try:
        end = perf_counter_ns() + request["lead_in_ns"]
        candidate.sample(1)
        while perf_counter_ns() < end:
            candidate.sample(1)
        samples = [candidate.sample(request["group"]) for _ in range(request["samples"])]
    finally:
        gc.enable()
    return {"samples_ns": samples}


def peak_memory() -> int:
    """The most physical memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss would start from the parent's size: Linux carries it over exec.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def clock_tick() -> int:
    """The smallest step seen between two readings of the clock, in ns."""
    readings = [perf_counter_ns() for _ in range(2000)]
    return min((b - a for a, b in pairwise(readings) if b > a), default=1000)


def greet() -> Message:
    """Import what the first session would import, so that its creation time does not hold it."""
    ort = require("onnxruntime", "cpu")
    return {"tick_ns": clock_tick(), "onnxruntime": ort.__version__}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    candidate: Candidate | None = None
    gc.freeze()
    for line in requests:
        request = json.loads(line)
        try:
            match request["do"]:
                case "open":
                    candidate, answer = open_candidate(request)
                case "run":
                    assert candidate is not None, "run before open"
                    answer = run_block(candidate, request)
                case "memory":
                    answer = {"peak_bytes": peak_memory()}
                case unknown:
                    raise AssertionError(f"unknown request {unknown!r}")
        except BnfoldError as error:
            answer = _failure(error)
        _send(answers, answer)


def _failure(error: BnfoldError) -> Message:
    return {"error": type(error).__name__, "message": str(error)}


def _send(answers: TextIO, message: Message) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def main() -> None:
    """Take stdin and stdout for the protocol, leave stderr in their place, and serve."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    try:
        _send(answers, greet())
    except BnfoldError as error:
        _send(answers, _failure(error))
    else:
        serve(requests, answers)
    answers.flush()
    os._exit(0)  # nothing here is worth the time that tearing down a session takes


if __name__ == "__main__":
    main()
