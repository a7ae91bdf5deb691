"""A process that answers requests, one line of JSON each, and may crash or hang without harm to anyone else."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

Answer = Mapping[str, Any]


class Failure(StrEnum):
    """How a request came to nothing."""

    REFUSED = "refuses"
    CRASHED = "crashes"
    HUNG = "hangs"


class RequestFailedError(Exception):
    """A request came to nothing; the process starts anew for the next one, if it has to."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure
        self.detail = detail


class Worker:
    """A process that :func:`serve` runs in, started when it is first needed, and again after it died.

    Args:
        command: what starts it.
        warm_up: a first request after each start, whatever comes of it.
        start_limit_s: how long it may take until it is ready, imports included.
    """

    def __init__(self, command: Sequence[str], warm_up: Answer | None = None, start_limit_s: float = 120.0) -> None:
        self._command = list(command)
        self._warm_up = warm_up
        self._start_limit_s = start_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the worker
        self._buffer = b""

    def ask(self, request: Answer, limit_s: float) -> Answer:
        """The answer to a request.

        Raises:
            RequestFailedError: it answered with an error, died, or took longer than ``limit_s``.
        """
        if self._process is None:
            self._start()
            if self._warm_up is not None:
                self._exchange(self._warm_up, self._start_limit_s)
        answer = self._exchange(request, limit_s)
        if "error" in answer:
            raise RequestFailedError(Failure.REFUSED, str(answer["error"]))
        return answer

    def close(self) -> None:
        """End the process."""
        self._stop()
        self._errors.close()

    def _start(self) -> None:
        self._buffer = b""
        self._errors.truncate(0)
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._read(self._start_limit_s)

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait()
        self._process = None

    def _exchange(self, request: Answer, limit_s: float) -> Answer:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        return self._read(limit_s)

    def _read(self, limit_s: float) -> Answer:
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        end = time.monotonic() + limit_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                self._stop()
                raise RequestFailedError(Failure.HUNG, f"no answer within {limit_s:g} s")
            part = os.read(descriptor, 1 << 16)
            if not part:
                raise self._death()
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: Answer = json.loads(line)
        return answer

    def _death(self) -> RequestFailedError:
        assert self._process is not None
        code = self._process.wait()
        self._stop()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return RequestFailedError(Failure.CRASHED, f"{how}: {lines[-1][:200]}" if lines else how)


def serve(answer: Callable[[Answer], Answer]) -> None:
    """Answer requests until standard input ends; an exception is an answer, too."""
    # What a library prints, C++ included, must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        try:
            result = answer(json.loads(line))
        except Exception as error:  # whatever goes wrong is what the asker wants to know
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            result = {"error": f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"}
        print(json.dumps(result), file=answers)
