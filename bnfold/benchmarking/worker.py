"""The process of one candidate: it does what its parent asks, one JSON object a line.

::

    → (start)                              ← {"tick_ns": …, "onnxruntime": "…", "idle_bytes": …}
    → {"do": "open", "model": …, "session": {…}}
                                           ← {"creation_ns": …}
    → {"do": "first run", "binding": …, "feeds": [[name, dtype, shape], …], "seed": …}
                                           ← {"first_run_ns": …}
    → {"do": "run", "kind": "single-stream", "runs": k, "samples": n, "lead_in_ns": t}
                                           ← {"samples_ns": [total of k runs, …]}
    → {"do": "run", "kind": "offline", "streams": s, …the same}
                                           ← {"samples_ns": [time to empty a queue of k runs, …]}
    → {"do": "run", "kind": "poisson", "rate": r, "seed": […], "lead_in": m, "samples": n, "lead_in_ns": t}
                                           ← {"samples_ns": [latency of each but the first m], "busy_ns": …,
                                              "span_ns": …}
    → {"do": "memory"}                     ← {"peak_bytes": …}
    → {"do": "profile"}                    ← {"kernels": [{…}, …]}, of a session opened with "profile"

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
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter_ns
from typing import Any, TextIO

import numpy as np

from bnfold.benchmarking import blocks
from bnfold.benchmarking.inputs import Feed, random_inputs
from bnfold.benchmarking.kernels import read_profile
from bnfold.benchmarking.runner import Arrays, Runner
from bnfold.errors import BnfoldError
from bnfold.extras import require
from bnfold.session import SessionOptions, create_session

Message = dict[str, Any]


@dataclass(frozen=True)
class Opened:
    """A session that has not run yet, and what it was made of."""

    model: str
    options: SessionOptions
    session: Any


class Candidate:
    """What the process was asked to open, and how it is timed."""

    def __init__(self, session: Any, runner: Runner) -> None:
        self._session = session
        self._runner = runner

    def block(self, request: Message) -> Message:
        """A block: at least one run and ``lead_in_ns`` uncounted, then the samples."""
        run = self._runner.run
        with self._runner.failures_named(), blocks.undisturbed():
            blocks.lead_in(run, request["lead_in_ns"])
            match request["kind"]:
                case "single-stream":
                    return {"samples_ns": blocks.single_stream(run, request["runs"], request["samples"])}
                case "offline":
                    streams = request["streams"]
                    blocks.offline(run, streams, 2 * streams, 1)
                    return {"samples_ns": blocks.offline(run, streams, request["runs"], request["samples"])}
                case "poisson":
                    return self._poisson(request)
                case unknown:
                    raise AssertionError(f"unknown kind of block {unknown!r}")

    def _poisson(self, request: Message) -> Message:
        generator = np.random.default_rng(request["seed"])
        count = request["lead_in"] + request["samples"]
        gaps = generator.exponential(1e9 / request["rate"], count).astype(np.int64).tolist()
        latencies, busy, span = blocks.poisson(self._runner.run, gaps)
        return {"samples_ns": latencies[request["lead_in"] :], "busy_ns": busy, "span_ns": span}

    def profile(self) -> Message:
        """End the session's profile and return what each node took."""
        file = Path(self._session.end_profiling())
        try:
            return {"kernels": [kernel.to_json() for kernel in read_profile(file)]}
        finally:
            file.unlink(missing_ok=True)


def open_session(request: Message) -> tuple[Opened, Message]:
    """Create the session cold; the time that it takes is told."""
    options = SessionOptions(**request["session"])
    started = perf_counter_ns()
    session = create_session(request["model"], options)
    creation = perf_counter_ns() - started
    return Opened(request["model"], options, session), {"creation_ns": creation}


def run_first(opened: Opened, request: Message) -> tuple[Candidate, Message]:
    """Make inputs and run the session for the first time; what that run takes is told."""
    session, options = opened.session, opened.options
    feeds = [Feed(name, dtype, tuple(shape)) for name, dtype, shape in request["feeds"]]
    inputs = random_inputs(feeds, request["seed"])
    binding = request["binding"]
    shapes = _output_shapes(opened.model, options, inputs) if "enable_cuda_graph" in options.provider_options else {}
    runner = Runner(session, inputs, provider=options.provider, binding=binding, output_shapes=shapes)
    with runner.failures_named():
        started = perf_counter_ns()
        runner.run()
        first_run = perf_counter_ns() - started
        runner.keep_outputs()
    return Candidate(session, runner), {"first_run_ns": first_run}


def _output_shapes(model: str, options: SessionOptions, inputs: Arrays) -> dict[str, tuple[int, ...]]:
    """The shapes of all outputs, from a run without a CUDA graph: a graph is recorded with its buffers in place."""
    session = create_session(model, replace(options, provider_options={}))
    runner = Runner(session, inputs)
    with runner.failures_named():
        outputs: Any = runner.run()
    return {output.name: value.shape for output, value in zip(session.get_outputs(), outputs, strict=True)}


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
    return {"tick_ns": clock_tick(), "onnxruntime": ort.__version__, "idle_bytes": peak_memory()}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    opened: Opened | None = None
    candidate: Candidate | None = None
    gc.freeze()
    for line in requests:
        request = json.loads(line)
        try:
            match request["do"]:
                case "open":
                    opened, answer = open_session(request)
                case "first run":
                    assert opened is not None, "first run before open"
                    candidate, answer = run_first(opened, request)
                case "run":
                    assert candidate is not None, "run before first run"
                    answer = candidate.block(request)
                case "memory":
                    answer = {"peak_bytes": peak_memory()}
                case "profile":
                    assert candidate is not None, "profile before first run"
                    answer = candidate.profile()
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
